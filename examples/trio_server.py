"""trio: refuse an upload without reading it, so that the refusal arrives.

    python examples/trio_server.py --port 8413

trio refuses subclasses of socket, so there is no listener for it. But the handler is yours, and
can close.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
from functools import partial

import trio

from graceful_close.trio import closing

REFUSAL = b"This upload is too large.\n".ljust(64 << 10, b".")


async def head_of(stream: trio.SocketStream) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head and (chunk := await stream.receive_some()):
        head += chunk
    return head


async def answer(stream: trio.SocketStream) -> None:
    # This is what matters: `closing` instead of `async with stream`.
    with contextlib.suppress(trio.BrokenResourceError):
        async with closing(stream, timeout=30, idle_timeout=5):
            while (head := await head_of(stream)).startswith(b"GET "):
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n")
            if head:
                fields = f"Content-Length: {len(REFUSAL)}\r\nConnection: close\r\n\r\n"
                await stream.send_all(b"HTTP/1.1 413 Content Too Large\r\n" + fields.encode())
                await stream.send_all(REFUSAL)


async def serve(port: int) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as connections, trio.open_nursery() as accepting:
            tcp = partial(trio.serve_tcp, answer, port, host="127.0.0.1")
            listeners: list[trio.SocketListener] = await accepting.start(
                partial(tcp, handler_nursery=connections)
            )
            print(f"listening on 127.0.0.1:{listeners[0].socket.getsockname()[1]}", flush=True)
            async for _ in signals:
                break
            accepting.cancel_scope.cancel()
            connections.cancel_scope.deadline = trio.current_time() + 10


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8413, help="0 picks a free one")
    trio.run(serve, parser.parse_args().port)


if __name__ == "__main__":
    main()
