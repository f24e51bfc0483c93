"""What a type checker makes of `graceful_close.socketserver`. Nothing here is run."""

# pyright: reportUnnecessaryTypeIgnoreComment=error

from __future__ import annotations

import socketserver
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import assert_type
from wsgiref.simple_server import WSGIServer

from graceful_close import CloseOutcome, Reaper
from graceful_close.socketserver import GracefulMixIn


class Threading(GracefulMixIn, ThreadingHTTPServer):
    """The options are those of a Reaper."""

    reaper_options = {  # noqa: RUF012  (as people write it)
        "timeout": 10,
        "until": CloseOutcome.DELIVERED,
        "idle_timeout": None,
    }


if sys.platform != "win32":

    class Forking(GracefulMixIn, socketserver.ForkingMixIn, socketserver.TCPServer):
        """The mixin goes first, whatever else is mixed in."""


class Wsgi(GracefulMixIn, WSGIServer):
    """wsgiref's, too."""


class Refused(GracefulMixIn, socketserver.TCPServer):
    """No such option."""

    reaper_options = {"patience": 10}  # type: ignore[typeddict-unknown-key]  # noqa: RUF012


def serve() -> None:
    with Threading(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        assert_type(server, Threading)
        assert_type(server.reaper, Reaper)
        assert_type(server.server_close(), None)
        assert_type(server.serve_forever(), None)
        as_any_other: socketserver.BaseServer = server
        as_any_other.shutdown()
    Wsgi(("127.0.0.1", 0), BaseHTTPRequestHandler).shutdown_request(None)
    Threading(("127.0.0.1", 0), BaseHTTPRequestHandler).process_request(None, None)


def refused(server: Threading, reaper: Reaper) -> None:
    server.reaper = reaper  # type: ignore[misc]
