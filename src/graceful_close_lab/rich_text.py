"""Lines as rich text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

    from .layout import Line

_STYLES = {
    "title": "bold",
    "caption": "dim",
    "heading": "bold",
    "rule": "dim",
    "good": "green",
    "bad": "red",
    "": "none",  # not "", so that the space before it stays a separate piece
}


def text_of(line: Line, *, rule: str = "-") -> Text:
    """Convert a line to rich text; `rule` is the character of the line below headings."""
    text = Text()
    for part, style in line:
        is_rule = style == "rule" and not part.strip("-")
        text.append(
            rule * len(part) if is_rule else part, _STYLES[style] if part.strip() else ""
        )
    return text


def has_lines(console: Console) -> bool:
    """Return whether the console can show more than ASCII."""
    return not console.options.ascii_only and not console.legacy_windows


def rule_for(console: Console) -> str:
    """Return the character of a rule on this console."""
    return "─" if has_lines(console) else "-"
