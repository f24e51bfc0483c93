"""What is particular to asyncio's transports and uvloop's: they flush, and they close by themselves.

tests/test_every_loop*.py has what is true on every event loop.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import socket
import ssl
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any, NamedTuple, cast

import pytest

import descriptors
from certificates import NAME, client_context, server_context
from every_loop import (
    ASYNCIO,
    EVERY,
    UPLOAD,
    StandIn,
    Test,
    ends_in_raw_reset,
    no_complaints,
    on,
    require_refusal,
    tls_peer,
    version_of,
    watched,
    with_loop,
)
from every_loop import upload_then_read as upload_then_read  # noqa: PLC0414 (for test_asyncio_server.py)
from graceful_close import CloseOutcome, CloseResult, LingerPolicy, set_linger
from graceful_close.asyncio import abortive_close, close_all, closing, graceful_close
from streams import (
    DEADLINE,
    connect,
    meanwhile,
    read_all,
    read_and_close,
    read_and_close_late,
)
from tls_sessions import send_close_notify

REPLY = b"reply" * 13_107
MEGABYTES = b"reply" * 1_700_000

# In seconds. A SO_LINGER of 5 s never blocks the loop; a busy machine may block it for less.
BLOCKED = 2.0

KINDS = ("tcp", "unix", "tls1.2", "tls1.3")
TLS = ("tls1.2", "tls1.3")

read_then_close = read_and_close  # for test_asyncio_server.py

anything = pytest.mark.parametrize("kind", KINDS)
over_tcp = pytest.mark.parametrize("kind", ["tcp", *TLS])
over_tls = pytest.mark.parametrize("kind", TLS)

in_a_loop = on(ASYNCIO)


def run_in(
    factory: Callable[[], asyncio.AbstractEventLoop], test: Coroutine[Any, Any, None]
) -> None:
    """Run a test in a loop of another kind."""
    with (
        no_complaints() as complaints,
        asyncio.Runner(debug=True, loop_factory=factory) as runner,
    ):
        runner.run(watched(lambda: test, complaints))


def in_each(
    loops: Mapping[str, Callable[[], asyncio.AbstractEventLoop]],
) -> Callable[[Test], Callable[..., None]]:
    """Run an async test in a loop of each kind."""

    def decorate(test: Test) -> Callable[..., None]:
        @functools.wraps(test)
        def run(loop: str, **given: Any) -> None:
            run_in(loops[loop], test(**given))

        vars(run)["__signature__"] = with_loop(inspect.signature(test))
        mark: Callable[..., None] = pytest.mark.parametrize("loop", loops)(run)
        return mark

    return decorate


class Pair(NamedTuple):
    """A stream of the loop's, and the peer's socket, which blocks."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    peer: socket.socket


@asynccontextmanager
async def pair(
    kind: str, *, peer_buffer: int | None = None, limit: int = 1 << 16
) -> AsyncGenerator[Pair]:
    """A connection of a kind, with our side as a server's. A stream that is left open is reset.

    The kind may also be TLS over AF_UNIX: "tls1.3 unix".
    """
    kind, _, family = kind.partition(" ")
    family = "unix" if "unix" in (kind, family) else "tcp4"
    with connect(family, peer_buffer=peer_buffer) as (ours, raw):
        context, peer, shaken = None, raw, None
        if kind in TLS:
            version = version_of(kind.replace("tls", "TLS "))
            context, peer = server_context(version), tls_peer(raw, version)
            shaken = asyncio.ensure_future(asyncio.to_thread(peer.do_handshake))
        with peer:
            reader = asyncio.StreamReader(limit=limit)
            protocol = asyncio.StreamReaderProtocol(reader)
            loop = asyncio.get_running_loop()
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, ours, ssl=context
            )
            if shaken is not None:
                await shaken
            try:
                writer = asyncio.StreamWriter(transport, protocol, reader, loop)
                yield Pair(reader, writer, peer)
            finally:
                if not transport.is_closing():
                    transport.abort()
                await asyncio.sleep(0)
                await asyncio.sleep(0)


