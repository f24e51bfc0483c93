"""What the cells come to: percentages, and the tables that show them."""

from __future__ import annotations

from itertools import product
from statistics import mean
from typing import TYPE_CHECKING

from .matrix import SIDES
from .servers import SERVERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .matrix import Cell

_UNITS = ((1_000_000, "MB"), (1 << 10, "KiB"))


def size(count: int) -> str:
    """As people write it: 5 MB, 64 KiB."""
    for unit, name in _UNITS:
        if count >= unit and count % unit == 0:
            return f"{count // unit} {name}"
    return f"{count} B"


def percent(cells: Iterable[Cell]) -> float | None:
    """Replies that arrived whole. Each cell counts the same; None: there is no cell."""
    shares = [cell.whole / cell.tries for cell in cells if cell.tries]
    return 100 * mean(shares) if shares else None


def shown(share: float | None) -> str:
    """Rounded, but neither to nothing nor to all of it."""
    if share is None:
        return ""
    if 0 < share < 1:
        return "< 1 %"
    if 99 < share < 100:
        return "> 99 %"
    return f"{share:.0f} %"


def table_by_server(cells: list[Cell]) -> str:
    """A row for each server; a column for each place, size of reply and side."""
    places = _distinct(cells, lambda cell: cell.where)
    replies = sorted({cell.reply for cell in cells if cell.reply is not None})
    columns = list(product(places, replies, SIDES))
    head = ["server", "made graceful by"]
    head += [f"{where}, {size(reply)}: {side}" for where, reply, side in columns]
    rows = [
        [
            name,
            f"`{SERVERS[name].after}`"
            if "raceful" in SERVERS[name].after
            else SERVERS[name].after,
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


def table_by_client(cells: list[Cell]) -> str:
    """A row for each client; a column for each place, size of reply and upload, as shipped."""
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
    """A line for each cell that should be at 100 % and is not, with what the clients said."""
    return [
        f"{cell.where}: {cell.server}, {cell.client}, {size(cell.upload)} up, "
        f"{'its own reply' if cell.reply is None else size(cell.reply) + ' down'}: "
        f"{cell.whole} of {cell.tries}: {dict(cell.said)}"
        for cell in cells
        if cell.side == "after" and cell.whole < cell.tries
    ]


def _distinct(cells: Iterable[Cell], of: Callable[[Cell], str]) -> list[str]:
    return list(dict.fromkeys(map(of, cells)))


def _markdown(head: list[str], rows: list[list[str]], *, right: int) -> str:
    """A table whose columns are numbers from the one with the number `right` on."""
    rule = ["---" if column < right else "---:" for column in range(len(head))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))
