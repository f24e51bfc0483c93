"""cheroot (CherryPy's server): it refuses an upload past its limit; here the refusal arrives.

    python examples/cheroot_server.py --port 8413

Before an answer of the application's cheroot reads the rest of the request, unless the client
asked it to close. It does not when the request is past `max_request_body_size` or malformed.
"""

from __future__ import annotations

import argparse
import signal
import socket
import threading
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIEnvironment

from cheroot.wsgi import Server

from graceful_close import GracefulListener


# This is what matters: prepare() listens, and the listener keeps the descriptor.
class GracefulServer(Server):
    """Accepts through a GracefulListener."""

    def prepare(self) -> None:
        super().prepare()
        self.socket = GracefulListener.adopt(self.socket)
        print(f"listening on 127.0.0.1:{self.bind_addr[1]}", flush=True)


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "6")])
    return [b"hello\n"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8413, help="0 picks a free one")
    port = parser.parse_args().port
    server = GracefulServer(("127.0.0.1", port), app)
    server.max_request_body_size = 1 << 20
    # A handler that raises SystemExit could interrupt the queue of cheroot's threads, and stop()
    # would wait without a deadline for a thread that is not woken.
    signalled, wakeup = socket.socketpair()

    def stop_when_signalled() -> None:
        signalled.recv(1)
        server.stop()

    server.prepare()
    threading.Thread(target=stop_when_signalled, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda _number, _frame: wakeup.send(b"0"))
    try:
        server.serve()
    finally:
        server.stop()


if __name__ == "__main__":
    main()
