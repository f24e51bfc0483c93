"""Closes in asyncio's loop and in uvloop's: transports end on the way, and the reply arrives."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import os
import socket
import ssl
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import ExitStack, asynccontextmanager
from time import monotonic
from typing import Any, NamedTuple, cast

import pytest

import descriptors
from certificates import NAME, client_context, server_context
from event_loops import LOOPS
from graceful_close import CloseOutcome, CloseResult, LingerPolicy, set_linger
from graceful_close.asyncio import (
    abortive_close,
    close_all,
    closing,
    graceful_close,
    timed_linger_close,
)
from streams import PATIENCE, await_fin, connect, ends_in_reset, fill, read_all, reset

UPLOAD = 5_000_000
REPLY = b"reply" * 13_107
MEGABYTES = b"reply" * 1_700_000

# The loop was never held up by a SO_LINGER of 5 s; a busy machine may hold it up for less.
HELD_UP = 2.0

KINDS = ("tcp", "unix", "tls1.2", "tls1.3")
TLS = ("tls1.2", "tls1.3")

anything = pytest.mark.parametrize("kind", KINDS)
over_tcp = pytest.mark.parametrize("kind", ["tcp", *TLS])
over_tls = pytest.mark.parametrize("kind", TLS)

Test = Callable[..., Coroutine[Any, Any, None]]


def in_a_loop(test: Test) -> Any:
    """Run a test in each kind of loop, in debug mode, and let it leave nothing behind."""

    @pytest.mark.parametrize("loop", LOOPS)
    @functools.wraps(test)
    def run(loop: str, **given: Any) -> None:
        run_in(LOOPS[loop], test(**given))

    own = inspect.signature(test)
    by_loop = inspect.Parameter("loop", inspect.Parameter.KEYWORD_ONLY)
    vars(run)["__signature__"] = own.replace(parameters=[*own.parameters.values(), by_loop])
    return run


def run_in(
    factory: Callable[[], asyncio.AbstractEventLoop], test: Coroutine[Any, Any, None]
) -> None:
    complaints: list[dict[str, Any]] = []

    async def watched() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        async with asyncio.timeout(PATIENCE):
            await test
        assert asyncio.all_tasks() == {asyncio.current_task()}
        gc.collect()  # so that what was never closed or never asked for says so

    with asyncio.Runner(debug=True, loop_factory=factory) as runner:
        runner.run(watched())
    assert complaints == []


class Pair(NamedTuple):
    """A stream of the loop's, and the peer's socket, which blocks."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    peer: socket.socket


@asynccontextmanager
async def pair(
    kind: str, *, peer_buffer: int | None = None, limit: int = 1 << 16
) -> AsyncGenerator[Pair]:
    """A connection of a kind, with our side as a server's. What is left open is reset."""
    family = "unix" if kind == "unix" else "tcp4"
    with connect(family, peer_buffer=peer_buffer) as (ours, raw), ExitStack() as stack:
        peer: socket.socket = raw
        shaken = None
        version = None
        if kind in TLS:
            version = ssl.TLSVersion.TLSv1_2 if kind == "tls1.2" else ssl.TLSVersion.TLSv1_3
            wrapped = client_context(version).wrap_socket(
                raw, server_hostname=NAME, do_handshake_on_connect=False,
                suppress_ragged_eofs=False,
            )  # fmt: skip
            peer = stack.enter_context(wrapped)
            shaken = asyncio.ensure_future(asyncio.to_thread(wrapped.do_handshake))
        reader = asyncio.StreamReader(limit=limit)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
            lambda: protocol, ours, ssl=None if version is None else server_context(version)
        )
        if shaken is not None:
            await shaken
        writer = asyncio.StreamWriter(transport, protocol, reader, asyncio.get_running_loop())
        try:
            yield Pair(reader, writer, peer)
        finally:
            if not transport.is_closing():
                transport.abort()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            del ours


