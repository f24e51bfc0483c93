"""The lab in a terminal: each experiment is drawn while it runs."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.text import Text

from .drawing import ASCII, LINES, draw
from .formatting import duration
from .layout import Piece, grid, wrap
from .rich_text import has_lines, rule_for, text_of
from .tables import tables
from .timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from .experiments import Experiment
    from .layout import Line
    from .report import Report

# Seconds for which each drawing is shown at least: most experiments end too soon to be seen. A
# heuristic; it adds some seconds to the whole run.
_TO_BE_SEEN = 0.5
_BAR = 10  # characters


@contextlib.contextmanager
def live(total: int) -> Generator[Callable[[Experiment, Report], Timeline]]:
    """Draw the running experiments on stdout, and erase the drawing at the end.

    Args:
        total: How many experiments there will be.

    Yields:
        A function to call at the beginning of each experiment, with the report of the
        experiments before it. It returns the timeline for the experiment, which is drawn while
        it grows.
    """
    console = Console()
    drawing = _Drawing(console, total)
    with Live(
        console=console, get_renderable=drawing.drawn, refresh_per_second=15, transient=True
    ) as screen:

        def begin(experiment: Experiment, before: Report) -> Timeline:
            screen.refresh()
            drawing.hold()
            return drawing.begin(experiment, before)

        yield begin
        screen.refresh()
        drawing.hold()


class _Drawing:
    """The contents of the screen."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._number = 0
        self._current: tuple[Experiment, Timeline, Report] | None = None

    def begin(self, experiment: Experiment, before: Report) -> Timeline:
        timeline = Timeline()
        self._number += 1
        self._current = experiment, timeline, before
        return timeline

    def hold(self) -> None:
        """Keep the drawing long enough to be seen."""
        if self._current is not None:
            time.sleep(max(_TO_BE_SEEN - self._current[1].now(), 0))

    def drawn(self) -> Text:
        """Return the whole drawing, in as many lines as the screen has."""
        console = self._console
        room = max(console.height - 1, 1)
        lines = self._lines(console.width - 1, room)
        rule = rule_for(console)
        return Text("\n", no_wrap=True, overflow="crop").join(
            text_of(line, rule=rule) for line in lines[:room]
        )

    def _lines(self, width: int, room: int) -> list[Line]:
        if self._current is None:
            return []
        experiment, timeline, before = self._current
        done = _BAR * (self._number - 1) // self._total
        bar: Line = [
            Piece("=" * done, "good"),
            Piece("." * (_BAR - done), "caption"),
            Piece(f" {self._number}/{self._total} ", "caption"),
        ]
        title = [[Piece(line, "title")] for line in wrap(experiment.title, width)]
        fits = sum(len(piece.text) for piece in bar) + len(experiment.title) <= width
        lines: list[Line] = [[*bar, *title[0]]] if fits else [bar, *title]
        lines.append([])
        exchange = timeline.exchange()
        if exchange.events:
            lines += draw(exchange, width, LINES if has_lines(self._console) else ASCII)
        if timeline.waiting_for:
            line = f"{duration(timeline.now()):>8} ... {timeline.waiting_for}"
            wrapped = wrap(line, width, others=" " * 9)
            lines += [[Piece(line, "caption")] for line in wrapped]
        for table in tables(before):
            rows = grid(table, width)
            if table.name == experiment.group and rows and len(lines) + len(rows) < room:
                lines += [[], *rows]
        return lines
