"""Task factories: a close must not depend on whether a new task begins immediately or in the next turn.

With `asyncio.eager_task_factory` (Python 3.12) the first step of a task runs where the task is made,
for example in data_received(). Older versions have ordinary tasks only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from event_loops import LOOPS
from graceful_close import CloseOutcome, CloseResult
from graceful_close.asyncio import Reaper, close_all, graceful_close, graceful_loop
from streams import DEADLINE
from test_asyncio import KINDS, in_thread, pair, read_then_close, run_in, upload_then_read
from test_asyncio_server import MEGABYTES, REPLY, Protocol, early_reply, served


def _eager(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any
) -> asyncio.Task[Any]:
    """As asyncio's own, which does not take the options of every uvloop."""
    options["eager_start"] = True
    return asyncio.Task(coroutine, loop=loop, **options)


FACTORIES: dict[str, Any] = {"ordinary": None}
if hasattr(asyncio, "eager_task_factory"):
    FACTORIES["eager"] = _eager

of_each_kind = pytest.mark.parametrize("kind", KINDS)
with_each_factory = pytest.mark.parametrize("factory", FACTORIES)
in_each_loop = pytest.mark.parametrize("loop", LOOPS)


def run_with(loop: str, factory: str, test: Coroutine[Any, Any, None]) -> None:
    """Run a test in a graceful loop whose tasks are made by a factory."""

    def new_loop() -> asyncio.AbstractEventLoop:
        plain = LOOPS[loop]()
        plain.close()
        made = graceful_loop(type(plain), timeout=DEADLINE)()
        made.set_task_factory(FACTORIES[factory])
        return made

    run_in(new_loop, test)


class ClosesInDataReceived(Protocol):
    """Replies and closes in the call in which the transport reads."""

    def data_received(self, data: bytes) -> None:
        if not self.received.is_set():
            self.transport.write(MEGABYTES)
            self.end()
        super().data_received(data)

    def end(self) -> None:
        self.transport.close()


class ClosesInATask(ClosesInDataReceived):
    def end(self) -> None:
        self.task = asyncio.ensure_future(graceful_close(self.transport, timeout=DEADLINE))


@pytest.mark.parametrize("protocol", [ClosesInDataReceived, ClosesInATask])
@of_each_kind
@with_each_factory
@in_each_loop
def test_a_long_reply_from_data_received_arrives_complete(
    loop: str, factory: str, kind: str, protocol: type[Protocol]
) -> None:
    async def test() -> None:
        async with served(kind, protocol=protocol) as (_, made, connect):
            assert await in_thread(lambda: upload_then_read(connect())) == MEGABYTES
            made_one = await made.get()
            if isinstance(made_one, ClosesInATask):
                result = await made_one.task
                assert result.outcome is CloseOutcome.PEER_CLOSED
                assert result.clean

    run_with(loop, factory, test())


@of_each_kind
@with_each_factory
@in_each_loop
def test_a_reply_that_fits_into_the_kernel_arrives_complete(
    loop: str, factory: str, kind: str
) -> None:
    async def test() -> None:
        async with served(kind) as (_, made, connect):
            assert await early_reply(made, connect, REPLY) == REPLY

    run_with(loop, factory, test())


@of_each_kind
@with_each_factory
@in_each_loop
def test_the_closes_of_a_reaper_and_of_close_all_end(
    loop: str, factory: str, kind: str
) -> None:
    async def test() -> None:
        results: list[CloseResult] = []
        async with pair(kind) as first, pair(kind) as second, pair(kind) as third:
            for each in (first, second, third):
                each.writer.write(MEGABYTES)
            peers = (first.peer, second.peer, third.peer)
            clients = [asyncio.create_task(in_thread(read_then_close, peer)) for peer in peers]
            async with Reaper(timeout=DEADLINE, on_close=results.append) as reaper:
                reaper.submit(first.writer)
            results += await close_all([second.writer, third.writer], timeout=DEADLINE)
            assert [await client for client in clients] == [MEGABYTES] * 3
        assert [result.outcome for result in results] == [CloseOutcome.PEER_CLOSED] * 3
        assert all(result.clean for result in results)

    run_with(loop, factory, test())
