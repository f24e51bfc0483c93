"""Run a command in another place; without a command, try the promises of the library there."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from . import UNAVAILABLE
from .places import PLACES
from .room import PROJECT

_WORK = PROJECT / "build" / "elsewhere"
_PROMISES = ["python", "-m", "graceful_close", "lab", "--promises"]

# Python, without any file of this project.
_NOTHING = ["-S", "-c", "pass"]


def main() -> int:
    """Run a command in a place.

    Returns:
        The exit code of the command, or UNAVAILABLE if the command has not run.
    """
    parser = argparse.ArgumentParser(prog="python -m elsewhere", description=__doc__)
    parser.add_argument(
        "--work", type=Path, default=_WORK, help="the folder for everything that is unpacked"
    )
    parser.add_argument("place", nargs="?", choices=PLACES, help="default: list the places")
    parser.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        help="the command. `python` is the Python of the place, and `pytest` has the packages "
        "that tests/contract needs",
    )
    arguments = parser.parse_args()
    if arguments.place is None:
        for name, place in PLACES.items():
            print(f"{name:14} {place.what}")
        return 0
    place = PLACES[arguments.place]
    work: Path = arguments.work.resolve()
    program, *more = arguments.command or _PROMISES
    if program == "pytest":
        program, more = "python", ["-m", "pytest", "-p", "no:cacheprovider", *more]
    command = [place.python if program == "python" else program, *more]
    try:
        if os.geteuid() != 0:
            raise PermissionError("it needs root")
        work.mkdir(parents=True, exist_ok=True)
        run = place.make(work)
        site = None if place.site is None else place.site(work)
        if run([place.python, *_NOTHING], None) != 0:
            raise OSError("its Python does not start")
    except (OSError, subprocess.SubprocessError) as error:
        print(f"{arguments.place} cannot be had here: {error}", file=sys.stderr)
        return UNAVAILABLE
    return run(command, site)


if __name__ == "__main__":
    sys.exit(main())
