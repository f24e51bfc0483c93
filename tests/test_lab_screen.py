"""The lab in a terminal: what it draws while it runs, and what remains at the end."""

from __future__ import annotations

import contextlib
import io
import json
import re
import signal
import sys
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

import pytest

from graceful_close_lab import drawing, lost_reply, show
from graceful_close_lab.command import main
from graceful_close_lab.report import Report
from graceful_close_lab.tables import conclusion, tables
from graceful_close_lab.this_platform import examine
from graceful_close_lab.timeline import Kind, Side, Timeline
from lab_program import THE_LAB, Terminal, lines_of

if TYPE_CHECKING:
    from collections.abc import Generator

    from graceful_close_lab.tables import Table, Words

pytest.importorskip("rich")

needs_pty = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pty")

SHOW_CURSOR = "\x1b[?25h"
COLOUR = re.compile(r"\x1b\[[0-9;]*(?:3[0-8]|9[0-7])[0-9;]*m")


class Screen(io.StringIO):
    """A terminal that records its output."""

    def isatty(self) -> bool:
        return True


@contextlib.contextmanager
def a_screen() -> Generator[Screen]:
    with pytest.MonkeyPatch.context() as patch, Screen() as screen:
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
            patch.delenv(name, raising=False)
        patch.setenv("TERM", "xterm")
        patch.setenv("COLUMNS", "80")
        with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
            yield screen


@pytest.fixture(scope="module")
def parts() -> list[Table | Words]:
    report = Report(
        lost_reply=(lost_reply.run(lost_reply.GRACEFUL, tries=2),), this_platform=examine()
    )
    return [*tables(report), *conclusion(report)]


def test_the_output_in_a_terminal_has_colour(parts: list[Table | Words]) -> None:
    with a_screen() as screen:
        show.show(parts)
        assert "\x1b[32m2 of 2\x1b[0m" in screen.getvalue()


def test_the_output_in_a_terminal_has_the_same_text_as_in_a_pipe(
    parts: list[Table | Words], capsys: pytest.CaptureFixture[str]
) -> None:
    with a_screen() as screen:
        show.show(parts)
        colourful = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue()).replace("─", "-")
    show.show(parts)
    assert colourful == capsys.readouterr().out


def test_progress_in_a_terminal_is_erased_at_the_end() -> None:
    with a_screen() as screen:
        with show.progress(2) as begin:
            begin("the first step")
            begin("the second step")
        assert "the second step" in screen.getvalue()
        assert screen.getvalue().endswith("\x1b[2K")  # the line is erased


def a_timeline() -> Timeline:
    timeline = Timeline()
    timeline.add_event(Side.SERVER, "send(reply)")
    timeline.add_event(Side.SERVER, "FIN_WAIT1, Send-Q 175,425", kernel=True)
    timeline.add_event(
        Side.CLIENT, "reports something that is longer than one line of the drawing"
    )
    now = timeline.now()
    timeline.add_packet(Side.SERVER, Kind.RST, "RST", now, now)
    timeline.add_packet(Side.CLIENT, Kind.DATA, "an upload", now, None)
    return timeline


@pytest.mark.parametrize("characters", [drawing.ASCII, drawing.LINES], ids=["ascii", "lines"])
@pytest.mark.parametrize("width", [33, 40, 80, 200])
def test_the_lifelines_of_a_drawing_are_straight(
    width: int, characters: drawing.CharacterSet
) -> None:
    lines = [
        "".join(piece.text for piece in line)
        for line in drawing.draw(a_timeline().exchange(), width, characters)
    ]
    head, *others = lines
    assert head.split() == ["server", "client"]
    assert {len(line) for line in lines} == {len(head)}
    assert len(head) <= width
    assert {line[9] for line in others} <= {characters.life, characters.away}
    assert {line[-1] for line in others} <= {characters.life, characters.home}
    shaft = next(line for line in others if "RST" in line)
    assert shaft.endswith(characters.right + characters.life)
    unseen = next(line for line in others if "an upload" in line)
    assert unseen[10:].lstrip().startswith(characters.unseen)
    assert "reports something" in " ".join(" ".join(others).split())


class Kept(NamedTuple):
    """The output of a program in a terminal, and its exit code."""

    written: str
    returncode: int


SETTINGS: dict[str, tuple[int, dict[str, str]]] = {
    "40 columns": (40, {}),
    "80 columns": (80, {}),
    "200 columns": (200, {}),
    "dumb, 40 columns": (40, {"TERM": "dumb"}),
    "dumb": (80, {"TERM": "dumb"}),
    "NO_COLOR": (80, {"NO_COLOR": "1"}),
    "ASCII": (80, {"PYTHONIOENCODING": "ascii"}),
}


