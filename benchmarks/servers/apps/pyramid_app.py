"""Pyramid, for pserve: `main` is the ini file's factory."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from benchmarks.servers.application import GREETING, early_reply
from benchmarks.servers.apps import wsgi


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


def serve_gracefully(app: Any, _settings: Any, **options: str) -> None:
    """For `use = call:...` in the ini file: waitress, over a GracefulListener."""
    from graceful_close import GracefulListener

    host, port = options.pop("host"), int(options.pop("port"))
    listener = GracefulListener((host, port))
    import_module("waitress").serve(app, sockets=[listener], **options)
