"""The pending closes of one run of trio."""

from __future__ import annotations

import trio

from ._async import Multiplexer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._async import TaskClose
    from ._loop import CloseLoop

_known: trio.lowlevel.RunVar[RunMultiplexer] = trio.lowlevel.RunVar("graceful_close")


def multiplexer() -> RunMultiplexer:
    """Return the multiplexer of the current run."""
    try:
        return _known.get()
    except LookupError:
        made = RunMultiplexer()
        _known.set(made)
        return made


class RunMultiplexer(Multiplexer):
    """The closes of a run; a system task turns them."""

    # Not time.monotonic(): a program's tests may use another clock (MockClock), and a deadline of one
    # clock is never reached by waits of the other.
    clock = staticmethod(trio.current_time)

    def __init__(self) -> None:
        super().__init__()
        self._sleep = trio.CancelScope()

    def begin(self, closes: CloseLoop) -> None:
        before, self._sleep = self._sleep, trio.CancelScope(deadline=self._sleep.deadline)
        before.cancel()  # the task of a CloseLoop that this one replaces ends
        if closes.fileno() != -1:
            # Ends the tasks that still wait for a closed descriptor with this number.
            trio.lowlevel.notify_closing(closes.fileno())
        trio.lowlevel.spawn_system_task(self._turn, closes)

    async def _turn(self, closes: CloseLoop) -> None:
        try:
            while self.closes is closes:
                with self._sleep:
                    if closes.fileno() != -1:
                        await trio.lowlevel.wait_readable(closes.fileno())
                    else:
                        await trio.sleep_forever()
                if self.closes is closes:
                    self._sleep = trio.CancelScope()
                    self.look_on_time()
        finally:
            closes.close()

    async def turn(self) -> None:
        await trio.lowlevel.checkpoint()

    async def park(self, close: TaskClose) -> None:
        def leave(_: object) -> trio.lowlevel.Abort:
            close.waiter = None
            return trio.lowlevel.Abort.SUCCEEDED

        close.waiter = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(leave)

    @staticmethod
    def wake(close: TaskClose) -> None:
        task, close.waiter = close.waiter, None
        trio.lowlevel.reschedule(task)

    def set_timer(self, seconds: float) -> None:
        self._sleep.deadline = trio.current_time() + seconds
