"""The close of 10,000 connections, if 1 % of the peers never answer.

This should cost the deadline once, not once for each peer, and no CPU while waiting.
"""

from __future__ import annotations

import statistics
import sys
from functools import partial
from typing import TYPE_CHECKING

from .closers import Spent, by_close_all, by_threads
from .crowd import affordable, crowd, why_not
from .figures import Figure, Target, all_take_turns
from .many import require_all

if TYPE_CHECKING:
    from .closers import Closer

_COUNT = 10_000
_ONE_IN = 100
_ROUNDS = 3

# Seconds. The long wait should not cost more CPU than the short one.
_SHORT = 1.0
_LONG = 3.0

# Milliseconds of CPU. Closing all connections takes some hundred, and varies by this amount
# between rounds. Polling a thousand times a second would cost more.
_LEEWAY = 10.0


def measure() -> list[Figure]:
    """Return three figures: time, CPU, and the number of sleeps."""
    if reason := why_not():
        print(f"silent_peers: not measured: {reason}", file=sys.stderr)
        return []
    count = affordable(_COUNT)
    silent = count // _ONE_IN
    with crowd() as peers:

        def batch(close: Closer, timeout: float) -> Spent:
            spent = close(peers.connect(count, silent=silent), timeout)
            peers.forget()
            require_all(spent, count - silent)
            return spent

        taken = all_take_turns(
            _ROUNDS,
            {
                "short": partial(batch, by_close_all, _SHORT),
                "long": partial(batch, by_close_all, _LONG),
                "threads": partial(batch, by_threads, _SHORT),
            },
        )
    short, long, threads = taken["short"], taken["long"], taken["threads"]
    details = {
        "connections": count,
        "wanted": _COUNT,
        "silent": silent,
        "rounds": _ROUNDS,
        "deadline": _SHORT,
        "longer_deadline": _LONG,
    }
    what = f"closing {count:,}, {silent} silent"
    return [
        Figure(
            f"{what}: at most {_SHORT:g} s",
            "s",
            statistics.median(spent.wall for spent in short),
            statistics.median(spent.wall for spent in threads),
            "32 threads, graceful_close",
            Target("ours", 1.1 * _SHORT),
            details,
        ),
        Figure(
            f"{what}: at most {_LONG:g} s",
            "ms CPU",
            statistics.median(spent.cpu for spent in long) * 1e3,
            statistics.median(spent.cpu for spent in short) * 1e3,
            f"the same, at most {_SHORT:g} s",
            Target("excess", _LEEWAY),
            details
            | {
                "wall": statistics.median(spent.wall for spent in long),
                "excess_of_pairs": [
                    (a.cpu - b.cpu) * 1e3 for a, b in zip(long, short, strict=True)
                ],
            },
        ),
        Figure(
            f"{what}: at most {_LONG:g} s",
            "times asleep",
            statistics.median(spent.asleep for spent in long),
            statistics.median(spent.asleep for spent in short),
            f"the same, at most {_SHORT:g} s",
            None,
            details,
        ),
    ]
