"""One connection on every event loop: the reply arrives, the close ends in time, an abort is a reset."""

from __future__ import annotations

import socket
from time import monotonic
from typing import Any

import anyio
import pytest

import descriptors
import graceful_close.asyncio
from every_loop import (
    EVERY,
    KINDS,
    ON_TRIO,
    REPLY,
    TLS,
    TRIO_AND_ANYIO,
    Loop,
    StandIn,
    call,
    ends_in_raw_reset,
    every_close,
    every_kind,
    in_thread,
    leave_no_room,
    on,
    on_every_loop,
    pair,
    upload_then_read,
)
from graceful_close import CloseOutcome, CloseResult, LingerPolicy, set_linger
from streams import DEADLINE, await_reset, meanwhile, read_all, read_and_close, reset

on_every_kind_of_tcp = on(EVERY, ["tcp", *TLS])

# --- graceful_close and timed_linger_close -------------------------------------------------------


@every_kind
async def test_an_early_reply_to_a_large_upload_arrives_complete_every_time(
    loop: Loop, kind: str
) -> None:
    for _ in range(5):
        async with pair(loop, kind) as (stream, peer):
            with meanwhile(upload_then_read, peer) as received:
                # A head was read, and more than that has left the kernel.
                assert await loop.receive(stream, 1000)
                await loop.send(stream, REPLY)
                result = await loop.module.graceful_close(stream, timeout=DEADLINE)
            assert received == [REPLY]
            assert result.outcome is CloseOutcome.PEER_CLOSED
            assert result.clean


@every_kind
async def test_after_the_close_the_stream_is_closed_and_the_descriptor_is_free(
    loop: Loop, kind: str
) -> None:
    async with pair(loop, kind) as (stream, peer):
        raw = loop.raw(stream)
        with meanwhile(read_and_close, peer) as received:
            await loop.module.graceful_close(stream, timeout=DEADLINE)
        assert raw.fileno() == -1
        assert received == [b""]
        await loop.require_closed(stream)
        for close in (loop.module.graceful_close, loop.module.abortive_close):
            assert (await close(stream)).outcome is CloseOutcome.ALREADY_CLOSED


@every_kind
async def test_timed_linger_close_ends_with_the_acknowledgement(loop: Loop, kind: str) -> None:
    async with pair(loop, kind) as (stream, peer):
        await loop.send(stream, REPLY)
        # AF_UNIX has no acknowledgements: the peer's FIN is waited for, and does not come.
        seconds, outcome = (
            (0.1, CloseOutcome.TIMED_OUT)
            if kind == "unix"
            else (DEADLINE, CloseOutcome.DELIVERED)
        )
        result = await loop.module.timed_linger_close(stream, seconds)
        assert result.outcome is outcome
        assert kind == "unix" or result.unacked == 0
        assert result.elapsed < DEADLINE / 2
        assert await in_thread(read_all, peer) == REPLY


@every_kind
async def test_a_timeout_of_zero_sends_the_fin_and_closes(loop: Loop, kind: str) -> None:
    async with pair(loop, kind) as (stream, peer):
        raw = loop.raw(stream)
        await loop.send(stream, b"reply")
        result = await loop.module.graceful_close(stream, timeout=0)
        assert result.outcome is CloseOutcome.TIMED_OUT
        assert result.notified is (True if kind in TLS else None)
        assert raw.fileno() == -1
        # PyPy's ssl may raise an error of our session in the next call of this thread.
        assert await in_thread(read_and_close, peer) == b"reply"


@on_every_loop
async def test_other_tasks_run_while_a_close_waits(loop: Loop) -> None:
    async with pair(loop) as (stream, peer), anyio.create_task_group() as group:

        async def answer() -> None:
            await in_thread(read_and_close, peer)  # to the FIN, which the close has sent

        group.start_soon(answer)
        result = await loop.module.graceful_close(stream, timeout=DEADLINE)
        assert result.outcome is CloseOutcome.PEER_CLOSED


@on_every_kind_of_tcp
async def test_a_reset_while_the_close_drains_is_a_result(loop: Loop, kind: str) -> None:
    def read_and_reset(peer: socket.socket) -> None:
        read_all(peer)  # with TLS, to close_notify: the FIN follows
        reset(peer)

    async with pair(loop, kind) as (stream, peer):
        raw = loop.raw(stream)
        with meanwhile(read_and_reset, peer):
            result = await loop.module.graceful_close(stream, timeout=DEADLINE)
        assert result.outcome is CloseOutcome.PEER_RESET
        assert raw.fileno() == -1


@on_every_loop
async def test_the_result_of_a_reset_does_not_mention_tls_without_tls(loop: Loop) -> None:
    async with pair(loop) as (stream, peer):
        reset(peer)
        await_reset(StandIn(loop.raw(stream).fileno()))
        result = await loop.module.graceful_close(stream, timeout=DEADLINE)
        assert (result.outcome, result.notified) == (CloseOutcome.PEER_RESET, None)


@on_every_loop
async def test_on_timeout_abort_ends_in_a_reset(loop: Loop) -> None:
    async with pair(loop, peer_buffer=4096) as (stream, peer):
        leave_no_room(loop.raw(stream))
        result = await loop.module.graceful_close(
            stream, timeout=0.05, on_timeout=LingerPolicy.ABORT
        )
        assert result.outcome is CloseOutcome.TIMED_OUT
        assert ends_in_raw_reset(peer)


