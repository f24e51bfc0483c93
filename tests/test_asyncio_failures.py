"""What cannot be sent, a reset, an abort and a cancellation on asyncio: each ends in time, and blocks no loop."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import pytest

from every_loop import ends_in_raw_reset, leave_no_room
from graceful_close import CloseOutcome, LingerPolicy
from graceful_close.asyncio import abortive_close, graceful_close, timed_linger_close
from streams import DEADLINE, connect, read_and_close, reset
from test_asyncio import (
    BLOCKED,
    MEGABYTES,
    TLS,
    heartbeat,
    in_a_loop,
    in_thread,
    is_closed,
    linger_long,
    over_tcp,
    over_tls,
    pair,
)

# --- network failures are results ------------------------------------------------------------


@over_tcp
@pytest.mark.parametrize("policy", [LingerPolicy.BACKGROUND, LingerPolicy.ABORT])
@in_a_loop
async def test_what_cannot_be_flushed_in_time_ends_in_a_reset(kind: str, policy: Any) -> None:
    """A FIN would mean that the message is complete."""
    async with pair(kind, peer_buffer=4096) as (_, writer, peer):
        writer.write(MEGABYTES)
        async with heartbeat() as worst:
            linger_long(writer)
            result = await graceful_close(writer, timeout=0.2, on_timeout=policy)
        assert result.outcome is CloseOutcome.TIMED_OUT
        assert not result.clean
        assert result.elapsed >= 0.2
        assert is_closed(writer)
        assert await in_thread(ends_in_raw_reset, peer)
        if kind == "tcp":
            assert result.unacked is not None
            assert len(MEGABYTES) // 2 < result.unacked <= len(MEGABYTES)
        else:
            assert result.unacked is None
            assert result.notified is False
        assert worst[0] < BLOCKED


@over_tcp
@in_a_loop
async def test_the_idle_timeout_applies_to_the_flush(kind: str) -> None:
    async with pair(kind, peer_buffer=4096) as (_, writer, _peer):
        writer.write(MEGABYTES)
        result = await graceful_close(writer, timeout=DEADLINE, idle_timeout=0.1)
        assert result.outcome is CloseOutcome.IDLE_TIMED_OUT
        assert result.elapsed < DEADLINE / 2


@over_tcp
@in_a_loop
async def test_a_slow_peer_gets_everything_despite_the_idle_timeout(kind: str) -> None:
    def sip(peer: socket.socket) -> int:
        total = 0
        for _ in range(25):
            total += len(peer.recv(100_000))
            time.sleep(0.1)  # a tenth of the idle timeout, and longer in total
        return total + len(read_and_close(peer))

    async with pair(kind, peer_buffer=4096) as (_, writer, peer):
        writer.write(2 * MEGABYTES)
        client = asyncio.create_task(asyncio.to_thread(sip, peer))
        result = await graceful_close(writer, timeout=DEADLINE, idle_timeout=1)
        assert await client == 2 * len(MEGABYTES)
        assert result.outcome is CloseOutcome.PEER_CLOSED


@pytest.mark.parametrize("kind", ["tcp"])
@in_a_loop
async def test_a_reset_that_the_transport_has_read_and_not_reported_is_a_result(
    kind: str,
) -> None:
    """The transport reports the reset some turns after it has read it."""
    outcomes: list[CloseOutcome] = []
    while CloseOutcome.ALREADY_CLOSED not in outcomes:
        async with pair(kind) as (_, writer, peer):
            reset(peer)
            for _ in range(len(outcomes)):
                await asyncio.sleep(0)
            outcomes.append((await graceful_close(writer, timeout=DEADLINE)).outcome)
    assert len(outcomes) > 1
    assert set(outcomes[:-1]) == {CloseOutcome.PEER_RESET}


@over_tcp
@in_a_loop
async def test_a_reset_while_flushing_is_a_result(kind: str) -> None:
    async with pair(kind, peer_buffer=4096) as (reader, writer, peer):
        writer.write(MEGABYTES)
        closed = asyncio.create_task(graceful_close(writer, timeout=DEADLINE))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not closed.done()
        reset(peer)
        result = await closed
        assert result.outcome is CloseOutcome.PEER_RESET
        assert isinstance(result.error, ConnectionResetError)
        # What the transport held is not acknowledged either.
        assert (result.unacked or 0) > len(MEGABYTES) // 2 or kind in TLS
        assert result.notified is (False if kind in TLS else None)
        assert is_closed(writer)
        del reader


@in_a_loop
async def test_the_limit_counts_what_arrives_during_the_flush() -> None:
    async with pair("tcp", peer_buffer=4096) as (_, writer, peer):
        writer.write(MEGABYTES)
        closed = asyncio.create_task(graceful_close(writer, timeout=DEADLINE, drain_limit=1000))
        while not writer.is_closing():  # until then the transport itself reads
            await asyncio.sleep(0)
        await in_thread(peer.sendall, bytes(100_000))
        assert (await closed).outcome is CloseOutcome.DRAIN_LIMIT


@over_tls
@in_a_loop
async def test_a_fin_without_close_notify_is_a_result(kind: str) -> None:
    async with pair(kind, limit=10) as (reader, writer, peer):
        peer.sendall(bytes(1000))  # so many that the reader pauses its transport
        await reader.read(1)
        raw = socket.socket(fileno=peer.detach())
        raw.shutdown(socket.SHUT_WR)
        writer.write(b"goodbye")
        result = await graceful_close(writer, timeout=DEADLINE)
        raw.close()
        assert result.outcome in (CloseOutcome.PEER_CLOSED, CloseOutcome.ALREADY_CLOSED)
        assert result.notified in (True, False, None)


# --- delivery --------------------------------------------------------------------------------


@over_tcp
@in_a_loop
async def test_timed_linger_close_reports_what_was_not_delivered(kind: str) -> None:
    async with pair(kind, peer_buffer=4096) as (_, writer, peer):
        leave_no_room(writer.get_extra_info("socket"))
        async with heartbeat() as worst:
            linger_long(writer)
            with pytest.raises(ValueError, match="^seconds must"):
                await timed_linger_close(writer, -1)
            result = await timed_linger_close(writer, 0.2, on_timeout=LingerPolicy.ABORT)
        assert result.outcome is CloseOutcome.TIMED_OUT
        assert result.unacked != 0
        assert worst[0] < BLOCKED
        assert await in_thread(ends_in_raw_reset, peer)


# --- aborting --------------------------------------------------------------------------------


@over_tcp
@in_a_loop
async def test_an_abort_sends_a_reset_and_drops_what_the_transport_holds(kind: str) -> None:
    async with pair(kind, peer_buffer=4096) as (_, writer, peer):
        writer.write(MEGABYTES)
        async with heartbeat() as worst:
            linger_long(writer)
            result = await abortive_close(writer)
            assert is_closed(writer)
        assert result.outcome is CloseOutcome.ABORTED
        assert result.clean
        assert result.notified is None
        assert 0 < result.elapsed < DEADLINE
        assert await in_thread(ends_in_raw_reset, peer)
        assert worst[0] < BLOCKED
        if kind == "tcp":
            assert result.unacked is not None
            assert result.unacked > len(MEGABYTES) // 2


@in_a_loop
async def test_a_plain_socket_can_be_aborted() -> None:
    with connect("tcp4") as (ours, peer):
        ours.setblocking(False)
        assert (await abortive_close(ours)).outcome is CloseOutcome.ABORTED
        assert await in_thread(ends_in_raw_reset, peer)


# --- the loop is never blocked ---------------------------------------------------------------


@over_tcp
@pytest.mark.parametrize("size", [100, len(MEGABYTES)])
@in_a_loop
async def test_a_linger_time_on_the_socket_never_blocks_the_loop(kind: str, size: int) -> None:
    async with pair(kind, peer_buffer=4096) as (_, writer, _peer):
        linger_long(writer)
        writer.write(bytes(size))
        async with heartbeat() as worst:
            await graceful_close(writer, timeout=0.1)
        assert worst[0] < BLOCKED


@over_tcp
@pytest.mark.parametrize("size", [100, len(MEGABYTES)])
@pytest.mark.parametrize("turns", [0, 1, 2, 3, 4, 5, 7, 10, 50])
@in_a_loop
async def test_a_cancellation_closes_immediately_and_propagates(
    kind: str, size: int, turns: int
) -> None:
    """It may arrive in any turn of the event loop."""
    async with pair(kind, peer_buffer=4096) as (_, writer, peer):
        linger_long(writer)
        writer.write(bytes(size))
        async with heartbeat() as worst:
            closed = asyncio.create_task(graceful_close(writer, timeout=DEADLINE))
            for _ in range(turns):
                await asyncio.sleep(0)
            assert not closed.done()
            closed.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closed
        if turns == 0:  # it never ran
            assert not writer.is_closing()
            await abortive_close(writer)
        assert is_closed(writer)
        assert worst[0] < BLOCKED
        if size > 100:
            assert await in_thread(ends_in_raw_reset, peer), "a part does not end in order"
