"""The tables of complete replies: `python -m benchmarks.servers`, as root."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import chart, summary
from .clients import CLIENTS, versions
from .commands import COMMANDS
from .matrix import Cell, Extent, run
from .places import DELAY, PLACES, why_no_wire
from .table import RECIPES, SERVERS

_COMMAND = "python -m benchmarks.servers --servers commands --markdown"
_GROUPS = {"commands": list(COMMANDS), "recipes": list(RECIPES)}
_UNITS = {"KIB": 1 << 10, "MB": 1_000_000}
_UPLOADS = (64 << 10, 1_000_000, 5_000_000, 50_000_000)
_REPLIES = (1 << 10, 64 << 10)

# A try with 50 MB takes longer than all other tries of its row, and takes seconds over the
# wire.
_LARGE = 50_000_000
_TRIES = 5


def main() -> None:
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # so that started processes are ended
    given = _arguments()
    if given.again:
        read = (
            Cell.from_dict(kept)
            for file in given.again
            for kept in json.loads(file.read_text())["cells"]
        )
        cells = list({cell.what: cell for cell in read}.values())
    else:
        began = time.monotonic()
        cells = _tried(_extents(given))
        if given.json:
            _write(given.json, cells, time.monotonic() - began)
    _show(cells)
    if given.markdown:
        given.markdown.write_text(summary.fragment(cells, _COMMAND), encoding="utf-8")
    if given.chart:
        given.chart.write_text(chart.draw(cells), encoding="utf-8")


def _extents(given: argparse.Namespace) -> dict[str, Extent]:
    """Return the tries to make, by place."""
    places = ["loopback", "wire"] if given.where == "both" else [given.where]
    reason = why_no_wire()
    if "wire" in places and reason is not None:
        print(f"Loopback only: {reason}.", file=sys.stderr)
        places = ["loopback"]
    servers = [name for name in given.servers if not _left_out(name)]

    def tries(upload: int) -> int:
        return given.tries or (1 if upload >= _LARGE else _TRIES)

    def uploads(place: str) -> list[int]:
        usual = [size for size in _UPLOADS if place == "loopback" or size < _LARGE]
        return given.uploads or usual

    return {
        place: Extent(servers, given.clients, uploads(place), given.replies, tries)
        for place in places
    }


def _tried(extents: dict[str, Extent]) -> list[Cell]:
    cells: list[Cell] = []
    with Progress(
        TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(),
    ) as progress:  # fmt: skip
        task = progress.add_task("", total=sum(extent.in_all() for extent in extents.values()))

        def report(what: str, more: int) -> None:
            progress.update(task, description=what, advance=more)

        for name, extent in extents.items():
            with PLACES[name]() as place:
                cells += run(place, extent, report)
    return cells


def _show(cells: list[Cell]) -> None:
    print(summary.table_by_server(cells))
    print("\nAs shipped, by client:\n")
    print(summary.table_by_client(cells))
    lost = summary.lost(cells)
    print(f"\nCells that are not at 100 % afterwards: {len(lost)}", *lost, sep="\n")


def _write(file: Path, cells: list[Cell], seconds: float) -> None:
    names = dict.fromkeys(cell.server for cell in cells)
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "seconds": round(seconds),
        "delay": DELAY,
        "servers": {
            name: SERVERS[name].versions()
            | {"after": SERVERS[name].after, "note": SERVERS[name].note}
            for name in names
        },
        "clients": versions(),
        "cells": [cell.as_dict() for cell in cells],
    }
    file.write_text(json.dumps(found, indent=1) + "\n")


def _left_out(name: str) -> bool:
    reason = SERVERS[name].why_not()
    if reason is not None:
        print(f"Without {name}: {reason}.", file=sys.stderr)
    return reason is not None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.servers",
        description="Measure how many early replies to an upload arrive complete: from "
        "servers as shipped, and made graceful.",
    )
    parser.add_argument("--servers", type=_names_of(SERVERS), default=list(COMMANDS),
                        metavar="NAMES",
                        help=f"commands, recipes, or of {', '.join(SERVERS)}")  # fmt: skip
    parser.add_argument("--clients", type=_names_of(CLIENTS), default=list(CLIENTS),
                        metavar="NAMES", help=f"of {', '.join(CLIENTS)}")  # fmt: skip
    parser.add_argument("--uploads", type=_sizes, metavar="SIZES",
                        help="64KiB,1MB,5MB,50MB; without it, 50MB on loopback only")  # fmt: skip
    parser.add_argument("--replies", type=_sizes, default=list(_REPLIES), metavar="SIZES",
                        help="1KiB,64KiB")  # fmt: skip
    parser.add_argument("--tries", type=int, metavar="N",
                        help=f"tries for each cell; the default is {_TRIES}, and 1 at 50 MB")  # fmt: skip
    parser.add_argument("--where", choices=("loopback", "wire", "both"), default="both",
                        help="the wire has 20 ms of one-way delay, and needs root")  # fmt: skip
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write all cells to this file"
    )
    parser.add_argument("--again", type=Path, metavar="FILE", nargs="+",
                        help="read the cells from these files of --json, and try nothing; "
                        "if several files have a cell, the last one counts")  # fmt: skip
    parser.add_argument("--markdown", type=Path, metavar="FILE",
                        help="write the tables of the commands to this file, as Markdown")  # fmt: skip
    parser.add_argument(
        "--chart", type=Path, metavar="FILE", help="draw the chart to this file, as SVG"
    )
    return parser.parse_args()


def _names_of(known: dict[str, Any]) -> Any:
    def names(text: str) -> list[str]:
        given = [one for name in text.split(",") for one in _GROUPS.get(name, [name])]
        for name in given:
            if name not in known:
                choice = ", ".join(known)
                raise argparse.ArgumentTypeError(f"unknown name {name} (choose from {choice})")
        return given

    return names


def _sizes(text: str) -> list[int]:
    return [_size(one) for one in text.split(",")]


def _size(text: str) -> int:
    for unit, count in _UNITS.items():
        number = text.upper().removesuffix(unit)
        if number != text.upper() and number.isdigit():
            return int(number) * count
    if text.isdigit():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text} is no size such as 64KiB or 5MB")


if __name__ == "__main__":
    main()
