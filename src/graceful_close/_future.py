"""The future of a close, which most callers ignore."""

from __future__ import annotations

import threading
from concurrent.futures import Future, InvalidStateError

from ._result import CloseResult

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    StockFuture = Future[CloseResult]
else:
    StockFuture = Future


# Seconds. Heuristic: other threads hold the condition for microseconds.
_LOCK_TIMEOUT = 1.0


class CloseFuture(StockFuture):
    """A Future whose parts are created when it is first used.

    The standard Future creates a lock, a condition and two lists, 1,600 bytes, and a server discards
    most futures unused. So `Future.__init__` is not called. When an attribute is looked up and not
    found, it comes from a standard Future that is created then.

    No lock is needed: the first use and `settle` both call `dict.setdefault`, which is atomic, with
    the same key. If the first use comes first, `settle` finds the standard Future, and the thread
    that calls `settle` runs the callbacks. If `settle` comes first, the first use finds the outcome,
    and creates a standard Future that has already ended.
    """

    __slots__ = ()

    def __init__(self) -> None:
        pass

    def settle(self, outcome: CloseResult | BaseException) -> None:
        """Store the outcome, and run the callbacks if the future is used."""
        made = self.__dict__
        try:
            stock = made.setdefault("_stock", outcome)
            if not isinstance(stock, Future):
                return
            # A signal's exception can leave another thread with the condition held forever, because
            # `with` takes it in more than one step. The next call in that thread then settles the
            # future.
            lock: threading.Condition = stock._condition
            if lock.acquire(timeout=_LOCK_TIMEOUT):
                lock.release()  # callbacks must not run under it
                self._tell(outcome)
            else:
                made["_late"] = outcome
        except BaseException:
            made["_late"] = outcome
            raise

    def _tell(self, outcome: CloseResult | BaseException) -> None:
        try:
            if isinstance(outcome, CloseResult):
                self.set_result(outcome)
            else:
                self.set_exception(outcome)
        except InvalidStateError:
            pass  # an interrupted `settle` had come this far

    def _tell_late(self) -> None:
        """Do the rest of a `settle` that could not wait, or was interrupted."""
        made = self.__dict__
        outcome: CloseResult | BaseException | None = made.get("_late")
        if outcome is None:
            return
        try:
            made.pop("_late", None)  # set_result() looks up the condition, too
            self._tell(outcome)
            # This thread may be between its look at the state and its wait.
            made["_condition"] = _NeverWaits(made["_stock"]._condition._lock)
        except BaseException:
            made["_late"] = outcome
            raise

    def __getattr__(self, name: str) -> Any:
        # Python calls this for an attribute that is not found.
        made = self.__dict__
        if "_stock" not in made:
            running = StockFuture()
            running.set_running_or_notify_cancel()
            made.setdefault("_stock", running)
        stock: StockFuture | CloseResult | BaseException = made["_stock"]
        if not isinstance(stock, Future):
            stock = made["_stock"] = _ended(stock)
        # Every method of a Future looks up the condition first, and holds it from then on.
        if name == "_condition":
            self._tell_late()
        return made[name] if name in made else getattr(stock, name)


class _NeverWaits(threading.Condition):
    """The condition of a future that has ended."""

    def wait(self, timeout: float | None = None) -> bool:
        return True


def _ended(outcome: CloseResult | BaseException) -> StockFuture:
    ended = StockFuture()
    ended.set_running_or_notify_cancel()
    if isinstance(outcome, CloseResult):
        ended.set_result(outcome)
    else:
        ended.set_exception(outcome)
    return ended
