"""Programs under gevent or eventlet, which replace the sockets of the interpreter."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

# What a program imports, and how it then replaces the sockets.
LIBRARIES = {
    "gevent": ("import gevent as library, gevent.monkey", "gevent.monkey.patch_all()"),
    "eventlet": ("import eventlet as library", "library.monkey_patch()"),
}

before_and_after_the_import = pytest.mark.parametrize("when", ["before the import", "after it"])


def output_under(library: str, program: str, when: str) -> str:
    """Run a program that has {library}, and {patch} before and {patch_late} after its imports."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"needs {library}")
    imports, patch = LIBRARIES[library]
    program = program.replace("{library}", imports)
    program = program.replace("{patch}", patch if when == "before the import" else "")
    program = program.replace("{patch_late}", patch if when == "after it" else "")
    ran = subprocess.run(
        # eventlet warns that it is deprecated
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
