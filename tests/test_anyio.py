"""Closes of anyio's streams, on asyncio, on uvloop and on trio."""

from __future__ import annotations

import asyncio
import errno
import functools
import inspect
import select
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from time import monotonic, process_time
from typing import Any, NamedTuple

import anyio
import anyio.lowlevel
import anyio.streams.stapled
import pytest
from anyio.abc import SocketAttribute, SocketStream, UNIXSocketStream
from anyio.streams.buffered import BufferedByteStream
from anyio.streams.stapled import StapledByteStream
from anyio.streams.tls import TLSStream

import descriptors
from certificates import NAME, client_context, server_context
from event_loops import LOOPS
from graceful_close import CloseOutcome, CloseResult, LingerPolicy, set_linger
from graceful_close.anyio import (
    abortive_close,
    close_all,
    closing,
    graceful_close,
    timed_linger_close,
)
from streams import (
    PATIENCE,
    await_reset,
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

BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {"debug": True}),
    **{name: ("asyncio", {"use_uvloop": True}) for name in LOOPS if name == "uvloop"},
    "trio": ("trio", {}),
}

KINDS = ["tcp", "unix", "TLS 1.2", "TLS 1.3", "HTTPS"]
TLS = ["TLS 1.2", "TLS 1.3", "HTTPS"]

every_kind = pytest.mark.parametrize("kind", KINDS)
every_tls = pytest.mark.parametrize("kind", TLS)

Test = Callable[..., Coroutine[Any, Any, None]]


def in_every_backend(test: Test) -> Callable[..., None]:
    """Run a test on each of anyio's backends, where it may not last for ever."""
    return on(*BACKENDS)(test)


def on(*names: str) -> Callable[[Test], Callable[..., None]]:
    """Run a test on some of them."""

    def decorate(test: Test) -> Callable[..., None]:
        async def watched(**given: Any) -> None:
            complaints: list[dict[str, Any]] = []
            with suppress(RuntimeError):  # trio
                loop = asyncio.get_running_loop()
                loop.set_exception_handler(lambda _, context: complaints.append(context))
            with anyio.fail_after(PATIENCE * 2):
                await test(**given)
            assert complaints == []

        @pytest.mark.parametrize("backend", names)
        @functools.wraps(test)
        def run(backend: str, **given: Any) -> None:
            name, options = BACKENDS[backend]
            anyio.run(partial(watched, **given), backend=name, backend_options=options)

        own = inspect.signature(test)
        by_backend = inspect.Parameter("backend", inspect.Parameter.KEYWORD_ONLY)
        parameters = [*own.parameters.values(), by_backend]
        vars(run)["__signature__"] = own.replace(parameters=parameters)
        decorated: Callable[..., None] = run
        return decorated

    return decorate


class Pair(NamedTuple):
    """A stream of anyio's, and the peer's socket, which blocks."""

    stream: Any
    peer: Any


def version_of(kind: str) -> ssl.TLSVersion:
    return ssl.TLSVersion.TLSv1_2 if kind == "TLS 1.2" else ssl.TLSVersion.TLSv1_3


@asynccontextmanager
async def pair(
    kind: str = "tcp", *, family: str = "tcp4", peer_buffer: int | None = None
) -> AsyncGenerator[Pair, None]:
    """A connection of a kind that has carried a message in both directions."""
    family = "unix" if kind == "unix" else family
    with connect(family, peer_buffer=peer_buffer) as (ours, raw_peer):
        stream: Any
        if family == "unix":
            stream = await UNIXSocketStream.from_socket(ours)
        else:
            stream = await SocketStream.from_socket(ours)
        peer: socket.socket = raw_peer
        if kind in TLS:
            context = server_context(version_of(kind))
            peer = client_context(version_of(kind)).wrap_socket(
                raw_peer,
                server_hostname=NAME,
                do_handshake_on_connect=False,
                suppress_ragged_eofs=False,
            )
            with meanwhile(peer.do_handshake):
                stream = await TLSStream.wrap(
                    stream,
                    ssl_context=context,
                    server_side=True,
                    standard_compatible=kind != "HTTPS",
                )
        with peer:
            await stream.send(b"hello")
            assert peer.recv(5) == b"hello"
            peer.sendall(b"hello")
            assert await stream.receive(5) == b"hello"
            yield Pair(stream, peer)


