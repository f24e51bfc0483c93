"""The CPU time of closing 10,000 connections: close_all and its alternatives.

All have the same kind of connections, whose peers answer the FIN immediately, and the same
clock.
"""

from __future__ import annotations

import statistics
import sys
from functools import partial
from typing import TYPE_CHECKING

from .closers import (
    Spent,
    by_asyncio,
    by_close_all,
    by_threads,
    by_trio,
    compiled,
    one_by_one,
)
from .crowd import affordable, crowd, why_not
from .figures import Figure, Target, all_take_turns

if TYPE_CHECKING:
    from .closers import Closer

_COUNT = 10_000
_ROUNDS = 5
TIMEOUT = 60.0

_TARGETS = {"C program, epoll": Target("ratio", 1.6), "asyncio streams": Target("ratio", 0.45)}


def measure() -> list[Figure]:
    """Return a figure for each alternative."""
    if reason := why_not():
        print(f"many: not measured: {reason}", file=sys.stderr)
        return []
    count = affordable(_COUNT)
    asleep: dict[str, list[int]] = {}
    with compiled() as by_c, crowd() as peers:

        def batch(name: str, close: Closer) -> float:
            """Return the microseconds of CPU for one connection."""
            spent = close(peers.connect(count), TIMEOUT)
            require_all(spent, count)
            asleep.setdefault(name, []).append(spent.asleep)
            return spent.cpu / count * 1e6

        closers = {
            "close_all": by_close_all,
            "C program, epoll": by_c,
            "asyncio streams": by_asyncio,
            "trio": by_trio,
            "32 threads, graceful_close": by_threads,
            "graceful_close, one by one": one_by_one,
        }
        taken = all_take_turns(
            _ROUNDS, {name: partial(batch, name, close) for name, close in closers.items()}
        )
    ours = taken.pop("close_all")
    return [
        Figure(
            f"closing {count:,}, for each",
            "µs CPU",
            statistics.median(ours),
            statistics.median(theirs),
            name,
            _TARGETS.get(name),
            {
                "connections": count,
                "wanted": _COUNT,
                "rounds": _ROUNDS,
                "least_ours": min(ours),
                "least_theirs": min(theirs),
                "median_of_pairs": statistics.median(
                    a / b for a, b in zip(ours, theirs, strict=True)
                ),
                "asleep_ours": statistics.median(asleep["close_all"]),
                "asleep_theirs": statistics.median(asleep[name]),
            },
        )
        for name, theirs in taken.items()
    ]


def require_all(spent: Spent, count: int) -> None:
    """Check that all connections were closed by their peers.

    Raises:
        RuntimeError: Some connections ended in another way.
    """
    if spent.answered != count:
        raise RuntimeError(f"{spent.answered} of {count} peers were seen to answer")
