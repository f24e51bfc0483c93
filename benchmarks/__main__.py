"""Run the benchmarks: `python -m benchmarks [NAME ...] [--json FILE] [--markdown] [--calls]`."""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib import import_module
from itertools import chain
from pathlib import Path

from .figures import Figure, markdown, table
from .system_calls import listing

_NAMES = (
    "one_close",
    "many",
    "silent_peers",
    "scaling",
    "event_loop",
    "tls_close",
    "listener",
    "reaper_memory",
    "loop_stall",
    "drain",
    "acknowledgement",
    "system_calls",
    "import_time",
    "watch",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the cost of the package, compared with alternatives.",
        epilog="Three benchmarks that take longer are separate programs: `python -m benchmarks.servers` "
        "and `python -m benchmarks.behind_proxy` (what it gains), and `python -m "
        "benchmarks.requests_per_second`.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(_NAMES)}")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write all figures to this file"
    )
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--calls", action="store_true", help="list the system calls")
    given = parser.parse_args()
    for name in given.names:
        if name not in _NAMES:
            parser.error(f"unknown name {name} (choose from {', '.join(_NAMES)})")

    measured: dict[str, list[Figure]] = {}
    for name in given.names or _NAMES:
        print(f"{name} ...", flush=True)
        measured[name] = import_module(f"benchmarks.{name}").measure()
    figures = list(chain.from_iterable(measured.values()))
    print()
    print((markdown if given.markdown else table)(figures))
    if given.calls:
        print()
        print(listing(figures))
    if given.json:
        given.json.write_text(
            json.dumps(
                {
                    "python": platform.python_version(),
                    "system": platform.platform(),
                    "processors": os.cpu_count(),
                    "figures": {
                        name: [figure.as_dict() for figure in some]
                        for name, some in measured.items()
                    },
                },
                indent=2,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
