"""The files in typed/ use every public name, so type checkers check all of them.

mypy, pyright and pyrefly check these files with the other sources. Code that they must reject
has a `# type: ignore`, and mypy and pyright report one that is not needed.
"""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

import graceful_close

FOLDER = Path(__file__).parent / "typed"

SHOWN_IN = {
    "graceful_close": "top.py",
    "graceful_close.asyncio": "in_asyncio.py",
    "graceful_close.trio": "in_trio.py",
    "graceful_close.anyio": "in_anyio.py",
    "graceful_close.socketserver": "in_socketserver.py",
    "graceful_close.uvicorn": "in_uvicorn.py",
    "graceful_close.gunicorn": "in_ready_modules.py",
    "graceful_close.waitress": "in_ready_modules.py",
    "graceful_close.werkzeug": "in_ready_modules.py",
}


def shown(file: str) -> set[str]:
    """Return every identifier and every keyword argument that a file uses."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((FOLDER / file).read_text(encoding="utf-8"))):
        match node:
            case ast.Name(name) | ast.Attribute(attr=name) | ast.keyword(arg=str(name)):
                names.add(name)
            case _:
                pass
    return names


def public(module: str) -> Iterator[str]:
    """Return the names in a module's `__all__`, and the public members of its classes."""
    found = importlib.import_module(module)
    for name in found.__all__:
        yield name
        public_object = getattr(found, name)
        if inspect.isclass(public_object):
            members = vars(public_object) | getattr(public_object, "__annotations__", {})
            yield from (member for member in members if not member.startswith("_"))


@pytest.mark.parametrize("module", SHOWN_IN)
def test_every_public_name_and_member_is_used_in_typed(module: str) -> None:
    assert set(public(module)) - shown(SHOWN_IN[module]) == set()


@pytest.mark.parametrize("module", SHOWN_IN)
def test_every_keyword_parameter_is_used_in_typed(module: str) -> None:
    found = importlib.import_module(module)
    keywords = {
        parameter.name
        for name in found.__all__
        if not isinstance(getattr(found, name), enum.EnumMeta)
        and not typing.is_typeddict(getattr(found, name))
        for parameter in inspect.signature(getattr(found, name)).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    assert keywords - shown(SHOWN_IN[module]) == set()


EVENT_LOOPS = ["graceful_close.asyncio", "graceful_close.trio", "graceful_close.anyio"]


def options_of(called: object) -> set[str]:
    """Return the keyword-only parameters of a function."""
    return {
        parameter.name
        for parameter in inspect.signature(called).parameters.values()  # type: ignore[arg-type]
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def fields(file: str, name: str) -> set[str]:
    """Return the keys of a TypedDict, which exists only for type checkers."""
    source = Path(inspect.getfile(graceful_close)).with_name(file).read_text(encoding="utf-8")
    [found] = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef) and node.name == name
    ]
    return {
        each.target.id
        for each in found.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    }


def test_the_typed_options_are_those_of_the_functions() -> None:
    close_options = fields("_option_types.py", "CloseOptions")
    assert close_options == options_of(graceful_close.graceful_close)
    reaper_options = close_options | fields("_option_types.py", "ReaperOptions")
    assert reaper_options == options_of(graceful_close.Reaper)


@pytest.mark.parametrize("module", EVENT_LOOPS)
def test_every_option_of_graceful_close_is_used_in_typed_for_every_event_loop(
    module: str,
) -> None:
    options = options_of(graceful_close.graceful_close)
    assert options - shown(SHOWN_IN[module]) == set()
