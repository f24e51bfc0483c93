"""Kernels that reject features of Linux, such as gVisor: the count of bytes, options.

The connections and their states are real; the count is queried with a number that every socket
rejects.
"""

from __future__ import annotations

import _socket
import errno
import socket
import sys
from contextlib import closing
from typing import Any

import pytest

import graceful_close._platform as platform
from drivers import DELIVERING, GRACEFUL, WAITING, Close, parts
from graceful_close import (
    CloseOutcome,
    Reaper,
    abortive_close,
    graceful_close,
    timed_linger_close,
    unacked_bytes,
)
from graceful_close._asyncio_transport import _piece_of  # pyright: ignore[reportPrivateUsage]
from graceful_close._platform import SYSTEMS, TcpState
from graceful_close._platform.acks import AckProbe, Field, Ioctl
from graceful_close._record import replace
from streams import (
    DEADLINE,
    Connection,
    Full,
    connect_many,
    meanwhile,
    read_all,
    read_and_close,
    send_fin,
)

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the states in TCP_INFO are those of Linux"
)

NOBODYS = Ioctl(1)  # ENOTTY


@pytest.fixture(autouse=True)
def refused_count(monkeypatch: pytest.MonkeyPatch) -> None:
    acks = platform.HERE.acks
    assert acks is not None
    without = replace(platform.HERE, acks=replace(acks, queue=NOBODYS))
    monkeypatch.setattr("graceful_close._platform.HERE", without)


@pytest.mark.parametrize("close", parts(DELIVERING))
def test_delivery_is_detected_by_the_state(tcp: Connection, close: Close) -> None:
    tcp.ours.sendall(b"reply")
    result = close(tcp.ours, timeout=DEADLINE)
    assert (result.outcome, result.unacked) == (CloseOutcome.DELIVERED, 0)


def test_data_that_the_peer_does_not_accept_is_not_delivered(full: Full) -> None:
    result = timed_linger_close(full.ours, 0.05)
    assert (result.outcome, result.unacked) == (CloseOutcome.TIMED_OUT, None)
    assert len(read_all(full.peer)) == full.written


def test_data_that_the_peer_accepts_late_is_delivered(full: Full) -> None:
    with meanwhile(read_all, full.peer):
        result = timed_linger_close(full.ours, DEADLINE)
    assert (result.outcome, result.unacked) == (CloseOutcome.DELIVERED, 0)


@pytest.mark.parametrize("close", parts(GRACEFUL))
def test_a_peer_that_closes_is_reported_as_closed(tcp: Connection, close: Close) -> None:
    tcp.ours.sendall(b"reply")
    with meanwhile(read_and_close, tcp.peer):
        result = close(tcp.ours, timeout=DEADLINE, idle_timeout=DEADLINE)
    assert result.outcome is CloseOutcome.PEER_CLOSED


@pytest.mark.parametrize("close", parts(WAITING))
def test_a_peer_that_resets_with_our_data_unread_is_reported_as_reset(
    close: Close, full: Full
) -> None:
    abortive_close(full.peer)
    result = close(full.ours, timeout=DEADLINE)
    assert (result.outcome, result.unacked) == (CloseOutcome.PEER_RESET, None)


def test_a_reset_does_not_change_the_other_closes_of_a_reaper() -> None:
    with connect_many(10) as connections, Reaper(timeout=DEADLINE) as reaper:
        (first, resets), *others = connections
        abortive_close(resets)
        reset = reaper.submit(first)
        futures = [reaper.submit(ours) for ours, _ in others]
        for _, peer in others:
            peer.close()
        assert reset.result(DEADLINE).outcome is CloseOutcome.PEER_RESET
        ends = {future.result(DEADLINE).outcome for future in futures}
        assert ends == {CloseOutcome.PEER_CLOSED}


def test_the_count_is_unknown_until_the_state_proves_it(tcp: Connection) -> None:
    assert unacked_bytes(tcp.ours) is None


def test_after_the_peers_fin_the_count_is_unknown(full: Full) -> None:
    send_fin(full.peer, to=full.ours)
    result = graceful_close(full.ours, timeout=DEADLINE)
    assert (result.outcome, result.unacked) == (CloseOutcome.PEER_CLOSED, None)


class WithoutLowWater(_socket.socket):
    def getsockopt(self, level: int, option: int, *size: int) -> Any:
        if option == socket.SO_SNDLOWAT:
            raise OSError(errno.ENOPROTOOPT, "Protocol not available")
        return super().getsockopt(level, option)


def test_without_a_low_water_mark_a_write_is_a_part_of_the_send_buffer() -> None:
    with closing(WithoutLowWater()) as sock:
        buffer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        piece_of: Any = _piece_of
        assert 1 < piece_of(sock) < buffer


class Kernel:
    """Simulates a socket that answers only TCP_INFO."""

    def __init__(self, info: bytes) -> None:
        self.info = info

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        return self.info[:size]

    def fileno(self) -> int:
        raise OSError(errno.EBADF, "no ioctl here")


def kernel(state: int, **words: int) -> Any:
    info = bytearray(224)
    info[0] = state
    for offset, word in words.items():
        info[int(offset[1:])] = word
    return Kernel(bytes(info))


@pytest.mark.parametrize("state", range(1, 12))
def test_without_a_count_everything_is_acknowledged_only_in_fin_wait_2_and_time_wait(
    state: int,
) -> None:
    probe = SYSTEMS["linux"].acks
    assert isinstance(probe, AckProbe)
    if state in {5, 6}:
        assert probe.read(kernel(state)) == 0
    else:
        with pytest.raises(OSError, match="no ioctl here"):
            probe.read(kernel(state))


CLOSED = 7


def test_never_connected_is_distinguished_from_closed_only_if_the_kernel_has_the_fields() -> (
    None
):
    probe = SYSTEMS["linux"].state
    assert probe is not None
    mss, segments_in = {"_16": 88}, {"_140": 2}
    assert probe.read(kernel(CLOSED)) is TcpState.OVER, "gVisor"
    assert probe.read(kernel(CLOSED, **mss)) is TcpState.NEVER_OPEN
    assert probe.read(kernel(CLOSED, **mss, **segments_in)) is TcpState.OVER


def test_a_short_tcp_info_is_an_unknown_state() -> None:
    probe = SYSTEMS["linux"].state
    assert probe is not None
    short: Any = Kernel(bytes([CLOSED]))
    assert probe.read(short) is None
    with pytest.raises(OSError, match="ends before"):
        Field(6, 11, offset=16, size=4).read(short)
