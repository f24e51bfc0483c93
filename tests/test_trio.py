"""Closes of trio's streams: the reply arrives, nobody is left waiting, and a scope can cancel."""

from __future__ import annotations

import functools
import select
import signal
import socket
import ssl
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from time import monotonic
from types import FrameType
from typing import Any, NamedTuple, ParamSpec

import pytest
import trio
import trio.testing

import descriptors
from certificates import NAME, client_context, server_context
from graceful_close import CloseOutcome, CloseResult, LingerPolicy, get_linger, set_linger
from graceful_close.trio import (
    abortive_close,
    close_all,
    closing,
    graceful_close,
    timed_linger_close,
)
from streams import (
    PATIENCE,
    await_fin,
    await_input,
    connect,
    connect_many,
    fill,
    meanwhile,
    read_all,
    read_and_close,
    reset,
)
from test_tls import (
    is_one_close_notify,
    read_raw_and_close,
    read_tls_and_close,
    records,
    say_goodbye,
)

UPLOAD = 5_000_000
REPLY = b"r" * 65536

KINDS = ["tcp", "unix", "TLS 1.2", "TLS 1.3", "HTTPS"]
TLS = ["TLS 1.2", "TLS 1.3", "HTTPS"]

every_kind = pytest.mark.parametrize("kind", KINDS)
every_tls = pytest.mark.parametrize("kind", TLS)

P = ParamSpec("P")


