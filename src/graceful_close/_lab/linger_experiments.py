"""The linger experiments: close with output unsent, and look what becomes of it."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from graceful_close import (
    LingerPolicy,
    abortive_close,
    graceful_close,
    set_linger,
    timed_linger_close,
)

from . import loopback
from .kernel_view import standing
from .ways import Way

if TYPE_CHECKING:
    import socket

    from graceful_close import CloseResult

    from .kernel_view import Standing
    from .loopback import Ending

WRITTEN = 200_000
SECONDS = 1

# The peer's receive buffer: small, so that most of what is written stays with us. Arbitrary;
# Linux doubles it.
_RECEIVE_BUFFER = 16 << 10


@dataclass(frozen=True)
class LingerRun:
    """What one way to close did with unsent output.

    Attributes:
        way: Its name.
        took: Seconds in the closing call.
        result: What it said; None from a plain `close()`, which says nothing.
        error: The name of the error that it raised, if it did.
        before: How the kernel saw the connection before the close; None: not visible here.
        after: The same right after it; None: it is gone, if it was visible before.
        written: Bytes written before the close.
        received: Bytes that the peer found when it began to read after the close.
        ending: What the peer found behind them.
    """

    way: str
    took: float
    result: CloseResult | None
    error: str | None
    before: Standing | None
    after: Standing | None
    written: int
    received: int
    ending: Ending

    @property
    def whole(self) -> bool:
        """Whether the peer got everything, and could know that it did."""
        return self.received == self.written and self.ending is loopback.Ending.FIN


def run(way: Way) -> LingerRun:
    """Write to a peer that does not read, close, look, and only then let the peer read.

    Raises:
        OSError: The loopback does not work.
    """
    with loopback.connection(_RECEIVE_BUFFER) as (ours, peer):
        ports = ours.getsockname()[1], peer.getsockname()[1]
        loopback.write(ours, WRITTEN)
        # The BSDs and macOS do not linger on a non-blocking descriptor, and Python's
        # timeouts make it one.
        ours.setblocking(True)
        before = standing(*ports)
        result, error = None, None
        started = perf_counter()
        try:
            result = way.close(ours)
        except OSError as complaint:  # BSD: EWOULDBLOCK when the linger time is up
            error = errno.errorcode.get(complaint.errno or 0, str(complaint))
        took = perf_counter() - started
        after = standing(*ports)
        received, ending = loopback.read_to_the_end(peer)
    return LingerRun(way.name, took, result, error, before, after, WRITTEN, received, ending)


def _background(sock: socket.socket) -> None:
    set_linger(sock, LingerPolicy.BACKGROUND)
    sock.close()


def _abort(sock: socket.socket) -> None:
    set_linger(sock, LingerPolicy.ABORT)
    sock.close()


def _timed(sock: socket.socket) -> None:
    set_linger(sock, LingerPolicy.TIMED, SECONDS)
    sock.close()


def _gracefully(sock: socket.socket) -> CloseResult:
    return graceful_close(sock, timeout=SECONDS)


def _timed_linger(sock: socket.socket) -> CloseResult:
    return timed_linger_close(sock, SECONDS)


GRACEFUL = Way("graceful_close", _gracefully)

WAYS = (
    Way("BACKGROUND close()", _background),
    Way("ABORT close()", _abort),
    Way("TIMED close()", _timed),
    GRACEFUL,
    Way("abortive_close", abortive_close),
    Way("timed_linger_close", _timed_linger),
)
