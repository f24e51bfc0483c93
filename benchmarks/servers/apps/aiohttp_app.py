"""aiohttp, run_app()."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from benchmarks.servers.application import GREETING, early_reply
from benchmarks.servers.apps import GRACEFUL
from graceful_close import GracefulListener

web: Any = import_module("aiohttp.web")


async def hello(_request: Any) -> Any:
    return web.Response(body=GREETING)


async def refuse(request: Any) -> Any:
    status, body = early_reply(request.path)
    return web.Response(status=status, body=body)


app: Any = web.Application()
app.add_routes([web.get("/", hello), web.post("/{size}", refuse)])

if __name__ == "__main__":
    host, port = sys.argv[1], int(sys.argv[2])
    if GRACEFUL:
        web.run_app(app, sock=GracefulListener((host, port)))
    else:
        web.run_app(app, host=host, port=port)
