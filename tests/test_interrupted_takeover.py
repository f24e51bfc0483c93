"""A KeyboardInterrupt while a stream's descriptor is taken: the stream is closed, and it propagates."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any

import pytest

from every_loop import (
    ASYNCIO,
    WITH_TRANSPORTS,
    Loop,
    call,
    ends_in_raw_reset,
    in_thread,
    on,
    pair,
)
from graceful_close import _connection, _platform
from graceful_close._asyncio_transport import TransportTakeover


@pytest.mark.parametrize("close", ["graceful_close", "close_all", "abortive_close"])
@pytest.mark.parametrize("kind", ["tcp", "TLS 1.3"])
@on((*ASYNCIO, *WITH_TRANSPORTS))
async def test_an_interrupt_while_the_descriptor_is_taken_closes_the_stream(
    loop: Loop, close: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pair(loop, kind, peer_buffer=4096) as (stream, _):
        raw = loop.raw(stream)
        if hasattr(stream, "write"):
            stream.write(bytes(9_000_000))  # so that a dup is needed

        with monkeypatch.context() as patched:

            def interrupt(*_: Any) -> None:
                patched.undo()
                raise KeyboardInterrupt

            patched.setattr(_platform, "keep_mode", interrupt)
            with pytest.raises(KeyboardInterrupt):
                await call(loop, close, stream)
        assert raw.fileno() == -1


@pytest.mark.parametrize(
    ("of", "name", "nth"),
    [
        (_connection, "drain_of", 1),
        (TransportTakeover, "go_on", 1),
        (TransportTakeover, "go_on", 2),
    ],
)
@pytest.mark.parametrize("kind", ["tcp", "TLS 1.3"])
@on(ASYNCIO)
async def test_an_interrupt_before_a_step_of_the_flush_resets(
    loop: Loop, kind: str, of: Any, name: str, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    step = getattr(of, name)

    def interrupted(*args: Any) -> object:
        calls.append(args)
        if len(calls) == nth:
            raise KeyboardInterrupt
        return step(*args)

    async with pair(loop, kind, peer_buffer=4096) as (stream, peer):
        raw = loop.raw(stream)
        stream.write(bytes(9_000_000))
        monkeypatch.setattr(of, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            await loop.module.graceful_close(stream, timeout=0.1)
        assert raw.fileno() == -1
        assert await in_thread(ends_in_raw_reset, peer)


class Interrupted:
    """A context in which every call is interrupted at its end."""

    def run(self, call: Callable[..., object], *args: object) -> None:
        Context().run(call, *args)
        raise KeyboardInterrupt


@on(ASYNCIO)
async def test_an_interrupt_at_the_first_wait_of_a_loop_leaves_nothing_watched(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libuv aborts the process if a descriptor that it watches is closed."""
    async with pair(loop) as (stream, _):
        raw = loop.raw(stream)
        with monkeypatch.context() as patched:
            patched.setattr("graceful_close._asyncio_multiplexer.Context", Interrupted)
            with pytest.raises(KeyboardInterrupt):
                await loop.module.graceful_close(stream, timeout=0.1)
        assert raw.fileno() == -1
        await asyncio.sleep(0.001)
