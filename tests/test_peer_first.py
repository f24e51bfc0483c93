"""peer_first: the side that sends the first FIN keeps TIME_WAIT, which should be the peer."""

from __future__ import annotations

import select
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from drivers import GRACEFUL, Close, leave_a_block, parts
from graceful_close import CloseOutcome, CloseResult, graceful_close
from streams import (
    DEADLINE,
    POLLRDHUP,
    Connection,
    await_fin,
    meanwhile,
    read_all,
    read_and_close,
    send_fin,
)
from test_end_of_stream import resets_after_a_delay
from tls_sessions import Session

THOUGHT = 0.15  # seconds before a peer of this module acts
SHORT = 0.2  # seconds of peer_first if the peer must not be first
PROMPTLY = 2.0

TIME_WAIT = 6  # include/net/tcp_states.h


CLOSES = {**GRACEFUL, "closing": leave_a_block}
every_close = pytest.mark.parametrize("close", parts(CLOSES))
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/net/tcp")

Ends = tuple[Any, Any]


def ends_of(connection: Connection) -> Ends:
    return connection.ours.getsockname(), connection.peer.getsockname()


def kept_state(ends: Ends) -> int | None:
    """Return the kernel's state of this end; None: it has none (proc_net_tcp.rst)."""

    def in_hex(address: Any) -> str:
        host, port = address
        return f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}:{port:04X}"

    wanted = [in_hex(end) for end in ends]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[1:3] == wanted:
            return int(words[3], 16)
    return None


def closes_first(peer: socket.socket) -> bytes:
    """A client that reads the reply, and closes after a delay."""
    peer.settimeout(DEADLINE)
    answer = peer.recv(100)
    time.sleep(THOUGHT)
    peer.close()
    return answer


@every_close
def test_the_close_waits_for_a_peer_that_closes_which_keeps_time_wait(
    tcp: Connection, close: Close
) -> None:
    ends = ends_of(tcp)
    tcp.ours.sendall(b"reply")
    with meanwhile(closes_first, tcp.peer) as received:
        result = close(tcp.ours, timeout=DEADLINE, peer_first=DEADLINE)
    assert received == [b"reply"]
    assert result.outcome is CloseOutcome.PEER_CLOSED
    assert (result.peer_first, result.unacked, result.clean) == (True, 0, True)
    assert result.elapsed < PROMPTLY, "as soon as it arrives"
    if sys.platform == "linux":
        assert kept_state(ends) is None
        assert kept_state(ends[::-1]) == TIME_WAIT


@linux
@every_close
def test_without_peer_first_we_keep_time_wait(tcp: Connection, close: Close) -> None:
    ends = ends_of(tcp)
    with meanwhile(read_and_close, tcp.peer):
        result = close(tcp.ours, timeout=DEADLINE)
    assert result.outcome is CloseOutcome.PEER_CLOSED
    assert result.peer_first is not True
    assert kept_state(ends) == TIME_WAIT
    assert kept_state(ends[::-1]) is None


@every_close
def test_the_close_does_not_wait_for_a_peer_that_has_already_closed(
    tcp: Connection, close: Close
) -> None:
    send_fin(tcp.peer, to=tcp.ours)
    result = close(tcp.ours, timeout=DEADLINE, peer_first=DEADLINE)
    assert (result.outcome, result.peer_first) == (CloseOutcome.PEER_CLOSED, True)
    assert result.elapsed < PROMPTLY


@every_close
def test_our_fin_is_sent_when_the_time_of_peer_first_is_over(
    tcp: Connection, close: Close
) -> None:
    began = monotonic()

    def reads_to_our_fin(peer: socket.socket) -> float:
        read_all(peer)
        at = monotonic()
        time.sleep(THOUGHT)  # so that the two FINs do not cross
        peer.close()
        return at

    with meanwhile(reads_to_our_fin, tcp.peer) as fin_at:
        result = close(tcp.ours, timeout=DEADLINE, peer_first=SHORT)
    assert SHORT <= fin_at[0] - began < PROMPTLY
    assert (result.outcome, result.peer_first) == (CloseOutcome.PEER_CLOSED, False)


