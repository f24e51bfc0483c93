"""waitress: it refuses an upload past its limit by itself; here the refusal arrives.

    python examples/waitress_server.py --port 8413

waitress reads a request whole before it calls the application, so it only answers early when a
request is too large or malformed. Then it closes at once.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIEnvironment

import waitress  # type: ignore[import-untyped]

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
    # This is what matters: the listener, and `sockets`.
    with GracefulListener(("127.0.0.1", port)) as listener:
        print(f"listening on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
        waitress.serve(app, sockets=[listener], max_request_body_size=1 << 20)


if __name__ == "__main__":
    main()