def raw_of(stream: Any) -> Any:
    return stream.extra(SocketAttribute.raw_socket)


class StandIn(socket.socket):
    """A socket object that does not own its descriptor."""

    def __init__(self, number: int) -> None:
        super().__init__(fileno=number)

    def __del__(self) -> None:
        self.detach()


def leave_no_room(stream: Any) -> int:
    """Fill the connection with bytes that no TLS peer could read, until it takes no more."""
    poller = select.poll()
    with StandIn(raw_of(stream).fileno()) as ours:
        poller.register(ours, select.POLLOUT)
        written = full = 0
        while full < 3:  # times in a row, because what is under way makes room when it arrives
            poller.poll(10)
            more = fill(ours)
            written += more
            full = 0 if more else full + 1
        ours.detach()
    return written


def upload_then_read(peer: socket.socket) -> bytes:
    """A client that reads nothing before it has sent all, as http.client does."""
    peer.settimeout(PATIENCE)
    peer.sendall(b"u" * UPLOAD)
    return read_and_close(peer)


def ends_in_raw_reset(peer: socket.socket) -> bool:
    """Whether the connection, TLS or not, ends in RST rather than FIN."""
    try:
        read_raw_and_close(peer)
    except ConnectionResetError:
        return True
    return False


async def uses(action: Callable[[], Awaitable[object]], met: list[BaseException]) -> None:
    """Go on until the stream says that it is over."""
    try:
        while True:
            await action()
    except (anyio.ClosedResourceError, anyio.BrokenResourceError, anyio.EndOfStream) as error:
        met.append(error)


# --- the point of it all -------------------------------------------------------------------------


@every_kind
@in_every_backend
async def test_an_early_reply_to_a_large_upload_arrives_whole_every_time(kind: str) -> None:
    for _ in range(5):
        async with pair(kind) as (stream, peer):
            with meanwhile(upload_then_read, peer) as received:
                # A head was read, and more than that has left the kernel.
                assert await stream.receive(1000)
                await stream.send(REPLY)
                result = await graceful_close(stream, timeout=PATIENCE)
            assert received == [REPLY]
            assert result.outcome is CloseOutcome.PEER_CLOSED
            assert result.clean


@every_kind
@in_every_backend
async def test_afterwards_the_stream_is_closed_and_the_descriptor_free(kind: str) -> None:
    async with pair(kind) as (stream, peer):
        raw = raw_of(stream)
        with meanwhile(read_and_close, peer):
            await graceful_close(stream, timeout=PATIENCE)
        assert raw.fileno() == -1
        with pytest.raises(anyio.ClosedResourceError):
            await stream.receive(1)
        assert (await graceful_close(stream)).outcome is CloseOutcome.ALREADY_CLOSED
        assert (await abortive_close(stream)).outcome is CloseOutcome.ALREADY_CLOSED


@every_kind
@in_every_backend
async def test_a_silent_peer_costs_the_timeout(kind: str) -> None:
    async with pair(kind) as (stream, _peer):
        result = await graceful_close(stream, timeout=0.1)
        assert result.outcome is CloseOutcome.TIMED_OUT
        assert 0.1 <= result.elapsed < PATIENCE


@every_kind
@in_every_backend
async def test_with_no_time_the_fin_goes_out_and_all_is_closed(kind: str) -> None:
    async with pair(kind) as (stream, peer):
        raw = raw_of(stream)
        await graceful_close(stream, timeout=0)
        assert raw.fileno() == -1
        assert (read_tls_and_close if kind in TLS else read_and_close)(peer) == b""


