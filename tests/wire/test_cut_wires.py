"""Broken links."""

from __future__ import annotations

import socket

import pytest

from graceful_close import (
    CloseOutcome,
    CloseResult,
    LingerPolicy,
    closing,
    graceful_close,
    timed_linger_close,
)
from streams import meanwhile, read_all, read_and_close

from .laid import OurSocket, Wire
from .packets import OURS, PEER
from .proof import proven
from .rules import FIN, RST, first, nth, past

REPLY = b"reply" * 200
LARGE = bytes(200_000)


def broken_after_100_kb(wire: Wire) -> OurSocket:
    """Return a socket on which a large reply was written; the link breaks after 100 kB of it."""
    ours, _peer = wire.connect()
    wire.cut(at=first(past(100_000), from_=OURS))
    # Or a kernel with a small send buffer (Linux 5.10) waits for an acknowledgement.
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * len(LARGE))
    ours.sendall(LARGE)
    return ours


def test_a_close_times_out_if_no_packet_of_ours_arrives(wire: Wire) -> None:
    """All packets to the peer are dropped."""
    ours, _peer = wire.connect()
    wire.cut(from_=OURS)
    ours.sendall(REPLY)
    result = proven(wire, graceful_close, ours, timeout=0.3)
    assert (result.outcome, result.unacked) == (CloseOutcome.TIMED_OUT, len(REPLY) + 1)


def test_a_close_times_out_if_no_packet_of_the_peer_arrives(wire: Wire) -> None:
    """All packets from the peer are dropped: it has received everything, and we do not know."""
    ours, peer = wire.connect()
    wire.cut(from_=PEER)
    ours.sendall(REPLY)
    with meanwhile(read_and_close, peer) as received:
        result = proven(wire, graceful_close, ours, timeout=0.3)
    assert received == [REPLY]
    assert (result.outcome, result.unacked) == (CloseOutcome.TIMED_OUT, len(REPLY) + 1)


@pytest.mark.parametrize("side", [OURS, PEER], ids=["ours", "peer"])
def test_delivered_is_never_returned_on_a_broken_link(wire: Wire, side: object) -> None:
    """From our FIN on, all packets from one side are dropped."""
    ours, _peer = wire.connect()
    wire.deliver(REPLY, ours)
    wire.cut(from_=OURS if side is OURS else PEER)
    result = proven(wire, timed_linger_close, ours, 0.3)
    assert (result.outcome, result.unacked) == (CloseOutcome.TIMED_OUT, 1)


def test_a_block_that_ends_on_a_broken_link_times_out(wire: Wire) -> None:
    """All packets to the peer are dropped."""
    ours, _peer = wire.connect()
    wire.cut(from_=OURS)
    ours.sendall(REPLY)

    def end_a_block(sock: OurSocket, *, timeout: float) -> CloseResult:
        """with closing(sock, timeout=0.3): (the body ends)"""
        with (block := closing(sock, timeout=timeout)):
            pass
        assert block.result is not None
        return block.result

    result = proven(wire, end_a_block, ours, timeout=0.3)
    assert (result.outcome, result.unacked) == (CloseOutcome.TIMED_OUT, len(REPLY) + 1)


def test_the_link_breaks_after_100_kb(wire: Wire) -> None:
    """All packets in both directions are dropped after 100 kB of the reply."""
    ours = broken_after_100_kb(wire)
    result = proven(wire, graceful_close, ours, timeout=0.3, until=CloseOutcome.DELIVERED)
    assert result.outcome is CloseOutcome.TIMED_OUT
    assert result.unacked is not None
    assert result.unacked >= 100_000


def test_the_link_breaks_and_on_timeout_aborts(wire: Wire) -> None:
    """All packets in both directions are dropped after 100 kB of the reply."""
    ours = broken_after_100_kb(wire)
    result = proven(wire, graceful_close, ours, timeout=0.3, on_timeout=LingerPolicy.ABORT)
    assert result.outcome is CloseOutcome.TIMED_OUT
    wire.await_packet(first(RST, from_=OURS))


def test_a_link_that_is_restored_in_time_has_a_clean_close(wire: Wire) -> None:
    """From our FIN on, all packets are dropped until we have sent it twice."""
    ours, peer = wire.connect()
    wire.cut(at=first(FIN, from_=OURS))
    ours.sendall(REPLY)

    def restore_and_read() -> bytes:
        wire.await_packet(nth(2, FIN, from_=OURS))
        wire.mend()
        return read_and_close(peer)

    with meanwhile(restore_and_read) as received:
        result = proven(wire, graceful_close, ours)
    assert received == [REPLY]
    assert result.outcome is CloseOutcome.PEER_CLOSED


def test_data_left_to_the_kernel_arrives_when_the_link_is_restored(wire: Wire) -> None:
    """All packets to the peer are dropped until our deadline; the kernel continues in the
    background.
    """
    ours, peer = wire.connect()
    wire.cut(from_=OURS)
    ours.sendall(REPLY)
    result = proven(wire, timed_linger_close, ours, 0.1)
    assert result.outcome is CloseOutcome.TIMED_OUT
    wire.mend()
    assert read_all(peer) == REPLY