async def in_thread(action: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.to_thread(action, *args)


@asynccontextmanager
async def heartbeat() -> AsyncGenerator[list[float]]:
    """Gives, afterwards, the longest time in seconds for which the loop was blocked."""
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
    """Set {1, 5}, with which the close of the last descriptor blocks its caller."""
    info: Any = writer.get_extra_info("socket")
    set_linger(StandIn(info.fileno()), LingerPolicy.TIMED, 5)


def is_closed(writer: asyncio.StreamWriter) -> bool:
    info: Any = writer.get_extra_info("socket")
    return writer.is_closing() and (info is None or info.fileno() == -1)


# --- peer_first under TLS -----------------------------------------------------------------------


@over_tls
@in_a_loop
async def test_our_close_notify_is_sent_before_the_peers_fin_and_our_fin_after_it(
    kind: str,
) -> None:
    async with pair(kind) as (_, writer, peer):
        writer.write(REPLY)
        ending = asyncio.create_task(in_thread(read_and_close_late, peer))
        result = await graceful_close(writer, timeout=DEADLINE, peer_first=DEADLINE)
        assert await ending == REPLY
    assert (result.outcome, result.peer_first) == (CloseOutcome.PEER_CLOSED, True)
    assert result.notified is True
    assert result.elapsed < DEADLINE / 2


# --- flushing ------------------------------------------------------------------------------


@over_tcp
@in_a_loop
async def test_writer_close_loses_the_reply_to_an_early_refused_upload(kind: str) -> None:
    """So a test of graceful_close can fail. Only uvloop's TLS transport continues to read."""
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
    """The peer reads nothing before it has sent everything, so its upload must be read."""
    async with pair(kind) as (reader, writer, peer):
        client = asyncio.create_task(asyncio.to_thread(upload_then_read, peer))
        await reader.read(1)
        writer.write(MEGABYTES)
        assert writer.transport.get_write_buffer_size() > 0 or kind in TLS
        result = await graceful_close(writer, timeout=DEADLINE)
        assert await client == MEGABYTES
        assert result.outcome is CloseOutcome.PEER_CLOSED
        assert result.notified is (True if kind in TLS else None)
        if kind not in TLS:  # the reader has the rest of the upload
            assert UPLOAD - 1_000_000 < result.drained < UPLOAD


@over_tls
@in_a_loop
async def test_tls_loses_nothing_to_buffers_of_any_size(kind: str) -> None:
    """The TLS transport does not report what the transport below it holds."""
    for send_buffer in (1, 20_000, 200_000):
        for size in (100, 70_000, 300_000):
            async with pair(kind, peer_buffer=4096) as (_, writer, peer):
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer
                )
                for _ in range(3):
                    writer.write(bytes(size))
                client = asyncio.create_task(asyncio.to_thread(read_and_close, peer))
                result = await graceful_close(writer, timeout=DEADLINE)
                assert len(await client) == 3 * size
                assert result.notified is True


# --- what can be closed -----------------------------------------------------------------------


@anything
@in_a_loop
async def test_tasks_that_wait_are_woken_and_the_descriptor_is_free(kind: str) -> None:
    async with pair(kind) as (reader, writer, peer):
        waiter = asyncio.create_task(writer.wait_closed())
        reading = asyncio.create_task(reader.read())
        client = asyncio.create_task(asyncio.to_thread(read_and_close, peer))
        writer.write(b"goodbye")
        result = await graceful_close(writer)
        assert is_closed(writer)
        assert await client == b"goodbye"
        await asyncio.wait_for(waiter, DEADLINE)
        assert await asyncio.wait_for(reading, DEADLINE) == b""
        assert result.outcome is CloseOutcome.PEER_CLOSED
        assert str(result).startswith("peer closed")


@anything
@in_a_loop
async def test_a_transport_can_be_closed(kind: str) -> None:
    async with pair(kind) as (_, writer, peer):
        client = asyncio.create_task(asyncio.to_thread(read_and_close, peer))
        transport = cast(asyncio.Transport, writer.transport)
        transport.write(b"goodbye")
        result = await graceful_close(transport)
        assert await client == b"goodbye"
        assert result.outcome is CloseOutcome.PEER_CLOSED


