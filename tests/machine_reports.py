"""What a driver may report to a `Teardown`, and what the reports prove, for `machine_space`.

`reports_of` reports only what a network can do: an ended connection does not open again, recv()
that returned 0 continues to return 0, and between two waits there is input for one read.
"""

# This module reads the private state of the machine.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from graceful_close import CloseOutcome, LingerPolicy
from graceful_close._options import Options
from graceful_close._platform import TcpState, View
from graceful_close._step import Step
from graceful_close._teardown import Teardown

ACCEPTING, OPEN, FIN_SENT = TcpState.ACCEPTING, TcpState.OPEN, TcpState.FIN_SENT
PEER_FIN, BOTH_FINS = TcpState.PEER_FIN, TcpState.BOTH_FINS
OVER, NEVER_OPEN = TcpState.OVER, TcpState.NEVER_OPEN

WAITS = frozenset(
    {
        Step.FLUSH,
        Step.WAIT_READABLE,
        Step.WAIT_WRITABLE,
        Step.WAIT_EITHER,
        Step.WAIT_ACK,
        Step.PAUSE,
    }
)

# The kinds RESET, NOT_CONNECTED, LOST, REFUSED and CLOSED.
ERRORS = tuple(
    OSError(number, errno.errorcode[number])
    for number in (
        errno.ECONNRESET,
        errno.ENOTCONN,
        errno.ETIMEDOUT,
        errno.ECONNREFUSED,
        errno.EBADF,
    )
)
RESET, NOT_CONNECTED = ERRORS[:2]
CUT = OSError(errno.ECONNABORTED, "cut short")

COUNTS = (None, 0, 1, 2)

# The views that may follow each view. No view returns to an earlier one. A kernel that does not
# report the state shows OPEN forever, and OVER after the peer is gone.
_LATER: dict[TcpState | None, tuple[TcpState | None, ...]] = {
    None: (None, OPEN, OVER),
    ACCEPTING: (ACCEPTING, OPEN, FIN_SENT, PEER_FIN, BOTH_FINS, OVER, NEVER_OPEN),
    OPEN: (OPEN, FIN_SENT, PEER_FIN, BOTH_FINS, OVER),
    FIN_SENT: (FIN_SENT, BOTH_FINS, OVER),
    PEER_FIN: (PEER_FIN, OVER),
    BOTH_FINS: (BOTH_FINS, OVER),
    OVER: (OVER,),
    NEVER_OPEN: (NEVER_OPEN,),
}
_FIN_AMONG_IT = frozenset({PEER_FIN, BOTH_FINS, OVER})
_OURS_IS_OUT = frozenset({FIN_SENT, BOTH_FINS})

# In these views the kernel's count does not prove delivery.
_UNCOUNTED = frozenset({ACCEPTING, NEVER_OPEN, TcpState.LISTENING, TcpState.CONNECTING})

# In these views there is a connection, or there was one.
_STOOD = frozenset({OPEN, FIN_SENT, PEER_FIN, BOTH_FINS, OVER})


class Case(NamedTuple):
    """The options of a machine, and the system that it runs on."""

    name: str
    view: View
    tls: bool = False
    abort: bool = False
    peer_first: float = 0
    until: Any = CloseOutcome.PEER_CLOSED
    idle_timeout: float | None = None
    one_of_many: bool = False
    drain_limit: int | None = None
    fin_sent: bool = False  # by a flush, which took no time
    flush: bool = False
    expired: bool = False  # at time 0, although the options have a timeout
    timeout: float = 2
    on_timeout: Any = LingerPolicy.ABORT
    unflushed: bool = False

    def machine(self) -> Teardown:
        options = Options(
            10 if self.expired else self.timeout,
            self.idle_timeout,
            self.drain_limit,
            self.until,
            self.on_timeout,
            self.peer_first,
        )
        machine = Teardown(
            options,
            0,
            self.view,
            tls=self.tls,
            one_of_many=self.one_of_many,
            abort=self.abort,
            unflushed=self.unflushed,
            flush=self.flush or self.fin_sent,
        )
        if self.fin_sent:
            machine.flushed(0, 0, waited=False, fin_sent=True)
        if self.expired:
            machine.expire(0, LingerPolicy.ABORT)
        return machine


