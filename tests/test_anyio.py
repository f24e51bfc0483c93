"""What is particular to anyio's streams: wrappers, and what asyncio's transport under them holds.

tests/test_every_loop*.py has what is true on every event loop.
"""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.streams.stapled
import pytest
from anyio.streams.buffered import BufferedByteStream
from anyio.streams.stapled import StapledByteStream

import descriptors
from every_loop import (
    ANYIO,
    CLOSES,
    REPLY,
    TLS,
    UPLOAD,
    WITH_TRANSPORTS,
    Loop,
    Pair,
    call,
    ends_in_raw_reset,
    on,
    pair,
    require_refusal,
    upload_then_read,
    uses,
)
from graceful_close import CloseOutcome, LingerPolicy
from graceful_close._option_types import OnTimeout
from graceful_close.anyio import abortive_close, close_all, graceful_close
from streams import DEADLINE, connect, meanwhile, read_and_close, reset

on_anyio = on(ANYIO)
with_transports = on(WITH_TRANSPORTS)


@asynccontextmanager
async def full(loop: Loop) -> AsyncGenerator[Pair, None]:
    """A stream whose send() of 30 MB was cancelled: asyncio's transport holds the rest."""
    async with pair(loop, peer_buffer=4096) as (stream, peer):
        with anyio.move_on_after(0.05) as scope:
            await stream.send(bytes(30_000_000))
        assert scope.cancelled_caught
        yield Pair(stream, peer)


@on_anyio
async def test_a_cancelled_send_does_not_prevent_a_graceful_close(loop: Loop) -> None:
    """asyncio's transport holds the data of the cancelled send(); trio has sent a part of the data."""
    async with full(loop) as (stream, peer):
        with meanwhile(upload_then_read, peer) as received:
            result = await graceful_close(stream, timeout=DEADLINE)
        assert result.outcome is CloseOutcome.PEER_CLOSED
        assert 0 < len(received[0]) <= 30_000_000


@with_transports
async def test_what_the_transport_holds_is_flushed(loop: Loop) -> None:
    async with full(loop) as (stream, peer):
        with meanwhile(upload_then_read, peer) as received:
            result = await graceful_close(stream, timeout=DEADLINE)
        assert len(received[0]) == 30_000_000
        assert (result.outcome, result.drained) == (CloseOutcome.PEER_CLOSED, UPLOAD)


@pytest.mark.parametrize("many", [False, True])
@with_transports
async def test_what_cannot_be_flushed_in_time_ends_in_a_reset(loop: Loop, many: bool) -> None:
    async with full(loop) as (stream, peer), pair(loop) as (other, other_peer):
        raw = loop.raw(stream)
        with meanwhile(read_and_close, other_peer):
            if many:
                result, quick = await close_all([stream, other], timeout=0.5)
                assert quick.outcome is CloseOutcome.PEER_CLOSED
                assert quick.elapsed < 0.5
            else:
                result = await graceful_close(stream, timeout=0.5)
                await graceful_close(other)
        assert result.outcome is CloseOutcome.TIMED_OUT
        assert result.elapsed >= 0.5
        assert not result.clean
        assert raw.fileno() == -1
        assert ends_in_raw_reset(peer)


@with_transports
async def test_a_reset_during_the_flush_is_a_result(loop: Loop) -> None:
    async with full(loop) as (stream, peer), anyio.create_task_group() as group:

        async def reset_later() -> None:
            await anyio.wait_all_tasks_blocked()
            reset(peer)

        group.start_soon(reset_later)
        result = await graceful_close(stream, timeout=DEADLINE)
        assert result.outcome is CloseOutcome.PEER_RESET


@with_transports
async def test_what_a_failed_transport_held_is_not_claimed(loop: Loop) -> None:
    async with full(loop) as (stream, peer):
        stream._transport._force_close(MemoryError())  # as after recv() has raised it
        result = await graceful_close(stream, timeout=DEADLINE)
        assert result.error is not None
        assert result.error.errno == errno.ECONNABORTED
        assert result.unacked is None
        assert not result.clean
        assert ends_in_raw_reset(peer)


async def end(stream: Any, *, aborts: bool) -> None:
    if aborts:
        stream._transport.abort()
    else:
        await stream.aclose()


# Before and after the time that a stream has to report that it holds bytes.
@pytest.mark.parametrize("turns", [0, 1, None])
@pytest.mark.parametrize("aborts", [False, True])
@with_transports
async def test_what_another_task_closes_during_the_flush_is_reset(
    loop: Loop, aborts: bool, turns: int | None
) -> None:
    async with full(loop) as (stream, peer), anyio.create_task_group() as group:

        async def close_later() -> None:
            for _ in range(turns or 0):
                await anyio.lowlevel.checkpoint()
            if turns is None:
                await anyio.sleep(0.3)
            await end(stream, aborts=aborts)

        group.start_soon(close_later)
        result = await graceful_close(stream, timeout=DEADLINE)
        assert (result.outcome, result.unacked) == (CloseOutcome.TIMED_OUT, None)
        assert result.error is not None
        assert ends_in_raw_reset(peer)


