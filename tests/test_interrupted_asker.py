"""A call of a Reaper's future that is interrupted, or that the outcome arrives during.

`with` acquires a lock in more than one step, and an exception between them leaves the lock
acquired forever (https://github.com/python/cpython/issues/148874, and before 3.14 inside
Condition.__enter__).
"""

from __future__ import annotations

import threading
from typing import Any

import pytest

from graceful_close import CloseOutcome, Reaper, _future
from graceful_close._future import CloseFuture
from graceful_close._result import CloseResult
from signals import each_moment
from streams import DEADLINE, connect_many

OUTCOME = CloseResult(CloseOutcome.PEER_CLOSED, 0.0, 0, 0, None)


def test_a_lock_left_by_an_interrupted_call_does_not_block_the_reaper() -> None:
    with connect_many(2) as connections, Reaper(timeout=DEADLINE) as reaper:
        (first, its_peer), (second, other_peer) = connections
        asked: Any = reaper.submit(first)
        assert not asked.done()
        asked._condition.acquire()  # the interrupt arrives here
        its_peer.close()
        while len(reaper):
            pass  # the thread cannot notify the future
        other = reaper.submit(second)
        other_peer.close()
        assert other.result(DEADLINE).outcome is CloseOutcome.PEER_CLOSED
        assert asked.done()
        assert asked.result(DEADLINE).outcome is CloseOutcome.PEER_CLOSED
        assert asked.result(0) is asked.result(0)


def test_an_outcome_that_comes_between_an_askers_look_and_its_wait_wakes_it() -> None:
    """`Future.result` looks up the condition, the state, and the condition again, and waits.

    The thread that settles runs the callbacks, and does not hold the condition then.
    """
    future, thread, reached = _about_to_be_settled()
    told: list[tuple[threading.Thread, bool]] = []

    def note(_: object) -> None:
        told.append((threading.current_thread(), future._condition._is_owned()))

    future.add_done_callback(note)
    with future._condition:
        assert future._state == "RUNNING"
        thread.start()
        assert reached.wait(DEADLINE)
        assert future._condition.wait(DEADLINE)
    thread.join()
    assert future.result(0) is OUTCOME
    assert told == [(thread, False)]


def test_an_asker_that_is_too_slow_between_its_look_and_its_wait_does_not_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_future, "_LOCK_TIMEOUT", 0)
    future, thread, _ = _about_to_be_settled()
    with future._condition:
        assert future._state == "RUNNING"
        thread.start()
        thread.join()  # it could not take the condition
        assert future._condition.wait(DEADLINE)
    assert future.result(0) is OUTCOME


def test_an_outcome_that_comes_while_an_asker_holds_the_lock_leaves_it_that_lock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`concurrent.futures.wait` looks up the condition to acquire it, and again to release it."""
    monkeypatch.setattr(_future, "_LOCK_TIMEOUT", 0)
    future, thread, _ = _about_to_be_settled()
    future._condition.__enter__()
    thread.start()
    thread.join()
    future._condition.release()
    assert future.result(0) is OUTCOME


@pytest.mark.parametrize("interrupted", ["settle", "the next call"])
def test_an_interrupt_at_any_call_does_not_lose_the_outcome(
    interrupted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_future, "_LOCK_TIMEOUT", 0)
    for stopped in each_moment():
        future, thread, _ = _about_to_be_settled()
        if interrupted == "settle":
            with stopped():
                future.settle(OUTCOME)
        else:
            with future._condition:
                thread.start()
                thread.join()
            with stopped():
                future.done()
        assert future.result(0) is OUTCOME


def _about_to_be_settled() -> tuple[Any, threading.Thread, threading.Event]:
    """A used future, a thread that settles the future, and an event: it is about to wait."""
    future: Any = CloseFuture()
    condition = future._condition
    acquire, reached = condition.acquire, threading.Event()

    def acquire_in_the_thread(**options: float) -> bool:
        reached.set()
        return bool(acquire(**options))

    condition.acquire = acquire_in_the_thread  # `with` does not call it
    return future, threading.Thread(target=future.settle, args=(OUTCOME,)), reached
