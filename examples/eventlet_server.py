"""eventlet.wsgi: refuse an upload without reading it, so that the refusal arrives.

python examples/eventlet_server.py --port 8413
"""

from __future__ import annotations

import argparse
import signal
import socket
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import eventlet  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]
from eventlet import hubs, wsgi  # pyright: ignore[reportMissingTypeStubs]

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


class Protocol(wsgi.HttpProtocol):  # type: ignore[misc]
    """Leaves each connection to a Reaper when it is done."""

    reaper = Reaper()
    connection: Any

    # This is what matters: eventlet's own close begins with shutdown(SHUT_RDWR), after which
    # the reply is lost. Here it finds the connection closed.
    def finish(self) -> None:
        try:
            BaseHTTPRequestHandler.finish(self)
        finally:
            self.reaper.submit(self.connection)
            super().finish()


class Pool(eventlet.GreenPool):  # type: ignore[misc]
    """A pool that does not wait forever for a client that stalls in its request."""

    def waitall(self) -> None:
        with eventlet.Timeout(5, False):
            super().waitall()  # pyright: ignore[reportUnknownMemberType]


def exit_when_signalled(main: Any, signalled: socket.socket) -> None:
    hubs.trampoline(signalled, read=True)  # pyright: ignore[reportUnknownMemberType]
    eventlet.kill(main, SystemExit)  # pyright: ignore[reportUnknownMemberType]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8413, help="0 picks a free one")
    address = ("127.0.0.1", parser.parse_args().port)
    listener: Any = eventlet.listen(address)  # pyright: ignore[reportUnknownVariableType]
    print(f"listening on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
    # A handler that raises SystemExit could interrupt the last lines of a green thread, and
    # eventlet would wait for that green thread without a deadline.
    signalled, wakeup = socket.socketpair()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: wakeup.send(b"0"))
    eventlet.spawn(exit_when_signalled, eventlet.getcurrent(), signalled)
    wsgi.server(listener, app, protocol=Protocol, custom_pool=Pool(), log_output=False)


if __name__ == "__main__":
    main()
