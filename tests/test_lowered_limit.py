"""A program that lowers its limit of descriptors after it has opened them, as sandboxes do.

poll() then fails with EINVAL, although its descriptors are valid (poll(2)).
"""

from __future__ import annotations

import socket
import sys

import pytest

import descriptors
from drivers import THREADED, WAITING, Close, parts
from graceful_close import CloseOutcome, Reaper
from streams import DEADLINE, connect, meanwhile

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")

Reaper().close()  # the first Reaper loads a module, which needs a descriptor

LINGERING = {"timed_linger_close": WAITING["timed_linger_close"]}


def read_and_close(peer: socket.socket) -> bytes:
    peer.settimeout(None)  # with a timeout, recv() itself calls poll()
    received = b"".join(iter(lambda: peer.recv(1000), b""))
    peer.close()
    return received


@pytest.mark.parametrize("close", parts(THREADED))
@pytest.mark.parametrize("idle_timeout", [None, DEADLINE])
def test_a_close_waits_for_the_peer_although_poll_fails(
    close: Close, idle_timeout: float | None
) -> None:
    with connect("tcp4") as (ours, peer):
        peer.sendall(b"unread")
        ours.sendall(b"reply")
        with meanwhile(read_and_close, peer) as received, descriptors.limited_to(0):
            result = close(ours, timeout=DEADLINE, idle_timeout=idle_timeout)
        assert received == [b"reply"]
        assert result.outcome is CloseOutcome.PEER_CLOSED


@pytest.mark.parametrize("close", parts({**THREADED, **LINGERING}))
def test_a_close_is_limited_by_its_deadline_although_poll_fails(close: Close) -> None:
    with connect("tcp4", peer_buffer=4096) as (ours, _):
        ours.setblocking(False)
        ours.send(bytes(10_000_000))
        with descriptors.limited_to(0):
            result = close(ours, timeout=0.05)
        assert result.outcome is CloseOutcome.TIMED_OUT
        assert 0.05 <= result.elapsed < DEADLINE / 2