def in_trio(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run a test in a loop of its own, which may not last for ever."""

    async def watched(*args: P.args, **given: P.kwargs) -> None:
        with trio.fail_after(PATIENCE * 2):
            await test(*args, **given)

    @functools.wraps(test)
    def run(*args: P.args, **given: P.kwargs) -> None:
        trio.run(partial(watched, *args, **given))

    return run


class Pair(NamedTuple):
    """A stream of trio's, and the peer's socket, which blocks."""

    stream: Any
    peer: Any

    @property
    def raw(self) -> Any:
        """The socket under the stream."""
        below = self.stream
        while not isinstance(below, trio.SocketStream):
            below = below.transport_stream
        return below.socket


class StandIn(socket.socket):
    """A socket object that does not own its descriptor."""

    def __init__(self, number: int) -> None:
        super().__init__(fileno=number)

    def __del__(self) -> None:
        self.detach()


def version_of(kind: str) -> ssl.TLSVersion:
    return ssl.TLSVersion.TLSv1_2 if kind == "TLS 1.2" else ssl.TLSVersion.TLSv1_3


def wrap(ours: socket.socket, kind: str = "tcp") -> Any:
    """A stream of a kind, with a handshake yet to come."""
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    if kind not in TLS:
        return stream
    context = server_context(version_of(kind))
    return trio.SSLStream(stream, context, server_side=True, https_compatible=kind == "HTTPS")


def wrap_peer(peer: socket.socket, kind: str) -> Any:
    return client_context(version_of(kind)).wrap_socket(
        peer,
        server_hostname=NAME,
        do_handshake_on_connect=False,
        suppress_ragged_eofs=False,
    )


@asynccontextmanager
async def pair(
    kind: str = "tcp", *, family: str = "tcp4", peer_buffer: int | None = None
) -> AsyncGenerator[Pair, None]:
    """A connection of a kind that has carried a message in both directions."""
    family = "unix" if kind == "unix" else family
    with connect(family, peer_buffer=peer_buffer) as (ours, raw_peer):
        stream, peer = wrap(ours, kind), raw_peer
        if kind in TLS:
            peer = wrap_peer(raw_peer, kind)
            with meanwhile(peer.do_handshake):
                await stream.do_handshake()
        with peer:
            await stream.send_all(b"hello")
            assert peer.recv(5) == b"hello"
            peer.sendall(b"hello")
            assert await stream.receive_some(5) == b"hello"
            yield Pair(stream, peer)


def upload_then_read(peer: socket.socket) -> bytes:
    """A client that reads nothing before it has sent all, as http.client does."""
    peer.settimeout(PATIENCE)
    peer.sendall(b"u" * UPLOAD)
    return read_and_close(peer)


def leave_no_room(stream: Any) -> int:
    """Fill the connection with bytes that no TLS peer could read, until it takes no more."""
    poller = select.poll()
    with StandIn(Pair(stream, None).raw.fileno()) as ours:
        poller.register(ours, select.POLLOUT)
        written = full = 0
        while full < 3:  # times in a row, because what is under way makes room when it arrives
            poller.poll(10)
            more = fill(ours)
            written += more
            full = 0 if more else full + 1
        ours.detach()
    return written


def ends_in_raw_reset(peer: socket.socket) -> bool:
    """Whether the connection, TLS or not, ends in RST rather than FIN."""
    try:
        read_raw_and_close(peer)
    except ConnectionResetError:
        return True
    return False


async def until_it_blocks() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def uses(action: Callable[[], Awaitable[object]], met: list[BaseException]) -> None:
    """Go on until the stream says that it is over."""
    try:
        while True:
            await action()
    except (trio.ClosedResourceError, trio.BrokenResourceError) as error:
        met.append(error)


# --- the point of it all -------------------------------------------------------------------------


@every_kind
@in_trio
async def test_an_early_reply_to_a_large_upload_arrives_whole_every_time(kind: str) -> None:
    for _ in range(5):
        async with pair(kind) as (stream, peer):
            with meanwhile(upload_then_read, peer) as received:
                # A head was read, and more than that has left the kernel.
                assert await stream.receive_some(1000)
                await stream.send_all(REPLY)
                result = await graceful_close(stream, timeout=PATIENCE)
            assert received == [REPLY]
            assert result.outcome is CloseOutcome.PEER_CLOSED
            assert result.clean


@every_kind
@in_trio
async def test_afterwards_the_stream_is_closed_and_the_descriptor_free(kind: str) -> None:
    async with pair(kind) as (stream, peer):
        raw = Pair(stream, peer).raw
        with meanwhile(read_and_close, peer):
            await graceful_close(stream, timeout=PATIENCE)
        assert raw.fileno() == -1
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some(1)
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"x")
        assert (await graceful_close(stream)).outcome is CloseOutcome.ALREADY_CLOSED
        assert (await abortive_close(stream)).outcome is CloseOutcome.ALREADY_CLOSED


@in_trio
async def test_a_socket_of_trios_will_do() -> None:
    async with pair() as (stream, peer):
        peer.sendall(b"x" * 1000)
        await_input(stream.socket)
        await stream.send_all(REPLY)
        with meanwhile(read_and_close, peer) as received:
            result = await graceful_close(stream.socket)
        assert received == [REPLY]
        assert (result.outcome, result.drained) == (CloseOutcome.PEER_CLOSED, 1000)


@every_kind
@in_trio
async def test_delivery_can_be_waited_for_alone(kind: str) -> None:
    async with pair(kind) as (stream, peer):
        await stream.send_all(REPLY)
        result = await timed_linger_close(stream, 0.3)
        # AF_UNIX has no acknowledgements: the peer's FIN is waited for, and does not come.
        seen = CloseOutcome.TIMED_OUT if kind == "unix" else CloseOutcome.DELIVERED
        assert result.outcome is seen
        assert read_all(peer) == REPLY


@every_kind
@in_trio
async def test_a_silent_peer_costs_the_timeout(kind: str) -> None:
    async with pair(kind) as (stream, _peer):
        result = await graceful_close(stream, timeout=0.1)
        assert result.outcome is CloseOutcome.TIMED_OUT
        assert 0.1 <= result.elapsed < PATIENCE


@in_trio
async def test_others_run_meanwhile() -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await trio.sleep(0.001)
            ticks += 1

    async with pair() as (stream, _peer), trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        await graceful_close(stream, timeout=0.2)
        nursery.cancel_scope.cancel()
    assert ticks > 10


class Answer(trio.abc.Instrument):
    """A peer that ends its stream before trio's first look at what has come in."""

    def __init__(self, peer: socket.socket) -> None:
        self._peer = peer

    def before_io_wait(self, timeout: float) -> None:
        del timeout
        self._peer.close()


@in_trio
async def test_a_peer_that_answers_while_others_run_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(descriptor: object) -> None:
        raise AssertionError(f"waited for {descriptor!r}")

    async with pair() as (stream, peer):
        monkeypatch.setattr(trio.lowlevel, "wait_readable", refuse)
        answer = Answer(peer)
        trio.lowlevel.add_instrument(answer)
        result = await graceful_close(stream, timeout=PATIENCE)
        trio.lowlevel.remove_instrument(answer)
    assert (result.outcome, result.unacked) == (CloseOutcome.PEER_CLOSED, 0)


@in_trio
async def test_a_stapled_stream_of_one_stream_twice_is_closed() -> None:
    async with pair() as (stream, peer):
        stapled = trio.StapledStream(stream, stream)
        await stapled.send_all(b"reply")
        with meanwhile(read_and_close, peer) as heard:
            result = await graceful_close(stapled, timeout=PATIENCE)
        assert (result.outcome, heard) == (CloseOutcome.PEER_CLOSED, [b"reply"])
        with pytest.raises(trio.ClosedResourceError):
            await stapled.receive_some()


@in_trio
async def test_a_stapled_stream_of_two_is_refused_and_left_alone() -> None:
    async with pair() as (stream, _), pair() as (other, _):
        with pytest.raises(TypeError, match="StapledStream"):
            await graceful_close(trio.StapledStream(stream, other))
        assert stream.socket.fileno() != -1


# --- TLS -----------------------------------------------------------------------------------------


@every_tls
@in_trio
async def test_one_close_notify_goes_out_and_nobody_waits_for_the_peers(kind: str) -> None:
    async with pair(kind) as (stream, peer):
        with meanwhile(read_raw_and_close, peer) as received:
            result = await graceful_close(stream, timeout=PATIENCE)
        assert is_one_close_notify(received[0], version_of(kind))
        assert result.outcome is CloseOutcome.PEER_CLOSED
        assert (result.notified, result.peer_notified) == (True, None)


@every_tls
@in_trio
async def test_input_that_nobody_has_decrypted_does_not_stop_close_notify(kind: str) -> None:
    async with pair(kind) as (stream, peer):
        for _ in range(3):
            peer.sendall(b"u" * 1000)
        await_input(Pair(stream, peer).raw)
        assert await stream.receive_some(1) == b"u"
        with meanwhile(read_tls_and_close, peer) as received:
            result = await graceful_close(stream, timeout=PATIENCE)
        assert received == [b""]
        assert result.notified


@in_trio
async def test_trios_own_aclose_says_no_close_notify_over_such_input() -> None:
    """Why it is not used. Should this fail one day, so much the better."""
    async with pair("TLS 1.3") as (stream, peer):
        for _ in range(3):
            peer.sendall(b"u" * 1000)
        assert await stream.receive_some(1) == b"u"
        await stream.aclose()
        with pytest.raises(OSError, match=r"violation of protocol|reset"):
            read_tls_and_close(peer)


@every_tls
@in_trio
async def test_a_close_notify_of_the_peers_is_seen(kind: str) -> None:
    async with pair(kind) as (stream, peer):
        say_goodbye(peer)
        assert await stream.receive_some() == b""
        with meanwhile(read_raw_and_close, peer):
            result = await graceful_close(stream, timeout=PATIENCE)
        assert (result.notified, result.peer_notified) == (True, True)


@every_tls
@in_trio
async def test_the_tickets_that_trio_holds_back_go_out_before_close_notify(kind: str) -> None:
    with connect("tcp4") as (ours, raw_peer), wrap_peer(raw_peer, kind) as peer:
        stream = wrap(ours, kind)
        with meanwhile(peer.do_handshake):
            await stream.do_handshake()
        with meanwhile(read_tls_and_close, peer) as received:
            result = await graceful_close(stream, timeout=PATIENCE)
        assert received == [b""]
        assert result.check().notified


@every_tls
@in_trio
async def test_before_the_handshake_there_is_nothing_to_say(kind: str) -> None:
    with connect("tcp4") as (ours, peer):
        stream = wrap(ours, kind)
        with meanwhile(read_and_close, peer) as received:
            result = await graceful_close(stream, timeout=PATIENCE)
        assert received == [b""]
        assert (result.outcome, result.notified) == (CloseOutcome.PEER_CLOSED, None)
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some(1)


@every_tls
@in_trio
async def test_a_handshake_that_another_task_waits_for_ends(kind: str) -> None:
    met: list[BaseException] = []
    with connect("tcp4") as (ours, peer):
        stream = wrap(ours, kind)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(uses, stream.do_handshake, met)
            await until_it_blocks()
            with meanwhile(read_and_close, peer) as received:
                result = await graceful_close(stream, timeout=PATIENCE)
        assert (received, result.notified, len(met)) == ([b""], None, 1)


@every_tls
@in_trio
async def test_a_session_that_is_broken_says_so(kind: str) -> None:
    async with pair(kind, peer_buffer=4096) as (stream, peer):
        with trio.move_on_after(0.05) as scope:
            await stream.send_all(bytes(30_000_000))
        assert scope.cancelled_caught
        with meanwhile(read_raw_and_close, peer):
            result = await graceful_close(stream, timeout=PATIENCE)
        assert (result.outcome, result.notified) == (CloseOutcome.PEER_CLOSED, False)
        assert not result.clean


@in_trio
async def test_a_peer_that_ends_without_close_notify_is_not_taken_for_polite() -> None:
    async with pair("TLS 1.3") as (stream, peer):
        socket.socket.shutdown(peer, socket.SHUT_WR)
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        result = await graceful_close(stream)
        assert (result.outcome, result.notified) == (CloseOutcome.PEER_CLOSED, False)


@in_trio
async def test_after_unwrap_the_connection_is_somebody_elses() -> None:
    async with pair("TLS 1.3") as (stream, peer):
        with meanwhile(peer.unwrap):
            below, _ = await stream.unwrap()
        assert (await graceful_close(stream)).outcome is CloseOutcome.ALREADY_CLOSED
        assert below.socket.fileno() != -1
        await below.aclose()


@in_trio
async def test_tls_over_tls_says_both_goodbyes() -> None:
    with connect("tcp4") as (ours, theirs):
        server, client = (server_context(version_of("")), client_context(version_of("")))
        stream: Any = wrap(ours)
        peer: Any = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
        for _ in range(2):
            stream = trio.SSLStream(stream, server, server_side=True)
            peer = trio.SSLStream(peer, client, server_hostname=NAME)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(peer.do_handshake)
                await stream.do_handshake()
        heard: list[bytes] = []

        async def upload_and_read() -> None:
            await peer.send_all(b"u" * 300_000)
            while data := await peer.receive_some():
                heard.append(data)
            heard.append(await peer.transport_stream.receive_some())
            await trio.aclose_forcefully(peer)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload_and_read)
            await stream.receive_some(10)
            await stream.send_all(b"reply")
            result = await graceful_close(stream, timeout=PATIENCE)
        assert heard == [b"reply", b""]
        assert result.check().notified


