"""The pending closes of one run of trio."""

from __future__ import annotations

import math
from time import monotonic

import trio

from ._async import Multiplexer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._async import TaskClose

_known: trio.lowlevel.RunVar[RunMultiplexer] = trio.lowlevel.RunVar("graceful_close")


def multiplexer() -> RunMultiplexer:
    """Return the multiplexer of the current run."""
    try:
        return _known.get()
    except LookupError:
        found = RunMultiplexer()
        if found.closes.fileno() != -1:  # otherwise EMFILE: the next may have a descriptor
            _known.set(found)
        return found


class RunMultiplexer(Multiplexer):
    """The closes of a run; a system task turns them."""

    def __init__(self) -> None:
        super().__init__()
        self._look_at = math.inf
        self._sleep = trio.CancelScope()
        self._runs = False

    async def _run(self) -> None:
        lasting = self.closes.fileno() != -1
        try:
            while lasting or self.closes:
                with self._sleep:
                    if lasting:
                        await trio.lowlevel.wait_readable(self.closes.fileno())
                    else:
                        await trio.sleep_forever()
                self._sleep, self._look_at = trio.CancelScope(), math.inf
                self.look()
        finally:
            self.closes.close()

    async def turn(self) -> None:
        await trio.lowlevel.checkpoint()

    async def park(self, close: TaskClose) -> None:
        def leave(_: object) -> trio.lowlevel.Abort:
            close.waiter = None
            return trio.lowlevel.Abort.SUCCEEDED

        close.waiter = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(leave)

    def wake(self, close: TaskClose) -> None:
        task, close.waiter = close.waiter, None
        trio.lowlevel.reschedule(task)

    def schedule(self) -> None:
        left = self.seconds_left
        if left == math.inf or (when := monotonic() + left) >= self._look_at:
            return
        if not self._runs:
            self._runs = True
            trio.lowlevel.spawn_system_task(self._run)
        self._look_at = when
        self._sleep.deadline = trio.current_time() + left