@every_kind
@in_every_backend
async def test_delivery_can_be_waited_for_alone(kind: str) -> None:
    async with pair(kind) as (stream, peer):
        await stream.send(REPLY)
        result = await timed_linger_close(stream, 0.3)
        # AF_UNIX has no acknowledgements: the peer's FIN is waited for, and does not come.
        seen = CloseOutcome.TIMED_OUT if kind == "unix" else CloseOutcome.DELIVERED
        assert result.outcome is seen
        assert read_all(peer) == REPLY


@in_every_backend
async def test_a_send_that_was_cancelled_is_finished_or_cut_in_the_open() -> None:
    """asyncio's transport has kept what a send() was cancelled over; trio sent a part."""
    async with pair(peer_buffer=4096) as (stream, peer):
        with anyio.move_on_after(0.05) as scope:
            await stream.send(bytes(30_000_000))
        assert scope.cancelled_caught
        with meanwhile(upload_then_read, peer) as received:
            result = await graceful_close(stream, timeout=PATIENCE)
        assert result.outcome is CloseOutcome.PEER_CLOSED
        assert 0 < len(received[0]) <= 30_000_000


@on("asyncio", "uvloop")
async def test_what_the_transport_has_kept_is_flushed() -> None:
    async with pair(peer_buffer=4096) as (stream, peer):
        with anyio.move_on_after(0.05):
            await stream.send(bytes(30_000_000))
        with meanwhile(upload_then_read, peer) as received:
            result = await graceful_close(stream, timeout=PATIENCE)
        assert len(received[0]) == 30_000_000
        assert (result.outcome, result.drained) == (CloseOutcome.PEER_CLOSED, UPLOAD)


@pytest.mark.parametrize("many", [False, True])
@on("asyncio", "uvloop")
async def test_what_cannot_be_flushed_in_time_ends_in_a_reset(many: bool) -> None:
    async with pair(peer_buffer=4096) as (stream, peer), pair() as (other, other_peer):
        raw = raw_of(stream)
        with anyio.move_on_after(0.05):
            await stream.send(bytes(30_000_000))
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


@on("asyncio", "uvloop")
async def test_a_reset_while_it_is_flushed_is_a_result() -> None:
    async with pair(peer_buffer=4096) as (stream, peer), anyio.create_task_group() as group:
        with anyio.move_on_after(0.05):
            await stream.send(bytes(30_000_000))

        async def reset_later() -> None:
            await anyio.wait_all_tasks_blocked()
            set_linger(peer, LingerPolicy.ABORT)
            peer.close()

        group.start_soon(reset_later)
        result = await graceful_close(stream, timeout=PATIENCE)
        assert result.outcome is CloseOutcome.PEER_RESET


@on("asyncio", "uvloop")
async def test_a_cancelled_flush_ends_in_a_reset() -> None:
    async with pair(peer_buffer=4096) as (stream, peer):
        with anyio.move_on_after(0.05):
            await stream.send(bytes(30_000_000))
        raw = raw_of(stream)
        with anyio.move_on_after(0.3) as scope:
            await graceful_close(stream, timeout=PATIENCE)
        assert scope.cancelled_caught
        assert raw.fileno() == -1
        assert ends_in_raw_reset(peer)


@on("asyncio", "uvloop")
async def test_a_reset_that_the_transport_meets_first_is_a_result_too() -> None:
    """A transport that nobody has received from reads all the time."""
    for turns in range(20):
        with connect("tcp4") as (ours, peer):
            stream = await SocketStream.from_socket(ours)
            await stream.send(b"reply")

            async def reset_later(peer: socket.socket = peer, turns: int = turns) -> None:
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                set_linger(peer, LingerPolicy.ABORT)
                peer.close()

            async with anyio.create_task_group() as group:
                group.start_soon(reset_later)
                result = await graceful_close(stream, timeout=PATIENCE)
                # With none of ours left to do, it can be over before the call.
                assert result.outcome in {CloseOutcome.PEER_RESET, CloseOutcome.ALREADY_CLOSED}


