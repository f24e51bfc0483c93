"""What is particular to trio's streams: handshakes that are still to come, StapledStream, Ctrl+C.

tests/test_every_loop*.py has what is true on every event loop.
"""

from __future__ import annotations

import signal
import socket
import ssl
import sys
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import pytest
import trio
import trio.testing

from certificates import server_context
from every_loop import (
    EVERY,
    KINDS,
    REPLY,
    TLS,
    StandIn,
    call,
    every_close,
    on,
    pair,
    require_refusal,
    tls_peer,
    uses,
    version_of,
)
from graceful_close import CloseOutcome, LingerPolicy, get_linger
from graceful_close.trio import (
    Reaper,
    abortive_close,
    close_all,
    graceful_close,
    timed_linger_close,
)
from streams import (
    DEADLINE,
    await_fin,
    await_input,
    connect,
    meanwhile,
    read_all,
    read_and_close,
)
from tls_sessions import read_raw_and_close

TRIO = EVERY["trio"]

on_trio = on(["trio"])
every_tls = on(["trio"], TLS)


def before_handshake(ours: socket.socket, kind: str) -> trio.SSLStream[trio.SocketStream]:
    """A server's TLS stream, with a handshake that is still to come."""
    return trio.SSLStream(
        trio.SocketStream(trio.socket.from_stdlib_socket(ours)),
        server_context(version_of(kind)),
        server_side=True,
        https_compatible=kind == "HTTPS",
    )


# --- what can be closed -------------------------------------------------------------------------


@on_trio
async def test_a_socket_of_trio_can_be_closed() -> None:
    async with pair(TRIO) as (stream, peer):
        peer.sendall(b"x" * 1000)
        await_input(stream.socket)
        await stream.send_all(REPLY)
        with meanwhile(read_and_close, peer) as received:
            result = await graceful_close(stream.socket)
        assert received == [REPLY]
        assert (result.outcome, result.drained) == (CloseOutcome.PEER_CLOSED, 1000)


class Answer(trio.abc.Instrument):
    """A peer that ends its stream before trio looks for input."""

    def __init__(self, peer: socket.socket) -> None:
        self._peer = peer

    def before_io_wait(self, timeout: float) -> None:
        del timeout
        self._peer.close()


@on_trio
async def test_a_close_does_not_wait_for_a_peer_that_answers_while_other_tasks_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(descriptor: object) -> None:
        raise AssertionError(f"waited for {descriptor!r}")

    async with pair(TRIO) as (stream, peer):
        monkeypatch.setattr(trio.lowlevel, "wait_readable", refuse)
        answer = Answer(peer)
        trio.lowlevel.add_instrument(answer)
        result = await graceful_close(stream, timeout=DEADLINE)
        trio.lowlevel.remove_instrument(answer)
    assert (result.outcome, result.unacked) == (CloseOutcome.PEER_CLOSED, 0)


@on_trio
async def test_a_stapled_stream_of_one_stream_twice_is_closed() -> None:
    async with pair(TRIO) as (stream, peer):
        stapled = trio.StapledStream(stream, stream)
        await stapled.send_all(b"reply")
        with meanwhile(read_and_close, peer) as heard:
            result = await graceful_close(stapled, timeout=DEADLINE)
        assert (result.outcome, heard) == (CloseOutcome.PEER_CLOSED, [b"reply"])
        with pytest.raises(trio.ClosedResourceError):
            await stapled.receive_some()


@on_trio
async def test_a_stapled_stream_of_two_streams_is_refused_and_not_touched() -> None:
    async with pair(TRIO) as (stream, _), pair(TRIO) as (other, _):
        with pytest.raises(TypeError, match="StapledStream"):
            await graceful_close(trio.StapledStream(stream, other))
        assert stream.socket.fileno() != -1


