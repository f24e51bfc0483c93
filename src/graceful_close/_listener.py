"""A listening socket whose connections close gracefully, whoever closes them."""

from __future__ import annotations

import os
import socket

from ._checks import require_stream
from ._linger import LingerPolicy, get_linger
from ._reaper import Reaper
from ._sync import graceful_close

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from typing import Any, Self

    from typing_extensions import Unpack

    from ._reaper import ReaperOptions


class GracefulListener(socket.socket):
    """A listening socket for servers whose code is not yours.

    What `accept()` gives is a socket like any other until the server closes it. Then it hands
    its connection to a Reaper, and the server goes on at once:

        with GracefulListener(("127.0.0.1", 8080)) as listener:
            waitress.serve(app, sockets=[listener])

    "Closes" means close(), or the end of the last makefile() object after it. `shutdown(SHUT_WR)`
    does what it says. `shutdown(SHUT_RDWR)` sends our FIN too but does not stop the reading, and
    `shutdown(SHUT_RD)` does nothing: after either, what the peer still sends would be answered
    with RST. A server that sets SO_LINGER {1, 0} and closes wants to abort, and does.

    Closing the listener leaves its connections alone; `reaper` goes on until it is closed, or
    until the interpreter exits.

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
        A process that forked after accept() may close its copy of a socket; only in the process
        that accepted it is the close graceful. For socketserver.ForkingMixIn, which accepts in
        one process and serves in the other, see `graceful_close.socketserver`.

        `dup()` gives a plain socket, and the connection, which has two owners from then on, is
        closed plainly by both. `detach()` gives it away altogether; that is also what
        `SSLContext.wrap_socket` does, see `tls`.

        What takes the descriptor instead of calling accept() is not served: uvloop (see
        `graceful_close.asyncio`) and trio (see `graceful_close.trio`).
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
        self.reaper = _one_reaper(reaper, options)
        made = socket.create_server(
            address,
            family=family,
            backlog=backlog,
            reuse_port=reuse_port,
            dualstack_ipv6=dualstack_ipv6,
        )
        super().__init__(made.family, made.type, made.proto, made.detach())

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
            TypeError: It is no stream socket, or the rest is wrong as for the class.
            ValueError: It does not listen.
        """
        require_stream(listener)
        if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ValueError(f"a listening socket is needed, not {listener!r}")
        reaper = _one_reaper(reaper, options)
        self = cls.__new__(cls)
        timeout = listener.gettimeout()
        self.reaper = reaper
        socket.socket.__init__(
            self, listener.family, listener.type, listener.proto, listener.detach()
        )
        self.settimeout(timeout)
        return self

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection, as `socket.socket.accept` does.

        Returns:
            A socket that closes gracefully, and the peer's address.
        """
        plain, address = super().accept()
        accepted = _Accepted(plain.family, plain.type, plain.proto, plain.detach())
        accepted.close_with(self.reaper)
        return accepted, address

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

        class GracefulSSLSocket(ssl.SSLSocket):
            def _real_close(self) -> None:
                if not (self.server_side and hand_over(self, reaper)):
                    super()._real_close()  # type: ignore[misc]  # see _Accepted

        context.sslsocket_class = GracefulSSLSocket


class _Accepted(socket.socket):
    """A connection that a `GracefulListener` accepted."""

    __slots__ = ("_accepted_by", "_reaper")

    _reaper: Reaper | None
    _accepted_by: int

    def close_with(self, reaper: Reaper | None) -> None:
        """Where the connection is to go when it is closed; None: close plainly."""
        self._reaper = reaper
        self._accepted_by = os.getpid()

    def shutdown(self, how: int) -> None:
        """Send our FIN, if writing is to end. Reading goes on until the close."""
        if how != socket.SHUT_RD:
            super().shutdown(socket.SHUT_WR)

    def dup(self) -> socket.socket:  # type: ignore[override]  # typeshed wants this class
        """A plain socket for the same connection. From now on neither closes it for both."""
        self.close_with(None)
        twin = socket.fromfd(self.fileno(), self.family, self.type, self.proto)
        twin.settimeout(self.gettimeout())
        return twin

    def _real_close(self, *args: Any) -> None:
        # What socket.close() and the last makefile() object's end come to. The standard
        # library's own subclass, SSLSocket, hangs on here, and so must we: close() alone cannot
        # know whether a makefile() object is still open.
        reaper = self._reaper
        here = self._accepted_by == os.getpid()
        if reaper is None or not here or not hand_over(self, reaper):
            super()._real_close(*args)  # type: ignore[misc]


def _one_reaper(reaper: Reaper | None, options: ReaperOptions) -> Reaper:
    if reaper is None:
        return Reaper(**options)
    if not isinstance(reaper, Reaper):
        raise TypeError(f"reaper must be a Reaper, not {reaper!r}")
    if options:
        raise TypeError(f"give either a reaper or its options, not both: {', '.join(options)}")
    return reaper


def hand_over(sock: socket.socket, reaper: Reaper) -> bool:
    """Have a connection closed gracefully. False: its server wants to abort it."""
    if sock.fileno() == -1 or get_linger(sock).policy is LingerPolicy.ABORT:
        return False
    try:
        reaper.submit(sock)
    except RuntimeError:
        graceful_close(sock)  # the Reaper is closed already: now whoever closes must wait
    return True
