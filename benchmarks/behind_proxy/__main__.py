"""Early replies behind nginx, HAProxy and Caddy: `python -m benchmarks.behind_proxy`, on Linux."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from . import tables
from .measure import CLIENTS, UPLOAD, Cell, run
from .proxies import PROXIES
from .upstreams import UPSTREAMS

_TRIES = 20


def main() -> None:
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # so that started processes are ended
    given = _arguments()
    cells: list[Cell] = []
    if given.again:
        read = (
            Cell.from_dict(kept)
            for file in given.again
            for kept in json.loads(file.read_text())["cells"]
        )
        order = list(UPSTREAMS)
        cells = sorted(
            {cell.what: cell for cell in read}.values(),
            key=lambda cell: order.index(cell.upstream),
        )
    else:
        upstreams = [name for name in given.upstreams if not _left_out(name, _missing(name))]
        proxies = [
            name for name in given.proxies if not _left_out(name, PROXIES[name].why_not())
        ]
        began = time.monotonic()

        def report(more: list[Cell]) -> None:
            cells.extend(more)
            for cell in more:
                counts = f"{cell.right} of {cell.tries}, {dict(cell.ends)}"
                print(f"{cell.upstream}, {cell.proxy}, {cell.side}: {counts}", file=sys.stderr)
            if given.json:  # after each, because a run takes long
                _write(given.json, cells, proxies, time.monotonic() - began)

        run(upstreams, proxies, given.tries, report)
    print(tables.fragment(cells, "python -m benchmarks.behind_proxy"))
    if given.markdown:
        command = f"python -m benchmarks.behind_proxy --markdown {given.markdown}"
        given.markdown.write_text(tables.fragment(cells, command), encoding="utf-8")
    if given.chart:
        from .chart import draw  # needs matplotlib

        given.chart.write_text(draw(cells), encoding="utf-8")


def _write(file: Path, cells: list[Cell], proxies: list[str], seconds: float) -> None:
    packages = {UPSTREAMS[cell.upstream].package for cell in cells} | {"requests"}
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "seconds": round(seconds),
        "upload": UPLOAD,
        "clients": CLIENTS,
        "proxies": {name: PROXIES[name].version_of() for name in proxies},
        "packages": {package: metadata.version(package) for package in sorted(packages)},
        "cells": [cell.as_dict() for cell in cells],
    }
    file.write_text(json.dumps(found, indent=1) + "\n")


def _missing(name: str) -> str | None:
    try:
        metadata.version(UPSTREAMS[name].package)
    except metadata.PackageNotFoundError as error:
        return f"{error.name} is not installed"
    return None


def _left_out(name: str, reason: str | None) -> bool:
    if reason is not None:
        print(f"Without {name}: {reason}.", file=sys.stderr)
    return reason is not None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.behind_proxy",
        description="Measure how many early replies arrive through a proxy: from "
        "servers as they are started, and made graceful.",
    )
    parser.add_argument("--upstreams", nargs="+", choices=UPSTREAMS, default=list(UPSTREAMS))
    parser.add_argument("--proxies", nargs="+", choices=PROXIES, default=list(PROXIES))
    parser.add_argument("--tries", type=int, default=_TRIES, metavar="N",
                        help=f"tries of each client with each reply; the default is {_TRIES}")  # fmt: skip
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write all cells to this file"
    )
    parser.add_argument("--again", type=Path, metavar="FILE", nargs="+",
                        help="read the cells from these files of --json, and try nothing; "
                        "if several files have a cell, the last one counts")  # fmt: skip
    parser.add_argument("--markdown", type=Path, metavar="FILE",
                        help="write the tables to this file, as Markdown")  # fmt: skip
    parser.add_argument(
        "--chart", type=Path, metavar="FILE.svg", help="draw the chart to this file"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
