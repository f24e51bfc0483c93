"""The command line: the list of commands, and what they share."""

from __future__ import annotations

import argparse
import importlib
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from . import show
from .parsing import INTERRUPTED, OUTPUT_CLOSED, Parser, UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

PROGRAM = "graceful-close"


class Module(Protocol):
    """The interface of a command's module."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options, the `description`, and, to a `Parser`, the `exit_codes`."""

    def run(self, options: argparse.Namespace) -> int:
        """Run the command, and return the exit code.

        Raises:
            UsageError: The options contradict each other.
        """
        ...


class Command(NamedTuple):
    """One command.

    Attributes:
        module: The name of the module, which is loaded when the command is used.
        summary: A short description.
    """

    module: str
    summary: str


COMMANDS = {
    "check": Command(
        "graceful_close_lab.check.command", "test whether your server loses its early replies"
    ),
    "lab": Command(
        "graceful_close_lab.lab_command", "show on loopback what each way to close does"
    ),
    "run": Command(
        "graceful_close_lab.run", "start a server whose connections then close gracefully"
    ),
    "watch": Command(
        "graceful_close_lab.watch.command",
        "report which processes of this machine lose replies",
    ),
}

_DEFAULT = "lab"
_OF_THE_PROGRAM = ("-h", "--help", "--version", "--print-completion")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The command line; None: `sys.argv`.

    Returns:
        The exit code, as listed in the help of each command. A mistake on the command line
        exits with 2 (argparse).
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or (
        given[0][0:1] == "-" and given[0].partition("=")[0] not in _OF_THE_PROGRAM
    ):
        given = [_DEFAULT, *given]
    parser = make_parser(only=given[:1])
    options = parser.parse_args(given)
    command: Module = options.module
    try:
        return command.run(options)
    except UsageError as mistake:
        parser = cast("Parser", options.parser)
        parser.error(str(mistake))
    except KeyboardInterrupt:
        return INTERRUPTED
    except show.OutputClosedError:
        return OUTPUT_CLOSED


def make_parser(only: Collection[str] = tuple(COMMANDS)) -> Parser:
    """Make the parser of the whole command line.

    Args:
        only: The commands whose options are added. The other commands have only a name, and
            their modules are not loaded.
    """
    parser = Parser(
        prog=_program(),
        description="End TCP connections without losing data: show what closing does to "
        f"replies, and which servers lose some. Without a command the program runs {_DEFAULT}, "
        "with the options given.",
    )
    parser.exit_codes[0] = "success; the help of each command lists its other codes"
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {_version()}")
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        metavar="SHELL",
        help="print a completion script for this shell: bash, zsh, tcsh, fish",
    )
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=Parser
    )
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.summary)
        if name in only:
            own.add_argument(
                "-q",
                "--quiet",
                action="store_true",
                help="print only problems: the exit code is the result",
            )
            module = cast("Module", importlib.import_module(command.module))
            module.add_arguments(own)
            own.set_defaults(module=module, parser=own)
    return parser


def _version() -> str:
    try:
        return metadata.version("graceful-close")
    except metadata.PackageNotFoundError:
        return "from its sources, not installed"


def _program() -> str:
    started = Path(sys.argv[0]).name
    return "python -m graceful_close" if started == "__main__.py" else PROGRAM


class _PrintCompletion(argparse.Action):
    """Print a completion script for a shell, which shtab writes, if it is installed."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        try:
            from .completion import script
        except ImportError:
            parser.error(f"{option_string} needs shtab: pip install 'graceful-close[lab]'")
        whole = make_parser()
        whole.prog = PROGRAM
        try:
            show.write(script(whole, str(values)))
        except ValueError as error:
            parser.error(f"argument {option_string}: {error}")
        parser.exit(0)
