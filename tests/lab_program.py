"""The lab run as the program that it is: in a pipe, and in a terminal of some size."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import suppress
from subprocess import CompletedProcess

THE_LAB = [sys.executable, "-W", "error", "-m", "graceful_close"]

# What a shell starts in the background ignores SIGINT, and so do its children.
INTERRUPTIBLE = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("graceful_close", run_name="__main__")
"""

# The lab promises a small part of it; more than this means that it hangs.
GIVE_UP = 60

# Of the tests' own surroundings, which are none of the program's business.
_DROPPED = {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TERM", "TTY_COMPATIBLE"}

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
MOVES = re.compile(r"\x1b\[[0-9;?]*[A-Za-ln-z]")


def surroundings(**more: str) -> dict[str, str]:
    """The environment, with nothing in it that says how to draw but `more`."""
    return {name: value for name, value in os.environ.items() if name not in _DROPPED} | more


def run(*command: str, **environment: str) -> CompletedProcess[str]:
    """Run a program whose output goes into pipes."""
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=GIVE_UP,
        check=False,
        env=surroundings(**environment),
    )


class Terminal:
    """A program in a terminal: its stdin, stdout and stderr."""

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
            env=surroundings(**{"TERM": "xterm-256color"} | environment),
        )
        os.close(theirs)

    def read_until(self, words: str) -> None:
        """Read what it writes until it has written these words."""
        while words not in self.written:
            assert self._read(), self.written

    def end(self) -> str:
        """Read to the end, wait for it, and give all that it wrote."""
        try:
            while self._read():
                pass
            self.program.wait(GIVE_UP)
        finally:
            self.program.kill()  # has ended, if all went well
            self.program.wait()
            os.close(self._screen)
        return self.written

    @property
    def written(self) -> str:
        """What it wrote until now, as it was meant: the terminal made \\r\\n of every \\n."""
        return self._written.decode(errors="replace").replace("\r\n", "\n")

    def _read(self) -> bool:
        chunk = b""
        # EIO: Linux says so when the last program has left the terminal.
        with suppress(OSError):
            chunk = os.read(self._screen, 65536)
        self._written += chunk
        return bool(chunk)


def lines_of(written: str) -> list[str]:
    """Every line that ever stood on a screen, without the codes that put it there."""
    return re.split(r"[\r\n]", MOVES.sub("\r", COLOURS.sub("", written)))
