"""Reaper: a worker submits its connection and continues."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import selectors
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import descriptors
from graceful_close import CloseOutcome, CloseResult, LingerPolicy, Reaper
from graceful_close._drain import drain_of
from graceful_close._future import CloseFuture
from graceful_close._loop import CloseLoop, Pending
from pythons import PYPY, without_coverage
from signals import Stop, moments, stop
from streams import (
    PATIENCE,
    Connection,
    await_fin,
    await_input,
    await_reset,
    connect,
    connect_many,
    ends_in_reset,
    fill,
    meanwhile,
    read_all,
    read_and_close,
    reset,
    wait_until,
)
from test_tls import fill_raw, session

REPLY = b"reply" * 13_000
HERE = Path(__file__).parent


@pytest.fixture(params=["epoll", "poll"])
def reaper(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reaper]:
    if request.param == "poll":
        monkeypatch.delattr(select, "epoll", raising=False)
        monkeypatch.setattr(selectors, "DefaultSelector", selectors.PollSelector)
    with Reaper(timeout=PATIENCE, idle_timeout=None) as reaper:
        yield reaper


@pytest.fixture(autouse=True)
def _no_threads_of_an_earlier_test() -> None:
    _left.clear()
    _left.update(threads())


_left: set[threading.Thread] = set()


def threads() -> list[threading.Thread]:
    """Return the threads of this test's Reapers."""
    named = {t for t in threading.enumerate() if t.name == "graceful-close reaper"}
    return [*named - _left]