# --- close_notify that finds no room -------------------------------------------------------------
# Over AF_UNIX, where a full buffer stays full; TCP probes, and squeezes something in some day.


def send_then_read_raw(peer: ssl.SSLSocket) -> bytes:
    """Raw bytes, because what filled the connection is no TLS."""
    peer.settimeout(PATIENCE)
    socket.socket.sendall(peer, bytes(1_000_000))
    return read_raw_and_close(peer)


@in_trio
async def test_while_close_notify_waits_for_room_the_upload_goes_on() -> None:
    async with pair("TLS 1.2", family="unix") as (stream, peer):
        written = leave_no_room(stream)
        with meanwhile(send_then_read_raw, peer) as received:
            result = await graceful_close(stream, timeout=PATIENCE, idle_timeout=PATIENCE / 2)
        assert is_one_close_notify(received[0][written:], ssl.TLSVersion.TLSv1_2)
        assert result.outcome is CloseOutcome.PEER_CLOSED
        assert (result.drained, result.notified) == (1_000_000, True)


@in_trio
async def test_close_notify_that_finds_no_room_in_time_is_not_claimed() -> None:
    async with pair("TLS 1.2", family="unix") as (stream, _peer):
        leave_no_room(stream)
        result = await graceful_close(stream, timeout=0.2)
        assert (result.outcome, result.notified) == (CloseOutcome.TIMED_OUT, False)
        assert 0.2 <= result.elapsed < PATIENCE
        assert not result.clean


