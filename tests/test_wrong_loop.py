"""A stream of one event loop, and a close in another: an error, and the stream is unchanged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from anyio.abc import SocketStream

import graceful_close.anyio
import graceful_close.asyncio
from event_loops import LOOPS
from graceful_close import CloseOutcome
from streams import DEADLINE, connect, meanwhile, read_and_close
from test_asyncio import KINDS, in_thread, pair

MESSAGE = "belongs to another event loop"

each_loop = pytest.mark.parametrize("loop", LOOPS)
each_other = pytest.mark.parametrize("other", LOOPS)


async def require_refusal(module: Any, stream: Any) -> None:
    """Fail unless every function of a module refuses a stream."""
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: module.graceful_close(stream, timeout=DEADLINE),
        lambda: module.timed_linger_close(stream, DEADLINE),
        lambda: module.abortive_close(stream),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match=MESSAGE):
            await call()
    with pytest.raises(RuntimeError, match=rf"^streams\[0\]: .*{MESSAGE}"):
        await module.close_all([stream])
    with pytest.raises(RuntimeError, match=MESSAGE):
        module.closing(stream)
    async with module.Reaper() as reaper:
        with pytest.raises(RuntimeError, match=MESSAGE):
            reaper.submit(stream)


@pytest.mark.parametrize("kind", KINDS)
@each_other
@each_loop
def test_a_writer_of_another_loop_is_refused_and_still_works_in_its_own(
    loop: str, other: str, kind: str
) -> None:
    with (
        asyncio.Runner(loop_factory=LOOPS[loop]) as its_own,
        asyncio.Runner(loop_factory=LOOPS[other]) as another,
    ):
        opened = pair(kind)
        _, writer, peer = its_own.run(opened.__aenter__())
        another.run(require_refusal(graceful_close.asyncio, writer))
        assert not writer.is_closing()

        async def close() -> None:
            writer.write(b"reply")
            client = asyncio.create_task(in_thread(read_and_close, peer))
            result = await graceful_close.asyncio.graceful_close(writer, timeout=DEADLINE)
            assert (result.outcome, await client) == (CloseOutcome.PEER_CLOSED, b"reply")

        its_own.run(close())
        its_own.run(opened.__aexit__(None, None, None))


@each_other
@each_loop
def test_a_stream_of_anyio_is_refused_in_another_loop(loop: str, other: str) -> None:
    with (
        connect("tcp4") as (ours, peer),
        asyncio.Runner(loop_factory=LOOPS[loop]) as its_own,
        asyncio.Runner(loop_factory=LOOPS[other]) as another,
    ):

        async def open_one() -> SocketStream:
            return await SocketStream.from_socket(ours)

        stream = its_own.run(open_one())
        another.run(require_refusal(graceful_close.anyio, stream))
        anyio.run(require_refusal, graceful_close.anyio, stream, backend="trio")

        async def close() -> None:
            await stream.send(b"reply")
            with meanwhile(read_and_close, peer) as received:
                result = await graceful_close.anyio.graceful_close(stream, timeout=DEADLINE)
            assert (result.outcome, received) == (CloseOutcome.PEER_CLOSED, [b"reply"])

        its_own.run(close())


@each_loop
def test_the_constructor_of_closing_may_be_called_before_the_loop_runs(loop: str) -> None:
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        opened = pair("tcp")
        _, writer, peer = runner.run(opened.__aenter__())
        commit = graceful_close.asyncio.closing(writer, timeout=DEADLINE)

        async def use() -> None:
            client = asyncio.create_task(in_thread(read_and_close, peer))
            async with commit:
                writer.write(b"reply")
            assert await client == b"reply"

        runner.run(use())
        runner.run(opened.__aexit__(None, None, None))
