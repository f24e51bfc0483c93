"""wsgiref: refuse an upload without reading it, so that the refusal arrives.

python examples/wsgiref_server.py --port 8413
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from graceful_close import exit_at_sigterm
from graceful_close.socketserver import GracefulMixIn

REFUSAL = b"This upload is too large.\n".ljust(64 << 10, b".")


# This is what matters: the mixin comes first.
class Server(GracefulMixIn, ThreadingMixIn, WSGIServer):
    """Leaves each connection to a Reaper when its handler is done."""

    daemon_threads = True  # a client that keeps its connection does not keep the server


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    refused = environ["REQUEST_METHOD"] == "POST"  # and environ["wsgi.input"] stays unread
    body = REFUSAL if refused else b"hello\n"
    # No "Connection: close" here: PEP 3333 forbids it, and this server always closes.
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
    start_response("413 Content Too Large" if refused else "200 OK", headers)
    return [body]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8413, help="0 picks a free one")
    port = parser.parse_args().port
    exit_at_sigterm()
    # The documented `server_class`; leaving the block waits for the connections in flight.
    with make_server("127.0.0.1", port, app, server_class=Server) as server:
        print(f"listening on 127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