@pytest.mark.parametrize("close", ["graceful_close", "abortive_close"])
@on(TRIO_AND_ANYIO)
async def test_a_linger_time_on_the_socket_does_not_delay_a_close(
    loop: Loop, close: str
) -> None:
    async with pair(loop, peer_buffer=4096) as (stream, _peer):
        raw = loop.raw(stream)
        leave_no_room(raw)
        set_linger(StandIn(raw.fileno()), LingerPolicy.TIMED, 30)
        started = monotonic()
        options = {"timeout": 0.05} if close == "graceful_close" else {}
        await getattr(loop.module, close)(stream, **options)
        assert monotonic() - started < DEADLINE / 2


@every_close
@on(ON_TRIO, KINDS)
async def test_a_close_on_trio_needs_no_descriptor(loop: Loop, kind: str, close: str) -> None:
    async with pair(loop, kind) as (stream, peer):
        with meanwhile(read_and_close, peer) as received, descriptors.none_left():
            await call(loop, close, stream)
        assert received == [b""]


@on(ON_TRIO)
async def test_a_close_that_was_cancelled_without_descriptors_does_not_affect_the_next(
    loop: Loop,
) -> None:
    async with pair(loop) as (first, _), pair(loop) as (second, _):
        with anyio.move_on_after(0.05), descriptors.none_left():
            await loop.module.graceful_close(first, timeout=DEADLINE)
        result = await loop.module.graceful_close(second, timeout=0.05)
        assert result.outcome is CloseOutcome.TIMED_OUT


# --- abortive_close ------------------------------------------------------------------------------


@every_kind
async def test_an_abort_is_a_reset(loop: Loop, kind: str) -> None:
    async with pair(loop, kind) as (stream, peer):
        raw = loop.raw(stream)
        await loop.send(stream, b"reply")
        result = await loop.module.abortive_close(stream)
        assert (result.outcome, result.notified) == (CloseOutcome.ABORTED, None)
        assert raw.fileno() == -1
        if kind == "unix":
            assert read_all(peer) == b"reply"
        else:
            assert ends_in_raw_reset(peer)
        await loop.require_closed(stream)


# --- closing -------------------------------------------------------------------------------------


@every_kind
async def test_closing_commits_when_the_body_ends(loop: Loop, kind: str) -> None:
    async with pair(loop, kind) as (stream, peer):
        context = loop.module.closing(stream, timeout=DEADLINE)
        with meanwhile(upload_then_read, peer) as received:
            async with context as same:
                assert same is stream
                assert context.result is None
                await loop.send(same, REPLY)
        assert received == [REPLY]
        assert isinstance(context.result, CloseResult)
        assert context.result.outcome is CloseOutcome.PEER_CLOSED
        assert context.result.clean


@every_kind
async def test_closing_resets_when_the_body_raises(loop: Loop, kind: str) -> None:
    async with pair(loop, kind) as (stream, peer):
        raw = loop.raw(stream)
        context = loop.module.closing(stream)
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            async with context:
                await loop.send(stream, b"half of a reply")
                raise ZeroDivisionError
        assert raw.fileno() == -1
        assert context.result.outcome is CloseOutcome.ABORTED
        assert kind == "unix" or ends_in_raw_reset(peer)


@every_kind
async def test_closing_resets_when_the_body_is_cancelled(loop: Loop, kind: str) -> None:
    async with pair(loop, kind) as (stream, peer):
        raw = loop.raw(stream)
        context = loop.module.closing(stream)
        with anyio.CancelScope() as scope:
            async with context:
                scope.cancel()
                await loop.receive(stream)
        assert scope.cancelled_caught
        assert raw.fileno() == -1
        # On asyncio, anyio also cancels the abort, which has happened but returns no result then.
        assert context.result is None or context.result.outcome is CloseOutcome.ABORTED
        assert context.result is not None or loop.module is graceful_close.asyncio
        assert kind == "unix" or ends_in_raw_reset(peer)


@on_every_loop
async def test_in_a_cancelled_scope_the_error_of_the_body_propagates(loop: Loop) -> None:
    async with pair(loop) as (stream, peer):
        with anyio.CancelScope() as scope, pytest.raises(LookupError, match="its own"):  # noqa: PT012
            async with loop.module.closing(stream):
                scope.cancel()
                raise LookupError("its own")
        assert ends_in_raw_reset(peer)


# --- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"timeout": -1}, ValueError),
        ({"idle_timeout": "5"}, TypeError),
        ({"drain_limit": 0.5}, TypeError),
        ({"drain_limit": "9"}, TypeError),
        ({"until": CloseOutcome.ABORTED}, ValueError),
        ({"on_timeout": LingerPolicy.TIMED}, ValueError),
    ],
)
@on_every_loop
async def test_a_wrong_option_is_refused_before_the_stream_is_touched(
    loop: Loop, options: dict[str, Any], error: type[Exception]
) -> None:
    named = next(iter(options))
    async with pair(loop) as (stream, peer):
        with pytest.raises(error, match=named):
            await loop.module.graceful_close(stream, **options)
        with pytest.raises(error, match=named):
            await loop.module.close_all([stream], **options)
        with pytest.raises(error, match=named):
            loop.module.closing(stream, **options)
        with pytest.raises(ValueError, match="seconds"):
            await loop.module.timed_linger_close(stream, -1)
        await loop.send(stream, b"still open")
        assert peer.recv(10) == b"still open"
