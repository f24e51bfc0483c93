"""Runs CPython's tests of its servers, with the mixin on every server that they start.

    PYTHONPATH=src python tests/cpython_tests.py [test_xmlrpc ...]

Prints the number of tests and servers, and how the connections ended. The exit status is 0 if
all tests passed. The interpreter needs the `test` package, which some distributions omit;
without it the status is NO_TESTS.
"""

from __future__ import annotations

import socketserver
import sys
import tempfile
import unittest
import weakref
from collections import Counter
from contextlib import chdir
from importlib.util import find_spec
from typing import Any

from graceful_close import Reaper
from graceful_close.socketserver import GracefulMixIn

MODULES = ("test_httpservers", "test_socketserver", "test_wsgiref", "test_xmlrpc")

NO_TESTS = 2

ENDS: Counter[str] = Counter()
SERVERS: list[weakref.finalize[..., Any]] = []


def end(reaper: Reaper) -> None:
    """Count the closes of a server, and close it if its test did not."""
    reaper.close()
    ENDS.update({outcome.value: count for outcome, count in reaper.stats().items()})


def new(plain: type[socketserver.BaseServer], *_args: object, **_options: object) -> Any:
    """Make a graceful subclass of the requested server, as a user does."""
    # Some tests leave a client open, or its copy in a forked child.
    members = {"reaper_options": {"idle_timeout": 0.5}}
    server: Any = object.__new__(type(plain.__name__, (GracefulMixIn, plain), members))
    SERVERS.append(weakref.finalize(server, end, server.reaper))
    return server


def run(names: list[str]) -> unittest.TestResult:
    suite = unittest.defaultTestLoader.loadTestsFromNames(names)
    return unittest.TextTestRunner().run(suite)


def main(names: list[str]) -> int:
    if find_spec("test") is None or find_spec("test.test_socketserver") is None:
        print(f"{sys.executable} has no tests of its own", file=sys.stderr)
        return NO_TESTS
    socketserver.BaseServer.__new__ = new  # type: ignore[method-assign,assignment]
    with (
        tempfile.TemporaryDirectory() as folder,
        chdir(folder),
    ):  # they leave files in the folder
        result = run([f"test.{name}" for name in names or MODULES])
        failed = [test.id() for test, _ in result.failures + result.errors]
        # Run them again, like `python -m test -w`: some tests have races with their threads.
        passed = not failed or run(failed).wasSuccessful()
    for server in SERVERS:
        server()
    print(
        f"{result.testsRun} tests, {len(failed)} failed{' once' if failed and passed else ''}, "
        f"{len(result.skipped)} skipped; {len(SERVERS)} servers; "
        f"{ENDS.total()} connections: "
        + ", ".join(f"{count} {outcome}" for outcome, count in ENDS.items() if count)
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