async def in_thread(action: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.to_thread(action, *args)


def upload_then_read(peer: socket.socket) -> bytes:
    """A client that reads nothing before it has sent all, as http.client does."""
    peer.settimeout(PATIENCE)
    peer.sendall(bytes(UPLOAD))
    received = read_all(peer)
    peer.close()
    return received


def read_then_close(peer: socket.socket) -> bytes:
    received = read_all(peer)
    peer.close()
    return received


@asynccontextmanager
async def heartbeat() -> AsyncGenerator[list[float]]:
    """Gives, afterwards, for how long the loop was held up at most."""
    worst = [0.0]

    async def beat() -> None:
        while True:
            before = monotonic()
            await asyncio.sleep(0.01)
            worst[0] = max(worst[0], monotonic() - before)

    task = asyncio.create_task(beat())
    await asyncio.sleep(0)
    try:
        yield worst
        await asyncio.sleep(0.02)
    finally:
        task.cancel()
        await asyncio.wait([task])


def linger_long(writer: asyncio.StreamWriter) -> None:
    """Set {1, 5}, with which the close of the last descriptor holds up whoever does it."""
    info: Any = writer.get_extra_info("socket")
    with socket.socket(info.family, info.type, info.proto, os.dup(info.fileno())) as dup:
        set_linger(dup, LingerPolicy.TIMED, 5)


def is_closed(writer: asyncio.StreamWriter) -> bool:
    info: Any = writer.get_extra_info("socket")
    return writer.is_closing() and (info is None or info.fileno() == -1)


# --- what it is for --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tcp", "tls1.2", "tls1.3"])
@in_a_loop
async def test_every_reply_to_an_early_refused_upload_arrives_whole(kind: str) -> None:
    for _ in range(5):
        async with pair(kind) as (reader, writer, peer):
            client = asyncio.create_task(asyncio.to_thread(upload_then_read, peer))
            await reader.read(1)
            writer.write(REPLY)
            result = await graceful_close(writer, timeout=PATIENCE)
            assert await client == REPLY
        assert result.outcome is CloseOutcome.PEER_CLOSED
        assert result.clean


@over_tcp
@in_a_loop
async def test_a_plain_close_loses_what_the_test_above_counts(kind: str) -> None:
    """So that that test is seen to be able to fail; uvloop's TLS alone reads on."""
    is_uvloop = not isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop)
    async with pair(kind) as (reader, writer, peer):
        client = asyncio.create_task(asyncio.to_thread(upload_then_read, peer))
        await reader.read(1)
        writer.write(REPLY)
        writer.close()
        with_loss = asyncio.gather(writer.wait_closed(), client, return_exceptions=True)
        _, received = await with_loss
        assert (received == REPLY) is (is_uvloop and kind in TLS)


@anything
@in_a_loop
async def test_a_reply_larger_than_every_buffer_is_flushed_while_the_peer_uploads(
    kind: str,
) -> None:
    """The peer reads nothing before it has sent all: it must be read, or neither moves."""
    async with pair(kind) as (reader, writer, peer):
        client = asyncio.create_task(asyncio.to_thread(upload_then_read, peer))
        await reader.read(1)
        writer.write(MEGABYTES)
        assert writer.transport.get_write_buffer_size() > 0 or kind in TLS
        result = await graceful_close(writer, timeout=PATIENCE)
        assert await client == MEGABYTES
        assert result.outcome is CloseOutcome.PEER_CLOSED
        assert result.notified is (True if kind in TLS else None)


@over_tls
@in_a_loop
async def test_tls_loses_nothing_to_buffers_of_any_size(kind: str) -> None:
    """The TLS transport does not say what the transport below it holds."""
    for send_buffer in (1, 20_000, 200_000):
        for size in (100, 70_000, 300_000):
            async with pair(kind, peer_buffer=4096) as (_, writer, peer):
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer
                )
                for _ in range(3):
                    writer.write(bytes(size))
                client = asyncio.create_task(asyncio.to_thread(read_then_close, peer))
                result = await graceful_close(writer, timeout=PATIENCE)
                assert len(await client) == 3 * size
                assert result.notified is True


# --- what is true afterwards -----------------------------------------------------------------


@anything
@in_a_loop
async def test_the_owner_is_told_and_the_descriptor_is_gone(kind: str) -> None:
    async with pair(kind) as (reader, writer, peer):
        waiter = asyncio.create_task(writer.wait_closed())
        reading = asyncio.create_task(reader.read())
        client = asyncio.create_task(asyncio.to_thread(read_then_close, peer))
        writer.write(b"goodbye")
        result = await graceful_close(writer)
        assert is_closed(writer)
        assert await client == b"goodbye"
        await asyncio.wait_for(waiter, PATIENCE)
        assert await asyncio.wait_for(reading, PATIENCE) == b""
        assert result.outcome is CloseOutcome.PEER_CLOSED
        assert str(result).startswith("peer closed")


@anything
@in_a_loop
async def test_a_transport_will_do(kind: str) -> None:
    async with pair(kind) as (_, writer, peer):
        client = asyncio.create_task(asyncio.to_thread(read_then_close, peer))
        transport = cast(asyncio.Transport, writer.transport)
        transport.write(b"goodbye")
        result = await graceful_close(transport)
        assert await client == b"goodbye"
        assert result.outcome is CloseOutcome.PEER_CLOSED


@pytest.mark.parametrize("family", ["tcp4", "tcp6", "unix"])
@in_a_loop
async def test_a_plain_socket_will_do(family: str) -> None:
    with connect(family) as (ours, peer):
        ours.setblocking(False)
        await asyncio.get_running_loop().sock_sendall(ours, b"goodbye")
        client = asyncio.create_task(asyncio.to_thread(read_then_close, peer))
        result = await graceful_close(ours)
        assert ours.fileno() == -1
        assert await client == b"goodbye"
        assert result.outcome is CloseOutcome.PEER_CLOSED


