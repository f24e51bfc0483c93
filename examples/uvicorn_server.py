"""uvicorn: refuse an upload without reading it, so that the refusal arrives.

python examples/uvicorn_server.py --port 8413
"""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

from graceful_close import GracefulListener, exit_at_sigterm

REFUSAL = b"This upload is too large.\n".ljust(64 << 10, b".")


async def app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8413, help="0 picks a free one")
    port = parser.parse_args().port
    exit_at_sigterm()  # uvicorn stops at SIGTERM, and then raises it again
    # This is what matters: asyncio's own loop (uvloop takes the descriptor), and `sockets`.
    config = uvicorn.Config(app, loop="asyncio", lifespan="off")
    with GracefulListener(("127.0.0.1", port)) as listener:
        print(f"listening on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
