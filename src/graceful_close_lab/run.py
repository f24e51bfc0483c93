"""Start a command whose Python processes close their accepted connections gracefully.

PYTHONPATH puts a sitecustomize before the installed one, and execve() starts the command in
this process. `graceful_close._launched` describes what is replaced in each Python process.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

from graceful_close._environment import IDLE_TIMEOUT, NOTICE, TIMEOUT, put_launcher_first

from . import show
from .parsing import Parser, number

# What a shell reports for a command that cannot be started, and for an unknown command.
_NOT_STARTED, _NOT_FOUND = 126, 127

_SECONDS = number(0, sys.float_info.max, "a number of seconds, 0 or more")

# Commands whose server does not accept connections in Python, and its language.
_NOT_SERVED = {
    "granian": "Rust",
    "robyn": "Rust",
    "uwsgi": "C",
    "pyuwsgi": "C",
    "mod_wsgi-express": "C",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options, and the command after them."""
    parser.description = (
        "Start a server as usual, with connections that close gracefully. In each Python "
        "process of the command, workers and reloaders included, this replaces "
        "socket.accept(), the server's side of TLS sockets, uvloop's Loop, and the default "
        "action of SIGTERM, which then waits for the pending closes. It also wraps the "
        "functions that pass a connection on, duplicate it, or start another program. "
        "The first Python process of the command reports that this is done there. "
        "It has no effect on servers that accept outside Python (granian, Robyn, uWSGI, "
        "socketify), on gevent, eventlet and trio, and on Python with -I, -E or -S."
    )
    parser.usage = "%(prog)s [OPTIONS] -- COMMAND ..."
    if isinstance(parser, Parser):
        parser.exit_codes |= {
            0: "success of the command; other codes are its own, too",
            _NOT_STARTED: "the command cannot be started",
            _NOT_FOUND: "there is no such command",
        }
    parser.add_argument(
        "--timeout",
        type=_SECONDS,
        metavar="SECONDS",
        help=f"the deadline of each close (default: ${TIMEOUT}, or 30)",
    )
    parser.add_argument(
        "--idle-timeout",
        type=_SECONDS,
        metavar="SECONDS",
        help=f"the longest silence of a peer during a close (default: ${IDLE_TIMEOUT}, or 5)",
    )
    parser.add_argument("command", metavar="COMMAND", help="the command to start")
    arguments = parser.add_argument(
        "arguments", metavar="ARGUMENTS", nargs=argparse.REMAINDER, help="its arguments"
    )
    arguments.required = False  # Python 3.11 names the arguments as missing, too


def run(given: argparse.Namespace) -> int:
    """Start the command in this process.

    Args:
        given: The parsed arguments of `add_arguments`.

    Returns:
        127 if there is no such command, 126 if it cannot be started. On Windows, the command's
        exit code; on other systems it does not return.
    """
    command: str = given.command
    program = shutil.which(command)
    if program is None:
        if os.path.dirname(command) and Path(command).exists():
            show.write(
                f"graceful-close: {command} cannot be started: it is not executable", sys.stderr
            )
            return _NOT_STARTED
        show.write(f"graceful-close: there is no command {command}", sys.stderr)
        return _NOT_FOUND
    name = Path(command).name
    if name in _NOT_SERVED and not given.quiet:
        show.write(
            f"graceful-close: {name} accepts in {_NOT_SERVED[name]}, not in Python: nothing is "
            "changed there.",
            sys.stderr,
        )
    line = [command, *given.arguments]
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        if sys.platform == "win32":
            return subprocess.run(  # noqa: S603 (the user's own)
                line, executable=program, env=_environment(given), check=False
            ).returncode
        try:
            os.execve(program, line, _environment(given))  # noqa: S606 (the user's own)
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            # A script without a first line `#!` is the shell's, as for execvp().
            shell = ["sh", program, *given.arguments]
            os.execve("/bin/sh", shell, _environment(given))  # noqa: S606
    except OSError as error:  # no interpreter, E2BIG, EACCES
        show.write(f"graceful-close: {command} cannot be started: {error.strerror}", sys.stderr)
    return _NOT_STARTED


def _environment(given: argparse.Namespace) -> dict[str, str]:
    environment = dict(os.environ)
    for name, seconds in (
        (TIMEOUT, given.timeout),
        (IDLE_TIMEOUT, given.idle_timeout),
    ):
        if seconds is not None:
            environment[name] = str(seconds)
    environment.pop(NOTICE, None)
    if not given.quiet:
        environment[NOTICE] = "1"
    put_launcher_first(environment)
    return environment