@in_a_loop
async def test_a_tls_socket_will_do() -> None:
    version = ssl.TLSVersion.TLSv1_3
    with connect("tcp4") as (raw, raw_peer):
        shaken = asyncio.ensure_future(
            asyncio.to_thread(
                client_context(version).wrap_socket,
                raw_peer,
                server_hostname=NAME,
                suppress_ragged_eofs=False,
            )
        )
        ours = await asyncio.to_thread(
            functools.partial(server_context(version).wrap_socket, raw, server_side=True)
        )
        with await shaken as peer:
            ours.setblocking(False)
            ours.send(b"goodbye")
            client = asyncio.create_task(asyncio.to_thread(read_then_close, peer))
            result = await graceful_close(ours)
            assert await client == b"goodbye"
        assert ours.fileno() == -1
        assert result.notified is True


@over_tls
@in_a_loop
async def test_close_notify_is_one_way_and_nobody_waits_for_an_answer(kind: str) -> None:
    """asyncio alone would wait for `ssl_shutdown_timeout`, 30 s, and the FIN with it."""
    async with pair(kind) as (_, writer, peer):
        writer.write(b"goodbye")
        closed = asyncio.create_task(graceful_close(writer, timeout=PATIENCE))
        assert await in_thread(read_all, peer) == b"goodbye"
        with socket.socket(fileno=os.dup(peer.fileno())) as raw:
            await in_thread(await_fin, raw)  # ours, with no close_notify of the peer's
        peer.close()
        result = await closed
        assert result.outcome is CloseOutcome.PEER_CLOSED
        assert result.notified is True
        assert result.peer_notified is None
        assert result.elapsed < PATIENCE / 2


@over_tls
@in_a_loop
async def test_a_goodbye_that_the_peer_said_first_is_told(kind: str) -> None:
    async with pair(kind) as (_, writer, peer):
        tls = cast(ssl.SSLSocket, peer)
        tls.setblocking(False)
        with pytest.raises(ssl.SSLWantReadError):
            tls.unwrap()  # says close_notify, and finds no answer
        result = await graceful_close(writer, timeout=PATIENCE, until=CloseOutcome.DELIVERED)
        assert result.notified is True
        assert result.peer_notified in (True, None)  # whether the loop has read it yet


@in_a_loop
async def test_a_server_can_wait_for_all_its_connections() -> None:
    """Server.wait_closed() waits for every transport since Python 3.12."""
    results: list[CloseResult] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"goodbye")
        results.append(await graceful_close(writer, timeout=PATIENCE))

    version = ssl.TLSVersion.TLSv1_3
    for server_side in (None, server_context(version)):
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_side)
        reader, writer = await asyncio.open_connection(
            *server.sockets[0].getsockname(),
            ssl=client_context(version) if server_side else None,
            server_hostname=NAME if server_side else None,
        )
        assert await reader.read() == b"goodbye"
        assert (await graceful_close(writer)).outcome in (
            CloseOutcome.PEER_CLOSED,
            CloseOutcome.ALREADY_CLOSED,
        )
        server.close()
        await asyncio.wait_for(server.wait_closed(), PATIENCE)
        while len(results) < (2 if server_side else 1):
            await asyncio.sleep(0)
    assert [result.outcome for result in results] == [CloseOutcome.PEER_CLOSED] * 2


@in_a_loop
async def test_a_connection_upgraded_by_start_tls_is_one_of_tls() -> None:
    version = ssl.TLSVersion.TLSv1_3
    loop = asyncio.get_running_loop()
    async with pair("tcp") as (_, writer, raw):
        wrapped = client_context(version).wrap_socket(
            raw, server_hostname=NAME, do_handshake_on_connect=False, suppress_ragged_eofs=False
        )
        with wrapped as peer:
            shaken = asyncio.ensure_future(asyncio.to_thread(peer.do_handshake))
            plain = cast(asyncio.Transport, writer.transport)
            transport = await loop.start_tls(
                plain, plain.get_protocol(), server_context(version), server_side=True
            )
            assert transport is not None
            await shaken
            transport.write(REPLY)
            client = asyncio.create_task(asyncio.to_thread(read_then_close, peer))
            result = await graceful_close(transport)
            assert await client == REPLY
            assert result.notified is True


@in_a_loop
async def test_what_was_lost_out_of_sight_is_not_claimed() -> None:
    """Nobody can see below a TLS transport, if its user made the one below hold so much."""

    def read_whole(peer: socket.socket) -> bool:
        try:
            return len(read_all(peer)) == len(MEGABYTES)
        except ssl.SSLEOFError:
            return False
        finally:
            peer.close()

    version = ssl.TLSVersion.TLSv1_3
    async with pair("tcp", peer_buffer=4096) as (_, writer, raw):
        wrapped = client_context(version).wrap_socket(
            raw, server_hostname=NAME, do_handshake_on_connect=False, suppress_ragged_eofs=False
        )
        with wrapped as peer:
            shaken = asyncio.ensure_future(asyncio.to_thread(peer.do_handshake))
            plain = cast(asyncio.Transport, writer.transport)
            plain.set_write_buffer_limits(high=1 << 30)
            transport = await asyncio.get_running_loop().start_tls(
                plain, plain.get_protocol(), server_context(version), server_side=True
            )
            assert transport is not None
            await shaken
            transport.write(MEGABYTES)
            client = asyncio.create_task(asyncio.to_thread(read_whole, peer))
            result = await graceful_close(transport, timeout=PATIENCE)
            whole = await client
            assert (result.notified is True) is whole
            assert result.clean is whole


