"""Bottle's run(): refuse an upload without reading it, so that the refusal arrives.

python examples/bottle_server.py --port 8413
"""

from __future__ import annotations

import argparse
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIServer

from bottle import Bottle, HTTPResponse  # type: ignore[import-untyped]

from graceful_close import exit_at_sigterm
from graceful_close.socketserver import GracefulMixIn

REFUSAL = "This upload is too large.\n".ljust(64 << 10, ".")

app = Bottle()


# This is what matters: the mixin comes first, and run() takes the class.
class Server(GracefulMixIn, ThreadingMixIn, WSGIServer):
    """Leaves each connection to a Reaper when its handler is done."""

    daemon_threads = True

    def server_activate(self) -> None:
        super().server_activate()
        print(f"listening on 127.0.0.1:{self.server_port}", flush=True)


@app.get("/")  # type: ignore[untyped-decorator]
def hello() -> str:
    return "hello\n"


@app.post("/")  # type: ignore[untyped-decorator]
def refuse() -> HTTPResponse:
    return HTTPResponse(REFUSAL, 413)  # request.body stays unread


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8413, help="0 picks a free one")
    port = parser.parse_args().port
    exit_at_sigterm()
    app.run(port=port, server_class=Server, quiet=True)


if __name__ == "__main__":
    main()
