"""The tables, as Markdown."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from .measure import SIDES
from .upstreams import UPSTREAMS

if TYPE_CHECKING:
    from .measure import Cell

_LONG = 400  # characters
_HARDLY = 0.1


def fragment(cells: list[Cell], command: str) -> str:
    """Return all tables. Each is between two comments, so that a page can include it."""
    parts = {"replies": f"{replies(cells)}\n\n{_sums(cells)}", "log": logs(cells)}
    parts["lines"] = f"```text\n{lines_of(cells)}\n```"
    marked = [
        f"<!-- begin: {name} -->\n\n{part}\n\n<!-- end: {name} -->"
        for name, part in parts.items()
    ]
    return "\n\n".join([f"<!-- Written by `{command}`. -->", *marked]) + "\n"


def replies(cells: list[Cell]) -> str:
    """Return two rows for each server, a column for each proxy: right replies, and failures."""
    proxies = list(dict.fromkeys(cell.proxy for cell in cells))
    found = {(cell.upstream, cell.proxy, cell.side): cell for cell in cells}
    lines = [_row(["server", *proxies]), _row(["---"] * (len(proxies) + 1))]
    for name in dict.fromkeys(cell.upstream for cell in cells):
        for side in SIDES:
            row = [found.get((name, proxy, side)) for proxy in proxies]
            first = f"`{name}`" if side == SIDES[0] else f"with {UPSTREAMS[name].cure}"
            lines.append(_row([first, *(_count(cell) if cell else "" for cell in row)]))
    return "\n".join(lines)


def _count(cell: Cell) -> str:
    right = f"{cell.right} of {cell.tries}"
    if cell.right == cell.tries:
        return f"**{right}**"
    return ", ".join([right, *(f"{kind}: {count}" for kind, count in cell.ends.most_common())])


def _sums(cells: list[Cell]) -> str:
    """Return a row for each proxy: right replies before and after, and failures."""
    lines = [_row(["proxy", "as started", "afterwards"]), "| --- | --- | --- |"]
    for proxy in [*dict.fromkeys(cell.proxy for cell in cells), None]:
        row = ["all" if proxy is None else proxy]
        for side in SIDES:
            here = [c for c in cells if c.side == side and proxy in (None, c.proxy)]
            ends = sum((cell.ends for cell in here), Counter[str]())
            right, tries = sum(cell.right for cell in here), sum(cell.tries for cell in here)
            lost = [f"{kind}: {count:,}" for kind, count in ends.most_common()]
            row.append(", ".join([f"{right:,} of {tries:,}", *lost]))
        lines.append(_row(row))
    return "\n".join(lines)


def logs(cells: list[Cell]) -> str:
    """Return the kinds of lines in each proxy's log, before and after."""
    lines = [_row(["proxy", "its log says", "before", "after"]), "| --- | --- | ---: | ---: |"]
    for proxy in dict.fromkeys(cell.proxy for cell in cells):
        counts = {
            side: sum(
                (cell.log for cell in cells if (cell.proxy, cell.side) == (proxy, side)),
                Counter[str](),
            )
            for side in SIDES
        }
        for kind, _ in sum(counts.values(), Counter[str]()).most_common():
            numbers = [str(counts[side][kind]) for side in SIDES]
            lines.append(_row([proxy, f"`{kind}`", *numbers]))
    return "\n".join(lines)


def lines_of(cells: list[Cell]) -> str:
    """Return a log line of each kind that is frequent before and rare after, unchanged.

    Long lines are shortened.
    """
    before, after = (
        sum((cell.log for cell in cells if cell.side == side), Counter[str]()) for side in SIDES
    )
    found: dict[tuple[str, str], str] = {}
    for cell in cells:
        for kind, line in cell.lines.items():
            if after[kind] < before[kind] * _HARDLY:
                found.setdefault((cell.proxy.partition(",")[0], kind), line)
    return "\n".join(
        line if len(line) <= _LONG else f"{line[:_LONG]}..." for line in found.values()
    )


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
