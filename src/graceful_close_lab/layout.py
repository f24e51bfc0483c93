"""Tables and sentences as lines that are no wider than there is room: nothing is cut."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .tables import Table, Words

_SENTENCES = 80  # the widest that running text is easy to read
_NARROWEST = 20  # with less room than this, lines are longer than the room
_GAP = 2
_NO_BREAK = "\xa0"
_LEAST_FOR_THE_LAST = 24  # the narrowest that a last column is wrapped to. Arbitrary.


class Piece(NamedTuple):
    """A part of a line.

    Attributes:
        text: What it says.
        style: "title", "caption", "heading", "rule", "good", "bad", or "" for none.
    """

    text: str
    style: str = ""


Line = list[Piece]


def wrap(text: str, width: int, first: str = "", others: str = "") -> list[str]:
    """Running text in lines of at most `width` characters, and of `_SENTENCES`.

    A name with a hyphen in it stays in one piece, and so does a command in `backquotes`; only what
    is too long is broken.

    Args:
        text: What it says.
        width: How much room there is.
        first: What stands before the first line.
        others: What stands before every other.
    """
    kept = re.sub("`[^`]*`", lambda command: command[0].replace(" ", _NO_BREAK), text)
    lines = textwrap.wrap(
        kept,
        min(max(width, _NARROWEST), _SENTENCES),
        initial_indent=first,
        subsequent_indent=others,
        break_on_hyphens=False,
    )
    return [line.replace(_NO_BREAK, " ") for line in lines]


def lay_out(table: Table, width: int) -> list[Line]:
    """A table as lines of at most `width` characters.

    It is a grid if that fits, with its last column wrapped if need be; else each row is a
    paragraph that names the columns.
    """
    width = max(width, _NARROWEST)
    caption = sentence(table.caption, width, "caption")
    rows = grid(table, width) or _paragraphs(table, width)
    return [*sentence(table.title, width, "title"), *caption, [], *rows]


def sentence(text: str, width: int, style: str = "") -> list[Line]:
    """Running text, wrapped."""
    return [[Piece(line, style)] for line in wrap(text, width)]


def news(words: Words) -> str:
    """The style of a cell, or of a sentence."""
    return {True: "good", False: "bad", None: ""}[words.good]


def grid(table: Table, width: int) -> list[Line] | None:
    """The rows under their headings; None: there is no room for that."""
    widths = [
        max(len(column.heading), *(len(row[n].text) for row in table.rows), 0)
        for n, column in enumerate(table.columns)
    ]
    room = width - sum(widths[:-1]) - _GAP * (len(widths) - 1)
    if room < widths[-1]:
        if room < _LEAST_FOR_THE_LAST or table.columns[-1].right:
            return None
        widths[-1] = room
    headings = [Piece(column.heading, "heading") for column in table.columns]
    rules = [Piece("-" * size, "rule") for size in widths]
    lines = [_line(table, widths, headings), _line(table, widths, rules)]
    for row in table.rows:
        *cells, last = ([Piece(cell.text, news(cell))] for cell in row)
        wrapped = wrap(last[0].text, widths[-1]) or [""]
        cells.append([Piece(text, last[0].style) for text in wrapped])
        for n in range(len(wrapped)):
            line = [cell[n] if n < len(cell) else Piece("") for cell in cells]
            lines.append(_line(table, widths, line))
    return lines


def _line(table: Table, widths: Sequence[int], cells: Iterable[Piece]) -> Line:
    line: Line = []
    behind = ""  # the space that is owed: none of it stands at a line's end
    for (text, style), width, column in zip(cells, widths, table.columns, strict=True):
        space = " " * (width - len(text))
        if text:
            line.append(Piece(behind + (space if column.right else "")))
            line.append(Piece(text, style))
            behind = "" if column.right else space
        else:
            behind += space
        behind += " " * _GAP
    return [piece for piece in line if piece.text]


def _paragraphs(table: Table, width: int) -> list[Line]:
    lines: list[Line] = []
    for first, *others in table.rows:
        if lines and len(others) > 1:
            lines.append([])
        lines += [[Piece(text, "heading")] for text in wrap(first.text, width, others="  ")]
        for column, cell in zip(table.columns[1:], others, strict=True):
            if not cell.text:
                continue
            said = cell.text if len(others) == 1 else f"{column.heading}: {cell.text}"
            wrapped = wrap(said, width, "  ", "    ")
            lines += [[Piece(text, news(cell))] for text in wrapped]
    return lines
