"""Bottle, run()."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from benchmarks.servers.application import GREETING, early_reply
from benchmarks.servers.apps import wsgi

bottle: Any = import_module("bottle")
routes: Any = bottle.Bottle()


def hello() -> bytes:
    return GREETING


def refuse(size: str) -> Any:
    status, body = early_reply(size)
    return bottle.HTTPResponse(body, status)


routes.get("/")(hello)
routes.post("/<size>")(refuse)

if __name__ == "__main__":
    bottle.run(wsgi(routes), host=sys.argv[1], port=int(sys.argv[2]), quiet=True)
