"""CherryPy's quickstart(): refuse an upload without reading it, so that the refusal arrives.

python examples/cherrypy_server.py --port 8413
"""

from __future__ import annotations

import argparse
import socket

import cherrypy  # type: ignore[import-untyped]
from cherrypy._cpwsgi_server import CPWSGIServer  # type: ignore[import-untyped]

from graceful_close import GracefulListener

REFUSAL = b"This upload is too large.\n".ljust(64 << 10, b".")


# This is what matters: the server's socket, and `httpserver` below.
class Server(CPWSGIServer):  # type: ignore[misc]
    """Accepts through a GracefulListener."""

    def prepare(self) -> None:
        super().prepare()
        self.socket: socket.socket = GracefulListener.adopt(self.socket)
        print(f"listening on 127.0.0.1:{self.bind_addr[1]}", flush=True)


class Root:
    """Greets, and refuses uploads before their body has come."""

    @cherrypy.expose  # type: ignore[untyped-decorator]
    @cherrypy.config(**{"request.process_request_body": False})  # type: ignore[untyped-decorator]
    def index(self) -> bytes:
        if cherrypy.request.method != "POST":
            return b"hello\n"
        cherrypy.response.status = 413
        cherrypy.response.headers["Connection"] = "close"
        return REFUSAL


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8413, help="0 picks a free one")
    port = parser.parse_args().port
    cherrypy.config.update(
        {"environment": "production", "log.screen": True, "server.socket_port": port}
    )
    cherrypy.server.httpserver = Server(cherrypy.server)
    cherrypy.quickstart(Root())


if __name__ == "__main__":
    main()
