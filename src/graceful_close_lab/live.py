"""The lab on a screen: each experiment is drawn while it runs."""

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
from .story import Story
from .tables import tables

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from .experiments import Experiment
    from .layout import Line
    from .report import Report

# Seconds that each drawing stays at least: most experiments are over before anybody could see
# them. Arbitrary; all of them together take some seconds more for it.
_TO_BE_SEEN = 0.5
_BAR = 10  # characters


@contextlib.contextmanager
def live(total: int) -> Generator[Callable[[Experiment, Report], Story]]:
    """Draw on stdout what goes on; when it is over, nothing of it is left there.

    Args:
        total: How many experiments there will be.

    Yields:
        What to call at the beginning of each, with the report of those before it. It gives the
        story that the experiment is to tell, which is drawn as it grows.
    """
    console = Console()
    stage = _Stage(console, total)
    with Live(
        console=console, get_renderable=stage.drawn, refresh_per_second=15, transient=True
    ) as screen:

        def begin(experiment: Experiment, before: Report) -> Story:
            screen.refresh()
            stage.hold()
            return stage.begin(experiment, before)

        yield begin
        screen.refresh()
        stage.hold()


class _Stage:
    """What is on the screen now."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._number = 0
        self._playing: tuple[Experiment, Story, Report] | None = None

    def begin(self, experiment: Experiment, before: Report) -> Story:
        story = Story()
        self._number += 1
        self._playing = experiment, story, before
        return story

    def hold(self) -> None:
        """Leave what is there long enough to be seen."""
        if self._playing is not None:
            time.sleep(max(_TO_BE_SEEN - self._playing[1].now(), 0))

    def drawn(self) -> Text:
        """All of it, in as many lines as the screen has."""
        console = self._console
        room = max(console.height - 1, 1)
        lines = self._lines(console.width - 1, room)
        rule = rule_for(console)
        return Text("\n", no_wrap=True, overflow="crop").join(
            text_of(line, rule=rule) for line in lines[:room]
        )

    def _lines(self, width: int, room: int) -> list[Line]:
        if self._playing is None:
            return []
        experiment, story, before = self._playing
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
        exchange = story.so_far()
        if exchange.events:
            lines += draw(exchange, width, LINES if has_lines(self._console) else ASCII)
        if story.waits_for:
            said = f"{duration(story.now()):>8} ... {story.waits_for}"
            wrapped = wrap(said, width, others=" " * 9)
            lines += [[Piece(line, "caption")] for line in wrapped]
        for table in tables(before):
            rows = grid(table, width)
            if table.name == experiment.group and rows and len(lines) + len(rows) < room:
                lines += [[], *rows]
        return lines