class Seen(NamedTuple):
    """The position of the driver, and what the reports have shown so far."""

    step: Step
    now: float = 0
    life: float = 0  # the time of the last sign of the peer
    looked: bool = False
    shown: TcpState | None = None  # according to the last look
    ours_was_first: bool = False  # our FIN, in the first look
    end_of_stream: bool = False  # recv() returned 0, and will again
    reads: int = 0  # reads that returned data, since the last wait
    fin_out: bool = False  # ours
    fin_asked: bool = False
    fin_before_ours: bool = False  # the peer's FIN, in a look before our FIN was requested
    last_count: int | None = None
    counted: bool = False  # since the last wait or look
    peer_fin: bool = False
    delivered: bool = False
    reset: bool = False


def seen_at_first(case: Case, machine: Teardown) -> Seen:
    return Seen(machine.start(), fin_out=case.fin_sent, fin_asked=case.fin_sent)


class Report(NamedTuple):
    """A report of the driver, and its time."""

    name: str
    value: Any
    now: float

    def tell(self, machine: Teardown) -> Step:
        return _TELL[self.name](machine, self.value, self.now)

    def __str__(self) -> str:
        shown = getattr(self.value, "name", self.value)
        return f"{self.name}({'' if shown is None else shown}) at {self.now}"


_TELL: dict[str, Callable[[Teardown, Any, float], Step]] = {
    "flushing": lambda machine, value, now: machine.flushing(
        machine._moved + (value or 0), 0, 1, now
    ),
    "flushed": lambda machine, value, now: machine.flushed(0, now, waited=bool(value)),
    "cut short": lambda machine, value, now: machine.cut_short(1, value, now),
    "looked": lambda machine, value, now: machine.looked(value, now),
    "notified": lambda machine, value, now: machine.notified(value, now),
    "no room": lambda machine, value, now: machine.notify_would_block(now),
    "shut": lambda machine, value, now: machine.shut(now, value),
    "received": lambda machine, value, now: machine.received(value, now),
    "would block": lambda machine, value, now: machine.would_block(now),
    "counted": lambda machine, value, now: machine.counted(value, now),
    "no error": lambda machine, value, now: machine.no_error(now),
    "failed": lambda machine, value, now: machine.failed(value, now),
    "failed in the flush": lambda machine, value, now: machine.failed(value, now, 1),
    "cleared": lambda machine, value, now: machine.cleared(now),
    "woke": lambda machine, value, now: machine.woke(now, readable=value),
    "cannot watch": lambda machine, value, now: machine.cannot_watch(now),
    "cannot wait": lambda machine, value, now: machine.cannot_wait(now),
    "time is up": lambda machine, value, now: machine.time_is_up(now, LingerPolicy.ABORT),
}


def reports_of(case: Case, seen: Seen, machine: Teardown) -> Iterator[tuple[str, Any]]:
    """Return every possible report about the requested step."""
    match seen.step:
        case Step.FLUSH:
            yield from (("flushing", None), ("flushed", None), ("cut short", CUT))
            if case.expired:  # otherwise progress prolongs the flush without a limit
                yield from (("flushing", 4096), ("flushed", True))
            yield from (("failed in the flush", error) for error in ERRORS)
        case Step.LOOK:
            yield from (("looked", state) for state in _shown_next(case, seen))
        case Step.SEND_CLOSE_NOTIFY:
            yield from (("notified", True), ("no room", None))
            yield from (("failed", error) for error in ERRORS)
        case Step.SHUT_WR:
            if seen.shown not in {OVER, NEVER_OPEN}:
                yield ("shut", None)
            yield from (("shut", error) for error in ERRORS)
        case Step.DRAIN:
            if not seen.end_of_stream:
                if not seen.reads and seen.shown is not NEVER_OPEN:
                    yield ("received", 1)
                if seen.shown not in _FIN_AMONG_IT and seen.shown is not NEVER_OPEN:
                    yield ("would block", None)
            yield ("received", 0)
            yield from (("failed", error) for error in ERRORS)
        case Step.COUNT:
            yield from (("counted", count) for count in COUNTS)
        case Step.READ_ERROR:
            yield ("no error", None)
            yield from (("failed", error) for error in ERRORS)
        case Step.CLEAR_ERRORS:
            yield ("cleared", None)
        case Step.WAIT_ACK:
            yield from (("woke", True), ("woke", False), ("cannot watch", None))
        case Step.PAUSE:
            yield ("woke", True)
        case _:
            yield from (("woke", True), ("cannot wait", None))


