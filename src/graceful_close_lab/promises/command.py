"""`--promises`: try the library's guarantees on this system."""

from __future__ import annotations

import platform
import sys
from collections import Counter
from importlib import import_module
from time import monotonic

from graceful_close._platform import HERE

from .. import show
from .trying import PROMISES, Promise, Trial, Verdict, attempt

# Seconds for one promise, and for all of them. All take about 5 s. An emulated processor that is
# busy may need 15 s to start one interpreter. Heuristics.
_FOR_ONE = 60.0
_FOR_ALL = 300.0


def main() -> int:
    """Try all promises, and print a line for each.

    Returns:
        The exit code: 0 if no promise is broken, otherwise 1.
    """
    for module in ("one", "many", "servers", "event_loops"):  # in this order
        import_module(f".{module}", __package__)
    show.write(f"{_this_place()}\n")
    end_at = monotonic() + _FOR_ALL
    counts: Counter[Verdict] = Counter()
    for promise in PROMISES:
        trial = _try(promise, min(_FOR_ONE, end_at - monotonic()))
        counts[trial.verdict] += 1
        show.write(str(trial))
    show.write(
        f"\n{len(PROMISES)} promises: {counts[Verdict.HELD]} held, "
        f"{counts[Verdict.BROKEN]} broken, {counts[Verdict.NOT_HERE]} not here"
    )
    return 1 if counts[Verdict.BROKEN] else 0


def _try(promise: Promise, timeout: float) -> Trial:
    if timeout <= 0:
        return Trial(promise.sentence, Verdict.BROKEN, "no time was left", 0)
    return attempt(promise, timeout)


def _this_place() -> str:
    return (
        f"{platform.system()} {platform.release()} on {platform.machine()}, "
        f"{platform.python_implementation()} {platform.python_version()}"
        f"{'' if _gil() else ' without the GIL'}, platform key {HERE.name}"
    )


def _gil() -> bool:
    """Whether one thread runs at a time."""
    enabled = getattr(sys, "_is_gil_enabled", None)
    return enabled is None or bool(enabled())
