"""A KeyboardInterrupt while a stream's descriptor is taken: the stream is closed, and it propagates."""

from __future__ import annotations

from typing import Any

import pytest

from every_loop import ASYNCIO, WITH_TRANSPORTS, Loop, call, on, pair
from graceful_close import _platform
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


@pytest.mark.parametrize("kind", ["tcp", "TLS 1.3"])
@on(ASYNCIO)
async def test_an_interrupt_between_two_steps_of_the_flush_closes_the_stream(
    loop: Loop, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[object] = []
    go_on = TransportTakeover.go_on

    def interrupted(*args: Any) -> object:
        steps.append(args)
        if len(steps) == 2:
            raise KeyboardInterrupt
        return go_on(*args)

    async with pair(loop, kind, peer_buffer=4096) as (stream, _):
        raw = loop.raw(stream)
        stream.write(bytes(9_000_000))
        monkeypatch.setattr(TransportTakeover, "go_on", interrupted)
        with pytest.raises(KeyboardInterrupt):
            await loop.module.graceful_close(stream, timeout=0.1)
        assert raw.fileno() == -1
