"""A listening socket whose connections close gracefully, whoever closes them."""

from __future__ import annotations

import _socket
import os
import selectors
import socket
import sys

from ._close_all import close_all_on
from ._options import Options, require_known
from ._reaper import Reaper, hand_over
from ._sockets import require_stream
from ._tls import send_close_notify, speaks_tls

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from typing import Any, Self

    from typing_extensions import Unpack

    from ._reaper import ReaperOptions
    from ._result import CloseResult

    Socket = socket.socket
else:
    Socket = object


_Base = socket.socket

# Or gevent's or eventlet's, which were there before us.
_STOCK = issubclass(_Base, _socket.socket)

_native_family = _socket.socket.family.__get__
_native_type = _socket.socket.type.__get__

# How often this process, and those that it comes from, have forked. A connection that was accepted
# before the last fork has two holders, and which of them serves it nobody knows.
_forks = 0


def _forked() -> None:
    global _forks  # noqa: PLW0603
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=_forked, after_in_child=_forked)


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
        A connection that was accepted before a fork has two holders afterwards, parent and child.
        close() drops the reference of whoever calls it, and no more, as a plain socket's does:
        the one that serves it ends it by `graceful_close`. For socketserver.ForkingMixIn, which
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

        What takes the descriptor instead of calling accept() is not served: event loops other
        than asyncio's own (uvloop, rloop), trio and eventlet, which are refused; asyncio's proactor
        loop on Windows and gevent's own servers, which are not.
    """

    __slots__ = ("reaper",)

    reaper: Reaper

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
        _refuse_eventlet()
        self.reaper = _one_reaper(reaper, options)
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
        _refuse_eventlet()
        require_stream(listener)
        if speaks_tls(listener):
            raise TypeError(f"a socket without TLS is needed, not {listener!r}")
        if not _listens(listener):
            raise ValueError(f"a listening socket is needed, not {listener!r}")
        reaper = _one_reaper(reaper, options)
        self = cls.__new__(cls)
        self.reaper = reaper
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
        return accept_for(self, self.reaper)

    def refuse_backlog(self, reply: bytes = b"", timeout: float = 1.0) -> list[CloseResult]:
        """Accept what waits in the backlog, answer each, and close all of it gracefully.

        A listening socket that is closed resets every connection in its backlog, and their clients
        have sent a request already. Call this when the server has stopped accepting, and close the
        listener afterwards.

        Args:
            reply: What each client is told, as far as its socket takes it without waiting: a
                503 response, say. Under TLS leave it empty.
            timeout: Seconds for all of them together, 0 or more.

        Returns:
            How each connection ended.

        Raises:
            TypeError, ValueError: `timeout` is not a number of seconds.
            OSError: The listener is closed, or there is no descriptor for one more (EMFILE).

        Notes:
            What comes between this and close() is reset as ever: Linux has no way to stop a
            listening socket without that. Where other processes accept from the same socket,
            nothing is reset before the last of them closes it, and none of them needs this.
        """
        options = Options(timeout)
        waiting: list[socket.socket] = []
        before = self.gettimeout()
        super().settimeout(0)
        try:
            while True:
                try:
                    sock = self.accept()[0]
                except (BlockingIOError, InterruptedError):
                    break
                except ConnectionError:
                    continue  # ECONNABORTED: it was reset while it waited
                waiting.append(sock)
                sock.settimeout(0)
                try:
                    sock.send(reply, getattr(socket, "MSG_NOSIGNAL", 0))
                except OSError:
                    pass  # it was reset, or takes nothing: its close reports that
        finally:
            super().settimeout(before)
            results = close_all_on(options, waiting)
        return results

    def dup(self) -> Self:
        """Another listener for the same connections, with the same reaper."""
        return self.adopt(
            socket.fromfd(self.fileno(), self.family, self.type, self.proto), reaper=self.reaper
        )

    def setblocking(self, flag: bool) -> None:
        """As for any socket.

        Raises:
            TypeError: It is an event loop that asks, and accepts without accept(): uvloop, rloop.
        """
        # Every loop's create_server() does this before it takes the number, and after that
        # nothing more is heard of it.
        if not flag and "asyncio" in sys.modules and (loop := _loop_without_accept()):
            raise TypeError(
                f"{loop!r} takes the descriptor, and does not accept through a GracefulListener. "
                "Run asyncio's own event loop (uvicorn: --loop asyncio), or give it a "
                "plain socket and use what needs no listener: graceful_close.asgi.DrainMiddleware "
                "around the application, or graceful_close.asyncio in the handler. (For "
                "loop.sock_accept(), make the listener non-blocking before the loop runs.)"
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

        if context.sslsocket_class is not ssl.SSLContext.sslsocket_class:
            raise TypeError(f"sslsocket_class is {context.sslsocket_class!r} already")
        context.sslsocket_class = graceful_ssl_socket(self.reaper)


class _GracefulClose(Socket):
    """What makes a class of sockets close gracefully.

    Attributes:
        _reaper: Where the connection goes; None: nowhere, it is closed plainly.
        _forks: `_forks` when it was accepted.
        _peer: The peer's address.
    """

    __slots__ = ()

    _reaper: Reaper | None
    _forks: int
    _peer: object

    def close_by(self, reaper: Reaper, peer: object) -> None:
        """Have this Reaper close the connection, which was accepted just now."""
        self._reaper, self._forks, self._peer = reaper, _forks, peer

    def shutdown(self, how: int) -> None:
        """Send our FIN, if writing is to end. Reading goes on until the close."""
        if how != socket.SHUT_RD:
            super().shutdown(socket.SHUT_WR if how == socket.SHUT_RDWR else how)

    def dup(self) -> Self:
        """A plain socket for the same connection. From now on neither closes it for both."""
        plain: Any = socket.fromfd(self.fileno(), self.family, self.type, self.proto)
        plain.settimeout(self.gettimeout())
        self._reaper = None
        return plain  # type: ignore[no-any-return]

    def _real_close(self, *args: Any) -> None:
        # What socket.close() and the last makefile() object's end come to. The standard
        # library's own subclass, SSLSocket, hangs on here, and so must we: close() alone cannot
        # know whether a makefile() object is still open.
        reaper = self._reaper
        if reaper is None or self._forks != _forks or not hand_over(self, reaper, self._peer):
            super()._real_close(*args)  # type: ignore[misc]


class _Accepted(_GracefulClose, _Base):
    """What accept() returns."""

    __slots__ = ("_forks", "_peer", "_reaper")


def accept_for(listener: socket.socket, reaper: Reaper) -> tuple[socket.socket, Any]:
    """Accept a connection that is the Reaper's when it is closed; see `GracefulListener.accept`."""
    if not _STOCK:
        plain, address = _Base.accept(listener)
        accepted = _Accepted(plain.family, plain.type, plain.proto, plain.detach())
        accepted.close_by(reaper, address)
        return accepted, address
    if socket.socket is not _Base and not issubclass(socket.socket, _socket.socket):
        _let_others_run(listener)
    # What socket.accept() does, at two thirds of the cost: that makes an enum of the family
    # and one of the type for each connection, and an object that would not be ours.
    stock: Any = listener
    number, address = stock._accept()
    accepted = _Accepted(
        _native_family(listener), _native_type(listener), listener.proto, number
    )
    accepted.close_by(reaper, address)
    if listener.gettimeout() and socket.getdefaulttimeout() is None:
        accepted.setblocking(True)  # BSD, macOS: it inherits the listener's mode
    return accepted, address


