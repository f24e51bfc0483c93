"""TLS on every event loop: one close_notify goes out before the FIN, or none is claimed."""

from __future__ import annotations

import socket
import ssl
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio
from anyio.abc import SocketStream
from anyio.streams.tls import TLSStream

from certificates import NAME, client_context, server_context
from every_loop import (
    ASYNCIO,
    TLS,
    TRIO_AND_ANYIO,
    Loop,
    every_tls,
    leave_no_room,
    on,
    pair,
    send_then_read_raw,
    version_of,
)
from graceful_close import CloseOutcome
from streams import (
    DEADLINE,
    await_fin,
    await_input,
    connect,
    meanwhile,
    read_and_close,
    reset,
)
from tls_sessions import (
    is_one_close_notify,
    read_raw_and_close,
    send_close_notify,
    send_raw_fin,
)


@every_tls
async def test_one_close_notify_goes_out_and_the_fin_does_not_wait_for_the_peers(
    loop: Loop, kind: str
) -> None:
    async with pair(loop, kind) as (stream, peer):
        with meanwhile(read_raw_and_close, peer) as received:
            result = await loop.module.graceful_close(stream, timeout=DEADLINE)
        assert is_one_close_notify(received[0], version_of(kind))
        assert result.outcome is CloseOutcome.PEER_CLOSED
        assert (result.notified, result.peer_notified) == (True, None)
        assert result.elapsed < DEADLINE / 2


@every_tls
async def test_input_that_is_not_decrypted_does_not_stop_close_notify(
    loop: Loop, kind: str
) -> None:
    async with pair(loop, kind) as (stream, peer):
        for _ in range(3):
            peer.sendall(b"u" * 1000)
        await_input(loop.raw(stream))
        assert await loop.receive(stream, 1) == b"u"
        with meanwhile(read_and_close, peer) as received:
            result = await loop.module.graceful_close(stream, timeout=DEADLINE)
        assert received == [b""]
        assert result.notified


@on(TRIO_AND_ANYIO, TLS)
async def test_the_result_reports_the_close_notify_of_the_peer(loop: Loop, kind: str) -> None:
    async with pair(loop, kind) as (stream, peer):
        send_close_notify(peer)
        assert await loop.receive(stream) == b""
        with meanwhile(read_raw_and_close, peer):
            result = await loop.module.graceful_close(stream, timeout=DEADLINE)
        assert (result.notified, result.peer_notified) == (True, True)


@on(TRIO_AND_ANYIO, TLS)
async def test_a_fin_is_not_taken_for_the_close_notify_of_the_peer(
    loop: Loop, kind: str
) -> None:
    async with pair(loop, kind) as (stream, peer):
        send_raw_fin(peer)
        if kind != "HTTPS":
            with pytest.raises((trio.BrokenResourceError, anyio.BrokenResourceError)):
                await loop.receive(stream)
        else:
            assert await loop.receive(stream) == b""
        with meanwhile(read_raw_and_close, peer):
            result = await loop.module.graceful_close(stream, timeout=DEADLINE)
        assert result.outcome is CloseOutcome.PEER_CLOSED
        assert result.notified is False
        assert not result.peer_notified


@on(ASYNCIO, ["TLS 1.2", "TLS 1.3"])
async def test_a_close_notify_after_the_peers_fin_is_reported_only_if_it_goes_out(
    loop: Loop, kind: str
) -> None:
    async with pair(loop, kind) as (stream, peer):
        stream.write(bytes(20_000_000))
        send_raw_fin(peer)
        await_fin(loop.raw(stream))
        for _ in range(10):  # the transport reads it, too
            await anyio.lowlevel.checkpoint()
        with meanwhile(read_raw_and_close, peer) as received:
            result = await loop.module.graceful_close(stream, timeout=DEADLINE)
        notified = is_one_close_notify(last_record(received[0]), version_of(kind))
        assert (result.outcome, result.notified) == (CloseOutcome.PEER_CLOSED, notified)


def last_record(records: bytes) -> bytes:
    """The last of the TLS records (RFC 8446, section 5.1: the length has two bytes)."""
    start = 0
    while (end := start + 5 + int.from_bytes(records[start + 3 : start + 5])) < len(records):
        start = end
    return records[start:]


