"""The standard library's http.server."""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from benchmarks.servers.application import GREETING, early_reply
from benchmarks.servers.apps import GRACEFUL
from graceful_close.socketserver import GracefulMixIn


class Handler(BaseHTTPRequestHandler):
    """Answers GET, and rejects uploads."""

    def do_GET(self) -> None:
        self.answer(200, GREETING)

    def do_POST(self) -> None:
        self.answer(*early_reply(self.path))

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Graceful(GracefulMixIn, ThreadingHTTPServer):
    """The same server, closing gracefully."""


if __name__ == "__main__":
    kind = Graceful if GRACEFUL else ThreadingHTTPServer
    kind((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
