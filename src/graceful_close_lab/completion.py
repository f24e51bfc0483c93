"""Completion scripts for shells."""

from __future__ import annotations

import argparse
from typing import Any

import shtab

_SHELLS = ("bash", "zsh", "tcsh", "fish")

# The keys are the metavars in the help.
_COMPLETED_AS: dict[str, object] = {
    "FILE": shtab.FILE,
    "SOCKET": shtab.FILE,
    "DIR": shtab.DIRECTORY,
}


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the completion script for a shell.

    Raises:
        ValueError: The shell is not supported; the message lists those that are.
    """
    if shell not in _SHELLS:
        raise ValueError(f"unknown shell {shell!r} (choose from {', '.join(_SHELLS)})")
    _complete_files(parser)
    return shtab.complete(parser, shell).rstrip("\n")


def _complete_files(parser: argparse.ArgumentParser) -> None:
    # argparse has no public list of a parser's arguments. shtab reads this attribute too.
    actions: list[Any] = parser._actions
    for action in actions:
        if isinstance(action, argparse._SubParsersAction):  # pyright: ignore[reportPrivateUsage]
            commands: Any = action  # pyright: ignore[reportUnknownVariableType]
            for command in commands.choices.values():
                _complete_files(command)
        elif action.metavar in _COMPLETED_AS:
            action.complete = _COMPLETED_AS[action.metavar]
