"""Hypercorn alone, with an application that waits for 50 ms before it rejects an upload.

    python -m benchmarks.hypercorn_stalls             # {'TimeoutError': 8}
    python -m benchmarks.hypercorn_stalls 100000 # with a larger max_app_queue_size: none, but
                                                      # resets, which a GracefulListener
                                                      # prevents

graceful-close is not used here. Hypercorn's reader puts each part of the body into a queue of
`max_app_queue_size`, and waits when the queue is full. After the application has ended, no task
reads the queue: the reader waits forever, and so does the end of the stream, which puts
"http.disconnect" into the same queue before the connection is closed.
"""

from __future__ import annotations

import asyncio
import http.client
import socket
import sys
from collections import Counter
from typing import Any

from hypercorn.asyncio import serve  # pyright: ignore[reportUnknownVariableType]
from hypercorn.config import Config

_CLIENTS = 8
_DEADLINE = 3.0
_UPLOAD = bytes(20_000_000)  # more than the buffers hold


async def _refuse(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await asyncio.sleep(0.05)  # like a query of a database
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": b"no"})


def _upload(port: int) -> str:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=_DEADLINE)
    try:
        client.request("POST", "/", body=_UPLOAD)
        return str(client.getresponse().status)
    except OSError as error:
        return type(error).__name__
    finally:
        client.close()


def _ignore(_loop: asyncio.AbstractEventLoop, _context: dict[str, Any]) -> None:
    """Ignore the errors of stuck tasks, which are cancelled at the end."""


async def _run() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port: int = listener.getsockname()[1]
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.loglevel = "CRITICAL"
    if len(sys.argv) > 1:
        config.max_app_queue_size = int(sys.argv[1])
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(_refuse, config, shutdown_trigger=stop.wait))
    print(dict(Counter([await asyncio.to_thread(_upload, port) for _ in range(_CLIENTS)])))
    asyncio.get_running_loop().set_exception_handler(_ignore)
    stop.set()
    await serving


if __name__ == "__main__":
    asyncio.run(_run())
