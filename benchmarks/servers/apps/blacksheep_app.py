"""BlackSheep."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from benchmarks.servers.application import GREETING, early_reply
from benchmarks.servers.apps import asgi

package: Any = import_module("blacksheep")
application: Any = package.Application()


async def hello(request: Any) -> Any:
    return package.Response(200, content=package.Content(b"text/plain", GREETING))


async def refuse(request: Any) -> Any:
    status, body = early_reply(request.route_values["size"])
    return package.Response(status, content=package.Content(b"text/plain", body))


application.router.add_get("/", hello)
application.router.add_post("/{size}", refuse)
app: Any = asgi(application)
