"""The pending closes of one of asyncio's event loops."""

from __future__ import annotations

import asyncio
from contextvars import Context
from weakref import WeakKeyDictionary, ref

from ._async import Multiplexer
from ._asyncio_transport import wake
from ._asyncio_view import forget_number
from ._result import CloseResult

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._async import TaskClose
    from ._loop import CloseLoop

# Weak on both sides: a loop has its multiplexer as a reader, and both end with the loop.
_known: WeakKeyDictionary[asyncio.AbstractEventLoop, ref[LoopMultiplexer]] = WeakKeyDictionary()


def multiplexer() -> LoopMultiplexer:
    """Return the multiplexer of the running loop."""
    loop = asyncio.get_running_loop()
    found = _known.get(loop, _nothing)()
    if found is None:
        found = LoopMultiplexer()
        _known[loop] = ref(found)
    return found


def _nothing() -> None:
    """A weak reference to nothing."""


def _look_on_time(mux: ref[LoopMultiplexer]) -> None:
    try:
        if (here := mux()) is not None:
            here.look_on_time()
    except BaseException:
        if (here := mux()) is not None:
            here.recover()
        raise


class LoopMultiplexer(Multiplexer):
    """The closes of a loop that has `add_reader()`."""

    def __init__(self) -> None:
        super().__init__()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, closes: CloseLoop) -> None:
        number = closes.fileno()
        if number != -1:
            loop = asyncio.get_running_loop()
            forget_number(loop, number)
            try:
                # The loop keeps the context, which must not be that of the first close.
                Context().run(loop.add_reader, number, self.look)
            except BaseException:
                # libuv aborts the process if a descriptor that it watches is closed.
                loop.remove_reader(number)
                raise

    async def turn(self) -> None:
        await asyncio.sleep(0)

    async def park(self, close: TaskClose) -> None:
        close.waiter = asyncio.get_running_loop().create_future()
        await close.waiter

    @staticmethod
    def wake(close: TaskClose) -> None:
        if isinstance(close.outcome, (CloseResult, Exception)):
            wake(close.waiter)
        else:
            close.waiter.cancel()  # the event loop itself propagates a KeyboardInterrupt

    def look(self) -> None:
        try:
            super().look()
        except BaseException:
            self.recover()  # the program may continue to run the loop
            raise

    def look_on_time(self) -> None:
        self._timer = None  # it refers to the loop
        super().look_on_time()

    def set_timer(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # Weak: only the loop has the multiplexer, so that the selector is closed with the loop.
        here: ref[LoopMultiplexer] = ref(self)
        self._timer = asyncio.get_running_loop().call_later(seconds, _look_on_time, here)
