"""Ways to close many connections, and the cost of each.

Each way sends our FIN, drains until the peer's FIN, and closes. What a framework needs for it
(its streams, its loop) is made before the clock starts, and released after the clock stopped.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from graceful_close import CloseOutcome, close_all, graceful_close
from graceful_close import asyncio as graceful_asyncio

from .peers import times_asleep

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Generator, Iterable

    from graceful_close import CloseResult

_SOURCE = Path(__file__).with_name("close_all.c")

_THREADS = 32
_READ = 65536


@dataclass
class Spent:
    """The cost of closing all connections.

    Attributes:
        cpu: Seconds of CPU of this process, with all threads.
        wall: Seconds.
        asleep: The number of times that the process slept.
        answered: The number of peers whose FIN was seen.
    """

    cpu: float = 0.0
    wall: float = 0.0
    asleep: int = 0
    answered: int = 0


if TYPE_CHECKING:
    # Closes all connections; the number is the deadline in seconds, if the way has one.
    Closer = Callable[[list[socket.socket], float], Spent]


@contextmanager
def compiled() -> Generator[Closer]:
    """Compile the C program as a library, so that the same clock measures it.

    Raises:
        RuntimeError: The compiler failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "close_all.so")
        compiler = shutil.which("cc")
        subprocess.run(
            [
                *([compiler] if compiler else [sys.executable, "-m", "ziglang", "cc"]),
                *("-O2", "-Wall", "-shared", "-fPIC", "-o", str(library), str(_SOURCE)),
            ],
            check=True,
            timeout=300,
        )
        program: Any = ctypes.CDLL(str(library), use_errno=True)
        yield partial(_by_c, program)


def _by_c(program: Any, socks: list[socket.socket], timeout: float) -> Spent:
    descriptors = (ctypes.c_int * len(socks))(*[sock.detach() for sock in socks])
    with _metered() as spent:
        answered: int = program.close_all(descriptors, len(socks), round(timeout * 1000))
    spent.answered = answered
    return spent


def by_close_all(socks: list[socket.socket], timeout: float) -> Spent:
    with _metered() as spent:
        results = close_all(socks, timeout=timeout)
    spent.answered = _answered(results)
    return spent


def one_by_one(socks: list[socket.socket], timeout: float) -> Spent:
    with _metered() as spent:
        results = [graceful_close(sock, timeout=timeout) for sock in socks]
    spent.answered = _answered(results)
    return spent


def by_threads(socks: list[socket.socket], timeout: float) -> Spent:
    with ThreadPoolExecutor(_THREADS) as pool, _metered() as spent:
        results = list(pool.map(partial(graceful_close, timeout=timeout), socks))
    spent.answered = _answered(results)
    return spent


def by_asyncio(socks: list[socket.socket], timeout: float) -> Spent:
    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write_eof()
        while await reader.read(_READ):
            pass
        spent.answered += 1
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        streams = [await asyncio.open_connection(sock=sock) for sock in socks]
        with _metered(spent):
            async with asyncio.timeout(timeout):
                await asyncio.gather(*(close(*stream) for stream in streams))

    spent = Spent()
    asyncio.run(main())
    return spent


def in_asyncio(socks: list[socket.socket], timeout: float) -> Spent:
    """Close the same streams with graceful_close.asyncio."""

    async def main() -> None:
        streams = [await asyncio.open_connection(sock=sock) for sock in socks]
        with _metered(spent):
            results = await graceful_asyncio.close_all(
                [writer for _, writer in streams], timeout=timeout
            )
        spent.answered = _answered(results)

    spent = Spent()
    asyncio.run(main())
    return spent


def by_wait_closed(socks: list[socket.socket], timeout: float) -> Spent:
    """The lower bound: it does not wait for peers, and loses data if there is unread input."""

    async def main() -> None:
        streams = [await asyncio.open_connection(sock=sock) for sock in socks]
        with _metered(spent):
            for _, writer in streams:
                writer.close()
            async with asyncio.timeout(timeout):
                await asyncio.gather(*(writer.wait_closed() for _, writer in streams))
        spent.answered = len(streams)  # not known

    spent = Spent()
    asyncio.run(main())
    return spent


def by_trio(socks: list[socket.socket], timeout: float) -> Spent:
    async def close(stream: trio.SocketStream) -> None:
        await stream.send_eof()
        while await stream.receive_some(_READ):
            pass
        spent.answered += 1
        await stream.aclose()

    async def main() -> None:
        streams = [trio.SocketStream(trio.socket.from_stdlib_socket(sock)) for sock in socks]
        with _metered(spent), trio.fail_after(timeout):
            async with trio.open_nursery() as nursery:
                for stream in streams:
                    nursery.start_soon(close, stream)

    spent = Spent()
    trio.run(main)
    return spent


@contextmanager
def _metered(spent: Spent | None = None) -> Generator[Spent]:
    spent = spent or Spent()
    gc.collect()  # so that garbage of an earlier way is not measured
    slept, began, started = times_asleep(), time.monotonic(), time.process_time()
    yield spent
    spent.cpu = time.process_time() - started
    spent.wall = time.monotonic() - began
    spent.asleep = times_asleep() - slept


def _answered(results: Iterable[CloseResult]) -> int:
    return sum(result.outcome is CloseOutcome.PEER_CLOSED for result in results)
