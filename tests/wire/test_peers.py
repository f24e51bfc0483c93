"""Slow, silent and noisy peers."""

from __future__ import annotations

import socket
from contextlib import suppress

from graceful_close import CloseOutcome, LingerPolicy, graceful_close, timed_linger_close
from streams import await_input, fill, meanwhile, read_all, read_and_close

from .laid import Wire
from .packets import OURS, PEER
from .proof import LATE, proven
from .rules import ACK_OF_FIN, DATA, FIN, PROBE, RST, ZERO_WINDOW, first, nth

REPLY = b"reply" * 200


# --- peers that do not read -------------------------------------------------------------------


def test_a_close_waits_for_a_window_that_opens_late(wire: Wire) -> None:
    """The peer's window is closed until our kernel has probed it; then it reads, and closes."""
    ours, peer = wire.connect(peer_buffer=4096)
    written = fill(ours)
    wire.await_delivery(first(ZERO_WINDOW, from_=PEER))

    def read_when_asked() -> bytes:
        wire.await_delivery(first(PROBE, from_=OURS))
        return read_and_close(peer)

    with meanwhile(read_when_asked) as received:
        result = proven(wire, graceful_close, ours)
    assert len(received[0]) == written
    assert result.outcome is CloseOutcome.PEER_CLOSED


def test_a_window_that_never_opens_times_out(wire: Wire) -> None:
    """The peer's window is closed for good: our FIN waits behind the data."""
    ours, _peer = wire.connect(peer_buffer=4096)
    fill(ours)
    wire.await_delivery(first(ZERO_WINDOW, from_=PEER))
    result = proven(wire, timed_linger_close, ours, 0.5)
    assert result.outcome is CloseOutcome.TIMED_OUT
    assert wire.fins_sent(OURS) == 0
    assert wire.resets_sent(OURS) == 0


def test_a_window_that_never_opens_ends_with_a_reset_by_on_timeout(wire: Wire) -> None:
    """The peer's window is closed for good."""
    ours, _peer = wire.connect(peer_buffer=4096)
    fill(ours)
    wire.await_delivery(first(ZERO_WINDOW, from_=PEER))
    result = proven(wire, graceful_close, ours, timeout=0.1, on_timeout=LingerPolicy.ABORT)
    assert result.outcome is CloseOutcome.TIMED_OUT
    wire.await_packet(first(RST, from_=OURS))


def test_answers_to_window_probes_are_not_a_sign_of_life(wire: Wire) -> None:
    """The peer's window is closed for good; its kernel answers our probes."""
    ours, _peer = wire.connect(peer_buffer=4096)
    fill(ours)
    wire.await_delivery(first(PROBE, from_=OURS))
    result = proven(wire, graceful_close, ours, timeout=2, idle_timeout=0.5)
    assert result.outcome is CloseOutcome.IDLE_TIMED_OUT
    assert result.elapsed <= 0.5 + LATE + wire.late


def test_acknowledgements_are_a_sign_of_life(wire: Wire) -> None:
    """The peer reads 4 kB every 40 ms until it has everything, then closes."""
    wire.delay(0.02)
    ours, peer = wire.connect(peer_buffer=4096)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 40_000)
    ours.sendall(bytes(40_000))
    with meanwhile(read_and_close, peer):
        result = proven(wire, graceful_close, ours, idle_timeout=0.2)
    assert result.outcome is CloseOutcome.PEER_CLOSED
    assert result.elapsed > 0.2


def test_acknowledgements_do_not_move_the_deadline(wire: Wire) -> None:
    """The peer reads 4 kB every 40 ms."""
    wire.delay(0.02)
    ours, peer = wire.connect(peer_buffer=4096)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100_000)
    ours.sendall(bytes(100_000))
    with meanwhile(read_all, peer) as received:
        result = proven(wire, timed_linger_close, ours, 0.2)
    assert result.outcome is CloseOutcome.TIMED_OUT
    assert received == [bytes(100_000)]


# --- peers that do not stop -------------------------------------------------------------------


def test_a_peer_that_drips_is_drained_to_its_end(wire: Wire) -> None:
    """The peer sends 20 bytes, one every 10 ms, then closes."""
    ours, peer = wire.connect()
    without_nagle(peer)
    wire.delay(0.01)

    def drip() -> None:
        for number in range(1, 21):
            peer.sendall(b".")
            wire.await_delivery(nth(number, DATA, from_=PEER))
        peer.close()

    with meanwhile(drip):
        result = proven(wire, graceful_close, ours, timeout=2, idle_timeout=0.15)
    assert (result.outcome, result.drained) == (CloseOutcome.PEER_CLOSED, 20)


def test_a_peer_that_drips_forever_times_out(wire: Wire) -> None:
    """The peer sends a byte every 10 ms without end: RST is sent only after the deadline."""
    ours, peer = wire.connect()
    without_nagle(peer)
    wire.delay(0.01)

    def drip() -> None:
        number = 0
        with suppress(OSError):
            while True:
                peer.sendall(b".")
                number += 1
                wire.await_delivery(nth(number, DATA, from_=PEER))

    with meanwhile(drip):
        result = proven(wire, graceful_close, ours, timeout=0.4, idle_timeout=0.3)
    assert result.outcome is CloseOutcome.TIMED_OUT
    assert result.drained > 10
    wire.await_packet(first(RST, from_=OURS))


def flood(peer: socket.socket) -> None:
    """Send without end."""
    with suppress(OSError):
        while True:
            peer.sendall(bytes(100_000))


