"""Servers on threads, processes and greenlets, as shipped and graceful.

Each function listens on `host`, prints the port, and serves until it is killed. The packages
are imported when they are needed, and by name, because only some have types.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from graceful_close import GracefulListener

from .application import GREETING, REFUSED, asgi, refusal, wsgi
from .listening import announce, listen

if TYPE_CHECKING:
    from collections.abc import Callable


def http_server(host: str, graceful: bool) -> None:
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    from graceful_close.socketserver import GracefulMixIn

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer(200, GREETING)

        def do_POST(self) -> None:
            self.close_connection = True
            self.answer(int(REFUSED[:3]), refusal(self.path))

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

        def log_request(self, code: object = "-", size: object = "-") -> None: ...

    class AsShipped(ThreadingHTTPServer):
        request_queue_size = 128

    class Graceful(GracefulMixIn, AsShipped): ...

    with (Graceful if graceful else AsShipped)((host, 0), Handler) as server:
        announce(server.server_port)
        server.serve_forever()


def wsgiref(host: str, graceful: bool) -> None:
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

    from graceful_close.socketserver import GracefulMixIn

    class Quiet(WSGIRequestHandler):
        def log_request(self, code: object = "-", size: object = "-") -> None: ...

    class AsShipped(ThreadingMixIn, WSGIServer):
        daemon_threads = True
        request_queue_size = 128

    class Graceful(GracefulMixIn, AsShipped): ...

    kind = Graceful if graceful else AsShipped
    with make_server(host, 0, wsgi, server_class=kind, handler_class=Quiet) as server:
        announce(server.server_port)
        server.serve_forever()


def werkzeug(host: str, graceful: bool) -> None:
    serving: Any = import_module("werkzeug.serving")

    class Quiet(serving.WSGIRequestHandler):  # type: ignore[misc]
        def log_request(self, code: object = "-", size: object = "-") -> None: ...

    server = serving.make_server(host, 0, wsgi, threaded=True, request_handler=Quiet)
    if graceful:
        server.socket = GracefulListener.adopt(server.socket)
    announce(server.port)
    server.serve_forever()


def cheroot(host: str, graceful: bool) -> None:
    server: Any = import_module("cheroot.wsgi").Server((host, 0), wsgi)
    server.prepare()
    if graceful:
        server.socket = GracefulListener.adopt(server.socket)
    announce(server.bind_addr[1])
    server.serve()


def waitress(host: str, graceful: bool) -> None:
    package: Any = import_module("waitress")
    listener = listen(host, graceful)
    announce(listener)
    package.serve(wsgi, sockets=[listener], max_request_body_size=1024)


def gevent(host: str, graceful: bool) -> None:
    kind: Any = import_module("gevent.pywsgi").WSGIServer
    if graceful:
        kind = import_module("examples.gevent_server").Server
    server = kind((host, 0), wsgi, log=None, error_log=None)
    server.start()
    announce(server.server_port)
    server.serve_forever()


def gunicorn_sync(host: str, graceful: bool) -> None:
    _gunicorn(host, graceful, wsgi, worker_class="sync")


def gunicorn_gthread(host: str, graceful: bool) -> None:
    _gunicorn(host, graceful, wsgi, worker_class="gthread", threads=8)


def gunicorn_asgi(host: str, graceful: bool) -> None:
    _gunicorn(
        host, graceful, asgi, worker_class="asgi", asgi_loop="asyncio", asgi_lifespan="off"
    )


def _gunicorn(host: str, graceful: bool, app: Callable[..., Any], **settings: object) -> None:
    """Run gunicorn as a library: a "custom application" in its documentation."""
    base: Any = import_module("gunicorn.app.base")

    def when_ready(arbiter: Any) -> None:
        announce(arbiter.LISTENERS[0].getsockname()[1])

    def post_fork(_arbiter: Any, worker: Any) -> None:
        for listening in worker.sockets if graceful else ():
            listening.sock = GracefulListener.adopt(listening.sock)

    class Application(base.BaseApplication):  # type: ignore[misc]
        asked: ClassVar[dict[str, object]] = {
            "bind": f"{host}:0",
            "workers": 1,
            "loglevel": "critical",
            "control_socket_disable": True,
            "when_ready": when_ready,
            "post_fork": post_fork,
            **settings,
        }

        def load_config(self) -> None:
            for name, value in self.asked.items():
                self.cfg.set(name, value)

        def load(self) -> Callable[..., Any]:
            return app

    Application().run()