# --- transports in other states --------------------------------------------------------------


@anything
@in_a_loop
async def test_a_reader_at_its_limit_is_no_obstacle(kind: str) -> None:
    """The transport is paused then, with input in it that nobody has decrypted."""
    async with pair(kind, limit=100) as (reader, writer, peer):
        client = asyncio.create_task(asyncio.to_thread(upload_then_read, peer))
        await reader.readexactly(1)
        transport: Any = writer.transport
        while transport.is_reading() or (kind in TLS and not transport.get_read_buffer_size()):
            await asyncio.sleep(0)
        writer.write(REPLY)
        result = await graceful_close(writer, timeout=PATIENCE)
        assert await client == REPLY
        assert result.outcome is CloseOutcome.PEER_CLOSED
        assert result.notified is (True if kind in TLS else None)


class Buffered(asyncio.BufferedProtocol):
    """A protocol that lends its own buffer, and keeps a diary."""

    def __init__(self) -> None:
        self.diary: list[str] = []
        self._buffer = bytearray(1000)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        pass

    def pause_writing(self) -> None:
        self.diary.append("pause")

    def resume_writing(self) -> None:
        self.diary.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.diary.append("lost")


@anything
@in_a_loop
async def test_a_protocol_hears_of_room_and_of_the_end_and_of_nothing_else(kind: str) -> None:
    async with pair(kind) as (_, writer, peer):
        protocol = Buffered()
        transport = cast(asyncio.Transport, writer.transport)
        transport.set_protocol(protocol)
        transport.write(MEGABYTES)
        transport.write(MEGABYTES)
        client = asyncio.create_task(asyncio.to_thread(read_then_close, peer))
        await graceful_close(transport, timeout=PATIENCE)
        assert await client == 2 * MEGABYTES
        uvloop_does_not_tell = kind in TLS and not isinstance(transport, asyncio.Transport)
        heard = ["pause", "lost"] if uvloop_does_not_tell else ["pause", "resume", "lost"]
        assert protocol.diary == heard


@in_a_loop
async def test_whoever_waits_in_drain_is_let_go() -> None:
    async with pair("tcp") as (_, writer, peer):
        writer.write(MEGABYTES)
        draining = asyncio.create_task(writer.drain())
        await asyncio.sleep(0)
        assert not draining.done()
        client = asyncio.create_task(asyncio.to_thread(read_then_close, peer))
        await graceful_close(writer, timeout=PATIENCE)
        await asyncio.wait_for(draining, PATIENCE)
        assert await client == MEGABYTES


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("size", [10, 8_000_000])
@in_a_loop
async def test_the_end_of_the_stream_may_be_written_before(kind: str, size: int) -> None:
    async with pair(kind) as (_, writer, peer):
        writer.write(bytes(size))
        writer.write_eof()
        client = asyncio.create_task(asyncio.to_thread(read_then_close, peer))
        result = await graceful_close(writer, timeout=PATIENCE)
        assert len(await client) == size
        assert result.outcome in (CloseOutcome.PEER_CLOSED, CloseOutcome.NOT_CONNECTED)


@anything
@in_a_loop
async def test_a_transport_that_is_closing_already_is_finished_off(kind: str) -> None:
    async with pair(kind) as (_, writer, peer):
        writer.write(MEGABYTES)
        writer.close()
        client = asyncio.create_task(asyncio.to_thread(read_then_close, peer))
        result = await graceful_close(writer, timeout=PATIENCE)
        assert await client == MEGABYTES
        assert result.outcome is CloseOutcome.PEER_CLOSED
        assert is_closed(writer)


@anything
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("close", [graceful_close, abortive_close])
@in_a_loop
async def test_a_closed_transport_is_left_alone(
    kind: str, times: int, close: Callable[..., Awaitable[CloseResult]]
) -> None:
    async with pair(kind) as (_, writer, _peer):
        transport = writer.transport
        transport.abort()
        while not is_closed(writer):
            await asyncio.sleep(0)
        for _ in range(times - 1):
            transport.close()
        result = await close(writer)
        assert result.outcome is CloseOutcome.ALREADY_CLOSED
        assert not result.clean


@in_a_loop
async def test_a_closed_socket_is_left_alone() -> None:
    with socket.socket() as sock:
        sock.close()
        assert (await graceful_close(sock)).outcome is CloseOutcome.ALREADY_CLOSED
        assert (await abortive_close(sock)).outcome is CloseOutcome.ALREADY_CLOSED


# --- what the network does is a result -------------------------------------------------------


