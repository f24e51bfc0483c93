"""What type checkers accept of the modules for gunicorn, waitress and werkzeug."""

# pyright: reportUnnecessaryTypeIgnoreComment=error

from __future__ import annotations

import ssl
from typing import Any, assert_type
from wsgiref.types import WSGIApplication, WSGIEnvironment

from typing_extensions import override

from graceful_close import Reaper
from graceful_close.gunicorn import (
    post_fork,
    post_request,
    post_worker_init,
    ssl_context,
    worker_exit,
)
from graceful_close.waitress import serve, serve_paste
from graceful_close.werkzeug import GracefulRequestHandler


def of_gunicorn(server: Any, worker: Any) -> None:
    post_fork(server, worker)
    post_fork(server, worker, timeout=8, idle_timeout=None)
    post_fork(server, worker, patience=8)  # type: ignore[call-arg]
    post_worker_init(worker)
    worker_exit(server, worker)
    post_request(worker, None, {}, None)
    assert_type(ssl_context(None, ssl.create_default_context), ssl.SSLContext)


def of_waitress(app: WSGIApplication) -> None:
    serve(app)
    serve(app, listen="127.0.0.1:8080", threads=8)
    assert_type(serve_paste(app, {}, port="8080"), int)
    serve(1)  # type: ignore[arg-type]


class Handler(GracefulRequestHandler):
    """A handler with its own Reaper."""

    reaper = Reaper(timeout=8)

    @override
    def setup(self) -> None:
        super().setup()

    @override
    def make_environ(self) -> WSGIEnvironment:
        return super().make_environ()

    @override
    def handle(self) -> None:
        super().handle()

    @override
    def finish(self) -> None:
        super().finish()
