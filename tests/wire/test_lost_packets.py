"""Lost, late, repeated and reordered packets."""

from __future__ import annotations

import socket

from graceful_close import CloseOutcome, CloseResult, graceful_close, timed_linger_close
from streams import meanwhile, read_all, read_and_close

from .laid import OurSocket, Wire
from .packets import OURS, PEER
from .proof import proven
from .rules import ACK, ACK_OF_FIN, DATA, FIN, carrying, every, first, nth

REPLY = b"reply" * 2000  # several segments


def closed_cleanly(wire: Wire, ours: OurSocket, peer: socket.socket) -> CloseResult:
    """Write the reply and close while the peer reads to the end and closes; all arrives."""
    ours.sendall(REPLY)
    with meanwhile(read_and_close, peer) as received:
        result = proven(wire, graceful_close, ours)
    assert received == [REPLY]
    assert result.outcome is CloseOutcome.PEER_CLOSED
    return result


def test_the_first_fin_is_lost(wire: Wire) -> None:
    ours, peer = wire.connect()
    wire.drop(first(FIN, from_=OURS))
    closed_cleanly(wire, ours, peer)
    assert wire.await_delivery(nth(2, FIN, from_=OURS)).again


def test_the_first_fin_is_lost_and_delivered_is_returned_after_the_retransmission(
    wire: Wire,
) -> None:
    """The first FIN is lost; the peer never closes."""
    ours, _peer = wire.connect()
    wire.drop(first(FIN, from_=OURS))
    ours.sendall(REPLY)
    result = proven(wire, timed_linger_close, ours, 2)
    assert result.outcome is CloseOutcome.DELIVERED
    assert wire.await_delivery(nth(2, FIN, from_=OURS))


def test_the_acknowledgement_of_the_fin_is_lost(wire: Wire) -> None:
    """The first acknowledgement of our FIN is lost; the peer never closes."""
    ours, _peer = wire.connect()
    wire.drop(first(ACK_OF_FIN, from_=PEER))
    ours.sendall(REPLY)
    result = proven(wire, graceful_close, ours, timeout=2, until=CloseOutcome.DELIVERED)
    assert result.outcome is CloseOutcome.DELIVERED
    assert wire.await_delivery(nth(2, ACK_OF_FIN, from_=PEER))


def test_the_acknowledgement_of_the_fin_is_lost_and_the_time_is_short(wire: Wire) -> None:
    """Every acknowledgement of our FIN is lost: the peer has received everything, and we do
    not know.
    """
    ours, peer = wire.connect()
    wire.deliver(REPLY, ours)
    wire.drop(every(ACK_OF_FIN, from_=PEER))
    result = proven(wire, timed_linger_close, ours, 0.1)
    assert (result.outcome, result.unacked) == (CloseOutcome.TIMED_OUT, 1)
    assert read_all(peer) == REPLY


def test_the_last_data_segment_is_lost(wire: Wire) -> None:
    ours, peer = wire.connect()
    wire.drop(first(carrying(len(REPLY)), from_=OURS))
    closed_cleanly(wire, ours, peer)


def test_the_last_data_segment_and_the_fin_are_lost(wire: Wire) -> None:
    """The last data segment and the first FIN are lost; the peer never closes."""
    ours, peer = wire.connect()
    wire.drop(first(carrying(len(REPLY)), from_=OURS))
    wire.drop(first(FIN, from_=OURS))
    ours.sendall(REPLY)
    result = proven(wire, graceful_close, ours, until=CloseOutcome.DELIVERED)
    assert result.outcome is CloseOutcome.DELIVERED
    assert read_all(peer) == REPLY


def test_every_acknowledgement_is_300_ms_late(wire: Wire) -> None:
    """Every acknowledgement is 300 ms late; the peer never closes."""
    ours, _peer = wire.connect()
    wire.hold(every(ACK, from_=PEER), 0.3)
    ours.sendall(REPLY)
    result = proven(wire, timed_linger_close, ours, 2)
    assert result.outcome is CloseOutcome.DELIVERED
    assert result.elapsed >= 0.3


def test_the_peers_fin_is_300_ms_late(wire: Wire) -> None:
    """The peer's FIN, which acknowledges ours too, is 300 ms late."""
    ours, peer = wire.connect()
    wire.hold(every(FIN, from_=PEER), 0.3)
    result = closed_cleanly(wire, ours, peer)
    assert result.elapsed >= 0.3


def test_the_peers_first_fin_is_lost(wire: Wire) -> None:
    ours, peer = wire.connect()
    wire.drop(first(FIN, from_=PEER))
    closed_cleanly(wire, ours, peer)
    assert wire.find(nth(2, FIN, from_=PEER))


def test_our_acknowledgement_of_the_peers_fin_is_lost(wire: Wire) -> None:
    """Our acknowledgement of the peer's FIN is lost: TIME_WAIT answers after the close."""
    ours, peer = wire.connect()
    wire.drop(first(ACK_OF_FIN, from_=OURS))
    closed_cleanly(wire, ours, peer)
    wire.await_packet(nth(2, FIN, from_=PEER))
    wire.await_delivery(nth(2, ACK_OF_FIN, from_=OURS))
    assert wire.resets_sent(OURS) == 0


def test_our_fin_arrives_before_the_last_data(wire: Wire) -> None:
    ours, peer = wire.connect()
    wire.swap(first(carrying(len(REPLY)), from_=OURS))
    closed_cleanly(wire, ours, peer)


def test_our_data_arrives_in_another_order(wire: Wire) -> None:
    ours, peer = wire.connect()
    wire.swap(nth(2, DATA, from_=OURS))
    wire.swap(nth(4, DATA, from_=OURS))
    closed_cleanly(wire, ours, peer)


def test_the_peers_fin_arrives_before_its_last_data(wire: Wire) -> None:
    """The peer's FIN arrives before the data that it follows: all data is drained."""
    ours, peer = wire.connect()
    wire.swap(first(DATA, from_=PEER))

    def answer_and_close() -> None:
        assert read_all(peer) == REPLY
        peer.sendall(b"thanks")
        peer.close()

    ours.sendall(REPLY)
    with meanwhile(answer_and_close):
        result = proven(wire, graceful_close, ours)
    assert (result.outcome, result.drained) == (CloseOutcome.PEER_CLOSED, 6)


def test_our_fin_arrives_twice(wire: Wire) -> None:
    ours, peer = wire.connect()
    wire.duplicate(first(FIN, from_=OURS))
    closed_cleanly(wire, ours, peer)


def test_the_peers_fin_arrives_twice(wire: Wire) -> None:
    """The peer's FIN arrives twice: the second one finds TIME_WAIT."""
    ours, peer = wire.connect()
    wire.duplicate(first(FIN, from_=PEER))
    closed_cleanly(wire, ours, peer)


def test_every_packet_takes_20_ms(wire: Wire) -> None:
    """Every packet takes 20 ms, and the peer has closed for writing."""
    wire.delay(0.02)
    ours, peer = wire.connect()
    ours.sendall(REPLY)
    peer.shutdown(socket.SHUT_WR)
    with meanwhile(read_all, peer) as received:
        result = proven(wire, graceful_close, ours)
    assert received == [REPLY]
    assert result.outcome is CloseOutcome.PEER_CLOSED
    assert result.elapsed >= 0.04
