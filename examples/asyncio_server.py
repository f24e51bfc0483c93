"""asyncio streams: refuse an upload without reading it, so that the refusal arrives.

python examples/asyncio_server.py --port 8413
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal

from graceful_close import GracefulListener

REFUSAL = b"This upload is too large.\n".ljust(64 << 10, b".")


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    # CancelledError, too: before Python 3.12 a cancelled handler is reported as an error.
    expected = (asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError)
    with contextlib.suppress(ConnectionError, *expected):
        while (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET "):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n")
        head = f"Content-Length: {len(REFUSAL)}\r\nConnection: close\r\n\r\n"
        writer.write(b"HTTP/1.1 413 Content Too Large\r\n" + head.encode() + REFUSAL)
        await writer.drain()
    writer.close()


async def serve(listener: GracefulListener) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # This is what matters: `sock`. The loop is asyncio's own: uvloop takes the descriptor.
    server = await asyncio.start_server(answer, sock=listener)
    await stop.wait()
    server.close()  # and no wait_closed(): since Python 3.12.1 that waits for idle clients


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8413, help="0 picks a free one")
    port = parser.parse_args().port
    with GracefulListener(("127.0.0.1", port)) as listener:
        print(f"listening on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
        asyncio.run(serve(listener))


if __name__ == "__main__":
    main()
