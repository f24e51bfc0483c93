"""Kernels that refuse what Linux knows, as gVisor does: the count of unacknowledged bytes, options.

The connections are real, and so is their state; the count is asked for by a number that no socket
answers.
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
from drivers import GRACEFUL, WAITING, Close, parts
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
    PATIENCE,
    await_fin,
    connect,
    connect_many,
    fill,
    meanwhile,
    read_all,
    read_and_close,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="TCP_INFO's states are Linux's")

NOBODYS = Ioctl(1)  # ENOTTY


@pytest.fixture(autouse=True)
def refused_count(monkeypatch: pytest.MonkeyPatch) -> None:
    acks = platform.HERE.acks
    assert acks is not None
    without = replace(platform.HERE, acks=replace(acks, queue=NOBODYS))
    monkeypatch.setattr("graceful_close._platform.HERE", without)


@pytest.mark.parametrize("close", parts(WAITING))
def test_delivery_is_seen_by_the_state(close: Close) -> None:
    with connect("tcp4") as tcp:
        tcp.ours.sendall(b"reply")
        until: Any = {} if close is WAITING["timed_linger_close"] else UNTIL_DELIVERED
        result = close(tcp.ours, timeout=PATIENCE, **until)
        assert (result.outcome, result.unacked) == (CloseOutcome.DELIVERED, 0)


UNTIL_DELIVERED: dict[str, Any] = {"until": CloseOutcome.DELIVERED}


def test_what_the_peer_does_not_take_is_not_delivered() -> None:
    with connect("tcp4", peer_buffer=4096) as tcp:
        written = fill(tcp.ours)
        result = timed_linger_close(tcp.ours, 0.05)
        assert (result.outcome, result.unacked) == (CloseOutcome.TIMED_OUT, None)
        assert len(read_all(tcp.peer)) == written


def test_what_the_peer_takes_late_is_delivered_then() -> None:
    with connect("tcp4", peer_buffer=4096) as tcp:
        fill(tcp.ours)
        with meanwhile(read_all, tcp.peer):
            result = timed_linger_close(tcp.ours, PATIENCE)
        assert (result.outcome, result.unacked) == (CloseOutcome.DELIVERED, 0)


@pytest.mark.parametrize("close", parts(GRACEFUL))
def test_a_polite_peer_is_peer_closed(close: Close) -> None:
    with connect("tcp4") as tcp:
        tcp.ours.sendall(b"reply")
        with meanwhile(read_and_close, tcp.peer):
            result = close(tcp.ours, timeout=PATIENCE, idle_timeout=PATIENCE)
        assert result.outcome is CloseOutcome.PEER_CLOSED


@pytest.mark.parametrize("close", parts(WAITING))
def test_a_peer_that_resets_with_our_data_unread_is_peer_reset(close: Close) -> None:
    with connect("tcp4", peer_buffer=4096) as tcp:
        fill(tcp.ours)
        abortive_close(tcp.peer)
        result = close(tcp.ours, timeout=PATIENCE)
        assert (result.outcome, result.unacked) == (CloseOutcome.PEER_RESET, None)


def test_one_reset_costs_no_other_connection_of_the_reaper_anything() -> None:
    with connect_many(10) as connections, Reaper(timeout=PATIENCE) as reaper:
        (first, resets), *others = connections
        abortive_close(resets)
        reset = reaper.submit(first)
        futures = [reaper.submit(ours) for ours, _ in others]
        for _, peer in others:
            peer.close()
        assert reset.result(PATIENCE).outcome is CloseOutcome.PEER_RESET
        ends = {future.result(PATIENCE).outcome for future in futures}
        assert ends == {CloseOutcome.PEER_CLOSED}


def test_the_count_is_unknown_until_the_state_tells_it() -> None:
    with connect("tcp4") as tcp:
        assert unacked_bytes(tcp.ours) is None


def test_after_a_fin_of_the_peers_nothing_is_claimed_of_what_it_took() -> None:
    with connect("tcp4", peer_buffer=4096) as tcp:
        fill(tcp.ours)
        tcp.peer.shutdown(1)
        await_fin(tcp.ours)
        result = graceful_close(tcp.ours, timeout=PATIENCE)
        assert (result.outcome, result.unacked) == (CloseOutcome.PEER_CLOSED, None)


class WithoutLowWater(_socket.socket):
    def getsockopt(self, level: int, option: int, *size: int) -> Any:
        if option == socket.SO_SNDLOWAT:
            raise OSError(errno.ENOPROTOOPT, "Protocol not available")
        return super().getsockopt(level, option)


def test_without_a_low_water_mark_a_piece_is_a_part_of_the_send_buffer() -> None:
    with closing(WithoutLowWater()) as sock:
        buffer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        piece_of: Any = _piece_of
        assert 1 < piece_of(sock) < buffer


class Kernel:
    """Answers TCP_INFO alone."""

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
def test_a_refused_count_is_nothing_unacknowledged_in_fin_wait_2_and_time_wait_alone(
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


def test_closed_is_never_open_only_where_the_kernel_fills_in_what_tells_them_apart() -> None:
    probe = SYSTEMS["linux"].state
    assert probe is not None
    mss, segments_in = {"_16": 88}, {"_140": 2}
    assert probe.read(kernel(CLOSED)) is TcpState.OVER, "gVisor"
    assert probe.read(kernel(CLOSED, **mss)) is TcpState.NEVER_OPEN
    assert probe.read(kernel(CLOSED, **mss, **segments_in)) is TcpState.OVER


def test_a_tcp_info_that_is_short_is_an_unknown_state() -> None:
    probe = SYSTEMS["linux"].state
    assert probe is not None
    short: Any = Kernel(bytes([CLOSED]))
    assert probe.read(short) is None
    with pytest.raises(OSError, match="ends before"):
        Field(6, 11, offset=16, size=4).read(short)