@pytest.fixture(scope="module")
def in_terminals() -> dict[str, Kept]:
    """Run the lab in a terminal of each kind at the same time."""
    if sys.platform == "win32":
        pytest.skip("Windows has no pty")
    quick = [*THE_LAB, "--only", "reply-close"]
    running = {
        name: Terminal(*quick, columns=columns, **environment)
        for name, (columns, environment) in SETTINGS.items()
    }
    return {
        name: Kept(terminal.end(), terminal.program.returncode)
        for name, terminal in running.items()
    }


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_no_line_of_the_lab_is_wider_than_the_terminal(
    columns: int, in_terminals: dict[str, Kept]
) -> None:
    written, returncode = in_terminals[f"{columns} columns"]
    assert returncode == 0
    lines = lines_of(written)
    assert max(map(len, lines)) <= columns
    assert any("─ RST ─" in line for line in lines)  # the experiment, drawn
    assert "…" not in written
    assert lines[-2] == "As expected: close() lost 20 of 20."


def test_the_cursor_is_visible_after_the_lab(in_terminals: dict[str, Kept]) -> None:
    written = in_terminals["80 columns"].written
    assert "\x1b[?25l" in written
    assert written.rindex(SHOW_CURSOR) > written.rindex("\x1b[?25l")


@pytest.mark.parametrize("kind", ["dumb", "dumb, 40 columns"])
def test_the_output_in_a_dumb_terminal_has_no_control_codes(
    kind: str, in_terminals: dict[str, Kept]
) -> None:
    written, returncode = in_terminals[kind]
    assert returncode == 0
    assert written.isascii()
    assert written.replace("\n", "").isprintable()
    output = written[written.index("Unread input") :]
    assert max(map(len, output.splitlines())) <= SETTINGS[kind][0]


def test_no_color_turns_colour_off(in_terminals: dict[str, Kept]) -> None:
    assert COLOUR.search(in_terminals["80 columns"].written)
    assert not COLOUR.search(in_terminals["NO_COLOR"].written)


def test_the_output_in_an_ascii_terminal_is_ascii(
    in_terminals: dict[str, Kept],
) -> None:
    written, returncode = in_terminals["ASCII"]
    assert returncode == 0
    assert written.isascii()
    assert "- RST -" in written


@needs_pty
def test_each_experiment_is_drawn_while_it_waits() -> None:
    written = Terminal(*THE_LAB, "--only", "linger-graceful-close").end()
    waits = "... the call to return, 1 s at most"
    drawn = [written.index(words) for words in ("ACK", waits, "timed out", "Unsent output")]
    assert drawn == sorted(drawn)
    assert "graceful_close lost nothing" in written


@needs_pty
def test_each_drawing_is_shown_for_half_a_second_and_then_erased() -> None:
    started = monotonic()
    terminal = Terminal(
        *THE_LAB, "--only", "linger-abort,linger-background,linger-abortive-close"
    )
    written = terminal.end()
    assert monotonic() - started >= 1.5
    assert "200,000 bytes, then FIN" in written
    assert written.rindex("\x1b[2K") > written.rindex("─ RST ─")  # erased


@needs_pty
def test_an_interrupt_restores_the_terminal() -> None:
    # The whole lab, which still runs for seconds when this test reads.
    terminal = Terminal(sys.executable, "-m", "graceful_close")
    terminal.read_until("1 s at most")
    terminal.program.send_signal(signal.SIGINT)
    written = terminal.end()
    assert terminal.program.returncode == 130
    assert "Traceback" not in written
    assert written.rindex(SHOW_CURSOR) > written.rindex("\x1b[?25l")
    assert "Unsent output" not in written


def test_json_in_a_terminal_has_no_colours() -> None:
    with a_screen() as screen:
        assert main(["--only", "linger-abort", "--json"]) == 0
        progress, brace, found = screen.getvalue().partition("{")
    assert "unsent output: ABORT close()" in progress
    assert "\x1b" not in found
    assert json.loads(brace + found)["ok"] is True


def test_a_timeline_is_ordered_by_time() -> None:
    timeline = Timeline()
    first = timeline.add_event(Side.SERVER, "one")
    second = timeline.add_event(Side.CLIENT, "two")
    timeline.add_packet(Side.CLIENT, Kind.DATA, "late", second, None)
    timeline.add_packet(Side.SERVER, Kind.DATA, "early", first, second)
    assert [arrow.text for arrow in timeline.exchange().arrows] == ["early", "late"]
