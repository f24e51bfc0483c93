"""Measures a call: its duration, its result, and the descriptors that remain."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING

import descriptors
import graceful_close
from graceful_close import CloseResult

from . import processes

if TYPE_CHECKING:
    from .build import Arrangement

STOPS_AFTER = 0.02  # seconds into the call
_MOMENT = 0.001


class Stop(BaseException):
    """The exception of a signal handler, in place of KeyboardInterrupt."""


@dataclass
class Report:
    """The measurements of a call.

    Attributes:
        result: The result.
        error: The exception.
        stopped: Whether the call was interrupted.
        began: The time of the call, by time.monotonic().
        seconds, cpu: The duration, and the time of the processor.
        closed: Whether the object has no descriptor any more.
        left: The number of remaining descriptors of the connection, without those of other holders.
        not_woken: The other holders that still wait.
        other_is_right: Whether the others of close_all() were closed, and are reported as such.
        second: The result of the second close.
        reported: The arguments of an event loop's exception handler.
    """

    result: CloseResult | None = None
    error: BaseException | None = None
    stopped: bool = False
    began: float = 0.0
    seconds: float = 0.0
    cpu: float = 0.0
    closed: bool = False
    left: int = 0
    not_woken: tuple[str, ...] = ()
    other_is_right: bool = True
    second: CloseResult | None = None
    reported: tuple[str, ...] = ()


class Probe:
    """Measures one call."""

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
        """Measure the block, which is the call itself."""
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
        except Stop as stop:
            report.stopped = True
            if not _was_raised_in_the_library(stop):  # on a busy machine, before the call
                self._arrangement.ours.close()
        finally:
            report.seconds, report.cpu = monotonic() - report.began, used() - cpu
            self.inspect()

    def inspect(self) -> None:
        """Count what the call has left."""
        arrangement, report = self._arrangement, self.report
        if arrangement.peer is not None:
            arrangement.peer.returned()
        report.closed = arrangement.ours.fileno() == -1
        report.left = _count_descriptors(arrangement.inode) - arrangement.holders

    def inspect_the_others(self) -> None:
        """Wait a second for the other holders, and inspect the other connection."""
        arrangement, report = self._arrangement, self.report
        situation = arrangement.situation
        waiting = arrangement.still_running(1.0)
        if situation.holder in {"reader", "sender"}:
            report.not_woken = tuple(waiting)
        if situation.holder in {"task", "sendfile"} and not arrangement.task_ended:
            report.not_woken = (situation.holder,)
        if situation.holder == "closer":  # the thread may have closed the socket after the call
            self.inspect()
        report.reported = tuple(text[:1000] for text in arrangement.reported)
        report.second = arrangement.second
        # Without time the close cannot observe anything.
        if report.result is not None and situation.limit != "no time":
            report.other_is_right = all(other.is_well() for other in arrangement.others)


def _was_raised_in_the_library(error: BaseException) -> bool:
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    return any(Path(graceful_close.__file__).parent in Path(file).parents for file in files)


def _count_descriptors(inode: int) -> int:
    """Return how many descriptors of this process refer to the socket."""
    found = 0
    for entry in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found += os.readlink(f"/proc/self/fd/{entry}") == f"socket:[{inode}]"
    return found if inode else 0


@contextmanager
def _interrupted(interrupt: str) -> Generator[None, None, None]:
    """Interrupt the block, or take resources away from the process."""
    match interrupt:
        case "stopped":
            with _alarm():
                yield
        case "signals":
            with _signals(_ignore, STOPS_AFTER):
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


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Unlike SIG_IGN, this interrupts a system call."""


@contextmanager
def _signals(
    handler: Callable[[int, FrameType | None], None], interval: float = 0
) -> Generator[None, None, None]:
    """Interrupt the block with a signal; with an interval, again and again."""
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, STOPS_AFTER, interval)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _alarm() -> Generator[None, None, None]:
    """Raise Stop in the block, by a signal."""
    armed = True

    def stop(_number: int, frame: FrameType | None) -> None:
        if not armed:
            return
        if frame is not None and frame.f_code.co_filename == contextlib.__file__:
            # The call is over, and is measured now.
            signal.setitimer(signal.ITIMER_REAL, _MOMENT)
            return
        raise Stop

    with _signals(stop):
        try:
            yield
        finally:
            armed = False
