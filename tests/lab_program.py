"""Runs the lab as a program: in a pipe, and in a terminal of a given size."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import StringIO
from subprocess import CompletedProcess

from graceful_close_lab.command import main

THE_LAB = [sys.executable, "-W", "error", "-m", "graceful_close"]

# A program that a shell starts in the background ignores SIGINT, and so do its children.
INTERRUPTIBLE = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("graceful_close", run_name="__main__")
"""

# Seconds. The lab needs a small part of it; after this time it hangs.
GIVE_UP = 60

# Variables of the tests' environment that would change the program's output.
_DROPPED = {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TERM", "TTY_COMPATIBLE"}

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
MOVES = re.compile(r"\x1b\[[0-9;?]*[A-Za-ln-z]")


def environment_with(**more: str) -> dict[str, str]:
    """Return the environment without variables that affect the drawing, except `more`."""
    return {name: value for name, value in os.environ.items() if name not in _DROPPED} | more


def run(*command: str, **environment: str) -> CompletedProcess[str]:
    """Run a program with pipes as its stdout and stderr."""
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=GIVE_UP,
        check=False,
        env=environment_with(**environment),
    )


def exits(code: int, *arguments: str) -> str:
    """Run `graceful-close` in this process, with an exit code that is checked.

    Returns:
        What it prints: on stdout if the exit code is 0, else on stderr. The other is empty.
    """
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as errors:
        try:
            ended: object = main(arguments)
        except SystemExit as end:
            ended = end.code
    printed, empty = (errors, out) if code else (out, errors)
    assert (ended, empty.getvalue()) == (code, "")
    return printed.getvalue()


class Terminal:
    """A program with a terminal as its stdin, stdout and stderr."""

    def __init__(self, *command: str, columns: int = 80, **environment: str) -> None:
        import termios  # not on Windows

        ours, theirs = os.openpty()
        termios.tcsetwinsize(theirs, (24, columns))
        self._screen = ours
        self._written = b""
        self.program = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment_with(**{"TERM": "xterm-256color"} | environment),
        )
        os.close(theirs)

    def read_until(self, words: str) -> None:
        """Read the output until it contains these words."""
        while words not in self.written:
            assert self._read(), self.written

    def end(self) -> str:
        """Read to the end, wait for the program, and return the whole output."""
        try:
            while self._read():
                pass
            self.program.wait(GIVE_UP)
        finally:
            self.program.kill()  # it has ended, unless an error occurred
            self.program.wait()
            os.close(self._screen)
        return self.written

    @property
    def written(self) -> str:
        """The output until now, with newlines instead of the line ends of a terminal."""
        return self._written.decode(errors="replace").replace("\r\n", "\n")

    def _read(self) -> bool:
        chunk = b""
        # EIO: Linux reports it after the last program has closed the terminal.
        with suppress(OSError):
            chunk = os.read(self._screen, 65536)
        self._written += chunk
        return bool(chunk)


def lines_of(written: str) -> list[str]:
    """Return every line that was ever on the screen, without control codes."""
    return re.split(r"[\r\n]", MOVES.sub("\r", COLOURS.sub("", written)))
