"""The CPU time of closing 5,000 asyncio streams, compared with the shortest way."""

from __future__ import annotations

import statistics
import sys
from functools import partial
from typing import TYPE_CHECKING

from .closers import by_asyncio, by_wait_closed, in_asyncio
from .crowd import affordable, crowd, why_not
from .figures import Figure, all_take_turns
from .many import TIMEOUT, require_all

if TYPE_CHECKING:
    from .closers import Closer

_COUNT = 5_000
_ROUNDS = 5


def measure() -> list[Figure]:
    """Return two figures: against `close()`, and against reading to the end."""
    if reason := why_not():
        print(f"event_loop: not measured: {reason}", file=sys.stderr)
        return []
    count = affordable(_COUNT)
    with crowd() as peers:

        def batch(close: Closer) -> float:
            """Return the microseconds of CPU for one connection."""
            spent = close(peers.connect(count), TIMEOUT)
            require_all(spent, count)
            return spent.cpu / count * 1e6

        closers = {
            "close_all": in_asyncio,
            "close(), wait_closed(): the floor, loses data": by_wait_closed,
            "write_eof(), read to the end, close()": by_asyncio,
        }
        taken = all_take_turns(
            _ROUNDS, {name: partial(batch, close) for name, close in closers.items()}
        )
    ours = taken.pop("close_all")
    return [
        Figure(
            f"closing {count:,} asyncio streams, for each",
            "µs CPU",
            statistics.median(ours),
            statistics.median(theirs),
            name,
            details={"connections": count, "rounds": _ROUNDS},
        )
        for name, theirs in taken.items()
    ]