@on("asyncio", "uvloop", "trio")
async def test_a_reset_says_nothing_of_tls_where_there_is_none() -> None:
    async with pair() as (stream, peer):
        with StandIn(raw_of(stream).fileno()) as ours:
            reset(peer)
            await_reset(ours)
            ours.detach()
        result = await graceful_close(stream, timeout=PATIENCE)
        assert result.outcome is CloseOutcome.PEER_RESET
        assert result.notified is None


@pytest.mark.parametrize("over", ["buffered", "stapled", "both"])
@on("asyncio", "uvloop", "trio")
async def test_a_wrapper_is_closed_with_what_is_in_it(over: str) -> None:
    async with pair() as (stream, peer):
        stapled = StapledByteStream(stream, stream)
        wrapper: Any = {
            "buffered": BufferedByteStream(stream),
            "stapled": stapled,
            "both": BufferedByteStream(stapled),
        }[over]
        await wrapper.send(b"reply")
        with meanwhile(read_and_close, peer) as heard:
            result = await graceful_close(wrapper, timeout=PATIENCE)
        assert (result.outcome, heard) == (CloseOutcome.PEER_CLOSED, [b"reply"])
        with pytest.raises(anyio.ClosedResourceError):
            await wrapper.receive()


# --- TLS -----------------------------------------------------------------------------------------


@every_tls
@in_every_backend
async def test_one_close_notify_goes_out_and_nobody_waits_for_the_peers(kind: str) -> None:
    async with pair(kind) as (stream, peer):
        with meanwhile(read_raw_and_close, peer) as received:
            result = await graceful_close(stream, timeout=PATIENCE)
        assert is_one_close_notify(received[0], version_of(kind))
        assert result.outcome is CloseOutcome.PEER_CLOSED
        assert (result.notified, result.peer_notified) == (True, None)


@every_tls
@in_every_backend
async def test_input_that_nobody_has_decrypted_does_not_stop_close_notify(kind: str) -> None:
    async with pair(kind) as (stream, peer):
        for _ in range(3):
            peer.sendall(b"u" * 1000)
        assert await stream.receive(1) == b"u"
        with meanwhile(read_tls_and_close, peer) as received:
            result = await graceful_close(stream, timeout=PATIENCE)
        assert received == [b""]
        assert result.notified


@every_tls
@in_every_backend
async def test_a_close_notify_of_the_peers_is_seen(kind: str) -> None:
    async with pair(kind) as (stream, peer):
        say_goodbye(peer)
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()
        with meanwhile(read_raw_and_close, peer):
            result = await graceful_close(stream, timeout=PATIENCE)
        assert (result.notified, result.peer_notified) == (True, True)


@every_tls
@in_every_backend
async def test_a_peer_that_ends_without_close_notify_is_not_taken_for_polite(kind: str) -> None:
    async with pair(kind) as (stream, peer):
        socket.socket.shutdown(peer, socket.SHUT_WR)
        with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)):
            await stream.receive()
        with meanwhile(read_raw_and_close, peer):
            result = await graceful_close(stream, timeout=PATIENCE)
        assert result.notified is False
        assert not result.peer_notified


@in_every_backend
async def test_tls_over_tls_says_both_goodbyes() -> None:
    with connect("tcp4") as (ours, theirs):
        server, client = server_context(version_of("")), client_context(version_of(""))
        stream: Any = await SocketStream.from_socket(ours)
        peer: Any = await SocketStream.from_socket(theirs)

        async def wrap_peer() -> None:
            nonlocal peer
            peer = await TLSStream.wrap(peer, ssl_context=client, hostname=NAME)

        for _ in range(2):
            async with anyio.create_task_group() as group:
                group.start_soon(wrap_peer)
                stream = await TLSStream.wrap(stream, ssl_context=server, server_side=True)
        heard: list[bytes] = []

        async def upload_and_read() -> None:
            await peer.send(b"u" * 300_000)
            heard.append(await peer.receive())
            for layer in (peer, peer.transport_stream):
                with pytest.raises(anyio.EndOfStream):
                    await layer.receive()
            await peer.transport_stream.transport_stream.aclose()

        async with anyio.create_task_group() as group:
            group.start_soon(upload_and_read)
            await stream.receive(10)
            await stream.send(b"reply")
            assert (await graceful_close(stream, timeout=PATIENCE)).check().notified
        assert heard == [b"reply"]