@pytest.mark.parametrize("aborts", [False, True])
@with_transports
async def test_a_stream_that_held_nothing_ends_gracefully_whoever_closes_it(
    loop: Loop, aborts: bool
) -> None:
    async with pair(loop) as (stream, peer), anyio.create_task_group() as group:
        await stream.send(b"reply")
        group.start_soon(partial(end, stream, aborts=aborts))
        with meanwhile(read_and_close, peer) as received:
            result = await graceful_close(stream, timeout=DEADLINE)
        assert (result.outcome, received) == (CloseOutcome.PEER_CLOSED, [b"reply"])


@with_transports
async def test_a_cancelled_flush_ends_in_a_reset(loop: Loop) -> None:
    async with full(loop) as (stream, peer):
        raw = loop.raw(stream)
        with anyio.move_on_after(0.3) as scope:
            await graceful_close(stream, timeout=DEADLINE)
        assert scope.cancelled_caught
        assert raw.fileno() == -1
        assert ends_in_raw_reset(peer)


@with_transports
async def test_a_reset_that_the_transport_reads_first_is_a_result(loop: Loop) -> None:
    """A transport reads all the time until the first receive()."""
    for turns in range(20):
        with connect("tcp4") as (ours, peer):
            stream = await loop.open(ours)
            await stream.send(b"reply")

            async def reset_later(peer: socket.socket = peer, turns: int = turns) -> None:
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                reset(peer)

            async with anyio.create_task_group() as group:
                group.start_soon(reset_later)
                result = await graceful_close(stream, timeout=DEADLINE)
                # The transport may have closed itself before the call.
                assert result.outcome in {CloseOutcome.PEER_RESET, CloseOutcome.ALREADY_CLOSED}


@with_transports
async def test_a_reset_that_the_transport_reads_during_the_close_is_a_result(
    loop: Loop,
) -> None:
    for _ in range(20):
        with connect("tcp4") as (ours, peer):
            stream = await loop.open(ours)

            async def close(stream: Any = stream) -> None:
                result = await graceful_close(stream, timeout=DEADLINE)
                assert result.outcome is CloseOutcome.PEER_RESET
                assert isinstance(result.error, ConnectionResetError)

            async with anyio.create_task_group() as group:
                group.start_soon(close)
                reset(peer)


@pytest.mark.parametrize("over", ["buffered", "stapled", "both"])
@on_anyio
async def test_a_wrapper_is_closed_with_the_stream_in_it(loop: Loop, over: str) -> None:
    async with pair(loop) as (stream, peer):
        stapled = StapledByteStream(stream, stream)
        wrapper: Any = {
            "buffered": BufferedByteStream(stream),
            "stapled": stapled,
            "both": BufferedByteStream(stapled),
        }[over]
        await wrapper.send(b"reply")
        with meanwhile(read_and_close, peer) as heard:
            result = await graceful_close(wrapper, timeout=DEADLINE)
        assert (result.outcome, heard) == (CloseOutcome.PEER_CLOSED, [b"reply"])
        with pytest.raises(anyio.ClosedResourceError):
            await wrapper.receive()


@on(["anyio on asyncio", "anyio on trio"])
async def test_a_task_that_waits_on_a_unix_stream_is_woken_immediately(loop: Loop) -> None:
    met: list[type[Exception]] = []
    async with pair(loop, "unix") as (stream, peer), anyio.create_task_group() as group:
        group.start_soon(uses, partial(loop.receive, stream), met)
        await anyio.wait_all_tasks_blocked()
        # Longer than any test may last.
        group.start_soon(partial(graceful_close, stream, timeout=DEADLINE * 3))
        while not met:
            await anyio.sleep(0.001)
        peer.close()
    assert met == [anyio.ClosedResourceError]


@pytest.mark.parametrize("policy", [LingerPolicy.BACKGROUND, LingerPolicy.ABORT])
@on(ANYIO)
async def test_a_task_that_waits_on_a_unix_stream_is_woken_once(
    loop: Loop, policy: OnTimeout
) -> None:
    """The loop reports a second wake-up as an error."""
    met: list[type[Exception]] = []
    async with pair(loop, "unix") as (stream, _peer), anyio.create_task_group() as group:
        group.start_soon(uses, partial(loop.receive, stream), met)
        await anyio.wait_all_tasks_blocked()
        await graceful_close(stream, timeout=0.05, on_timeout=policy)
    assert met == [anyio.ClosedResourceError]


@with_transports
async def test_the_result_of_an_abort_does_not_claim_what_the_transport_held(
    loop: Loop,
) -> None:
    async with full(loop) as (stream, _):
        result = await abortive_close(stream)
        assert (result.outcome, result.unacked) == (CloseOutcome.ABORTED, None)