@on(TRIO_AND_ANYIO)
async def test_each_session_of_tls_over_tls_sends_its_close_notify(loop: Loop) -> None:
    version = ssl.TLSVersion.TLSv1_3
    server, client = server_context(version), client_context(version)
    with connect("tcp4") as (ours, theirs):
        stream = await loop.open(ours)
        peer: Any = await SocketStream.from_socket(theirs)

        async def wrap_peer() -> None:
            nonlocal peer
            peer = await TLSStream.wrap(peer, ssl_context=client, hostname=NAME)

        for _ in range(2):
            async with anyio.create_task_group() as group:
                group.start_soon(wrap_peer)
                stream = await loop.over_tls(stream, server)
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
            await loop.receive(stream, 10)
            await loop.send(stream, b"reply")
            result = await loop.module.graceful_close(stream, timeout=DEADLINE)
            assert result.check().notified
        assert heard == [b"reply"]


# --- close_notify without room -------------------------------------------------------------------
# Over AF_UNIX a full buffer stays full. TCP probes the peer's window, and sends some bytes some day.
# asyncio's transports decrypt what arrives, and what the peer sends here is not TLS.


@pytest.mark.parametrize("family", ["tcp4", "unix"])
@on(TRIO_AND_ANYIO)
async def test_while_close_notify_waits_for_room_the_upload_is_read(
    loop: Loop, family: str
) -> None:
    async with pair(loop, "TLS 1.2", family=family, peer_buffer=4096) as (stream, peer):
        written = leave_no_room(loop.raw(stream))
        with meanwhile(send_then_read_raw, peer) as received:
            result = await loop.module.graceful_close(
                stream, timeout=DEADLINE, idle_timeout=DEADLINE / 2
            )
        assert is_one_close_notify(received[0][written:], ssl.TLSVersion.TLSv1_2)
        assert result.outcome is CloseOutcome.PEER_CLOSED
        assert (result.drained, result.notified) == (1_000_000, True)


@pytest.mark.parametrize(
    ("options", "outcome"),
    [
        ({"timeout": 0.2}, CloseOutcome.TIMED_OUT),
        ({"timeout": DEADLINE, "idle_timeout": 0.2}, CloseOutcome.IDLE_TIMED_OUT),
    ],
)
@on(TRIO_AND_ANYIO)
async def test_a_close_notify_without_room_until_the_deadline_is_not_claimed(
    loop: Loop, options: dict[str, Any], outcome: CloseOutcome
) -> None:
    async with pair(loop, "TLS 1.2", family="unix") as (stream, _peer):
        leave_no_room(loop.raw(stream))
        result = await loop.module.graceful_close(stream, **options)
        assert (result.outcome, result.notified) == (outcome, False)
        assert 0.2 <= result.elapsed < DEADLINE
        assert not result.clean


@on(TRIO_AND_ANYIO)
async def test_the_drain_limit_counts_what_arrives_while_close_notify_waits(loop: Loop) -> None:
    async with pair(loop, "TLS 1.2", family="unix") as (stream, peer):
        leave_no_room(loop.raw(stream))
        socket.socket.sendall(peer, bytes(50_000))
        result = await loop.module.graceful_close(stream, timeout=0.5, drain_limit=10_000)
        assert (result.outcome, result.drained) == (CloseOutcome.DRAIN_LIMIT, 10_001)


@on(TRIO_AND_ANYIO)
async def test_a_reset_while_close_notify_waits_is_a_result(loop: Loop) -> None:
    async with pair(loop, "TLS 1.2", peer_buffer=4096) as (stream, peer):
        leave_no_room(loop.raw(stream))

        async def reset_later() -> None:
            await anyio.wait_all_tasks_blocked()
            reset(peer)

        async with anyio.create_task_group() as group:
            group.start_soon(reset_later)
            result = await loop.module.graceful_close(stream, timeout=DEADLINE)
            assert result.outcome is CloseOutcome.PEER_RESET
            assert isinstance(result.error, ConnectionResetError)