@in_trio
async def test_a_silent_peer_with_no_room_for_close_notify_costs_the_idle_time() -> None:
    async with pair("TLS 1.2", family="unix") as (stream, _peer):
        leave_no_room(stream)
        result = await graceful_close(stream, timeout=PATIENCE, idle_timeout=0.2)
        assert (result.outcome, result.notified) == (CloseOutcome.IDLE_TIMED_OUT, False)
        assert 0.2 <= result.elapsed < PATIENCE


@in_trio
async def test_the_drain_limit_counts_what_came_while_close_notify_waited() -> None:
    async with pair("TLS 1.2", family="unix") as (stream, peer):
        leave_no_room(stream)
        socket.socket.sendall(peer, bytes(50_000))
        result = await graceful_close(stream, timeout=0.5, drain_limit=10_000)
        assert (result.outcome, result.drained) == (CloseOutcome.DRAIN_LIMIT, 10_001)


@in_trio
async def test_a_reset_while_close_notify_waits_is_a_result() -> None:
    async with pair("TLS 1.2", peer_buffer=4096) as (stream, peer):
        leave_no_room(stream)

        async def reset_later() -> None:
            await until_it_blocks()
            reset(peer)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reset_later)
            result = await graceful_close(stream, timeout=PATIENCE)
        assert result.outcome is CloseOutcome.PEER_RESET
        assert isinstance(result.error, ConnectionResetError)


