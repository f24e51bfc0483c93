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

from . import loopback, wire_view
from .kernel_view import standing
from .story import Kind, Side, Story
from .ways import Way

if TYPE_CHECKING:
    import socket

    from graceful_close import CloseResult

    from .kernel_view import Standing
    from .loopback import Ending
    from .story import Exchange

WRITTEN = 200_000
SECONDS = 1

# The peer's receive buffer: small, so that most of what is written stays with us. Arbitrary;
# Linux doubles it.
_RECEIVE_BUFFER = 16 << 10


@dataclass(frozen=True)
class LingerRun:
    """What one way to close did with unsent output.

    Attributes:
        name: What the command line calls it.
        way: What a programmer would write.
        promised: What it promises; see `Way`.
        took: Seconds in the closing call.
        result: What it said; None from a plain `close()`, which says nothing.
        error: The name of the error that it raised, if it did.
        before: How the kernel saw the connection before the close; None: not visible here.
        after: The same right after it; None: it is gone, if it was visible before.
        written: Bytes written before the close.
        received: Bytes that the peer found when it began to read after the close.
        ending: What the peer found behind them.
        exchange: Who did what when.
    """

    name: str
    way: str
    promised: bool | None
    took: float
    result: CloseResult | None
    error: str | None
    before: Standing | None
    after: Standing | None
    written: int
    received: int
    ending: Ending
    exchange: Exchange

    @property
    def whole(self) -> bool:
        """Whether the peer got everything, and could know that it did."""
        return self.received == self.written and self.ending is loopback.Ending.FIN

    @property
    def as_promised(self) -> bool:
        """Whether it went as the way to close promises."""
        if self.promised is False:
            return self.ending is loopback.Ending.RST
        return self.whole or self.promised is None


def run(way: Way, story: Story | None = None) -> LingerRun:
    """Write to a peer that does not read, close, look, and only then let the peer read.

    Raises:
        OSError: The loopback does not work.
    """
    story = story or Story()
    with (
        loopback.connection(_RECEIVE_BUFFER) as (ours, peer),
        wire_view.watched(ours.getsockname()[1]) as wire,
    ):
        ports = ours.getsockname()[1], peer.getsockname()[1]
        wrote_at = story.does(Side.SERVER, f"send({WRITTEN:,} bytes)")
        loopback.write(ours, WRITTEN)
        # The BSDs and macOS do not linger on a non-blocking descriptor, and Python's
        # timeouts make it one.
        ours.setblocking(True)
        before = standing(*ports)
        taken = _tell_what_was_taken(story, wrote_at, before, 0)
        result, error = None, None
        closed_at = story.does(Side.SERVER, way.title)
        story.waits_for = f"the call to return, {SECONDS} s at most"
        started = perf_counter()
        try:
            result = way.close(ours)
        except OSError as complaint:  # BSD: EWOULDBLOCK when the linger time is up
            error = errno.errorcode.get(complaint.errno or 0, str(complaint))
        took = perf_counter() - started
        story.does(Side.SERVER, _told(result, error))
        after = standing(*ports)
        if before is not None:
            story.does(Side.SERVER, _seen(after), kernel=True)
            taken = _tell_what_was_taken(story, wrote_at, after, taken)
        story.waits_for = "the peer to read to the end"
        read_at = story.does(Side.CLIENT, "recv() to the end")
        received, ending = loopback.read_to_the_end(peer)
        if ending is loopback.Ending.FIN:
            _tell_the_rest(story, read_at, received - taken, received)
            _tell_whether_acknowledged(story, standing(*ports))
        else:
            _tell_a_loss(story, wrote_at, closed_at, received - taken, received, ending)
        story.waits_for = ""
    return LingerRun(
        way.name,
        way.title,
        way.promised,
        took,
        result,
        error,
        before,
        after,
        WRITTEN,
        received,
        ending,
        wire_view.as_it_arrived(story.so_far(), wire, story.began, ports[0]),
    )


def _tell_what_was_taken(
    story: Story, wrote_at: float, seen: Standing | None, before: int
) -> int:
    """How many bytes the peer's kernel has acknowledged, if that is visible."""
    if seen is None:
        return before
    fin = seen.state in _FIN_IS_QUEUED  # and counts as one byte
    taken, now = WRITTEN - (seen.send_queue - fin), story.now()
    if taken <= before:
        return before
    story.sends(Side.SERVER, Kind.DATA, f"{taken - before:,} bytes", wrote_at, now, taken)
    story.sends(Side.CLIENT, Kind.ACK, "ACK", now, story.now(), taken)
    return taken


_FIN_IS_QUEUED = ("FIN_WAIT1", "CLOSING", "LAST_ACK")


def _tell_the_rest(story: Story, read_at: float, rest: int, received: int) -> None:
    """What came when the peer began to read, which is what opened its window."""
    now = story.does(Side.CLIENT, f"{received:,} bytes, then FIN")
    text = f"{rest:,} bytes + FIN" if rest else "FIN"
    story.sends(Side.SERVER, Kind.FIN, text, read_at, now)


def _tell_a_loss(
    story: Story, wrote_at: float, closed_at: float, rest: int, received: int, ending: Ending
) -> None:
    now = story.does(Side.CLIENT, f"{received:,} bytes, then {ending.value}")
    if rest:
        story.sends(Side.SERVER, Kind.DATA, f"{rest:,} bytes", wrote_at, now, received)
    if ending is loopback.Ending.RST:
        story.sends(Side.SERVER, Kind.RST, "RST", closed_at, now)


def _tell_whether_acknowledged(story: Story, last: Standing | None) -> None:
    if last is not None and last.state in ("FIN_WAIT2", "TIME_WAIT"):
        now = story.now()
        story.does(Side.SERVER, last.state, kernel=True)
        story.sends(Side.CLIENT, Kind.ACK, "ACK", now, story.now(), WRITTEN + 1)


def _told(result: CloseResult | None, error: str | None) -> str:
    if result is None:
        return error or "returned, says nothing"
    count = "unknown" if result.unacked is None else f"{result.unacked:,}"
    return f"{result.outcome.value}, {count} unacked"


def _seen(after: Standing | None) -> str:
    return "gone" if after is None else f"{after.state}, Send-Q {after.send_queue:,}"


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


GRACEFUL = Way("linger-graceful-close", "graceful_close", _gracefully, promised=True)

WAYS = (
    Way("linger-background", "BACKGROUND close()", _background, promised=True),
    Way("linger-abort", "ABORT close()", _abort, promised=False),
    # What becomes of the rest when the time is up differs from system to system.
    Way("linger-timed", "TIMED close()", _timed),
    GRACEFUL,
    Way("linger-abortive-close", "abortive_close", abortive_close, promised=False),
    Way("linger-timed-linger-close", "timed_linger_close", _timed_linger, promised=True),
)