@over_tcp
@pytest.mark.parametrize("policy", [LingerPolicy.BACKGROUND, LingerPolicy.ABORT])
@in_a_loop
async def test_what_cannot_be_flushed_in_time_ends_in_a_reset(kind: str, policy: Any) -> None:
    """The end of the stream would tell the peer that the message is whole."""
    async with pair(kind, peer_buffer=4096) as (_, writer, peer):
        writer.write(MEGABYTES)
        async with heartbeat() as worst:
            linger_long(writer)
            result = await graceful_close(writer, timeout=0.2, on_timeout=policy)
        assert result.outcome is CloseOutcome.TIMED_OUT
        assert not result.clean
        assert result.elapsed >= 0.2
        assert is_closed(writer)
        with socket.socket(fileno=os.dup(peer.fileno())) as raw:
            raw.settimeout(PATIENCE)
            assert await in_thread(ends_in_reset, raw)
        if kind == "tcp":
            assert result.unacked is not None
            assert result.unacked > len(MEGABYTES) // 2
        else:
            assert result.unacked is None
            assert result.notified is False
        assert worst[0] < HELD_UP


@over_tcp
@in_a_loop
async def test_a_silent_peer_is_given_up_while_flushing(kind: str) -> None:
    async with pair(kind, peer_buffer=4096) as (_, writer, _peer):
        writer.write(MEGABYTES)
        result = await graceful_close(writer, timeout=PATIENCE, idle_timeout=0.1)
        assert result.outcome is CloseOutcome.IDLE_TIMED_OUT
        assert result.elapsed < PATIENCE / 2


@over_tcp
@in_a_loop
async def test_a_slow_peer_is_not_a_silent_one(kind: str) -> None:
    def sip(peer: socket.socket) -> int:
        total = 0
        for _ in range(25):
            total += len(peer.recv(100_000))
            time.sleep(0.1)  # a tenth of what would be silence, and for longer than that in all
        return total + len(read_then_close(peer))

    async with pair(kind, peer_buffer=4096) as (_, writer, peer):
        writer.write(2 * MEGABYTES)
        client = asyncio.create_task(asyncio.to_thread(sip, peer))
        result = await graceful_close(writer, timeout=PATIENCE, idle_timeout=1)
        assert await client == 2 * len(MEGABYTES)
        assert result.outcome is CloseOutcome.PEER_CLOSED


@anything
@in_a_loop
async def test_a_peer_that_never_answers_costs_the_time_and_no_more(kind: str) -> None:
    async with pair(kind) as (_, writer, _peer):
        writer.write(b"goodbye")
        result = await graceful_close(writer, timeout=0.1)
        assert result.outcome is CloseOutcome.TIMED_OUT
        assert 0.1 <= result.elapsed < PATIENCE / 2
        assert is_closed(writer)


@anything
@in_a_loop
async def test_no_time_is_time_for_one_look(kind: str) -> None:
    async with pair(kind) as (_, writer, peer):
        writer.write(b"goodbye")
        result = await graceful_close(writer, timeout=0)
        assert result.outcome is CloseOutcome.TIMED_OUT
        assert result.notified is (True if kind in TLS else None)
        assert await in_thread(read_all, peer) == b"goodbye"


@over_tcp
@in_a_loop
async def test_a_reset_while_draining_is_a_result(kind: str) -> None:
    async with pair(kind) as (_, writer, peer):
        closed = asyncio.create_task(graceful_close(writer, timeout=PATIENCE))
        await in_thread(read_all, peer)
        reset(peer)
        result = await closed
        assert result.outcome is CloseOutcome.PEER_RESET
        assert is_closed(writer)


@pytest.mark.parametrize("kind", ["tcp"])
@in_a_loop
async def test_a_reset_that_the_transport_has_heard_and_not_told_is_a_result(kind: str) -> None:
    """It takes the transport a few turns from the one to the other."""
    outcomes: list[CloseOutcome] = []
    while CloseOutcome.ALREADY_CLOSED not in outcomes:
        async with pair(kind) as (_, writer, peer):
            reset(peer)
            for _ in range(len(outcomes)):
                await asyncio.sleep(0)
            outcomes.append((await graceful_close(writer, timeout=PATIENCE)).outcome)
    assert len(outcomes) > 1
    assert set(outcomes[:-1]) == {CloseOutcome.PEER_RESET}


@over_tcp
@in_a_loop
async def test_a_reset_while_flushing_is_a_result(kind: str) -> None:
    async with pair(kind, peer_buffer=4096) as (reader, writer, peer):
        writer.write(MEGABYTES)
        closed = asyncio.create_task(graceful_close(writer, timeout=PATIENCE))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not closed.done()
        reset(peer)
        result = await closed
        assert result.outcome is CloseOutcome.PEER_RESET
        assert isinstance(result.error, OSError)
        # What the transport held is not acknowledged either.
        assert result.unacked is None or result.unacked > len(MEGABYTES) // 2
        assert result.notified is (False if kind in TLS else None)
        assert is_closed(writer)
        del reader


