"""The watch itself."""

from __future__ import annotations

import signal
import sys
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from .events import END, RESET, STATE, parse
from .ledger import Ledger
from .obituaries import Obituaries
from .processes import Processes
from .tracefs import NoTracingError, Tracing

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from types import FrameType

    from .outlets import Outlet
    from .tally import Tally

if sys.platform != "linux":
    raise ImportError("only Linux tells of its resets")

_PAUSE = (
    0.1  # seconds between two looks. Arbitrary: the kernel's buffer has room for 40,000 events.
)
_TICK = 1.0
_LAST_WORDS = 2.0  # seconds for notices that are on their way when the watch ends. Arbitrary.


@contextmanager
def until_signalled() -> Generator[Callable[[], bool]]:
    """Whether a signal has come by which a watch ends as it should.

    One that whoever started it had told it to ignore, as nohup does, is still ignored.
    """
    came: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        came.append(number)

    signals = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    before = {
        number: signal.signal(number, note)
        for number in signals
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def watch(
    tally: Tally,
    outlets: Sequence[Outlet],
    duration: float,
    *,
    over: Callable[[], bool],
    trace: bool,
) -> None:
    """Watch until it is over, and tell.

    Args:
        tally: What is counted is added to.
        outlets: Who is told.
        duration: Seconds, at most.
        over: Whether to end before that.
        trace: Ask tracefs too.

    Raises:
        OSError: There is no /proc, or a file cannot be written.
        NoTracingError: The tally wants what only tracing tells.
    """
    with ExitStack() as held:
        eyes: _Eyes | None = None
        if trace:
            eyes = _Eyes(tally, outlets, held)
        else:
            tally.why_not = "--counters was asked for"
        if not tally.traced and (tally.ports or tally.pids):
            raise NoTracingError(f"--port and --pid cannot be told: {tally.why_not}")
        for outlet in outlets:
            outlet.begin(tally)
        now = time.monotonic()
        end, next_tick = now + duration, now + _TICK
        while now < end and not over():
            time.sleep(min(_PAUSE, end - now))
            if eyes is not None:
                eyes.look()
            now = time.monotonic()
            if now >= next_tick:
                next_tick = now + _TICK
                if eyes is not None:
                    eyes.ask_what_was_lost()
                tally.tick()
                for outlet in outlets:
                    outlet.tick(tally)
        if eyes is not None:
            eyes.look_for_the_last_time()
            eyes.ask_what_was_lost()
    tally.tick()
    for outlet in outlets:
        outlet.end(tally)


class _Eyes:
    """Everything that sees resets; or, in the tally, why nothing does."""

    def __init__(self, tally: Tally, outlets: Sequence[Outlet], held: ExitStack) -> None:
        self._tally = tally
        self._outlets = outlets
        self._tracing: Tracing | None = None
        self._obituaries: Obituaries | None = None
        try:
            self._open(held)
        except (NoTracingError, OSError) as error:
            held.close()
            self._tracing = None
            tally.why_not = str(error)

    def _open(self, held: ExitStack) -> None:
        tally = self._tally
        tracing = held.enter_context(Tracing())
        if not tracing.has(RESET):
            raise NoTracingError("this kernel has no event for a reset")
        try:
            self._obituaries = held.enter_context(Obituaries())
        except OSError as error:
            tally.reservations.append(
                f"What had been sent and read is not known: no notices of ended sockets ({error})."
            )
        processes = Processes()
        if not processes.numbers_are_ours:
            tally.reservations.append(
                "Numbers of processes are those of the whole machine, not of this container."
            )
        if "TCP_ABORT_ON_CLOSE" not in tracing.symbols(RESET, "reason"):
            tally.reservations.append(
                "This kernel (before 6.12) does not say why it resets for a process: unread "
                "input and SO_LINGER 0 look alike."
            )
        self._ledger = Ledger(processes, self._obituaries)
        for event, only in self._wanted(tracing):
            if tracing.has(event):
                tracing.enable(event, only)
        self._tracing = tracing
        tally.traced = True

    def _wanted(self, tracing: Tracing) -> Generator[tuple[str, str]]:
        """The events, and what the kernel shall leave out of each."""
        ports = sorted(self._tally.ports)
        ours = " || ".join(f"sport == {port}" for port in ports)
        theirs = " || ".join(f"dport == {port}" for port in ports)
        states = tracing.symbols(STATE, "newstate") if tracing.has(STATE) else {}
        wanted = [
            f"newstate == {states[name]}"
            for name in ("TCP_FIN_WAIT1", "TCP_LAST_ACK", "TCP_LISTEN")
            if name in states
        ]
        yield STATE, " && ".join(f"({each})" for each in (" || ".join(wanted), ours) if each)
        yield END, " || ".join(each for each in (ours, theirs) if each)
        yield (
            RESET,
            "skaddr != 0",
        )  # the others answer packets for connections that are not there

    def look(self) -> None:
        """Take in what has happened."""
        tracing = self._tracing
        if tracing is None:
            return
        if self._obituaries is not None:
            self._obituaries.collect()
        for line in tracing.lines():
            event = parse(line)
            if event is not None:
                self._ledger.take_in(event)
        self._settle()

    def ask_what_was_lost(self) -> None:
        """Have the kernel say how much it threw away."""
        if self._tracing is not None:
            self._tally.events_lost = self._tracing.lost()
        if self._obituaries is not None:
            self._tally.notices_lost = self._obituaries.overflowed

    def look_for_the_last_time(self) -> None:
        """Wait for what is on its way, for a moment, and judge by what there is then."""
        if self._tracing is None:
            return
        until = time.monotonic() + _LAST_WORDS
        self.look()
        while not self._knows_enough and time.monotonic() < until:
            time.sleep(_PAUSE)
            self.look()
        self._settle(at_once=True)

    @property
    def _knows_enough(self) -> bool:
        idle = self._tracing is None or self._tracing.idle
        return idle and not any(map(self._tally.counts, self._ledger.undecided))

    def _settle(self, *, at_once: bool = False) -> None:
        for entry in self._ledger.settle(at_once=at_once):
            self._tally.add(entry)
            if self._tally.counts(entry):
                for outlet in self._outlets:
                    outlet.reset(entry)
