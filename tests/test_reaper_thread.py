"""Reaper: its thread, and what interrupts, disturbs or replaces the thread."""

from __future__ import annotations

import gc
import os
import select
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest

import descriptors
from graceful_close import CloseOutcome, CloseResult, LingerPolicy, Reaper
from graceful_close._drain import drain_of
from graceful_close._loop import CloseLoop, Pending
from reaping import (
    assert_gone,
    assert_it_works,
    await_end,
    await_sleep,
    kept_thread,
    no_threads,
    outcomes,
    result_of,
    start_and_let_it_run,
    submit,
    threads,
    times_awake,
)
from signals import Stop, moments, on_alarm, stop
from streams import (
    DEADLINE,
    REPLY,
    Connection,
    FailsToDetach,
    await_reset,
    connect,
    connect_many,
    default_timeout,
    ends_in_reset,
    fill,
    meanwhile,
    read_all,
    read_and_close,
    reply_early,
    reset,
    wait_until,
)

pytestmark = pytest.mark.usefixtures("no_threads_of_an_earlier_test")

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
    future = Reaper(timeout=DEADLINE).submit(tcp.ours)
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
                Reaper(timeout=DEADLINE).submit(ours)
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
    with Reaper(timeout=DEADLINE, max_sockets=2000) as reaper, connect_many(200) as crowd:
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
    with default_timeout(DEADLINE), connect_many(2) as [silent, polite]:
        first, other = reaper.submit(silent.ours), reaper.submit(polite.ours)
        polite.peer.close()
        assert other.result(DEADLINE / 2).outcome is CloseOutcome.PEER_CLOSED
        silent.peer.close()
        assert result_of(first).outcome is CloseOutcome.PEER_CLOSED


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
        assert reaper.submit(victim).exception(DEADLINE) is bug
        assert victims_peer.recv(1) == b""
        peer.close()
        assert result_of(other).outcome is CloseOutcome.PEER_CLOSED


def test_a_failure_before_a_close_begins_is_set_as_its_exception(reaper: Reaper) -> None:
    with connect("tcp4") as (ours, peer):
        future = reaper.submit(FailsToDetach(fileno=ours.detach()))
        assert isinstance(future.exception(0), RuntimeError)
        assert peer.recv(1) == b""
        assert len(reaper) == 0
        assert_it_works(reaper)


# --- without threads or descriptors -----------------------------------------------------------


def test_without_threads_submit_closes_in_the_callers_thread(
    stream: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    called_in: list[threading.Thread] = []
    reply_early(stream, b"upload" * 1000)
    with Reaper(
        timeout=DEADLINE, on_close=lambda _: called_in.append(threading.current_thread())
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
    with Reaper(timeout=100 * DEADLINE) as reaper, no_threads(monkeypatch):
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
    reply_early(stream, b"upload" * 1000)
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
        Reaper(timeout=DEADLINE, max_sockets=3, on_overflow=on_overflow) as reaper,
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
        Reaper(timeout=DEADLINE, max_sockets=3, on_overflow=LingerPolicy.ABORT) as reaper,
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
            Reaper(timeout=3 * DEADLINE, idle_timeout=None, max_sockets=2) as reaper,
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


# --- signals ----------------------------------------------------------------------------------


the_first_or_a_later_one = pytest.mark.parametrize(
    "before", [0, 1], ids=["the first", "a later one"]
)


@the_first_or_a_later_one
def test_a_signal_at_any_call_of_submit_loses_no_socket(before: int) -> None:
    """The caller has the socket, or the socket is closed; and the Reaper continues."""
    for moment in moments():
        with Reaper(timeout=DEADLINE) as reaper, connect("tcp4") as (ours, peer):
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
            Reaper(timeout=DEADLINE) as reaper,
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
        with Reaper(timeout=DEADLINE, max_sockets=2) as reaper, connect_many(5) as crowd:
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
            reaper = Reaper(timeout=DEADLINE)
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
    reaper = Reaper(timeout=DEADLINE)
    future = reaper.submit(tcp.ours)
    with on_alarm(stop, 0.05), pytest.raises(Stop):
        reaper.close()
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
            assert room.acquire(timeout=DEADLINE)
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
