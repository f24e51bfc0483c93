"""Quart."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from benchmarks.servers.application import GREETING, early_reply
from benchmarks.servers.apps import asgi

app: Any = import_module("quart").Quart(__name__)


async def hello() -> bytes:
    return GREETING


async def refuse(size: str) -> tuple[bytes, int]:
    status, body = early_reply(size)
    return body, status


app.add_url_rule("/", view_func=hello)
app.add_url_rule("/<size>", view_func=refuse, methods=["POST"])
app.asgi_app = asgi(app.asgi_app)
