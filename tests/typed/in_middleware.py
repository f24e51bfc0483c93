"""What type checkers accept and reject of the middlewares. Nothing here is run."""

# pyright: reportUnnecessaryTypeIgnoreComment=error

from __future__ import annotations

from wsgiref.types import WSGIApplication

from asgiref.typing import ASGI3Application
from starlette.applications import Starlette

from graceful_close import asgi, wsgi


def of_asgi(app: ASGI3Application, starlette: Starlette) -> None:
    wrapped: ASGI3Application = asgi.DrainMiddleware(app, timeout=10, idle_timeout=None)
    asgi.DrainMiddleware(wrapped, drain_limit=1 << 20, before_reply=True)
    asgi.DrainMiddleware(starlette)
    starlette.add_middleware(asgi.DrainMiddleware, timeout=10)


def of_wsgi(app: WSGIApplication) -> None:
    wrapped: WSGIApplication = wsgi.DrainMiddleware(app, timeout=10, idle_timeout=None)
    wsgi.DrainMiddleware(wrapped, drain_limit=1 << 20)


def refused(app: ASGI3Application, other: WSGIApplication) -> None:
    asgi.DrainMiddleware(app, 10)  # type: ignore[call-arg]
    asgi.DrainMiddleware(app, timeout=None)  # type: ignore[arg-type]
    wsgi.DrainMiddleware(other, before_reply=True)  # type: ignore[call-arg]
    wsgi.DrainMiddleware(app)  # type: ignore[arg-type]