# --- who else uses the stream --------------------------------------------------------------------


@every_kind
@in_trio
async def test_a_task_that_waits_for_input_is_told(kind: str) -> None:
    met: list[BaseException] = []
    async with pair(kind) as (stream, peer), trio.open_nursery() as nursery:
        nursery.start_soon(uses, stream.receive_some, met)
        await until_it_blocks()
        with meanwhile(read_and_close, peer) as received:
            result = await graceful_close(stream, timeout=PATIENCE)
        assert received == [b""]
        assert result.clean
    assert [type(error) for error in met] == [trio.ClosedResourceError]


@every_kind
@in_trio
async def test_a_task_that_waits_for_room_is_told(kind: str) -> None:
    met: list[BaseException] = []
    async with pair(kind, peer_buffer=4096) as (stream, peer), trio.open_nursery() as nursery:
        nursery.start_soon(uses, partial(stream.send_all, bytes(30_000_000)), met)
        await until_it_blocks()
        with meanwhile(read_raw if kind in TLS else read_and_close, peer):
            result = await graceful_close(stream, timeout=PATIENCE)
    assert [type(error) for error in met] == [trio.ClosedResourceError]
    # Its record is cut, and nothing can be said after that.
    assert result.notified is (False if kind in TLS else None)


def read_raw(peer: socket.socket) -> bytes:
    return read_raw_and_close(peer)


@every_kind
@in_trio
async def test_an_abort_tells_them_too(kind: str) -> None:
    met: list[BaseException] = []
    async with pair(kind) as (stream, _peer), trio.open_nursery() as nursery:
        nursery.start_soon(uses, stream.receive_some, met)
        await until_it_blocks()
        await abortive_close(stream)
    assert [type(error) for error in met] == [trio.ClosedResourceError]


# --- abortive_close ------------------------------------------------------------------------------


@every_kind
@in_trio
async def test_an_abort_is_a_reset(kind: str) -> None:
    async with pair(kind) as (stream, peer):
        await stream.send_all(REPLY)
        result = await abortive_close(stream)
        assert result.outcome is CloseOutcome.ABORTED
        assert result.notified is None
        if kind != "unix":
            assert ends_in_raw_reset(peer)
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some(1)


@every_tls
@in_trio
async def test_after_an_abort_no_input_is_left_to_be_read(kind: str) -> None:
    async with pair(kind) as (stream, peer):
        peer.sendall(b"12345")
        assert await stream.receive_some(1) == b"1"
        await abortive_close(stream)
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some(1)


@in_trio
async def test_a_cancelled_abort_has_happened() -> None:
    async with pair() as (stream, peer):
        with trio.CancelScope() as scope:
            scope.cancel()
            await abortive_close(stream)
        assert scope.cancelled_caught
        assert stream.socket.fileno() == -1
        assert ends_in_raw_reset(peer)


@pytest.mark.parametrize("close", [partial(graceful_close, timeout=0.05), abortive_close])
@in_trio
async def test_a_linger_that_somebody_set_holds_nobody_up(close: Any) -> None:
    async with pair(peer_buffer=4096) as (stream, peer):
        leave_no_room(stream)
        set_linger(StandIn(stream.socket.fileno()), LingerPolicy.TIMED, 30)
        started = monotonic()
        await close(stream)
        assert monotonic() - started < PATIENCE / 2
        del peer


# --- cancellation --------------------------------------------------------------------------------


