"""Applications that reply before they read, for servers that are started by a command.

`wsgi` and `asgi` reply 413 with 64 KiB immediately to every method except GET; so does `flask`,
for `flask --app early_application run`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

BODY = bytes(64 << 10)


def wsgi(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    body = b"" if environ["REQUEST_METHOD"] == "GET" else BODY
    status = "413 Content Too Large" if body else "200 OK"
    start_response(status, [("Content-Length", str(len(body)))])
    return [body]


async def asgi(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    if scope["type"] != "http":
        return
    body = b"" if scope["method"] == "GET" else BODY
    head = [(b"content-length", str(len(body)).encode())]
    status = 413 if body else 200
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


def create_app() -> Any:
    """Return the application of `flask run`."""
    from flask import Flask

    app = Flask(__name__)

    @app.get("/")
    def ready() -> str:  # pyright: ignore[reportUnusedFunction]
        return ""

    @app.post("/")
    def refuse() -> tuple[bytes, int]:  # pyright: ignore[reportUnusedFunction]
        return BODY, 413

    return app


def create_graceful_app() -> Any:
    """Return the same application inside a DrainMiddleware."""
    from graceful_close.wsgi import DrainMiddleware

    app = create_app()
    app.wsgi_app = DrainMiddleware(app.wsgi_app)
    return app
