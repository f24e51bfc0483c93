"""FastAPI."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from benchmarks.servers.application import GREETING, early_reply
from benchmarks.servers.apps import GRACEFUL
from graceful_close.asgi import DrainMiddleware

package: Any = import_module("fastapi")
app: Any = package.FastAPI()


async def hello() -> Any:
    return package.Response(GREETING)


async def refuse(size: str) -> Any:
    status, body = early_reply(size)
    return package.Response(body, status)


app.add_api_route("/", hello)
app.add_api_route("/{size}", refuse, methods=["POST"])
if GRACEFUL:
    app.add_middleware(DrainMiddleware)
