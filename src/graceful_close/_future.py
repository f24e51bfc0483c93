"""The future of a close, which few ever look at."""

from __future__ import annotations

from concurrent.futures import Future

from ._result import CloseResult

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ._crew import Orders

    StockFuture = Future[CloseResult]
else:
    StockFuture = Future


class CloseFuture(StockFuture):
    """A Future that becomes one when somebody first asks it something.

    The stock one begins with a lock, a condition and two lists, 1,600 bytes of them, and a server
    throws most of them away unasked. So `Future.__init__` is not called here. What it would have
    made is missed when it is looked for, by whatever method or function; and is there then.

    Args:
        orders: Whose lock is held while it becomes a Future, and while it is settled.
    """

    __slots__ = ("_orders", "_settled")

    _asked = False  # in the object's own dict, and true, from when it is a Future

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._settled: CloseResult | BaseException | None = None

    def settle(self, outcome: CloseResult | BaseException) -> bool:
        """Keep the outcome for whoever asks. False: somebody has, and is to be told by `tell`.

        For whoever holds the lock; runs nobody's callbacks.
        """
        if not self._asked:
            self._settled = outcome
        return not self._asked

    def tell(self, outcome: CloseResult | BaseException) -> None:
        """Let those know who have asked; runs their callbacks."""
        if isinstance(outcome, CloseResult):
            self.set_result(outcome)
        else:
            self.set_exception(outcome)

    def __getattr__(self, name: str) -> Any:
        # Python comes here for what it does not find.
        with self._orders.lock:
            if not self._asked:
                self._become_a_future()
        return object.__getattribute__(self, name)

    def _become_a_future(self) -> None:
        stock: StockFuture = Future()
        stock.set_running_or_notify_cancel()
        if isinstance(self._settled, CloseResult):
            stock.set_result(self._settled)
        elif self._settled is not None:
            stock.set_exception(self._settled)
        mine, made = vars(self), vars(stock)
        # In one step, so that no signal's exception leaves a half. If a signal's handler came in
        # between and asked first, what it was given stays.
        mine.update({"_asked": True, **made, **mine})
