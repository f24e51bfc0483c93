"""Writes graceful-close.1, the manual page, from the parser that reads the command line.

python docs/manual.py
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graceful_close_lab.command import COMMANDS, PROGRAM, make_parser
from graceful_close_lab.documentation import page as address_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from graceful_close_lab.parsing import Parser

PAGE = Path(__file__).parent / "graceful-close.1"


def page() -> str:
    """All of it, in the man macros (man(7))."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    parser = make_parser()
    commands = _commands(parser)
    yield f'.TH {PROGRAM.upper()} 1 "" "{PROGRAM}" "User Commands"'
    yield ".SH NAME"
    yield f"{_text(PROGRAM)} \\- see which servers lose replies when they close, and why"
    yield ".SH SYNOPSIS"
    for name, command in commands.items():
        yield f".B {_text(PROGRAM)} {name}"
        yield f"[{_italic('OPTION')}]..." + "".join(
            (" {}" if action.nargs is None else " [{}]").format(_italic(str(action.metavar)))
            for action in _actions(command, named=False)
        )
        yield ".br"
    yield f".B {_text(PROGRAM)}"
    yield _text("--help | --version | --print-completion ") + _italic("SHELL")
    yield ".SH DESCRIPTION"
    yield _text(parser.description or "")
    yield ".SH OPTIONS"
    yield from _options(_actions(parser, named=True))
    yield ".SH COMMANDS"
    for name, command in commands.items():
        yield f".SS {name}"
        yield _text(command.description or COMMANDS[name].summary)
        yield from _options(_actions(command, named=False))
        yield from _options(_actions(command, named=True))
        if command.exit_codes:
            yield ".PP"
            yield "It exits with"
            yield from _codes(command.exit_codes.items())
    yield ".SH EXIT STATUS"
    yield "Beside what each command has of its own:"
    yield from _codes(item for item in parser.all_exit_codes if item[0])
    yield ".SH SEE ALSO"
    yield _text(address_of("lab"))


def _commands(parser: Parser) -> dict[str, Parser]:
    found: dict[str, Parser] = {}
    for action in _all(parser):
        if isinstance(action, argparse._SubParsersAction):  # pyright: ignore[reportPrivateUsage]
            choices: Any = action.choices  # pyright: ignore[reportUnknownVariableType]
            found.update(choices)
    return found


def _actions(parser: Parser, *, named: bool) -> list[argparse.Action]:
    """The options, or what stands on the command line without one."""
    return [
        action
        for action in _all(parser)
        if bool(action.option_strings) is named
        and not isinstance(action, argparse._SubParsersAction)  # pyright: ignore[reportPrivateUsage]
    ]


def _all(parser: Parser) -> list[argparse.Action]:
    # argparse has no public list of a parser's arguments.
    return parser._actions


def _options(actions: Iterable[argparse.Action]) -> Iterator[str]:
    for action in actions:
        value = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
        names = ", ".join(f"\\fB{_text(name)}\\fR" for name in action.option_strings)
        yield ".TP"
        yield " ".join(filter(None, [names, value and _italic(value)]))
        yield _text((action.help or "") % vars(action))


def _codes(codes: Iterable[tuple[int, str]]) -> Iterator[str]:
    for code, meaning in codes:
        yield ".TP"
        yield f".B {code}"
        yield _text(meaning)


def _italic(text: str) -> str:
    return f"\\fI{_text(text)}\\fR"


def _text(text: str) -> str:
    """What a text is in roff: its hyphens can be copied, and no line of it is a macro."""
    text = re.sub(r"\s+", " ", text.replace("\\", "\\e").replace("-", "\\-"))
    return f"\\&{text}" if text.startswith((".", "'")) else text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
