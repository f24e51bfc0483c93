"""What the command line of every command is made of."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .layout import wrap
from .show import plain_width

if TYPE_CHECKING:
    from collections.abc import Callable

INTERRUPTED = 130  # 128 and the number of SIGINT: what a shell says of it
NOBODY_LISTENS = 141  # 128 and the number of SIGPIPE

_OF_ALL = {
    2: "a mistake on the command line",
    INTERRUPTED: "interrupted, as by Ctrl-C",
    NOBODY_LISTENS: "the reader of the output closed the pipe",
}


class UsageError(Exception):
    """A mistake on the command line that shows only when the command begins."""


class Parser(argparse.ArgumentParser):
    """A parser that fills its texts without breaking names in two, and lists the exit codes.

    Attributes:
        exit_codes: What each means; those that all commands have are added to a command's own.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self.exit_codes: dict[int, str] = {}

    @property
    def all_exit_codes(self) -> list[tuple[int, str]]:
        """Every code with its meaning, in their order."""
        return sorted((self.exit_codes | _OF_ALL).items())

    def format_help(self) -> str:
        """What `--help` prints."""
        raw = self.description
        self.description = "\n".join(wrap(raw or "", plain_width() - 2))
        try:
            told = super().format_help()
        finally:
            self.description = raw
        lines = ["", "exit codes:"]
        for code, meaning in self.all_exit_codes:
            lines += wrap(meaning, plain_width() - 2, f"  {code:<4} ", " " * 7)
        return "\n".join([told.rstrip("\n"), *lines, ""])


def number(least: float, most: float, what: str) -> Callable[[str], float]:
    """What reads a number within limits, as the `type` of an argument."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:  # NaN neither
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return read