@over_tcp
@in_a_loop
async def test_more_than_the_limit_is_a_result(kind: str) -> None:
    def send_for_ever(peer: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer.sendall(bytes(10_000))

    async with pair(kind) as (_, writer, peer):
        closed = asyncio.create_task(graceful_close(writer, timeout=PATIENCE, drain_limit=1000))
        await in_thread(read_all, peer)
        await in_thread(send_for_ever, peer)
        assert (await closed).outcome is CloseOutcome.DRAIN_LIMIT


@over_tls
@in_a_loop
async def test_a_peer_that_ends_without_goodbye_is_a_result(kind: str) -> None:
    async with pair(kind, limit=10) as (reader, writer, peer):
        peer.sendall(bytes(1000))  # so many that the reader pauses its transport
        await reader.read(1)
        raw = socket.socket(fileno=peer.detach())
        raw.shutdown(socket.SHUT_WR)
        writer.write(b"goodbye")
        result = await graceful_close(writer, timeout=PATIENCE)
        raw.close()
        assert result.outcome in (CloseOutcome.PEER_CLOSED, CloseOutcome.ALREADY_CLOSED)
        assert result.notified in (True, False, None)


# --- delivery --------------------------------------------------------------------------------


@over_tcp
@in_a_loop
async def test_timed_linger_ends_with_the_acknowledgement(kind: str) -> None:
    async with pair(kind) as (_, writer, peer):
        writer.write(b"goodbye")
        result = await timed_linger_close(writer, PATIENCE)
        assert result.outcome is CloseOutcome.DELIVERED
        assert result.unacked == 0
        assert result.elapsed < PATIENCE / 2
        assert await in_thread(read_all, peer) == b"goodbye"


@over_tcp
@in_a_loop
async def test_timed_linger_says_when_it_was_not_delivered(kind: str) -> None:
    async with pair(kind, peer_buffer=4096) as (_, writer, peer):
        sock: Any = writer.get_extra_info("socket")
        with socket.socket(sock.family, sock.type, sock.proto, os.dup(sock.fileno())) as dup:
            dup.setblocking(False)  # as it is: it is the transport's mode, too
            fill(dup)
        async with heartbeat() as worst:
            linger_long(writer)
            result = await timed_linger_close(writer, 0.2)
        assert result.outcome is CloseOutcome.TIMED_OUT
        assert result.unacked != 0
        assert worst[0] < HELD_UP
        peer.close()


# --- aborting --------------------------------------------------------------------------------


@over_tcp
@in_a_loop
async def test_an_abort_sends_a_reset_and_drops_the_rest(kind: str) -> None:
    async with pair(kind, peer_buffer=4096) as (_, writer, peer):
        writer.write(MEGABYTES)
        async with heartbeat() as worst:
            linger_long(writer)
            result = await abortive_close(writer)
            assert is_closed(writer)
        assert result.outcome is CloseOutcome.ABORTED
        assert result.clean
        assert result.notified is None
        with socket.socket(fileno=os.dup(peer.fileno())) as raw:
            raw.settimeout(PATIENCE)
            assert await in_thread(ends_in_reset, raw)
        assert worst[0] < HELD_UP
        if kind == "tcp":
            assert result.unacked is not None
            assert result.unacked > len(MEGABYTES) // 2


@in_a_loop
async def test_an_abort_of_a_unix_stream_ends_it() -> None:
    async with pair("unix") as (_, writer, peer):
        assert (await abortive_close(writer)).outcome is CloseOutcome.ABORTED
        assert is_closed(writer)
        assert await in_thread(read_all, peer) == b""


@in_a_loop
async def test_a_plain_socket_can_be_aborted() -> None:
    with connect("tcp4") as (ours, peer):
        ours.setblocking(False)
        assert (await abortive_close(ours)).outcome is CloseOutcome.ABORTED
        assert await in_thread(ends_in_reset, peer)


# --- the loop is never held up ---------------------------------------------------------------


@over_tcp
@pytest.mark.parametrize("size", [100, len(MEGABYTES)])
@in_a_loop
async def test_a_linger_time_on_the_socket_never_holds_up_the_loop(
    kind: str, size: int
) -> None:
    async with pair(kind, peer_buffer=4096) as (_, writer, _peer):
        linger_long(writer)
        writer.write(bytes(size))
        async with heartbeat() as worst:
            await graceful_close(writer, timeout=0.1)
        assert worst[0] < HELD_UP


@over_tcp
@pytest.mark.parametrize("size", [100, len(MEGABYTES)])
@pytest.mark.parametrize("turns", [0, 1, 2, 3, 4, 5, 7, 10, 50])
@in_a_loop
async def test_a_cancellation_closes_at_once_and_goes_on(
    kind: str, size: int, turns: int
) -> None:
    """At every point of the way."""
    async with pair(kind, peer_buffer=4096) as (_, writer, _peer):
        linger_long(writer)
        writer.write(bytes(size))
        async with heartbeat() as worst:
            closed = asyncio.create_task(graceful_close(writer, timeout=PATIENCE))
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
        assert worst[0] < HELD_UP


# --- many ------------------------------------------------------------------------------------


@in_a_loop
async def test_all_kinds_close_together_in_order() -> None:
    async with (
        pair("tcp") as tcp,
        pair("tls1.3") as tls,
        pair("unix") as unix,
        pair("tcp") as gone,
        pair("tcp") as silent,
    ):
        with connect("tcp4") as (sock, sock_peer):
            gone.writer.transport.abort()
            while not is_closed(gone.writer):
                await asyncio.sleep(0)
            clients: list[asyncio.Task[bytes]] = []
            for end in (tcp, tls, unix):
                end.writer.write(REPLY if end is not unix else MEGABYTES)
                client = asyncio.to_thread(read_then_close, end.peer)
                clients.append(asyncio.create_task(client))
            sock_peer.close()
            results = await close_all(
                [
                    tcp.writer,
                    tls.writer,
                    gone.writer,
                    sock,
                    cast(asyncio.Transport, tcp.writer.transport),
                    silent.writer,
                    unix.writer,
                ],
                timeout=2,
            )
            assert [await client for client in clients] == [REPLY, REPLY, MEGABYTES]
            assert [result.outcome.name for result in results] == [
                "PEER_CLOSED",
                "PEER_CLOSED",
                "ALREADY_CLOSED",
                "PEER_CLOSED",
                "PEER_CLOSED",
                "TIMED_OUT",
                "PEER_CLOSED",
            ]
            assert results[0] is results[4]
            assert results[1].notified is True
            assert results[5].elapsed >= 2
            for end in (tcp, tls, unix, gone, silent):
                assert is_closed(end.writer)
            assert sock.fileno() == -1


@in_a_loop
async def test_nothing_is_nothing() -> None:
    assert await close_all([]) == []


@in_a_loop
async def test_one_that_cannot_flush_does_not_hold_up_the_others() -> None:
    async with pair("tcp", peer_buffer=4096) as stuck, pair("tcp") as free:
        stuck.writer.write(MEGABYTES)
        free.writer.write(b"goodbye")
        client = asyncio.create_task(asyncio.to_thread(read_then_close, free.peer))
        closed = asyncio.create_task(close_all([stuck.writer, free.writer], timeout=1))
        assert await client == b"goodbye"
        assert not closed.done()
        first, second = await closed
        assert first.outcome is CloseOutcome.TIMED_OUT
        assert second.outcome is CloseOutcome.PEER_CLOSED
        assert second.elapsed < first.elapsed


@pytest.mark.parametrize("turns", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 50])
@in_a_loop
async def test_a_cancellation_closes_them_all(turns: int) -> None:
    async with (
        pair("tcp", peer_buffer=4096) as stuck,
        pair("tcp") as silent,
        pair("tls1.3") as tls,
    ):
        with connect("tcp4") as (sock, _peer):
            stuck.writer.write(MEGABYTES)
            linger_long(stuck.writer)
            async with heartbeat() as worst:
                everything: list[Any] = [sock, stuck.writer, silent.writer, tls.writer]
                closed = asyncio.create_task(close_all(everything, timeout=PATIENCE))
                for _ in range(turns):
                    await asyncio.sleep(0)
                closed.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await closed
            for end in (stuck, silent, tls):
                assert is_closed(end.writer)
            assert sock.fileno() == -1
            assert worst[0] < HELD_UP


