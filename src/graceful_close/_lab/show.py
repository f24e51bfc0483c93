"""Tables on stdout and progress on stderr: by rich in a terminal, if it is installed.

Everywhere else, in a pipe, a file or a dumb terminal, it is plain text.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from typing import TextIO

    from .tables import Table, Words

_WIDTH = 80  # of plain text: what every terminal has


def show(tables: Sequence[Table], conclusion: Words) -> None:
    """Print the tables, and a last line, to stdout."""
    if _takes_colour(sys.stdout):
        _show_richly(tables, conclusion)
    else:
        print("\n\n".join([*map(_plain_table, tables), conclusion.text]))


@contextlib.contextmanager
def progress(total: int) -> Generator[Callable[[str], None]]:
    """Tell on stderr what goes on.

    Args:
        total: How many steps there will be.

    Yields:
        What to call at the beginning of each step, with its name.
    """
    with contextlib.ExitStack() as stack:
        yield (
            stack.enter_context(_rich_progress(total))
            if _takes_colour(sys.stderr)
            else _plain_progress(total)
        )


def _takes_colour(stream: TextIO) -> bool:
    """Whether rich is here and has a terminal to write to."""
    if not stream.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        return False
    try:
        importlib.import_module("rich")  # the lab extra
    except ImportError:
        return False
    return True


# --- plain text ------------------------------------------------------------------------------


def _plain_table(table: Table) -> str:
    columns = list(
        zip(
            [column.heading for column in table.columns],
            *([cell.text for cell in row] for row in table.rows),
            strict=True,
        )
    )
    widths = [max(map(len, column)) for column in columns]
    headings, *rows = zip(*columns, strict=True)
    lines = (
        "  ".join(
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(line, widths, table.columns, strict=True)
        ).rstrip()
        for line in (headings, ["-" * width for width in widths], *rows)
    )
    return "\n".join([table.title, textwrap.fill(table.caption, _WIDTH), "", *lines])


def _plain_progress(total: int) -> Callable[[str], None]:
    done = 0

    def begin(name: str) -> None:
        nonlocal done
        done += 1
        print(f"[{done:{len(str(total))}}/{total}] {name}", file=sys.stderr, flush=True)

    return begin


# --- rich ------------------------------------------------------------------------------------


def _show_richly(tables: Sequence[Table], conclusion: Words) -> None:
    from rich import box
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table as RichTable
    from rich.text import Text

    def styled(words: Words) -> Text:
        return Text(words.text, {True: "green", False: "red", None: ""}[words.good])

    console = Console()
    for table in tables:
        # No frame, and one space beside the divider's: as narrow as the plain text.
        grid = RichTable(
            box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0)
        )
        for column in table.columns:
            grid.add_column(column.heading, justify="right" if column.right else "left")
        for row in table.rows:
            grid.add_row(*map(styled, row))
        console.print(Text(table.title, "bold"))
        console.print(Text(table.caption, "dim"))
        console.print(Padding(grid, (1, 0, 2, 0)))
    console.print(styled(conclusion))


@contextlib.contextmanager
def _rich_progress(total: int) -> Generator[Callable[[str], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    bar = Progress(
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.description}", markup=False),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task("", total=total)
        begun = 0

        def begin(name: str) -> None:
            nonlocal begun
            bar.update(task, description=name, completed=begun)
            begun += 1

        yield begin
