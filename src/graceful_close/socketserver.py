"""For servers built on the standard library's socketserver: http.server, wsgiref, xmlrpc."""

from __future__ import annotations

import socketserver
from functools import cached_property
from socket import SOCK_STREAM, socket

from ._listener import hand_over
from ._reaper import Reaper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar

    from ._reaper import ReaperOptions

    Server = socketserver.BaseServer
else:
    Server = object

__all__ = ["GracefulMixIn"]

_FORKS: type = getattr(socketserver, "ForkingMixIn", type(None))  # not on Windows


class GracefulMixIn(Server):
    """Ends each connection gracefully; named first among the bases of a server.

        class Server(GracefulMixIn, ThreadingHTTPServer):
            pass

    It overrides the documented `shutdown_request`: a connection goes to a Reaper, so that the
    thread that served it is free at once. `server_close` waits for what is in flight. A server
    with ForkingMixIn closes in the child, which waits itself, because it exits afterwards.

    A server that sets SO_LINGER {1, 0} on a request wants to abort it, and does.

    Attributes:
        reaper_options: What the server's Reaper is made with; a subclass may set it.
    """

    reaper_options: ClassVar[ReaperOptions] = {}

    @cached_property
    def reaper(self) -> Reaper:
        """Where the connections go."""
        return Reaper(**self.reaper_options)

    def shutdown_request(self, request: Any) -> None:
        """End one connection, and do not wait for it."""
        if not isinstance(request, socket) or request.type != SOCK_STREAM:
            super().shutdown_request(request)  # a datagram, and where to answer it
        elif isinstance(self, _FORKS):
            with Reaper(**self.reaper_options) as reaper:  # the process exits after this
                if not hand_over(request, reaper):
                    self.close_request(request)
        elif not hand_over(request, self.reaper):
            self.close_request(request)  # SO_LINGER {1, 0}: a FIN first would spoil the reset

    def server_close(self) -> None:
        """Close the listening socket, and wait for the connections in flight."""
        super().server_close()
        self.reaper.close()
