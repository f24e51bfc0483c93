"""Sanic."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from benchmarks.servers.application import GREETING, early_reply

package: Any = import_module("sanic")
app: Any = package.Sanic("early")


async def hello(_request: Any) -> Any:
    return package.raw(GREETING)


async def refuse(_request: Any, size: str) -> Any:
    status, body = early_reply(size)
    return package.raw(body, status=status)


app.add_route(hello, "/")
app.add_route(refuse, "/<size>", methods=["POST"], stream=True)
