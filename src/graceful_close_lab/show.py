"""Tables and sentences on stdout, progress on stderr.

In a terminal, if rich is installed, rich draws them. In a pipe, a file or a dumb terminal the
output is plain text.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import sys
from typing import TYPE_CHECKING

from .layout import lay_out, sentence, style_of
from .tables import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from typing import TextIO

    from .layout import Line
    from .tables import Words

_SIZE = 80, 24  # of a terminal whose size is unknown


class OutputClosedError(Exception):
    """The reader of the output closed the pipe, as `head` does after its last line."""


def write(text: str, to: TextIO | None = None) -> None:
    """Write a line to stdout or another stream, and flush it.

    Raises:
        OutputClosedError: The pipe is closed. (A broken socket raises BrokenPipeError too,
        which must not be confused with it.)
    """
    stream: TextIO = to or sys.stdout
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        # Otherwise the interpreter flushes the buffer again at its exit, and prints an error.
        with contextlib.suppress(BrokenPipeError):
            stream.close()
        raise OutputClosedError from None


def show(parts: Sequence[Table | Words]) -> None:
    """Print tables and sentences to stdout, separated by blank lines."""
    if is_a_screen(sys.stdout):
        _show_richly(parts)
    else:
        lines = lines_of(parts, plain_width())
        write("\n".join("".join(piece.text for piece in line) for line in lines))


@contextlib.contextmanager
def progress(total: int, *, quiet: bool = False) -> Generator[Callable[[str], None]]:
    """Report progress on stderr, if that is a terminal.

    Args:
        total: How many steps there will be.
        quiet: Whether to report nothing.

    Yields:
        A function to call at the beginning of each step, with the name of the step.
    """
    with contextlib.ExitStack() as stack:
        if quiet or sys.stderr is None or not sys.stderr.isatty():
            yield _report_nothing
        elif is_a_screen(sys.stderr):
            yield stack.enter_context(_rich_progress(total))
        else:
            yield _plain_progress(total)


def is_a_screen(stream: TextIO) -> bool:
    """Return whether the stream is a terminal that supports drawing, and rich is installed."""
    # A program may be started without a stdout; then the stream is None.
    if stream is None or not stream.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        return False
    return has_rich()


def has_rich() -> bool:
    """Return whether rich (the extra `lab`) is installed."""
    try:
        importlib.import_module("rich")
    except ImportError:
        return False
    return True


def plain_width() -> int:
    """Return the width of a line of plain text in characters."""
    return shutil.get_terminal_size(_SIZE).columns


def lines_of(parts: Sequence[Table | Words], width: int) -> list[Line]:
    """Return tables and sentences as lines of at most `width` characters."""
    lines: list[Line] = []
    for part in parts:
        if lines:
            lines.append([])
        lines += (
            lay_out(part, width)
            if isinstance(part, Table)
            else sentence(part.text, width, style_of(part))
        )
    return lines


def _report_nothing(_: str) -> None:
    pass


def _plain_progress(total: int) -> Callable[[str], None]:
    done = 0

    def begin(name: str) -> None:
        nonlocal done
        done += 1
        write(f"[{done:{len(str(total))}}/{total}] {name}", sys.stderr)

    return begin


def _show_richly(parts: Sequence[Table | Words]) -> None:
    from rich.console import Console

    from .rich_text import rule_for, text_of

    console = Console()
    for line in lines_of(parts, console.width):
        console.print(text_of(line, rule=rule_for(console)), soft_wrap=True)


@contextlib.contextmanager
def _rich_progress(total: int) -> Generator[Callable[[str], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    bar = Progress(
        MofNCompleteColumn(),
        BarColumn(bar_width=10),
        TextColumn("{task.description}", markup=False),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task("", total=total)
        begun = 0

        def begin(name: str) -> None:
            nonlocal begun
            bar.update(task, description=name, completed=begun)
            begun += 1

        yield begin
