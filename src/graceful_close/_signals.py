"""The exit of a process at SIGTERM."""

from __future__ import annotations

import math
import sys
from contextlib import contextmanager

from ._clock import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import FrameType

__all__ = ["exit_at_sigterm"]

# A supervisor and a master may both send SIGTERM to a worker. A second signal within this time counts
# as the same request. Heuristic: longer than the master needs to forward the signal.
_SAME_ORDER = 1.0

_ordered_at = -math.inf

# Handlers that end the process as SIG_DFL does.
STAND_INS: list[object] = []


def exit_at_sigterm() -> None:
    """Make SIGTERM end the program like `sys.exit()`, so that pending closes are finished.

        exit_at_sigterm()
        server.serve_forever()

    systemd, Docker, Kubernetes and shells stop a server with SIGTERM. Without a handler SIGTERM kills
    the process immediately, and every connection that is being closed is reset. After this call
    SIGTERM raises SystemExit in the main thread: `with` blocks and `finally` clauses run as at any
    exit, and every `Reaper` finishes its connections within its `timeout`. The exit status is 0.

    An existing handler is kept, and so is SIG_IGN. If a server sets its own handler later, the server's
    handler replaces this handler. A second call has no effect. Forked children inherit the handler.

    On asyncio, add_signal_handler() of the loop is better, because the handler that this function sets
    raises SystemExit inside a callback.

    Raises:
        ValueError: SIGTERM has no handler, and the caller is not in the main thread of the main
            interpreter. Only that thread may set a handler.

    Notes:
        A SIGTERM within a second after another is ignored, because a worker may get one from its
        supervisor and one from its master. A later SIGTERM raises SystemExit again. If Reapers are
        finishing then, they close their connections immediately.

    .. versionadded:: 0.2.0
    """
    import signal  # not with the package, because the import creates enums of all signals

    handler = signal.getsignal(signal.SIGTERM)
    if handler is signal.SIG_DFL or handler in STAND_INS:
        signal.signal(signal.SIGTERM, _exit)


def _exit(_number: int, _frame: object) -> None:
    global _ordered_at
    before, _ordered_at = _ordered_at, monotonic()
    if _ordered_at - before > _SAME_ORDER:
        sys.exit()


@contextmanager
def calling_at_sigint(act: Callable[[], object]) -> Generator[None]:
    """Call `act` at SIGINT (Ctrl-C), before the handler that is set now. Only in the main thread."""
    import signal
    import threading

    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return

    def act_first(number: int, frame: FrameType | None) -> None:
        act()
        before(number, frame)

    signal.signal(signal.SIGINT, act_first)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is act_first:
            signal.signal(signal.SIGINT, before)


def uvicorn_must_exit() -> bool:
    """Whether this process is uvicorn's, and has got a second Ctrl-C."""
    import signal

    server = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
    return getattr(server, "force_exit", False) is True