def await_end(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def result_of(future: Future[CloseResult]) -> CloseResult:
    return future.result(PATIENCE)


def reply_early(connection: Connection) -> None:
    """Reply to an upload that is not read."""
    connection.peer.sendall(b"upload" * 1000)
    await_input(connection.ours)
    connection.ours.sendall(REPLY)


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
    assert poller.poll(PATIENCE * 1000), f"it is still open {when}"


@contextmanager
def kept_thread(reaper: Reaper) -> Generator[Callable[[], None], None, None]:
    """Block the Reaper's thread in a callback, until the end of the block or `release()`."""
    entered, continue_later = threading.Event(), threading.Event()

    def block(_: Future[CloseResult]) -> None:
        entered.set()
        continue_later.wait(PATIENCE)

    close_and(reaper, block)
    assert entered.wait(PATIENCE)
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


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[BaseException | None]:
    """Yield the exceptions reported to threading.excepthook."""
    reported: list[BaseException | None] = []

    def report(args: threading.ExceptHookArgs) -> None:
        reported.append(args.exc_value)

    monkeypatch.setattr(threading, "excepthook", report)
    return reported


def submit(reaper: Reaper, sock: socket.socket, futures: list[Future[CloseResult]]) -> None:
    futures.append(reaper.submit(sock))


# --- the purpose -----------------------------------------------------------------------


def test_unread_input_does_not_destroy_the_reply(stream: Connection, reaper: Reaper) -> None:
    reply_early(stream)
    future = reaper.submit(stream.ours)
    assert stream.ours.fileno() == -1
    assert read_and_close(stream.peer) == REPLY
    result = result_of(future)
    assert (result.outcome, result.drained) == (CloseOutcome.PEER_CLOSED, 6000)


def test_submit_returns_before_a_slow_peer_closes(stream: Connection, reaper: Reaper) -> None:
    future = reaper.submit(stream.ours)
    assert stream.peer.recv(1) == b""
    assert not future.done()
    assert len(reaper) == 1
    stream.peer.close()
    assert result_of(future).outcome is CloseOutcome.PEER_CLOSED


def test_our_fin_is_sent_when_submit_returns(stream: Connection, reaper: Reaper) -> None:
    """This does not depend on the Reaper's thread."""
    with kept_thread(reaper):
        future = reaper.submit(stream.ours)
        assert stream.peer.recv(1) == b""
    stream.peer.close()
    assert result_of(future).outcome is CloseOutcome.PEER_CLOSED


@pytest.mark.parametrize("mode", [None, 0.0, 30.0])
def test_sockets_of_every_mode_close_the_same_way(
    stream: Connection, reaper: Reaper, mode: float | None
) -> None:
    stream.ours.settimeout(mode)
    stream.peer.sendall(b"unread")
    future = reaper.submit(stream.ours)
    assert read_and_close(stream.peer) == b""
    result = result_of(future)
    assert (result.outcome, result.drained) == (CloseOutcome.PEER_CLOSED, 6)


def test_each_close_ends_like_a_single_close_and_is_counted(listener: socket.socket) -> None:
    with (
        connect_many(6) as crowd,
        connect_many(1, peer_buffer=4096) as full,
        Reaper(timeout=0.3, idle_timeout=None, drain_limit=1000) as reaper,
    ):
        polite, limited, silent, resets, closed, unconnected = crowd
        limited.peer.sendall(bytes(2000))
        await_input(limited.ours)
        fill(full[0].ours)
        closed.ours.close()
        unconnected.ours.close()
        futures = [
            reaper.submit(sock)
            for sock in (
                polite.ours, limited.ours, silent.ours, resets.ours, closed.ours,
                full[0].ours, listener, socket.socket(socket.AF_INET6),
            )
        ]  # fmt: skip
        assert resets.peer.recv(1) == b""
        reset(resets.peer)
        polite.peer.close()
        assert outcomes(futures) == [
            CloseOutcome.PEER_CLOSED,
            CloseOutcome.DRAIN_LIMIT,
            CloseOutcome.TIMED_OUT,
            CloseOutcome.PEER_RESET,
            CloseOutcome.ALREADY_CLOSED,
            CloseOutcome.TIMED_OUT,
            CloseOutcome.NOT_CONNECTED,
            CloseOutcome.NOT_CONNECTED,
        ]
        assert reaper.stats() == {
            **dict.fromkeys(CloseOutcome, 0),
            **Counter(outcomes(futures)),
        }
        assert len(reaper) == 0
        assert reaper, "an idle Reaper is not falsy"


def test_each_deadline_counts_from_the_submission(reaper: Reaper) -> None:
    with Reaper(timeout=0.2) as brief, connect_many(3) as crowd:
        results = [result_of(brief.submit(sock)) for sock, _ in crowd]
    assert [result.outcome for result in results] == [CloseOutcome.TIMED_OUT] * 3
    assert all(0.2 <= result.elapsed < 2 for result in results)


def test_an_open_makefile_object_releases_the_descriptor_and_makes_the_result_unclean(
    stream: Connection, reaper: Reaper
) -> None:
    file = stream.ours.makefile("wb")
    file.write(b"never sent")
    with pytest.warns(ResourceWarning, match="makefile") as warned:
        future = reaper.submit(stream.ours)
    assert [warning.filename for warning in warned] == [__file__], (
        "the warning names the caller"
    )
    assert stream.peer.recv(100) == b""
    stream.peer.close()
    result = result_of(future)
    assert (result.outcome, result.unflushed) == (CloseOutcome.PEER_CLOSED, True)
    assert not result.clean
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.close()


def test_a_closed_makefile_object_causes_no_warning(stream: Connection, reaper: Reaper) -> None:
    stream.ours.makefile("wb").close()
    future = reaper.submit(stream.ours)
    stream.peer.close()
    assert not result_of(future).unflushed


def test_a_close_by_another_thread_has_no_effect(stream: Connection, reaper: Reaper) -> None:
    reply_early(stream)
    future = reaper.submit(stream.ours)
    closer = threading.Thread(target=stream.ours.close)
    closer.start()
    await_end(closer)
    assert read_and_close(stream.peer) == REPLY
    result = result_of(future)
    assert (result.outcome, result.drained) == (CloseOutcome.PEER_CLOSED, 6000)


def test_peer_first_lets_a_peer_close_first(tcp: Connection) -> None:
    """The side that sends the first FIN keeps the connection in TIME_WAIT."""
    with Reaper(timeout=PATIENCE, peer_first=PATIENCE) as reaper:
        tcp.ours.sendall(b"reply")
        future = reaper.submit(tcp.ours)
        assert tcp.peer.recv(5) == b"reply"
        tcp.peer.sendall(b"upload")
        tcp.peer.shutdown(socket.SHUT_WR)
        assert read_all(tcp.peer) == b""
    result = future.result(0)
    assert (result.outcome, result.peer_first) == (CloseOutcome.PEER_CLOSED, True)
    assert result.drained == 6


def test_peer_first_waits_no_longer_than_its_time(tcp: Connection) -> None:
    with Reaper(timeout=PATIENCE, peer_first=0.1) as reaper:
        started = time.monotonic()
        future = reaper.submit(tcp.ours)
        assert tcp.peer.recv(1) == b""
        assert time.monotonic() - started >= 0.1, "our FIN was sent after that"
        await_sleep(
            threads()[0]
        )  # so that the Reaper has seen that the peer's FIN has not arrived
        tcp.peer.close()
    result = future.result(0)
    assert (result.outcome, result.peer_first) == (CloseOutcome.PEER_CLOSED, False)


@pytest.mark.parametrize("seconds", [1e9, 1e300])
def test_a_timeout_that_is_too_long_for_a_system_call_is_accepted(
    tcp: Connection, reaper: Reaper, seconds: float
) -> None:
    with Reaper(timeout=seconds, idle_timeout=seconds, peer_first=seconds) as patient:
        tcp.ours.sendall(REPLY)
        future = patient.submit(tcp.ours)
        with meanwhile(receive_and_close, tcp.peer), connect("tcp4") as (ours, peer):
            patient.close(timeout=seconds)
            assert future.result(0).outcome is CloseOutcome.PEER_CLOSED
            other = reaper.submit(ours)
            with meanwhile(read_and_close, peer):
                reaper.close(timeout=seconds)
            assert other.result(0).outcome is CloseOutcome.PEER_CLOSED
    assert threads() == []


def receive_and_close(peer: socket.socket) -> None:
    """Read the known length of the reply, then close."""
    left = len(REPLY)
    while left:
        left -= len(peer.recv(left))
    peer.close()


def test_a_dup_may_be_submitted_after_the_first_has_ended() -> None:
    """The dup has the same number and connection, which epoll still lists."""
    with (
        connect("tcp4") as (ours, peer),
        Reaper(timeout=PATIENCE, idle_timeout=None, drain_limit=0) as reaper,
    ):
        number = ours.fileno()
        with ours.dup() as dup:
            first = reaper.submit(ours)
            await_sleep(threads()[0])
            peer.sendall(b"x")
            assert result_of(first).outcome is CloseOutcome.DRAIN_LIMIT
            os.dup2(dup.fileno(), number)
            again = reaper.submit(socket.socket(fileno=number))
            await_sleep(threads()[0])  # so that the Reaper waits for it, like for the first
            peer.close()
            assert result_of(again).outcome is CloseOutcome.PEER_CLOSED


def test_a_flood_does_not_delay_other_closes(reaper: Reaper) -> None:
    enough = threading.Event()

    def flood(peer: socket.socket) -> None:
        block = bytes(1 << 20)
        peer.setblocking(False)
        while not enough.is_set():
            with suppress(BlockingIOError):
                peer.send(block)
        peer.close()

    with connect_many(10) as crowd:
        floods = reaper.submit(crowd[0].ours)
        with meanwhile(flood, crowd[0].peer):
            futures = [reaper.submit(sock) for sock, _ in crowd[1:]]
            for _, peer in crowd[1:]:
                read_and_close(peer)
            assert outcomes(futures) == [CloseOutcome.PEER_CLOSED] * 9
            enough.set()
        assert result_of(floods).drained > 0


# --- the futures ------------------------------------------------------------------------------


def test_a_future_gets_its_condition_on_first_use(tcp: Connection, reaper: Reaper) -> None:
    """The lock, condition and lists of a standard future would be most of the cost."""
    future = reaper.submit(tcp.ours)
    assert vars(future) == {}
    tcp.peer.close()
    wait_until_counted(reaper, 1)
    assert [type(part) for part in vars(future).values()] == [CloseResult], "only the outcome"
    assert future.result(0).outcome is CloseOutcome.PEER_CLOSED
    assert vars(future) != {}


def wait_until_counted(reaper: Reaper, connections: int) -> None:
    wait_until(lambda: sum(reaper.stats().values()) >= connections)


ASK: dict[str, Callable[[Future[CloseResult]], CloseResult]] = {
    "result()": result_of,
    "exception()": lambda future: (future.exception(PATIENCE), future.result(0))[1],
    "wait()": lambda future: wait([future], PATIENCE).done.pop().result(0),
    "as_completed()": lambda future: next(as_completed([future], PATIENCE)).result(0),
    "asyncio": lambda future: asyncio.run(wrapped(future)),
    "a callback": lambda future: from_callback(future).result(0),
}


async def wrapped(future: Future[CloseResult]) -> CloseResult:
    return await asyncio.wait_for(asyncio.wrap_future(future), PATIENCE)


def from_callback(future: Future[CloseResult]) -> Future[CloseResult]:
    called_with: list[Future[CloseResult]] = []
    called = threading.Event()
    future.add_done_callback(called_with.append)
    future.add_done_callback(lambda _: called.set())
    assert called.wait(PATIENCE)
    return called_with[0]


@pytest.mark.parametrize("ask", ASK.values(), ids=ASK)
@pytest.mark.parametrize("early", [True, False], ids=["before the end", "after it"])
def test_every_method_of_a_future_works(
    tcp: Connection,
    reaper: Reaper,
    ask: Callable[[Future[CloseResult]], CloseResult],
    early: bool,
) -> None:
    future = reaper.submit(tcp.ours)
    if early:
        with meanwhile(partial(ask, future)) as answers:
            wait_until(lambda: vars(future))  # the future was used
            tcp.peer.close()
        (answer,) = answers
    else:
        tcp.peer.close()
        wait_until_counted(reaper, 1)
        answer = ask(future)
    assert answer.outcome is CloseOutcome.PEER_CLOSED
    assert answer is future.result(0)


def test_a_future_cannot_be_cancelled(tcp: Connection, reaper: Reaper) -> None:
    future = reaper.submit(tcp.ours)
    assert not future.cancel()
    assert (future.running(), future.cancelled(), future.done()) == (True, False, False)
    assert "running" in repr(future)
    tcp.peer.close()
    assert result_of(future).outcome is CloseOutcome.PEER_CLOSED
    assert "finished" in repr(future)
    with pytest.raises(AttributeError, match="no_such_thing"):
        future.no_such_thing  # type: ignore[attr-defined]  # noqa: B018


def test_a_future_that_is_settled_during_its_first_use_has_its_result() -> None:
    result = CloseResult(CloseOutcome.PEER_CLOSED, 0.0, 0, 0, None)
    for moment in moments(at_least=5):
        future = CloseFuture()
        called_with: list[Future[CloseResult]] = []
        settling = threading.Thread(target=future.settle, args=(result,))
        with moment.do(partial(start_and_let_it_run, settling)):
            future.add_done_callback(called_with.append)
        if moment.came:
            await_end(settling)
            assert future.result(0) is result, moment
            assert called_with == [future], moment


def start_and_let_it_run(thread: threading.Thread) -> None:
    """Start a thread, and wait until it has ended or is blocked."""
    thread.start()
    await_rest(thread)


def test_a_signal_handler_may_use_a_future_during_its_first_use() -> None:
    for moment in moments(at_least=5):
        called: list[str] = []
        with Reaper(timeout=PATIENCE) as reaper, connect("tcp4") as (ours, peer):
            future = reaper.submit(ours)
            with moment.do(partial(use_future, future, "the handler", called)):
                use_future(future, "the program", called)
            peer.close()
            assert result_of(future).outcome is CloseOutcome.PEER_CLOSED
        expected = ["the program", "the handler"] if moment.came else ["the program"]
        assert sorted(called, reverse=True) == expected, moment


def use_future(future: Future[CloseResult], who: str, called: list[str]) -> None:
    future.add_done_callback(lambda _: called.append(who))


@pytest.mark.parametrize("early", [True, False], ids=["before the end", "after it"])
def test_a_signal_during_the_first_use_of_a_future_leaves_it_usable(early: bool) -> None:
    for moment in moments(at_least=5):
        with Reaper(timeout=PATIENCE) as reaper, connect("tcp4") as (ours, peer):
            future = reaper.submit(ours)
            if not early:
                peer.close()
                wait_until_counted(reaper, 1)
                reaper.close()
            with moment.do(stop):
                future.running()
            peer.close()
            reaper.close()
            assert future.done(), moment
            assert future.result(0).outcome is CloseOutcome.PEER_CLOSED, moment


# --- TLS --------------------------------------------------------------------------------------


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def tls(request: pytest.FixtureRequest) -> Iterator[Any]:
    with session(request.param) as both:
        yield both


def test_a_close_over_tls_sends_close_notify_and_drops_the_session(
    tls: Any, reaper: Reaper
) -> None:
    tls.ours.sendall(b"reply")
    future = reaper.submit(tls.ours)
    assert tls.ours.fileno() == -1
    assert tls.ours.version() is None, "OpenSSL would continue to use the number"
    assert read_and_close(tls.peer) == b"reply", "an end without close_notify would be an error"
    result = result_of(future)
    assert (result.outcome, result.notified) == (CloseOutcome.PEER_CLOSED, True)


def test_close_notify_without_room_is_sent_when_there_is_room(tls: Any, reaper: Reaper) -> None:
    written = fill_raw(tls.ours)
    future = reaper.submit(tls.ours)
    await_sleep(threads()[0])  # so that the Reaper has seen that there is no room
    raw = socket.socket(fileno=tls.peer.detach())
    assert len(read_and_close(raw)) > written, "and the close_notify"
    result = result_of(future)
    assert result.outcome is CloseOutcome.PEER_CLOSED
    assert result.notified is True
    assert tls.ours.fileno() == -1
    assert tls.ours.version() is None


def test_the_reset_of_a_tls_peer_is_a_result_and_not_an_exception(
    tls: Any, reaper: Reaper
) -> None:
    reset(tls.peer)
    await_reset(tls.ours)
    result = result_of(reaper.submit(tls.ours))
    assert (result.outcome, result.notified) == (CloseOutcome.PEER_RESET, False)
    assert isinstance(result.error, ConnectionResetError)
    assert tls.ours.fileno() == -1


def test_close_drops_the_descriptor_number_of_a_tls_socket_that_waits_for_room(
    tls: Any, reaper: Reaper
) -> None:
    """Another socket may have the number when the object is closed."""
    fill_raw(tls.ours)
    with kept_thread(reaper):
        reaper.submit(tls.ours)
        reaper.close(0)
        assert tls.ours.fileno() == -1
        assert tls.ours.version() is None


# --- invalid arguments ------------------------------------------------------------------------


@pytest.mark.parametrize("thing", [7, None, "socket"])
def test_an_object_that_is_not_a_socket_is_rejected(thing: Any) -> None:
    with pytest.raises(TypeError, match="expected a socket.socket"):
        Reaper().submit(thing)


def test_a_datagram_socket_is_rejected_before_it_is_touched() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as datagram:
        with pytest.raises(TypeError, match="expected a stream socket"):
            Reaper().submit(datagram)
        assert datagram.fileno() != -1


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout": -1},
        {"idle_timeout": float("inf")},
        {"drain_limit": -1},
        {"peer_first": -1},
        {"until": CloseOutcome.ABORTED},
        {"on_timeout": LingerPolicy.TIMED},
        {"max_sockets": 0},
        {"on_overflow": LingerPolicy.TIMED},
    ],
    ids=str,
)
def test_a_wrong_argument_is_rejected(wrong: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Reaper(**wrong)


def test_a_number_of_sockets_may_be_as_large_as_an_int() -> None:
    Reaper(max_sockets=10**400).close()


@pytest.mark.parametrize("wrong", [7, "print", []])
def test_on_close_must_be_callable(wrong: Any) -> None:
    with pytest.raises(TypeError, match="on_close must be callable"):
        Reaper(on_close=wrong)


def test_submit_after_close_raises_and_does_not_touch_the_socket(
    stream: Connection, reaper: Reaper
) -> None:
    reaper.close()
    with pytest.raises(RuntimeError, match="the Reaper is closed"):
        reaper.submit(stream.ours)
    stream.ours.sendall(b"alive")
    assert stream.peer.recv(10) == b"alive"


# --- the thread -------------------------------------------------------------------------------


def test_there_is_no_thread_before_the_first_connection(tcp: Connection) -> None:
    with Reaper() as reaper:
        assert threads() == []
        reaper.submit(tcp.ours)
        assert [thread.daemon for thread in threads()] == [True]
        tcp.peer.close()
    assert threads() == []


def test_an_unreferenced_reaper_finishes_its_closes(tcp: Connection) -> None:
    tcp.ours.sendall(REPLY)
    future = Reaper(timeout=PATIENCE).submit(tcp.ours)
    (thread,) = threads()
    assert read_and_close(tcp.peer) == REPLY
    assert result_of(future).outcome is CloseOutcome.PEER_CLOSED
    gc.collect()  # PyPy counts no references
    await_end(thread)


def test_two_thousand_unreferenced_reapers_leak_nothing() -> None:
    for _ in range(20):
        for _ in range(100):
            ours, peer = socket.socketpair()
            with peer:
                Reaper(timeout=PATIENCE).submit(ours)
        gc.collect()  # PyPy counts no references
        wait_until(lambda: threads() == [])


@pytest.mark.parametrize("connections", [0, 10])
def test_an_idle_reaper_does_not_wake_up(reaper: Reaper, connections: int) -> None:
    with connect_many(connections) as crowd:
        assert_it_works(reaper)
        futures = [reaper.submit(sock) for sock, _ in crowd]
        for _, peer in crowd:
            assert peer.recv(1) == b""
        (thread,) = threads()
        before = await_sleep(thread)
        time.sleep(0.5)
        assert times_awake(thread) == before
        for _, peer in crowd:
            peer.close()
        assert outcomes(futures) == [CloseOutcome.PEER_CLOSED] * connections


def test_a_busy_reaper_is_not_woken_for_each_submission(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float | None] = []

    class Counting(selectors.PollSelector):
        def select(
            self, timeout: float | None = None
        ) -> list[tuple[selectors.SelectorKey, int]]:
            waits.append(timeout)
            return super().select(timeout)

    monkeypatch.delattr(select, "epoll", raising=False)
    monkeypatch.setattr(selectors, "DefaultSelector", Counting)
    with Reaper(timeout=PATIENCE, max_sockets=2000) as reaper, connect_many(200) as crowd:
        assert_it_works(reaper)
        await_sleep(threads()[0])
        waits.clear()
        started = time.monotonic()
        for sock, _ in crowd:
            reaper.submit(sock)
            time.sleep(0.0001)  # like a server that waits for the next request
        took = time.monotonic() - started
        assert 1 <= len(waits) <= 2 + took / 0.002
        for _, peer in crowd:
            peer.close()


def test_a_submission_just_before_the_thread_sleeps_is_closed(reaper: Reaper) -> None:
    for _ in range(200):
        with connect_many(2) as crowd:
            futures = [reaper.submit(ours) for ours, _ in crowd]
            for _, peer in crowd:
                peer.close()
            assert outcomes(futures) == [CloseOutcome.PEER_CLOSED] * 2


def test_a_default_timeout_does_not_block_the_reaper(reaper: Reaper) -> None:
    """With a default timeout, Python's own recv() waits for input even with MSG_DONTWAIT."""
    socket.setdefaulttimeout(PATIENCE)
    try:
        with connect_many(2) as crowd:
            silent, polite = crowd
            first, other = reaper.submit(silent.ours), reaper.submit(polite.ours)
            polite.peer.close()
            assert other.result(PATIENCE / 2).outcome is CloseOutcome.PEER_CLOSED
            silent.peer.close()
            assert result_of(first).outcome is CloseOutcome.PEER_CLOSED
    finally:
        socket.setdefaulttimeout(None)


def test_a_connection_that_has_ended_before_submit_is_not_reported_as_clean(
    reaper: Reaper, tcp: Connection
) -> None:
    """The caller may have read the reset that ended it, which is reported only once."""
    tcp.ours.shutdown(socket.SHUT_WR)
    read_and_close(tcp.peer)
    assert read_all(tcp.ours) == b""
    assert result_of(reaper.submit(tcp.ours)).outcome is CloseOutcome.NOT_CONNECTED


def test_an_ended_close_leaves_no_reference_cycle(reaper: Reaper) -> None:
    """An error that is kept with its traceback would keep the objects of the connection."""
    gc.collect()
    gc.disable()
    try:
        with connect_many(8) as crowd:
            over, resets = crowd[0], crowd[1]
            over.ours.shutdown(socket.SHUT_WR)
            read_and_close(over.peer)
            assert read_all(over.ours) == b""
            reset(resets.peer)
            await_reset(resets.ours)
            for ours, _ in crowd:
                reaper.submit(ours)
            for _, peer in crowd[2:]:
                peer.close()
            reaper.close()
        assert sum(reaper.stats().values()) == 8
        assert [thing for thing in gc.get_objects() if isinstance(thing, Pending)] == []
    finally:
        gc.enable()


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
    patience = time.monotonic() + PATIENCE
    while time.monotonic() < patience:
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


@contextmanager
def a_bug_in(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> Generator[BaseException, None, None]:
    """Make the Reaper's thread fail when it is woken. A later thread does not fail."""
    bug = MemoryError("a bug")
    (failing,) = threads()
    real = getattr(CloseLoop, where)

    def fail(*arguments: Any) -> Any:
        if threading.current_thread() is failing:
            raise bug
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(CloseLoop, where, fail)
        yield bug


@pytest.mark.parametrize("exits", [False, True], ids=["", "and a callback exits"])
@pytest.mark.parametrize("where", ["add", "serve", "wait"])
def test_a_bug_closes_all_sockets_and_the_next_submission_starts_a_new_thread(
    reaper: Reaper,
    monkeypatch: pytest.MonkeyPatch,
    reported: list[BaseException | None],
    where: str,
    exits: bool,
) -> None:
    exiting = SystemExit("in a callback")

    def leave(_: Future[CloseResult]) -> None:
        raise exiting

    with connect_many(6) as crowd:
        futures = [reaper.submit(sock) for sock, _ in crowd[:5]]
        if exits:
            futures[0].add_done_callback(leave)
        await_sleep(threads()[0])
        with a_bug_in(where, monkeypatch) as bug:
            futures.append(reaper.submit(crowd[5].ours))
            await_end(*threads())
        assert [future.done() for future in futures] == [True] * 6
        assert [future.exception(0) for future in futures] == [bug] * 6
        assert Counter(reported) == Counter([bug, *[exiting] * exits])
        for _, peer in crowd:
            assert_gone(peer)
        assert len(reaper) == 0
        assert_it_works(reaper)


def test_a_callback_after_a_bug_may_submit(
    reaper: Reaper, monkeypatch: pytest.MonkeyPatch, reported: list[BaseException | None]
) -> None:
    """A new thread closes the submission, and the failed thread does not touch it."""
    futures: list[Future[CloseResult]] = []

    def try_again(_: Future[CloseResult]) -> None:
        submit(reaper, crowd[1].ours, futures)
        for thread in {*threads()} - {threading.current_thread()}:
            await_sleep(thread)

    with connect_many(3) as crowd:
        reaper.submit(crowd[0].ours).add_done_callback(try_again)
        await_sleep(threads()[0])
        (failing,) = threads()
        with a_bug_in("serve", monkeypatch) as bug:
            last = reaper.submit(crowd[2].ours)
            await_end(failing)
        assert last.exception(0) is bug
        crowd[1].peer.close()
        assert outcomes(futures) == [CloseOutcome.PEER_CLOSED]
        assert reported == [bug]
        assert_it_works(reaper)


def test_a_bug_in_one_close_is_set_as_its_exception_and_the_others_continue(
    reaper: Reaper, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug = MemoryError("a bug")

    class Failing:
        def read(self, *_: object) -> int:
            raise bug

    def fail_for_one(sock: socket.socket, view: Any) -> Any:
        return Failing() if sock.getsockname() == address else drain_of(sock, view)

    monkeypatch.setattr("graceful_close._connection.drain_of", fail_for_one)
    with connect("tcp4") as (victim, victims_peer), connect("tcp4") as (ours, peer):
        address = victim.getsockname()
        other = reaper.submit(ours)
        assert reaper.submit(victim).exception(PATIENCE) is bug
        assert victims_peer.recv(1) == b""
        peer.close()
        assert result_of(other).outcome is CloseOutcome.PEER_CLOSED


def test_a_failure_before_a_close_begins_is_set_as_its_exception(reaper: Reaper) -> None:
    class Broken(socket.socket):
        def detach(self) -> int:
            super().detach()
            raise RuntimeError("a bug")

    with connect("tcp4") as (ours, peer):
        future = reaper.submit(Broken(fileno=ours.detach()))
        assert isinstance(future.exception(0), RuntimeError)
        assert peer.recv(1) == b""
        assert len(reaper) == 0
        assert_it_works(reaper)


# --- without threads or descriptors -----------------------------------------------------------


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


def test_without_threads_submit_closes_in_the_callers_thread(
    stream: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    called_in: list[threading.Thread] = []
    reply_early(stream)
    with Reaper(
        timeout=PATIENCE, on_close=lambda _: called_in.append(threading.current_thread())
    ) as reaper:
        with meanwhile(read_and_close, stream.peer) as replies, no_threads(monkeypatch):
            result = reaper.submit(stream.ours).result(0)
        assert replies == [REPLY]
        assert (result.outcome, result.drained) == (CloseOutcome.PEER_CLOSED, 6000)
        assert reaper.stats()[CloseOutcome.PEER_CLOSED] == 1
        assert (len(reaper), threads()) == (0, [])
        assert_it_works(reaper)
        assert called_in[:1] == [threading.current_thread()]
        (thread,) = threads()
    assert called_in[1:] == [thread]


def test_without_threads_submit_of_a_non_blocking_socket_does_not_wait(
    tcp: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    tcp.ours.setblocking(False)
    tcp.ours.sendall(b"reply")
    with Reaper(timeout=100 * PATIENCE) as reaper, no_threads(monkeypatch):
        assert reaper.submit(tcp.ours).result(0).outcome is CloseOutcome.TIMED_OUT
        assert reaper.stats()[CloseOutcome.TIMED_OUT] == 1
    assert read_and_close(tcp.peer) == b"reply"


@pytest.mark.parametrize("error", [RuntimeError, Stop])
def test_without_threads_an_exception_of_on_close_is_reported_and_a_signals_propagates(
    error: type[BaseException],
    tcp: Connection,
    monkeypatch: pytest.MonkeyPatch,
    reported: list[BaseException | None],
) -> None:
    def fail(_: CloseResult) -> None:
        raise error

    with Reaper(timeout=0, on_close=fail) as reaper, no_threads(monkeypatch):
        with pytest.raises(Stop) if error is Stop else nullcontext():
            reaper.submit(tcp.ours)
    assert [type(one) for one in reported] == [RuntimeError] * (error is RuntimeError)


def test_without_threads_a_signal_closes_immediately(monkeypatch: pytest.MonkeyPatch) -> None:
    with no_threads(monkeypatch):
        for moment in moments():
            with connect("tcp4") as (ours, peer), Reaper(timeout=0.05) as reaper:
                with moment.do(stop):
                    reaper.submit(ours)
                if ours.fileno() == -1:
                    assert peer.recv(1) == b"", moment
                    assert_gone(peer, moment)
                assert len(reaper) == 0, moment


def test_a_reaper_works_without_free_descriptors(stream: Connection, reaper: Reaper) -> None:
    reply_early(stream)
    with descriptors.none_left():
        future = reaper.submit(stream.ours)
        assert read_and_close(stream.peer) == REPLY
        result = result_of(future)
        assert (result.outcome, result.drained) == (CloseOutcome.PEER_CLOSED, 6000)
        assert reaper.stats()[CloseOutcome.PEER_CLOSED] == 1
        reaper.close()
    assert threads() == []


def test_a_started_reaper_needs_no_more_descriptors(reaper: Reaper) -> None:
    assert_it_works(reaper)
    with connect_many(5) as crowd, descriptors.none_left():
        futures = [reaper.submit(sock) for sock, _ in crowd]
        for _, peer in crowd:
            read_and_close(peer)
        assert outcomes(futures) == [CloseOutcome.PEER_CLOSED] * 5


# --- the limit of sockets ---------------------------------------------------------------------


@pytest.mark.parametrize("on_overflow", [LingerPolicy.ABORT, LingerPolicy.BACKGROUND])
def test_the_oldest_pending_close_ends_to_make_room(on_overflow: Any) -> None:
    with (
        connect_many(5, peer_buffer=4096) as crowd,
        Reaper(timeout=PATIENCE, max_sockets=3, on_overflow=on_overflow) as reaper,
    ):
        for sock, _ in crowd:
            fill(sock)
        futures = [reaper.submit(sock) for sock, _ in crowd]
        assert outcomes(futures[:2]) == [CloseOutcome.TIMED_OUT] * 2
        assert [future.done() for future in futures[2:]] == [False] * 3
        assert (len(reaper), reaper.overflowed) == (3, 2)
        assert reaper.stats()[CloseOutcome.TIMED_OUT] == 2
        resets = [ends_in_reset(peer) for _, peer in crowd[:2]]
        assert resets == [on_overflow is LingerPolicy.ABORT] * 2
        for _, peer in crowd[2:]:
            read_and_close(peer)
        assert outcomes(futures[2:]) == [CloseOutcome.PEER_CLOSED] * 3


def test_room_is_made_while_a_callback_blocks_the_thread() -> None:
    called_in: list[threading.Thread] = []
    with (
        connect_many(5, peer_buffer=4096) as crowd,
        Reaper(timeout=PATIENCE, max_sockets=3, on_overflow=LingerPolicy.ABORT) as reaper,
    ):
        for sock, _ in crowd[:2]:
            fill(sock)  # so that our FIN cannot arrive, and the reset is seen
        with kept_thread(reaper):
            (thread,) = threads()
            futures = [reaper.submit(sock) for sock, _ in crowd]
            for future in futures[:2]:
                future.add_done_callback(lambda _: called_in.append(threading.current_thread()))
            assert [ends_in_reset(peer) for _, peer in crowd[:2]] == [True] * 2
            assert reaper.overflowed == 2
        assert outcomes(futures[:2]) == [CloseOutcome.TIMED_OUT] * 2
        for _, peer in crowd[2:]:
            read_and_close(peer)
        assert outcomes(futures[2:]) == [CloseOutcome.PEER_CLOSED] * 3
    assert called_in == [thread] * 2


def test_the_future_of_a_close_ended_for_room_gets_its_result_while_the_thread_sleeps() -> None:
    for moment in moments():
        with (
            connect_many(3) as crowd,
            Reaper(timeout=3 * PATIENCE, idle_timeout=None, max_sockets=2) as reaper,
        ):
            with kept_thread(reaper) as let_go:
                (thread,) = threads()
                futures = [reaper.submit(sock) for sock, _ in crowd[:2]]

                with moment.do(partial(let_it_sleep, let_go, thread)):
                    futures.append(reaper.submit(crowd[2].ours))
            try:
                assert result_of(futures[0]).outcome is CloseOutcome.TIMED_OUT, moment
            finally:
                reaper.close(0)


def let_it_sleep(let_go: Callable[[], None], thread: threading.Thread) -> None:
    let_go()
    await_sleep(thread)


def test_the_default_limit_is_half_of_the_descriptors() -> None:
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    with (
        descriptors.limited_to(2 * (highest + 10)),
        Reaper() as reaper,
        connect_many(highest // 4) as crowd,
    ):
        for sock, _ in crowd:
            reaper.submit(sock)
        assert reaper.overflowed == 0


# --- callbacks --------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, KeyboardInterrupt])
def test_a_callback_that_raises_is_reported_and_has_no_other_effect(
    reaper: Reaper,
    error: type[BaseException],
    tcp: Connection,
    reported: list[BaseException | None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = reaper.submit(tcp.ours)

    def fail(_: Future[CloseResult]) -> None:
        raise error("in a callback")

    close_and(reaper, fail)
    assert_it_works(reaper)
    assert not other.done()
    tcp.peer.close()
    assert result_of(other).outcome is CloseOutcome.PEER_CLOSED
    exceptions = [type(exception) for exception in reported] + [
        record.exc_info[0] for record in caplog.records if record.exc_info
    ]
    assert exceptions == [error], "the exception is reported"


def test_a_callback_may_submit(reaper: Reaper, tcp: Connection) -> None:
    futures: list[Future[CloseResult]] = []
    close_and(reaper, lambda _: submit(reaper, tcp.ours, futures))
    wait_until(lambda: futures)
    tcp.peer.close()
    assert outcomes(futures) == [CloseOutcome.PEER_CLOSED]


def test_a_callback_may_close_the_reaper_and_pending_closes_are_finished(
    reaper: Reaper, tcp: Connection
) -> None:
    other = reaper.submit(tcp.ours)
    closed = threading.Event()

    def close(_: Future[CloseResult]) -> None:
        reaper.close()
        closed.set()

    close_and(reaper, close)
    assert closed.wait(PATIENCE)
    assert not other.done()
    tcp.peer.close()
    assert result_of(other).outcome is CloseOutcome.PEER_CLOSED


# --- on_close ---------------------------------------------------------------------------------


def test_on_close_is_called_in_the_reapers_thread_with_the_result_and_the_peer(
    stream: Connection,
) -> None:
    called_with: list[tuple[CloseResult, threading.Thread]] = []
    address: Any = stream.ours.getpeername()
    with Reaper(
        timeout=PATIENCE,
        on_close=lambda result: called_with.append((result, threading.current_thread())),
    ) as reaper:
        future = reaper.submit(stream.ours)
        (thread,) = threads()
        stream.peer.close()
        result = result_of(future)
    assert called_with == [(result, thread)]
    assert (result.outcome, result.peer) == (CloseOutcome.PEER_CLOSED, address)
    port: Any = address[1] if stream.ours.family != socket.AF_UNIX else ""
    assert str(port) in str(result)


def test_on_close_is_called_for_every_close_and_an_unknown_peer_is_none(
    tcp: Connection,
) -> None:
    called_with: list[CloseResult] = []
    with (
        Reaper(timeout=0.1, on_close=called_with.append) as reaper,
        connect("tcp4") as (resets, peer),
    ):
        address = tcp.ours.getpeername()
        reset(peer)
        await_reset(resets)
        closed = socket.socket()
        closed.close()
        futures = [reaper.submit(sock) for sock in (tcp.ours, resets, closed)]
    results = [future.result(0) for future in futures]
    assert outcomes(futures) == [
        CloseOutcome.TIMED_OUT,
        CloseOutcome.PEER_RESET,
        CloseOutcome.ALREADY_CLOSED,
    ]
    assert [result.peer for result in results] == [address, None, None]
    assert {*map(id, called_with)} == {*map(id, results)}


def test_without_on_close_the_peers_address_is_not_queried(
    tcp: Connection, reaper: Reaper
) -> None:
    future = reaper.submit(tcp.ours)
    tcp.peer.close()
    assert result_of(future).peer is None


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, KeyboardInterrupt])
def test_an_exception_of_on_close_is_reported_and_has_no_other_effect(
    tcp: Connection, error: type[BaseException], reported: list[BaseException | None]
) -> None:
    raised: list[BaseException | None] = []

    def fail(_: CloseResult) -> None:
        raised.append(error("in on_close"))
        assert raised[-1] is not None
        raise raised[-1]

    with Reaper(timeout=PATIENCE, on_close=fail) as reaper:
        other = reaper.submit(tcp.ours)
        (thread,) = threads()
        assert_it_works(reaper)
        assert_it_works(reaper)
        assert not other.done()
        assert threads() == [thread]
        tcp.peer.close()
        assert result_of(other).outcome is CloseOutcome.PEER_CLOSED
    assert len(raised) == 3
    assert reported == raised


def test_on_close_is_called_even_if_a_callback_exits(
    reported: list[BaseException | None],
) -> None:
    called_with: list[CloseResult] = []
    exiting = SystemExit("in a callback")

    def leave(_: Future[CloseResult]) -> None:
        raise exiting

    with Reaper(timeout=PATIENCE, on_close=called_with.append) as reaper:
        future = close_and(reaper, leave)
    assert called_with == [future.result(0)]
    assert reported == [exiting]


def test_on_close_may_submit_and_close(tcp: Connection) -> None:
    futures: list[Future[CloseResult]] = []

    def continue_later(_: CloseResult) -> None:
        if not futures:
            submit(idle, tcp.ours, futures)
            idle.close()

    idle = Reaper(timeout=PATIENCE, on_close=continue_later)
    assert_it_works(idle)
    wait_until(lambda: futures)
    tcp.peer.close()
    assert outcomes(futures) == [CloseOutcome.PEER_CLOSED]
    await_end(*threads())


# --- the end ----------------------------------------------------------------------------------


def test_close_waits_for_pending_closes(stream: Connection, reaper: Reaper) -> None:
    stream.ours.sendall(REPLY)
    future = reaper.submit(stream.ours)
    with meanwhile(read_and_close, stream.peer) as replies:
        reaper.close()
    assert replies == [REPLY]
    assert future.result(0).outcome is CloseOutcome.PEER_CLOSED
    assert threads() == []


@pytest.mark.parametrize("timeout", [0, 0.1])
def test_close_with_a_timeout_ends_pending_closes_when_the_time_is_up(
    reaper: Reaper, timeout: float
) -> None:
    with connect_many(10) as crowd:
        futures = [reaper.submit(sock) for sock, _ in crowd]
        reaper.close(timeout)
        results = [future.result(0) for future in futures]
        assert [result.outcome for result in results] == [CloseOutcome.TIMED_OUT] * 10
        assert all(timeout <= result.elapsed < 5 for result in results)
        assert threads() == []


def test_close_of_an_unused_reaper_returns_immediately() -> None:
    reaper = Reaper()
    reaper.close()
    reaper.close(0)


@pytest.mark.parametrize("wrong", [-1, float("nan"), "5"])
def test_close_with_a_wrong_timeout_raises_and_closes_nothing(wrong: Any) -> None:
    with Reaper() as reaper:
        with pytest.raises((TypeError, ValueError), match="^timeout must"):
            reaper.close(wrong)
        assert_it_works(reaper)


def test_several_threads_may_close_the_reaper_concurrently(
    reaper: Reaper, tcp: Connection
) -> None:
    future = reaper.submit(tcp.ours)
    closers = [threading.Thread(target=reaper.close) for _ in range(4)]
    for closer in closers:
        closer.start()
    reaper.close(0)  # the shortest timeout applies to all
    await_end(*closers)
    assert future.result(0).outcome is CloseOutcome.TIMED_OUT


def test_a_callback_that_blocks_delays_close_for_a_limited_time() -> None:
    reaper = Reaper(timeout=PATIENCE)
    with kept_thread(reaper):
        started = time.monotonic()
        reaper.close()  # no pending close is left
        assert time.monotonic() - started < PATIENCE / 2
    await_end(*threads())


def test_a_callback_that_blocks_does_not_keep_the_other_connections_open() -> None:
    reaper = Reaper(timeout=PATIENCE)
    with connect_many(4) as crowd:
        waiting = [reaper.submit(sock) for sock, _ in crowd[:2]]
        await_sleep(threads()[0])  # these are in the thread
        with kept_thread(reaper):
            waiting += [reaper.submit(sock) for sock, _ in crowd[2:]]  # these are not
            reaper.close(0.1)
            for _, peer in crowd:
                assert_gone(peer)
        for future in waiting:
            result_of(future)
    await_end(*threads())
    assert len(reaper) == 0
    assert sum(reaper.stats().values()) == 5


def test_an_interrupt_of_the_block_closes_all_sockets_immediately(tcp: Connection) -> None:
    futures: list[Future[CloseResult]] = []
    with suppress(Stop), Reaper(timeout=1000, idle_timeout=None) as reaper:
        futures.append(reaper.submit(tcp.ours))
        raise Stop
    assert futures[0].result(0).outcome is CloseOutcome.TIMED_OUT


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_an_exception_or_exit_of_the_block_waits_for_pending_closes(
    tcp: Connection, error: type[BaseException]
) -> None:
    futures: list[Future[CloseResult]] = []
    with suppress(error), Reaper(timeout=0.3) as reaper:
        futures.append(reaper.submit(tcp.ours))
        raise error
    assert futures[0].result(0).elapsed >= 0.3


# --- signals ----------------------------------------------------------------------------------


the_first_or_a_later_one = pytest.mark.parametrize(
    "before", [0, 1], ids=["the first", "a later one"]
)


@the_first_or_a_later_one
def test_a_signal_at_any_call_of_submit_loses_no_socket(before: int) -> None:
    """The caller has the socket, or the socket is closed; and the Reaper continues."""
    for moment in moments():
        with Reaper(timeout=PATIENCE) as reaper, connect("tcp4") as (ours, peer):
            for _ in range(before):
                assert_it_works(reaper)
            with moment.do(stop):
                reaper.submit(ours)
            if ours.fileno() != -1:
                ours.sendall(b"alive")
                assert peer.recv(10) == b"alive", moment
            else:
                assert peer.recv(1) == b"", moment
            peer.close()
            assert_it_works(reaper)
            assert (len(reaper), len(threads())) == (0, 1), moment
        assert threads() == [], moment


@pytest.mark.parametrize("can_start", [True, False], ids=["", "no thread can be started"])
def test_a_socket_whose_submit_was_interrupted_is_closed_when_close_returns(
    can_start: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with nullcontext() if can_start else no_threads(monkeypatch):
        for moment in moments():
            with connect("tcp4") as (ours, peer):
                reaper = Reaper(timeout=0.05)
                with moment.do(stop):
                    reaper.submit(ours)
                reaper.close(0)
                assert len(reaper) == 0, moment
                if ours.fileno() == -1:
                    assert peer.recv(1) == b"", moment
                    assert_gone(peer, moment)


@the_first_or_a_later_one
def test_a_signal_handler_may_submit_during_a_submit(before: int) -> None:
    for moment in moments():
        futures: list[Future[CloseResult]] = []
        with (
            Reaper(timeout=PATIENCE) as reaper,
            connect("tcp4") as (ours, peer),
            connect("tcp4") as (other, others_peer),
        ):
            for _ in range(before):
                assert_it_works(reaper)
            with moment.do(partial(submit, reaper, other, futures)):
                futures.append(reaper.submit(ours))
            peer.close()
            others_peer.close()
            assert outcomes(futures) == [CloseOutcome.PEER_CLOSED] * (1 + moment.came), moment


def test_a_signal_handler_may_submit_while_room_is_made() -> None:
    for moment in moments():
        futures: list[Future[CloseResult]] = []
        with Reaper(timeout=PATIENCE, max_sockets=2) as reaper, connect_many(5) as crowd:
            with kept_thread(reaper):
                futures += [reaper.submit(sock) for sock, _ in crowd[:2]]
                with moment.do(partial(submit, reaper, crowd[2].ours, futures)):
                    futures.append(reaper.submit(crowd[3].ours))
                assert 1 <= reaper.overflowed <= 1 + moment.came, moment
                for _, peer in crowd:
                    peer.close()
            ended = Counter(outcomes(futures))
            assert ended[CloseOutcome.TIMED_OUT] == reaper.overflowed, moment
            assert sum(reaper.stats().values()) == len(futures) + 1
            assert len(reaper) == 0


def test_another_thread_may_close_the_reaper_during_a_submit() -> None:
    """Then submit raises, or the close is finished; and no thread is left."""
    for moment in moments():
        with connect("tcp4") as (ours, peer):
            reaper = Reaper(timeout=PATIENCE)
            assert_it_works(reaper)
            closer = threading.Thread(target=reaper.close)
            refused = False
            with moment.do(partial(start_and_let_it_run, closer)):
                try:
                    reaper.submit(ours)
                except RuntimeError:
                    refused = True
            assert refused == (ours.fileno() != -1), moment
            peer.close()
            if moment.came:
                await_end(closer)
            else:
                reaper.close()
            assert threads() == [], moment
            assert len(reaper) == 0


def test_a_signal_before_or_after_any_call_of_close_closes_all_at_once() -> None:
    for moment in moments(first=2, at_least=5):  # the first is the entry of the call
        with connect_many(2) as crowd:
            reaper = Reaper(timeout=0.02)
            futures = [reaper.submit(sock) for sock, _ in crowd]
            with moment.do(stop):
                reaper.close()
            assert [future.done() for future in futures] == [True] * 2, moment
            await_end(*threads())  # the thread may still be running its last lines


def test_an_interrupted_close_closes_all_sockets_immediately(tcp: Connection) -> None:
    def handler(*_: object) -> None:
        raise Stop

    reaper = Reaper(timeout=PATIENCE)
    future = reaper.submit(tcp.ours)
    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Stop):
            reaper.close()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert future.result(0).outcome is CloseOutcome.TIMED_OUT
    assert threads() == []


# --- many threads -----------------------------------------------------------------------------


def test_sixteen_threads_can_submit_concurrently(
    request: pytest.FixtureRequest, reaper: Reaper
) -> None:
    """`pytest --soak 50000` submits this many; the default is a thousand."""
    each = int(request.config.option.soak) // 16
    room = threading.BoundedSemaphore(100)  # descriptors are finite: macOS allows 256
    ended: Counter[CloseOutcome] = Counter()

    def note(future: Future[CloseResult]) -> None:
        ended[future.result(0).outcome] += 1
        room.release()

    def work() -> None:
        for number in range(each):
            assert room.acquire(timeout=PATIENCE)
            ours, peer = socket.socketpair()
            with peer:
                if number % 4 == 0:
                    peer.sendall(b"unread")
                if number % 3 == 0:
                    peer.close()
                future = reaper.submit(ours)
            future.add_done_callback(note)

    with ThreadPoolExecutor(16) as pool:
        for worker in [pool.submit(work) for _ in range(16)]:
            worker.result()
    reaper.close()
    assert ended == {CloseOutcome.PEER_CLOSED: 16 * each}
    assert reaper.stats()[CloseOutcome.PEER_CLOSED] == 16 * each
    assert len(reaper) == 0


# --- processes --------------------------------------------------------------------------------

PRELUDE = """
import atexit, os, socket, sys, threading, time
from graceful_close import CloseOutcome, Linger, LingerPolicy, Reaper, get_linger, set_linger
from streams import PATIENCE, connect, connect_many
def outcomes(futures):
    return [future.result(PATIENCE).outcome for future in futures]
"""


def run(
    program: str, *arguments: str, first: str = "", pass_fds: tuple[int, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a program in a new Python; `first` is what it does before its imports."""
    return subprocess.run(
        [sys.executable, "-c", first + PRELUDE + program, *arguments],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        pass_fds=pass_fds,
        env=without_coverage(),
    )


def assert_all_well(program: str, *arguments: str) -> None:
    ran = run(FORKS + program + 'print("all well")\n', *arguments)
    assert ran.stdout == "all well\n", ran.stderr


def test_a_submit_imports_nothing() -> None:
    """A signal handler, or the child of a fork, may run in the middle of an import."""
    ran = run("""
reaper = Reaper()
before = set(sys.modules)
ours, peer = socket.socketpair()
reaper.submit(ours)
peer.close()
print(set(sys.modules) - before)
""")
    assert (ran.stdout, ran.stderr) == ("set()\n", "")


FORKS = """
import traceback
def held():
    names = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            names.add(name_of(number))
        except FileNotFoundError:
            pass  # the one that listed the folder
    return {name for name in names if name.startswith(("socket:", "anon_inode:[eventpoll]"))}

def name_of(number):
    return os.readlink(f"/proc/self/fd/{number}")

def in_a_child(action):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0

def use_it():
    ours, peer = socket.socketpair()
    future = reaper.submit(ours)
    peer.close()
    assert outcomes([future]) == [CloseOutcome.PEER_CLOSED]
"""

FORK = """
def look_and_use_it():
    assert held() == before - taken, "it holds no copies"
    assert (len(reaper), sum(reaper.stats().values())) == (0, 0)
    for _, peer in crowd:
        peer.close()
    use_it()
    reaper.close()
    assert not any(future.done() for future in futures)

with Reaper(timeout=PATIENCE, idle_timeout=None) as reaper, connect_many(5) as crowd:
    kept = crowd[0].ours.dup()  # through which the options can be seen
    set_linger(kept, LingerPolicy.TIMED, 7)
    before = held()
    taken = {name_of(ours.fileno()) for ours, _ in crowd[1:]}
    assert len(taken & before) == 4
    futures = [reaper.submit(ours) for ours, _ in crowd]
    for _, peer in crowd:
        assert peer.recv(1) == b""
    in_a_child(look_and_use_it)
    assert not any(future.done() for future in futures)
    assert get_linger(kept) == Linger(LingerPolicy.TIMED, 7)
    for _, peer in crowd:
        peer.close()
    assert outcomes(futures) == [CloseOutcome.PEER_CLOSED] * 5, "still reported to the parent"
    kept.close()
"""


def test_a_forked_child_starts_its_own_thread_and_does_not_touch_the_parents_sockets() -> None:
    assert_all_well(FORK)


BUSY_FORK = """
from collections import deque
reaper = Reaper(timeout=PATIENCE, max_sockets=64)
submitted = deque(maxlen=200)  # more than it may hold
peers = deque(maxlen=100)
over = threading.Event()
count = 0

def be_busy():
    global count
    while not over.is_set():
        ours, peer = socket.socketpair()
        submitted.append((name_of(ours.fileno()), ours))
        reaper.submit(ours)
        count += 1
        if count % 3:
            peer.close()
        else:
            if len(peers) == 100:
                peers.popleft().close()
            peers.append(peer)

def look_and_use_it():
    copies = held() & {name for name, ours in submitted if ours.fileno() == -1}
    assert not copies, copies
    use_it()

worker = threading.Thread(target=be_busy, daemon=True)
worker.start()
for _ in range(int(sys.argv[1])):
    in_a_child(look_and_use_it)
over.set()
worker.join()
for peer in peers:
    peer.close()
reaper.close()
assert sum(reaper.stats().values()) == count
"""


COUNT = """
import sys
sys.setswitchinterval(1e-6)
for _ in range(4):
    reaper = Reaper(timeout=PATIENCE, max_sockets=2)

    def submit():
        for _ in range(1000):
            ours, peer = socket.socketpair()
            reaper.submit(ours)
            peer.close()

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reaper.close()
    assert sum(reaper.stats().values()) == 4000, reaper.stats()
"""


def test_every_close_is_counted_when_many_threads_make_room() -> None:
    assert_all_well(COUNT)


@pytest.mark.skipif(
    PYPY, reason="PyPy forks inside detach(), when no object has the descriptor"
)
def test_forks_during_closes_neither_deadlock_nor_keep_copies() -> None:
    assert_all_well(BUSY_FORK, "200")


TLS_FORK = """
import ssl
from test_tls import fill_raw, session

def look():
    assert tls.ours.fileno() == -1, "another socket may have the number"

with Reaper(timeout=PATIENCE) as reaper, session(ssl.TLSVersion.TLSv1_3) as tls:
    fill_raw(tls.ours)
    reaper.submit(tls.ours)
    in_a_child(look)
    assert len(reaper) == 1
    reaper.close(0)
"""


def test_a_forked_child_is_left_no_number_of_a_tls_socket_that_waits_for_room() -> None:
    assert_all_well(TLS_FORK)


# Exits with a pending close whose input is unread; the peer is the test.
IN_FLIGHT = """
def in_flight(reaper):
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.sendall(b"reply" * 1000)
    return reaper.submit(sock)

def used():
    reaper = Reaper()
    ours, peer = socket.socketpair()
    reaper.submit(ours)
    peer.close()
    return reaper

def in_a_daemon(reaper):
    # Returns a function that lets a daemon thread submit.
    exiting = threading.Event()
    def work():
        exiting.wait()
        in_flight(reaper)
    daemon = threading.Thread(target=work, daemon=True)
    daemon.start()
    return lambda: (exiting.set(), daemon.join())
"""
EXITS = {
    "at the end of the program": """
reaper = Reaper()
in_flight(reaper)
""",
    "with an unreferenced Reaper": """
in_flight(Reaper())
""",
    "with a Reaper in a reference cycle": """
class Server: pass
server = Server()
server.reaper, server.self = Reaper(), server
in_flight(server.reaper)
del server
""",
    "by an exception": """
reaper = Reaper()
in_flight(reaper)
sys.stderr = open(os.devnull, "w")
raise RuntimeError
""",
    "by sys.exit()": """
reaper = Reaper()
in_flight(reaper)
sys.exit(0)
""",
    "while a thread runs, which calls sys.exit()": """
reaper = Reaper()
def work():
    in_flight(reaper)
    sys.exit(0)
threading.Thread(target=work).start()
""",
    "from an exit handler registered before the import": """
reaper = used()
def late():
    assert outcomes([in_flight(reaper)]) == [CloseOutcome.PEER_CLOSED]
""",
    "from a handler": """
reaper = used()
atexit.register(lambda: in_flight(reaper))
""",
    "from an exit handler, with no earlier submission": """
reaper = Reaper()
atexit.register(lambda: in_flight(reaper))
""",
    "from a daemon thread, before the Reapers are ended": """
atexit.register(in_a_daemon(Reaper()))
""",
    "from a daemon thread, after the Reapers were ended": """
late = in_a_daemon(Reaper())
""",
}


@pytest.mark.parametrize("how", EXITS)
def test_pending_closes_are_finished_at_exit(how: str, tcp: Connection) -> None:
    tcp.peer.sendall(b"unread")
    await_input(tcp.ours)
    number = tcp.ours.detach()
    program = "import atexit; late = lambda: None; atexit.register(lambda: late())"
    process = subprocess.Popen(
        [sys.executable, "-c", program + PRELUDE + IN_FLIGHT + EXITS[how], str(number)],
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=[number],
    )
    os.close(number)
    with process:
        assert read_and_close(tcp.peer) == b"reply" * 1000
        out, err = process.communicate(timeout=PATIENCE)
    assert (out, err) == ("", "")
    assert process.returncode == (1 if how == "by an exception" else 0)


WORKER = """
import multiprocessing, multiprocessing.util, socket, sys, threading
from graceful_close import Reaper
from streams import PATIENCE, await_input
def work(port):
    if {lags}:
        # Whoever ends the worker comes before the Reaper's thread has done anything.
        ending = threading.Event()
        multiprocessing.util.Finalize(None, ending.set, exitpriority=1)
        threading.setprofile(lambda *_: ending.wait())
        sys.setswitchinterval(PATIENCE)
    sock = socket.create_connection(("127.0.0.1", port))
    await_input(sock)
    sock.sendall(b"reply" * 1000)
    {reaper}.submit(sock)
reaper = Reaper()
if __name__ == "__main__":
    if {used_before}:
        ours, peer = socket.socketpair()
        future = reaper.submit(ours)
        peer.close()
        future.result(PATIENCE)
    start = multiprocessing.get_context(sys.argv[1])
    worker = start.Process(target=work, args=(int(sys.argv[2]),))
    worker.start()
    worker.join(PATIENCE)
    print(worker.exitcode)
"""


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("reaper", ["reaper", "Reaper()"], ids=["of the module", "its own"])
@pytest.mark.parametrize("used_before", [False, True], ids=["", "used before"])
@pytest.mark.parametrize("lags", [False, True], ids=["", "the thread lags"])
def test_a_worker_of_multiprocessing_finishes_its_pending_closes_at_its_end(
    listener: socket.socket,
    tmp_path: Path,
    start: str,
    reaper: str,
    used_before: bool,
    lags: bool,
) -> None:
    """Such a worker ends with os._exit()."""
    program = tmp_path / "program.py"
    program.write_text(WORKER.format(reaper=reaper, used_before=used_before, lags=lags))
    process = subprocess.Popen(
        [sys.executable, program, start, str(listener.getsockname()[1])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**without_coverage(), "PYTHONPATH": str(HERE)},
    )
    listener.settimeout(PATIENCE)
    with process, listener.accept()[0] as peer:
        peer.sendall(b"unread")
        await_fin(peer)
        poller = select.poll()
        poller.register(process.stdout or 0, select.POLLIN)
        assert not poller.poll(300), "the worker did not wait for the peer"
        peer.sendall(b"more")
        assert read_and_close(peer) == b"reply" * 1000
        assert process.communicate(timeout=PATIENCE) == ("0\n", "")


BOUNDED_EXITS = {
    "peers that never answer": """
reaper = Reaper(timeout=0.3)
in_flight(reaper)
""",
    "two Reapers whose peers never answer": """
reaper, other = Reaper(timeout=0.3), Reaper(timeout=0.3)
in_flight(reaper)
with connect_many(20) as crowd:
    for ours, _ in crowd:
        other.submit(ours)
""",
    "a callback that never ends": """
reaper = Reaper(timeout=1)
ours, peer = socket.socketpair()
future = reaper.submit(ours)
future.add_done_callback(lambda _: threading.Event().wait())
peer.close()
future.result(PATIENCE)
in_flight(reaper)
""",
    "a peer that never stops sending": """
reaper = Reaper(timeout=60, idle_timeout=0.3)
ours, peer = socket.socketpair()
def trickle():
    try:
        while True:
            peer.send(b"more")
            time.sleep(0.01)
    except OSError:
        pass
threading.Thread(target=trickle, daemon=True).start()
reaper.submit(ours)
""",
    "os._exit()": """
reaper = Reaper()
in_flight(reaper)
os._exit(0)
""",
    "a callback that exits": """
reaper = Reaper(timeout=0.3)
in_flight(reaper).add_done_callback(lambda _: sys.exit(3))
""",
}


@pytest.mark.parametrize("what", BOUNDED_EXITS)
def test_exit_takes_a_limited_time(what: str, tcp: Connection) -> None:
    number = tcp.ours.fileno()
    started = time.monotonic()
    ran = run(IN_FLIGHT + BOUNDED_EXITS[what], str(number), pass_fds=(number,))
    assert time.monotonic() - started < PATIENCE / 2
    assert (ran.returncode, ran.stderr) == (0, "")


# --- gevent -----------------------------------------------------------------------------------

GEVENT = """
turns = 0
def others():
    global turns
    while True:
        turns += 1
        gevent.sleep(0.01)
gevent.spawn(others)
with Reaper(timeout=0.3) as reaper, connect_many(10) as crowd:
    for ours, peer in crowd:
        ours.sendall(b"reply")
        peer.sendall(b"unread")
    futures = [reaper.submit(ours) for ours, _ in crowd]
    assert turns < 3, "submit waited"
    for _, peer in crowd[:9]:
        assert peer.recv(10) == b"reply" and peer.recv(1) == b""
        peer.close()
    expected = [CloseOutcome.PEER_CLOSED] * 9 + [CloseOutcome.TIMED_OUT]
    assert outcomes(futures) == expected, futures
    assert turns > 3, "the wait must let other greenlets run"
reaper = Reaper(timeout=0.3)
with connect("tcp4") as (ours, peer):
    reaper.submit(ours)  # and exit with it in flight
    os.dup(peer.fileno())
print("all well")
"""


@pytest.mark.parametrize("when", ["before the import", "after it"])
def test_a_reaper_under_gevent_is_a_greenlet_and_works(when: str) -> None:
    pytest.importorskip("gevent", reason="needs gevent", exc_type=ImportError)
    early = "" if when == "before the import" else "import graceful_close\n"
    patch = "import gevent, gevent.monkey\ngevent.monkey.patch_all()\n"
    ran = run(GEVENT, first=early + patch)
    assert (ran.stdout, ran.stderr) == ("all well\n", "")
