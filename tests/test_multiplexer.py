"""The closes of one event loop: their beginnings, failures and cancellations."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref
from contextvars import ContextVar
from time import monotonic
from typing import Any

import pytest

import descriptors
from every_loop import on
from graceful_close import CloseOutcome
from graceful_close._async import TaskClose
from graceful_close._asyncio_multiplexer import multiplexer
from graceful_close._options import Options
from graceful_close.asyncio import graceful_close
from streams import Connection, connect_many, read_all
from test_loop import Broken

on_asyncio = on(["asyncio"])


def closes_of(
    socks: list[socket.socket], options: Options | None = None
) -> list[tuple[TaskClose, socket.socket]]:
    return [(TaskClose(options or Options(1000), monotonic()), sock) for sock in socks]


@on_asyncio
async def test_other_tasks_run_after_each_batch_of_beginnings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("graceful_close._async.BATCH", 2)
    with connect_many(7) as crowd:
        socks = [sock for sock, _ in crowd]
        begun: set[int] = set()

        async def look() -> None:
            while True:
                begun.add(sum(sock.fileno() == -1 for sock in socks))
                await asyncio.sleep(0)

        looking = asyncio.create_task(look())
        await multiplexer().close_each(closes_of(socks, Options(0)))
        looking.cancel()
        await asyncio.wait([looking])
        assert begun - {0, 7} == {2, 4, 6}


@on_asyncio
async def test_the_first_of_two_failures_is_raised_when_the_others_have_ended() -> None:
    with connect_many(3) as crowd:
        socks = [Broken(fileno=sock.detach()) for sock, _ in crowd[:2]] + [crowd[2].ours]
        closing = asyncio.create_task(multiplexer().close_each(closes_of(socks)))
        assert await asyncio.to_thread(read_all, crowd[2].peer) == b""
        assert not closing.done()
        crowd[2].peer.close()
        with pytest.raises(RuntimeError, match="a bug"):
            await closing
        assert [sock.fileno() for sock in socks] == [-1] * 3
        assert [read_all(peer) for _, peer in crowd[:2]] == [b"", b""]


@on_asyncio
async def test_a_close_that_cannot_begin_closes_its_socket(tcp: Connection) -> None:
    broken = Broken(fileno=tcp.ours.detach())
    with pytest.raises(RuntimeError, match="a bug"):
        await multiplexer().close(TaskClose(Options(), monotonic()), broken)
    assert broken.fileno() == -1
    assert await asyncio.to_thread(read_all, tcp.peer) == b""


@pytest.mark.parametrize("many", [False, True])
@on_asyncio
async def test_a_cancelled_close_is_in_the_loop_no_more(many: bool, tcp: Connection) -> None:
    closes, [(close, sock)] = multiplexer(), closes_of([tcp.ours])
    closing = asyncio.ensure_future(
        closes.close_each([(close, sock)]) if many else closes.close(close, sock)
    )
    while not closes.closes:
        await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert not closes.closes
    assert not close.held or close.held[0].fileno() == -1
    assert await asyncio.to_thread(read_all, tcp.peer) == b""


@on_asyncio
async def test_a_deadline_that_is_earlier_than_the_timer_is_met(tcp: Connection) -> None:
    with connect_many(1) as [(other, _)]:
        closes = multiplexer()
        [(long, sock)] = closes_of([other])
        waiting = asyncio.create_task(closes.close(long, sock))
        while not closes.closes:
            await asyncio.sleep(0)
        [(short, sock)] = closes_of([tcp.ours], Options(0.05))
        assert (await closes.close(short, sock)).outcome is CloseOutcome.TIMED_OUT
        waiting.cancel()
        await asyncio.wait([waiting])


@on_asyncio
async def test_closes_without_a_descriptor_to_wait_on_are_followed_by_closes_with_one() -> None:
    with connect_many(4) as crowd:
        closes = multiplexer()

        async def begin(index: int) -> asyncio.Task[Any]:
            [(close, sock)] = closes_of([crowd[index].ours])
            closing = asyncio.create_task(closes.close(close, sock))
            while not close.held or closes.closes is None or close not in closes.closes:
                await asyncio.sleep(0)
            return closing

        with descriptors.none_left():
            first = await begin(0)
        without = closes.closes
        assert without is not None
        assert without.fileno() == -1
        second = await begin(1)
        assert closes.closes is without, "the first still waits"
        for index, closing in enumerate((first, second)):
            crowd[index].peer.close()
            assert (await closing).outcome is CloseOutcome.PEER_CLOSED
        third = await begin(2)
        anew = closes.closes
        assert anew is not None
        assert anew is not without
        assert anew.fileno() != -1
        fourth = await begin(3)
        assert len(anew) == 2
        for index, closing in ((2, third), (3, fourth)):
            crowd[index].peer.close()
            assert (await closing).outcome is CloseOutcome.PEER_CLOSED


@on_asyncio
async def test_a_loop_that_another_task_keeps_busy_still_ends_a_close(tcp: Connection) -> None:
    closing = asyncio.create_task(
        multiplexer().close(TaskClose(Options(0.05), monotonic()), tcp.ours)
    )
    while not closing.done():
        await asyncio.sleep(0)
    assert (await closing).outcome is CloseOutcome.TIMED_OUT


class Value:
    """What a context variable holds."""


@on(["asyncio", "uvloop"])
async def test_the_loop_keeps_no_context_of_a_close_that_has_ended(tcp: Connection) -> None:
    variable: ContextVar[Value] = ContextVar("variable")
    values: list[weakref.ref[Value]] = []

    async def close() -> None:
        value = Value()
        variable.set(value)
        values.append(weakref.ref(value))
        await graceful_close(tcp.ours, timeout=0.01)

    await asyncio.create_task(close())
    await asyncio.sleep(0)
    gc.collect()
    assert values[0]() is None
