"""http.server: refuse an upload without reading it, so that the refusal arrives.

    python examples/http_server.py --port 8413
    curl -H 'Expect:' --data-binary @some-large-file http://127.0.0.1:8413/

For any server built on socketserver (http.server, xmlrpc.server, your own): one base class.
"""

from __future__ import annotations

import argparse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from graceful_close import exit_at_sigterm
from graceful_close.socketserver import GracefulMixIn

REFUSAL = b"This upload is too large.\n".ljust(64 << 10, b".")


# This is what matters: the mixin comes first.
class Server(GracefulMixIn, ThreadingHTTPServer):
    """Leaves each connection to a Reaper when its handler is done."""


class Handler(BaseHTTPRequestHandler):
    """Greets, and refuses uploads before their body has come."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(200, b"hello\n")

    def do_POST(self) -> None:
        self.close_connection = True  # what follows here is the body, not another request
        self.answer(413, REFUSAL)

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8413, help="0 picks a free one")
    port = parser.parse_args().port
    exit_at_sigterm()
    # Leaving the block waits for the connections in flight.
    with Server(("127.0.0.1", port), Handler) as server:
        print(f"listening on 127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