@on_trio
async def test_a_close_leaves_so_linger_as_it_was() -> None:
    async with pair(TRIO) as (stream, peer):
        copy = stream.socket.dup()
        await graceful_close(stream, timeout=0.05)
        assert get_linger(StandIn(copy.fileno())).policy is LingerPolicy.BACKGROUND
        copy.close()
        assert read_all(peer) == b""


# --- TLS -----------------------------------------------------------------------------------------


@on_trio
async def test_aclose_of_trio_sends_no_close_notify_if_input_is_not_decrypted() -> None:
    """That is why aclose() is not used. If this fails one day, trio has improved."""
    async with pair(TRIO, "TLS 1.3") as (stream, peer):
        for _ in range(3):
            peer.sendall(b"u" * 1000)
        assert await stream.receive_some(1) == b"u"
        await stream.aclose()
        with pytest.raises(OSError, match=r"violation of protocol|unexpected eof|reset"):
            read_and_close(peer)


@every_tls
async def test_the_tickets_that_trio_holds_back_go_out_before_close_notify(kind: str) -> None:
    with connect("tcp4") as (ours, raw_peer), tls_peer(raw_peer, version_of(kind)) as peer:
        stream = before_handshake(ours, kind)
        with meanwhile(peer.do_handshake):
            await stream.do_handshake()
        with meanwhile(read_and_close, peer) as received:
            result = await graceful_close(stream, timeout=DEADLINE)
        assert received == [b""]
        assert result.check().notified


@every_tls
async def test_before_the_handshake_no_close_notify_is_sent(kind: str) -> None:
    with connect("tcp4") as (ours, peer):
        stream = before_handshake(ours, kind)
        with meanwhile(read_and_close, peer) as received:
            result = await graceful_close(stream, timeout=DEADLINE)
        assert received == [b""]
        assert (result.outcome, result.notified) == (CloseOutcome.PEER_CLOSED, None)
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some(1)


@every_tls
async def test_a_task_that_waits_for_a_handshake_is_woken(kind: str) -> None:
    met: list[type[Exception]] = []
    with connect("tcp4") as (ours, peer):
        stream = before_handshake(ours, kind)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(uses, stream.do_handshake, met)
            await trio.testing.wait_all_tasks_blocked()
            with meanwhile(read_and_close, peer) as received:
                result = await graceful_close(stream, timeout=DEADLINE)
        assert (received, result.notified, len(met)) == ([b""], None, 1)


@every_tls
async def test_a_broken_session_sends_no_close_notify_and_is_not_clean(kind: str) -> None:
    async with pair(TRIO, kind, peer_buffer=4096) as (stream, peer):
        with trio.move_on_after(0.05) as scope:
            await stream.send_all(bytes(30_000_000))
        assert scope.cancelled_caught
        with meanwhile(read_raw_and_close, peer):
            result = await graceful_close(stream, timeout=DEADLINE)
        assert (result.outcome, result.notified) == (CloseOutcome.PEER_CLOSED, False)
        assert not result.clean


@on_trio
async def test_after_unwrap_the_connection_is_not_touched() -> None:
    async with pair(TRIO, "TLS 1.3") as (stream, peer):
        with meanwhile(peer.unwrap):
            below, _ = await stream.unwrap()
        assert (await graceful_close(stream)).outcome is CloseOutcome.ALREADY_CLOSED
        assert below.socket.fileno() != -1
        await below.aclose()


# --- cancellation --------------------------------------------------------------------------------


