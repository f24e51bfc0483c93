"""Closes of asyncio's streams when the process has no descriptor left."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack, suppress
from time import monotonic

import pytest

import descriptors
from every_loop import ends_in_raw_reset
from graceful_close import CloseOutcome
from graceful_close.asyncio import Reaper, abortive_close, close_all, graceful_close
from streams import DEADLINE, read_all, read_and_close
from test_asyncio import (
    BLOCKED,
    MEGABYTES,
    REPLY,
    heartbeat,
    in_a_loop,
    in_thread,
    is_closed,
    linger_long,
    over_tcp,
    over_tls,
    pair,
)

NO_DESCRIPTOR = "Too many open files"


@over_tcp
@in_a_loop
async def test_without_a_descriptor_for_the_dup_an_abort_is_a_reset(kind: str) -> None:
    async with pair(kind) as (_, writer, peer):
        linger_long(writer)
        async with heartbeat() as worst:
            with descriptors.none_left(), pytest.raises(OSError, match=NO_DESCRIPTOR):
                await abortive_close(writer)
        assert is_closed(writer)
        assert await in_thread(ends_in_raw_reset, peer)
        assert worst[0] < BLOCKED


@over_tcp
@pytest.mark.parametrize("closed_before", [False, True])
@in_a_loop
async def test_without_a_descriptor_for_the_dup_a_transport_flushes_what_it_holds(
    kind: str, closed_before: bool
) -> None:
    async with pair(kind) as (_, writer, peer):
        linger_long(writer)
        writer.write(MEGABYTES)
        if closed_before:
            writer.close()
        client = asyncio.create_task(in_thread(read_and_close, peer))
        async with heartbeat() as worst:
            with descriptors.none_left(), pytest.raises(OSError, match=NO_DESCRIPTOR):
                await graceful_close(writer, timeout=DEADLINE)
        assert is_closed(writer)
        assert await client == MEGABYTES
        assert worst[0] < BLOCKED


@over_tcp
@in_a_loop
async def test_without_a_descriptor_a_transport_whose_peer_reads_nothing_is_reset(
    kind: str,
) -> None:
    async with pair(kind, peer_buffer=4096) as (_, writer, peer):
        writer.write(MEGABYTES)
        started = monotonic()
        with descriptors.none_left(), pytest.raises(OSError, match=NO_DESCRIPTOR):
            await graceful_close(writer, timeout=0.1)
        assert monotonic() - started < DEADLINE / 2
        assert is_closed(writer)
        assert await in_thread(ends_in_raw_reset, peer)


@over_tls
@in_a_loop
async def test_without_a_descriptor_a_peer_that_sends_no_close_notify_gets_the_reply(
    kind: str,
) -> None:
    async with pair(kind) as (_, writer, peer):
        writer.write(REPLY)
        with descriptors.none_left(), pytest.raises(OSError, match=NO_DESCRIPTOR):
            await graceful_close(writer, timeout=0.1)
        assert is_closed(writer)
        assert await in_thread(read_all, peer) == REPLY


@in_a_loop
async def test_a_cancelled_close_without_a_descriptor_is_a_reset() -> None:
    async with pair("tcp", peer_buffer=4096) as (_, writer, peer):
        writer.write(MEGABYTES)
        with descriptors.none_left(), pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await graceful_close(writer, timeout=DEADLINE)
        assert is_closed(writer)
        assert await in_thread(ends_in_raw_reset, peer)


@pytest.mark.parametrize("reply", [REPLY, MEGABYTES])
@over_tcp
@in_a_loop
async def test_without_a_descriptor_no_reply_of_many_streams_is_lost(
    kind: str, reply: bytes
) -> None:
    async with AsyncExitStack() as stack:
        ends = [await stack.enter_async_context(pair(kind)) for _ in range(3)]
        for end in ends:
            end.writer.write(reply)
        clients = [asyncio.create_task(in_thread(read_and_close, end.peer)) for end in ends]
        with descriptors.none_left(), suppress(OSError):
            # No error if every peer answers within a turn of the loop.
            await close_all([end.writer for end in ends], timeout=DEADLINE)
        assert all(is_closed(end.writer) for end in ends)
        assert [await client for client in clients] == [reply] * 3


@in_a_loop
async def test_a_cancellation_of_many_closes_without_a_descriptor_resets_each() -> None:
    async with AsyncExitStack() as stack:
        ends = [
            await stack.enter_async_context(pair("tcp", peer_buffer=4096)) for _ in range(3)
        ]
        for end in ends:
            end.writer.write(MEGABYTES)
        with descriptors.none_left(), pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await close_all([end.writer for end in ends], timeout=DEADLINE)
        assert all(is_closed(end.writer) for end in ends)
        assert [await in_thread(ends_in_raw_reset, end.peer) for end in ends] == [True] * 3


@in_a_loop
async def test_a_reaper_without_a_descriptor_makes_room_by_a_reset() -> None:
    async with pair("tcp", peer_buffer=4096) as first, pair("tcp") as second:
        first.writer.write(MEGABYTES)
        second.writer.write(REPLY)
        client = asyncio.create_task(in_thread(read_and_close, second.peer))
        started = monotonic()
        with descriptors.none_left():
            async with Reaper(timeout=DEADLINE, max_sockets=1) as reaper:
                reaper.submit(first.writer)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                reaper.submit(second.writer)
        assert monotonic() - started < DEADLINE / 2
        assert await in_thread(ends_in_raw_reset, first.peer)
        assert await client == REPLY


@in_a_loop
async def test_without_a_descriptor_a_transport_that_holds_nothing_closes_without_waiting() -> (
    None
):
    async with pair("tcp") as (_, writer, peer):
        linger_long(writer)
        writer.write(REPLY)
        await asyncio.sleep(0)  # uvloop writes at the end of a turn
        async with heartbeat() as worst:
            with descriptors.none_left(), pytest.raises(OSError, match=NO_DESCRIPTOR):
                await graceful_close(writer)
        assert is_closed(writer)
        assert await in_thread(read_all, peer) == REPLY
        assert worst[0] < BLOCKED


@in_a_loop
async def test_more_streams_than_free_descriptors_close_in_turns() -> None:
    async with AsyncExitStack() as stack:
        ends = [await stack.enter_async_context(pair("tcp")) for _ in range(5)]
        clients = [asyncio.create_task(in_thread(read_and_close, end.peer)) for end in ends]
        for end in ends:
            end.writer.write(REPLY)
        with descriptors.none_left(but=2):
            results = await close_all([end.writer for end in ends], timeout=DEADLINE)
        assert [await client for client in clients] == [REPLY] * 5
    assert [result.outcome for result in results] == [CloseOutcome.PEER_CLOSED] * 5


@in_a_loop
async def test_a_peer_that_answers_immediately_needs_no_descriptor_for_a_dup() -> None:
    async with pair("tcp") as (_, writer, peer):
        peer.shutdown(socket.SHUT_WR)
        with descriptors.none_left():
            result = await graceful_close(writer, timeout=DEADLINE)
    assert (result.outcome, result.unacked) == (CloseOutcome.PEER_CLOSED, 0)
