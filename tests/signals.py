"""Interrupts calls: by a signal, or at each moment at which a signal handler could run."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

import graceful_close

PACKAGE = str(Path(graceful_close.__file__).parent)


class Stop(BaseException):
    """Stands for KeyboardInterrupt, which pytest would handle itself."""


def stop(*_: object) -> None:
    raise Stop


@contextmanager
def on_alarm(handler: Callable[..., object], *times: float) -> Generator[None, None, None]:
    """Send a signal after some seconds, and repeat it if there is a second number."""
    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, *times)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Moment:
    """A moment of a call at which a signal handler could run."""

    def __init__(self, number: int, ignored: tuple[str, ...]) -> None:
        self.number = number
        self.ignored = ignored
        self.came = False

    def __repr__(self) -> str:
        return f"at moment {self.number}"

    @contextmanager
    def do(self, action: Callable[[], object]) -> Generator[None, None, None]:
        """Run an action at this moment of the block; a Stop ends the block."""
        to_go = self.number

        def when_it_comes(frame: FrameType, event: str, _: object) -> None:
            nonlocal to_go
            if event not in self.ignored and frame.f_code.co_filename.startswith(PACKAGE):
                to_go -= 1
                if to_go == 0:
                    self.came = True
                    action()

        # Not in a finalizer of an earlier object, where exceptions are not propagated.
        gc.collect()
        gc.disable()
        sys.setprofile(when_it_comes)
        try:
            yield
        except Stop:
            pass
        finally:
            sys.setprofile(None)
            gc.enable()


def moments(
    first: int = 1,
    at_least: int = 10,
    ignored: tuple[str, ...] = ("return", "c_call", "c_exception"),
) -> Iterator[Moment]:
    """Yield each moment of a call, one after the other; the last moment is after its end.

    CPython runs signal handlers when a function begins, and after calls of C functions. Other
    interpreters also do so before calls of C functions.

    Args:
        first: The number of the first moment. 1 is the entry of the call.
        at_least: How many moments there must be.
        ignored: The events of sys.setprofile() that are not a moment.
    """
    moment = Moment(first, ignored)
    while True:
        yield moment
        if not moment.came:
            break
        moment = Moment(moment.number + 1, ignored)
    assert moment.number > at_least, "there must be more moments"


def each_moment(
    ignored: tuple[str, ...] = ("return",),
) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Yield context managers for a call, each of which interrupts the call a little later."""
    # The first moment is the entry of the call, before anything has begun.
    for moment in moments(first=2, at_least=11, ignored=ignored):
        yield partial(moment.do, stop)
