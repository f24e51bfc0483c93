"""For servers built on the standard library's socketserver: http.server, wsgiref, xmlrpc."""

from __future__ import annotations

import os
import socket
import socketserver

from ._blocking import abort_on
from ._reaper import Reaper, after_failed_accept, hand_over, stop
from ._sockets import is_stream
from ._tls import speaks_tls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar

    from ._reaper import ReaperOptions

    Server = socketserver.BaseServer
else:
    Server = object

__all__ = ["GracefulMixIn"]


class GracefulMixIn(Server):
    """Closes each connection of a server gracefully; the first of the server's base classes.

        class Server(GracefulMixIn, ThreadingHTTPServer):
            pass

    The mixin overrides the documented `shutdown_request`: the connection moves to a Reaper, so that
    the thread that served it is free immediately. Then `close_request` is called as usual. If the
    overridden `shutdown_request` is not the standard library's, it is called instead, with a closed
    request. `server_close` waits for the pending connections, as an exit does (see `Reaper`): 5
    seconds at most, unless the Reaper's `idle_timeout` is another.

    A handler that raises may have written half a reply. Its connection is reset, so that the client
    does not take the half for a whole reply. If a server sets SO_LINGER {1, 0} on a request, the
    connection is aborted. Datagrams are not affected.

    Attributes:
        reaper_options: The options of the server's Reaper; a subclass may set it.
        abort_on_error: Whether the connection of a handler that raises is reset. False: the
            connection is closed gracefully. New in 0.2.

    Notes:
        With ForkingMixIn the child that served a connection closes it, and waits for the end,
        because the child exits afterwards. It counts among `max_children` during the wait.
    """

    reaper_options: ClassVar[ReaperOptions] = {}
    abort_on_error: ClassVar[bool] = True

    @property
    def reaper(self) -> Reaper:
        """The Reaper that closes the connections."""
        made: Reaper | None = self.__dict__.get("_reaper")
        # Two threads may run this at the same time. An unused Reaper has no thread.
        return made or self.__dict__.setdefault("_reaper", Reaper(**self.reaper_options))

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection; after a failed TLS handshake the client reads the alert."""
        server: Any = self
        listener: Any = server.socket
        try:
            if not speaks_tls(listener):
                return super().get_request()
            return self._get_tls_request(listener)
        except OSError as error:
            after_failed_accept(error, self.reaper)
            raise

    def _get_tls_request(self, listener: Any) -> tuple[Any, Any]:
        # The steps of SSLSocket.accept(), except after a failed handshake: SSLSocket.accept() closes
        # with unread input, and the RST overtakes the alert.
        plain, address = socket.socket.accept(listener)
        request = listener.context.wrap_socket(
            plain,
            server_side=True,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=listener.suppress_ragged_eofs,
        )
        try:
            if listener.do_handshake_on_connect:
                request.do_handshake()
        except BaseException:
            hand_over(request, self.reaper)
            raise
        return request, address

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve one connection; in a child with ForkingMixIn."""
        self._serving_process = os.getpid()
        super().process_request(request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Call the handler."""
        try:
            super().finish_request(request, client_address)
        except BaseException:
            # SystemExit and KeyboardInterrupt do not call handle_error().
            self._failed.add(id(request))
            raise

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report the exception of a handler, and reset the connection."""
        self._failed.add(id(request))
        super().handle_error(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """End one connection, without waiting for its end."""
        inherited: Any = super().shutdown_request
        if not isinstance(request, socket.socket) or not is_stream(request):
            inherited(request)  # a datagram, and where to answer it
            return
        stock = getattr(inherited, "__func__", None) is socketserver.TCPServer.shutdown_request
        if self._has_failed(request):
            abort_on(request)
            handed_over = True
        else:
            handed_over = hand_over(request, self.reaper)
        if stock or not handed_over:
            # The remaining step of the standard library's method. Its shutdown() is already done, or
            # would prevent the reset of SO_LINGER {1, 0}.
            self.close_request(request)
        else:
            inherited(request)  # which is closed
        if self.__dict__.get("_serving_process", os.getpid()) != os.getpid():
            self.reaper.close()  # a child, which exits without cleaning up

    def _has_failed(self, request: Any) -> bool:
        failed = id(request) in self._failed
        self._failed.discard(id(request))
        return self.abort_on_error and failed

    @property
    def _failed(self) -> set[int]:
        """The ids of the requests whose handlers have raised."""
        failed: set[int] = self.__dict__.setdefault("_failed_requests", set())
        return failed

    def server_close(self) -> None:
        """Close the listening socket, and wait for the pending connections as an exit does."""
        try:
            super().server_close()
        finally:
            stop(self.reaper)
