"""Litestar."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from benchmarks.servers.application import GREETING, early_reply
from benchmarks.servers.apps import GRACEFUL
from graceful_close.asgi import DrainMiddleware

package: Any = import_module("litestar")


async def hello() -> bytes:
    return GREETING


async def refuse(size: str) -> Any:
    status, body = early_reply(size)
    return package.Response(body, status_code=status)


app: Any = package.Litestar(
    [package.get("/")(hello), package.post("/{size:str}")(refuse)],
    middleware=[DrainMiddleware] if GRACEFUL else [],
)
