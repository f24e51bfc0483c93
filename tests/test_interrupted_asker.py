"""What comes in the middle of a question to a future of a Reaper's: an interrupt, or the outcome.

`with` takes a lock in more than one step, and an exception between them leaves it taken for good
(https://github.com/python/cpython/issues/148874, and before 3.14 inside Condition.__enter__).
"""

from __future__ import annotations

import threading
from typing import Any

from graceful_close import CloseOutcome, Reaper
from graceful_close._future import CloseFuture
from graceful_close._result import CloseResult
from streams import PATIENCE, connect_many


def test_a_lock_that_an_interrupted_asker_holds_keeps_the_reaper_from_nobody() -> None:
    with connect_many(2) as connections, Reaper(timeout=PATIENCE) as reaper:
        (first, its_peer), (second, other_peer) = connections
        asked: Any = reaper.submit(first)
        assert not asked.done()
        asked._condition.acquire()  # and the interrupt comes here
        its_peer.close()
        while len(reaper):
            pass  # the thread is about to tell, and cannot
        other = reaper.submit(second)
        other_peer.close()
        assert other.result(PATIENCE).outcome is CloseOutcome.PEER_CLOSED
        assert asked.done()
        assert asked.result(PATIENCE).outcome is CloseOutcome.PEER_CLOSED
        assert asked.result(0) is asked.result(0)


def test_an_outcome_that_comes_between_an_askers_look_and_its_wait_wakes_it() -> None:
    """As `Future.result` asks: the condition, the state, the condition again, and its wait."""
    outcome = CloseResult(CloseOutcome.PEER_CLOSED, 0.0, 0, 0, None)
    future: Any = CloseFuture()
    with future._condition:
        assert future._state == "RUNNING"
        thread = threading.Thread(target=future.settle, args=(outcome,))
        thread.start()
        while future._outcome is None:
            pass  # it is kept before it is told, and to tell takes the condition
        assert future._condition.wait(PATIENCE)
    thread.join()
    assert future.result(0) is outcome