# --- close_notify that finds no room -------------------------------------------------------------
# Over AF_UNIX, where a full buffer stays full; TCP probes, and squeezes something in some day.


def send_then_read_raw(peer: ssl.SSLSocket) -> bytes:
    """Raw bytes, because what filled the connection is no TLS."""
    peer.settimeout(PATIENCE)
    socket.socket.sendall(peer, bytes(1_000_000))
    return read_raw_and_close(peer)


@pytest.mark.parametrize("family", ["tcp4", "unix"])
@in_every_backend
async def test_while_close_notify_waits_for_room_the_upload_goes_on(family: str) -> None:
    async with pair("TLS 1.2", family=family, peer_buffer=4096) as (stream, peer):
        written = leave_no_room(stream)
        with meanwhile(send_then_read_raw, peer) as received:
            result = await graceful_close(stream, timeout=PATIENCE, idle_timeout=PATIENCE / 2)
        assert is_one_close_notify(received[0][written:], ssl.TLSVersion.TLSv1_2)
        assert result.outcome is CloseOutcome.PEER_CLOSED
        assert (result.drained, result.notified) == (1_000_000, True)


@in_every_backend
async def test_close_notify_that_finds_no_room_in_time_is_not_claimed() -> None:
    async with pair("TLS 1.2", family="unix") as (stream, _peer):
        leave_no_room(stream)
        result = await graceful_close(stream, timeout=0.2)
        assert (result.outcome, result.notified) == (CloseOutcome.TIMED_OUT, False)
        assert 0.2 <= result.elapsed < PATIENCE
        assert not result.clean


# --- who else uses the stream --------------------------------------------------------------------


@every_kind
@in_every_backend
async def test_a_task_that_waits_for_input_is_told(kind: str) -> None:
    met: list[BaseException] = []
    async with pair(kind) as (stream, peer), anyio.create_task_group() as group:
        group.start_soon(uses, stream.receive, met)
        await anyio.wait_all_tasks_blocked()
        with meanwhile(read_and_close, peer) as received:
            assert (await graceful_close(stream, timeout=PATIENCE)).clean
        assert received == [b""]
    assert len(met) == 1
    # A UNIX stream on uvloop is closed when the rest is over, and the peer's FIN came before.
    assert kind == "unix" or isinstance(met[0], anyio.ClosedResourceError)


@on("asyncio", "trio")
async def test_a_task_that_waits_on_a_unix_stream_is_told_at_once() -> None:
    met: list[BaseException] = []
    async with pair("unix") as (stream, peer), anyio.create_task_group() as group:
        group.start_soon(uses, stream.receive, met)
        await anyio.wait_all_tasks_blocked()
        # Longer than any test may last.
        group.start_soon(partial(graceful_close, stream, timeout=PATIENCE * 3))
        while not met:
            await anyio.sleep(0.001)
        peer.close()
    assert [type(error) for error in met] == [anyio.ClosedResourceError]


@every_kind
@in_every_backend
async def test_a_task_that_waits_for_room_is_told(kind: str) -> None:
    met: list[BaseException] = []
    async with pair(kind, peer_buffer=4096) as (stream, peer):
        async with anyio.create_task_group() as group:
            group.start_soon(uses, partial(stream.send, bytes(30_000_000)), met)
            await anyio.wait_all_tasks_blocked()
            with meanwhile(read_raw_and_close, peer):
                result = await graceful_close(stream, timeout=PATIENCE)
            # Its record is cut, and nothing can be said after that.
            assert result.notified is (False if kind in TLS else None)
        assert len(met) == 1


