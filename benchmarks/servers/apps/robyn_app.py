"""Robyn."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from benchmarks.servers.application import GREETING, early_reply

package: Any = import_module("robyn")
app: Any = package.Robyn(__file__)


async def hello(request: Any) -> Any:
    return package.Response(200, {}, GREETING)


async def refuse(request: Any) -> Any:
    status, body = early_reply(request.path_params["size"])
    return package.Response(status, {}, body)


app.get("/")(hello)
app.post("/:size")(refuse)

if __name__ == "__main__":
    host, port = sys.argv[-2:]
    del sys.argv[1:]
    app.start(host=host, port=int(port))
