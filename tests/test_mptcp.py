"""Multipath TCP: connections that fell back to TCP, and multipath connections."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from drivers import DELIVERING, GRACEFUL, Close, parts
from graceful_close import (
    CloseOutcome,
    CloseResult,
    LingerPolicy,
    abortive_close,
    unacked_bytes,
)
from graceful_close._platform.acks import Ioctl
from graceful_close.asyncio import graceful_close
from streams import (
    DEADLINE,
    Connection,
    await_reset,
    ends_in_reset,
    fill,
    meanwhile,
    read_all,
    read_and_close,
    read_and_close_late,
)
from test_other_holders import needs_syscalls, reading, send_forever

IPPROTO_MPTCP = 262  # include/uapi/linux/in.h; Python has it from 3.10 on
SO_PROTOCOL = 38  # asm-generic/socket.h


def _why_not() -> str | None:
    if sys.platform != "linux":
        return "only Linux has MPTCP"
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP).close()
    except OSError as error:
        return f"this kernel has no MPTCP: {error}"
    return None


_reason = _why_not()
pytestmark = pytest.mark.skipif(_reason is not None, reason=str(_reason))

every_close = pytest.mark.parametrize("close", parts(GRACEFUL))


@contextmanager
def behind_mptcp(
    protocol: int, peer_buffer: int | None = None
) -> Generator[Connection, None, None]:
    """A client of `protocol`, accepted by a listener of MPTCP."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as peer:
            if peer_buffer is not None:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, peer_buffer)
            peer.settimeout(DEADLINE)
            peer.connect(listener.getsockname())
            with listener.accept()[0] as ours:
                assert ours.proto == IPPROTO_MPTCP, "Python reports this for both"
                yield Connection(ours, peer)


