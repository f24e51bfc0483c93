"""Interrupts a call at each moment at which a signal handler could run."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType

import graceful_close

PACKAGE = str(Path(graceful_close.__file__).parent)


class Stop(BaseException):
    """Stands for KeyboardInterrupt, which pytest would handle itself."""


def each_moment(
    ignored: tuple[str, ...] = ("return",),
) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Yield context managers for a call, each of which interrupts the call a little later.

    CPython runs signal handlers when a function begins, and after calls of C functions. Other
    interpreters also do so before calls of C functions. The last call is not interrupted.

    Args:
        ignored: The events of sys.setprofile() that are not a moment.
    """
    moment = 0
    stopped = True

    @contextmanager
    def stop_there() -> Generator[None, None, None]:
        nonlocal stopped
        # The first moment is the entry of the call, before anything has begun.
        to_go = moment + 1

        def stop_when_it_comes(frame: FrameType, event: str, _: object) -> None:
            nonlocal to_go
            if event not in ignored and frame.f_code.co_filename.startswith(PACKAGE):
                to_go -= 1
                if to_go == 0:
                    raise Stop

        # Not in a finalizer of an earlier object, where exceptions are not propagated.
        gc.collect()
        gc.disable()
        sys.setprofile(stop_when_it_comes)
        try:
            yield
            stopped = False
        except Stop:
            pass
        finally:
            sys.setprofile(None)
            gc.enable()

    while stopped:
        moment += 1
        yield stop_there
    assert moment > 10, "there must be more moments"
