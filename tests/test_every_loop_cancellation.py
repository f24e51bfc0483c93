"""Cancellation on every event loop, and tasks that use a stream while another task closes it."""

from __future__ import annotations

from functools import partial
from time import process_time

import anyio
import anyio.lowlevel
import pytest

from every_loop import (
    ANYIO,
    EVERY,
    KINDS,
    TLS,
    TRIO_AND_ANYIO,
    Loop,
    call,
    ends_in_raw_reset,
    every_close,
    every_kind,
    leave_no_room,
    on,
    on_every_loop,
    pair,
    uses,
)
from streams import DEADLINE, meanwhile, read_and_close
from tls_sessions import read_raw, read_raw_and_close

# This stream is closed at the end, so a task may see the end of the connection before.
LATE = EVERY.get("anyio on uvloop"), "unix"

# --- cancellation --------------------------------------------------------------------------------


@every_close
@on(TRIO_AND_ANYIO, KINDS)
async def test_a_cancellation_closes_immediately_at_every_checkpoint(
    loop: Loop, kind: str, close: str
) -> None:
    """After no turn of the event loop, after one, and so on until the close waits for the peer."""
    for turns in range(12):
        async with pair(loop, kind, peer_buffer=4096) as (stream, _peer):
            raw = loop.raw(stream)
            leave_no_room(raw)
            async with anyio.create_task_group() as group:

                async def cancel_later(scope: anyio.CancelScope, turns: int = turns) -> None:
                    for _ in range(turns):
                        await anyio.lowlevel.cancel_shielded_checkpoint()
                    scope.cancel()

                group.start_soon(cancel_later, group.cancel_scope)
                await call(loop, close, stream)
            assert group.cancel_scope.cancelled_caught
            assert raw.fileno() == -1
            await loop.require_closed(stream)


@every_close
@on(TRIO_AND_ANYIO, KINDS)
async def test_a_deadline_of_the_caller_ends_the_wait(
    loop: Loop, kind: str, close: str
) -> None:
    async with pair(loop, kind, peer_buffer=4096) as (stream, _peer):
        raw = loop.raw(stream)
        leave_no_room(raw)
        with anyio.move_on_after(0.1) as scope:
            await call(loop, close, stream)
        assert scope.cancelled_caught
        assert raw.fileno() == -1


@every_close
@on_every_loop
async def test_a_cancelled_close_raises_the_exception_of_the_loop_and_not_a_group(
    loop: Loop, close: str
) -> None:
    async with pair(loop, "TLS 1.3") as (stream, _peer):
        with anyio.CancelScope() as scope:
            scope.cancel()
            with pytest.raises(anyio.get_cancelled_exc_class()):
                await call(loop, close, stream)


@every_kind
async def test_in_a_shield_a_close_finishes_although_the_scope_is_cancelled(
    loop: Loop, kind: str
) -> None:
    async with pair(loop, kind) as (stream, peer):
        with anyio.CancelScope() as scope, meanwhile(read_and_close, peer):
            scope.cancel()
            with anyio.CancelScope(shield=True):
                assert (await loop.module.graceful_close(stream, timeout=DEADLINE)).clean


@on(TRIO_AND_ANYIO)
async def test_a_cancelled_abort_has_happened(loop: Loop) -> None:
    async with pair(loop) as (stream, peer):
        raw = loop.raw(stream)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await loop.module.abortive_close(stream)
        assert scope.cancelled_caught
        assert raw.fileno() == -1
        assert ends_in_raw_reset(peer)


@on(TRIO_AND_ANYIO)
async def test_a_close_that_has_nothing_to_wait_for_is_a_checkpoint(loop: Loop) -> None:
    module = loop.module
    for close in (
        module.graceful_close,
        module.abortive_close,
        partial(module.timed_linger_close, seconds=1),
    ):
        async with pair(loop) as (stream, peer):
            peer.close()
            for _ in range(2):  # the second time it is closed
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    await close(stream)
                assert scope.cancelled_caught


# --- other tasks that use the stream -------------------------------------------------------------


@on(TRIO_AND_ANYIO, KINDS)
async def test_a_task_that_waits_for_input_is_woken(loop: Loop, kind: str) -> None:
    met: list[type[Exception]] = []
    async with pair(loop, kind) as (stream, peer), anyio.create_task_group() as group:
        group.start_soon(uses, partial(loop.receive, stream), met)
        await anyio.wait_all_tasks_blocked()
        with meanwhile(read_and_close, peer) as received:
            result = await loop.module.graceful_close(stream, timeout=DEADLINE)
        assert received == [b""]
        assert result.clean
    assert len(met) == 1
    assert met[0] is loop.closed or (loop, kind) == LATE


@on(TRIO_AND_ANYIO, KINDS)
async def test_a_task_that_waits_for_room_is_woken(loop: Loop, kind: str) -> None:
    met: list[type[Exception]] = []
    async with pair(loop, kind, peer_buffer=4096) as (stream, peer):
        async with anyio.create_task_group() as group:
            group.start_soon(uses, partial(loop.send, stream, bytes(30_000_000)), met)
            await anyio.wait_all_tasks_blocked()
            with meanwhile(read_raw_and_close, peer):
                result = await loop.module.graceful_close(stream, timeout=DEADLINE)
            # The record of that task is cut, so no close_notify can follow.
            assert result.notified is (False if kind in TLS else None)
    assert len(met) == 1
    assert met[0] is loop.closed or (loop, kind) == LATE


@on(TRIO_AND_ANYIO, KINDS)
async def test_an_abort_wakes_a_task_that_waits_for_input(loop: Loop, kind: str) -> None:
    met: list[type[Exception]] = []
    async with pair(loop, kind) as (stream, _peer):
        async with anyio.create_task_group() as group:
            group.start_soon(uses, partial(loop.receive, stream), met)
            await anyio.wait_all_tasks_blocked()
            await loop.module.abortive_close(stream)
    assert met == [loop.closed]


@on(ANYIO, KINDS)
async def test_a_close_leaves_nothing_behind_that_wakes_the_loop_forever(
    loop: Loop, kind: str
) -> None:
    """A descriptor does so that is closed while the loop waits on it, if a dup lives."""

    met: list[type[Exception]] = []
    async with pair(loop, kind) as (stream, peer), anyio.create_task_group() as group:
        group.start_soon(uses, partial(loop.send, stream, bytes(30_000_000)), met)
        await anyio.wait_all_tasks_blocked()
        with meanwhile(read_raw, peer):  # makes room, and sends nothing
            started = process_time()
            await loop.module.graceful_close(stream, timeout=0.5)
            worked = process_time() - started
        assert worked < 0.25
    assert len(met) == 1