@every_kind
@in_every_backend
async def test_nothing_is_left_that_would_wake_the_loop_for_ever(kind: str) -> None:
    """As a descriptor does that is closed while it is waited on, if a dup lives."""
    met: list[BaseException] = []
    async with pair(kind) as (stream, peer), anyio.create_task_group() as group:
        group.start_soon(uses, partial(stream.send, bytes(30_000_000)), met)
        await anyio.wait_all_tasks_blocked()
        with meanwhile(read_raw_and_wait, peer):
            started = process_time()
            await graceful_close(stream, timeout=1)
            worked = process_time() - started
        assert worked < 0.5
    assert len(met) == 1


def read_raw_and_wait(peer: socket.socket) -> None:
    """Make room, and send nothing."""
    peer.settimeout(PATIENCE)
    while socket.socket.recv(peer, 1 << 20):
        pass


# --- abortive_close ------------------------------------------------------------------------------


@every_kind
@in_every_backend
async def test_an_abort_is_a_reset_and_whoever_waits_is_told(kind: str) -> None:
    met: list[BaseException] = []
    async with pair(kind) as (stream, peer):
        raw = raw_of(stream)
        async with anyio.create_task_group() as group:
            group.start_soon(uses, stream.receive, met)
            await anyio.wait_all_tasks_blocked()
            assert (await abortive_close(stream)).outcome is CloseOutcome.ABORTED
        assert raw.fileno() == -1
        assert kind == "unix" or ends_in_raw_reset(peer)
    assert [type(error) for error in met] == [anyio.ClosedResourceError]


@on("asyncio", "uvloop")
async def test_what_a_transport_held_when_it_was_aborted_is_not_known() -> None:
    async with pair(peer_buffer=4096) as (stream, _):
        with anyio.move_on_after(0.05):
            await stream.send(bytes(30_000_000))
        result = await abortive_close(stream)
        assert (result.outcome, result.unacked) == (CloseOutcome.ABORTED, None)


@in_every_backend
async def test_a_cancelled_abort_has_happened() -> None:
    async with pair() as (stream, peer):
        raw = raw_of(stream)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await abortive_close(stream)
        assert scope.cancelled_caught
        assert raw.fileno() == -1
        assert ends_in_raw_reset(peer)


@pytest.mark.parametrize("close", [partial(graceful_close, timeout=0.05), abortive_close])
@in_every_backend
async def test_a_linger_that_somebody_set_holds_nobody_up(close: Any) -> None:
    async with pair(peer_buffer=4096) as (stream, peer):
        leave_no_room(stream)
        set_linger(StandIn(raw_of(stream).fileno()), LingerPolicy.TIMED, 30)
        started = monotonic()
        await close(stream)
        assert monotonic() - started < PATIENCE / 2
        del peer


# --- cancellation --------------------------------------------------------------------------------

CLOSES: dict[str, Callable[[Any], Awaitable[object]]] = {
    "graceful_close": partial(graceful_close, timeout=PATIENCE),
    "timed_linger_close": lambda stream: timed_linger_close(stream, PATIENCE),
    "close_all": lambda stream: close_all([stream], timeout=PATIENCE),
}

every_close = pytest.mark.parametrize("close", CLOSES)


@every_kind
@every_close
@in_every_backend
async def test_a_cancellation_closes_at_once_wherever_it_comes(kind: str, close: str) -> None:
    """After no turn of the event loop, after one, and so on until it waits for the peer."""
    for turns in range(12):
        async with pair(kind, peer_buffer=4096) as (stream, _peer):
            raw = raw_of(stream)
            leave_no_room(stream)
            async with anyio.create_task_group() as group:

                async def cancel_later(scope: anyio.CancelScope, turns: int = turns) -> None:
                    for _ in range(turns):
                        await anyio.lowlevel.cancel_shielded_checkpoint()
                    scope.cancel()

                group.start_soon(cancel_later, group.cancel_scope)
                await CLOSES[close](stream)
            assert group.cancel_scope.cancelled_caught
            assert raw.fileno() == -1
            with pytest.raises(anyio.ClosedResourceError):
                await stream.receive(1)