def is_closed(stream: Any) -> bool:
    return bool(Pair(stream, None).raw.fileno() == -1)


CLOSES: dict[str, Callable[[Any], Awaitable[object]]] = {
    "graceful_close": partial(graceful_close, timeout=PATIENCE),
    "timed_linger_close": lambda stream: timed_linger_close(stream, PATIENCE),
    "close_all": lambda stream: close_all([stream], timeout=PATIENCE),
}

every_close = pytest.mark.parametrize("close", CLOSES)


@every_kind
@every_close
@in_trio
async def test_a_cancellation_closes_at_once_wherever_it_comes(kind: str, close: str) -> None:
    """After no turn of the scheduler, after one, and so on until it waits for the peer."""
    for turns in range(12):
        async with pair(kind, peer_buffer=4096) as (stream, _peer):
            leave_no_room(stream)
            async with trio.open_nursery() as nursery:

                async def cancel_later(scope: trio.CancelScope, turns: int = turns) -> None:
                    for _ in range(turns):
                        await trio.lowlevel.cancel_shielded_checkpoint()
                    scope.cancel()

                nursery.start_soon(cancel_later, nursery.cancel_scope)
                await CLOSES[close](stream)
            assert nursery.cancel_scope.cancelled_caught
            assert is_closed(stream)
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some(1)


@every_kind
@every_close
@in_trio
async def test_a_deadline_of_the_callers_cuts_the_wait_short(kind: str, close: str) -> None:
    # A receiver so small that not all is acknowledged before it reads.
    async with pair(kind, peer_buffer=4096) as (stream, _peer):
        leave_no_room(stream)
        with trio.move_on_after(0.1) as scope:
            await CLOSES[close](stream)
        assert scope.cancelled_caught
        assert is_closed(stream)


@every_close
@in_trio
async def test_what_is_raised_is_cancelled_and_no_group(close: str) -> None:
    async with pair("TLS 1.3") as (stream, _peer):
        with trio.CancelScope() as scope:
            scope.cancel()
            with pytest.raises(trio.Cancelled):
                await CLOSES[close](stream)


@every_kind
@in_trio
async def test_a_shield_lets_it_finish_in_a_scope_that_is_cancelled(kind: str) -> None:
    async with pair(kind) as (stream, peer):
        with trio.CancelScope() as scope, meanwhile(read_and_close, peer):
            scope.cancel()
            with trio.CancelScope(shield=True):
                assert (await graceful_close(stream, timeout=PATIENCE)).clean


@pytest.mark.parametrize("restrict", [False, True])
@every_kind
def test_a_keyboard_interrupt_closes_at_once(kind: str, restrict: bool) -> None:
    streams: list[Any] = []

    async def interrupt() -> None:
        await until_it_blocks()
        signal.raise_signal(signal.SIGINT)

    async def main() -> None:
        async with pair(kind) as (stream, _peer):
            streams.append(stream)
            trio.lowlevel.spawn_system_task(interrupt)
            await graceful_close(stream, timeout=PATIENCE)

    with pytest.raises(KeyboardInterrupt):
        trio.run(main, restrict_keyboard_interrupt_to_checkpoints=restrict)
    assert is_closed(streams[0])


@every_tls
@in_trio
async def test_after_a_cancellation_no_input_is_left_to_be_read(kind: str) -> None:
    async with pair(kind) as (stream, peer):
        peer.sendall(b"12345")
        assert await stream.receive_some(1) == b"1"
        with trio.CancelScope() as scope:
            scope.cancel()
            await graceful_close(stream)
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some(1)


