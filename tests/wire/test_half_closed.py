"""Half-closed peers, and both sides closing at the same time."""

from __future__ import annotations

import socket
from collections.abc import Generator
from contextlib import contextmanager

from graceful_close import CloseOutcome, graceful_close, timed_linger_close
from streams import meanwhile, read_all, read_and_close

from .laid import OurSocket, Wire
from .packets import OURS, PEER
from .proof import proven
from .rules import ACK_OF_FIN, FIN, every, first

REPLY = b"reply" * 200


def test_a_half_closed_peer_gets_everything(wire: Wire) -> None:
    """The peer has sent its FIN, and continues to read."""
    ours, peer = wire.half_closed()
    ours.sendall(REPLY)
    with meanwhile(read_all, peer) as received:
        result = proven(wire, graceful_close, ours)
    assert received == [REPLY]
    assert result.outcome is CloseOutcome.PEER_CLOSED


def test_peer_closed_is_not_returned_before_the_acknowledgement(wire: Wire) -> None:
    """The peer has sent its FIN; every packet takes 100 ms."""
    wire.delay(0.1)
    ours, _peer = wire.half_closed()
    ours.sendall(REPLY)
    result = proven(wire, graceful_close, ours)
    assert result.outcome is CloseOutcome.PEER_CLOSED
    assert result.elapsed >= 0.2


def test_peer_closed_is_never_returned_without_the_acknowledgement(wire: Wire) -> None:
    """The peer has sent its FIN; every acknowledgement of ours is lost."""
    ours, _peer = wire.half_closed()
    wire.drop(every(ACK_OF_FIN, from_=PEER))
    result = proven(wire, graceful_close, ours, timeout=0.3)
    assert (result.outcome, result.unacked) == (CloseOutcome.TIMED_OUT, 1)


def test_a_timed_linger_after_the_peers_fin_waits_for_the_acknowledgement(wire: Wire) -> None:
    """The peer has sent its FIN; every packet takes 100 ms."""
    wire.delay(0.1)
    ours, _peer = wire.half_closed()
    ours.sendall(REPLY)
    result = proven(wire, timed_linger_close, ours, 2)
    assert result.outcome is CloseOutcome.DELIVERED


@contextmanager
def crossing_fins(wire: Wire) -> Generator[OurSocket, None, None]:
    """Yield a socket with a reply. Its FIN takes 100 ms, and the peer sends its own before."""
    ours, peer = wire.connect()
    wire.hold(first(FIN, from_=OURS), 0.1)
    ours.sendall(REPLY)

    def close_immediately() -> None:
        wire.await_packet(first(FIN, from_=OURS))
        peer.shutdown(socket.SHUT_WR)
        assert read_all(peer) == REPLY

    with meanwhile(close_immediately):
        yield ours


def test_both_sides_close_at_the_same_time(wire: Wire) -> None:
    """Both FINs are in flight at the same time: ours takes 100 ms."""
    with crossing_fins(wire) as ours:
        result = proven(wire, graceful_close, ours)
    assert result.outcome is CloseOutcome.PEER_CLOSED
    assert result.elapsed >= 0.1


def test_both_sides_close_at_the_same_time_until_delivered(wire: Wire) -> None:
    """Both FINs are in flight at the same time: ours takes 100 ms."""
    with crossing_fins(wire) as ours:
        result = proven(wire, timed_linger_close, ours, 2)
    assert result.outcome is CloseOutcome.DELIVERED
    assert result.elapsed >= 0.1


def test_both_sides_close_at_the_same_time_and_our_fin_is_lost(wire: Wire) -> None:
    """Both FINs are in flight at the same time, and ours is lost."""
    ours, peer = wire.connect()
    wire.drop(first(FIN, from_=OURS))
    ours.sendall(REPLY)

    def close_immediately() -> None:
        wire.await_packet(first(FIN, from_=OURS))
        read_and_close(peer)

    peer.shutdown(socket.SHUT_WR)
    with meanwhile(close_immediately):
        result = proven(wire, graceful_close, ours)
    assert result.outcome is CloseOutcome.PEER_CLOSED
