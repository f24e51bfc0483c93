"""Hypercorn: refuse an upload without reading it, so that the refusal arrives.

python examples/hypercorn_server.py --port 8413
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from hypercorn.asyncio import serve  # pyright: ignore[reportUnknownVariableType]
from hypercorn.config import Config, Sockets

from graceful_close import GracefulListener

REFUSAL = b"This upload is too large.\n".ljust(64 << 10, b".")


async def app(
    scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    if scope["type"] != "http":
        return  # no "lifespan" here
    refused = scope["method"] == "POST"  # and receive() is not called
    body = REFUSAL if refused else b"hello\n"
    headers = [(b"content-length", b"%d" % len(body))]
    if refused:
        headers.append((b"connection", b"close"))
    status = 413 if refused else 200
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


# This is what matters: the sockets that `serve` asks the configuration for.
class GracefulConfig(Config):
    """Listens with the listener that it was given."""

    listener: GracefulListener

    def create_sockets(self) -> Sockets:
        return Sockets([], [self.listener], [])  # with TLS: in the first list


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8413, help="0 picks a free one")
    port = parser.parse_args().port
    config = GracefulConfig()
    with GracefulListener(("127.0.0.1", port)) as config.listener:
        print(f"listening on 127.0.0.1:{config.listener.getsockname()[1]}", flush=True)
        asyncio.run(serve(app, config))


if __name__ == "__main__":
    main()
