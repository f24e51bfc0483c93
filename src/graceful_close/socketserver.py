"""For servers built on the standard library's socketserver: http.server, wsgiref, xmlrpc."""

from __future__ import annotations

import socket
import socketserver

from . import _process
from ._checks import is_stream
from ._reaper import Reaper, hand_over

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

    A server that sets SO_LINGER {1, 0} on a request wants to abort it, and does. Datagrams pass
    through.

    Attributes:
        reaper_options: What the server's Reaper is made with; a subclass may set it.

    Notes:
        With ForkingMixIn the child that served a connection is what closes it, and waits for
        that, because it exits afterwards. It counts among `max_children` meanwhile.
    """

    reaper_options: ClassVar[ReaperOptions] = {}

    @property
    def reaper(self) -> Reaper:
        """Where the connections go."""
        made: Reaper | None = self.__dict__.get("_reaper")
        # Two threads may come here at once. A Reaper that was never used has left no trace.
        return made or self.__dict__.setdefault("_reaper", Reaper(**self.reaper_options))

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve one connection; in a child with ForkingMixIn."""
        self._serving_process = _process.number
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """End one connection, and do not wait for it."""
        inherited: Any = super().shutdown_request
        if not isinstance(request, socket.socket) or not is_stream(request):
            inherited(request)  # a datagram, and where to answer it
            return
        handed_over = hand_over(request, self.reaper)
        stock = getattr(inherited, "__func__", None) is socketserver.TCPServer.shutdown_request
        if stock or not handed_over:
            # All that the stock one does besides a shutdown(), which is done; or, where SO_LINGER
            # is {1, 0}, would spoil the reset.
            self.close_request(request)
        else:
            inherited(request)  # finds it closed
        if self.__dict__.get("_serving_process", _process.number) != _process.number:
            self.reaper.close()  # a child, which ends without another word

    def server_close(self) -> None:
        """Close the listening socket, and wait for the connections in flight."""
        try:
            super().server_close()
        finally:
            self.reaper.close()