@contextmanager
def reset_by_the_server(buffer: int | None = None) -> Generator[socket.socket, None, None]:
    """An MPTCP client of a plain server, which has closed and read nothing of what was written."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP) as ours:
            ours.connect(listener.getsockname())
            peer = listener.accept()[0]
            if buffer is not None:
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            fill(ours)
            peer.sendall(b"input")
            peer.close()
            await_reset(ours)
            yield ours


@pytest.fixture
def plain() -> Generator[Connection, None, None]:
    """A connection that fell back to plain TCP (RFC 8684, section 3.7)."""
    with behind_mptcp(socket.IPPROTO_TCP) as connection:
        yield connection


@pytest.fixture
def multipath() -> Generator[Connection, None, None]:
    with behind_mptcp(IPPROTO_MPTCP) as connection:
        if connection.ours.getsockopt(socket.SOL_SOCKET, SO_PROTOCOL) != IPPROTO_MPTCP:
            pytest.skip("MPTCP is switched off here (net.mptcp.enabled)")
        yield connection


@pytest.fixture(params=["plain", "multipath"])
def either(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


# --- a client of plain TCP --------------------------------------------------------------------


def test_the_bytes_to_a_plain_client_are_counted_as_with_tcp() -> None:
    with behind_mptcp(socket.IPPROTO_TCP, peer_buffer=4096) as (ours, peer):
        written = fill(ours)
        count = unacked_bytes(ours)
        assert count is not None
        assert 0 < count <= written
        with meanwhile(read_all, peer) as received:
            ours.shutdown(socket.SHUT_WR)
        assert len(received[0]) == written
        assert unacked_bytes(ours) == 0


@pytest.mark.parametrize(
    ("protocol", "aborted"),
    [(socket.IPPROTO_TCP, False), (IPPROTO_MPTCP, False), (IPPROTO_MPTCP, True)],
)
def test_what_a_transport_holds_is_counted_and_what_it_dropped_is_not(
    protocol: int, aborted: bool
) -> None:
    import termios

    reply = bytes(8_000_000)  # more than the kernel takes

    async def close_what_the_peer_does_not_read(ours: socket.socket) -> CloseResult:
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
            asyncio.Protocol, ours
        )
        transport.write(reply)
        ending = asyncio.create_task(graceful_close(transport, timeout=0.2))
        while not transport.is_closing():
            await asyncio.sleep(0)
        if aborted:
            transport.abort()
        return await ending

    with behind_mptcp(protocol, peer_buffer=4096) as (ours, peer):
        if ours.getsockopt(socket.SOL_SOCKET, SO_PROTOCOL) != protocol:
            pytest.skip("MPTCP is switched off here (net.mptcp.enabled)")
        result = asyncio.run(close_what_the_peer_does_not_read(ours))
        unread = Ioctl(termios.FIONREAD).read(peer)
        assert unread is not None
        # The kernel does not count what was written to a multipath connection.
        assert result.unacked == (None if aborted else len(reply) - unread)


def test_without_data_the_count_is_zero(plain: Connection) -> None:
    assert unacked_bytes(plain.ours) == 0


@pytest.mark.parametrize("close", parts(DELIVERING))
def test_delivered_to_a_plain_client_is_returned_at_the_acknowledgement(
    plain: Connection, close: Close
) -> None:
    plain.ours.sendall(b"reply")
    result = close(plain.ours, timeout=DEADLINE)
    assert (result.outcome, result.unacked) == (CloseOutcome.DELIVERED, 0)
    assert result.elapsed < DEADLINE / 10
    assert read_all(plain.peer) == b"reply"


# --- both -------------------------------------------------------------------------------------


@every_close
def test_a_peer_that_closes_after_us_is_reported_as_closed(
    either: Connection, close: Close
) -> None:
    either.peer.sendall(b"upload")
    either.ours.sendall(b"reply")
    with meanwhile(read_and_close_late, either.peer) as received:
        result = close(either.ours, timeout=DEADLINE)
    assert received == [b"reply"]
    assert result.outcome is CloseOutcome.PEER_CLOSED
    assert (result.drained, result.unacked in (0, None)) == (6, True)
    assert result.elapsed < DEADLINE / 2
    assert result.clean


@every_close
def test_a_silent_peer_has_not_closed(either: Connection, close: Close) -> None:
    either.ours.sendall(b"reply")
    result = close(either.ours, timeout=0.3)
    assert result.outcome is CloseOutcome.TIMED_OUT
    assert 0.3 <= result.elapsed < DEADLINE / 10
    assert read_all(either.peer) == b"reply"


@every_close
def test_on_timeout_abort_resets_a_silent_peer(either: Connection, close: Close) -> None:
    either.ours.sendall(b"reply")
    result = close(either.ours, timeout=0.3, on_timeout=LingerPolicy.ABORT)
    assert result.outcome is CloseOutcome.TIMED_OUT
    assert either.ours.fileno() == -1
    with pytest.raises(ConnectionError):
        send_forever(either.peer)


@every_close
def test_the_callers_shut_rd_is_not_reported_as_the_peers_fin(
    either: Connection, close: Close, request: pytest.FixtureRequest
) -> None:
    if either.ours.getsockopt(socket.SOL_SOCKET, SO_PROTOCOL) == IPPROTO_MPTCP:
        reason = "no option reports the state of the connection, so recv() is the only source"
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    either.ours.shutdown(socket.SHUT_RD)
    result = close(either.ours, timeout=0.3)
    assert result.outcome is CloseOutcome.TIMED_OUT


def test_an_abort_resets(either: Connection) -> None:
    either.ours.sendall(b"reply")
    assert abortive_close(either.ours).outcome is CloseOutcome.ABORTED
    assert ends_in_reset(either.peer)


@every_close
def test_a_new_socket_has_no_connection(close: Close) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP) as sock:
        result = close(sock, timeout=3.0)
    assert result.outcome is CloseOutcome.NOT_CONNECTED
    assert result.elapsed < 1


# --- multipath --------------------------------------------------------------------------------


@pytest.mark.parametrize("close", parts(DELIVERING))
def test_data_that_the_peer_does_not_accept_is_not_delivered(close: Close) -> None:
    with behind_mptcp(IPPROTO_MPTCP, peer_buffer=4096) as (ours, peer):
        written = fill(ours)
        count = unacked_bytes(ours)
        result = close(ours, timeout=0.3)
        assert result.outcome is CloseOutcome.TIMED_OUT
        assert not result.clean
        assert count is None or 0 < count <= written
        assert result.unacked is None or 0 < result.unacked <= written + 1
        assert peer.recv(1) == b"x"


def test_data_that_the_peer_has_read_is_not_counted(multipath: Connection) -> None:
    multipath.ours.sendall(b"reply")
    with meanwhile(read_and_close, multipath.peer) as received:
        result = GRACEFUL["graceful_close"](multipath.ours, timeout=DEADLINE)
    assert received == [b"reply"]
    assert (result.outcome, result.unacked in (0, None)) == (CloseOutcome.PEER_CLOSED, True)


# After a reset the kernel counts 0 bytes, or with small buffers a part of what was lost.
every_buffer = pytest.mark.parametrize("buffer", [None, 8192])


@every_close
@every_buffer
def test_a_count_that_a_reset_has_changed_is_not_reported(
    close: Close, buffer: int | None
) -> None:
    with reset_by_the_server(buffer) as ours:
        result = close(ours, timeout=DEADLINE, drain_limit=0)
    assert result.outcome in {CloseOutcome.DRAIN_LIMIT, CloseOutcome.PEER_RESET}
    assert result.unacked is None


@every_close
def test_a_reset_that_another_has_read_leaves_nothing_known(close: Close) -> None:
    with reset_by_the_server() as ours:
        ours.recv(100)
        with suppress(ConnectionError):
            ours.recv(100)
        result = close(ours, timeout=DEADLINE)
    assert (result.outcome, result.unacked) == (CloseOutcome.NOT_CONNECTED, None)
    assert not result.clean


@every_buffer
def test_unacked_bytes_reports_no_count_that_a_reset_has_changed(buffer: int | None) -> None:
    with reset_by_the_server(buffer) as ours:
        assert unacked_bytes(ours) is None


@needs_syscalls
def test_a_blocked_reader_does_not_prevent_a_reset(either: Connection) -> None:
    with reading(either.ours):
        assert abortive_close(either.ours).outcome is CloseOutcome.ABORTED
    with pytest.raises(ConnectionError):
        send_forever(either.peer)
