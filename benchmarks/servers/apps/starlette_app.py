"""Starlette."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from benchmarks.servers.application import GREETING, early_reply
from benchmarks.servers.apps import GRACEFUL
from graceful_close.asgi import DrainMiddleware

responses: Any = import_module("starlette.responses")
app: Any = import_module("starlette.applications").Starlette()


async def hello(_request: Any) -> Any:
    return responses.Response(GREETING)


async def refuse(request: Any) -> Any:
    status, body = early_reply(request.path_params["size"])
    return responses.Response(body, status)


app.router.add_route("/", hello)
app.router.add_route("/{size}", refuse, methods=["POST"])
if GRACEFUL:
    app.add_middleware(DrainMiddleware)
