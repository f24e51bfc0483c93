"""The cost of graceful closes for a server of small requests, in requests per second.

    PYTHONPATH=src python -m benchmarks.requests_per_second [--servers NAMES] [--json FILE]

Both forms of a server run at the same time, and wrk measures them in turns (A B A B), once with
persistent connections and once with a new connection for each request. Server and wrk have one
processor each, if there are two. Each ratio is that of two consecutive rounds; the median is
shown. The table also has the ratio of the server's CPU for a request, because on a busy machine
the rounds do not get the same share of the processor.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .figures import all_take_turns
from .peers import apart
from .servers.places import loopback
from .servers.processes import server
from .servers.table import RECIPES, SERVERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .servers.processes import Server

# Servers with the same start command, and DrainMiddleware around their application.
_COMMANDS = ("uvicorn app:app", "gunicorn app:app", "gunicorn -k gthread")
_ROUNDS = 7
_SECONDS = 1
_CONNECTIONS = 8
_AT_LEAST = 0.95

_HEADERS: dict[str, tuple[str, ...]] = {
    "keep-alive": (),
    "a connection each": ("-H", "Connection: close"),
}
_RATE = re.compile(r"Requests/sec:\s*([\d.]+)")
_COUNT = re.compile(r"(\d+) requests in")
_ERRORS = re.compile(r"(Socket errors|Non-2xx).*")
_TICK = 1 / os.sysconf("SC_CLK_TCK")


class Round(NamedTuple):
    """One round of wrk.

    Attributes:
        rate: Requests per second.
        cpu: Microseconds of the server's CPU for each request.
        errors: The errors that wrk reported.
    """

    rate: float
    cpu: float
    errors: str


class Rates(NamedTuple):
    """One server, with one kind of connections."""

    server: str
    way: str
    before: list[Round]
    after: list[Round]

    @property
    def ratio(self) -> float:
        """The ratio of requests per second: graceful to as shipped."""
        pairs = zip(self.before, self.after, strict=True)
        return statistics.median(after.rate / before.rate for before, after in pairs)

    @property
    def cpu(self) -> float:
        """The ratio of CPU for a request: graceful to as shipped."""
        pairs = zip(self.before, self.after, strict=True)
        return statistics.median(after.cpu / before.cpu for before, after in pairs)


def measure(
    names: Sequence[str], rounds: int = _ROUNDS, seconds: int = _SECONDS
) -> list[Rates]:
    """Yield two results for each server."""
    rates: list[Rates] = []
    for name in names:
        with ExitStack() as stack:
            place = stack.enter_context(loopback())
            elsewhere = stack.enter_context(apart())  # the servers inherit the processor
            sides = {
                side: stack.enter_context(server(place, name, side))
                for side in ("before", "after")
            }
            for way, headers in _HEADERS.items():
                print(f"{name}, {way} ...", file=sys.stderr, flush=True)
                taken = all_take_turns(
                    rounds,
                    {
                        side: partial(_round, serving, headers, seconds, elsewhere)
                        for side, serving in sides.items()
                    },
                )
                rates.append(Rates(name, way, taken["before"], taken["after"]))
    return rates


def _round(
    serving: Server, headers: tuple[str, ...], seconds: int, processor: int | None
) -> Round:
    apart = [] if processor is None else ["taskset", "-c", str(processor)]
    began = _cpu_of(serving.session)
    said = subprocess.run(
        [*apart, "wrk", "-t1", f"-c{_CONNECTIONS}", f"-d{seconds}", *headers,
         f"http://127.0.0.1:{serving.port}/"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    spent = _cpu_of(serving.session) - began
    rate, count = _RATE.search(said), _COUNT.search(said)
    if rate is None or count is None or not int(count.group(1)):
        raise RuntimeError(f"wrk got no answer: {said}")
    errors = " ".join(line.group() for line in _ERRORS.finditer(said))
    return Round(float(rate.group(1)), 1e6 * spent / int(count.group(1)), errors)


def _cpu_of(session: int) -> float:
    """Return the seconds of CPU of all its processes: utime and stime of proc_pid_stat(5)."""
    spent = 0.0
    for process in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = process.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # the process has ended
        if int(fields[3]) == session:
            spent += (int(fields[11]) + int(fields[12])) * _TICK
    return spent


def table(rates: Sequence[Rates]) -> str:
    """Format the results as Markdown, with a row for each server."""
    head = ["server"]
    for way in _HEADERS:
        head += [f"{way}: requests/s as shipped", "graceful", "ratio", "CPU for each, ratio"]
    rows = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for name in dict.fromkeys(one.server for one in rates):
        row = [name]
        for one in rates:
            if one.server == name:
                row += [f"{statistics.median(r.rate for r in one.before):,.0f}"]
                row += [f"{statistics.median(r.rate for r in one.after):,.0f}"]
                row += [f"{one.ratio:.2f}", f"{one.cpu:.2f}"]
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.requests_per_second")
    parser.add_argument("--servers", default=",".join([*RECIPES, *_COMMANDS]), metavar="NAMES")
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--seconds", type=int, default=_SECONDS, help="of each round")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write all rounds to this file"
    )
    given = parser.parse_args()
    if shutil.which("wrk") is None:
        parser.error("wrk is not installed")
    names: list[str] = given.servers.split(",")
    for name in names:
        if name not in SERVERS:
            parser.error(f"unknown name {name} (choose from {', '.join(SERVERS)})")
    rates = measure(
        [name for name in names if SERVERS[name].why_not() is None], given.rounds, given.seconds
    )
    print(table(rates))
    missed = [f"{one.server}, {one.way}" for one in rates if one.ratio < _AT_LEAST]
    print(f"\nMore than 5 % lower: {'; '.join(missed) or 'none'}")
    if given.json:
        found: dict[str, Any] = {
            "python": platform.python_version(),
            "system": platform.platform(),
            "processors": os.cpu_count(),
            "rates": [
                {
                    "server": one.server,
                    "way": one.way,
                    "ratio": one.ratio,
                    "cpu_ratio": one.cpu,
                    "before": [round_._asdict() for round_ in one.before],
                    "after": [round_._asdict() for round_ in one.after],
                }
                for one in rates
            ],
        }
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
