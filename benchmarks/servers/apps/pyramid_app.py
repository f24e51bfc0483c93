"""Pyramid, for pserve: `main` is the ini file's factory."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from benchmarks.servers.application import GREETING, early_reply
from benchmarks.servers.apps import wsgi
from graceful_close import GracefulListener

if TYPE_CHECKING:
    from collections.abc import Callable


def main(_settings: Any, **_more: Any) -> Any:
    config: Any = import_module("pyramid.config").Configurator()
    response: Any = import_module("pyramid.response").Response

    def hello(_request: Any) -> Any:
        return response(GREETING)

    def refuse(request: Any) -> Any:
        status, body = early_reply(request.matchdict["size"])
        return response(body, status)

    config.add_route("hello", "/")
    config.add_view(hello, route_name="hello")
    config.add_route("refuse", "/{size}")
    config.add_view(refuse, route_name="refuse")
    return wsgi(config.make_wsgi_app())


def serve_gracefully(_settings: Any, **options: str) -> Callable[[Any], None]:
    """For `use = call:...` in the ini file: waitress, over a GracefulListener."""

    def serve(app: Any) -> None:
        listener = GracefulListener((options.pop("host"), int(options.pop("port"))))
        import_module("waitress").serve(app, sockets=[listener], **options)

    return serve
