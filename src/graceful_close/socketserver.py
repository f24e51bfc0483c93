"""For servers built on the standard library's socketserver: http.server, wsgiref, xmlrpc."""

from __future__ import annotations

import os
import socket
import socketserver
import sys

from ._blocking import abort_on
from ._reaper import Reaper, hand_over
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
    """Ends each connection gracefully; named first among the bases of a server.

        class Server(GracefulMixIn, ThreadingHTTPServer):
            pass

    It overrides the documented `shutdown_request`: a connection goes to a Reaper, so that the
    thread that served it is free at once. After that `close_request` is called as ever; or what it
    overrides, if that is not the standard library's own, and finds the request closed.
    `server_close` waits for what is in flight, at most the Reaper's `timeout`.

    A handler that raises has written half a reply, perhaps, and its connection is reset, so that
    the client does not take that for the whole. A server that sets SO_LINGER {1, 0} on a
    request wants to abort it, and does. Datagrams pass through.

    Attributes:
        reaper_options: What the server's Reaper is made with; a subclass may set it.
        abort_on_error: Whether a handler that raises has its connection reset. False: it is
            closed gracefully, as the standard library closes it.

    Notes:
        With ForkingMixIn the child that served a connection is what closes it, and waits for
        that, because it exits afterwards. It counts among `max_children` meanwhile.
    """

    reaper_options: ClassVar[ReaperOptions] = {}
    abort_on_error: ClassVar[bool] = True

    @property
    def reaper(self) -> Reaper:
        """Where the connections go."""
        made: Reaper | None = self.__dict__.get("_reaper")
        # Two threads may come here at once. A Reaper that was never used has left no trace.
        return made or self.__dict__.setdefault("_reaper", Reaper(**self.reaper_options))

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection; a refused TLS handshake is closed so that the alert arrives."""
        server: Any = self
        listener: Any = server.socket
        if not speaks_tls(listener):
            return super().get_request()
        # What SSLSocket.accept() does, but for the end of a handshake that fails: it closes over
        # whatever the client has sent after it, and the RST overtakes the alert.
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

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report what a handler raised, and have the connection reset."""
        if self.abort_on_error:
            self._failed.add(id(request))
        super().handle_error(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """End one connection, and do not wait for it."""
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
            # All that the stock one does besides a shutdown(), which is done; or, where SO_LINGER
            # is {1, 0}, would spoil the reset.
            self.close_request(request)
        else:
            inherited(request)  # finds it closed
        if self.__dict__.get("_serving_process", os.getpid()) != os.getpid():
            self.reaper.close()  # a child, which ends without another word

    def _has_failed(self, request: Any) -> bool:
        failed = id(request) in self._failed
        self._failed.discard(id(request))
        # A handler that ends by SystemExit or KeyboardInterrupt comes here without handle_error().
        return self.abort_on_error and (failed or sys.exc_info()[0] is not None)

    @property
    def _failed(self) -> set[int]:
        """The connections whose handlers have raised."""
        failed: set[int] = self.__dict__.setdefault("_failed_requests", set())
        return failed

    def server_close(self) -> None:
        """Close the listening socket, and wait for the connections in flight."""
        try:
            super().server_close()
        finally:
            self.reaper.close()
