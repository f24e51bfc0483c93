"""Lines as rich shows them."""

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
    "": "none",  # and not "": so that space before it is a piece of its own
}


def text_of(line: Line, *, rule: str = "-") -> Text:
    """A line with its colours; `rule`: what the line below headings is made of."""
    text = Text()
    for said, style in line:
        is_rule = style == "rule" and not said.strip("-")
        text.append(
            rule * len(said) if is_rule else said, _STYLES[style] if said.strip() else ""
        )
    return text


def has_lines(console: Console) -> bool:
    """Whether the console shows more than ASCII."""
    return not console.options.ascii_only and not console.legacy_windows


def rule_for(console: Console) -> str:
    """What a rule is made of there."""
    return "─" if has_lines(console) else "-"
