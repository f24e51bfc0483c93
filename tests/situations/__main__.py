"""Plays random situations, and prints a program for each wrong one."""

from __future__ import annotations

import argparse
import faulthandler
import gc
import logging
import sys
from random import Random
from time import monotonic

from .axes import any_situation
from .play import open_lab
from .program import program
from .search import complaints, smallest

# The watchdog, in seconds. No situation takes longer, its reduction included.
_HANGS = 600
# The count is printed after so many situations.
_ROUND = 1000


def main() -> int:
    parser = argparse.ArgumentParser(prog="situations", description=__doc__)
    parser.add_argument("count", type=int, help="the number of situations")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the random choices")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="the time limit")
    asked = parser.parse_args()
    # A Reaper of an event loop logs what the situation has caused (EMFILE).
    logging.getLogger("graceful_close").setLevel(logging.CRITICAL)
    gc.freeze()  # each situation is followed by a collection
    random, until = Random(asked.seed), monotonic() + asked.seconds
    played = wrong = doubtful = 0
    with open_lab() as lab:
        while played < asked.count and monotonic() < until:
            faulthandler.dump_traceback_later(_HANGS, exit=True)
            situation = any_situation(random, wire=lab.link is not None)
            played += 1
            if played % _ROUND == 0:
                print(f"# {played} situations", flush=True)
            found, sure = complaints(lab, situation)
            if not found:
                continue
            if not sure:
                doubtful += 1
                print(f"# wrong once in three plays: {situation}\n# {found}\n", flush=True)
                continue
            wrong += 1
            print(program(smallest(lab, situation, found), found), flush=True)
        faulthandler.cancel_dump_traceback_later()
    print(f"{played} situations, {wrong} wrong, {doubtful} wrong once in three plays")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
