"""After the caller's own SHUT_RD recv() returns 0: only the state shows the peer's FIN."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import closing as closing_it

import pytest

from drivers import DELIVERING, GRACEFUL, Close, parts
from graceful_close import CloseOutcome, LingerPolicy
from streams import (
    DEADLINE,
    Connection,
    await_input,
    connect,
    ends_in_reset,
    meanwhile,
    read_and_close,
    reset,
    send_fin,
)

pytestmark = pytest.mark.skipif(
    sys.platform != "linux",
    reason="recv() after SHUT_RD, and some socket options, differ on other systems",
)

# Seconds before a peer of this module acts.
THOUGHT = 0.15

# Seconds. A close that the peer ends takes less time.
PROMPTLY = 2.0

SO_PEEK_OFF = 42  # asm-generic/socket.h

every_close = pytest.mark.parametrize("close", parts(GRACEFUL))


@pytest.fixture(params=["tcp4", "tcp6"])
def internet(request: pytest.FixtureRequest) -> Iterator[Connection]:
    try:
        with connect(request.param) as connection:
            yield connection
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")


@pytest.fixture(params=[socket.SHUT_RD, socket.SHUT_RDWR], ids=["SHUT_RD", "SHUT_RDWR"])
def after_shut_rd(internet: Connection, request: pytest.FixtureRequest) -> Connection:
    """A connection after the caller's own shutdown(), with a sent reply."""
    internet.ours.sendall(b"reply")
    internet.ours.shutdown(request.param)
    assert internet.ours.recv(1) == b"", "forever, and the peer has sent nothing"
    return internet


def closes_after_a_delay(peer: socket.socket) -> bytes:
    time.sleep(THOUGHT)
    return read_and_close(peer)


def resets_after_a_delay(peer: socket.socket) -> None:
    time.sleep(THOUGHT)
    reset(peer)


@every_close
def test_a_peer_that_is_silent_has_not_closed(after_shut_rd: Connection, close: Close) -> None:
    result = close(after_shut_rd.ours, timeout=0.2)
    assert (result.outcome, result.unacked) == (CloseOutcome.TIMED_OUT, 0)
    assert 0.2 <= result.elapsed < PROMPTLY
    assert not result.clean


@every_close
def test_a_timeout_of_0_does_not_prove_a_close(after_shut_rd: Connection, close: Close) -> None:
    assert close(after_shut_rd.ours, timeout=0).outcome is CloseOutcome.TIMED_OUT


@every_close
def test_silence_ends_at_the_idle_timeout(after_shut_rd: Connection, close: Close) -> None:
    result = close(after_shut_rd.ours, timeout=DEADLINE, idle_timeout=0.2)
    assert result.outcome is CloseOutcome.IDLE_TIMED_OUT
    assert 0.2 <= result.elapsed < PROMPTLY


@every_close
def test_the_peers_fin_ends_the_close(after_shut_rd: Connection, close: Close) -> None:
    with meanwhile(closes_after_a_delay, after_shut_rd.peer) as received:
        result = close(after_shut_rd.ours, timeout=DEADLINE)
    assert received == [b"reply"]
    assert (result.outcome, result.unacked) == (CloseOutcome.PEER_CLOSED, 0)
    assert result.elapsed < PROMPTLY
    assert result.clean


@every_close
def test_an_earlier_fin_of_the_peer_ends_the_close_immediately(
    internet: Connection, close: Close
) -> None:
    send_fin(internet.peer, to=internet.ours)
    internet.ours.shutdown(socket.SHUT_RD)
    result = close(internet.ours, timeout=DEADLINE)
    assert (result.outcome, result.peer_first) == (CloseOutcome.PEER_CLOSED, True)
    assert result.elapsed < PROMPTLY


@every_close
def test_a_connection_that_the_callers_shutdown_has_ended_is_clean(
    internet: Connection, close: Close
) -> None:
    """The caller sent the last FIN, so the way in which the connection ended is not known."""
    send_fin(internet.peer, to=internet.ours)
    internet.ours.shutdown(socket.SHUT_RDWR)
    assert internet.peer.recv(1) == b""
    result = close(internet.ours, timeout=DEADLINE)
    assert (result.outcome, result.unacked) == (CloseOutcome.NOT_CONNECTED, 0)
    assert result.elapsed < PROMPTLY
    assert result.clean


