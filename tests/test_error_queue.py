"""An entry in the error queue keeps POLLERR set until it is read; the close does not spin."""

from __future__ import annotations

import select
import socket
import sys
import time
from collections.abc import Callable

import pytest

from drivers import DELIVERING, GRACEFUL, Close, parts
from graceful_close import CloseOutcome
from streams import DEADLINE, Connection, await_reset, connect, meanwhile, read_and_close

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has an error queue")

SO_TIMESTAMPING = 37  # asm-generic/socket.h
TX_SOFTWARE, SOFTWARE, OPT_ID, TX_ACK = 1 << 1, 1 << 4, 1 << 7, 1 << 9  # net_tstamp.h
SO_ZEROCOPY, MSG_ZEROCOPY = 60, 0x4000000

# Seconds of CPU time; a loop that spins uses more.
WAIT = 0.5
MOST_CPU = 0.1

REPLY = b"r" * 20_000


def timestamps(connection: Connection) -> None:
    """Request timestamps of the reply and of its acknowledgement: two entries."""
    flags = TX_SOFTWARE | SOFTWARE | OPT_ID | TX_ACK
    connection.ours.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, flags)
    connection.ours.sendall(REPLY)


def zero_copy(connection: Connection) -> None:
    """Send with MSG_ZEROCOPY, which reports when the memory is free again: one entry."""
    try:
        connection.ours.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
    except OSError as error:
        pytest.skip(f"no MSG_ZEROCOPY here: {error}")
    assert connection.ours.send(REPLY, MSG_ZEROCOPY) == len(REPLY)


every_entry = pytest.mark.parametrize("leave", [timestamps, zero_copy])
every_close = pytest.mark.parametrize("close", parts(GRACEFUL))

Leave = Callable[[Connection], None]


def read_reply(peer: socket.socket) -> None:
    left = len(REPLY)
    while left:
        left -= len(peer.recv(left))


def with_an_entry(connection: Connection, leave: Leave) -> None:
    """Wait until there is an entry, which poll() reports as POLLERR."""
    leave(connection)
    read_reply(connection.peer)
    await_reset(connection.ours)
    assert connection.ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


@every_entry
@every_close
def test_the_wait_for_a_silent_peer_does_not_spin(
    tcp: Connection, leave: Leave, close: Close
) -> None:
    close(socket.socket(), timeout=0)  # the cost of the first event loop
    with_an_entry(tcp, leave)
    before = time.process_time()
    result = close(tcp.ours, timeout=WAIT)
    assert time.process_time() - before < MOST_CPU
    assert (result.outcome, result.error) == (CloseOutcome.TIMED_OUT, None)
    assert WAIT <= result.elapsed < WAIT + DEADLINE / 10


@every_entry
@pytest.mark.parametrize("close", parts(DELIVERING))
def test_the_wait_for_an_acknowledgement_does_not_spin(leave: Leave, close: Close) -> None:
    with connect("tcp4", peer_buffer=4096) as (ours, peer):
        with_an_entry(Connection(ours, peer), leave)
        ours.setblocking(False)
        unread = ours.send(bytes(1 << 20))  # more than fits into the peer's buffer
        before = time.process_time()
        result = close(ours, timeout=WAIT)
        assert time.process_time() - before < MOST_CPU
        assert unread > 0
        assert result.outcome is CloseOutcome.TIMED_OUT
        assert (result.unacked or 0) > 0
        assert WAIT <= result.elapsed < WAIT + DEADLINE / 10


@every_entry
@every_close
def test_the_peers_fin_is_seen_despite_an_entry(
    tcp: Connection, leave: Leave, close: Close
) -> None:
    with_an_entry(tcp, leave)
    with meanwhile(read_and_close, tcp.peer):
        result = close(tcp.ours, timeout=DEADLINE)
    assert (result.outcome, result.unacked) == (CloseOutcome.PEER_CLOSED, 0)
    assert result.elapsed < DEADLINE / 10


@every_entry
def test_an_entry_makes_a_socket_that_is_always_ready(tcp: Connection, leave: Leave) -> None:
    """This test shows the problem: without the library, the wait ends immediately."""
    with_an_entry(tcp, leave)
    poller = select.poll()
    poller.register(tcp.ours, select.POLLIN)
    for _ in range(3):
        assert poller.poll(DEADLINE * 1000) == [(tcp.ours.fileno(), select.POLLERR)]
        with pytest.raises(BlockingIOError):
            tcp.ours.recv(1, socket.MSG_DONTWAIT)