def graceful_ssl_socket(by: Reaper) -> type[ssl.SSLSocket]:
    """A class of TLS sockets that are this Reaper's when the server's side is closed."""
    import ssl

    class GracefulSSLSocket(_GracefulClose, ssl.SSLSocket):
        _reaper: Reaper | None = by
        _peer: object = None

        def __new__(cls, *_args: object, **_options: object) -> Self:
            self = super().__new__(cls)
            self._forks = _forks
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

    return GracefulSSLSocket


def _protocol_of(sock: socket.socket) -> int:
    """TCP by its number. What was made with 0, the family's own, hands that on to accept().

    asyncio sets TCP_NODELAY on nothing but IPPROTO_TCP, and without it a reply that is written
    in two pieces waits for the acknowledgement of the first: 44 ms.
    """
    internet = sock.family in {socket.AF_INET, socket.AF_INET6}
    return sock.proto or (socket.IPPROTO_TCP if internet else 0)


def _one_reaper(reaper: Reaper | None, options: ReaperOptions) -> Reaper:
    if reaper is None:
        require_known("GracefulListener", options, Reaper.__init__.__kwdefaults__ or ())
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


def _loop_without_accept() -> object:
    """The event loop that this thread runs just now, unless it is one of asyncio's own."""
    import asyncio

    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return None
    return None if isinstance(loop, asyncio.BaseEventLoop) else loop


def _refuse_eventlet() -> None:
    """Its sockets close below any method of ours; what they accept they take for an address."""
    if socket.socket.__module__.partition(".")[0] == "eventlet":
        raise TypeError(
            "a GracefulListener has no effect under eventlet's monkey_patch(): use a plain "
            "socket, and graceful_close.wsgi.DrainMiddleware around the application"
        )
