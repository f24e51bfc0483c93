"""What tests of a Reaper wait for, and what they do with its threads and futures."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from graceful_close import CloseOutcome, CloseResult, Reaper
from streams import DEADLINE, connect, wait_until

_left: set[threading.Thread] = set()


def forget_threads() -> None:
    """Exclude the threads of an earlier test from `threads`."""
    _left.clear()
    _left.update(threads())


def threads() -> list[threading.Thread]:
    """Return the threads of this test's Reapers."""
    named = {t for t in threading.enumerate() if t.name == "graceful-close reaper"}
    return [*named - _left]


def await_end(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()


def result_of(future: Future[CloseResult]) -> CloseResult:
    return future.result(DEADLINE)


def outcomes(futures: list[Future[CloseResult]]) -> list[CloseOutcome]:
    return [result_of(future).outcome for future in futures]


def assert_it_works(reaper: Reaper) -> None:
    with connect("tcp4") as (ours, peer):
        future = reaper.submit(ours)
        peer.close()
        assert result_of(future).outcome is CloseOutcome.PEER_CLOSED


def assert_gone(peer: socket.socket, when: object = "") -> None:
    """Check that the other end is closed."""
    with suppress(ConnectionError):
        peer.send(b"x")
    poller = select.poll()
    poller.register(peer, 0)
    assert poller.poll(DEADLINE * 1000), f"it is still open {when}"


@contextmanager
def kept_thread(reaper: Reaper) -> Generator[Callable[[], None], None, None]:
    """Block the Reaper's thread in a callback, until the end of the block or `release()`."""
    entered, continue_later = threading.Event(), threading.Event()

    def block(_: Future[CloseResult]) -> None:
        entered.set()
        continue_later.wait(DEADLINE)

    close_and(reaper, block)
    assert entered.wait(DEADLINE)
    try:
        yield continue_later.set
    finally:
        continue_later.set()


def close_and(
    reaper: Reaper, callback: Callable[[Future[CloseResult]], object]
) -> Future[CloseResult]:
    """Submit a connection, and run an action in its callback."""
    with connect("tcp4") as (ours, peer):
        future = reaper.submit(ours)
        future.add_done_callback(callback)
        peer.close()
        result_of(future)
        return future


def submit(reaper: Reaper, sock: socket.socket, futures: list[Future[CloseResult]]) -> None:
    futures.append(reaper.submit(sock))


def times_awake(thread: threading.Thread) -> tuple[str, ...]:
    """Return the thread's state, and its number of context switches (proc_pid_status(5))."""
    status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    return (
        fields["State"],
        fields["voluntary_ctxt_switches"],
        fields["nonvoluntary_ctxt_switches"],
    )


def await_sleep(thread: threading.Thread) -> tuple[str, ...]:
    state = await_rest(thread)
    assert state is not None, "the thread has ended"
    return state


def await_rest(thread: threading.Thread) -> tuple[str, ...] | None:
    """Wait until the thread is idle for a twentieth of a second; None: it has ended."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        try:
            before = times_awake(thread)
            thread.join(0.05)
            if times_awake(thread) == before and before[0].startswith("S"):
                return before
        except OSError:
            pass  # ENOENT, ESRCH: the thread has just ended
        if not thread.is_alive():
            return None
    raise AssertionError("the thread never slept")


def wait_until_counted(reaper: Reaper, connections: int) -> None:
    wait_until(lambda: sum(reaper.stats().values()) >= connections)


def start_and_let_it_run(thread: threading.Thread) -> None:
    """Start a thread, and wait until it has ended or is blocked."""
    thread.start()
    await_rest(thread)


@contextmanager
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Generator[None, None, None]:
    """Make the start of a thread fail, as a limit of processes does."""

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        for name in ("_start_new_thread", "_start_joinable_thread"):
            if hasattr(threading, name):
                patch.setattr(threading, name, refuse)
        yield