@asynccontextmanager
async def wrong_streams() -> AsyncGenerator[list[Any], None]:
    sender, receiver = anyio.create_memory_object_stream[bytes]()
    async with sender, receiver:
        stapled = anyio.streams.stapled.StapledObjectStream(sender, receiver)
        datagrams = await anyio.create_udp_socket(local_host="127.0.0.1")
        async with datagrams:
            yield [sender, stapled, datagrams, socket.socket, None]


@on_anyio
async def test_an_object_that_is_not_a_stream_of_a_socket_is_refused(loop: Loop) -> None:
    async with wrong_streams() as all_wrong, pair(loop) as (stream, _peer):
        for wrong in all_wrong:
            await require_refusal(loop.module, wrong, stream)
        assert loop.raw(stream).fileno() != -1


NO_DESCRIPTOR = "open files"


@with_transports
async def test_without_a_descriptor_for_the_dup_an_abort_is_a_reset(loop: Loop) -> None:
    async with pair(loop) as (stream, peer):
        raw = loop.raw(stream)
        with descriptors.none_left(), pytest.raises(OSError, match=NO_DESCRIPTOR) as raised:
            await abortive_close(stream)
        assert raised.value.errno == errno.EMFILE
        assert raw.fileno() == -1
        assert ends_in_raw_reset(peer)


@pytest.mark.parametrize("close", CLOSES)
@on(WITH_TRANSPORTS, ("tcp", *TLS))
async def test_without_a_descriptor_for_the_dup_the_reply_arrives(
    loop: Loop, kind: str, close: str
) -> None:
    async with pair(loop, kind) as (stream, peer):
        raw = loop.raw(stream)
        await loop.send(stream, REPLY)
        with meanwhile(read_and_close, peer) as received, descriptors.none_left():
            with pytest.raises(OSError, match=NO_DESCRIPTOR) as raised:
                await call(loop, close, stream)
        assert raised.value.errno == errno.EMFILE
        assert raw.fileno() == -1
        assert received == [REPLY]


@pytest.mark.parametrize("close", CLOSES)
@with_transports
async def test_without_a_descriptor_what_the_transport_holds_is_flushed(
    loop: Loop, close: str
) -> None:
    async with full(loop) as (stream, peer):
        with meanwhile(read_and_close, peer) as received, descriptors.none_left():
            with pytest.raises(OSError, match=NO_DESCRIPTOR):
                await call(loop, close, stream)
        assert len(received[0]) == 30_000_000


@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.parametrize("many", [False, True])
@with_transports
async def test_without_a_descriptor_what_is_not_flushed_in_time_ends_in_a_reset(
    loop: Loop, many: bool, cancelled: bool
) -> None:
    async with full(loop) as (stream, peer), full(loop) as (other, other_peer):
        timeout, patience = (DEADLINE, 0.1) if cancelled else (0.1, DEADLINE)
        ends = [(stream, peer), (other, other_peer)] if many else [(stream, peer)]
        raws = [loop.raw(each) for each, _ in ends]
        with descriptors.none_left(), anyio.move_on_after(patience) as scope:
            with suppress(OSError):
                if many:
                    await close_all([stream, other], timeout=timeout)
                else:
                    await graceful_close(stream, timeout=timeout)
        assert scope.cancelled_caught is cancelled
        assert [raw.fileno() for raw in raws] == [-1] * len(ends)
        assert all(ends_in_raw_reset(each) for _, each in ends)


@with_transports
async def test_more_streams_than_free_descriptors_close_in_turns(loop: Loop) -> None:
    async with AsyncExitStack() as stack:
        ends = [await stack.enter_async_context(pair(loop)) for _ in range(3)]
        readers = [stack.enter_context(meanwhile(read_and_close, end.peer)) for end in ends]
        for end in ends:
            await loop.send(end.stream, REPLY)
        with descriptors.none_left(but=2):
            results = await close_all([end.stream for end in ends], timeout=DEADLINE)
        assert [result.outcome for result in results] == [CloseOutcome.PEER_CLOSED] * 3
    assert readers == [[REPLY]] * 3


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("close", ["graceful_close(stream)", "close_all([stream])"])
def test_the_first_close_without_a_descriptor_to_load_a_module_closes_the_stream(
    backend: str, close: str
) -> None:
    code = f"""
import anyio, socket
import graceful_close.anyio
from anyio.abc import SocketStream
from descriptors import none_left
from graceful_close.anyio import close_all, graceful_close
async def main():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        stream = await SocketStream.from_socket(listener.accept()[0])
    await stream.send(b"reply")
    with none_left():
        try:
            await {close}
        except (OSError, ImportError) as error:
            print("failed")
    peer.settimeout(5)
    print(peer.recv(100), peer.recv(100))
anyio.run(main, backend={backend!r})
"""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    assert ran.stdout.split() == ["failed", "b'reply'", "b''"]
