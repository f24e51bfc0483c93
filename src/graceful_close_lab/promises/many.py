"""Promises about many connections: close_all and the Reaper."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections import Counter
from time import monotonic
from typing import TYPE_CHECKING

from graceful_close import CloseOutcome, Reaper, abortive_close, close_all

from .. import loopback
from ..loopback import TIMEOUT, Ending
from .exchange import at_the_same_time, new_listener
from .trying import NotHereError, promise, require

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

_COUNT = 20
_THREADS = 16
_EACH = 5  # connections for each thread
_LATE = 2.0  # seconds: the longest time for a Reaper's close()
_REPLY = b"reply"

Pair = tuple[socket.socket, socket.socket]


@contextlib.contextmanager
def _connections(count: int = _COUNT) -> Generator[list[Pair]]:
    """Open connections on which a reply was written and not read yet."""
    with contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(loopback.connection()) for _ in range(count)]
        for ours, _ in pairs:
            ours.sendall(_REPLY)
        yield pairs


def _send_fins(pairs: list[Pair]) -> None:
    """Make every peer send its FIN, and wait until each has arrived."""
    for ours, peer in pairs:
        peer.shutdown(socket.SHUT_WR)
        ours.recv(1, socket.MSG_PEEK)


def _read_replies(peers: Iterable[socket.socket]) -> None:
    for peer in peers:
        received = loopback.read_to_the_end(peer)
        require(received == (len(_REPLY), Ending.FIN), f"a peer read {received}")
        peer.close()


def _require_all(outcomes: Iterable[CloseOutcome], count: int = _COUNT) -> str:
    counted = Counter(outcomes)
    detail = ", ".join(f"{number} {outcome.name}" for outcome, number in counted.items())
    require(counted == {CloseOutcome.PEER_CLOSED: count}, detail)
    return detail


@promise("close_all closes many connections whose peers close later")
def _close_all_later() -> str:
    with (
        _connections() as pairs,
        at_the_same_time(lambda: _read_replies(peer for _, peer in pairs)),
    ):
        results = close_all([ours for ours, _ in pairs], timeout=TIMEOUT)
    return _require_all(result.outcome for result in results)


@promise("close_all closes many connections whose peers have sent their FIN")
def _close_all_now() -> str:
    with _connections() as pairs:
        _send_fins(pairs)
        results = close_all([ours for ours, _ in pairs], timeout=TIMEOUT)
        _read_replies(peer for _, peer in pairs)
    return _require_all(result.outcome for result in results)


@promise("a Reaper closes many connections whose peers close later")
def _reaper_later() -> str:
    with _connections() as pairs, Reaper(timeout=TIMEOUT) as reaper:
        futures = [reaper.submit(ours) for ours, _ in pairs]
        _read_replies(peer for _, peer in pairs)
        return _require_all(future.result(TIMEOUT).outcome for future in futures)


@promise("a Reaper closes many connections whose peers have sent their FIN")
def _reaper_now() -> str:
    with _connections() as pairs, Reaper(timeout=TIMEOUT) as reaper:
        _send_fins(pairs)
        futures = [reaper.submit(ours) for ours, _ in pairs]
        _read_replies(peer for _, peer in pairs)
        return _require_all(future.result(TIMEOUT).outcome for future in futures)


@promise("a client that resets does not affect the other closes of the Reaper")
def _reaper_reset() -> str:
    with _connections() as pairs, Reaper(timeout=TIMEOUT) as reaper:
        (first, resets), *others = pairs
        abortive_close(resets)
        reset = reaper.submit(first)
        futures = [reaper.submit(ours) for ours, _ in others]
        _read_replies(peer for _, peer in others)
        outcome = reset.result(TIMEOUT).outcome
        require(outcome is CloseOutcome.PEER_RESET, f"the first is {outcome.name}")
        outcomes = (future.result(TIMEOUT).outcome for future in futures)
        return f"PEER_RESET, and {_require_all(outcomes, len(others))}"


@promise("a Reaper counts every close once when sixteen threads submit")
def _reaper_threads() -> str:
    count = _THREADS * _EACH
    with _connections(count) as pairs, Reaper(timeout=TIMEOUT) as reaper:

        def submit(start: int) -> None:
            for ours, _ in pairs[start::_THREADS]:
                reaper.submit(ours)

        with at_the_same_time(
            *(lambda start=start: submit(start) for start in range(_THREADS))
        ):
            _read_replies(peer for _, peer in pairs)
        reaper.close()
        outcomes = [one for one, number in reaper.stats().items() for _ in range(number)]
    return _require_all(outcomes, count)


@promise("Reaper.close() returns in time, with all sockets closed")
def _reaper_close() -> str:
    with _connections() as pairs:
        reaper = Reaper(timeout=60)
        futures = [reaper.submit(ours) for ours, _ in pairs]  # their peers are silent
        started = monotonic()
        reaper.close(timeout=0.2)
        took = monotonic() - started
        require(took < _LATE, f"it ended after {took:.1f} s")
        left = sum(not future.done() for future in futures)
        require(not left, f"{left} futures were left without a result")
        _read_replies(peer for _, peer in pairs)
    return f"after {took:.2f} s"


# A program that exits with a pending close in its Reaper. This process is the peer.
_PROGRAM = f"""
import socket, sys
from graceful_close import Reaper
reaper = Reaper(timeout={TIMEOUT})
sock = socket.create_connection(({loopback.HOST!r}, int(sys.argv[1])))
sock.sendall({_REPLY!r})
reaper.submit(sock)
"""


@promise("a program that exits waits for its Reaper, and prints nothing")
def _reaper_exit() -> str:
    if not sys.executable:
        raise NotHereError("no other program can be started")
    with new_listener() as listener:
        listener.settimeout(8 * TIMEOUT)  # an interpreter starts slowly on an emulator
        with subprocess.Popen(  # noqa: S603 (ourselves)
            [sys.executable, "-c", _PROGRAM, str(listener.getsockname()[1])],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stderr=subprocess.PIPE,
        ) as program:
            peer, _ = listener.accept()
            with peer:
                peer.settimeout(TIMEOUT)
                received = loopback.read_to_the_end(peer)
            _, errors = program.communicate(timeout=TIMEOUT)
    require(received == (len(_REPLY), Ending.FIN), f"the peer read {received}")
    require(not errors and program.returncode == 0, f"{program.returncode}: {errors!r}")
    return "exit code 0, nothing on stderr"
