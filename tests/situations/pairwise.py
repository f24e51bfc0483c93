"""Few situations that contain every permitted pair of choices."""

from __future__ import annotations

from itertools import combinations
from random import Random

from .axes import AXES, Situation, choices, complete, mixed

Pair = tuple[tuple[str, str], tuple[str, str]]

# The situations that are drawn for each one that is used. Heuristic: a larger number makes the list a
# little shorter, and drawing slower.
_DRAWN = 6


def pairs_of(situation: Situation) -> set[Pair]:
    """Return every pair of its choices."""
    chosen = [(axis, str(getattr(situation, axis))) for axis in AXES]
    return set(combinations(chosen, 2))


def all_pairs(*, wire: bool) -> list[Pair]:
    """Return every pair of choices along different axes, permitted or not."""
    return [
        ((one, first), (other, second))
        for one, other in combinations(AXES, 2)
        for first in choices(one, wire=wire)
        for second in choices(other, wire=wire)
    ]


def cover(random: Random, *, wire: bool = True) -> list[Situation]:
    """Return situations that contain every pair that the rules permit."""
    left = set(all_pairs(wire=wire))
    ordered = sorted(left)
    random.shuffle(ordered)
    covering: list[Situation] = []
    for pair in ordered:
        if pair not in left:
            continue
        given = dict(pair)
        try:
            drawn = [complete(given, random, wire=wire)]
        except LookupError:
            left.discard(pair)
            continue
        drawn += [mixed(drawn[0], given, random, wire=wire) for _ in range(_DRAWN)]
        best = max(drawn, key=lambda one: len(pairs_of(one) & left))
        left -= pairs_of(best)
        covering.append(best)
    return covering
