"""Fixtures: real connections of every kind, and checks for leaked descriptors and threads."""

from __future__ import annotations

import gc
import os
import select
import selectors
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import graceful_close
from graceful_close import Reaper
from reaping import forget_threads
from streams import DEADLINE, Connection, Full, connect, connect_many, fill, listen
from tls_sessions import Session, session

FAMILIES = ("tcp4", "tcp6", "unix")


def _held() -> set[str]:
    """Return the descriptors of this process, and what each refers to."""
    if not sys.platform.startswith("linux"):
        return set()
    held: set[str] = set()
    for entry in os.listdir("/proc/self/fd"):
        try:
            held.add(f"{entry}: {os.readlink(f'/proc/self/fd/{entry}')}")
        except FileNotFoundError:
            continue  # the descriptor that listed the folder
    return held


@pytest.fixture(autouse=True, scope="module")
def _imported_objects_are_not_collected() -> Iterator[None]:
    """Exclude imported objects from the garbage collection after each test, which is faster."""
    if sys.implementation.name != "cpython":
        yield
        return
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _nothing_is_leaked() -> Iterator[None]:
    """Fail a test that leaks a descriptor or a thread."""
    # Made once for the process and kept intentionally, so it is not a leak.
    descriptors, threads = _held(), set(threading.enumerate())
    yield
    for _ in range(5):  # PyPy finalizes an object in the collection after that of its owner
        gc.collect()
        if not _held() - descriptors:
            break
    assert _held() - descriptors == set()
    left = set(threading.enumerate()) - threads
    for thread in left:
        thread.join(1)  # rich stops its thread, but does not wait for it
    assert {thread for thread in left if thread.is_alive()} == set()


@pytest.fixture(scope="module")
def unmeasured() -> Iterator[None]:
    """Pause the measurement of coverage in this process.

    The mark `no_cover` of pytest-cov pauses one measurement of two: a worker of pytest-xdist has
    another by `patch = ["subprocess"]`.
    """
    ours, of_threads = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)
    yield
    threading.settrace(of_threads)
    sys.settrace(ours)


@pytest.fixture(params=FAMILIES)
def any_family(request: pytest.FixtureRequest) -> str:
    family: str = request.param
    if family == "tcp6" and not _has_ipv6():
        pytest.skip("this machine has no IPv6 loopback")
    return family


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def stream(any_family: str) -> Iterator[Connection]:
    """A connection of each kind of stream: `ours` is closed, and `peer` observes the close."""
    with connect(any_family) as connection:
        yield connection


@pytest.fixture
def tcp() -> Iterator[Connection]:
    with connect("tcp4") as connection:
        yield connection


@pytest.fixture
def full() -> Iterator[Full]:
    """A TCP connection whose peer reads nothing, and whose buffers are full."""
    with connect("tcp4", peer_buffer=4096) as (ours, peer):
        yield Full(ours, peer, fill(ours))


@pytest.fixture(params=["1.2", "1.3"])
def version(request: pytest.FixtureRequest) -> ssl.TLSVersion:
    return ssl.TLSVersion.TLSv1_2 if request.param == "1.2" else ssl.TLSVersion.TLSv1_3


@pytest.fixture(params=["server", "client"])
def side(request: pytest.FixtureRequest) -> str:
    """The side that is ours."""
    chosen: str = request.param
    return chosen


@pytest.fixture(params=["tcp4", "unix"])
def family(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture
def tls(version: ssl.TLSVersion) -> Iterator[Session]:
    with session(version) as both:
        yield both


@pytest.fixture
def any_tls(version: ssl.TLSVersion, family: str, side: str) -> Iterator[Session]:
    with session(version, family, side) as both:
        yield both


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with listen("tcp4") as listener:
        yield listener


@pytest.fixture
def vsock() -> Iterator[socket.socket]:
    """A stream socket without a peer (vsock(7))."""
    family = getattr(socket, "AF_VSOCK", None)
    if family is None:
        pytest.skip("this Python has no AF_VSOCK")
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        pytest.skip(f"this kernel has no AF_VSOCK: {error}")
    with sock:
        yield sock


@pytest.fixture
def crowd() -> Iterator[list[Connection]]:
    with connect_many(10) as connections:
        yield connections


@pytest.fixture(params=["epoll", "poll"])
def selector(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run each test with every kind of selector."""
    name: str = request.param
    if name != "epoll":
        monkeypatch.delattr(select, "epoll", raising=False)
    if name == "poll":
        monkeypatch.setattr(selectors, "DefaultSelector", selectors.PollSelector)
    if name == "select":
        monkeypatch.setattr(selectors, "DefaultSelector", selectors.SelectSelector)
        monkeypatch.setattr("graceful_close._selector._SELECTABLE", 3)
    return name


@pytest.fixture
def reaper(selector: str) -> Iterator[Reaper]:
    """A Reaper with every kind of selector."""
    del selector
    with Reaper(timeout=DEADLINE, idle_timeout=None) as reaper:
        yield reaper


@pytest.fixture
def no_threads_of_an_earlier_test() -> None:
    forget_threads()


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[BaseException | None]:
    """Yield the exceptions reported to threading.excepthook, which fails as with a broken stderr."""
    reported: list[BaseException | None] = []

    def report(args: threading.ExceptHookArgs) -> None:
        reported.append(args.exc_value)
        raise BrokenPipeError

    monkeypatch.setattr(threading, "excepthook", report)
    return reported


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--soak",
        dest="soak",
        type=int,
        default=1000,
        help="the number of random schedules in the soak test",
    )
    parser.addoption(
        "--situations",
        dest="situations",
        type=int,
        default=0,
        help="the number of random situations, in addition to those that cover every pair",
    )
    parser.addoption(
        "--no-skips", action="store_true", help="fail if a selected test is skipped"
    )


def pytest_configure() -> None:
    # A shell sets SIGINT to ignored for background programs, and Python keeps that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.getoption("--no-skips") and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_report_header() -> str:
    return f"graceful-close from {Path(graceful_close.__file__).parent}"