@every_close
def test_a_keyboard_interrupt_loses_no_descriptor_on_its_way_to_us(close: str) -> None:
    """The fixture that looks for what is left would find it."""

    def interrupt(frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_name != "detach":
            return None
        if event == "return":
            sys.settrace(before)
            signal.raise_signal(signal.SIGINT)
        return interrupt

    async def main() -> None:
        async with pair() as (stream, _peer):
            sys.settrace(interrupt)
            await CLOSES[close](stream)

    before = sys.gettrace()
    try:
        with pytest.raises(KeyboardInterrupt):
            trio.run(main)
    finally:
        sys.settrace(before)


@in_trio
async def test_every_close_is_a_checkpoint_even_if_there_is_nothing_to_wait_for() -> None:
    for close in (graceful_close, abortive_close, partial(timed_linger_close, seconds=1)):
        async with pair() as (stream, peer):
            peer.close()
            await_fin(stream.socket)
            for _ in range(2):  # the second time it is closed
                with trio.testing.assert_checkpoints():
                    await close(stream)
    with trio.testing.assert_checkpoints():
        assert await close_all([]) == []


# --- what is asked for ---------------------------------------------------------------------------


@contextmanager
def wrong_streams() -> Generator[dict[str, Any], None, None]:
    one, other = trio.testing.memory_stream_pair()
    with trio.socket.socket(type=socket.SOCK_DGRAM) as datagrams, socket.socket() as plain:
        yield {
            "memory": one,
            "stapled": trio.StapledStream(one.send_stream, other.receive_stream),
            "TLS over memory": trio.SSLStream(
                one, server_context(version_of("")), server_side=True
            ),
            "datagrams": datagrams,
            "of the standard library": plain,
            "none": None,
        }


@pytest.mark.parametrize(
    "name",
    ["memory", "stapled", "TLS over memory", "datagrams", "of the standard library", "none"],
)
@in_trio
async def test_what_is_no_stream_of_a_socket_is_refused_before_any_is_touched(
    name: str,
) -> None:
    with wrong_streams() as wrong:
        for close in (graceful_close, abortive_close, partial(timed_linger_close, seconds=1)):
            with pytest.raises(TypeError, match="needed"):
                await close(wrong[name])
        with pytest.raises(TypeError, match="needed"):
            closing(wrong[name])
        async with pair() as (stream, _peer):
            with pytest.raises(TypeError, match=r"streams\[1\]"):
                await close_all([stream, wrong[name]])
            assert not is_closed(stream)
            await stream.aclose()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"timeout": -1}, ValueError),
        ({"idle_timeout": "5"}, TypeError),
        ({"drain_limit": 0.5}, TypeError),
        ({"until": CloseOutcome.ABORTED}, ValueError),
        ({"on_timeout": LingerPolicy.TIMED}, ValueError),
    ],
)
@in_trio
async def test_a_wrong_option_is_refused_before_anything_is_touched(
    options: dict[str, Any], error: type[Exception]
) -> None:
    async with pair() as (stream, _peer):
        with pytest.raises(error):
            await graceful_close(stream, **options)
        with pytest.raises(error):
            await close_all([stream], **options)
        with pytest.raises(error):
            closing(stream, **options)
        assert not is_closed(stream)
        await stream.aclose()


@in_trio
async def test_giving_up_can_be_a_reset() -> None:
    async with pair(peer_buffer=4096) as (stream, peer):
        leave_no_room(stream)
        result = await graceful_close(stream, timeout=0.05, on_timeout=LingerPolicy.ABORT)
        assert result.outcome is CloseOutcome.TIMED_OUT
        assert ends_in_raw_reset(peer)


@every_kind
@every_close
@in_trio
async def test_it_needs_no_descriptor(kind: str, close: str) -> None:
    async with pair(kind) as (stream, peer):
        with meanwhile(read_and_close, peer) as received, descriptors.none_left():
            await CLOSES[close](stream)
        assert received == [b""]


# --- many ----------------------------------------------------------------------------------------


@in_trio
async def test_many_cost_the_deadline_once_and_are_told_in_order() -> None:
    with connect_many(20) as connections:
        streams = [wrap(ours) for ours, _ in connections]
        for _, peer in connections[1::2]:
            peer.close()
        await streams[4].aclose()
        started = monotonic()
        results = await close_all(streams, timeout=0.3)
        assert 0.3 <= monotonic() - started < 0.3 * 20
        assert all(is_closed(stream) for stream in streams)
    outcomes = [result.outcome for result in results]
    assert outcomes[1::2] == [CloseOutcome.PEER_CLOSED] * 10
    assert outcomes.pop(4) is CloseOutcome.ALREADY_CLOSED
    assert (
        outcomes[::2].count(CloseOutcome.TIMED_OUT)
        + outcomes[1::2].count(CloseOutcome.TIMED_OUT)
        == 9
    )


