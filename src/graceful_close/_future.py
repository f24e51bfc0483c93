"""The future of a close, which few ever look at."""

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


# Seconds. Arbitrary: whoever asks holds the condition for microseconds.
_PATIENCE = 1.0


class CloseFuture(StockFuture):
    """A Future whose parts are made when somebody first asks it something.

    The stock one begins with a lock, a condition and two lists, 1,600 bytes of them, and a server
    throws most of them away unasked. So `Future.__init__` is not called here. What it would have
    made is looked for in the object, is not found, and comes from a stock Future that is made
    then. No lock is taken: whoever settles stores the outcome and then looks whether anybody has
    asked, and whoever asks first looks for an outcome afterwards. One of the two sees the other.
    """

    __slots__ = ("_outcome",)

    def __init__(self) -> None:
        self._outcome: CloseResult | BaseException | None = None

    def settle(self, outcome: CloseResult | BaseException) -> None:
        """Keep the outcome, and run the callbacks of those who have asked."""
        self._outcome = outcome
        stock = self.__dict__.get("_stock")
        if stock is None:
            return
        # A signal's exception can leave an asker's thread with the condition held for good, because
        # `with` takes it in more than one step. The next to ask in that thread is told the outcome.
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
            # An asker was faster, who may have told itself between its look and its wait.
            with self._condition:
                self._condition.notify_all()
        finally:
            made.pop("_telling", None)

    def __getattr__(self, name: str) -> Any:
        # Python comes here for what it does not find.
        made = self.__dict__
        if "_stock" not in made:
            stock: StockFuture = Future()
            stock.set_running_or_notify_cancel()
            made.setdefault("_stock", stock)  # in one step: another thread may ask, too
        # It has its own state from when it was told, which a signal's exception may have prevented.
        # Every method of a Future begins with the condition, and holds it from then on.
        outcome = self._outcome
        untold = "_state" not in made and made.get("_telling") != threading.get_ident()
        if name == "_condition" and untold and outcome is not None:
            self._tell(outcome)
        return made[name] if name in made else getattr(made["_stock"], name)
