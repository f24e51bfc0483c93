"""timed_linger_close: it ends at the acknowledgement or the timeout, with a true result."""

from __future__ import annotations

import math
import os
import select
import socket
from typing import Any

import pytest

import descriptors
from graceful_close import (
    CloseOutcome,
    Linger,
    LingerPolicy,
    get_linger,
    timed_linger_close,
    unacked_bytes,
)
from streams import (
    DEADLINE,
    Connection,
    Full,
    await_fin,
    await_input,
    await_reset,
    connect,
    ends_in_reset,
    fill,
    meanwhile,
    read_all,
    read_and_close,
    reset,
    send_fin,
)


def test_acknowledged_data_is_delivered_although_the_peer_never_closes(
    tcp: Connection,
) -> None:
    tcp.ours.sendall(b"all of it")
    result = timed_linger_close(tcp.ours, DEADLINE)
    assert (result.outcome, result.unacked) == (CloseOutcome.DELIVERED, 0)
    assert tcp.ours.fileno() == -1
    assert read_all(tcp.peer) == b"all of it"


def test_the_acknowledgement_ends_the_wait(full: Full) -> None:
    with meanwhile(read_all, full.peer) as received:
        result = timed_linger_close(full.ours, DEADLINE)
    assert (result.outcome, result.unacked) == (CloseOutcome.DELIVERED, 0)
    assert result.elapsed < DEADLINE
    assert len(received[0]) == full.written


def test_a_peer_that_does_not_read_costs_only_the_timeout(full: Full) -> None:
    result = timed_linger_close(full.ours, 0.05)
    assert result.outcome is CloseOutcome.TIMED_OUT
    assert 0.05 <= result.elapsed < 1
    assert result.unacked is not None
    assert 0 < result.unacked <= full.written + 1
    assert len(read_all(full.peer)) == full.written, "the kernel continues in the background"


def test_on_timeout_abort_resets(full: Full) -> None:
    timed_linger_close(full.ours, 0.05, on_timeout=LingerPolicy.ABORT)
    assert ends_in_reset(full.peer)


def test_unread_input_does_not_shorten_the_wait() -> None:
    with connect("tcp4", peer_buffer=4096) as (ours, peer):
        peer.sendall(b"unread")
        await_input(ours)
        written = fill(ours)
        with meanwhile(read_all, peer) as received:
            result = timed_linger_close(ours, DEADLINE)
        assert (result.outcome, result.drained) == (CloseOutcome.DELIVERED, 6)
        assert len(received[0]) == written


def test_input_during_the_wait_is_drained(full: Full) -> None:

    def peer_writes_then_reads() -> None:
        # More than all buffers hold, so that the peer reads only if we drain.
        full.peer.sendall(bytes(16 << 20))
        read_all(full.peer)

    with meanwhile(peer_writes_then_reads):
        result = timed_linger_close(full.ours, DEADLINE)
    assert result.outcome is CloseOutcome.DELIVERED
    assert result.drained > 1 << 20


def test_a_reset_during_the_wait_is_reported_with_the_lost_bytes(full: Full) -> None:
    with full.ours.dup() as dup:

        def peer_resets() -> None:
            _await_half_closed(dup)
            reset(full.peer)

        with meanwhile(peer_resets):
            result = timed_linger_close(full.ours, DEADLINE)
    assert result.outcome is CloseOutcome.PEER_RESET
    assert (result.unacked or 0) > 1


def _await_half_closed(sock: socket.socket) -> None:
    """Wait until the socket is shut for writing, which poll() reports as writable."""
    poller = select.epoll()
    try:
        poller.register(sock, select.EPOLLOUT)
        assert poller.poll(DEADLINE)
    finally:
        poller.close()


def test_the_peers_fin_does_not_end_the_wait(full: Full) -> None:
    send_fin(full.peer, to=full.ours)
    with meanwhile(read_all, full.peer) as received:
        result = timed_linger_close(full.ours, DEADLINE)
    assert (result.outcome, result.unacked) == (CloseOutcome.DELIVERED, 0)
    assert len(received[0]) == full.written


