"""Promises about servers of other projects."""

from __future__ import annotations

import contextlib
import http.client
import http.server
from threading import Thread

from graceful_close import GracefulListener
from graceful_close.socketserver import GracefulMixIn

from ..loopback import HOST, TIMEOUT
from .exchange import early_replies
from .trying import promise, require

_REQUESTS = 30
_BODY = b"hello"


@promise("an unchanged server closes gracefully on a GracefulListener")
def _listener() -> str:
    with GracefulListener((HOST, 0)) as listener:
        return early_replies(listener, lambda sock: sock.close())


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(_BODY)))
        self.end_headers()
        self.wfile.write(_BODY)

    def log_message(self, format: str, *_: object) -> None:  # noqa: A002
        pass


class _Server(GracefulMixIn, http.server.ThreadingHTTPServer):
    pass


@promise("http.server with GracefulMixIn answers clients that close first")
def _mixin() -> str:
    with _Server((HOST, 0), _Handler) as server:
        thread = Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        thread.start()
        answered = 0
        try:
            for _ in range(_REQUESTS):
                client = http.client.HTTPConnection(HOST, server.server_port, TIMEOUT)
                with contextlib.closing(client):
                    client.request("GET", "/", headers={"Connection": "close"})
                    answered += client.getresponse().read() == _BODY
        finally:
            server.shutdown()
            thread.join(TIMEOUT)
    require(answered == _REQUESTS, f"{answered} of {_REQUESTS} were answered")
    return f"{answered} of {_REQUESTS} were answered"
