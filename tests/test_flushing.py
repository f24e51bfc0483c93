"""What a transport of asyncio's still holds: it is sent while the peer takes it, or it is cut."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from certificates import NAME, client_context, server_context
from event_loops import LOOPS
from every_loop import leave_no_room, no_complaints
from graceful_close import CloseOutcome, CloseResult, LingerPolicy
from graceful_close.asyncio import abortive_close, close_all, closing, graceful_close
from streams import DEADLINE, await_input, read_and_close
from test_asyncio import Pair, in_a_loop, in_each, in_thread, pair
from tls_sessions import send_raw_fin

TLS = ("tls1.2", "tls1.3")
over_tcp = pytest.mark.parametrize("kind", ["tcp", *TLS])
one_or_many = pytest.mark.parametrize(
    "many", [False, True], ids=["graceful_close", "close_all"]
)

MEGABYTES = b"reply" * 400_000
ABORTED = f"[Errno {errno.ECONNABORTED}] the transport was aborted, or sends a file"
HELD = 8_000_000  # more than any kernel here takes at a time
SMALL_BUFFER = 65_536


@asynccontextmanager
async def held(kind: str, reply: bytes) -> AsyncGenerator[Pair]:
    """A stream whose transport holds most of a reply."""
    async with pair(kind, peer_buffer=SMALL_BUFFER) as both:
        sock: Any = both.writer.get_extra_info("socket")
        # The kernel is to hold little, so that the transport holds the rest.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
        both.writer.write(reply)
        yield both


async def close(writer: asyncio.StreamWriter, *, many: bool, **options: Any) -> CloseResult:
    """Close a stream on its own, or as one of many."""
    if many:
        return (await close_all([writer], **options))[0]
    return await graceful_close(writer, **options)


def reads_slowly(peer: socket.socket, pause: float = 0.02) -> bytes:
    peer.settimeout(DEADLINE)
    received = bytearray()
    while chunk := peer.recv(SMALL_BUFFER):
        received += chunk
        time.sleep(pause * len(chunk) / SMALL_BUFFER)
    peer.close()
    return bytes(received)


def how_it_ends(peer: socket.socket) -> tuple[int, type[OSError] | None]:
    """How much there was to read below TLS, and the error at its end; None: a FIN.

    A TLS socket does not always tell a reset from a FIN without close_notify.
    """
    with socket.socket(fileno=peer.detach()) as raw:
        raw.settimeout(DEADLINE)
        count = 0
        try:
            while chunk := raw.recv(1 << 20):
                count += len(chunk)
        except OSError as error:
            return count, type(error)
        return count, None


async def until_it_flushes(writer: asyncio.StreamWriter) -> None:
    while not writer.transport.is_closing():
        await asyncio.sleep(0)
    assert writer.transport.get_write_buffer_size() > 0


# --- a peer that reads ----------------------------------------------------------------------------


@over_tcp
@in_a_loop
async def test_a_reader_that_is_slow_and_steady_gets_it_whole(kind: str) -> None:
    async with held(kind, MEGABYTES) as (_, writer, peer):
        reading = asyncio.create_task(in_thread(reads_slowly, peer))
        result = await graceful_close(writer, timeout=0.3)
        assert await reading == MEGABYTES
        assert result.elapsed > 0.3, "or it was not slow"
        assert (result.outcome, result.clean) == (CloseOutcome.PEER_CLOSED, True)


@pytest.mark.parametrize("kind", ["tcp", "unix", *TLS])
@in_a_loop
async def test_so_does_each_of_many(kind: str) -> None:
    async with held(kind, MEGABYTES) as (_, one, its), held(kind, MEGABYTES) as (_, two, other):
        reading = [asyncio.create_task(in_thread(reads_slowly, peer)) for peer in (its, other)]
        results = await close_all([one, two], timeout=0.3)
        assert await asyncio.gather(*reading) == [MEGABYTES] * 2
        assert [result.clean for result in results] == [True, True]


@pytest.mark.parametrize("policy", [LingerPolicy.BACKGROUND, LingerPolicy.ABORT])
@over_tcp
@in_a_loop
async def test_one_that_stops_reading_is_given_up(kind: str, policy: Any) -> None:
    async with held(kind, bytes(HELD)) as (_, writer, peer):
        await in_thread(peer.recv, SMALL_BUFFER)
        result = await graceful_close(writer, timeout=0.3, on_timeout=policy)
        assert result.outcome is CloseOutcome.TIMED_OUT
        assert 0.3 <= result.elapsed < 3
        assert not result.clean
        assert writer.transport.is_closing()
        count, error = await in_thread(how_it_ends, peer)
        assert count < HELD
        assert error is not None, "half a reply does not end in order"


@pytest.mark.parametrize("kind", ["tcp", "unix", *TLS])
@in_a_loop
async def test_a_peer_that_half_closes_and_stops_reading_costs_no_processor_time(
    kind: str,
) -> None:
    async with held(kind, bytes(HELD)) as (_, writer, peer):
        ending = asyncio.create_task(graceful_close(writer, timeout=1))
        await until_it_flushes(writer)
        send_raw_fin(peer)
        before = time.process_time()
        result = await ending
        assert time.process_time() - before < 0.1
        assert result.outcome is CloseOutcome.TIMED_OUT


@one_or_many
@over_tcp
@in_a_loop
async def test_the_end_of_the_coroutine_resets(kind: str, many: bool) -> None:
    """Nothing can be awaited then."""
    async with held(kind, bytes(HELD)) as (_, writer, peer):
        ending = close_all([writer]) if many else graceful_close(writer)
        while ending.send(None) is None:
            pass
        ending.close()
        assert writer.is_closing()
        assert (await in_thread(how_it_ends, peer))[1] is ConnectionResetError


# --- another task cuts it --------------------------------------------------------------------------


@one_or_many
@over_tcp
@in_a_loop
async def test_what_another_task_aborts_meanwhile_is_reset_and_not_clean(
    kind: str, many: bool
) -> None:
    async with held(kind, bytes(HELD)) as (_, writer, peer):
        ending = asyncio.create_task(close(writer, many=many, timeout=DEADLINE))
        await until_it_flushes(writer)
        writer.transport.abort()
        result = await ending
        assert not result.clean
        assert str(result.error) == ABORTED
        assert (result.unacked or 0) > 0 or kind in TLS
        assert result.elapsed < 3
        count, error = await in_thread(how_it_ends, peer)
        assert count < HELD
        assert error is ConnectionResetError


@one_or_many
@pytest.mark.parametrize("kind", ["unix", "tls1.2 unix", "tls1.3 unix"])
@in_a_loop
async def test_what_another_task_aborts_is_not_clean_although_the_kernel_does_not_count(
    kind: str, many: bool
) -> None:
    async with pair(kind) as (_, writer, peer):
        writer.write(bytes(HELD))
        ending = asyncio.create_task(close(writer, many=many))
        await until_it_flushes(writer)
        writer.transport.abort()
        result = await ending
        assert (str(result.error), result.unacked) == (ABORTED, None)
        assert (await in_thread(how_it_ends, peer))[0] < HELD


@pytest.mark.parametrize("closed_before", [False, True])
@pytest.mark.parametrize("size", [1, 1000], ids="{} bytes".format)
@in_a_loop
async def test_what_was_flushed_is_clean_although_the_kernel_does_not_count(
    size: int, closed_before: bool
) -> None:
    async with pair("unix") as (_, writer, peer):
        before = leave_no_room(writer.get_extra_info("socket"))
        writer.write(bytes(size))
        assert writer.transport.get_write_buffer_size() == size
        if closed_before:
            writer.close()
        ending = asyncio.create_task(graceful_close(writer, timeout=DEADLINE))
        while not writer.transport.is_closing():
            await asyncio.sleep(0)
        assert len(await in_thread(read_and_close, peer)) == before + size
        result = await ending
        assert (result.outcome, result.error) == (CloseOutcome.PEER_CLOSED, None)


@pytest.mark.parametrize("kind", TLS)
@in_a_loop
async def test_a_close_by_another_task_during_the_flush_changes_nothing(kind: str) -> None:
    async with held(kind, bytes(HELD)) as (_, writer, peer):
        sock: Any = writer.get_extra_info("socket")
        with no_complaints() as complaints:
            asyncio.get_running_loop().set_exception_handler(
                lambda _, context: complaints.append(context)
            )
            ending = asyncio.create_task(graceful_close(writer, timeout=DEADLINE))
            await until_it_flushes(writer)
            writer.close()
            reading = asyncio.create_task(in_thread(reads_slowly, peer, 0))
            result = await ending
            assert await reading == bytes(HELD)
        assert result.clean
        assert sock.fileno() == -1


@over_tcp
@in_a_loop
async def test_an_abortive_close_ends_a_graceful_one(kind: str) -> None:
    async with held(kind, bytes(HELD)) as (_, writer, peer):
        ending = asyncio.create_task(graceful_close(writer, timeout=DEADLINE))
        await until_it_flushes(writer)
        aborted = await abortive_close(writer)
        result = await ending
        assert not result.clean
        assert result.elapsed < 3
        count, error = await in_thread(how_it_ends, peer)
        assert (count < HELD, error) == (True, ConnectionResetError), aborted


@one_or_many
@in_each({"asyncio": LOOPS["asyncio"]})
async def test_half_a_file_does_not_end_in_order(many: bool) -> None:
    """A task closes a connection on which loop.sendfile() is under way; uvloop has none."""
    loop = asyncio.get_running_loop()
    # asyncio's own connection_lost() complains of what sendfile() leaves in the transport.
    loop.set_exception_handler(lambda _loop, _context: None)
    async with pair("tcp", peer_buffer=SMALL_BUFFER) as (_, writer, peer):
        with tempfile.TemporaryFile() as file:
            file.truncate(HELD)
            sending = asyncio.create_task(loop.sendfile(writer.transport, file))
            await in_thread(await_input, peer)
            result = await close(writer, many=many, timeout=0.5)
            sending.cancel()  # on its own it waits for room forever
            await asyncio.wait([sending])
        assert not result.clean
        count, error = await in_thread(how_it_ends, peer)
        assert count < HELD
        assert error is ConnectionResetError


# --- a transport that takes the place of another --------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("as_block", [False, True], ids=["graceful_close", "closing"])
@in_a_loop
async def test_what_start_tls_made_of_a_stream_is_closed(
    version: ssl.TLSVersion, as_block: bool
) -> None:
    ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    serving, asking = server_context(version), client_context(version)  # made by one thread

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"STARTTLS\r\n"
        writer.write(b"go ahead\r\n")
        await writer.start_tls(serving)
        writer.write(MEGABYTES)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if as_block:
                block = closing(writer, timeout=DEADLINE)
                async with block:
                    await talk(reader, writer)
                ended.set_result(block.result)
            else:
                await talk(reader, writer)
                ended.set_result(await graceful_close(writer, timeout=DEADLINE))
        except BaseException as error:  # noqa: BLE001
            ended.set_exception(error)

    def client(address: Any) -> bytes:
        with socket.create_connection(address, DEADLINE) as raw:
            raw.sendall(b"STARTTLS\r\n")
            assert raw.recv(100) == b"go ahead\r\n"
            with asking.wrap_socket(
                raw, server_hostname=NAME, suppress_ragged_eofs=False
            ) as peer:
                received = bytearray()
                while chunk := peer.recv(SMALL_BUFFER):
                    received += chunk
                return bytes(received)

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        received = await in_thread(client, server.sockets[0].getsockname())
        result = await ended
    assert received == MEGABYTES, "and then close_notify"
    assert (result.outcome, result.notified) == (CloseOutcome.PEER_CLOSED, True)
    assert result.clean
