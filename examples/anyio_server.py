"""anyio: refuse an upload without reading it, so that the refusal arrives.

python examples/anyio_server.py --port 8413
"""

from __future__ import annotations

import argparse
import contextlib
import signal

import anyio
from anyio.abc import SocketAttribute, SocketStream

from graceful_close.anyio import closing

REFUSAL = b"This upload is too large.\n".ljust(64 << 10, b".")


async def head_of(stream: SocketStream) -> bytes:
    head = b""
    with contextlib.suppress(anyio.EndOfStream):
        while b"\r\n\r\n" not in head:
            head += await stream.receive()
    return head


async def answer(stream: SocketStream) -> None:
    # This is what matters: `closing` instead of `async with stream`.
    with contextlib.suppress(anyio.BrokenResourceError):
        async with closing(stream, timeout=30, idle_timeout=5):
            while (head := await head_of(stream)).startswith(b"GET "):
                await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n")
            if head:
                fields = f"Content-Length: {len(REFUSAL)}\r\nConnection: close\r\n\r\n"
                await stream.send(b"HTTP/1.1 413 Content Too Large\r\n" + fields.encode())
                await stream.send(REFUSAL)


async def serve(port: int) -> None:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port)
    print(f"listening on 127.0.0.1:{listener.extra(SocketAttribute.local_port)}", flush=True)
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with anyio.create_task_group() as connections:
            async with listener, anyio.create_task_group() as accepting:
                accepting.start_soon(listener.serve, answer, connections)
                async for _ in signals:
                    break
                accepting.cancel_scope.cancel()
            connections.cancel_scope.deadline = anyio.current_time() + 10


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8413, help="0 picks a free one")
    anyio.run(serve, parser.parse_args().port)


if __name__ == "__main__":
    main()
