"""A call of a Reaper's future that is interrupted, or that the outcome arrives during.

`with` acquires a lock in more than one step, and an exception between them leaves the lock
acquired forever (https://github.com/python/cpython/issues/148874, and before 3.14 inside
Condition.__enter__).
"""

from __future__ import annotations

import threading
from typing import Any

from graceful_close import CloseOutcome, Reaper
from graceful_close._future import CloseFuture
from graceful_close._result import CloseResult
from streams import PATIENCE, connect_many


def test_a_lock_left_by_an_interrupted_call_does_not_block_the_reaper() -> None:
    with connect_many(2) as connections, Reaper(timeout=PATIENCE) as reaper:
        (first, its_peer), (second, other_peer) = connections
        asked: Any = reaper.submit(first)
        assert not asked.done()
        asked._condition.acquire()  # the interrupt arrives here
        its_peer.close()
        while len(reaper):
            pass  # the thread cannot notify the future
        other = reaper.submit(second)
        other_peer.close()
        assert other.result(PATIENCE).outcome is CloseOutcome.PEER_CLOSED
        assert asked.done()
        assert asked.result(PATIENCE).outcome is CloseOutcome.PEER_CLOSED
        assert asked.result(0) is asked.result(0)


def test_an_outcome_between_the_check_and_the_wait_of_a_future_ends_the_wait() -> None:
    """`Future.result` acquires the condition, reads the state, and waits for the condition."""
    outcome = CloseResult(CloseOutcome.PEER_CLOSED, 0.0, 0, 0, None)
    future: Any = CloseFuture()
    with future._condition:
        assert future._state == "RUNNING"
        thread = threading.Thread(target=future.settle, args=(outcome,))
        thread.start()
        while future._outcome is None:
            pass  # the outcome is stored before the notification, which needs the condition
        assert future._condition.wait(PATIENCE)
    thread.join()
    assert future.result(0) is outcome