@pytest.mark.parametrize("family", ["tcp4", "tcp6", "unix"])
@in_a_loop
async def test_a_plain_socket_can_be_closed(family: str) -> None:
    with connect(family) as (ours, peer):
        ours.setblocking(False)
        await asyncio.get_running_loop().sock_sendall(ours, b"goodbye")
        client = asyncio.create_task(asyncio.to_thread(read_and_close, peer))
        result = await graceful_close(ours)
        assert ours.fileno() == -1
        assert await client == b"goodbye"
        assert result.outcome is CloseOutcome.PEER_CLOSED


@in_a_loop
async def test_a_tls_socket_can_be_closed() -> None:
    version = ssl.TLSVersion.TLSv1_3
    with connect("tcp4") as (raw, raw_peer), tls_peer(raw_peer, version) as peer:
        with meanwhile(peer.do_handshake):
            ours = server_context(version).wrap_socket(raw, server_side=True)
        ours.setblocking(False)
        ours.send(b"goodbye")
        client = asyncio.create_task(asyncio.to_thread(read_and_close, peer))
        result = await graceful_close(ours)
        assert await client == b"goodbye"
        assert ours.fileno() == -1
        assert result.notified is True


@pytest.mark.parametrize("was_read", [False, True])
@over_tls
@in_a_loop
async def test_a_close_notify_that_the_peer_sent_first_is_reported(
    kind: str, was_read: bool
) -> None:
    async with pair(kind) as (reader, writer, peer):
        send_close_notify(cast(ssl.SSLSocket, peer))
        if was_read:
            assert await reader.read() == b""
        result = await graceful_close(writer, timeout=DEADLINE, until=CloseOutcome.DELIVERED)
        assert result.notified is True
        assert result.peer_notified or (result.peer_notified is None and not was_read)


@in_a_loop
async def test_wait_closed_of_a_server_returns_after_its_connections_are_closed() -> None:
    """Server.wait_closed() waits for every transport since Python 3.12."""
    results: list[CloseResult] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"goodbye")
        results.append(await graceful_close(writer, timeout=DEADLINE))

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
        await asyncio.wait_for(server.wait_closed(), DEADLINE)
        while len(results) < (2 if server_side else 1):
            await asyncio.sleep(0)
    assert [result.outcome for result in results] == [CloseOutcome.PEER_CLOSED] * 2


@asynccontextmanager
async def upgraded(
    *, peer_buffer: int | None = None, hold: int | None = None
) -> AsyncGenerator[tuple[asyncio.Transport, ssl.SSLSocket]]:
    """A connection after start_tls(), over a transport that holds up to `hold` bytes."""
    version = ssl.TLSVersion.TLSv1_3
    async with pair("tcp", peer_buffer=peer_buffer) as (_, writer, raw):
        with tls_peer(raw, version) as peer:
            shaken = asyncio.ensure_future(asyncio.to_thread(peer.do_handshake))
            plain = cast(asyncio.Transport, writer.transport)
            if hold is not None:
                plain.set_write_buffer_limits(high=hold)
            transport = await asyncio.get_running_loop().start_tls(
                plain, plain.get_protocol(), server_context(version), server_side=True
            )
            assert transport is not None
            await shaken
            yield transport, peer


@in_a_loop
async def test_a_connection_upgraded_by_start_tls_sends_close_notify() -> None:
    async with upgraded() as (transport, peer):
        transport.write(REPLY)
        client = asyncio.create_task(asyncio.to_thread(read_and_close, peer))
        result = await graceful_close(transport)
        assert await client == REPLY
        assert result.notified is True


@in_a_loop
async def test_a_loss_below_the_tls_transport_is_not_claimed_as_notified() -> None:
    """A TLS transport does not report what the transport below it holds."""

    def read_complete(peer: socket.socket) -> bool:
        try:
            return len(read_all(peer)) == len(MEGABYTES)
        except ssl.SSLEOFError:
            return False
        finally:
            peer.close()

    async with upgraded(peer_buffer=4096, hold=1 << 30) as (transport, peer):
        transport.write(MEGABYTES)
        client = asyncio.create_task(asyncio.to_thread(read_complete, peer))
        result = await graceful_close(transport, timeout=DEADLINE)
        complete = await client
        assert (result.notified is True) is complete
        assert result.clean is complete


