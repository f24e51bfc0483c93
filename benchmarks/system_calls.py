"""The system calls of one close, listed by strace, and those of a wait without an answer."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .figures import Figure, Target
from .traced_closes import BEGIN, END, WAITS

_MARK = re.compile(rf'write\(-1, "({BEGIN}|{END})(.*)", \d+\)')
_CALL = re.compile(r"(\w+)\(")

_MOST = 12


def measure() -> list[Figure]:
    """Return a figure for each kind of close; none without strace."""
    strace = shutil.which("strace")
    if strace is None:
        print("system calls: not counted, there is no strace here", file=sys.stderr)
        return []
    calls = _trace(strace)
    theirs = calls.pop("idiom")
    figures = [_figure("graceful_close, blocking", calls, theirs, Target("ours", _MOST))]
    figures += [
        _figure(name, calls, theirs, None if "timed" in name else Target("ours", _MOST))
        for name in sorted(calls)
        if "no answer" not in name and name != "graceful_close, blocking"
    ]
    short, long = WAITS
    for name in ("graceful_close", "timed_linger_close"):
        brief, lengthy = (
            calls[f"{name}, {short} s, no answer"],
            calls[f"{name}, {long} s, no answer"],
        )
        figures.append(
            Figure(
                f"{name}, {long:g} s, no answer",
                "calls",
                len(lengthy),
                len(brief),
                f"the same, {short:g} s, no answer",
                Target("ratio", 1.0),
                {"calls": lengthy},
            )
        )
    return figures


def _figure(
    name: str, calls: dict[str, list[str]], theirs: list[str], target: Target | None
) -> Figure:
    return Figure(
        name,
        "calls",
        len(calls[name]),
        len(theirs),
        "idiom",
        target,
        {"calls": calls[name], "calls_of_idiom": theirs},
    )


def _trace(strace: str) -> dict[str, list[str]]:
    """Return the system calls between the marks, by the name in the marks.

    strace follows the closing thread only (no -f), because the peer is a forked child. If a
    close started a thread, its clone() would be listed.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "strace")
        subprocess.run(
            [
                *(strace, "-qq", "-s", "100", "-o", str(log)),
                *(sys.executable, "-m", "benchmarks.traced_closes"),
            ],
            check=True,
            cwd=Path(__file__).parents[1],
            timeout=60,
        )
        lines = log.read_text().splitlines()
    calls: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in lines:
        if mark := _MARK.match(line):
            current = calls.setdefault(mark[2], []) if mark[1] == BEGIN else None
        elif current is not None and _CALL.match(line):
            current.append(line)
    return calls


def listing(figures: list[Figure]) -> str:
    """Format the calls as text."""
    lines: list[str] = []
    for figure in figures:
        if calls := figure.details.get("calls"):
            lines += [f"{figure.what}:", *(f"    {call}" for call in calls)]
    return "\n".join(lines)