@pytest.mark.parametrize("mode", [None, 0.0, 5.0], ids=["blocking", "non-blocking", "timeout"])
def test_sockets_of_every_mode_wait_the_same_way(tcp: Connection, mode: float | None) -> None:
    tcp.ours.settimeout(mode)
    assert timed_linger_close(tcp.ours, DEADLINE).outcome is CloseOutcome.DELIVERED


def test_no_option_of_a_dup_is_changed(tcp: Connection) -> None:
    with tcp.ours.dup() as dup:
        timed_linger_close(tcp.ours, DEADLINE)
        assert get_linger(dup) == Linger(LingerPolicy.BACKGROUND)
        assert os.get_blocking(dup.fileno())


def test_without_epoll_the_acknowledgement_is_polled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(select, "epoll")
    with connect("tcp4", peer_buffer=4096) as (ours, peer):
        fill(ours)
        with meanwhile(read_all, peer):
            assert timed_linger_close(ours, DEADLINE).outcome is CloseOutcome.DELIVERED


def test_without_a_descriptor_for_epoll_the_acknowledgement_is_polled(full: Full) -> None:
    with descriptors.none_left():
        with pytest.raises(OSError, match="Too many open files"):
            os.dup(full.ours.fileno())
        result = timed_linger_close(full.ours, 0.05)
    assert result.outcome is CloseOutcome.TIMED_OUT
    assert full.peer.fileno() != -1


def test_a_unix_stream_waits_for_the_peers_end(any_family: str) -> None:
    with connect(any_family) as (ours, peer):
        ours.sendall(b"last words")
        with meanwhile(read_and_close, peer):
            result = timed_linger_close(ours, DEADLINE)
    unix = any_family == "unix"
    expected = CloseOutcome.PEER_CLOSED if unix else CloseOutcome.DELIVERED
    assert result.outcome is expected


@pytest.mark.parametrize("seconds", [-1, math.inf, math.nan])
def test_the_seconds_are_finite_and_not_negative(tcp: Connection, seconds: float) -> None:
    with pytest.raises(ValueError, match="^seconds must be a finite number of seconds"):
        timed_linger_close(tcp.ours, seconds)
    assert tcp.ours.fileno() != -1


@pytest.mark.parametrize("seconds", [None, "1", True])
def test_the_seconds_are_a_number(tcp: Connection, seconds: Any) -> None:
    with pytest.raises(TypeError, match="^seconds must be a finite number"):
        timed_linger_close(tcp.ours, seconds)
    assert tcp.ours.fileno() != -1


# --- unacked_bytes ----------------------------------------------------------------------------


def test_unacked_bytes_counts_what_the_peer_has_not_acknowledged() -> None:
    with connect("tcp4", peer_buffer=4096) as (ours, peer):
        assert unacked_bytes(ours) == 0
        written = fill(ours)
        left = unacked_bytes(ours)
        assert left is not None
        assert 0 < left <= written
        ours.shutdown(socket.SHUT_WR)
        after_fin = unacked_bytes(ours)
        assert after_fin is not None
        assert after_fin <= left + 1, "a FIN counts as one"
        read_all(peer)
        peer.close()
        await_fin(ours)
        assert unacked_bytes(ours) == 0


def test_unacked_bytes_after_a_reset_counts_the_lost_bytes(full: Full) -> None:
    reset(full.peer)
    await_reset(full.ours)
    assert unacked_bytes(full.ours)


def test_unacked_bytes_of_an_unused_connection_is_zero(listener: socket.socket) -> None:
    assert unacked_bytes(listener) == 0
    with socket.socket() as fresh:
        assert unacked_bytes(fresh) == 0


def test_unacked_bytes_returns_none_if_unknown(stack: Any) -> None:
    ours, _peer = stack.enter_context(connect("unix"))
    ours.sendall(b"x")
    assert unacked_bytes(ours) is None
    closed = socket.socket()
    closed.close()
    assert unacked_bytes(closed) is None


def test_unacked_bytes_accepts_only_stream_sockets() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        with pytest.raises(TypeError, match="stream"):
            unacked_bytes(sock)
