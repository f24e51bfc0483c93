"""Tables and sentences as wrapped lines of a limited width."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .tables import Table, Words

_SENTENCES = 80  # characters: longer lines are hard to read
_NARROWEST = 20  # lines are wrapped to at least this width
_GAP = 2
_NO_BREAK = "\xa0"
_LEAST_FOR_THE_LAST = 24  # the narrowest wrapped last column. A heuristic.


class Piece(NamedTuple):
    """A part of a line.

    Attributes:
        text: The text. style: "title", "caption", "heading", "rule", "good", "bad", or "" for
            none.
    """

    text: str
    style: str = ""


Line = list[Piece]


def wrap(text: str, width: int, first: str = "", others: str = "") -> list[str]:
    """Wrap text into lines of at most `width` characters, and at most `_SENTENCES`.

    A name with a hyphen and a command in `backquotes` are not broken, unless they are longer
    than a line.

    Args:
        text: The text.
        width: The number of characters of a line.
        first: The prefix of the first line.
        others: The prefix of every other line.
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
    """Return a table as lines of at most `width` characters.

    The result is a grid if a grid fits, if necessary with its last column wrapped. Otherwise
    each row is a paragraph that names the columns.
    """
    width = max(width, _NARROWEST)
    caption = sentence(table.caption, width, "caption")
    rows = grid(table, width) or _paragraphs(table, width)
    return [*sentence(table.title, width, "title"), *caption, [], *rows]


def sentence(text: str, width: int, style: str = "") -> list[Line]:
    """Return text, wrapped."""
    return [[Piece(line, style)] for line in wrap(text, width)]


def style_of(words: Words) -> str:
    """Return the style of a cell, or of a sentence."""
    return {True: "good", False: "bad", None: ""}[words.good]


def grid(table: Table, width: int) -> list[Line] | None:
    """Return the rows under their headings; None: the width is too small."""
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
        *cells, last = ([Piece(cell.text, style_of(cell))] for cell in row)
        wrapped = wrap(last[0].text, widths[-1]) or [""]
        cells.append([Piece(text, last[0].style) for text in wrapped])
        for n in range(len(wrapped)):
            line = [cell[n] if n < len(cell) else Piece("") for cell in cells]
            lines.append(_line(table, widths, line))
    return lines


def _line(table: Table, widths: Sequence[int], cells: Iterable[Piece]) -> Line:
    line: Line = []
    behind = ""  # space that is added before the next text, so that no line ends with space
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
            text = cell.text if len(others) == 1 else f"{column.heading}: {cell.text}"
            wrapped = wrap(text, width, "  ", "    ")
            lines += [[Piece(line, style_of(cell))] for line in wrapped]
    return lines
