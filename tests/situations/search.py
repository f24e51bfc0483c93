"""Plays situations, says which are wrong, and makes those smaller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .axes import AXES, Situation, broken_rule
from .oracle import judge, judge_against, may_be_compared
from .play import Lab

# What was seen once may be the machine's fault, which is busy; what is seen twice in three is ours.
_TIMES = 3
_TIMED = {"late", "spins", "missed"}


def complaints_once(lab: Lab, situation: Situation) -> list[str]:
    """What is wrong with one play of it."""
    play = lab.play(situation)
    found = judge(play)
    if not found and may_be_compared(situation) and not play.complete:
        found = judge_against(play, lab.play(situation, plain=True))
    return found


def kinds(complaints: list[str]) -> set[str]:
    return {complaint.partition(":")[0] for complaint in complaints}


def complaints(lab: Lab, situation: Situation) -> tuple[list[str], bool]:
    """What is wrong with a situation, and whether it is so most times."""
    first = complaints_once(lab, situation)
    if not first:
        return [], False
    again = [kinds(complaints_once(lab, situation)) for _ in range(_TIMES - 1)]
    most = [kind for kind in kinds(first) if any(kind in other for other in again)]
    # A busy machine is late each time, but not for long.
    always = [kind for kind in most if kind not in _TIMED or all(kind in o for o in again)]
    return first, bool(always)


def shrink(situation: Situation, is_wrong: Callable[[Situation], bool]) -> Situation:
    """As tame as it can be, and still wrong."""
    for axis in [*AXES, *AXES]:
        tamer = replace(situation, **{axis: AXES[axis][0]})
        if tamer != situation and broken_rule(tamer) is None and is_wrong(tamer):
            situation = tamer
    return situation


def smallest(lab: Lab, situation: Situation, wrong: list[str]) -> Situation:
    """The tamest situation that is wrong in one of the same ways, most times."""

    def is_wrong(tamer: Situation) -> bool:
        found = [kinds(complaints_once(lab, tamer)) & kinds(wrong) for _ in range(2)]
        return all(found)

    return shrink(situation, is_wrong)
