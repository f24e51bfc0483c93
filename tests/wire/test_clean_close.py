"""A clean close, and an abort."""

from __future__ import annotations

import socket

import pytest

from graceful_close import (
    CloseOutcome,
    CloseResult,
    LingerPolicy,
    abortive_close,
    closing,
    graceful_close,
    timed_linger_close,
)
from streams import await_input, meanwhile, read_all, read_and_close

from .laid import OurSocket, Wire
from .packets import OURS, PEER
from .proof import proven
from .rules import ACK_OF_FIN, FIN, RST, first

REPLY = b"reply" * 200
UPLOAD = b"upload" * 1000


def test_a_clean_close_sends_one_fin_and_no_rst(wire: Wire) -> None:
    """The peer reads everything, then closes."""
    ours, peer = wire.connect()
    ours.sendall(REPLY)
    with meanwhile(read_and_close, peer) as received:
        result = proven(wire, graceful_close, ours)
    assert received == [REPLY]
    assert (result.outcome, result.unacked) == (CloseOutcome.PEER_CLOSED, 0)
    assert wire.flags_sent(OURS)[:4] == ["SA", "PA", "FA", "A"]


def test_a_clean_close_with_unread_input_sends_one_fin_and_no_rst(wire: Wire) -> None:
    """We have not read what the peer sent; it reads our reply, then closes."""
    ours, peer = wire.connect()
    peer.sendall(UPLOAD)
    await_input(ours)
    ours.sendall(REPLY)
    with meanwhile(read_and_close, peer) as received:
        result = proven(wire, graceful_close, ours)
    assert received == [REPLY]
    assert (result.outcome, result.drained) == (CloseOutcome.PEER_CLOSED, len(UPLOAD))


def test_a_plain_close_with_unread_input_sends_rst(wire: Wire) -> None:
    """The problem that the library solves. There is no result, so there is no row."""
    ours, peer = wire.connect()
    peer.sendall(UPLOAD)
    await_input(ours)
    ours.sendall(REPLY)
    ours.close()
    wire.await_packet(first(RST, from_=OURS))
    assert wire.fins_sent(OURS) == 0


def test_delivered_does_not_wait_for_the_peers_fin(wire: Wire) -> None:
    """The peer's kernel acknowledges our FIN; its program never closes."""
    ours, peer = wire.connect()
    ours.sendall(REPLY)
    result = proven(wire, graceful_close, ours, until=CloseOutcome.DELIVERED)
    assert (result.outcome, result.unacked) == (CloseOutcome.DELIVERED, 0)
    assert wire.fins_sent(PEER) == wire.resets_sent(OURS) == 0
    assert read_all(peer) == REPLY


def test_a_timed_linger_does_not_wait_for_the_peers_fin(wire: Wire) -> None:
    """The peer's kernel acknowledges our FIN; its program never closes."""
    ours, peer = wire.connect()
    ours.sendall(REPLY)
    result = proven(wire, timed_linger_close, ours, 2)
    assert (result.outcome, result.unacked) == (CloseOutcome.DELIVERED, 0)
    assert wire.fins_sent(PEER) == wire.resets_sent(OURS) == 0
    assert read_all(peer) == REPLY


def test_a_timed_linger_with_unread_input_does_not_reset(wire: Wire) -> None:
    """We have not read what the peer sent; its kernel acknowledges our FIN."""
    ours, peer = wire.connect()
    peer.sendall(UPLOAD)
    await_input(ours)
    ours.sendall(REPLY)
    result = proven(wire, timed_linger_close, ours, 2)
    assert result.outcome is CloseOutcome.DELIVERED
    assert wire.resets_sent(OURS) == 0
    assert read_all(peer) == REPLY


def test_all_was_delivered_before_the_call(wire: Wire) -> None:
    """The peer's FIN has arrived when the call begins, and our data is acknowledged."""
    ours, peer = wire.connect()
    wire.deliver(REPLY, ours)
    peer.shutdown(socket.SHUT_WR)
    wire.await_delivery(first(FIN, from_=PEER))
    result = proven(wire, graceful_close, ours)
    assert (result.outcome, result.unacked) == (CloseOutcome.PEER_CLOSED, 0)


def test_a_block_that_ends_is_a_clean_close(wire: Wire) -> None:
    """The peer reads everything, then closes."""
    ours, peer = wire.connect()

    def end_a_block(sock: OurSocket) -> CloseResult:
        """with closing(sock): (the body ends)"""
        with (block := closing(sock)) as inside:
            inside.sendall(REPLY)
        assert block.result is not None
        return block.result

    ours.written = len(REPLY)
    with meanwhile(read_and_close, peer):
        result = proven(wire, end_a_block, ours)
    assert result.outcome is CloseOutcome.PEER_CLOSED
    assert wire.flags_sent(OURS)[:4] == ["SA", "PA", "FA", "A"]


def test_a_block_that_raises_is_rst_and_no_fin(wire: Wire) -> None:
    """The peer has received half of the reply."""
    ours, peer = wire.connect()
    wire.deliver(REPLY, ours)

    def raise_in_a_block(sock: OurSocket) -> CloseResult:
        """with closing(sock): (the body raises)"""
        block = closing(sock)
        with pytest.raises(LookupError), block:
            raise LookupError
        assert block.result is not None
        return block.result

    result = proven(wire, raise_in_a_block, ours)
    assert result.outcome is CloseOutcome.ABORTED
    assert wire.flags_sent(OURS)[:3] == ["SA", "PA", "RA"]
    with pytest.raises(ConnectionResetError):
        read_all(peer)


def test_an_abort_is_rst_and_no_fin(wire: Wire) -> None:
    """The peer is connected, and has read nothing."""
    ours, _peer = wire.connect()
    wire.deliver(REPLY, ours)
    result = proven(wire, abortive_close, ours)
    assert result.outcome is CloseOutcome.ABORTED
    assert wire.flags_sent(OURS)[:3] == ["SA", "PA", "RA"]


def test_an_abort_that_is_not_acknowledged(wire: Wire) -> None:
    """All packets to the peer are dropped, the RST too."""
    ours, _peer = wire.connect()
    wire.cut(from_=OURS)
    ours.sendall(REPLY)
    result = proven(wire, abortive_close, ours)
    assert (result.outcome, result.unacked) == (CloseOutcome.ABORTED, len(REPLY))


def test_an_abort_ends_the_connection_for_every_holder(wire: Wire) -> None:
    """A dup holds the connection, too; the RST is sent nevertheless."""
    ours, _peer = wire.connect()
    wire.deliver(REPLY, ours)
    with ours.dup():
        result = proven(wire, abortive_close, ours)
        assert wire.resets_sent(OURS) >= 1
    assert result.outcome is CloseOutcome.ABORTED


def test_on_timeout_abort_is_fin_and_then_rst(wire: Wire) -> None:
    """The peer's kernel acknowledges our FIN; its program never closes."""
    ours, _peer = wire.connect()
    ours.sendall(REPLY)
    result = proven(wire, graceful_close, ours, timeout=0.1, on_timeout=LingerPolicy.ABORT)
    assert (result.outcome, result.unacked) == (CloseOutcome.TIMED_OUT, 0)
    reset = wire.await_packet(first(RST, from_=OURS))
    acknowledged = wire.await_delivery(first(ACK_OF_FIN, from_=PEER))
    assert acknowledged.delivered[0] < reset.time
