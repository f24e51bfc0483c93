"""Plays situations, and reduces the wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .axes import AXES, Situation, broken_rule
from .oracle import judge, judge_against, may_be_compared
from .play import Lab

# A busy machine may cause one complaint. A complaint in two of three plays is the library's.
_TIMES = 3
_TIMED = {"late", "spins", "missed"}


def complaints_once(lab: Lab, situation: Situation) -> list[str]:
    """Play the situation once, and return what is wrong."""
    play = lab.play(situation)
    found = judge(play)
    if not found and may_be_compared(situation) and not play.complete:
        found = judge_against(play, lab.play(situation, plain=True))
    return found


def kinds(complaints: list[str]) -> set[str]:
    return {complaint.partition(":")[0] for complaint in complaints}


def complaints(lab: Lab, situation: Situation) -> tuple[list[str], bool]:
    """Return what is wrong in the first play, and whether most plays have the same complaint."""
    first = complaints_once(lab, situation)
    if not first:
        return [], False
    again = [kinds(complaints_once(lab, situation)) for _ in range(_TIMES - 1)]
    most = [kind for kind in kinds(first) if any(kind in other for other in again)]
    # A complaint about time needs all plays, because a machine is often busy for seconds.
    always = [kind for kind in most if kind not in _TIMED or all(kind in o for o in again)]
    return first, bool(always)


def shrink(situation: Situation, is_wrong: Callable[[Situation], bool]) -> Situation:
    """Return the situation with as many defaults as possible that `is_wrong` still accepts."""
    for axis in [*AXES, *AXES]:
        smaller = replace(situation, **{axis: AXES[axis][0]})
        if smaller != situation and broken_rule(smaller) is None and is_wrong(smaller):
            situation = smaller
    return situation


def smallest(lab: Lab, situation: Situation, wrong: list[str]) -> Situation:
    """Return the smallest situation that has one of the same kinds of complaint in both plays."""

    def is_wrong(smaller: Situation) -> bool:
        found = [kinds(complaints_once(lab, smaller)) & kinds(wrong) for _ in range(2)]
        return all(found)

    return shrink(situation, is_wrong)
