"""A server that refuses every upload without reading it, and whose refusal arrives.

    python examples/early_reply.py
    curl -H 'Expect:' --data-binary @some-large-file http://127.0.0.1:8413/

Only `GracefulServer` differs from an ordinary server. With --plain the server closes as the standard
library does, and a client that is still uploading may see a reset connection instead of the reply.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from graceful_close import graceful_close

REFUSAL = b"This upload is too large.\n".ljust(64 << 10, b".")


class GracefulServer(ThreadingHTTPServer):
    """Ends every connection so that the client can read the whole reply."""

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        """Close: socketserver calls this when the handler is done and has flushed its reply.

        The call runs in the connection's own thread: a slow client does not delay the others.
        """
        if isinstance(request, socket.socket):  # a datagram server has pairs instead
            graceful_close(request, timeout=5)


class RefuseUploads(BaseHTTPRequestHandler):
    """Answers as soon as it has seen the request's head."""

    def do_POST(self) -> None:
        """Refuse."""
        self.send_response(413)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(REFUSAL)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(REFUSAL)
        # What follows on this connection is the request's body, not another request.
        self.close_connection = True

    def do_PUT(self) -> None:
        """Refuse, too."""
        self.do_POST()


def main() -> None:
    parser = argparse.ArgumentParser(description="Refuse every upload before reading it.")
    parser.add_argument("port", nargs="?", type=int, default=8413, help="0 picks a free one")
    parser.add_argument(
        "--plain", action="store_true", help="close as the standard library does"
    )
    options = parser.parse_args()
    kind = ThreadingHTTPServer if options.plain else GracefulServer
    with kind(("127.0.0.1", options.port), RefuseUploads) as server:
        print(f"http://127.0.0.1:{server.server_port}/", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    main()