def _shown_next(case: Case, seen: Seen) -> tuple[TcpState | None, ...]:
    if case.view.state is None:
        return (OPEN, OVER)  # whether there is a peer, which is known for every stream
    if not seen.looked:
        return (None, *TcpState)
    later = _LATER[seen.shown]
    if case.view.disconnects and seen.shown in _STOOD:
        later = (*later, NEVER_OPEN)  # another holder has disconnected the socket
    return later if seen.fin_out else tuple(s for s in later if s not in _OURS_IS_OUT)


ANY_REPORT: tuple[tuple[str, Any], ...] = (
    ("flushing", None),
    ("flushed", None),
    ("cut short", CUT),
    *(("looked", state) for state in (None, *TcpState)),
    ("notified", True),
    ("no room", None),
    *(("shut", error) for error in (None, *ERRORS)),
    *(("received", count) for count in (0, 1)),
    ("would block", None),
    *(("counted", count) for count in COUNTS),
    ("no error", None),
    *(("failed", error) for error in ERRORS),
    ("cleared", None),
    ("woke", True),
    ("woke", False),
    ("cannot watch", None),
    ("cannot wait", None),
    ("time is up", None),
)


def seen_after(case: Case, seen: Seen, report: Report) -> dict[str, Any]:
    """Return what has been seen after `report`."""
    name, value, now = report
    new: dict[str, Any] = {"now": now}
    if name == "looked":
        new |= {"looked": True, "shown": value, "counted": False}
        if value is NEVER_OPEN and seen.shown in _STOOD:
            new["reset"] = True  # by another holder
        if not seen.looked:
            new["ours_was_first"] = value in _OURS_IS_OUT
            if value in _OURS_IS_OUT:
                new["fin_out"] = True
        if value in _FIN_AMONG_IT:
            new["peer_fin"] = True
            if value is PEER_FIN and not seen.fin_asked:
                new["fin_before_ours"] = True
        untold = value is None or (value is OPEN and seen.fin_out)
        if untold and seen.end_of_stream:
            new["peer_fin"] = True
    elif name == "shut":
        new["fin_asked"] = True
        if value is None:
            new["fin_out"] = True
    elif name == "received":
        if value:
            new |= {"reads": seen.reads + 1, "life": now}
        else:
            new["end_of_stream"] = True
            if case.view.state is None or (seen.looked and seen.shown is None):
                new["peer_fin"] = True
    elif name == "counted":
        count = None if case.view.acks is None else value
        if seen.shown is NEVER_OPEN and count != 0:
            count = None
        if count is not None and seen.last_count is not None and count < seen.last_count:
            new["life"] = now
        new |= {"last_count": count, "counted": True}
        asked = seen.fin_asked or seen.fin_out
        if count == 0 and asked and seen.shown not in _UNCOUNTED:
            new["delivered"] = True
    elif name == "woke":
        new |= {"reads": 0, "counted": False}
    if isinstance(value, OSError):
        disconnected = case.view.disconnects and seen.shown in _STOOD
        new["reset"] = value is RESET or (value is NOT_CONNECTED and disconnected) or seen.reset
    if name in {"would block", "received"} and seen.fin_asked:
        new["fin_out"] = True  # there is a connection, even if shutdown() failed
    return new
