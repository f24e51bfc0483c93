"""Applications that reply before they have read the request, for WSGI and ASGI servers.

By path: /small and /big reject the request with a Content-Length, and /stream in parts without
one. /raises raises, /reads first reads the whole request, and /part reads 1,000 bytes. The
environment selects the wrapper: EARLY_PLAIN for none; EARLY_TIMEOUT, EARLY_IDLE_TIMEOUT and
EARLY_BEFORE_REPLY for its options.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from graceful_close.asgi import DrainMiddleware as ASGIDrainMiddleware
from graceful_close.wsgi import DrainMiddleware as WSGIDrainMiddleware

REFUSAL = b"not allowed\n"
BIG = bytes(64 << 10)
PIECES = [b"one\n", b"two\n", b"three\n"]


def _reply(path: str) -> tuple[int, list[bytes], bool]:
    """Return the status, the parts of the body, and whether there is a Content-Length."""
    match path:
        case "/small":
            return 401, [REFUSAL], True
        case "/unsized":
            return 401, [REFUSAL], False
        case "/big":
            return 413, [BIG], True
        case "/stream":
            return 413, PIECES, False
        case _:
            return 200, [b"hello\n"], True


def plain_wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    if path == "/raises":
        raise RuntimeError("intended")
    status, body, sized = _reply(path)
    if path == "/part":
        environ["wsgi.input"].read(1000)
    elif path == "/reads":
        length = environ.get("CONTENT_LENGTH")
        whole = environ["wsgi.input"].read(*([int(length)] if length else []))
        body = [b"%d\n" % len(whole)]
    headers = [("Content-Type", "text/plain")]
    if sized:
        headers.append(("Content-Length", str(sum(map(len, body)))))
    start_response({200: "200 OK", 401: "401 No", 413: "413 No"}[status], headers)
    return body if len(body) == 1 else iter(body)  # which has no len()


async def plain_asgi(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    path = scope["path"]
    if path == "/raises":
        raise RuntimeError("intended")
    status, body, sized = _reply(path)
    if path == "/part":
        await receive()
    elif path == "/reads":
        length, more = 0, True
        while more:
            message = await receive()
            length += len(message.get("body", b""))
            more = message.get("more_body", False)
        body = [b"%d\n" % length]
    headers = [(b"content-type", b"text/plain")]
    if sized:
        headers.append((b"content-length", b"%d" % sum(map(len, body))))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for left, piece in zip(reversed(range(len(body))), body, strict=True):
        await send({"type": "http.response.body", "body": piece, "more_body": left > 0})


bounds: dict[str, Any] = {
    name: float(os.environ["EARLY_" + name.upper()])
    for name in ("timeout", "idle_timeout")
    if "EARLY_" + name.upper() in os.environ
}
bare = "EARLY_PLAIN" in os.environ
before_reply = "EARLY_BEFORE_REPLY" in os.environ
wsgi: Any = plain_wsgi if bare else WSGIDrainMiddleware(plain_wsgi, **bounds)
asgi: Any = (
    plain_asgi if bare else ASGIDrainMiddleware(plain_asgi, before_reply=before_reply, **bounds)
)
