"""What type checkers accept and reject of the mixin. Nothing here is run."""

# pyright: reportUnnecessaryTypeIgnoreComment=error

from __future__ import annotations

import socketserver
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, assert_type
from wsgiref.simple_server import WSGIServer

from typing_extensions import override

from graceful_close import CloseOutcome, CloseResult, LingerPolicy, Reaper
from graceful_close.socketserver import GracefulMixIn


def note(result: CloseResult) -> None:
    """A callback for every close."""


class Threading(GracefulMixIn, ThreadingHTTPServer):
    """The options are those of a Reaper."""

    reaper_options = {  # noqa: RUF012  (as users write it)
        "timeout": 10,
        "until": CloseOutcome.DELIVERED,
        "idle_timeout": None,
        "peer_first": 1,
        "on_close": note,
    }
    abort_on_error = False

    @override
    def finish_request(self, request: Any, client_address: Any) -> None:
        """A subclass may override the method."""
        super().finish_request(request, client_address)

    @override
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A subclass may override the method."""
        super().handle_error(request, client_address)


if sys.platform != "win32":

    class Forking(GracefulMixIn, socketserver.ForkingMixIn, socketserver.TCPServer):
        """The mixin is the first base, before other mixins."""


class Wsgi(GracefulMixIn, WSGIServer):
    """The mixin also works with wsgiref."""


class Refused(GracefulMixIn, socketserver.TCPServer):
    """An unknown option."""

    reaper_options = {"patience": 10}  # type: ignore[typeddict-unknown-key]  # noqa: RUF012
    abort_on_error = None  # type: ignore[assignment]


class RefusedValue(GracefulMixIn, socketserver.TCPServer):
    """A known option with a wrong value."""

    reaper_options = {"on_overflow": LingerPolicy.TIMED}  # type: ignore[typeddict-item]  # noqa: RUF012


def serve() -> None:
    with Threading(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        assert_type(server, Threading)
        assert_type(server.reaper, Reaper)
        assert_type(server.abort_on_error, bool)
        assert_type(server.get_request(), tuple[Any, Any])
        assert_type(server.server_close(), None)
        assert_type(server.serve_forever(), None)
        as_any_other: socketserver.BaseServer = server
        as_any_other.shutdown()
    Wsgi(("127.0.0.1", 0), BaseHTTPRequestHandler).shutdown_request(None)
    Threading(("127.0.0.1", 0), BaseHTTPRequestHandler).process_request(None, None)


def refused(server: Threading, reaper: Reaper) -> None:
    server.reaper = reaper  # type: ignore[misc]
