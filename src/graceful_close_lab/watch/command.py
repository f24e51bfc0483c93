"""The command line of watch."""

from __future__ import annotations

import argparse
import math
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from .. import show
from ..parsing import Parser

if TYPE_CHECKING:
    from .outlets import Outlet

_TOO_MANY = 1
_NOT_WATCHED = 3


def run(options: argparse.Namespace) -> int:
    """Watch this machine.

    Returns:
        The exit code, as the help has it.
    """
    program: str = options.parser.prog
    try:
        return _watch(options, program)
    except OSError as error:
        return _say(f"{program}: {error}")


def _watch(options: argparse.Namespace, program: str) -> int:
    if sys.platform != "linux":
        return _say(f"{program}: only Linux tells of its resets, not {sys.platform}")
    from .outlets import JsonLines, Lines, Textfile, screen
    from .tally import Tally
    from .tracefs import NoTracingError
    from .watching import until_signalled, watch

    limit: int | None = options.fail_over
    chosen = frozenset[int](options.port), frozenset[int](options.pid)
    tally = Tally(*chosen)
    with until_signalled() as over, ExitStack() as held:
        outlets: list[Outlet] = []
        if options.prometheus is not None:
            outlets.append(Textfile(options.prometheus))
        if options.json:
            outlets.append(JsonLines())
        elif options.quiet:
            pass
        elif show.is_a_screen(sys.stdout) and not options.plain:
            outlets.append(held.enter_context(screen()))
        else:
            outlets.append(Lines())
        try:
            watch(tally, outlets, options.duration, over=over, trace=not options.counters)
        except NoTracingError as error:
            return _say(f"{program}: {error}")
    if limit is None:
        return 0
    if tally.may_have_cost > limit:
        return _TOO_MANY
    if tally.events_lost:
        return _say(f"{program}: --fail-over: events were lost, so there is no answer")
    return 0


def _say(problem: str) -> int:
    show.write(problem, sys.stderr)
    return _NOT_WATCHED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What stands behind `watch` on the command line."""
    parser.description = (
        "Watch which process of this machine ends connections with RST, and which replies that "
        "costs. As root, on Linux 4.16 or later (6.12 says most), it names processes, and proves "
        "what it can; else it shows what the kernel counts in this network namespace. It changes "
        "nothing, and ends at Ctrl-C."
    )
    if isinstance(parser, Parser):
        parser.exit_codes |= {
            0: "it was watched, to the end or to a signal",
            _TOO_MANY: "more replies were lost, or may have been, than --fail-over allows",
            _NOT_WATCHED: "it could not be watched, or too little of it for --fail-over",
        }
    parser.add_argument(
        "--port",
        metavar="N",
        type=_port,
        action="append",
        default=[],
        help="only connections of this port of ours; again for several",
    )
    parser.add_argument(
        "--pid",
        metavar="N",
        type=_number,
        action="append",
        default=[],
        help="only this process; again for several",
    )
    parser.add_argument(
        "--duration",
        metavar="SECONDS",
        type=_seconds,
        default=math.inf,
        help="end after so long (default: at Ctrl-C)",
    )
    parser.add_argument(
        "--fail-over",
        metavar="N",
        type=_number,
        help="exit with 1 if more than N replies were lost or may have been",
    )
    parser.add_argument(
        "--prometheus",
        metavar="FILE",
        type=Path,
        help="write the counts to this file every second, for node_exporter's textfile collector",
    )
    parser.add_argument(
        "--counters", action="store_true", help="no tracing: only what the kernel counts"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--json", action="store_true", help="print a line of JSON for each reset, and a summary"
    )
    how.add_argument(
        "--plain", action="store_true", help="print lines, as into a pipe; never draw"
    )


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 18:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:9]) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to 65535")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= 10**9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds
