"""The loop of the watch."""

from __future__ import annotations

import signal
import sys
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from .events import END, RESET, STATE, parse
from .processes import Processes
from .reset_log import ResetLog
from .socket_notices import SocketNotices
from .tracefs import NoTracingError, Tracing

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from types import FrameType

    from .outputs import Output
    from .tally import Tally

if sys.platform != "linux":
    raise ImportError("only Linux reports its resets")

# Seconds between two reads. A heuristic: the kernel's buffer has room for 40,000 events.
_PAUSE = 0.1
_TICK = 1.0
_FINAL_WAIT = 2.0  # seconds to wait for the last notices when the watch ends. A heuristic.


@contextmanager
def until_signalled() -> Generator[Callable[[], bool]]:
    """Yield a function that returns whether a signal to end the watch has arrived.

    A signal that the starting process ignored, as nohup does, stays ignored.
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
    outputs: Sequence[Output],
    duration: float,
    *,
    over: Callable[[], bool],
    trace: bool,
) -> None:
    """Watch, and write to the outputs.

    Args:
        tally: Resets and counters are added to it.
        outputs: The outputs.
        duration: The longest duration, in seconds.
        over: Returns whether to end before that.
        trace: Whether to use tracefs.

    Raises:
        OSError: There is no /proc, or a file cannot be written.
        NoTracingError: The tally needs tracing, which is not available.
    """
    with ExitStack() as held:
        tracer: _Tracer | None = None
        if trace:
            tracer = _Tracer(tally, outputs, held)
        else:
            tally.why_not = "--counters is used"
        if not tally.traced and (tally.ports or tally.pids):
            raise NoTracingError(f"--port and --pid need tracing: {tally.why_not}")
        for output in outputs:
            output.begin(tally)
        now = time.monotonic()
        end, next_tick = now + duration, now + _TICK
        while now < end and not over():
            time.sleep(min(_PAUSE, end - now))
            if tracer is not None:
                tracer.read()
            now = time.monotonic()
            if now >= next_tick:
                next_tick = now + _TICK
                if tracer is not None:
                    tracer.count_lost_events()
                tally.tick()
                for output in outputs:
                    output.tick(tally)
        if tracer is not None:
            tracer.finish()
            tracer.count_lost_events()
    tally.tick()
    for output in outputs:
        output.end(tally)


class _Tracer:
    """The sources of resets. If tracing is not available, the tally has the reason."""

    def __init__(self, tally: Tally, outputs: Sequence[Output], held: ExitStack) -> None:
        self._tally = tally
        self._outputs = outputs
        self._tracing: Tracing | None = None
        self._notices: SocketNotices | None = None
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
            self._notices = held.enter_context(SocketNotices())
        except OSError as error:
            tally.reservations.append(
                "It is not known what had been sent and read: no notices of ended sockets "
                f"({error})."
            )
        processes = Processes()
        if not processes.numbers_are_ours:
            tally.reservations.append(
                "Pids are those of the whole machine, not of this container."
            )
        if "TCP_ABORT_ON_CLOSE" not in tracing.symbols(RESET, "reason"):
            tally.reservations.append(
                "This kernel (before 6.12) does not report the reason of a reset by a process: "
                "unread input and SO_LINGER 0 cannot be distinguished."
            )
        self._reset_log = ResetLog(processes, self._notices)
        for event, only in self._wanted(tracing):
            if tracing.has(event):
                tracing.enable(event, only)
        self._tracing = tracing
        tally.traced = True

    def _wanted(self, tracing: Tracing) -> Generator[tuple[str, str]]:
        """Yield the events, and the filter of each."""
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
        # The other resets answer packets for connections that do not exist.
        yield RESET, "skaddr != 0"

    def read(self) -> None:
        """Read the new events and notices."""
        tracing = self._tracing
        if tracing is None:
            return
        if self._notices is not None:
            self._notices.collect()
        for line in tracing.lines():
            event = parse(line)
            if event is not None:
                self._reset_log.add(event)
        self._settle()

    def count_lost_events(self) -> None:
        """Read how many events and notices the kernel discarded."""
        if self._tracing is not None:
            self._tally.events_lost = self._tracing.lost()
        if self._notices is not None:
            self._tally.notices_lost = self._notices.overflowed

    def finish(self) -> None:
        """Wait a short time for the last notices, then judge all resets."""
        if self._tracing is None:
            return
        until = time.monotonic() + _FINAL_WAIT
        self.read()
        while not self._all_decided and time.monotonic() < until:
            time.sleep(_PAUSE)
            self.read()
        self._settle(at_once=True)

    @property
    def _all_decided(self) -> bool:
        idle = self._tracing is None or self._tracing.idle
        return idle and not any(map(self._tally.counts, self._reset_log.undecided))

    def _settle(self, *, at_once: bool = False) -> None:
        for entry in self._reset_log.settle(at_once=at_once):
            self._tally.add(entry)
            if self._tally.counts(entry):
                for output in self._outputs:
                    output.reset(entry)
