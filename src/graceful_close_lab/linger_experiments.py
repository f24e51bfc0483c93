"""The linger experiments: close with unsent output, and see what the peer receives."""

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
from .kernel_view import kernel_state
from .timeline import Kind, Side, Timeline
from .ways import Way

if TYPE_CHECKING:
    import socket

    from graceful_close import CloseResult

    from .kernel_view import KernelState
    from .loopback import Ending
    from .timeline import Exchange

WRITTEN = 200_000
SECONDS = 1

# The peer's receive buffer: small, so that most of the output stays unsent. A heuristic; Linux
# doubles it.
_RECEIVE_BUFFER = 16 << 10


@dataclass(frozen=True)
class LingerRun:
    """The result of one way to close with unsent output.

    Attributes:
        name: The name on the command line.
        way: The code that a programmer writes.
        promised: The guarantee; see `Way`.
        took: Seconds in the closing call.
        result: The result of the call; None for `close()`, which returns none.
        error: The name of the error that the call raised, or None.
        before: The kernel's state of the connection before the close; None: not visible here.
        after: The state right after the close; None: the connection is gone, if it was visible
            before.
        written: Bytes written before the close.
        received: Bytes that the peer read after the close.
        ending: How the stream ended for the peer.
        exchange: The timeline.
    """

    name: str
    way: str
    promised: bool | None
    took: float
    result: CloseResult | None
    error: str | None
    before: KernelState | None
    after: KernelState | None
    written: int
    received: int
    ending: Ending
    exchange: Exchange

    @property
    def whole(self) -> bool:
        """Whether the peer received everything, and the FIN after it."""
        return self.received == self.written and self.ending is loopback.Ending.FIN

    @property
    def as_promised(self) -> bool:
        """Whether the guarantee was kept."""
        if self.promised is False:
            return self.ending is loopback.Ending.RST
        return self.whole or self.promised is None


def run(way: Way, timeline: Timeline | None = None) -> LingerRun:
    """Write to a peer that does not read, close, query the state, then let the peer read.

    Raises:
        OSError: The loopback does not work.
    """
    timeline = timeline or Timeline()
    with (
        loopback.connection(_RECEIVE_BUFFER) as (ours, peer),
        wire_view.watched(ours.getsockname()[1]) as wire,
    ):
        ports = ours.getsockname()[1], peer.getsockname()[1]
        wrote_at = timeline.add_event(Side.SERVER, f"send({WRITTEN:,} bytes)")
        loopback.write(ours, WRITTEN)
        # The BSDs and macOS do not linger on a non-blocking descriptor, and Python's
        # timeouts make it one.
        ours.setblocking(True)
        before = kernel_state(*ports)
        taken = _record_what_was_acknowledged(timeline, wrote_at, before, 0)
        result, error = None, None
        closed_at = timeline.add_event(Side.SERVER, way.title)
        timeline.waiting_for = f"the call to return, {SECONDS} s at most"
        started = perf_counter()
        try:
            result = way.close(ours)
        except OSError as failure:  # BSD: EWOULDBLOCK when the linger time is up
            error = errno.errorcode.get(failure.errno or 0, str(failure))
        took = perf_counter() - started
        timeline.add_event(Side.SERVER, _result_text(result, error))
        after = kernel_state(*ports)
        if before is not None:
            timeline.add_event(Side.SERVER, _state_text(after), kernel=True)
            taken = _record_what_was_acknowledged(timeline, wrote_at, after, taken)
        timeline.waiting_for = "the peer to read to the end"
        read_at = timeline.add_event(Side.CLIENT, "recv() to the end")
        received, ending = loopback.read_to_the_end(peer)
        if ending is loopback.Ending.FIN:
            _record_the_rest(timeline, read_at, received - taken, received)
            _record_last_acknowledgement(timeline, kernel_state(*ports))
        else:
            _record_a_loss(timeline, wrote_at, closed_at, received - taken, received, ending)
        timeline.waiting_for = ""
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
        wire_view.as_it_arrived(timeline.exchange(), wire, timeline.began, ports[0]),
    )


def _record_what_was_acknowledged(
    timeline: Timeline, wrote_at: float, seen: KernelState | None, before: int
) -> int:
    """Record and return how many bytes the peer has acknowledged, if that is visible."""
    if seen is None:
        return before
    fin = seen.state in _FIN_IS_QUEUED  # it counts as one byte
    taken, now = WRITTEN - (seen.send_queue - fin), timeline.now()
    if taken <= before:
        return before
    timeline.add_packet(
        Side.SERVER, Kind.DATA, f"{taken - before:,} bytes", wrote_at, now, taken
    )
    timeline.add_packet(Side.CLIENT, Kind.ACK, "ACK", now, timeline.now(), taken)
    return taken


_FIN_IS_QUEUED = ("FIN_WAIT1", "CLOSING", "LAST_ACK")


def _record_the_rest(timeline: Timeline, read_at: float, rest: int, received: int) -> None:
    """Record what arrived when the peer began to read, which opened its window."""
    now = timeline.add_event(Side.CLIENT, f"{received:,} bytes, then FIN")
    text = f"{rest:,} bytes + FIN" if rest else "FIN"
    timeline.add_packet(Side.SERVER, Kind.FIN, text, read_at, now)


def _record_a_loss(
    timeline: Timeline,
    wrote_at: float,
    closed_at: float,
    rest: int,
    received: int,
    ending: Ending,
) -> None:
    now = timeline.add_event(Side.CLIENT, f"{received:,} bytes, then {ending.value}")
    if rest:
        timeline.add_packet(Side.SERVER, Kind.DATA, f"{rest:,} bytes", wrote_at, now, received)
    if ending is loopback.Ending.RST:
        timeline.add_packet(Side.SERVER, Kind.RST, "RST", closed_at, now)


def _record_last_acknowledgement(timeline: Timeline, last: KernelState | None) -> None:
    if last is not None and last.state in ("FIN_WAIT2", "TIME_WAIT"):
        now = timeline.now()
        timeline.add_event(Side.SERVER, last.state, kernel=True)
        timeline.add_packet(Side.CLIENT, Kind.ACK, "ACK", now, timeline.now(), WRITTEN + 1)


def _result_text(result: CloseResult | None, error: str | None) -> str:
    if result is None:
        return error or "returned no result"
    count = "unknown" if result.unacked is None else f"{result.unacked:,}"
    return f"{result.outcome.value}, {count} unacked"


def _state_text(after: KernelState | None) -> str:
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
    # Systems differ in what they do with unsent data when the time is up.
    Way("linger-timed", "TIMED close()", _timed),
    GRACEFUL,
    Way("linger-abortive-close", "abortive_close", abortive_close, promised=False),
    Way("linger-timed-linger-close", "timed_linger_close", _timed_linger, promised=True),
)
