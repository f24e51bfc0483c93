"""Half-closed peers, and both sides closing at the same time."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from graceful_close import CloseOutcome, CloseResult, graceful_close, timed_linger_close
from streams import meanwhile, read_all, read_and_close

from .laid import Wire
from .packets import OURS, PEER
from .proof import proven
from .rules import ACK_OF_FIN, FIN, every, first

REPLY = b"reply" * 200

Close = Callable[..., CloseResult]


def test_a_half_closed_peer_gets_everything(wire: Wire) -> None:
    """The peer has sent its FIN, and continues to read."""
    ours, peer = wire.half_closed()
    ours.sendall(REPLY)
    with meanwhile(read_all, peer) as received:
        result = proven(wire, graceful_close, ours)
    assert received == [REPLY]
    assert result.outcome is CloseOutcome.PEER_CLOSED


either_close = pytest.mark.parametrize(
    ("close", "arguments", "outcome"),
    [
        (graceful_close, (), CloseOutcome.PEER_CLOSED),
        (timed_linger_close, (2,), CloseOutcome.DELIVERED),
    ],
    ids=["graceful_close", "timed_linger_close"],
)


@either_close
def test_neither_outcome_is_returned_before_the_acknowledgement(
    wire: Wire, close: Close, arguments: tuple[float, ...], outcome: CloseOutcome
) -> None:
    """The peer has sent its FIN; every packet takes 100 ms."""
    wire.delay(0.1)
    ours, _peer = wire.half_closed()
    ours.sendall(REPLY)
    result = proven(wire, close, ours, *arguments)
    assert result.outcome is outcome
    assert result.elapsed >= 0.2


def test_peer_closed_is_never_returned_without_the_acknowledgement(wire: Wire) -> None:
    """The peer has sent its FIN; every acknowledgement of ours is lost."""
    ours, _peer = wire.half_closed()
    wire.drop(every(ACK_OF_FIN, from_=PEER))
    result = proven(wire, graceful_close, ours, timeout=0.3)
    assert (result.outcome, result.unacked) == (CloseOutcome.TIMED_OUT, 1)


@either_close
def test_both_sides_close_at_the_same_time(
    wire: Wire, close: Close, arguments: tuple[float, ...], outcome: CloseOutcome
) -> None:
    """Both FINs are in flight at the same time: ours takes 100 ms."""
    ours, peer = wire.connect()
    wire.hold(every(FIN, from_=OURS), 0.1)  # also what is sent again
    ours.sendall(REPLY)

    def close_immediately() -> None:
        wire.await_packet(first(FIN, from_=OURS))
        peer.shutdown(socket.SHUT_WR)
        assert read_all(peer) == REPLY

    with meanwhile(close_immediately):
        result = proven(wire, close, ours, *arguments)
    assert result.outcome is outcome
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