@pytest.mark.parametrize("restrict", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_keyboard_interrupt_closes_immediately(kind: str, restrict: bool) -> None:
    raws: list[Any] = []

    async def interrupt() -> None:
        await trio.testing.wait_all_tasks_blocked()
        signal.raise_signal(signal.SIGINT)

    async def main() -> None:
        async with pair(TRIO, kind) as (stream, _peer):
            raws.append(TRIO.raw(stream))
            trio.lowlevel.spawn_system_task(interrupt)
            await graceful_close(stream, timeout=DEADLINE)

    with pytest.raises(KeyboardInterrupt):
        trio.run(main, restrict_keyboard_interrupt_to_checkpoints=restrict)
    assert raws[0].fileno() == -1


@pytest.mark.parametrize(
    "close", [abortive_close, graceful_close], ids=["abort", "cancellation"]
)
@every_tls
async def test_after_an_abort_or_a_cancellation_no_input_is_left_to_be_read(
    kind: str, close: Any
) -> None:
    async with pair(TRIO, kind) as (stream, peer):
        peer.sendall(b"12345")
        assert await stream.receive_some(1) == b"1"
        with trio.CancelScope() as scope:
            if close is graceful_close:
                scope.cancel()
            await close(stream)
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some(1)


@every_close
def test_a_keyboard_interrupt_after_detach_loses_no_descriptor(close: str) -> None:
    """A fixture fails the test if a descriptor is left."""

    def interrupt(frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_name != "detach":
            return None
        if event == "return":
            sys.settrace(before)
            signal.raise_signal(signal.SIGINT)
        return interrupt

    async def main() -> None:
        async with pair(TRIO) as (stream, _peer):
            sys.settrace(interrupt)
            await call(TRIO, close, stream)

    before = sys.gettrace()
    try:
        with pytest.raises(KeyboardInterrupt):
            trio.run(main)
    finally:
        sys.settrace(before)


@on_trio
async def test_a_close_that_has_nothing_to_wait_for_is_a_full_checkpoint() -> None:
    for close in (graceful_close, abortive_close, partial(timed_linger_close, seconds=1)):
        async with pair(TRIO) as (stream, peer):
            peer.close()
            await_fin(stream.socket)
            for _ in range(2):  # the second time it is closed
                with trio.testing.assert_checkpoints():
                    await close(stream)
    with trio.testing.assert_checkpoints():
        assert await close_all([]) == []


# --- what is refused -------------------------------------------------------------------------------


@contextmanager
def wrong_streams() -> Generator[list[Any], None, None]:
    one, other = trio.testing.memory_stream_pair()
    context = server_context(ssl.TLSVersion.TLSv1_3)
    with trio.socket.socket(type=socket.SOCK_DGRAM) as datagrams, socket.socket() as plain:
        yield [
            one,
            trio.StapledStream(one.send_stream, other.receive_stream),
            trio.SSLStream(one, context, server_side=True),
            datagrams,
            plain,
            None,
        ]


@on_trio
async def test_an_object_that_is_not_a_stream_of_a_socket_is_refused() -> None:
    with wrong_streams() as all_wrong:
        async with pair(TRIO) as (stream, _peer):
            for wrong in all_wrong:
                await require_refusal(TRIO.module, wrong, stream)
            assert stream.socket.fileno() != -1


@pytest.mark.parametrize("many", [False, True])
def test_the_deadline_is_on_the_clock_of_the_run(many: bool) -> None:
    """A clock that jumps when all tasks wait makes the deadline come without a wait."""

    async def test() -> None:
        with connect("tcp4") as (ours, _):
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
            before = trio.current_time()
            result = (
                (await close_all([stream], timeout=1000))[0]
                if many
                else await graceful_close(stream, timeout=1000)
            )
            assert result.outcome is CloseOutcome.TIMED_OUT
            assert result.elapsed == pytest.approx(1000, abs=0.1)
            assert trio.current_time() - before == pytest.approx(1000, abs=0.1)

    trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0))


def test_the_closes_of_a_reaper_end_on_the_clock_of_the_run() -> None:
    async def test() -> None:
        with connect("tcp4") as (ours, _):
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
            async with Reaper(timeout=1000, idle_timeout=None) as reaper:
                reaper.submit(stream)
            assert reaper.stats()[CloseOutcome.TIMED_OUT] == 1
            assert trio.current_time() == pytest.approx(1000, abs=0.1)

    trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0))
