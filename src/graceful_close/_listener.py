"""A listening socket whose connections close gracefully in servers that call close()."""

from __future__ import annotations

import _socket
import os
import selectors
import socket
import sys

from ._clock import monotonic
from ._close_all import close_all_on
from ._options import REAPER_OPTIONS, Options, require_known
from ._reaper import Reaper, after_failed_accept, hand_over, is_shortage
from ._record import replace
from ._result import CloseOutcome
from ._sockets import plain_dup, require_stream
from ._tls import MSG_NOSIGNAL, send_close_notify, speaks_tls

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

# Or that of gevent or eventlet, if they were imported first.
_STOCK = issubclass(_Base, _socket.socket)

_native_family = _socket.socket.family.__get__
_native_type = _socket.socket.type.__get__

# The number of forks of this process and its ancestors. A connection that was accepted before the
# last fork has two holders, and it is not known which of them serves it.
_forks = 0


def others_may_hold() -> None:
    """From now on, the connections that are accepted now may have other holders."""
    global _forks  # noqa: PLW0603
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=others_may_hold, after_in_child=others_may_hold)


class GracefulListener(socket.socket):
    """A listening socket for third-party servers.

    `accept()` returns a socket that behaves like any other until the server closes it. The close
    moves the connection to a Reaper, and the server continues immediately:

        with GracefulListener(("127.0.0.1", 8080)) as listener:
            waitress.serve(app, sockets=[listener])

    A close is close(), or the end of the last makefile() object after it. `shutdown(SHUT_WR)` works
    as usual. `shutdown(SHUT_RDWR)` sends our FIN but does not stop reading, and `shutdown(SHUT_RD)`
    has no effect, because after either the kernel would answer further input with RST. If a server
    sets SO_LINGER {1, 0} and closes, the connection is aborted; {1, n} does not wait. A socket that
    is garbage-collected while open is closed plainly, with Python's usual warning.

    Closing the listener does not affect its connections. `reaper` continues until it is closed, or
    until the interpreter exits. If `reaper` is closed, a close() waits in the calling thread, at most
    5 seconds, or not at all if the socket is non-blocking.

    Args:
        address: As for `socket.create_server`, as are the next four: (host, port), or a path with
            AF_UNIX.
        family: AF_INET, AF_INET6 or AF_UNIX.
        backlog: How many connections may wait for accept(); None: the system's default.
        reuse_port: Whether to set SO_REUSEPORT.
        dualstack_ipv6: Whether to listen for IPv4 as well.
        reaper: The Reaper that closes the connections; None: a new one with `options`.
        options: Those of `Reaper`.

    Attributes:
        reaper: The Reaper that closes the connections.

    Raises:
        TypeError: Both `reaper` and `options` are given, or one of them has the wrong type.
        ValueError: An argument is out of range.
        OSError: As for `socket.create_server`.

    Notes:
        A connection that was accepted before a fork has two holders, parent and child. close()
        removes only the reference of the calling process, as with a plain socket; the process that
        serves the connection ends it with `graceful_close`. For socketserver.ForkingMixIn, which
        accepts in one process and serves in the other, see `graceful_close.socketserver`.

        `dup()` of an accepted socket returns a plain socket. The connection then has two holders,
        and both close it plainly. `detach()` releases the descriptor; `SSLContext.wrap_socket`
        does so, too (see `tls`). A program that passes on the number of the descriptor
        (socket.fromfd, socket.send_fds, subprocess) must call one of the two first, because close()
        ends the connection for every holder. Pickling raises TypeError.

        `shutdown(SHUT_RDWR)` wakes a thread that waits in recv() at the peer's FIN, or when the
        Reaper gives up. An immediate SHUT_RD would destroy the reply, because Linux then answers
        further input with RST (tcp_rcv_state_process(), FIN_WAIT1 and 2). A server that must wake
        its readers when it stops calls `shutdown(SHUT_RD)`.

        A server with an epoll of its own must unregister a connection before it closes it. The
        connection stays open in the Reaper, and epoll would continue to report it (epoll(7)).

        The listener has no effect on code that takes its descriptor and does not call accept().
        Event loops other than asyncio's own (uvloop, rloop), trio and eventlet raise TypeError.
        asyncio's proactor loop on Windows and gevent's own servers raise nothing.
    """

    __slots__ = ("reaper",)

    reaper: Reaper

    def __init__(
        self,
        address: tuple[Any, ...] | str | bytes,
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
        """Take over an existing listening socket (from a supervisor, systemd or gunicorn).

            listener = GracefulListener.adopt(socket.socket(fileno=3))

        `listener` is closed when this returns; the result has its descriptor and its blocking mode.

        Args:
            listener: A listening stream socket.
            reaper: As for the class.
            options: As for the class.

        Raises:
            TypeError: `listener` is not a stream socket, or is a TLS socket (wrap the result
                instead), or another argument has the wrong type.
            ValueError: `listener` does not listen.
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

        Raises:
            OSError: As for `socket.socket.accept`. If no descriptor is free (EMFILE), the Reaper also
                closes the older half of its pending connections.
        """
        return accept_for(self, self.reaper)

    def refuse_backlog(self, reply: bytes = b"", timeout: float = 1.0) -> list[CloseResult]:
        """Accept all connections in the backlog, send each a reply, and close them gracefully.

            with listener:
                listener.refuse_backlog(b"HTTP/1.1 503 Service Unavailable...")

        When a listening socket is closed, the kernel resets every connection in its backlog,
        although the clients have already sent a request. Call this when the server has stopped
        accepting, and close the listener afterwards.

        Args:
            reply: Sent to each client, as far as its socket accepts it without waiting: for
                example a 503 response. With TLS leave it empty.
            timeout: The deadline in seconds for all connections together, 0 or more.

        Returns:
            How each connection ended.

        Raises:
            TypeError, ValueError: `reply` is not bytes, or `timeout` is not a number of seconds.
            OSError: The listener is closed, or no descriptor is left (EMFILE). If only a few are
                left, the connections are refused in turns, until the deadline.

        Notes:
            Connections that arrive between this call and close() are reset: Linux cannot stop a
            listening socket without that. If other processes accept from the same socket, nothing
            is reset before the last of them closes it, and none of them needs this call.

        .. versionadded:: 0.2.0
        """
        options = Options(timeout)
        try:
            reply = bytes(memoryview(reply))  # raises here, and not when a client was accepted
        except TypeError:
            raise TypeError(f"reply must be bytes, not {reply!r}") from None
        since = monotonic()
        results: list[CloseResult] = []
        before = self.gettimeout()
        try:
            super().settimeout(0)
            while self._refuse_some(reply, options, since, results):
                pass
        finally:
            super().settimeout(before)
        return results

    def _refuse_some(
        self, reply: bytes, options: Options, since: float, results: list[CloseResult]
    ) -> bool:
        """Refuse the backlog, or as many as the free descriptors permit. True: more may wait."""
        waiting: list[socket.socket] = []
        resets: dict[int, ConnectionError] = {}
        more = False
        try:
            while True:
                try:
                    sock = self.accept()[0]
                except (BlockingIOError, InterruptedError):
                    break
                except ConnectionError:
                    continue  # ECONNABORTED: reset in the backlog
                except OSError as error:
                    more = is_shortage(error) and monotonic() < since + options.timeout
                    if not (more and waiting):
                        raise
                    break  # the others wait until these have released theirs
                waiting.append(sock)
                sock.settimeout(0)
                try:
                    sock.send(reply, MSG_NOSIGNAL)
                except ConnectionError as error:
                    resets[len(waiting) - 1] = error.with_traceback(None)
                except OSError:
                    pass  # no room: the close reports that
        finally:
            closed = close_all_on(options, waiting, since)
        for index, reset in resets.items():
            # The kernel reports a reset once, and the send got it.
            closed[index] = replace(closed[index], outcome=CloseOutcome.PEER_RESET, error=reset)
        results += closed
        return more

    def dup(self) -> Self:
        """Return another listener for the same connections, with the same reaper."""
        return self.adopt(_stock_dup(self), reaper=self.reaper)

    def setblocking(self, flag: bool) -> None:
        """As for any socket.

        Raises:
            TypeError: Called by an event loop that bypasses `accept()`: uvloop, rloop.
        """
        # Every loop's create_server() begins with this call, and then uses the descriptor only.
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
        """Make the server-side TLS sockets of `context` close gracefully, too.

            listener.tls(context)  # before the server wraps the sockets of accept()

        `SSLContext.wrap_socket` takes the descriptor out of the accepted socket, and the graceful
        close is lost. This method restores it with the context's `sslsocket_class`. Servers based on
        asyncio wrap no sockets, and do not need the call.

        Raises:
            TypeError: `context` is of another type, or already has an `sslsocket_class` of its own.
        """
        import ssl

        if not isinstance(context, ssl.SSLContext):
            raise TypeError(f"context must be an ssl.SSLContext, not {context!r}")
        if context.sslsocket_class is not ssl.SSLContext.sslsocket_class:
            raise TypeError(f"sslsocket_class is {context.sslsocket_class!r} already")
        context.sslsocket_class = graceful_ssl_socket(self.reaper)


class _GracefulClose(Socket):
    """A mixin that makes a class of sockets close gracefully.

    Attributes:
        _reaper: The Reaper that closes the connection; None: the close is a plain one.
        _forks: The value of `_forks` when the connection was accepted.
        _peer: The peer's address.
    """

    __slots__ = ()

    _reaper: Reaper | None
    _forks: int
    _peer: object

    def close_by(self, reaper: Reaper, peer: object) -> None:
        """Let this Reaper close the connection, which was just accepted."""
        self._reaper, self._forks, self._peer = reaper, _forks, peer

    def closes_gracefully(self) -> bool:
        """Whether close() moves the connection to the Reaper."""
        # An object that a library made from the number of ours has no Reaper.
        return getattr(self, "_reaper", None) is not None and self._forks == _forks

    def make_plain(self) -> None:
        """Make close() a plain one, because the connection has another holder."""
        self._reaper = None

    def shutdown(self, how: int) -> None:
        """As for any socket, but SHUT_RDWR does not destroy a reply if further input arrives.

        It sends our FIN, and the Reaper reads and discards the input until the peer's FIN.
        """
        if how != socket.SHUT_RDWR or not self.closes_gracefully():
            super().shutdown(how)
            return
        super().shutdown(socket.SHUT_WR)
        try:
            twin = plain_dup(self)
        except OSError:
            return  # EMFILE: a thread that waits in recv() is not woken before the close
        if hand_over(twin, self._reaper, self._peer):  # type: ignore[arg-type]
            self.make_plain()
        else:
            twin.close()

    def dup(self) -> Self:
        """Return a plain socket for the same connection. Neither close ends it for both then."""
        plain: Any = _stock_dup(self)
        self.make_plain()
        return plain  # type: ignore[no-any-return]

    def _real_close(self, *args: Any) -> None:
        # socket.close() and the end of the last makefile() object call this method. The standard
        # library's own subclass, SSLSocket, overrides it, too: close() alone does not know whether
        # a makefile() object is still open.
        graceful = self.closes_gracefully()
        if not (graceful and hand_over(self, self._reaper, self._peer)):  # type: ignore[arg-type]
            super()._real_close(*args)  # type: ignore[misc]


class Accepted(_GracefulClose, _Base):
    """The class of accepted sockets."""

    __slots__ = ("_forks", "_peer", "_reaper")


def accept_for(listener: socket.socket, reaper: Reaper) -> tuple[socket.socket, Any]:
    """Accept a connection that is the Reaper's when it is closed; see `GracefulListener.accept`."""
    if not _STOCK:
        plain, address = _Base.accept(listener)
        accepted = Accepted(plain.family, plain.type, plain.proto, plain.detach())
        accepted.close_by(reaper, address)
        return accepted, address
    if socket.socket is not _Base and not issubclass(socket.socket, _socket.socket):
        _let_others_run(listener)
    # The steps of socket.accept() at two thirds of its cost: accept() creates enum members for the
    # family and the type of each connection, and an object of another class.
    stock: Any = listener
    try:
        number, address = stock._accept()
    except OSError as error:
        after_failed_accept(error, reaper)
        raise
    accepted = Accepted(
        _native_family(listener), _native_type(listener), listener.proto, number
    )
    accepted.close_by(reaper, address)
    if listener.gettimeout() and socket.getdefaulttimeout() is None:
        accepted.setblocking(True)  # BSD, macOS: inherits the listener's mode
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

        def closes_gracefully(self) -> bool:
            # Not a client's, and not the listening socket itself.
            return self.server_side and super().closes_gracefully() and _has_peer(self)

        def shutdown(self, how: int) -> None:
            # ssl's shutdown() drops the session, and the stream would be truncated.
            if self.closes_gracefully():
                if how == socket.SHUT_RD:
                    socket.socket.shutdown(self, how)
                    return
                try:
                    send_close_notify(self)
                except OSError:
                    pass  # no room, or no connection: shutdown() reports it
            super().shutdown(how)

    return GracefulSSLSocket


def _protocol_of(sock: socket.socket) -> int:
    """Return the protocol number, IPPROTO_TCP instead of 0, which accept() copies.

    asyncio sets TCP_NODELAY only on sockets with IPPROTO_TCP. Without TCP_NODELAY a reply that is
    written in two parts waits for the acknowledgement of the first: 44 ms.
    """
    internet = sock.family in {socket.AF_INET, socket.AF_INET6}
    return sock.proto or (socket.IPPROTO_TCP if internet else 0)


def _one_reaper(reaper: Reaper | None, options: ReaperOptions) -> Reaper:
    if reaper is None:
        require_known("GracefulListener", options, REAPER_OPTIONS)
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
        return True  # ENOPROTOOPT: macOS does not report it


def _let_others_run(listener: socket.socket) -> None:
    """Wait cooperatively, if gevent or eventlet patched the modules after our import."""
    timeout = listener.gettimeout()
    if timeout == 0:
        return
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        if not selector.select(timeout):
            raise TimeoutError("timed out")


def _stock_dup(sock: socket.socket) -> socket.socket:
    """A socket of the standard class with a descriptor of its own, and the timeout of `sock`."""
    number = _socket.dup(sock.fileno())
    dup = socket.socket(sock.family, sock.type, sock.proto, number)
    dup.settimeout(sock.gettimeout())  # both share the mode
    return dup


def _has_peer(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False  # ENOTCONN: a listening socket, or reset by the peer
    return True


def _loop_without_accept() -> object:
    """The event loop that this thread runs, unless its connections close gracefully."""
    import asyncio

    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return None
    # One of asyncio's own calls accept(); one of `graceful_loop` needs no listener for it.
    accepts = isinstance(loop, asyncio.BaseEventLoop)
    return None if accepts or getattr(loop, "closes_gracefully", False) else loop


def _refuse_eventlet() -> None:
    """Its sockets close below any method of ours; what they accept they take for an address."""
    if socket.socket.__module__.partition(".")[0] == "eventlet":
        raise TypeError(
            "a GracefulListener has no effect under eventlet's monkey_patch(): use a plain "
            "socket, and graceful_close.wsgi.DrainMiddleware around the application"
        )
