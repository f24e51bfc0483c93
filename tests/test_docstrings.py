"""Every public object says what it promises: arguments, units, ranges, errors."""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import re
import socket
import socketserver
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

MODULES = [
    "graceful_close",
    "graceful_close.asyncio",
    "graceful_close.trio",
    "graceful_close.anyio",
    "graceful_close.gunicorn",
    "graceful_close.socketserver",
    "graceful_close.uvicorn",
    "graceful_close.waitress",
    "graceful_close.werkzeug",
    "graceful_close.asgi",
    "graceful_close.wsgi",
]

SECTIONS = ("Args", "Attributes", "Notes", "Raises", "Returns", "Source", "Yields")

UNITS = re.compile(r"seconds|bytes|connections|sockets", re.IGNORECASE)
RANGE = re.compile(r"\d or more|at least \d|at most \d|more than \d", re.IGNORECASE)
ELSEWHERE = re.compile(r"\b(as|see|for|of) [^.;]*`|\bas for\b|\bfor each\b", re.IGNORECASE)

# Whose arguments somebody else has described: in its own words, or by what it overrides.
STANDARD = frozenset(inspect.signature(socket.create_server).parameters)
BASES: dict[str, type] = {"GracefulMixIn": socketserver.BaseServer}

# What a function that is called may raise, but not as it is called there.
EXCUSED = {
    "graceful_close.gunicorn.post_worker_init": {"ValueError"},  # in the main thread
    "graceful_close.get_linger": {"ValueError"},  # the seconds are looked at before
    "graceful_close.asyncio.abortive_close": {"NotImplementedError"},  # it waits for nothing
    # Their options are numbers.
    "graceful_close.uvicorn.new_asyncio_loop": {"TypeError"},
    "graceful_close.uvicorn.new_uvloop": {"TypeError"},
}


class Documented(NamedTuple):
    """Something public that is called.

    Attributes:
        name: Where it is found.
        called: It, or what a class calls to make one.
        doc: Its docstring.
        owner: The class that it is a member of, or is.
    """

    name: str
    called: Any
    doc: str
    owner: type | None


def public() -> Iterator[tuple[str, Any]]:
    for module in MODULES:
        found = importlib.import_module(module)
        for name in found.__all__:
            yield f"{module}.{name}", getattr(found, name)


def members(owner: type) -> Iterator[tuple[str, Any]]:
    """What a class defines itself, and shows."""
    for name, member in vars(owner).items():
        if not name.startswith("_"):
            yield name, getattr(member, "__func__", member)


def callables() -> Iterator[Documented]:
    for name, found in public():
        doc = inspect.getdoc(found) or ""
        if not inspect.isclass(found):
            yield Documented(name, found, doc, None)
        elif not issubclass(found, enum.Enum):
            if "__init__" in vars(found):
                yield Documented(name, found.__init__, doc, found)
            for member, called in members(found):
                if inspect.isfunction(called):
                    yield Documented(
                        f"{name}.{member}", called, inspect.getdoc(called) or "", found
                    )


CALLABLES = {each.name: each for each in callables()}

every_callable = pytest.mark.parametrize("name", CALLABLES)


def section(doc: str, title: str) -> str:
    """One section of a docstring, without its indentation."""
    titles = "|".join(SECTIONS)
    found = re.search(
        rf"^{title}:(.*?)(?=^(?:{titles}):|^\.\. |\Z)", doc, re.MULTILINE | re.DOTALL
    )
    return textwrap.dedent(found[1].strip("\n")) if found else ""


def entries(doc: str, title: str) -> dict[str, str]:
    """What a section says of each name. Names that share what is said stand before one colon."""
    said: dict[str, str] = {}
    for names, text in re.findall(
        r"^(\w+(?:, \w+)*): ((?:.|\n(?=\s|\Z))*)", section(doc, title), re.MULTILINE
    ):
        said |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return said


def parameters(called: Any) -> dict[str, inspect.Parameter]:
    found = dict(inspect.signature(called).parameters)
    return {name: each for name, each in found.items() if name not in {"self", "cls"}}


def is_inherited(each: Documented) -> bool:
    """Whether a class of somebody else's says what the arguments are."""
    if each.owner is None or each.called.__name__ == "__init__":
        return False
    bases = [*each.owner.__mro__[1:], BASES.get(each.owner.__name__, object)]
    return any(hasattr(base, each.called.__name__) for base in bases)


def is_number(annotation: object) -> bool:
    return re.search(r"\b(int|float)\b", str(annotation)) is not None


