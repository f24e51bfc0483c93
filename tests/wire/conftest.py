"""A wire for each test, over IPv4 and IPv6."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from .laid import Wire
from .link import ADDRESSES, Link, why_not
from .table import Page

_WIRE = pytest.StashKey[Wire]()
_PASSED = pytest.StashKey[bool]()
_PAGE = pytest.StashKey[Page]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_PAGE] = Page()


@pytest.fixture(scope="session")
def link() -> Iterator[Link]:
    reason = why_not()
    link: Link | None = None
    if reason is None:
        try:
            link = Link()
        except PermissionError as error:  # root in a container that may not call unshare(2)
            reason = f"the wire cannot be made here: {error}"
    if link is None:
        # If all requirements are met, a skip would hide that nothing was tested.
        if os.environ.get("CI") == "true" and hasattr(os, "geteuid") and os.geteuid() == 0:
            pytest.fail(str(reason))
        pytest.skip(str(reason))
    atexit.register(link.close)
    yield link
    link.close()
    atexit.unregister(link.close)


@pytest.fixture(params=ADDRESSES)
def wire(link: Link, request: pytest.FixtureRequest) -> Iterator[Wire]:
    """A new wire without rules; its sockets are closed afterwards."""
    with Wire(link, request.param) as wire:
        request.node.stash[_WIRE] = wire
        yield wire
        wire.settle()
    function: Any = request.function
    section = sys.modules[function.__module__].__doc__ or ""
    page = request.config.stash[_PAGE]
    for proof in wire.proofs if request.node.stash.get(_PASSED, False) else []:
        page.add(proof, section, function.__name__, function.__doc__, wire.version)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the recorded packets to the report of a failure."""
    report = yield
    if report.when == "call":
        item.stash[_PASSED] = report.passed
    if report.failed and _WIRE in item.stash:
        report.sections.append(("The recorded packets", item.stash[_WIRE].draw()))
    return report


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if os.environ.get("WRITE_DOCS") == "1" and exitstatus == 0:
        session.config.stash[_PAGE].write()
