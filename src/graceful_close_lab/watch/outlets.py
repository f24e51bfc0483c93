"""Where it is told: as lines, as JSON lines, on a screen, in a file for Prometheus."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections import Counter
from typing import TYPE_CHECKING, Protocol

from .. import show
from .telling import (
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
    from .ledger import Entry
    from .tally import Row, Tally


class Outlet(Protocol):
    """Somebody who is told."""

    def begin(self, tally: Tally) -> None:
        """Once, when everything from now on is seen."""

    def reset(self, entry: Entry) -> None:
        """Of each reset that counts, when it has been judged."""

    def tick(self, tally: Tally) -> None:
        """Every second."""

    def end(self, tally: Tally) -> None:
        """Once, at the end."""


class JsonLines:
    """A line for each reset, for counters that grew, and for the summary."""

    def __init__(self) -> None:
        self._told: dict[str, int] = {}

    def begin(self, tally: Tally) -> None:
        """The first line."""
        show.write(start_as_json(tally))

    def reset(self, entry: Entry) -> None:
        """A line."""
        show.write(reset_as_json(entry))

    def tick(self, tally: Tally) -> None:
        """A line, if a counter has grown."""
        now = {name: growth.since_start for name, growth in tally.grown.items()}
        if any(now.values()) and now != self._told:
            self._told = now
            show.write(counters_as_json(tally))

    def end(self, tally: Tally) -> None:
        """The last line."""
        self.tick(tally)
        show.write(summary_as_json(tally))


class Lines:
    """A line for each second and process that had resets; tables at the end."""

    def __init__(self) -> None:
        self._told: dict[Row, Counter[Cost]] = {}
        self._counters = 0

    def begin(self, tally: Tally) -> None:
        """What is watched."""
        show.write(beginning(tally))

    def reset(self, entry: Entry) -> None:
        """Nothing yet."""

    def tick(self, tally: Tally) -> None:
        """What has come since the last time."""
        now = time.strftime("%H:%M:%S")
        for row, costs in tally.rows.items():
            new = costs - self._told.get(row, Counter())
            if new:
                show.write(f"{now} {change(row, dict(new))}")
            self._told[row] = costs.copy()
        if not tally.traced and tally.may_have_cost > self._counters:
            grown = ", ".join(f"{name} {n.since_start}" for name, n in tally.grown.items())
            show.write(f"{now} since the start: {grown}")
            self._counters = tally.may_have_cost

    def end(self, tally: Tally) -> None:
        """All of it."""
        self.tick(tally)
        show.show(parts(tally))


class Textfile:
    """A file for Prometheus, which nobody ever sees half written."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self, tally: Tally) -> None:
        """Written, so that whoever cannot write it is told at once."""
        self.tick(tally)

    def reset(self, entry: Entry) -> None:
        """Nothing yet."""

    def tick(self, tally: Tally) -> None:
        """Written anew.

        Raises:
            OSError: It cannot be.
        """
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        try:
            with open(handle, "w", encoding="utf-8") as file:
                file.write(for_prometheus(tally))
            os.chmod(name, 0o644)  # the node exporter is somebody else
            os.replace(name, self._path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise

    def end(self, tally: Tally) -> None:
        """Written for the last time."""
        self.tick(tally)


class _Screen:
    """All of it, drawn anew every second."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console()
        self.live = Live(console=self._console, auto_refresh=False, transient=True)

    def begin(self, tally: Tally) -> None:
        """The tables, still empty."""
        self.tick(tally)

    def reset(self, entry: Entry) -> None:
        """Nothing yet."""

    def tick(self, tally: Tally) -> None:
        """As much of it as there is room for."""
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
        """What stays on the screen."""
        self.live.stop()
        show.show(parts(tally))


@contextlib.contextmanager
def screen() -> Generator[Outlet]:
    """A terminal that rich can draw on."""
    drawn = _Screen()
    with drawn.live:
        yield drawn