@every_close
def test_peer_first_is_limited_by_the_timeout(tcp: Connection, close: Close) -> None:
    tcp.ours.sendall(b"reply")
    result = close(tcp.ours, timeout=SHORT, peer_first=DEADLINE)
    assert (result.outcome, result.peer_first) == (CloseOutcome.TIMED_OUT, False)
    assert SHORT <= result.elapsed < PROMPTLY
    assert read_all(tcp.peer) == b"reply", "and our FIN, which was sent at the end"


@every_close
def test_peer_first_is_limited_by_the_idle_timeout(tcp: Connection, close: Close) -> None:
    result = close(tcp.ours, timeout=DEADLINE, idle_timeout=SHORT, peer_first=DEADLINE)
    assert result.outcome is CloseOutcome.IDLE_TIMED_OUT
    assert result.elapsed < PROMPTLY
    assert read_all(tcp.peer) == b""


@every_close
def test_input_during_peer_first_is_drained(tcp: Connection, close: Close) -> None:
    def uploads(peer: socket.socket) -> None:
        for _ in range(10):
            peer.sendall(b"u" * 1000)
            time.sleep(0.01)
        peer.close()

    with meanwhile(uploads, tcp.peer):
        result = close(tcp.ours, timeout=DEADLINE, peer_first=DEADLINE)
    assert (result.outcome, result.peer_first) == (CloseOutcome.PEER_CLOSED, True)
    assert result.drained == 10_000


@every_close
def test_at_the_drain_limit_our_fin_is_sent_although_a_dup_exists(
    tcp: Connection, close: Close
) -> None:
    tcp.peer.sendall(b"u" * 1000)
    with tcp.ours.dup():
        tcp.ours.sendall(b"reply")
        result = close(tcp.ours, timeout=DEADLINE, peer_first=DEADLINE, drain_limit=999)
        assert read_all(tcp.peer) == b"reply"
    assert (result.outcome, result.drained) == (CloseOutcome.DRAIN_LIMIT, 1000)
    assert result.elapsed < PROMPTLY


@every_close
def test_a_peer_that_resets_is_not_reported_as_first(tcp: Connection, close: Close) -> None:
    with meanwhile(resets_after_a_delay, tcp.peer):
        result = close(tcp.ours, timeout=DEADLINE, peer_first=DEADLINE)
    assert result.outcome is CloseOutcome.PEER_RESET
    assert result.peer_first is not True
    assert result.elapsed < PROMPTLY


# --- TLS --------------------------------------------------------------------------------------


THREADED_TLS: dict[str, Callable[..., CloseResult]] = {
    name: close for name, close in CLOSES.items() if name not in ("asyncio", "trio")
}


@pytest.mark.parametrize("close", parts(THREADED_TLS))
def test_under_tls_close_notify_is_sent_first_and_our_fin_after_the_peers(
    tls: Session, close: Close
) -> None:
    ends = ends_of(Connection(*tls))

    def closes_at_close_notify(peer: socket.socket) -> bool:
        peer.settimeout(DEADLINE)
        assert peer.recv(100) == b"", "close_notify"
        time.sleep(THOUGHT)
        poller = select.poll()
        poller.register(peer, POLLRDHUP)
        fin_came = bool(poller.poll(0))
        peer.close()
        return fin_came

    with meanwhile(closes_at_close_notify, tls.peer) as fin_came:
        result = close(tls.ours, timeout=DEADLINE, peer_first=DEADLINE)
    assert fin_came == [False]
    assert result.outcome is CloseOutcome.PEER_CLOSED
    assert (result.notified, result.peer_first, result.clean) == (True, True, True)
    assert result.elapsed < PROMPTLY
    if sys.platform == "linux":
        assert kept_state(ends) is None


def test_under_tls_our_fin_is_sent_when_the_time_of_peer_first_is_over(tls: Session) -> None:
    result = graceful_close(tls.ours, timeout=2 * SHORT, peer_first=SHORT)
    assert (result.outcome, result.notified) == (CloseOutcome.TIMED_OUT, True)
    assert result.peer_first is False
    await_fin(tls.peer)
