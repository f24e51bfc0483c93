"""close_all on every event loop: one deadline for all, results in order, and no reply is lost."""

from __future__ import annotations

from contextlib import AsyncExitStack
from time import monotonic
from typing import Any

import anyio.lowlevel

import graceful_close.trio
from every_loop import (
    REPLY,
    TLS,
    TRIO_AND_ANYIO,
    Loop,
    leave_no_room,
    on,
    on_every_loop,
    pair,
    send_then_read_raw,
    upload_then_read,
)
from graceful_close import CloseOutcome
from streams import DEADLINE, connect_many, meanwhile, read_and_close
from tls_sessions import records


@on_every_loop
async def test_many_cost_the_deadline_once_and_the_results_are_in_order(loop: Loop) -> None:
    with connect_many(20) as connections:
        streams = [await loop.open(ours) for ours, _ in connections]
        # The closed one is left out: on uvloop, the query would be answered later, too.
        raws = [loop.raw(stream) for stream in (*streams[:4], *streams[5:])]
        for _, peer in connections[1::2]:
            peer.close()
        await loop.discard(streams[4])
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        started = monotonic()
        results = await loop.module.close_all(streams, timeout=0.3)
        assert 0.3 <= monotonic() - started < 0.3 * 20
        assert all(raw.fileno() == -1 for raw in raws)
    outcomes = [result.outcome for result in results]
    assert outcomes[1::2] == [CloseOutcome.PEER_CLOSED] * 10
    assert outcomes[4] is CloseOutcome.ALREADY_CLOSED
    assert outcomes.count(CloseOutcome.TIMED_OUT) == 9


@on_every_loop
async def test_no_streams_have_no_results(loop: Loop) -> None:
    assert await loop.module.close_all([]) == []


@on_every_loop
async def test_many_of_every_kind_lose_no_reply(loop: Loop) -> None:
    streams: list[Any] = []
    received: list[list[bytes]] = []
    kinds = loop.kinds * 2
    async with AsyncExitStack() as stack:
        for kind in kinds:
            stream, peer = await stack.enter_async_context(pair(loop, kind))
            received.append(stack.enter_context(meanwhile(upload_then_read, peer)))
            assert await loop.receive(stream, 10)
            await loop.send(stream, REPLY)
            streams.append(stream)
        results = await loop.module.close_all(streams, timeout=DEADLINE)
        for result, kind in zip(results, kinds, strict=True):
            assert result.outcome is CloseOutcome.PEER_CLOSED
            assert result.notified is (True if kind in TLS else None)
    assert received == [[REPLY]] * len(kinds)


@on(TRIO_AND_ANYIO)
async def test_a_close_notify_without_room_does_not_delay_the_other_streams(loop: Loop) -> None:
    async with (
        pair(loop, "TLS 1.2", family="unix") as slow,
        pair(loop, "TLS 1.2") as quick,
    ):
        leave_no_room(loop.raw(slow.stream))
        with meanwhile(read_and_close, quick.peer) as received:
            results = await loop.module.close_all([slow.stream, quick.stream], timeout=1)
        assert received == [b""]
        assert [result.outcome for result in results] == [
            CloseOutcome.TIMED_OUT,
            CloseOutcome.PEER_CLOSED,
        ]
        assert [result.notified for result in results] == [False, True]
        assert results[1].elapsed < 1


@on(TRIO_AND_ANYIO)
async def test_a_close_notify_that_waits_for_room_goes_out_among_many(loop: Loop) -> None:
    async with (
        pair(loop, "TLS 1.2", family="unix") as slow,
        pair(loop, "TLS 1.2") as quick,
    ):
        written = leave_no_room(loop.raw(slow.stream))
        with (
            meanwhile(send_then_read_raw, slow.peer) as late,
            meanwhile(read_and_close, quick.peer) as soon,
        ):
            results = await loop.module.close_all([slow.stream, quick.stream], timeout=DEADLINE)
        assert (soon, len(records(late[0][written:]))) == ([b""], 1)
        assert [result.notified for result in results] == [True, True]
        assert [result.drained for result in results] == [1_000_000, 0]


@on(TRIO_AND_ANYIO)
async def test_a_stream_that_is_given_in_several_forms_is_closed_once(loop: Loop) -> None:
    async with pair(loop, "TLS 1.3") as (stream, peer):
        forms = [stream.transport_stream, stream, stream]
        if loop.module is graceful_close.trio:
            forms.insert(0, loop.raw(stream))
        with meanwhile(read_and_close, peer) as received:
            results = await loop.module.close_all(forms, timeout=DEADLINE)
        assert received == [b""]
        assert len({id(result) for result in results}) == 1
        assert results[0].check().notified
