"""An application without a framework; as a program, on wsgiref."""

from __future__ import annotations

import sys
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from benchmarks.servers.application import GREETING, early_reply
from benchmarks.servers.apps import wsgi

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment


def early(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    status, body = 200, GREETING
    if environ["REQUEST_METHOD"] == "POST":
        status, body = early_reply(environ["PATH_INFO"])
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
    start_response(f"{status} {HTTPStatus(status).phrase}", headers)
    return [body]


app: Any = wsgi(early)

if __name__ == "__main__":
    from wsgiref.simple_server import make_server

    make_server(sys.argv[1], int(sys.argv[2]), app).serve_forever()
