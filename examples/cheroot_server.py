"""cheroot (CherryPy's server): it refuses an upload past its limit; here the refusal arrives.

    python examples/cheroot_server.py --port 8413

Before an answer of the application's cheroot reads the rest of the request, unless the client
asked it to close. It does not when the request is past `max_request_body_size` or malformed.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIEnvironment

from cheroot.wsgi import Server

from graceful_close import GracefulListener


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "6")])
    return [b"hello\n"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8413, help="0 picks a free one")
    port = parser.parse_args().port
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _signal, _frame: sys.exit())
    server = Server(("127.0.0.1", port), app)
    server.max_request_body_size = 1 << 20
    # This is what matters: prepare() and serve() in the place of start(), and between them
    # the listener, which keeps the descriptor.
    server.prepare()
    try:
        server.socket = GracefulListener.adopt(server.socket)
        print(f"listening on 127.0.0.1:{server.bind_addr[1]}", flush=True)
        server.serve()
    finally:
        server.stop()


if __name__ == "__main__":
    main()