# --- the rules -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", dict(public()))
def test_it_has_a_docstring_and_so_have_its_members(name: str) -> None:
    found = dict(public())[name]
    told = {name: found.__doc__}
    if inspect.isclass(found) and not issubclass(found, enum.Enum):
        told |= {
            f"{name}.{member}": inspect.getdoc(value)
            for member, value in members(found)
            if inspect.isfunction(value) or isinstance(value, property)
        }
    for what, doc in told.items():
        assert doc, what
        assert doc.strip().splitlines()[0].endswith("."), what


@pytest.mark.parametrize(
    "name", [name for name, it in public() if inspect.isclass(it) and issubclass(it, enum.Enum)]
)
def test_every_member_of_an_enum_is_followed_by_what_it_means(name: str) -> None:
    found = dict(public())[name]
    body = ast.parse(textwrap.dedent(inspect.getsource(found))).body[0]
    assert isinstance(body, ast.ClassDef)
    for statement, after in zip(body.body, [*body.body[1:], None], strict=True):
        if isinstance(statement, ast.Assign):
            assert isinstance(after, ast.Expr), ast.unparse(statement)
            assert isinstance(after.value, ast.Constant), ast.unparse(statement)


@pytest.mark.parametrize("name", dict(public()))
def test_it_has_an_example(name: str) -> None:
    doc = inspect.getdoc(dict(public())[name]) or ""
    before_the_sections = re.split(rf"^(?:{'|'.join(SECTIONS)}):", doc, flags=re.MULTILINE)[0]
    assert re.search(r"^ {4}\S", before_the_sections, re.MULTILINE)


@every_callable
def test_every_argument_is_described_and_nothing_else_is(name: str) -> None:
    each = CALLABLES[name]
    described = entries(each.doc, "Args")
    expected = set(parameters(each.called))
    assert set(described) - expected == set()
    shown = set(entries(each.doc, "Attributes")) | set(re.findall(r"`(\w+)`", each.doc))
    if each.owner:
        shown |= {member for member, it in members(each.owner) if isinstance(it, property)}
    if not is_inherited(each):
        assert expected - set(described) - shown == set()


@every_callable
def test_every_number_has_a_unit_or_says_where_it_is(name: str) -> None:
    each = CALLABLES[name]
    described = entries(each.doc, "Args")
    for parameter in parameters(each.called).values():
        text = described.get(parameter.name, "as inherited `")
        if is_number(parameter.annotation) and parameter.name not in STANDARD:
            told = UNITS.search(parameter.name) or UNITS.search(text) or ELSEWHERE.search(text)
            assert told, f"{parameter.name}: {text}"


@every_callable
def test_every_number_has_a_range_here_or_in_graceful_close(name: str) -> None:
    each = CALLABLES[name]
    home = CALLABLES["graceful_close.graceful_close"]
    described = entries(each.doc, "Args")
    options = frozenset[str]() if each is home else frozenset(parameters(home.called))
    for parameter in parameters(each.called).values():
        text = described.get(parameter.name, "as inherited `")
        if is_number(parameter.annotation) and parameter.name not in options | STANDARD:
            assert RANGE.search(text) or ELSEWHERE.search(text), f"{parameter.name}: {text}"


@pytest.mark.parametrize("name", [name for name, it in public() if inspect.isclass(it)])
def test_every_number_that_is_read_from_an_object_has_a_unit(name: str) -> None:
    for member, value in members(dict(public())[name]):
        read = value.fget if isinstance(value, property) else None
        if read is not None and is_number(inspect.signature(read).return_annotation):
            assert UNITS.search(f"{member} {inspect.getdoc(value)}"), member


class Raised(ast.NodeVisitor):
    """What a function raises itself, or lets through from a function that says that it raises.

    Only what stands outside of any `try`: what stands inside may be caught.
    """

    def __init__(self, scope: dict[str, Any]) -> None:
        self._scope = scope
        self.names: set[str] = set()

    def visit_Try(self, node: ast.Try) -> None:
        for statement in [*node.orelse, *node.finalbody]:
            self.visit(statement)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        pass  # defined here, and called elsewhere

    def visit_Lambda(self, node: ast.Lambda) -> None:
        pass

    def visit_Raise(self, node: ast.Raise) -> None:
        if isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            self.names.add(node.exc.func.id)

    def visit_Call(self, node: ast.Call) -> None:
        called = self._scope.get(node.func.id) if isinstance(node.func, ast.Name) else None
        if getattr(called, "__module__", "").startswith("graceful_close"):
            self.names.update(entries(inspect.getdoc(called) or "", "Raises"))
        self.generic_visit(node)


@every_callable
def test_what_it_raises_is_said(name: str) -> None:
    each = CALLABLES[name]
    definition = ast.parse(textwrap.dedent(inspect.getsource(each.called))).body[0]
    assert isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef)
    raised = Raised(each.called.__globals__)
    for statement in definition.body:
        raised.visit(statement)
    assert raised.names - set(entries(each.doc, "Raises")) == EXCUSED.get(name, set())
