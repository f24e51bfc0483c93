"""What type checkers accept and reject of `graceful_close.asyncio`. Nothing here is run."""

# pyright: reportUnnecessaryTypeIgnoreComment=error

from __future__ import annotations

import asyncio
import socket
from typing import Any, assert_type

from graceful_close import CloseOutcome, CloseResult, LingerPolicy
from graceful_close.asyncio import (
    Reaper,
    abortive_close,
    close_all,
    closing,
    graceful_close,
    graceful_factory,
    graceful_loop,
    timed_linger_close,
)

# The value has a type that no option accepts, because a checker may report either mistake
# first.
ANYTHING: Any = None


async def one(
    writer: asyncio.StreamWriter, transport: asyncio.Transport, sock: socket.socket
) -> None:
    assert_type(await graceful_close(writer), CloseResult)
    assert_type(await graceful_close(transport, timeout=0.5, idle_timeout=None), CloseResult)
    assert_type(await graceful_close(sock, until=CloseOutcome.DELIVERED), CloseResult)
    assert_type(
        await graceful_close(transport, peer_first=2.5, on_timeout=LingerPolicy.ABORT),
        CloseResult,
    )
    assert_type(
        await timed_linger_close(writer, 2.5, on_timeout=LingerPolicy.ABORT), CloseResult
    )
    assert_type(await abortive_close(writer), CloseResult)
    assert_type(
        await close_all([writer, transport, sock], drain_limit=65536), list[CloseResult]
    )
    task = asyncio.create_task(graceful_close(writer))
    assert_type(task, asyncio.Task[CloseResult])


async def one_in_a_block(writer: asyncio.StreamWriter, sock: socket.socket) -> int:
    async with closing(writer, timeout=10) as same:
        assert_type(same, asyncio.StreamWriter)
    block = closing(sock)
    assert_type(block.result, CloseResult | None)
    async with block as stream:
        assert_type(stream, socket.socket)
        return 1  # a block that suppressed exceptions would need a `return` after it


async def servers(loop: asyncio.AbstractEventLoop) -> asyncio.SelectorEventLoop:
    await loop.create_server(graceful_factory(asyncio.Protocol, timeout=10), "localhost", 8080)
    await loop.create_unix_server(graceful_factory(asyncio.Protocol))
    made = graceful_loop(asyncio.SelectorEventLoop, idle_timeout=1)
    with asyncio.Runner(loop_factory=made) as runner:
        runner.get_loop()
    graceful_factory(asyncio.Protocol())  # type: ignore[arg-type]
    graceful_loop(asyncio.Protocol)  # type: ignore[type-var]
    graceful_loop(asyncio.SelectorEventLoop, patience=5)  # type: ignore[call-arg]
    return made()


async def background(
    writer: asyncio.StreamWriter, transport: asyncio.Transport, sock: socket.socket
) -> None:
    results: list[CloseResult] = []
    async with Reaper(max_sockets=10, on_close=results.append) as reaper:
        assert_type(reaper, Reaper)
        reaper.submit(writer)
        reaper.submit(transport)
        reaper.submit(sock)
        reaper.submit(ANYTHING, 5)  # type: ignore[call-arg]
        reaper.submit(5)  # type: ignore[arg-type]
    assert_type(reaper.stats(), dict[CloseOutcome, int])
    assert_type(reaper.overflowed, int)
    Reaper(patience=5)  # type: ignore[call-arg]
    Reaper(on_overflow=LingerPolicy.TIMED)  # type: ignore[arg-type]


async def refused(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await graceful_close(reader)  # type: ignore[arg-type]
    await graceful_close(writer, ANYTHING)  # type: ignore[call-arg]
    await graceful_close(writer, timeout=None)  # type: ignore[arg-type]
    await graceful_close(writer, until=CloseOutcome.ABORTED)  # type: ignore[arg-type]
    await graceful_close(writer, on_timeout=LingerPolicy.TIMED)  # type: ignore[arg-type]
    await graceful_close(writer, patience=5)  # type: ignore[call-arg]
    await timed_linger_close(writer)  # type: ignore[call-arg]
    await timed_linger_close(writer, 1, on_timeout=LingerPolicy.TIMED)  # type: ignore[arg-type]
    await abortive_close(writer, timeout=5)  # type: ignore[call-arg]
    await close_all(writer)  # type: ignore[arg-type]
    await close_all([writer], until=CloseOutcome.ABORTED)  # type: ignore[arg-type]
    closing(reader)  # type: ignore[type-var]
    closing(writer, on_timeout=LingerPolicy.TIMED)  # type: ignore[arg-type]
    with closing(writer):  # type: ignore[attr-defined]
        pass