@every_kind
@every_close
@in_every_backend
async def test_a_deadline_of_the_callers_cuts_the_wait_short(kind: str, close: str) -> None:
    async with pair(kind, peer_buffer=4096) as (stream, _peer):
        raw = raw_of(stream)
        leave_no_room(stream)
        with anyio.move_on_after(0.1) as scope:
            await CLOSES[close](stream)
        assert scope.cancelled_caught
        assert raw.fileno() == -1


@every_close
@in_every_backend
async def test_what_is_raised_is_the_backends_own_exception(close: str) -> None:
    async with pair("TLS 1.3") as (stream, _peer):
        with anyio.CancelScope() as scope:
            scope.cancel()
            with pytest.raises(anyio.get_cancelled_exc_class()):
                await CLOSES[close](stream)


@every_kind
@in_every_backend
async def test_a_shield_lets_it_finish_in_a_scope_that_is_cancelled(kind: str) -> None:
    async with pair(kind) as (stream, peer):
        with anyio.CancelScope() as scope, meanwhile(read_and_close, peer):
            scope.cancel()
            with anyio.CancelScope(shield=True):
                assert (await graceful_close(stream, timeout=PATIENCE)).clean


@in_every_backend
async def test_an_end_that_has_come_already_is_a_checkpoint_all_the_same() -> None:
    for close in (graceful_close, abortive_close, partial(timed_linger_close, seconds=1)):
        async with pair() as (stream, peer):
            peer.close()
            for _ in range(2):  # the second time it is closed
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    await close(stream)
                assert scope.cancelled_caught


# --- what is asked for ---------------------------------------------------------------------------


@asynccontextmanager
async def wrong_streams() -> AsyncGenerator[list[Any], None]:
    sender, receiver = anyio.create_memory_object_stream[bytes]()
    async with sender, receiver:
        stapled = anyio.streams.stapled.StapledObjectStream(sender, receiver)
        datagrams = await anyio.create_udp_socket(local_host="127.0.0.1")
        async with datagrams:
            yield [sender, stapled, datagrams, socket.socket, None]


@in_every_backend
async def test_what_is_no_stream_of_a_socket_is_refused_before_any_is_touched() -> None:
    async with wrong_streams() as all_wrong, pair() as (stream, _peer):
        for wrong in all_wrong:
            for close in (
                graceful_close,
                abortive_close,
                partial(timed_linger_close, seconds=1),
            ):
                with pytest.raises(TypeError, match="needed"):
                    await close(wrong)
            with pytest.raises(TypeError, match="needed"):
                closing(wrong)
            with pytest.raises(TypeError, match=r"streams\[1\]"):
                await close_all([stream, wrong])
        assert raw_of(stream).fileno() != -1
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
@in_every_backend
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
        assert raw_of(stream).fileno() != -1
        await stream.aclose()


@every_kind
@every_close
@on("trio")
async def test_on_trio_it_needs_no_descriptor(kind: str, close: str) -> None:
    async with pair(kind) as (stream, peer):
        with meanwhile(read_and_close, peer) as received, descriptors.none_left():
            await CLOSES[close](stream)
        assert received == [b""]


@pytest.mark.parametrize("close", [*CLOSES, "abortive_close"])
@on("asyncio", "uvloop")
async def test_on_asyncio_no_descriptor_for_the_dup_means_a_reset(close: str) -> None:
    async with pair() as (stream, peer):
        raw = raw_of(stream)
        with descriptors.none_left(), pytest.raises(OSError, match="open files") as raised:
            await (CLOSES | {"abortive_close": abortive_close})[close](stream)
        assert raised.value.errno == errno.EMFILE
        assert raw.fileno() == -1
        assert ends_in_raw_reset(peer)


