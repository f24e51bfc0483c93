"""gevent's pywsgi: refuse an upload without reading it, so that the refusal arrives.

python examples/gevent_server.py --port 8413
"""

from __future__ import annotations

import argparse
import signal
import socket
from collections.abc import Iterable
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import gevent  # type: ignore[import-untyped]
from gevent.pywsgi import WSGIServer  # type: ignore[import-untyped]

from graceful_close import Reaper

REFUSAL = b"This upload is too large.\n".ljust(64 << 10, b".")


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    refused = environ["REQUEST_METHOD"] == "POST"  # and environ["wsgi.input"] stays unread
    body = REFUSAL if refused else b"hello\n"
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
    if refused:
        headers.append(("Connection", "close"))
    start_response("413 Content Too Large" if refused else "200 OK", headers)
    return [body]


class Server(WSGIServer):  # type: ignore[misc]
    """Keeps each connection open past its handler, and leaves it to a Reaper."""

    reaper = Reaper()

    # This is what matters: pywsgi's handler closes the socket itself, without a shutdown, so
    # a second descriptor keeps the connection.
    def handle(self, sock: Any, address: Any) -> None:
        kept = socket.fromfd(sock.fileno(), sock.family, sock.type)
        try:
            super().handle(sock, address)
        finally:
            self.reaper.submit(kept)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8413, help="0 picks a free one")
    # With a pool, serve_forever waits for handlers that still run when the server is closed.
    server = Server(("127.0.0.1", parser.parse_args().port), app, spawn=1000)
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, server.close)
    server.start()
    print(f"listening on 127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever(stop_timeout=10)


if __name__ == "__main__":
    main()
