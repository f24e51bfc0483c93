"""graceful_close.waitress.serve: what waitress.serve accepts."""

from __future__ import annotations

import subprocess
import sys

import pytest

from streams import DEADLINE

pytest.importorskip("waitress")

# A server that stops immediately.
PROGRAM = """
import sys
from importlib import import_module
import waitress

def create(app, **settings):
    server = waitress.create_server(app, **settings)
    server.print_listen, server.run = print, lambda: print("serves")
    return server

import_module(sys.argv[1]).serve(
    lambda environ, start_response: [], port=0, threads=1, _server=create,
    _quiet="quiet" in sys.argv, _profile="profile" in sys.argv,
)
"""


@pytest.mark.parametrize("module", ["waitress", "graceful_close.waitress"])
@pytest.mark.parametrize("words", [[], ["quiet"], ["profile"]], ids=str)
def test_the_arguments_of_waitress_serve_are_accepted(module: str, words: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, module, *words],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert "serves" in ended.stdout, ended.stderr
    assert ("Serving on" in ended.stdout) is ("quiet" not in words)
    assert ("function calls" in ended.stdout) is ("profile" in words)
