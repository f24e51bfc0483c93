"""The growth of the CPU for one connection with the number of connections closed together."""

from __future__ import annotations

import math
import statistics
import sys
from functools import partial
from typing import TYPE_CHECKING

from .closers import by_close_all, compiled
from .crowd import affordable, crowd, why_not
from .figures import Figure, Target, all_take_turns
from .many import TIMEOUT, require_all

if TYPE_CHECKING:
    from .closers import Closer

_COUNTS = (100, 1_000, 10_000, 18_000)
_ROUNDS = 4

# Few connections take too little time for one measurement: a turn closes at least this number.
_TURN = 5_000

# How much faster the cost of close_all may grow than that of the C program: n^0.05 is a quarter
# more for 100 times as many. The growth of the C program is that of the kernel, whose sockets
# no longer fit into the caches.
_LEEWAY = 0.05


def measure() -> list[Figure]:
    """Return a figure for each number of connections, and one for the growth."""
    if reason := why_not():
        print(f"scaling: not measured: {reason}", file=sys.stderr)
        return []
    counts = sorted({affordable(count) for count in _COUNTS})
    with compiled() as by_c, crowd() as peers:

        def turn(close: Closer, count: int) -> float:
            """Return the microseconds of CPU for one connection."""
            spent = [close(peers.connect(count), TIMEOUT) for _ in range(-(-_TURN // count))]
            for batch in spent:
                require_all(batch, count)
            return statistics.median(batch.cpu for batch in spent) / count * 1e6

        taken = all_take_turns(
            _ROUNDS,
            {
                (close, count): partial(turn, close, count)
                for count in counts
                for close in (by_close_all, by_c)
            },
        )
    ours = [statistics.median(taken[by_close_all, count]) for count in counts]
    theirs = [statistics.median(taken[by_c, count]) for count in counts]
    return [
        *(
            Figure(
                f"closing {count:,}, for each",
                "µs CPU",
                own,
                their,
                "C program, epoll",
                details={"connections": count, "rounds": _ROUNDS},
            )
            for count, own, their in zip(counts, ours, theirs, strict=True)
        ),
        Figure(
            f"growth, {counts[0]:,} to {counts[-1]:,}",
            "exponent",
            _exponent(counts, ours),
            _exponent(counts, theirs),
            "C program, epoll",
            Target("excess", _LEEWAY),
            {"connections": counts, "wanted": _COUNTS, "ours": ours, "theirs": theirs},
        ),
    ]


def _exponent(counts: list[int], costs: list[float]) -> float:
    """Return the k of n^k that fits best: 0 is constant, 1 is proportional."""
    logarithms = [[math.log(number) for number in numbers] for numbers in (counts, costs)]
    return statistics.linear_regression(*logarithms).slope
