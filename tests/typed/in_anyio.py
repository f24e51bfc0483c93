"""What type checkers accept and reject of `graceful_close.anyio`. Nothing here is run."""

# pyright: reportUnnecessaryTypeIgnoreComment=error

from __future__ import annotations

import socket
from typing import Any, assert_type

import anyio.abc
from anyio.streams.buffered import BufferedByteStream
from anyio.streams.stapled import StapledByteStream
from anyio.streams.tls import TLSStream

from graceful_close import CloseOutcome, CloseResult, LingerPolicy
from graceful_close.anyio import (
    Reaper,
    abortive_close,
    close_all,
    closing,
    graceful_close,
    timed_linger_close,
)

# The value has a type that no option accepts, because a checker may report either mistake
# first.
ANYTHING: Any = None


async def one(
    stream: anyio.abc.SocketStream,
    session: TLSStream,
    unix: anyio.abc.UNIXSocketStream,
) -> None:
    assert_type(await graceful_close(stream), CloseResult)
    assert_type(await graceful_close(session, timeout=0.5, idle_timeout=None), CloseResult)
    assert_type(await graceful_close(unix, until=CloseOutcome.DELIVERED), CloseResult)
    assert_type(
        await graceful_close(session, peer_first=2.5, on_timeout=LingerPolicy.ABORT),
        CloseResult,
    )
    assert_type(
        await timed_linger_close(stream, 2.5, on_timeout=LingerPolicy.ABORT), CloseResult
    )
    assert_type(await abortive_close(session), CloseResult)
    assert_type(await graceful_close(BufferedByteStream(session)), CloseResult)
    assert_type(await graceful_close(StapledByteStream(stream, stream)), CloseResult)
    assert_type(await close_all([stream, session, unix], drain_limit=65536), list[CloseResult])


async def one_in_a_block(stream: anyio.abc.SocketStream, session: TLSStream) -> int:
    async with closing(stream, timeout=10) as same:
        assert_type(same, anyio.abc.SocketStream)
    block = closing(session)
    assert_type(block.result, CloseResult | None)
    async with block as same_session:
        assert_type(same_session, TLSStream)
        return 1  # a block that suppressed exceptions would need a `return` after it


async def background(stream: anyio.abc.SocketStream, session: TLSStream) -> None:
    results: list[CloseResult] = []
    async with Reaper(max_sockets=10, on_close=results.append) as reaper:
        assert_type(reaper, Reaper)
        reaper.submit(stream)
        reaper.submit(session)
        reaper.submit(ANYTHING, 5)  # type: ignore[call-arg]
        reaper.submit(5)  # type: ignore[arg-type]
    assert_type(reaper.stats(), dict[CloseOutcome, int])
    assert_type(reaper.overflowed, int)
    Reaper(patience=5)  # type: ignore[call-arg]
    Reaper(on_overflow=LingerPolicy.TIMED)  # type: ignore[arg-type]


async def refused(stream: anyio.abc.SocketStream, sock: socket.socket) -> None:
    await graceful_close(sock)  # type: ignore[arg-type]
    await graceful_close(stream, ANYTHING)  # type: ignore[call-arg]
    await graceful_close(stream, timeout=None)  # type: ignore[arg-type]
    await graceful_close(stream, until=CloseOutcome.ABORTED)  # type: ignore[arg-type]
    await graceful_close(stream, on_timeout=LingerPolicy.TIMED)  # type: ignore[arg-type]
    await graceful_close(stream, patience=5)  # type: ignore[call-arg]
    await timed_linger_close(stream)  # type: ignore[call-arg]
    await timed_linger_close(stream, 1, on_timeout=LingerPolicy.TIMED)  # type: ignore[arg-type]
    await close_all(stream)  # type: ignore[arg-type]
    await close_all([stream], until=CloseOutcome.ABORTED)  # type: ignore[arg-type]
    closing(sock)  # type: ignore[type-var]
    closing(stream, on_timeout=LingerPolicy.TIMED)  # type: ignore[arg-type]
    with closing(stream):  # type: ignore[attr-defined]
        pass
