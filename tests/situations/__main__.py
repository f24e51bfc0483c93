"""Plays situations at random, and prints a program for each that is wrong."""

from __future__ import annotations

import argparse
import faulthandler
import sys
from random import Random
from time import monotonic

from .axes import any_situation
from .play import laid
from .program import program
from .search import complaints, smallest

# No situation takes so long, made smaller and all, in seconds.
_HANGS = 600
# How often the count is printed.
_ROUND = 1000


def main() -> int:
    parser = argparse.ArgumentParser(prog="situations", description=__doc__)
    parser.add_argument("count", type=int, help="how many situations")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="no longer than this"
    )
    asked = parser.parse_args()
    random, until = Random(asked.seed), monotonic() + asked.seconds
    played = wrong = doubtful = 0
    with laid() as lab:
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
                print(f"# once in three times: {situation}\n# {found}\n", flush=True)
                continue
            wrong += 1
            print(program(smallest(lab, situation, found), found), flush=True)
        faulthandler.cancel_dump_traceback_later()
    print(f"{played} situations, {wrong} wrong, {doubtful} wrong once in three times")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
