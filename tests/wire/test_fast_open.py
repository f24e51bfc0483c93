"""TCP Fast Open: accept() returns a connection before its handshake has finished (RFC 7413)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import graceful_close.asyncio
from drivers import THREADED, WAITING, Close, parts
from event_loops import LOOPS
from graceful_close import CloseOutcome, CloseResult, abortive_close, unacked_bytes
from streams import DEADLINE, meanwhile, read_all, read_and_close

from .laid import OurSocket, Wire
from .packets import OURS, PEER, Side

TCP_FASTOPEN = 23  # include/uapi/linux/tcp.h
# ip-sysctl.rst: for both sides, without cookies.
EVERYBODY_AT_ONCE = "519"
_SYSCTL = Path("/proc/sys/net/ipv4/tcp_fastopen")

SYN_RECV = b"\3"  # include/net/tcp_states.h
REPLY = b"R" * 5000

every_close = pytest.mark.parametrize("close", parts(WAITING))


@contextmanager
def _switched_on(wire: Wire, side: Side) -> Generator[None, None, None]:
    with wire.inside(side):
        before = _SYSCTL.read_text()
        _SYSCTL.write_text(EVERYBODY_AT_ONCE)
    yield
    with wire.inside(side):
        _SYSCTL.write_text(before)


@pytest.fixture
def accepted(wire: Wire) -> Iterator[tuple[OurSocket, socket.socket]]:
    """Return our end after accept(), with the request read, before the peer has our SYN."""
    with _switched_on(wire, OURS), _switched_on(wire, PEER):
        listener = wire.listen()
        listener.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 16)
        listener.settimeout(2)
        peer = wire.unconnected(PEER)
        peer.setblocking(False)
        wire.cut(from_=OURS)
        try:
            peer.sendto(b"request", socket.MSG_FASTOPEN, listener.getsockname())
        except BlockingIOError:
            pass  # EINPROGRESS: the request is in the SYN
        try:
            ours = OurSocket(fileno=listener.accept()[0].detach())
        except TimeoutError:
            pytest.skip("no TCP Fast Open here")
        with ours:
            assert ours.recv(100) == b"request"
            assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == SYN_RECV
            peer.settimeout(DEADLINE)
            yield ours, peer


Accepted = tuple[OurSocket, socket.socket]


def test_the_count_is_unknown_before_the_handshake_has_finished(accepted: Accepted) -> None:
    """The reply is written; nothing of ours arrives."""
    ours, _ = accepted
    ours.sendall(REPLY)
    assert unacked_bytes(ours) is None


@every_close
def test_peer_closed_is_not_returned_for_a_peer_that_acknowledges_nothing(
    accepted: Accepted, close: Close
) -> None:
    """The reply is written; nothing of ours arrives."""
    ours, _ = accepted
    ours.sendall(REPLY)
    result = close(ours, timeout=0.3)
    assert result.outcome is CloseOutcome.TIMED_OUT
    assert result.unacked is None or result.unacked >= len(REPLY)
    assert not result.clean
    assert 0.3 <= result.elapsed < 3


@every_close
def test_delivered_is_not_returned_for_a_peer_that_acknowledges_nothing(
    accepted: Accepted, close: Close
) -> None:
    """The call waits for DELIVERED; nothing of ours arrives."""
    ours, _ = accepted
    ours.sendall(REPLY)
    until: Any = {"until": CloseOutcome.DELIVERED}
    if close is WAITING["timed_linger_close"]:
        until = {}
    result = close(ours, timeout=0.3, **until)
    assert result.outcome is CloseOutcome.TIMED_OUT
    assert result.unacked is None or result.unacked >= len(REPLY)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_transport_that_cannot_flush_does_not_return_delivered(
    accepted: Accepted, loop: str
) -> None:
    """More is written than the kernel accepts; nothing of ours arrives."""
    ours, _ = accepted
    more = bytes(10_000_000)

    async def close() -> CloseResult:
        _, writer = await asyncio.open_connection(sock=socket.socket(fileno=ours.detach()))
        writer.write(more)
        return await graceful_close.asyncio.graceful_close(writer, timeout=0.2)

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        result = runner.run(close())
    assert result.outcome is CloseOutcome.TIMED_OUT
    assert result.unacked is None or result.unacked >= len(more)


def test_the_count_of_an_abort_is_unknown(accepted: Accepted) -> None:
    """The reply is written and discarded; nothing of ours arrives."""
    ours, _ = accepted
    ours.sendall(REPLY)
    result = abortive_close(ours)
    assert result.outcome is CloseOutcome.ABORTED
    assert result.unacked is None or result.unacked >= len(REPLY)


@pytest.mark.parametrize("close", parts(THREADED))
def test_a_handshake_that_finishes_late_has_a_clean_close(
    wire: Wire, accepted: Accepted, close: Close
) -> None:
    """Our SYN is lost until the close has begun; then everything passes."""
    ours, peer = accepted
    ours.sendall(REPLY)

    def read_after_all(peer: socket.socket) -> bytes:
        wire.mend()
        return read_and_close(peer)

    with meanwhile(read_after_all, peer) as received:
        result = close(ours, timeout=DEADLINE)
    assert received == [REPLY]
    assert (result.outcome, result.unacked) == (CloseOutcome.PEER_CLOSED, 0)


def test_delivery_is_detected_after_a_late_handshake(wire: Wire, accepted: Accepted) -> None:
    """Our SYN is lost until the close has begun; the call waits for DELIVERED."""
    ours, peer = accepted
    ours.sendall(REPLY)

    def read_after_all(peer: socket.socket) -> bytes:
        wire.mend()
        return read_all(peer)

    with meanwhile(read_after_all, peer) as received:
        result = WAITING["timed_linger_close"](ours, timeout=DEADLINE)
    assert received == [REPLY]
    assert (result.outcome, result.unacked) == (CloseOutcome.DELIVERED, 0)
