"""Every public object has a docstring with arguments, units, ranges and errors."""

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

# Callables whose arguments another docstring describes: that of a base, or of an overridden
# method.
STANDARD = frozenset(inspect.signature(socket.create_server).parameters)
BASES: dict[str, type] = {"GracefulMixIn": socketserver.BaseServer}

# Exceptions that a called function may raise, but not with the arguments of that call.
EXCUSED = {
    "graceful_close.gunicorn.post_worker_init": {"ValueError"},  # in the main thread
    "graceful_close.get_linger": {"ValueError"},  # the seconds are checked before
    "graceful_close.asyncio.abortive_close": {"NotImplementedError"},  # it does not wait
    # The options of these callables are numbers.
    "graceful_close.uvicorn.new_asyncio_loop": {"TypeError"},
    "graceful_close.uvicorn.new_uvloop": {"TypeError"},
}


class Documented(NamedTuple):
    """A public callable.

    Attributes:
        name: The qualified name.
        called: The callable; for a class, its constructor.
        doc: The docstring.
        owner: The class that it is, or is a member of.
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
    """Return the public members that a class itself defines."""
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
    """Return one section of a docstring, without its indentation."""
    titles = "|".join(SECTIONS)
    found = re.search(
        rf"^{title}:(.*?)(?=^(?:{titles}):|^\.\. |\Z)", doc, re.MULTILINE | re.DOTALL
    )
    return textwrap.dedent(found[1].strip("\n")) if found else ""


def entries(doc: str, title: str) -> dict[str, str]:
    """Return the description of each name in a section. Names may share a description."""
    descriptions: dict[str, str] = {}
    for names, text in re.findall(
        r"^(\w+(?:, \w+)*): ((?:.|\n(?=\s|\Z))*)", section(doc, title), re.MULTILINE
    ):
        descriptions |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return descriptions


def parameters(called: Any) -> dict[str, inspect.Parameter]:
    found = dict(inspect.signature(called).parameters)
    return {name: each for name, each in found.items() if name not in {"self", "cls"}}


def is_inherited(each: Documented) -> bool:
    """Return whether a class of another package describes the arguments."""
    if each.owner is None or each.called.__name__ == "__init__":
        return False
    bases = [*each.owner.__mro__[1:], BASES.get(each.owner.__name__, object)]
    return any(hasattr(base, each.called.__name__) for base in bases)


def is_number(annotation: object) -> bool:
    return re.search(r"\b(int|float)\b", str(annotation)) is not None


# --- the rules -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", dict(public()))
def test_every_public_object_and_member_has_a_docstring(name: str) -> None:
    found = dict(public())[name]
    docstrings = {name: found.__doc__}
    if inspect.isclass(found) and not issubclass(found, enum.Enum):
        docstrings |= {
            f"{name}.{member}": inspect.getdoc(value)
            for member, value in members(found)
            if inspect.isfunction(value) or isinstance(value, property)
        }
    for what, doc in docstrings.items():
        assert doc, what
        assert doc.strip().splitlines()[0].endswith("."), what


@pytest.mark.parametrize(
    "name", [name for name, it in public() if inspect.isclass(it) and issubclass(it, enum.Enum)]
)
def test_every_member_of_an_enum_has_a_docstring(name: str) -> None:
    found = dict(public())[name]
    body = ast.parse(textwrap.dedent(inspect.getsource(found))).body[0]
    assert isinstance(body, ast.ClassDef)
    for statement, after in zip(body.body, [*body.body[1:], None], strict=True):
        if isinstance(statement, ast.Assign):
            assert isinstance(after, ast.Expr), ast.unparse(statement)
            assert isinstance(after.value, ast.Constant), ast.unparse(statement)


@pytest.mark.parametrize("name", dict(public()))
def test_every_public_function_has_an_example(name: str) -> None:
    doc = inspect.getdoc(dict(public())[name]) or ""
    before_the_sections = re.split(rf"^(?:{'|'.join(SECTIONS)}):", doc, flags=re.MULTILINE)[0]
    assert re.search(r"^ {4}\S", before_the_sections, re.MULTILINE)


@every_callable
def test_the_args_section_has_exactly_the_arguments(name: str) -> None:
    each = CALLABLES[name]
    described = entries(each.doc, "Args")
    expected = set(parameters(each.called))
    assert set(described) - expected == set()
    shown = set(entries(each.doc, "Attributes")) | set(re.findall(r"`(\w+)`", each.doc))
    if each.owner:
        shown |= {member for member, it in members(each.owner) if isinstance(it, property)}
    if not is_inherited(each):
        assert expected - set(described) - shown == set()


def numbers(each: Documented) -> Iterator[tuple[str, str]]:
    """Return the name and the description of each argument that is a number."""
    described = entries(each.doc, "Args")
    for name, parameter in parameters(each.called).items():
        if is_number(parameter.annotation) and name not in STANDARD:
            yield name, described.get(name, "as inherited `")


@every_callable
def test_every_number_has_a_unit_or_a_reference(name: str) -> None:
    for argument, text in numbers(CALLABLES[name]):
        has_unit = UNITS.search(argument) or UNITS.search(text) or ELSEWHERE.search(text)
        assert has_unit, f"{argument}: {text}"


@every_callable
def test_every_number_has_a_range_or_a_reference(name: str) -> None:
    each = CALLABLES[name]
    home = CALLABLES["graceful_close.graceful_close"]
    options = frozenset[str]() if each is home else frozenset(parameters(home.called))
    for argument, text in numbers(each):
        if argument not in options:
            assert RANGE.search(text) or ELSEWHERE.search(text), f"{argument}: {text}"


@pytest.mark.parametrize("name", [name for name, it in public() if inspect.isclass(it)])
def test_every_numeric_attribute_has_a_unit(name: str) -> None:
    for member, value in members(dict(public())[name]):
        read = value.fget if isinstance(value, property) else None
        if read is not None and is_number(inspect.signature(read).return_annotation):
            assert UNITS.search(f"{member} {inspect.getdoc(value)}"), member


class Raised(ast.NodeVisitor):
    """The exceptions that a function raises, or propagates from a documented function.

    Only code outside of `try` counts, because exceptions inside may be caught.
    """

    def __init__(self, scope: dict[str, Any]) -> None:
        self._scope = scope
        self.names: set[str] = set()

    def visit_Try(self, node: ast.Try) -> None:
        for statement in [*node.orelse, *node.finalbody]:
            self.visit(statement)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        pass  # defined here, but called in another place

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
def test_every_exception_is_documented(name: str) -> None:
    each = CALLABLES[name]
    definition = ast.parse(textwrap.dedent(inspect.getsource(each.called))).body[0]
    assert isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef)
    raised = Raised(each.called.__globals__)
    for statement in definition.body:
        raised.visit(statement)
    assert raised.names - set(entries(each.doc, "Raises")) == EXCUSED.get(name, set())