# --- transports in other states --------------------------------------------------------------


@anything
@in_a_loop
async def test_a_reader_at_its_limit_does_not_prevent_a_close(kind: str) -> None:
    """The transport is paused then, and holds input that is not decrypted."""
    async with pair(kind, limit=100) as (reader, writer, peer):
        client = asyncio.create_task(asyncio.to_thread(upload_then_read, peer))
        await reader.readexactly(1)
        transport: Any = writer.transport
        while transport.is_reading() or (kind in TLS and not transport.get_read_buffer_size()):
            await asyncio.sleep(0)
        writer.write(REPLY)
        result = await graceful_close(writer, timeout=DEADLINE)
        assert await client == REPLY
        assert result.outcome is CloseOutcome.PEER_CLOSED
        assert result.notified is (True if kind in TLS else None)


class Buffered(asyncio.BufferedProtocol):
    """A protocol with its own buffer, which records the calls."""

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
async def test_the_callbacks_of_a_protocol_report_room_and_the_end_only(kind: str) -> None:
    async with pair(kind) as (_, writer, peer):
        protocol = Buffered()
        transport = cast(asyncio.Transport, writer.transport)
        transport.set_protocol(protocol)
        transport.write(MEGABYTES)
        transport.write(MEGABYTES)
        client = asyncio.create_task(asyncio.to_thread(read_and_close, peer))
        await graceful_close(transport, timeout=DEADLINE)
        assert await client == 2 * MEGABYTES
        uvloop_does_not_resume = kind in TLS and not isinstance(transport, asyncio.Transport)
        heard = ["pause", "lost"] if uvloop_does_not_resume else ["pause", "resume", "lost"]
        assert protocol.diary == heard


@in_a_loop
async def test_a_task_that_waits_in_drain_is_woken() -> None:
    async with pair("tcp") as (_, writer, peer):
        writer.write(MEGABYTES)
        draining = asyncio.create_task(writer.drain())
        await asyncio.sleep(0)
        assert not draining.done()
        client = asyncio.create_task(asyncio.to_thread(read_and_close, peer))
        await graceful_close(writer, timeout=DEADLINE)
        await asyncio.wait_for(draining, DEADLINE)
        assert await client == MEGABYTES


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("size", [10, 8_000_000])
@in_a_loop
async def test_a_stream_can_be_closed_after_write_eof(kind: str, size: int) -> None:
    async with pair(kind) as (_, writer, peer):
        writer.write(bytes(size))
        writer.write_eof()
        client = asyncio.create_task(asyncio.to_thread(read_and_close, peer))
        result = await graceful_close(writer, timeout=DEADLINE)
        assert len(await client) == size
        assert result.outcome in (CloseOutcome.PEER_CLOSED, CloseOutcome.NOT_CONNECTED)


@anything
@in_a_loop
async def test_the_close_of_a_transport_that_is_already_closing_is_completed(kind: str) -> None:
    async with pair(kind) as (_, writer, peer):
        writer.write(MEGABYTES)
        writer.close()
        client = asyncio.create_task(asyncio.to_thread(read_and_close, peer))
        result = await graceful_close(writer, timeout=DEADLINE)
        assert await client == MEGABYTES
        assert result.outcome is CloseOutcome.PEER_CLOSED
        assert is_closed(writer)


