"""The summary of cells: percentages, and tables."""

from __future__ import annotations

from itertools import product
from statistics import mean
from typing import TYPE_CHECKING

from .table import RECIPES, SERVERS, SIDES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .matrix import Cell

_SHORT = 1 << 10
_PLACES = {"loopback": "On loopback", "wire": "Over a link with 20 ms of delay each way"}
_UNITS = ((1_000_000, "MB"), (1 << 10, "KiB"))


def size(count: int) -> str:
    """Format a size: 5 MB, 64 KiB."""
    for unit, name in _UNITS:
        if count >= unit and count % unit == 0:
            return f"{count // unit} {name}"
    return f"{count} B"


def percent(cells: Iterable[Cell]) -> float | None:
    """Return the percentage of complete replies, with equal weights; None: no cell."""
    shares = [cell.whole / cell.tries for cell in cells if cell.tries]
    return 100 * mean(shares) if shares else None


def shown(share: float | None) -> str:
    """Round a percentage, but not to 0 or 100 unless it is exact."""
    if share is None:
        return ""
    if 0 < share < 1:
        return "< 1 %"
    if 99 < share < 100:
        return "> 99 %"
    return f"{share:.0f} %"


def table_by_server(cells: list[Cell]) -> str:
    """Return a row for each server, and a column for each place, size of reply and side."""
    places = _distinct(cells, lambda cell: cell.where)
    replies = sorted({cell.reply for cell in cells if cell.reply is not None})
    columns = list(product(places, replies, SIDES))
    head = ["server", "made graceful by"]
    head += [f"{where}, {size(reply)}: {side}" for where, reply, side in columns]
    rows = [
        [
            name,
            SERVERS[name].after,
            *(
                shown(
                    percent(
                        cell
                        for cell in cells
                        if (cell.server, cell.where, cell.side) == (name, where, side)
                        and cell.reply in (reply, None)
                    )
                )
                for where, reply, side in columns
            ),
        ]
        for name in _distinct(cells, lambda cell: cell.server)
    ]
    return _markdown(head, rows, right=2)


def counts(cells: list[Cell], where: str, upload: int, short: bool) -> str:
    """Count the complete replies in one place, from servers as started, and graceful.

    The table has a row for each server, and a column for each client.
    """
    here = [
        cell
        for cell in cells
        if (cell.where, cell.upload) == (where, upload)
        and (cell.reply is None or (cell.reply <= _SHORT) == short)
    ]
    clients = _distinct(here, lambda cell: cell.client)
    head = ["server", *clients, "then", "with"]
    rows: list[list[str]] = []
    for name in _distinct(here, lambda cell: cell.server):
        row = [cell for cell in here if cell.server == name]
        by_client = {cell.client: cell for cell in row if cell.side == SIDES[0]}
        after = [cell for cell in row if cell.side == SIDES[1]]
        then = f"{sum(cell.whole for cell in after)} of {sum(cell.tries for cell in after)}"
        numbers = [f"{by_client[who].whole}" if who in by_client else "" for who in clients]
        cure = SERVERS[name].after
        rows.append([name, *numbers, then if after else "", cure or "needs nothing"])
    return _markdown(head, rows, right=1, text=len(head) - 1)


def fragment(cells: list[Cell], command: str) -> str:
    """Return the tables of the servers that are started by a command, as Markdown.

    Each table is between two comments, so that a page can include one.
    """
    order = list(SERVERS)
    by_command = sorted(
        (cell for cell in cells if cell.server not in RECIPES),
        key=lambda cell: order.index(cell.server),
    )
    parts = [f"<!-- Written by `{command}`. -->"]
    for where, upload, tries in sorted(
        {(cell.where, cell.upload, cell.tries) for cell in by_command}
    ):
        for short, says in ((True, "a short 401"), (False, "a 413 of 64 KiB")):
            mark = f"{where}, {'short' if short else 'long'}"
            said = f"{_PLACES[where]}, {size(upload)} refused with {says}"
            parts += [
                f"<!-- begin: {mark} -->",
                f"{said}: whole replies, of {tries} for each client.",
                counts(by_command, where, upload, short),
                f"<!-- end: {mark} -->",
            ]
    remains = [
        f"- {cell.server}, `{cell.client}`, {_PLACES[cell.where].lower()}: {cell.whole} of "
        f"{cell.tries} afterwards; it said {', '.join(f'`{said}`' for said in cell.said)}."
        for cell in by_command
        if cell.side == SIDES[1] and cell.whole < cell.tries
    ]
    return "\n\n".join([*parts, "\n".join(remains) or "Afterwards, none was lost."]) + "\n"


def table_by_client(cells: list[Cell]) -> str:
    """Return a row for each client, and a column for each place, reply and upload."""
    shipped = [cell for cell in cells if cell.side == "before" and cell.reply is not None]
    places = _distinct(cells, lambda cell: cell.where)
    replies = sorted({cell.reply for cell in shipped if cell.reply is not None})
    uploads = sorted({cell.upload for cell in cells})
    columns = list(product(places, replies, uploads))
    head = ["client"]
    head += [f"{where}, {size(reply)} to {size(upload)}" for where, reply, upload in columns]
    rows = [
        [
            name,
            *(
                shown(
                    percent(
                        cell
                        for cell in shipped
                        if (cell.client, cell.where, cell.reply, cell.upload) == (name, *column)
                    )
                )
                for column in columns
            ),
        ]
        for name in _distinct(cells, lambda cell: cell.client)
    ]
    return _markdown(head, rows, right=1)


def lost(cells: list[Cell]) -> list[str]:
    """Return a line with the clients' messages for each cell that should be at 100 %."""
    return [
        f"{cell.where}: {cell.server}, {cell.client}, {size(cell.upload)} up, "
        f"{'its own reply' if cell.reply is None else size(cell.reply) + ' down'}: "
        f"{cell.whole} of {cell.tries}: {dict(cell.said)}"
        for cell in cells
        if cell.side == "after" and cell.whole < cell.tries
    ]


def _distinct(cells: Iterable[Cell], of: Callable[[Cell], str]) -> list[str]:
    return list(dict.fromkeys(map(of, cells)))


def _markdown(
    head: list[str], rows: list[list[str]], *, right: int, text: int | None = None
) -> str:
    """Format a table; the columns from number `right` to `text` are numbers."""
    numbers = range(right, len(head) if text is None else text)
    rule = ["---:" if column in numbers else "---" for column in range(len(head))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))