def test_a_flood_is_drained_to_its_end(wire: Wire) -> None:
    """The peer sends 500 kB, then closes."""
    ours, peer = wire.connect()

    def send_and_close() -> None:
        peer.sendall(bytes(500_000))
        read_and_close(peer)

    ours.sendall(REPLY)
    with meanwhile(send_and_close):
        result = proven(wire, graceful_close, ours)
    assert (result.outcome, result.drained) == (CloseOutcome.PEER_CLOSED, 500_000)


def test_a_flood_that_does_not_end_times_out(wire: Wire) -> None:
    """The peer sends without end: RST is sent only after the deadline."""
    ours, peer = wire.connect()
    ours.sendall(REPLY)
    with meanwhile(flood, peer):
        result = proven(wire, graceful_close, ours, timeout=0.3)
    assert result.outcome is CloseOutcome.TIMED_OUT
    assert result.unacked == 0
    wire.await_packet(first(RST, from_=OURS))


def test_a_flood_beyond_the_limit_ends_the_close(wire: Wire) -> None:
    """The peer sends more than the limit."""
    ours, peer = wire.connect()
    with meanwhile(flood, peer):
        result = proven(wire, graceful_close, ours, drain_limit=200_000)
    assert (result.outcome, result.drained) == (CloseOutcome.DRAIN_LIMIT, 200_001)


def test_delivered_while_the_peer_still_sends(wire: Wire) -> None:
    """The peer sends without end: the acknowledgement of our FIN ends the call, and RST is
    sent after it.
    """
    ours, peer = wire.connect()
    with meanwhile(flood, peer):
        await_input(ours)
        ours.sendall(REPLY)
        result = proven(wire, timed_linger_close, ours, 2)
    assert result.outcome is CloseOutcome.DELIVERED
    wire.await_packet(first(RST, from_=OURS))


# --- silent peers ------------------------------------------------------------------------


def test_a_peer_that_never_closes_times_out(wire: Wire) -> None:
    """The peer's kernel acknowledges our FIN; its program never closes."""
    ours, peer = wire.connect()
    ours.sendall(REPLY)
    result = proven(wire, graceful_close, ours, timeout=0.2)
    assert (result.outcome, result.unacked) == (CloseOutcome.TIMED_OUT, 0)
    assert wire.resets_sent(OURS) == 0
    assert read_all(peer) == REPLY


def test_an_idle_peer_times_out(wire: Wire) -> None:
    """The peer sends a little, and then nothing."""
    ours, peer = wire.connect()
    ours.sendall(REPLY)

    def send_a_little() -> None:
        wire.await_packet(first(FIN, from_=OURS))
        peer.sendall(b"wait")

    with meanwhile(send_a_little):
        result = proven(wire, graceful_close, ours, timeout=2, idle_timeout=0.2)
    assert (result.outcome, result.drained) == (CloseOutcome.IDLE_TIMED_OUT, 4)


def test_silence_after_the_acknowledgement_ends_at_the_idle_deadline(wire: Wire) -> None:
    """The peer's kernel acknowledges our FIN after 20 ms; then the peer is silent."""
    wire.delay(0.01)
    ours, _peer = wire.connect()
    result = proven(wire, graceful_close, ours, timeout=2, idle_timeout=0.3)
    assert result.outcome is CloseOutcome.IDLE_TIMED_OUT
    assert result.elapsed <= 0.02 + 0.3 + LATE + 2 * wire.late


def test_a_timeout_of_0_polls_once(wire: Wire) -> None:
    """The peer is connected, has not closed, and is 10 ms away."""
    wire.delay(0.01)
    ours, _peer = wire.connect()
    result = proven(wire, graceful_close, ours, timeout=0)
    assert result.outcome is CloseOutcome.TIMED_OUT
    assert wire.await_delivery(first(FIN, from_=OURS))


def test_keep_alive_probes_of_the_peer_are_not_a_sign_of_life(wire: Wire) -> None:
    """The peer is silent except for its kernel's keep-alive, which our kernel answers."""
    ours, peer = wire.connect()
    keep_alive_after_a_second(peer)
    result = proven(wire, graceful_close, ours, timeout=3, idle_timeout=1.2)
    assert result.outcome is CloseOutcome.IDLE_TIMED_OUT
    acknowledged = wire.await_delivery(first(ACK_OF_FIN, from_=PEER)).delivered[0]
    assert wire.began + result.elapsed <= acknowledged + 1.2 + LATE + wire.late
    assert wire.await_delivery(first(PROBE, from_=PEER)).time - wire.began < 1.2


def test_our_keep_alive_does_not_change_the_result(wire: Wire) -> None:
    """Our FIN is acknowledged, SO_KEEPALIVE probes the peer, then the peer closes."""
    ours, peer = wire.connect()
    keep_alive_after_a_second(ours)

    def close_when_asked() -> None:
        wire.await_delivery(first(PROBE, from_=OURS))
        peer.close()

    with meanwhile(close_when_asked):
        result = proven(wire, graceful_close, ours)
    assert result.outcome is CloseOutcome.PEER_CLOSED


def test_our_keep_alive_finds_a_broken_link(wire: Wire) -> None:
    """Our FIN is acknowledged, then the link breaks; SO_KEEPALIVE gets no answer."""
    ours, _peer = wire.connect()
    keep_alive_after_a_second(ours)
    wire.cut(at=first(PROBE, from_=OURS))
    result = proven(wire, graceful_close, ours)
    assert (result.outcome, result.unacked) == (CloseOutcome.TIMED_OUT, 0)
    assert result.error is not None
    assert not result.clean


def without_nagle(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def keep_alive_after_a_second(sock: socket.socket) -> None:
    """One second is the shortest time on Linux (tcp(7))."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT):
        sock.setsockopt(socket.IPPROTO_TCP, option, 1)
