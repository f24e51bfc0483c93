"""Flask's app.run(): refuse an upload, so that the refusal arrives.

python examples/flask_server.py --port 8413
"""

from __future__ import annotations

import argparse

from flask import Flask, Response

from graceful_close import exit_at_sigterm
from graceful_close.werkzeug import GracefulRequestHandler

REFUSAL = b"This upload is too large.\n".ljust(64 << 10, b".")

app = Flask(__name__)


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
    exit_at_sigterm()
    # This is what matters. The debugger and the reloader (debug=True) work as usual.
    app.run(port=port, request_handler=GracefulRequestHandler)


if __name__ == "__main__":
    main()
