"""The parts that the command lines of all commands share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .layout import wrap
from .show import plain_width

if TYPE_CHECKING:
    from collections.abc import Callable

INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
OUTPUT_CLOSED = 141  # 128 + SIGPIPE

_OF_ALL = {
    2: "a mistake on the command line",
    INTERRUPTED: "interrupted, as by Ctrl-C",
    OUTPUT_CLOSED: "the reader of the output closed the pipe",
}


class UsageError(Exception):
    """A mistake on the command line that is found only when the command begins."""


class Parser(argparse.ArgumentParser):
    """A parser that wraps its texts without breaking names, and lists the exit codes.

    Attributes:
        exit_codes: The meaning of each code of this command. The codes of all commands are
            added in the help.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self.exit_codes: dict[int, str] = {}

    @property
    def all_exit_codes(self) -> list[tuple[int, str]]:
        """Every code with its meaning, in numeric order."""
        return sorted((self.exit_codes | _OF_ALL).items())

    def format_help(self) -> str:
        """Return the text that `--help` prints."""
        raw = self.description
        self.description = "\n".join(wrap(raw or "", plain_width() - 2))
        try:
            text = super().format_help()
        finally:
            self.description = raw
        lines = ["", "exit codes:"]
        for code, meaning in self.all_exit_codes:
            lines += wrap(meaning, plain_width() - 2, f"  {code:<4} ", " " * 7)
        return "\n".join([text.rstrip("\n"), *lines, ""])


def number(least: float, most: float, what: str) -> Callable[[str], float]:
    """Return a function that reads a number within limits, as the `type` of an argument."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:  # False for NaN too
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return read
