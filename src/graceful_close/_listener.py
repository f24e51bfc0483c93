"""A listening socket whose connections close gracefully, whoever closes them."""

from __future__ import annotations

import _socket
import selectors
import socket
import sys

from . import _process
from ._checks import native_family, native_type, require_stream
from ._reaper import Reaper, hand_over
from ._tls import send_close_notify, speaks_tls

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from typing import Any, Self

    from typing_extensions import Unpack

    from ._reaper import ReaperOptions

    Socket = socket.socket
else:
    Socket = object


_Base = socket.socket

# Or gevent's or eventlet's, which were there before us.
_STOCK = issubclass(_Base, _socket.socket)


class GracefulListener(socket.socket):
    """A listening socket for servers whose code is not yours.

    What `accept()` gives is a socket like any other until the server closes it. Then it hands
    its connection to a Reaper, and the server goes on at once:

        with GracefulListener(("127.0.0.1", 8080)) as listener:
            waitress.serve(app, sockets=[listener])

    "Closes" means close(), or the end of the last makefile() object after it. `shutdown(SHUT_WR)`
    does what it says. `shutdown(SHUT_RDWR)` sends our FIN too but does not stop the reading, and
    `shutdown(SHUT_RD)` does nothing: after either, what the peer still sends would be answered
    with RST. A server that sets SO_LINGER {1, 0} and closes wants to abort, and does; {1, n} does
    not make anybody wait. A socket that is forgotten is not closed: Python warns and closes it
    plainly, as ever.

    Closing the listener leaves its connections alone; `reaper` goes on until it is closed, or
    until the interpreter exits. Once the reaper is closed, a close() waits by itself, at most
    5 seconds, or not at all if the socket is non-blocking.

    Args:
        address: As for `socket.create_server`, as are the next four.
        family: AF_INET, AF_INET6 or AF_UNIX.
        backlog: Connections that may wait for accept().
        reuse_port: Whether to set SO_REUSEPORT.
        dualstack_ipv6: Whether to listen for IPv4 as well.
        reaper: Where the connections go; None: to one made for this listener with `options`.
        options: Those of `Reaper`.

    Attributes:
        reaper: Where the connections go.

    Raises:
        TypeError: Both `reaper` and `options` are given, or one of them is of the wrong kind.
        ValueError: An argument is out of its range.
        OSError: As for `socket.create_server`.

    Notes:
        Only the process that accepted a connection closes it gracefully; one that was forked
        after accept() drops its reference, and no more. For socketserver.ForkingMixIn, which
        accepts in one process and serves in the other, see `graceful_close.socketserver`.

        `dup()` gives a plain socket, and the connection, which has two owners from then on, is
        closed plainly by both. `detach()` gives it away altogether; that is also what
        `SSLContext.wrap_socket` does, see `tls`. Whoever hands the descriptor's number on
        (socket.fromfd, socket.send_fds) must use one of the two: close() ends the connection
        for every holder. Pickling is refused.

        A thread that waits in recv() while another calls `shutdown(SHUT_RDWR)` is not woken by
        that, but by the peer's end of the stream. What would wake it, SHUT_RD, makes Linux
        answer whatever the peer still sends with RST (tcp_rcv_state_process(), FIN_WAIT1 and
        2), and the reply would be lost as ever. A server that must wake its readers when it
        stops has to want that: `socket.socket.shutdown(sock, socket.SHUT_RDWR)`.

        What takes the descriptor instead of calling accept() is not served: uvloop and trio,
        which are refused (see `graceful_close.asyncio` and `graceful_close.trio`), asyncio's
        proactor loop on Windows, and gevent's own servers.
    """

    __slots__ = ("_kinds", "reaper")

    reaper: Reaper
    _kinds: dict[int, type[socket.socket]]  # by the process that accepts

    def __init__(
        self,
        address: Any,
        *,
        family: int = socket.AF_INET,
        backlog: int | None = None,
        reuse_port: bool = False,
        dualstack_ipv6: bool = False,
        reaper: Reaper | None = None,
        **options: Unpack[ReaperOptions],
    ) -> None:
        self.reaper = _one_reaper(reaper, options)
        self._kinds = {}
        made = socket.create_server(
            address,
            family=family,
            backlog=backlog,
            reuse_port=reuse_port,
            dualstack_ipv6=dualstack_ipv6,
        )
        super().__init__(made.family, made.type, _protocol_of(made), made.detach())

    @classmethod
    def adopt(
        cls,
        listener: socket.socket,
        *,
        reaper: Reaper | None = None,
        **options: Unpack[ReaperOptions],
    ) -> Self:
        """Take over a socket that listens: a supervisor's, systemd's, gunicorn's own.

        `listener` is closed when this returns; its descriptor and its blocking mode go on here.

        Args:
            listener: A listening stream socket.
            reaper: As for the class.
            options: As for the class.

        Raises:
            TypeError: It is no stream socket, or a TLS socket (wrap what this returns), or the
                rest is wrong as for the class.
            ValueError: It does not listen.
        """
        require_stream(listener)
        if speaks_tls(listener):
            raise TypeError(f"a socket without TLS is needed, not {listener!r}")
        if not _listens(listener):
            raise ValueError(f"a listening socket is needed, not {listener!r}")
        reaper = _one_reaper(reaper, options)
        self = cls.__new__(cls)
        self.reaper = reaper
        self._kinds = {}
        timeout = listener.gettimeout()
        socket.socket.__init__(
            self, listener.family, listener.type, _protocol_of(listener), listener.detach()
        )
        self.settimeout(timeout)
        return self

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection, as `socket.socket.accept` does.

        Returns:
            A socket that closes gracefully, and the peer's address.
        """
        if not _STOCK:
            accepted, address = super().accept()
            accepted.__class__ = self._kind()
            return accepted, address
        if socket.socket is not _Base and not issubclass(socket.socket, _socket.socket):
            _let_others_run(self)
        # What socket.accept() does, at two thirds of the cost: that makes an enum of the family
        # and one of the type for each connection, and an object that would not be ours.
        stock: Any = self
        number, address = stock._accept()
        kind = self._kinds.get(_process.number) or self._kind()
        accepted = kind(native_family(self), native_type(self), self.proto, number)
        if self.gettimeout() and socket.getdefaulttimeout() is None:
            accepted.setblocking(True)  # BSD, macOS: it inherits the listener's mode
        return accepted, address

    def dup(self) -> Self:
        """Another listener for the same connections, with the same reaper."""
        return self.adopt(
            socket.fromfd(self.fileno(), self.family, self.type, self.proto), reaper=self.reaper
        )

    def setblocking(self, flag: bool) -> None:
        """As for any socket.

        Raises:
            TypeError: It is uvloop that asks, which accepts without accept().
        """
        # uvloop.Loop.create_server() begins with this; then it has the number, and nothing
        # more is heard of it.
        if not flag and "uvloop" in sys.modules and _uvloop_runs():
            raise TypeError(
                "uvloop does not accept through a GracefulListener: use a plain socket and "
                "graceful_close.asyncio, or asyncio's own event loop. (For loop.sock_accept(), "
                "make the listener non-blocking before the loop runs.)"
            )
        super().setblocking(flag)

    def tls(self, context: ssl.SSLContext) -> None:
        """Have the server's side of `context`'s TLS sockets close gracefully, too.

        `SSLContext.wrap_socket` takes the descriptor out of the socket that accept() gave, and
        with it the graceful close. This puts it back by the context's `sslsocket_class`. Servers
        on asyncio wrap nothing, and do not need it.

        Raises:
            TypeError: `context` makes sockets of a class of its own already.
        """
        import ssl

        if context.sslsocket_class is not ssl.SSLSocket:
            raise TypeError(f"sslsocket_class is {context.sslsocket_class!r} already")
        reaper = self.reaper

        class GracefulSSLSocket(_Accepted, ssl.SSLSocket):
            _reaper = reaper

            def __new__(cls, *_args: object, **_options: object) -> Self:
                self = super().__new__(cls)
                self._accepted_in = _process.number
                return self

            def shutdown(self, how: int) -> None:
                if how != socket.SHUT_RD:
                    # ssl's own forgets the session, and the peer would take the stream for cut.
                    try:
                        send_close_notify(self)
                    except OSError:
                        pass  # no room, or no connection: what shutdown() says counts
                super().shutdown(how)

            def _real_close(self, *args: Any) -> None:
                if self.server_side and _has_peer(self):
                    super()._real_close(*args)
                else:  # a client's, or the listening socket itself
                    ssl.SSLSocket._real_close(self, *args)  # type: ignore[attr-defined]

        context.sslsocket_class = GracefulSSLSocket

    def _kind(self) -> type[socket.socket]:
        """The class of what is accepted in this process."""
        kind = self._kinds.get(_process.number)
        if kind is None:
            members = {"__slots__": (), "_reaper": self.reaper, "_accepted_in": _process.number}
            kind = self._kinds[_process.number] = type("Accepted", (_Accepted, _Base), members)
        return kind


class _Accepted(Socket):
    """What makes a class of sockets close gracefully.

    An object of them has room for nothing but what a plain one has, so that dup() can make it one:
    what is to be known of it is the class's.
    """

    __slots__ = ()

    _reaper: Reaper
    _accepted_in: int  # process

    def shutdown(self, how: int) -> None:
        """Send our FIN, if writing is to end. Reading goes on until the close."""
        if how != socket.SHUT_RD:
            super().shutdown(socket.SHUT_WR if how == socket.SHUT_RDWR else how)

    def dup(self) -> Self:
        """A plain socket for the same connection. From now on neither closes it for both."""
        twin = super().dup()
        plain: Any = type(self).__base__
        twin.__class__ = self.__class__ = plain
        return twin

    def _real_close(self, *args: Any) -> None:
        # What socket.close() and the last makefile() object's end come to. The standard
        # library's own subclass, SSLSocket, hangs on here, and so must we: close() alone cannot
        # know whether a makefile() object is still open.
        if self._accepted_in != _process.number or not hand_over(self, self._reaper):
            super()._real_close(*args)  # type: ignore[misc]


def _protocol_of(sock: socket.socket) -> int:
    """TCP by its number. What was made with 0, the family's own, hands that on to accept().

    asyncio sets TCP_NODELAY on nothing but IPPROTO_TCP, and without it a reply that is written
    in two pieces waits for the acknowledgement of the first: 44 ms.
    """
    internet = sock.family in {socket.AF_INET, socket.AF_INET6}
    return sock.proto or (socket.IPPROTO_TCP if internet else 0)


def _one_reaper(reaper: Reaper | None, options: ReaperOptions) -> Reaper:
    if reaper is None:
        return Reaper(**options)
    if not isinstance(reaper, Reaper):
        raise TypeError(f"reaper must be a Reaper, not {reaper!r}")
    if options:
        raise TypeError(f"give either a reaper or its options, not both: {', '.join(options)}")
    return reaper


def _listens(sock: socket.socket) -> bool:
    try:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) != 0
    except OSError:
        return True  # ENOPROTOOPT: macOS does not say


def _let_others_run(listener: socket.socket) -> None:
    """Wait as gevent and eventlet do, which patched the modules after we were imported."""
    timeout = listener.gettimeout()
    if timeout == 0:
        return
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        if not selector.select(timeout):
            raise TimeoutError("timed out")


def _has_peer(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False  # ENOTCONN: it listens, or the peer has reset it
    return True


def _uvloop_runs() -> bool:
    """Whether it is uvloop's event loop that this thread runs just now."""
    import asyncio

    try:
        return type(asyncio.get_running_loop()).__module__.startswith("uvloop")
    except RuntimeError:
        return False
