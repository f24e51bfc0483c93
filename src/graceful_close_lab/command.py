"""The command line of the lab."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import show
from .experiments import NAMES, chosen
from .layout import wrap
from .report import Report, as_json
from .story import Story
from .tables import conclusion, tables

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from .experiments import Experiment
    from .report import Finding

_PROGRAM = "python -m graceful_close"

_INTERRUPTED = 130  # 128 and the number of SIGINT: what a shell says of it
_NOBODY_LISTENS = 141  # 128 and the number of SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the lab, or what its first argument names.

    Args:
        arguments: What stands on the command line; None: `sys.argv`.

    Returns:
        The exit code: 0 if everything went as promised, 1 if an experiment did not or the
        loopback does not work, 130 after an interrupt, 141 if nobody reads the output any more.
        A mistake on the command line exits with 2 (argparse). For `check` see there.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments and arguments[0] == "check":
            from .check.command import main as check

            return check(arguments[1:], f"{_PROGRAM} check")
        if arguments and arguments[0] == "watch":
            from .watch.command import main as watch

            return watch(arguments[1:], f"{_PROGRAM} watch")
        if list(arguments) in (["--promises"], ["lab", "--promises"]):
            from .promises.command import main as promises

            return promises()
        return _lab(arguments)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except show.NobodyListensError:
        return _NOBODY_LISTENS


def _lab(arguments: Sequence[str]) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        experiments = chosen([name for names in options.only for name in names.split(",")])
    except ValueError as error:
        parser.error(f"argument --only: {error}")
    if options.svg is not None:
        _prepare(options.svg, parser)
    try:
        report = _measure(experiments, on_screen=not options.json)
        if options.json:
            show.write(as_json(report))
        else:
            show.show([*tables(report), conclusion(report)])
        if options.svg is not None:
            _draw(report, options.svg, aside=options.json)
    except OSError as error:
        show.write(f"{parser.prog}: {error}", sys.stderr)
        return 1
    return 1 if report.otherwise else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        usage="%(prog)s [--only NAME] [--json] [--svg DIR]\n       %(prog)s check ADDRESS [...]",
        description=_filled(
            "See on this machine's loopback what each way to close a TCP connection does to "
            "data that was not sent, or not read, yet. It takes a few seconds. With check: try "
            f"a server of your own; see {_PROGRAM} check --help."
        ),
        epilog=_filled(
            f"NAME is one of: {', '.join(NAMES)}. The exit code is 0 if everything went as "
            "promised, 1 if not."
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,  # others break names in two
    )
    parser.add_argument(
        "--only",
        metavar="NAME",
        action="append",
        default=[],
        help="run this experiment only; again, or with commas, for several",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the report as JSON instead of tables"
    )
    parser.add_argument(
        "--svg",
        metavar="DIR",
        type=Path,
        help="draw each experiment, and the tables, as SVG files in this folder",
    )
    return parser


def _filled(text: str) -> str:
    return "\n".join(wrap(text, show.plain_width()))


def _prepare(folder: Path, parser: argparse.ArgumentParser) -> None:
    """Make the folder; and find out now, not after some seconds, if nothing can be drawn."""
    if not show.has_rich():
        parser.error("argument --svg: needs rich: pip install 'graceful-close[lab]'")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --svg: {error}")


def _draw(report: Report, folder: Path, *, aside: bool) -> None:
    from .files import write

    written = [f"wrote {file}" for file in write(report, folder)]
    if aside:
        show.write("\n".join(written), sys.stderr)
    else:
        show.write("\n".join(["", *written]))


def _measure(experiments: Sequence[Experiment], *, on_screen: bool) -> Report:
    """One after the other."""
    findings: list[Finding] = []
    with _told(len(experiments), on_screen=on_screen) as begin:
        for experiment in experiments:
            story = begin(experiment, Report.of(findings))
            findings.append(experiment.run(story))
    return Report.of(findings)


@contextlib.contextmanager
def _told(total: int, *, on_screen: bool) -> Generator[Callable[[Experiment, Report], Story]]:
    """Who tells of the experiments as they begin."""
    if on_screen and show.is_a_screen(sys.stdout):
        from .live import live

        with live(total) as begin_on_screen:
            yield begin_on_screen
    else:
        with show.progress(total) as begin:

            def begin_in_words(experiment: Experiment, _: Report) -> Story:
                begin(experiment.title)
                return Story()

            yield begin_in_words