@pytest.mark.parametrize("close", parts(DELIVERING))
def test_delivered_is_returned_at_the_acknowledgement(
    after_shut_rd: Connection, close: Close
) -> None:
    result = close(after_shut_rd.ours, timeout=DEADLINE)
    assert (result.outcome, result.unacked) == (CloseOutcome.DELIVERED, 0)
    assert result.elapsed < PROMPTLY
    assert after_shut_rd.peer.recv(10) == b"reply"
    assert after_shut_rd.peer.recv(10) == b""


@every_close
def test_a_peer_that_resets_has_not_closed(after_shut_rd: Connection, close: Close) -> None:
    with meanwhile(resets_after_a_delay, after_shut_rd.peer):
        result = close(after_shut_rd.ours, timeout=DEADLINE)
    assert result.outcome is CloseOutcome.PEER_RESET
    assert result.elapsed < PROMPTLY
    assert not result.clean


@every_close
def test_a_peer_in_the_middle_of_its_upload_has_not_closed(
    after_shut_rd: Connection, close: Close
) -> None:
    """The kernel answers input after SHUT_RD and a close with RST, which is not clean."""

    def uploads(peer: socket.socket) -> bool:
        time.sleep(THOUGHT)
        try:
            for _ in range(50):
                peer.sendall(b"upload" * 1000)
        except ConnectionError:
            return True
        return ends_in_reset(peer)

    with meanwhile(uploads, after_shut_rd.peer):
        result = close(after_shut_rd.ours, timeout=1.0, on_timeout=LingerPolicy.ABORT)
    assert result.outcome in (CloseOutcome.TIMED_OUT, CloseOutcome.PEER_RESET)
    assert not result.clean


# --- options that change the results of recv() and poll() -------------------------------------


@every_close
@pytest.mark.parametrize("offset", [0, 3, 1000])
def test_a_peek_offset_does_not_hide_input(
    stream: Connection, close: Close, offset: int
) -> None:
    try:
        stream.ours.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, offset)
    except OSError as error:
        pytest.skip(f"no SO_PEEK_OFF for this kind of stream: {error}")
    stream.peer.sendall(b"upload")
    await_input(stream.ours)
    stream.ours.sendall(b"reply")
    with meanwhile(read_and_close, stream.peer) as received:
        result = close(stream.ours, timeout=DEADLINE)
    assert received == [b"reply"]
    assert (result.outcome, result.drained) == (CloseOutcome.PEER_CLOSED, 6)
    assert result.elapsed < PROMPTLY


@every_close
def test_a_low_water_mark_does_not_delay_the_close_and_is_kept(
    tcp: Connection, close: Close
) -> None:
    tcp.ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1000)
    tcp.peer.sendall(b"upload")
    dup = socket.socket(fileno=os.dup(tcp.ours.fileno()))
    with closing_it(dup), meanwhile(closes_after_a_delay, tcp.peer):
        result = close(tcp.ours, timeout=DEADLINE)
        assert dup.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1000
    assert (result.outcome, result.drained) == (CloseOutcome.PEER_CLOSED, 6)
    assert result.elapsed < PROMPTLY


@every_close
def test_input_below_the_low_water_mark_is_drained(tcp: Connection, close: Close) -> None:
    tcp.ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1000)
    tcp.peer.sendall(b"upload")
    tcp.ours.sendall(b"reply")
    result = close(tcp.ours, timeout=0.2)
    assert (result.outcome, result.drained) == (CloseOutcome.TIMED_OUT, 6)
    assert not ends_in_reset(tcp.peer), "nothing was left unread"


@every_close
def test_a_low_water_mark_hides_no_reset(close: Close) -> None:
    with connect("unix") as (ours, peer):
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1000)
        peer.sendall(b"upload")
        ours.sendall(b"reply")
        peer.close()  # AF_UNIX reports a reset, because the reply was not read
        result = close(ours, timeout=DEADLINE)
    assert (result.outcome, result.drained) == (CloseOutcome.PEER_RESET, 6)
