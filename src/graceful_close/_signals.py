"""How a process ends at SIGTERM."""

from __future__ import annotations

import math
import sys
from time import monotonic

__all__ = ["exit_at_sigterm"]

# A master and its supervisor may both tell a worker to end. What comes so soon after the first is
# the same order. Arbitrary: longer than any of them takes to pass it on, shorter than patience.
_SAME_ORDER = 1.0

_ordered_at = -math.inf


def exit_at_sigterm() -> None:
    """Have SIGTERM end the program as `sys.exit()` does, so that closes in flight are finished.

    SIGTERM is how systemd, Docker, Kubernetes and shells stop a server. Where nobody handles it,
    it kills the process at once, and every connection that is still being closed is reset. After
    this call it raises SystemExit in the main thread: `with` blocks and `finally` are left as at
    any exit, and every `Reaper` finishes what it has, within its `timeout`. The exit status is 0.

    A handler that is there already is kept, and so is SIG_IGN. A server that sets its own later
    replaces this one. Calling it again is harmless. A child that is forked afterwards inherits it.

    On asyncio `loop.add_signal_handler` is better: SystemExit comes in the middle of a callback.

    Raises:
        ValueError: Nobody handles SIGTERM, and this is not the main thread of the main
            interpreter, which alone may change that.

    Notes:
        A SIGTERM that follows another within a second is ignored: a supervisor sends one to
        a worker, and the worker's master sends the next. One that comes later raises SystemExit
        again, also while Reapers are finishing, which then let go at once.
    """
    import signal  # not with the package: it makes enums of all of them

    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _exit)


def _exit(_number: int, _frame: object) -> None:
    global _ordered_at
    before, _ordered_at = _ordered_at, monotonic()
    if _ordered_at - before > _SAME_ORDER:
        sys.exit()
