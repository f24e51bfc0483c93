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
_PATIENCE = 1.0


class CloseFuture(StockFuture):
    """A Future whose parts are created when it is first used.

    The standard Future creates a lock, a condition and two lists, 1,600 bytes, and a server discards
    most futures unused. So `Future.__init__` is not called. When an attribute is looked up and not
    found, it comes from a standard Future that is created then. No lock is needed: `settle` stores
    the outcome and then checks whether the future is used, and the first use checks the outcome
    afterwards. One of the two sees the other.
    """

    __slots__ = ("_outcome",)

    def __init__(self) -> None:
        self._outcome: CloseResult | BaseException | None = None

    def settle(self, outcome: CloseResult | BaseException) -> None:
        """Store the outcome, and run the callbacks if the future is used."""
        self._outcome = outcome
        stock = self.__dict__.get("_stock")
        if stock is None:
            return
        # A signal's exception can leave another thread with the condition held forever, because `with`
        # takes it in more than one step. The next call in that thread then settles the future.
        lock = stock._condition
        if lock.acquire(timeout=_PATIENCE):
            lock.release()  # callbacks must not run under it
            self._tell(outcome)

    def _tell(self, outcome: CloseResult | BaseException) -> None:
        made, me = self.__dict__, threading.get_ident()
        made["_telling"] = me
        try:
            if isinstance(outcome, CloseResult):
                self.set_result(outcome)
            else:
                self.set_exception(outcome)
        except InvalidStateError:
            # Another thread was faster, which may have done so between its look and its wait.
            with self._condition:
                self._condition.notify_all()
        finally:
            made.pop("_telling", None)

    def __getattr__(self, name: str) -> Any:
        # Python calls this for an attribute that is not found.
        made = self.__dict__
        if "_stock" not in made:
            stock: StockFuture = Future()
            stock.set_running_or_notify_cancel()
            made.setdefault(
                "_stock", stock
            )  # in one step, because another thread may do the same
        # The object has its own state after `_tell`, which a signal's exception may have prevented.
        # Every method of a Future looks up the condition first, and holds it from then on.
        outcome = self._outcome
        untold = "_state" not in made and made.get("_telling") != threading.get_ident()
        if name == "_condition" and untold and outcome is not None:
            self._tell(outcome)
        return made[name] if name in made else getattr(made["_stock"], name)
