"""Flask on werkzeug's development server: refuse an upload, so that the refusal arrives.

python examples/flask_server.py --port 8413
"""

from __future__ import annotations

import argparse
import signal
import sys

from flask import Flask, Response
from werkzeug.serving import ThreadedWSGIServer

from graceful_close.socketserver import GracefulMixIn

REFUSAL = b"This upload is too large.\n".ljust(64 << 10, b".")

app = Flask(__name__)


# This is what matters: the mixin comes first. It stands in for app.run().
class Server(GracefulMixIn, ThreadedWSGIServer):
    """Leaves each connection to a Reaper when its handler is done."""


@app.get("/")
def hello() -> str:
    return "hello\n"


@app.post("/")
def refuse() -> Response:
    return Response(REFUSAL, 413, {"Connection": "close"})  # request.stream stays unread


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8413, help="0 picks a free one")
    port = parser.parse_args().port
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _signal, _frame: sys.exit())
    # Leaving the block waits for the connections in flight.
    with Server("127.0.0.1", port, app) as server:
        print(f"listening on 127.0.0.1:{server.port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