@anything
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("close", [graceful_close, abortive_close])
@in_a_loop
async def test_a_closed_transport_is_not_touched(
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
        assert 0 <= result.elapsed < DEADLINE


@in_a_loop
async def test_a_closed_socket_is_not_touched() -> None:
    with socket.socket() as sock:
        sock.close()
        assert (await graceful_close(sock)).outcome is CloseOutcome.ALREADY_CLOSED
        assert (await abortive_close(sock)).outcome is CloseOutcome.ALREADY_CLOSED


# --- many ------------------------------------------------------------------------------------


@in_a_loop
async def test_a_writer_and_its_transport_are_one_stream_beside_a_plain_socket() -> None:
    async with pair("tls1.3") as (_, writer, peer):
        with connect("tcp4") as (sock, sock_peer):
            sock_peer.close()
            client = asyncio.create_task(asyncio.to_thread(read_and_close, peer))
            transport = cast(asyncio.Transport, writer.transport)
            results = await close_all([sock, writer, transport], timeout=DEADLINE)
            assert await client == b""
            assert results[1] is results[2]
            assert [result.outcome for result in results] == [CloseOutcome.PEER_CLOSED] * 3
            assert [result.notified for result in results] == [None, True, True]
            assert is_closed(writer)
            assert sock.fileno() == -1


@in_a_loop
async def test_a_stream_that_cannot_flush_does_not_delay_the_others() -> None:
    async with (
        pair("tcp", peer_buffer=4096) as stuck,
        pair("tcp") as gone,
        pair("tcp") as free,
    ):
        with connect("tcp4") as (silent, _):
            gone.writer.transport.abort()
            while not is_closed(gone.writer):
                await asyncio.sleep(0)
            stuck.writer.write(MEGABYTES)
            free.writer.write(b"goodbye")
            client = asyncio.create_task(asyncio.to_thread(read_and_close, free.peer))
            streams: list[Any] = [silent, gone.writer, stuck.writer, free.writer]
            closed = asyncio.create_task(close_all(streams, timeout=1))
            assert await client == b"goodbye"
            assert not closed.done()
            _, _, first, second = await closed
        assert first.outcome is CloseOutcome.TIMED_OUT
        assert second.outcome is CloseOutcome.PEER_CLOSED
        assert second.elapsed < first.elapsed


@pytest.mark.parametrize("turns", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 50])
@in_a_loop
async def test_a_cancellation_closes_all_streams(turns: int) -> None:
    async with (
        pair("tcp", peer_buffer=4096) as stuck,
        pair("tcp") as silent,
        pair("tls1.3") as tls,
    ):
        with connect("tcp4") as (sock, _peer):
            silent.writer.write(b"reply")
            stuck.writer.write(MEGABYTES)
            linger_long(stuck.writer)
            async with heartbeat() as worst:
                everything: list[Any] = [sock, stuck.writer, silent.writer, tls.writer]
                closed = asyncio.create_task(close_all(everything, timeout=DEADLINE))
                for _ in range(turns):
                    await asyncio.sleep(0)
                closed.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await closed
            for end in (stuck, silent, tls):
                assert is_closed(end.writer)
            assert sock.fileno() == -1
            assert worst[0] < BLOCKED
            assert await in_thread(read_all, silent.peer) == b"reply"


# --- closing ---------------------------------------------------------------------------------


@in_a_loop
async def test_a_failed_abort_does_not_replace_the_error_of_the_body() -> None:
    async with pair("tcp") as (_, writer, peer):
        with descriptors.none_left(), pytest.raises(LookupError, match="its own"):
            async with closing(writer):
                raise LookupError("its own")
        assert is_closed(writer)
        assert await in_thread(ends_in_raw_reset, peer)


# --- what is refused --------------------------------------------------------------------------


@in_a_loop
async def test_an_object_that_is_not_a_stream_is_refused() -> None:
    loop = asyncio.get_running_loop()
    udp, _ = await loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
    )
    wrong: list[Any] = [object(), None, udp]
    if sys.platform != "win32":
        reader, writer = os.pipe()
        read_pipe, _ = await loop.connect_read_pipe(
            asyncio.Protocol, os.fdopen(reader, "rb", 0)
        )
        write_pipe, _ = await loop.connect_write_pipe(
            asyncio.Protocol, os.fdopen(writer, "wb", 0)
        )
        wrong += [read_pipe, write_pipe]
    async with pair("tcp") as (_, stream, _peer):
        with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
            for each in (*wrong, datagrams):
                await require_refusal(EVERY["asyncio"].module, each, stream)
        assert not stream.is_closing()
        for transport in wrong[2:]:
            assert not transport.is_closing()
            transport.close()


# --- importing -------------------------------------------------------------------------------


def test_the_module_does_not_hide_asyncio() -> None:
    assert asyncio.__name__ == "asyncio"
    assert sys.modules["graceful_close.asyncio"] is not asyncio