@in_a_loop
async def test_one_that_cannot_be_closed_is_named_and_none_is_touched() -> None:
    wrong: Any = object()
    async with pair("tcp") as (_, writer, _peer):
        with pytest.raises(TypeError, match=r"streams\[1\]"):
            await close_all([writer, wrong])
        assert not writer.is_closing()
        await abortive_close(writer)


@in_a_loop
async def test_a_peer_that_answers_at_once_needs_no_descriptor_of_ours() -> None:
    async with pair("tcp") as (_, writer, peer):
        peer.shutdown(socket.SHUT_WR)
        with descriptors.none_left():
            result = await graceful_close(writer, timeout=PATIENCE)
    assert (result.outcome, result.unacked) == (CloseOutcome.PEER_CLOSED, 0)


# --- commit and roll back --------------------------------------------------------------------


@anything
@in_a_loop
async def test_a_body_that_ends_commits(kind: str) -> None:
    async with pair(kind) as (_, writer, peer):
        client = asyncio.create_task(asyncio.to_thread(read_then_close, peer))
        context = closing(writer, timeout=PATIENCE)
        async with context as stream:
            assert stream is writer
            assert context.result is None
            stream.write(REPLY)
        assert await client == REPLY
        assert context.result is not None
        assert context.result.outcome is CloseOutcome.PEER_CLOSED


@over_tcp
@in_a_loop
async def test_a_body_that_raises_resets(kind: str) -> None:
    async with pair(kind) as (_, writer, peer):
        context = closing(writer)
        with pytest.raises(ZeroDivisionError):
            async with context:
                raise ZeroDivisionError
        assert is_closed(writer)
        assert context.result is not None
        assert context.result.outcome is CloseOutcome.ABORTED
        with socket.socket(fileno=os.dup(peer.fileno())) as raw:
            raw.settimeout(PATIENCE)
            assert await in_thread(ends_in_reset, raw)


@in_a_loop
async def test_a_body_that_is_cancelled_resets() -> None:
    async with pair("tcp") as (reader, writer, peer):

        async def body() -> None:
            async with closing(writer):
                await reader.read()

        task = asyncio.create_task(body())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert is_closed(writer)
        assert await in_thread(ends_in_reset, peer)


