"""The command line of the lab."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from . import linger_experiments, lost_reply, this_platform
from .report import Report, as_json
from .show import progress, show
from .tables import conclusion, tables

if TYPE_CHECKING:
    from collections.abc import Sequence

_INTERRUPTED = 130  # 128 and the number of SIGINT: what a shell says of it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the lab.

    Args:
        arguments: What stands on the command line; None: `sys.argv`.

    Returns:
        The exit code: 0 if graceful_close lost nothing, 1 if it did or the loopback does not
        work, 130 after an interrupt. A mistake on the command line exits with 2 (argparse).
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        report = _measure()
        if options.json:
            print(as_json(report))
        else:
            show(tables(report), conclusion(report))
    except KeyboardInterrupt:
        return _INTERRUPTED
    except OSError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return 0 if report.lost_nothing else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m graceful_close",
        description="See on this machine's loopback what each way to close a TCP connection "
        "does to data that was not sent, or not read, yet. It takes a few seconds.",
        epilog="The exit code is 0 only if graceful_close lost nothing.",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the report as JSON instead of tables"
    )
    return parser


def _measure() -> Report:
    """Everything, one after the other."""
    total = len(linger_experiments.WAYS) + len(lost_reply.WAYS) + 1
    with progress(total) as begin:
        runs: list[linger_experiments.LingerRun] = []
        for linger_way in linger_experiments.WAYS:
            begin(f"unsent output: {linger_way.name}")
            runs.append(linger_experiments.run(linger_way))
        replies: list[lost_reply.Replies] = []
        for reply_way in lost_reply.WAYS:
            begin(f"unread input: {reply_way.name}")
            replies.append(lost_reply.run(reply_way))
        begin("this platform")
        return Report(tuple(runs), tuple(replies), this_platform.examine())
