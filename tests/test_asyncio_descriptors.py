"""Closes of asyncio's streams when the process has no descriptor left."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

import descriptors
from every_loop import ends_in_raw_reset
from graceful_close import CloseOutcome, CloseResult
from graceful_close.asyncio import abortive_close, close_all, graceful_close
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
    pair,
)


@over_tcp
@pytest.mark.parametrize("close", [graceful_close, abortive_close])
@in_a_loop
async def test_without_a_descriptor_for_the_dup_the_connection_is_reset(
    kind: str, close: Callable[..., Awaitable[CloseResult]]
) -> None:
    async with pair(kind) as (_, writer, peer):
        linger_long(writer)
        if kind == "tcp":
            writer.write(MEGABYTES)
        async with heartbeat() as worst:
            with descriptors.none_left(), pytest.raises(OSError, match="Too many open files"):
                await close(writer)
        assert is_closed(writer)
        assert await in_thread(ends_in_raw_reset, peer)
        assert worst[0] < BLOCKED


@in_a_loop
async def test_without_a_descriptor_a_transport_that_holds_nothing_closes_without_waiting() -> (
    None
):
    async with pair("tcp") as (_, writer, peer):
        linger_long(writer)
        writer.write(REPLY)
        await asyncio.sleep(0)  # uvloop writes at the end of a turn
        async with heartbeat() as worst:
            with descriptors.none_left(), pytest.raises(OSError, match="Too many open files"):
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
