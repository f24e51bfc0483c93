"""A signal's exception in the middle of a question to a future of a Reaper's.

`with` takes a lock in more than one step, and an exception between them leaves it taken for good
(https://github.com/python/cpython/issues/148874, and before 3.14 inside Condition.__enter__).
"""

from __future__ import annotations

from typing import Any

from graceful_close import CloseOutcome, Reaper
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
