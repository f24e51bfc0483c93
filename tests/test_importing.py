"""Importing is cheap: no event loop, no TLS, no optional package, no thread."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import graceful_close

HEAVY = [
    "asyncio", "anyio", "concurrent.futures", "ctypes", "gevent", "logging", "rich", "ssl",
    "subprocess", "trio", "typing_extensions",
]  # fmt: skip


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.parametrize("module", HEAVY)
def test_importing_loads_no_event_loop_and_no_optional_package(module: str) -> None:
    loaded = run("import graceful_close, sys; print(*sys.modules)").split()
    assert "graceful_close" in loaded
    assert module not in loaded


def test_importing_starts_no_thread_and_opens_no_descriptor() -> None:
    code = """
import os, socket, threading
def held(): return sorted(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else []
before = held()
import graceful_close
assert held() == before, (before, held())
assert threading.active_count() == 1
"""
    run(code)


def test_importing_does_not_turn_the_gil_on() -> None:
    """A free-threaded Python enables the GIL for a compiled module that does not declare support."""
    code = """
import sys
enabled = getattr(sys, "_is_gil_enabled", lambda: True)
before = enabled()
import graceful_close.asgi, graceful_close.asyncio, graceful_close.socketserver, graceful_close.wsgi
import graceful_close_lab.lab_command
print(before == enabled())
"""
    assert run(code) == "True\n"


def test_only_the_command_imports_the_lab() -> None:
    package = Path(graceful_close.__file__).parent
    knowing = {
        file.relative_to(package).as_posix()
        for file in package.rglob("*.py")
        if "graceful_close_lab" in file.read_text(encoding="utf-8")
    }
    assert knowing == {"__main__.py"}


def test_all_lists_every_public_name() -> None:
    public = {
        name
        for name, value in vars(graceful_close).items()
        # Another test may have imported graceful_close.asyncio.
        if not (name.startswith("_") or isinstance(value, ModuleType))
    }
    on_demand = {"CloseOptions", "ReaperOptions"}
    assert public - {"TYPE_CHECKING"} == set(graceful_close.__all__) - on_demand


@pytest.mark.parametrize("name", ["CloseOptions", "ReaperOptions"])
def test_the_types_of_the_options_are_loaded_on_first_use(name: str) -> None:
    module = "graceful_close._option_types"
    code = f"""
import graceful_close, sys
print({module!r} in sys.modules)
from graceful_close import {name}
print({module!r} in sys.modules, {name}.__name__)
"""
    assert run(code).split() == ["False", "True", name]


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="graceful_close"):
        graceful_close.graceful_clse  # noqa: B018


@pytest.mark.parametrize(
    "close", ["graceful_close(a)", "timed_linger_close(a, 5)", "abortive_close(a)"]
)
def test_a_close_of_a_plain_socket_loads_neither_ssl_nor_ctypes(close: str) -> None:
    code = f"""
from graceful_close import *
import socket, sys
a, b = socket.socketpair()
b.close()
{close}
print(*{{"ssl", "_ssl", "ctypes"}} & {{*sys.modules}})
"""
    assert run(code) == "\n"
