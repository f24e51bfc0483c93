"""The command `lab`: it runs the experiments, one after the other."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import show
from .experiments import chosen
from .parsing import Parser, UsageError
from .report import Report, as_json
from .tables import conclusion, list_of, tables
from .timeline import Timeline

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Generator, Sequence

    from .experiments import Experiment
    from .report import Finding


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lab`."""
    parser.description = (
        "Show on this machine's loopback what each way to close a TCP connection does to data "
        "that is not sent yet, or not read yet. The experiments take a few seconds."
    )
    if isinstance(parser, Parser):
        parser.exit_codes |= {
            0: "everything went as expected",
            1: "an experiment did not, the loopback does not work, or a guarantee is broken",
        }
    parser.add_argument(
        "--only",
        metavar="NAME",
        action="append",
        default=[],
        help="run only this experiment or group (see --list); repeat the option, or use "
        "commas, for several",
    )
    parser.add_argument(
        "--list", action="store_true", help="list the experiments, and run none"
    )
    parser.add_argument(
        "--promises",
        action="store_true",
        help="try the guarantees of the library, on a system that no test has covered",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the report as JSON instead of tables"
    )
    parser.add_argument(
        "--svg",
        metavar="DIR",
        type=Path,
        help="write a drawing of each experiment, and the tables, as SVG files to this folder",
    )


def run(options: argparse.Namespace) -> int:
    """Run the chosen experiments, and print the report.

    Returns:
        0 if everything went as expected; 1 if an experiment did not, or the loopback does not
        work.

    Raises:
        UsageError: An experiment is unknown, or the folder cannot be made.
    """
    if options.promises:
        from .promises.command import main as promises

        return promises()
    try:
        experiments = chosen([name for names in options.only for name in names.split(",")])
    except ValueError as error:
        raise UsageError(f"argument --only: {error}") from None
    if options.list:
        show.show([list_of(experiments)])
        return 0
    if options.svg is not None:
        _prepare(options.svg)
    try:
        report = _measure(experiments, options)
        if options.json:
            show.write(as_json(report))
        elif not options.quiet:
            show.show([*tables(report), *conclusion(report)])
        if options.svg is not None:
            _draw(report, options.svg, options)
    except OSError as error:
        show.write(f"{options.parser.prog}: {error}", sys.stderr)
        return 1
    return 1 if report.otherwise else 0


def _prepare(folder: Path) -> None:
    """Make the folder. An error is reported before the experiments and not after them."""
    if not show.has_rich():
        raise UsageError("argument --svg: needs rich: pip install 'graceful-close[lab]'")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"argument --svg: {error}") from None


def _draw(report: Report, folder: Path, options: argparse.Namespace) -> None:
    from .files import write

    written = [f"wrote {file}" for file in write(report, folder)]
    if options.json:
        show.write("\n".join(written), sys.stderr)
    elif not options.quiet:
        show.write("\n".join(["", *written]))


def _measure(experiments: Sequence[Experiment], options: argparse.Namespace) -> Report:
    """Run the experiments one after the other."""
    findings: list[Finding] = []
    with _reporting(len(experiments), options) as begin:
        for experiment in experiments:
            timeline = begin(experiment, Report.of(findings))
            findings.append(experiment.run(timeline))
    return Report.of(findings)


@contextlib.contextmanager
def _reporting(
    total: int, options: argparse.Namespace
) -> Generator[Callable[[Experiment, Report], Timeline]]:
    """Yield a function that reports the beginning of each experiment."""
    quiet = options.json or options.quiet
    if not quiet and show.is_a_screen(sys.stdout):
        from .live import live

        with live(total) as begin_on_screen:
            yield begin_on_screen
    else:
        with show.progress(total, quiet=options.quiet) as begin:

            def begin_in_words(experiment: Experiment, _: Report) -> Timeline:
                begin(experiment.title)
                return Timeline()

            yield begin_in_words
