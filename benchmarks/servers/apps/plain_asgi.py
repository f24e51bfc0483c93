"""An application without a framework."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.servers.application import GREETING, early_reply
from benchmarks.servers.apps import asgi

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def early(
    scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    while scope["type"] == "lifespan":
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return
    status, body = 200, GREETING
    if scope["method"] == "POST":
        status, body = early_reply(scope["path"])
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


app: Any = asgi(early)
