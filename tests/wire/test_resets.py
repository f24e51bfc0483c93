"""RST at each stage."""

from __future__ import annotations

from graceful_close import CloseOutcome, abortive_close, graceful_close, timed_linger_close
from streams import await_reset, meanwhile, read_all, read_and_close, reset

from .laid import Wire
from .packets import OURS, PEER
from .proof import proven
from .rules import ACK_OF_FIN, DATA, FIN, RST, every, first, nth

REPLY = b"reply" * 200


def test_an_rst_before_our_fin_is_reported(wire: Wire) -> None:
    """The peer resets before the call: no FIN is sent."""
    ours, peer = wire.connect()
    wire.deliver(REPLY, ours)
    reset(peer)
    await_reset(ours)
    result = proven(wire, graceful_close, ours)
    assert result.outcome is CloseOutcome.PEER_RESET
    assert wire.fins_sent(OURS) == wire.resets_sent(OURS) == 0


def test_an_abort_after_an_rst_sends_nothing(wire: Wire) -> None:
    """The peer resets before the call: nothing is sent."""
    ours, peer = wire.connect()
    reset(peer)
    await_reset(ours)
    result = proven(wire, abortive_close, ours)
    assert result.outcome is CloseOutcome.PEER_RESET
    assert wire.flags_sent(OURS) == ["SA"]


def test_an_rst_between_our_fin_and_its_acknowledgement_is_reported(wire: Wire) -> None:
    """RST arrives instead of the acknowledgement of our FIN."""
    ours, _peer = wire.connect()
    wire.deliver(REPLY, ours)
    wire.reset(OURS, at=first(ACK_OF_FIN, from_=PEER))
    result = proven(wire, graceful_close, ours)
    assert (result.outcome, result.unacked) == (CloseOutcome.PEER_RESET, 1)


def test_an_rst_in_answer_to_our_fin_is_reported(wire: Wire) -> None:
    """A middlebox answers our FIN with RST, and the peer never receives the FIN."""
    ours, _peer = wire.connect()
    wire.deliver(REPLY, ours)
    wire.reset(OURS, at=first(FIN, from_=OURS))
    result = proven(wire, timed_linger_close, ours, 2)
    assert (result.outcome, result.unacked) == (CloseOutcome.PEER_RESET, 1)


def test_an_rst_after_the_acknowledgement_of_our_fin_is_reported(wire: Wire) -> None:
    """The peer acknowledges everything, then resets: everything is delivered, and the
    result is not clean.
    """
    ours, peer = wire.connect()
    ours.sendall(REPLY)

    def read_and_reset() -> bytes:
        received = read_all(peer)
        wire.await_delivery(first(ACK_OF_FIN, from_=PEER))
        reset(peer)
        return received

    with meanwhile(read_and_reset) as received:
        result = proven(wire, graceful_close, ours)
    assert received == [REPLY]
    assert (result.outcome, result.unacked) == (CloseOutcome.PEER_RESET, 0)


def test_an_rst_during_the_drain_is_reported(wire: Wire) -> None:
    """RST arrives instead of the peer's third data segment."""
    ours, peer = wire.connect()
    wire.reset(OURS, at=nth(3, DATA, from_=PEER))
    ours.sendall(REPLY)

    def send_on() -> None:
        read_all(peer)
        for number in range(1, 4):
            peer.sendall(b"more")
            wire.await_packet(nth(number, DATA, from_=PEER))

    with meanwhile(send_on):
        result = proven(wire, graceful_close, ours)
    assert (result.outcome, result.drained) == (CloseOutcome.PEER_RESET, 8)


def test_a_peer_that_closes_without_reading_resets(wire: Wire) -> None:
    """The peer closes without reading our reply: its kernel resets."""
    ours, peer = wire.connect()
    ours.sendall(REPLY)

    def close() -> None:
        wire.await_delivery(first(ACK_OF_FIN, from_=PEER))
        peer.close()

    with meanwhile(close):
        result = proven(wire, graceful_close, ours)
    assert (result.outcome, result.unacked) == (CloseOutcome.PEER_RESET, 0)


def test_an_rst_after_the_peers_fin_is_reported(wire: Wire) -> None:
    """The peer has sent its FIN; RST arrives instead of the acknowledgement of ours."""
    ours, _peer = wire.half_closed()
    wire.reset(OURS, at=first(ACK_OF_FIN, from_=PEER))
    result = proven(wire, graceful_close, ours)
    assert (result.outcome, result.unacked) == (CloseOutcome.PEER_RESET, 1)


def test_an_rst_after_the_peers_fin_while_data_is_unacknowledged_is_reported(
    wire: Wire,
) -> None:
    """The peer has sent its FIN, does not read our data, and resets."""
    ours, peer = wire.half_closed()
    # Every segment, because a loss probe may be faster than the peer's thread.
    wire.drop(every(DATA, from_=OURS))
    wire.drop(every(FIN, from_=OURS))
    ours.sendall(REPLY)

    def reset_after_the_fin() -> None:
        wire.await_packet(first(FIN, from_=OURS))
        reset(peer)

    with meanwhile(reset_after_the_fin):
        result = proven(wire, graceful_close, ours)
    assert (result.outcome, result.unacked) == (CloseOutcome.PEER_RESET, len(REPLY) + 1)


def test_both_sides_close_at_the_same_time_and_rst_arrives_instead_of_the_acknowledgement(
    wire: Wire,
) -> None:
    """Both FINs are in flight at the same time; RST arrives instead of the acknowledgement."""
    ours, peer = wire.connect()
    wire.hold(first(FIN, from_=OURS), 0.1)
    wire.reset(OURS, at=first(ACK_OF_FIN, from_=PEER))

    def close_immediately() -> None:
        wire.await_packet(first(FIN, from_=OURS))
        peer.close()

    with meanwhile(close_immediately):
        result = proven(wire, graceful_close, ours)
    assert (result.outcome, result.unacked) == (CloseOutcome.PEER_RESET, 1)


def test_a_forged_rst_with_a_wrong_number_is_ignored(wire: Wire) -> None:
    """A forged RST arrives with a sequence number that is nearly right (RFC 5961)."""
    ours, peer = wire.connect()
    wire.reset(OURS, at=first(ACK_OF_FIN, from_=PEER), too_far=10)

    def close_after_the_rst() -> None:
        wire.await_delivery(first(RST, from_=PEER))
        read_and_close(peer)

    with meanwhile(close_after_the_rst):
        result = proven(wire, graceful_close, ours)
    assert result.outcome is CloseOutcome.PEER_CLOSED