@in_trio
async def test_many_of_every_kind_lose_no_reply() -> None:
    streams: list[Any] = []
    threads: list[Any] = []
    async with AsyncExitStack() as stack:
        for kind in KINDS * 2:
            stream, peer = await stack.enter_async_context(pair(kind))
            threads.append(stack.enter_context(meanwhile(upload_then_read, peer)))
            assert await stream.receive_some(10)
            await stream.send_all(REPLY)
            streams.append(stream)
        results = await close_all(streams, timeout=PATIENCE)
        assert [result.outcome for result in results] == [CloseOutcome.PEER_CLOSED] * 10
        for result, kind in zip(results, KINDS * 2, strict=True):
            assert result.notified is (True if kind in TLS else None)
    assert threads == [[REPLY]] * 10


@in_trio
async def test_one_without_room_for_close_notify_does_not_hold_up_the_others() -> None:
    async with pair("TLS 1.2", family="unix") as slow, pair("TLS 1.2") as quick:
        leave_no_room(slow.stream)
        with meanwhile(read_tls_and_close, quick.peer) as received:
            results = await close_all([slow.stream, quick.stream], timeout=1)
        assert received == [b""]
        assert [result.outcome for result in results] == [
            CloseOutcome.TIMED_OUT,
            CloseOutcome.PEER_CLOSED,
        ]
        assert [result.notified for result in results] == [False, True]
        assert results[1].elapsed < 1


@in_trio
async def test_close_notify_that_has_to_wait_goes_out_among_many() -> None:
    async with pair("TLS 1.2", family="unix") as slow, pair("TLS 1.2") as quick:
        written = leave_no_room(slow.stream)
        with (
            meanwhile(send_then_read_raw, slow.peer) as late,
            meanwhile(read_tls_and_close, quick.peer) as soon,
        ):
            results = await close_all([slow.stream, quick.stream], timeout=PATIENCE)
        assert (soon, len(records(late[0][written:]))) == ([b""], 1)
        assert [result.notified for result in results] == [True, True]
        assert [result.drained for result in results] == [1_000_000, 0]


@in_trio
async def test_a_stream_that_is_there_in_several_forms_is_closed_once() -> None:
    async with pair("TLS 1.3") as (stream, peer):
        below = stream.transport_stream
        with meanwhile(read_tls_and_close, peer) as received:
            results = await close_all([below.socket, stream, below, stream], timeout=PATIENCE)
        assert received == [b""]
        assert len({id(result) for result in results}) == 1
        assert results[0].check().notified


# --- closing -------------------------------------------------------------------------------------


@every_kind
@in_trio
async def test_a_body_that_ends_commits(kind: str) -> None:
    async with pair(kind) as (stream, peer):
        context = closing(stream, timeout=PATIENCE)
        with meanwhile(upload_then_read, peer) as received:
            async with context as same:
                assert same is stream
                assert context.result is None
                await same.send_all(REPLY)
        assert received == [REPLY]
        assert isinstance(context.result, CloseResult)
        assert context.result.clean


@every_kind
@in_trio
async def test_a_body_that_raises_resets(kind: str) -> None:
    async with pair(kind) as (stream, peer):
        context = closing(stream)
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            async with context:
                await stream.send_all(b"half a mess")
                raise ZeroDivisionError
        assert context.result is not None
        assert context.result.outcome is CloseOutcome.ABORTED
        assert kind == "unix" or ends_in_raw_reset(peer)


@every_kind
@in_trio
async def test_a_body_that_is_cancelled_resets(kind: str) -> None:
    async with pair(kind) as (stream, peer):
        context = closing(stream)
        with trio.move_on_after(0.01) as scope:
            async with context:
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert context.result is not None
        assert context.result.outcome is CloseOutcome.ABORTED
        assert kind == "unix" or ends_in_raw_reset(peer)


@in_trio
async def test_in_a_cancelled_scope_the_bodys_own_error_goes_on() -> None:
    async with pair() as (stream, peer):
        with trio.CancelScope() as scope, pytest.raises(LookupError, match="its own"):  # noqa: PT012
            async with closing(stream):
                scope.cancel()
                raise LookupError("its own")
        assert ends_in_raw_reset(peer)


@in_trio
async def test_the_connection_is_left_as_it_was_found() -> None:
    async with pair() as (stream, peer):
        copy = stream.socket.dup()
        await graceful_close(stream, timeout=0.05)
        assert get_linger(StandIn(copy.fileno())).policy is LingerPolicy.BACKGROUND
        copy.close()
        assert read_all(peer) == b""
