"""The outputs: lines, JSON lines, a terminal, a file for Prometheus."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections import Counter
from typing import TYPE_CHECKING, Protocol

from .. import show
from .rendering import (
    beginning,
    change,
    counters_as_json,
    for_prometheus,
    parts,
    reset_as_json,
    start_as_json,
    summary_as_json,
)

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from .judgement import Cost
    from .reset_log import Entry
    from .tally import Row, Tally


class Output(Protocol):
    """An output of the watch."""

    def begin(self, tally: Tally) -> None:
        """Called once, when the watch begins."""

    def reset(self, entry: Entry) -> None:
        """Called for each counted reset, after it has been judged."""

    def tick(self, tally: Tally) -> None:
        """Called every second."""

    def end(self, tally: Tally) -> None:
        """Called once, at the end."""


class JsonLines:
    """JSON lines: one for each reset, for counters that grew, and for the summary."""

    def __init__(self) -> None:
        self._written: dict[str, int] = {}

    def begin(self, tally: Tally) -> None:
        """Write the first line."""
        show.write(start_as_json(tally))

    def reset(self, entry: Entry) -> None:
        """Write a line."""
        show.write(reset_as_json(entry))

    def tick(self, tally: Tally) -> None:
        """Write a line if a counter has grown."""
        now = {name: growth.since_start for name, growth in tally.grown.items()}
        if any(now.values()) and now != self._written:
            self._written = now
            show.write(counters_as_json(tally))

    def end(self, tally: Tally) -> None:
        """Write the last line."""
        self.tick(tally)
        show.write(summary_as_json(tally))


class Lines:
    """Text: a line for each second and process with resets, and tables at the end."""

    def __init__(self) -> None:
        self._written: dict[Row, Counter[Cost]] = {}
        self._counters = 0

    def begin(self, tally: Tally) -> None:
        """Write what is watched."""
        show.write(beginning(tally))

    def reset(self, entry: Entry) -> None:
        """Do nothing."""

    def tick(self, tally: Tally) -> None:
        """Write the changes since the last call."""
        now = time.strftime("%H:%M:%S")
        for row, costs in tally.rows.items():
            new = costs - self._written.get(row, Counter())
            if new:
                show.write(f"{now} {change(row, dict(new))}")
            self._written[row] = costs.copy()
        if not tally.traced and tally.may_have_cost > self._counters:
            grown = ", ".join(f"{name} {n.since_start}" for name, n in tally.grown.items())
            show.write(f"{now} since the start: {grown}")
            self._counters = tally.may_have_cost

    def end(self, tally: Tally) -> None:
        """Write the tables."""
        self.tick(tally)
        show.show(parts(tally))


class Textfile:
    """A file for Prometheus, which is replaced atomically."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self, tally: Tally) -> None:
        """Write the file, so that an error is reported immediately."""
        self.tick(tally)

    def reset(self, entry: Entry) -> None:
        """Do nothing."""

    def tick(self, tally: Tally) -> None:
        """Replace the file.

        Raises:
            OSError: The file cannot be written.
        """
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        try:
            with open(handle, "w", encoding="utf-8") as file:
                file.write(for_prometheus(tally))
            os.chmod(name, 0o644)  # the node exporter runs as another user
            os.replace(name, self._path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise

    def end(self, tally: Tally) -> None:
        """Replace the file for the last time."""
        self.tick(tally)


class _Screen:
    """The tables in a terminal, drawn again every second."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console()
        self.live = Live(console=self._console, auto_refresh=False, transient=True)

    def begin(self, tally: Tally) -> None:
        """Draw the empty tables."""
        self.tick(tally)

    def reset(self, entry: Entry) -> None:
        """Do nothing."""

    def tick(self, tally: Tally) -> None:
        """Draw as many lines as the terminal has."""
        from rich.text import Text

        from ..rich_text import rule_for, text_of

        rule = rule_for(self._console)
        lines = show.lines_of(parts(tally), self._console.width - 1)
        room = max(self._console.height - 1, 1)
        drawn = Text("\n", no_wrap=True, overflow="crop").join(
            text_of(line, rule=rule) for line in lines[:room]
        )
        self.live.update(drawn, refresh=True)

    def end(self, tally: Tally) -> None:
        """Write the tables that stay on the screen."""
        self.live.stop()
        show.show(parts(tally))


@contextlib.contextmanager
def screen() -> Generator[Output]:
    """Return an output for a terminal, drawn by rich."""
    drawn = _Screen()
    with drawn.live:
        yield drawn
