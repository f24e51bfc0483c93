"""The command `watch`: its command line."""

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
    from .outputs import Output

_TOO_MANY = 1
_NOT_WATCHED = 3


def run(options: argparse.Namespace) -> int:
    """Watch this machine.

    Returns:
        The exit code, as listed in the help.
    """
    program: str = options.parser.prog
    try:
        return _watch(options, program)
    except OSError as error:
        return _fail(f"{program}: {error}")


def _watch(options: argparse.Namespace, program: str) -> int:
    if sys.platform != "linux":
        return _fail(f"{program}: only Linux reports its resets, not {sys.platform}")
    from .outputs import JsonLines, Lines, Textfile, screen
    from .tally import Tally
    from .tracefs import NoTracingError
    from .watching import until_signalled, watch

    limit: int | None = options.fail_over
    chosen = frozenset[int](options.port), frozenset[int](options.pid)
    tally = Tally(*chosen)
    with until_signalled() as over, ExitStack() as held:
        outputs: list[Output] = []
        if options.prometheus is not None:
            outputs.append(Textfile(options.prometheus))
        if options.json:
            outputs.append(JsonLines())
        elif options.quiet:
            pass
        elif show.is_a_screen(sys.stdout) and not options.plain:
            outputs.append(held.enter_context(screen()))
        else:
            outputs.append(Lines())
        try:
            watch(tally, outputs, options.duration, over=over, trace=not options.counters)
        except NoTracingError as error:
            return _fail(f"{program}: {error}")
    if limit is None:
        return 0
    if tally.may_have_cost > limit:
        return _TOO_MANY
    if tally.events_lost:
        return _fail(f"{program}: --fail-over: events were lost, so the number is unknown")
    return 0


def _fail(problem: str) -> int:
    show.write(problem, sys.stderr)
    return _NOT_WATCHED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `watch`."""
    parser.description = (
        "Report which processes of this machine end connections with RST, and which replies "
        "are lost. As root, on Linux 4.16 or later (6.12 reports most), it names the "
        "processes, and reports which losses are proven. Otherwise it shows the kernel's "
        "counters of this network namespace. It does not change the processes. Ctrl-C ends it."
    )
    if isinstance(parser, Parser):
        parser.exit_codes |= {
            0: "the watch ran to its end, or to a signal",
            _TOO_MANY: "more replies were lost, or may have been lost, than --fail-over allows",
            _NOT_WATCHED: "watching was not possible, or was incomplete with --fail-over",
        }
    parser.add_argument(
        "--port",
        metavar="N",
        type=_port,
        action="append",
        default=[],
        help="only connections of this local port; repeat the option for several",
    )
    parser.add_argument(
        "--pid",
        metavar="N",
        type=_number,
        action="append",
        default=[],
        help="only this process; repeat the option for several",
    )
    parser.add_argument(
        "--duration",
        metavar="SECONDS",
        type=_seconds,
        default=math.inf,
        help="end after this time (default: at Ctrl-C)",
    )
    parser.add_argument(
        "--fail-over",
        metavar="N",
        type=_number,
        help="exit with 1 if more than N replies were lost or may have been lost",
    )
    parser.add_argument(
        "--prometheus",
        metavar="FILE",
        type=Path,
        help="write the counts to this file every second, for node_exporter's textfile "
        "collector",
    )
    parser.add_argument(
        "--counters", action="store_true", help="no tracing: show only the kernel's counters"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--json", action="store_true", help="print a line of JSON for each reset, and a summary"
    )
    how.add_argument(
        "--plain", action="store_true", help="print lines, as to a pipe, and do not draw"
    )


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 18:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
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