@in_a_loop
async def test_a_failure_while_rolling_back_does_not_mask_what_the_body_raised() -> None:
    async with pair("tcp") as (_, writer, peer):
        with descriptors.none_left(), pytest.raises(LookupError, match="the body's own"):
            async with closing(writer):
                raise LookupError("the body's own")
        assert is_closed(writer)
        assert await in_thread(ends_in_reset, peer)


# --- what is refused, before anything is touched ---------------------------------------------


@pytest.mark.parametrize("close", [graceful_close, abortive_close, closing])
@in_a_loop
async def test_what_is_no_stream_is_refused(close: Callable[..., Any]) -> None:
    loop = asyncio.get_running_loop()

    async def attempt(what: Any) -> None:
        made = close(what)
        if inspect.isawaitable(made):
            await made

    async def refused(what: Any) -> None:
        with pytest.raises(TypeError, match="is needed|expected a"):
            await attempt(what)

    await refused(object())
    await refused(None)
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        await refused(datagrams)

    udp, _ = await loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
    )
    await refused(udp)
    assert not udp.is_closing()
    udp.close()

    for end, connect_pipe in zip(
        os.pipe(), (loop.connect_read_pipe, loop.connect_write_pipe), strict=True
    ):
        if isinstance(loop, asyncio.SelectorEventLoop):
            transport, _ = await connect_pipe(
                asyncio.Protocol,
                os.fdopen(end, "wb" if connect_pipe == loop.connect_write_pipe else "rb", 0),
            )
            await refused(transport)
            transport.close()
            await asyncio.sleep(0)
        else:
            os.close(end)
    await asyncio.sleep(0)


@in_a_loop
async def test_a_wrong_option_is_refused_and_nothing_is_touched() -> None:
    wrong: Any = "9"
    async with pair("tcp") as (_, writer, _peer):
        with pytest.raises(ValueError, match="timeout"):
            await graceful_close(writer, timeout=-1)
        with pytest.raises(TypeError, match="drain_limit"):
            await graceful_close(writer, drain_limit=wrong)
        with pytest.raises(ValueError, match="seconds"):
            await timed_linger_close(writer, -1)
        with pytest.raises(ValueError, match="on_timeout"):
            await close_all([writer], on_timeout=LingerPolicy.TIMED)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="until"):
            closing(writer, until=CloseOutcome.ABORTED)  # type: ignore[arg-type]
        assert not writer.is_closing()
        await abortive_close(writer)


# --- scarcity --------------------------------------------------------------------------------


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
        with socket.socket(fileno=os.dup(peer.fileno())) as raw:
            raw.settimeout(PATIENCE)
            assert await in_thread(ends_in_reset, raw)
        assert worst[0] < HELD_UP


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
        assert worst[0] < HELD_UP


# --- loops that cannot wait on descriptors ---------------------------------------------------


class Proactor(asyncio.SelectorEventLoop):
    """As Windows' ProactorEventLoop, it has no add_reader()."""

    add_reader = asyncio.AbstractEventLoop.add_reader
    remove_reader = asyncio.AbstractEventLoop.remove_reader
    add_writer = asyncio.AbstractEventLoop.add_writer
    remove_writer = asyncio.AbstractEventLoop.remove_writer


def test_without_add_reader_a_thread_does_the_waiting() -> None:
    async def test() -> None:
        async with pair("tcp") as one, pair("tcp") as two, pair("tcp") as three:
            clients = [
                asyncio.create_task(asyncio.to_thread(read_then_close, end.peer))
                for end in (one, two, three)
            ]
            for end in (one, two, three):
                end.writer.write(REPLY)
            result = await graceful_close(one.writer)
            results = await close_all([two.writer, three.writer])
            assert [await client for client in clients] == [REPLY] * 3
            for each in (result, *results):
                assert each.outcome is CloseOutcome.PEER_CLOSED

    run_in(Proactor, test())


def test_without_add_reader_a_cancellation_closes_all_the_same() -> None:
    async def test() -> None:
        async with pair("tcp") as (_, writer, peer):
            closed = asyncio.create_task(graceful_close(writer, timeout=0.5))
            assert await in_thread(read_all, peer) == b""
            closed.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closed
            assert is_closed(writer)

    run_in(Proactor, test())


def test_without_add_reader_tls_is_refused_and_not_touched() -> None:
    async def test() -> None:
        async with pair("tls1.3") as (_, writer, _peer):
            with pytest.raises(NotImplementedError, match="add_reader"):
                await graceful_close(writer)
            with pytest.raises(NotImplementedError, match="add_reader"):
                closing(writer)
            with pytest.raises(NotImplementedError, match=r"streams\[0\]"):
                await close_all([writer])
            assert not writer.is_closing()
            await abortive_close(writer)

    run_in(Proactor, test())


# --- importing -------------------------------------------------------------------------------


def test_the_module_does_not_stand_in_the_way_of_asyncio() -> None:
    assert asyncio.__name__ == "asyncio"
    assert sys.modules["graceful_close.asyncio"] is not asyncio
