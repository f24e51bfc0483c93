"""What a call does: how long it takes, what it returns, and which descriptors it leaves."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING

import descriptors
from graceful_close import CloseResult

from . import processes

if TYPE_CHECKING:
    from .build import Arrangement

STOPS_AFTER = 0.02  # seconds into the call


class Stop(BaseException):
    """What a signal's handler raises: it stands for KeyboardInterrupt."""


@dataclass
class Report:
    """What was seen of a call.

    Attributes:
        result: What it returned.
        error: What it raised.
        stopped: It was interrupted.
        began: When it began, by time.monotonic().
        seconds, cpu: How long it took, and how much of the processor.
        closed: The object has no descriptor any more.
        left: So many descriptors of the connection are left, beside those of the other holders.
        asleep: Other holders that were not told of the end.
        well: The other connection of close_all() has ended well.
        reported: What an event loop's exception handler was called with.
    """

    result: CloseResult | None = None
    error: BaseException | None = None
    stopped: bool = False
    began: float = 0.0
    seconds: float = 0.0
    cpu: float = 0.0
    closed: bool = False
    left: int = 0
    asleep: tuple[str, ...] = ()
    well: bool = True
    reported: tuple[str, ...] = ()


class Probe:
    """Watches a call."""

    def __init__(self, arrangement: Arrangement) -> None:
        self._arrangement = arrangement
        self.report = Report()

    @property
    def result(self) -> CloseResult | None:
        return self.report.result

    @result.setter
    def result(self, result: CloseResult | None) -> None:
        self.report.result = result

    @contextmanager
    def watch(self, *, signals: bool = False) -> Generator[None, None, None]:
        """Around the call itself."""
        interrupt, peer = self._arrangement.situation.interrupt, self._arrangement.peer
        report = self.report

        def used() -> float:
            return time.process_time() - (peer.cpu() if peer is not None else 0.0)

        report.began, cpu = monotonic(), used()
        try:
            with _interrupted(interrupt if signals or interrupt != "stopped" else "none"):
                yield
        except Exception as error:  # noqa: BLE001
            report.error = error
        except Stop:
            report.stopped = True
        finally:
            report.seconds, report.cpu = monotonic() - report.began, used() - cpu
            self.look()

    def look(self) -> None:
        """At what the call has left."""
        arrangement, report = self._arrangement, self.report
        if arrangement.peer is not None:
            arrangement.peer.returned()
        report.closed = arrangement.ours.fileno() == -1
        report.left = _count_descriptors(arrangement.inode) - arrangement.holders

    def look_at_the_others(self) -> None:
        """At the other holders, a second later at most, and at the other connection."""
        arrangement, situation, report = (
            self._arrangement,
            self._arrangement.situation,
            self.report,
        )
        asleep = arrangement.awaits(1.0)
        if situation.holder == "reader":
            report.asleep = tuple(asleep)
        if situation.holder in {"task", "sendfile"} and not arrangement.told:
            report.asleep = (situation.holder,)
        if situation.holder == "closer":  # which may have been in the middle of it
            self.look()
        report.reported = tuple(text[:1000] for text in arrangement.reported)
        other = arrangement.other
        timed = situation.limit != "no time"  # in which nothing can be seen
        if other is not None and report.result is not None and timed:
            report.well = other.is_well()


def _count_descriptors(inode: int) -> int:
    """How many descriptors of this process are for that socket."""
    found = 0
    for entry in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found += os.readlink(f"/proc/self/fd/{entry}") == f"socket:[{inode}]"
    return found if inode else 0


@contextmanager
def _interrupted(interrupt: str) -> Generator[None, None, None]:
    """What befalls the process during the call."""
    match interrupt:
        case "stopped":
            with _alarm(STOPS_AFTER):
                yield
        case "no descriptors":
            with descriptors.none_left():
                yield
        case "no memory":
            with processes.no_memory_left():
                yield
        case "exit":
            processes.in_the_call.set()
            yield
        case "killed":
            signal.setitimer(signal.ITIMER_REAL, STOPS_AFTER)  # SIGALRM, without a handler
            yield
            signal.setitimer(signal.ITIMER_REAL, 0)
        case _:
            yield


@contextmanager
def _alarm(seconds: float) -> Generator[None, None, None]:
    """A signal, whose handler raises Stop."""
    armed = True

    def stop(_number: int, _frame: FrameType | None) -> None:
        if armed:
            raise Stop

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
        armed = False
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