# --- many ----------------------------------------------------------------------------------------


@in_every_backend
async def test_many_cost_the_deadline_once_and_are_told_in_order() -> None:
    with connect_many(20) as connections:
        streams = [await SocketStream.from_socket(ours) for ours, _ in connections]
        for _, peer in connections[1::2]:
            peer.close()
        await streams[4].aclose()
        raws = [raw_of(stream) for stream in (*streams[:4], *streams[5:])]
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        started = monotonic()
        results = await close_all(streams, timeout=0.3)
        assert 0.3 <= monotonic() - started < 0.3 * 20
        assert all(raw.fileno() == -1 for raw in raws)
    outcomes = [result.outcome for result in results]
    assert outcomes[1::2] == [CloseOutcome.PEER_CLOSED] * 10
    assert outcomes[4] is CloseOutcome.ALREADY_CLOSED
    assert outcomes.count(CloseOutcome.TIMED_OUT) == 9


@in_every_backend
async def test_many_of_every_kind_lose_no_reply() -> None:
    streams: list[Any] = []
    received: list[list[bytes]] = []
    async with AsyncExitStack() as stack:
        for kind in KINDS * 2:
            stream, peer = await stack.enter_async_context(pair(kind))
            received.append(stack.enter_context(meanwhile(upload_then_read, peer)))
            assert await stream.receive(10)
            await stream.send(REPLY)
            streams.append(stream)
        results = await close_all(streams, timeout=PATIENCE)
        assert [result.outcome for result in results] == [CloseOutcome.PEER_CLOSED] * 10
        for result, kind in zip(results, KINDS * 2, strict=True):
            assert result.notified is (True if kind in TLS else None)
    assert received == [[REPLY]] * 10


@in_every_backend
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


@in_every_backend
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


@in_every_backend
async def test_a_stream_that_is_there_in_two_forms_is_closed_once() -> None:
    async with pair("TLS 1.3") as (stream, peer):
        with meanwhile(read_tls_and_close, peer) as received:
            results = await close_all(
                [stream.transport_stream, stream, stream], timeout=PATIENCE
            )
        assert received == [b""]
        assert len({id(result) for result in results}) == 1
        assert results[0].check().notified


# --- closing -------------------------------------------------------------------------------------


@every_kind
@in_every_backend
async def test_a_body_that_ends_commits(kind: str) -> None:
    async with pair(kind) as (stream, peer):
        context = closing(stream, timeout=PATIENCE)
        with meanwhile(upload_then_read, peer) as received:
            async with context as same:
                assert same is stream
                assert context.result is None
                await same.send(REPLY)
        assert received == [REPLY]
        assert isinstance(context.result, CloseResult)
        assert context.result.clean


@every_kind
@in_every_backend
async def test_a_body_that_raises_resets(kind: str) -> None:
    async with pair(kind) as (stream, peer):
        context = closing(stream)
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            async with context:
                await stream.send(b"half a mess")
                raise ZeroDivisionError
        assert context.result is not None
        assert context.result.outcome is CloseOutcome.ABORTED
        assert kind == "unix" or ends_in_raw_reset(peer)


@every_kind
@in_every_backend
async def test_a_body_that_is_cancelled_resets(kind: str) -> None:
    async with pair(kind) as (stream, peer):
        context = closing(stream)
        with anyio.move_on_after(0.01) as scope:
            async with context:
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert context.result is not None
        assert context.result.outcome is CloseOutcome.ABORTED
        assert kind == "unix" or ends_in_raw_reset(peer)


@in_every_backend
async def test_in_a_cancelled_scope_the_bodys_own_error_goes_on() -> None:
    async with pair() as (stream, peer):
        with anyio.CancelScope() as scope, pytest.raises(LookupError, match="its own"):  # noqa: PT012
            async with closing(stream):
                scope.cancel()
                raise LookupError("its own")
        assert ends_in_raw_reset(peer)
