"""Reaper: a worker leaves its connection there, and goes on."""

from __future__ import annotations

import asyncio
import errno
import gc
import math
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
from concurrent.futures import Future, as_completed, wait
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import descriptors
import graceful_close as graceful_close_package
from graceful_close import CloseOutcome, CloseResult, LingerPolicy, Reaper
from graceful_close._crew import Orders
from graceful_close._future import CloseFuture
from graceful_close._handed import Handed
from graceful_close._loop import CloseLoop, Closing
from graceful_close._reaper import hand_over
from graceful_close._terms import Terms
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
)

REPLY = b"reply" * 13_000
HERE = Path(__file__).parent


@pytest.fixture(params=["epoll", "poll"])
def reaper(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reaper]:
    if request.param == "poll":
        monkeypatch.delattr(select, "epoll", raising=False)
        monkeypatch.setattr(selectors, "DefaultSelector", selectors.PollSelector)
    with Reaper(timeout=PATIENCE, idle_timeout=None) as reaper:
        yield reaper


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "graceful-close reaper"]


def result_of(future: Future[CloseResult]) -> CloseResult:
    return future.result(PATIENCE)


def outcomes(futures: list[Future[CloseResult]]) -> list[CloseOutcome]:
    return [result_of(future).outcome for future in futures]


def assert_it_works(reaper: Reaper) -> None:
    with connect("tcp4") as (ours, peer):
        future = reaper.submit(ours)
        peer.close()
        assert result_of(future).outcome is CloseOutcome.PEER_CLOSED


def assert_gone(peer: socket.socket) -> None:
    """Nobody holds the other end any more."""
    with suppress(ConnectionError):
        peer.send(b"x")
    await_reset(peer)


class Stop(BaseException):
    """Stands for KeyboardInterrupt: pytest would take the real one for its own."""


# --- the point of it all -----------------------------------------------------------------------


def test_unread_input_does_not_destroy_the_reply(stream: Connection, reaper: Reaper) -> None:
    stream.peer.sendall(b"upload" * 1000)
    await_input(stream.ours)
    stream.ours.sendall(REPLY)
    future = reaper.submit(stream.ours)
    assert stream.ours.fileno() == -1
    assert read_and_close(stream.peer) == REPLY
    result = result_of(future)
    assert (result.outcome, result.drained) == (CloseOutcome.PEER_CLOSED, 6000)


def test_a_worker_goes_on_while_its_peer_dawdles(stream: Connection, reaper: Reaper) -> None:
    future = reaper.submit(stream.ours)
    assert stream.peer.recv(1) == b""
    assert not future.done()
    assert len(reaper) == 1
    stream.peer.close()
    assert result_of(future).outcome is CloseOutcome.PEER_CLOSED


def test_our_fin_is_out_when_submit_returns(stream: Connection, reaper: Reaper) -> None:
    """However busy the thread may be."""
    entered, go_on = threading.Event(), threading.Event()

    def block(_: Future[CloseResult]) -> None:
        entered.set()
        go_on.wait(PATIENCE)

    with connect("tcp4") as (other, others_peer):
        reaper.submit(other).add_done_callback(block)
        others_peer.close()
        assert_eventually(entered)
        future = reaper.submit(stream.ours)
        assert stream.peer.recv(1) == b""
        go_on.set()
        stream.peer.close()
        assert result_of(future).outcome is CloseOutcome.PEER_CLOSED


@pytest.mark.parametrize("mode", [None, 0.0, 30.0])
def test_it_is_the_same_in_every_mode(
    stream: Connection, reaper: Reaper, mode: float | None
) -> None:
    stream.ours.settimeout(mode)
    stream.peer.sendall(b"unread")
    future = reaper.submit(stream.ours)
    assert read_and_close(stream.peer) == b""
    result = result_of(future)
    assert (result.outcome, result.drained) == (CloseOutcome.PEER_CLOSED, 6)


def test_each_ends_as_one_alone_would_and_is_counted(listener: socket.socket) -> None:
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
        assert reaper, "an idle one is not none"


def test_time_counts_from_the_submission_and_not_from_each_other(reaper: Reaper) -> None:
    with Reaper(timeout=0.2) as brief, connect_many(3) as crowd:
        results = [result_of(brief.submit(sock)) for sock, _ in crowd]
    assert [result.outcome for result in results] == [CloseOutcome.TIMED_OUT] * 3
    assert all(0.2 <= result.elapsed < 2 for result in results)


def test_silence_ends_at_the_idle_deadline(tcp: Connection) -> None:
    with Reaper(timeout=PATIENCE, idle_timeout=0.05) as reaper:
        assert result_of(reaper.submit(tcp.ours)).outcome is CloseOutcome.IDLE_TIMED_OUT


def test_until_delivered_is_for_each(tcp: Connection) -> None:
    with Reaper(until=CloseOutcome.DELIVERED) as reaper:
        tcp.ours.sendall(REPLY)
        assert result_of(reaper.submit(tcp.ours)).outcome is CloseOutcome.DELIVERED
        assert read_all(tcp.peer) == REPLY


def test_a_makefile_object_does_not_keep_the_descriptor(
    stream: Connection, reaper: Reaper
) -> None:
    file = stream.ours.makefile("rb")
    future = reaper.submit(stream.ours)
    assert stream.peer.recv(1) == b""
    stream.peer.close()
    assert result_of(future).outcome is CloseOutcome.PEER_CLOSED
    file.close()


def test_a_dup_may_be_submitted_when_the_first_is_gone() -> None:
    """With its number and its connection, which are in the kernel's list from before."""
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
            await_sleep(threads()[0])  # so that it waits for it, as it did for the first
            peer.close()
            assert result_of(again).outcome is CloseOutcome.PEER_CLOSED


def test_a_flood_starves_nobody(reaper: Reaper) -> None:
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


# --- its futures --------------------------------------------------------------------------------


def test_a_future_is_made_when_it_is_first_asked(tcp: Connection, reaper: Reaper) -> None:
    """The stock one's lock, condition and lists are most of what a connection would cost."""
    future = reaper.submit(tcp.ours)
    assert vars(future) == {}
    tcp.peer.close()
    wait_until_counted(reaper, 1)
    assert vars(future) == {}, "telling it is not asking it"
    assert future.result(0).outcome is CloseOutcome.PEER_CLOSED
    assert vars(future).keys() > vars(Future()).keys()


def wait_until_counted(reaper: Reaper, connections: int) -> None:
    patience = time.monotonic() + PATIENCE
    while sum(reaper.stats().values()) < connections and time.monotonic() < patience:
        time.sleep(0.001)
    assert sum(reaper.stats().values()) == connections


ASK: dict[str, Callable[[Future[CloseResult]], CloseResult]] = {
    "result()": result_of,
    "exception()": lambda future: (future.exception(PATIENCE), future.result(0))[1],
    "wait()": lambda future: wait([future], PATIENCE).done.pop().result(0),
    "as_completed()": lambda future: next(as_completed([future], PATIENCE)).result(0),
    "asyncio": lambda future: asyncio.run(wrapped(future)),
    "a callback": lambda future: told(future).result(0),
}


def wait_until_asked(future: Future[CloseResult]) -> None:
    patience = time.monotonic() + PATIENCE
    while not vars(future) and time.monotonic() < patience:
        time.sleep(0.001)
    assert vars(future)


async def wrapped(future: Future[CloseResult]) -> CloseResult:
    return await asyncio.wait_for(asyncio.wrap_future(future), PATIENCE)


def told(future: Future[CloseResult]) -> Future[CloseResult]:
    called_with: list[Future[CloseResult]] = []
    called = threading.Event()
    future.add_done_callback(called_with.append)
    future.add_done_callback(lambda _: called.set())
    assert_eventually(called)
    return called_with[0]


@pytest.mark.parametrize("ask", ASK.values(), ids=ASK)
@pytest.mark.parametrize("early", [True, False], ids=["before the end", "after it"])
def test_a_future_answers_whoever_asks(
    tcp: Connection,
    reaper: Reaper,
    ask: Callable[[Future[CloseResult]], CloseResult],
    early: bool,
) -> None:
    future = reaper.submit(tcp.ours)
    if early:
        with meanwhile(partial(ask, future)) as answers:
            wait_until_asked(future)
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


def test_a_future_that_is_settled_while_it_is_asked_knows_its_result() -> None:
    orders = Orders(Terms(1), 1, LingerPolicy.ABORT)
    result = CloseResult(CloseOutcome.PEER_CLOSED, 0.0, 0, 0, None)

    def settle() -> None:
        with orders.lock:
            kept = future.settle(result)
        if not kept:
            future.tell(result)

    def settle_meanwhile() -> None:
        settling.start()
        settling.join(0.05)  # it may have to wait until the future is one

    for moment in count(1):
        future = CloseFuture(orders)
        settling = threading.Thread(target=settle)
        with at_moment(moment, settle_meanwhile) as came:
            future.running()
        if not came:
            assert moment > 5
            break
        settling.join()
        assert future.result(0) is result, f"at moment {moment}"


def test_a_signal_handler_may_ask_a_future_that_is_just_being_asked() -> None:
    for moment in count(1):
        called: list[str] = []
        with Reaper(timeout=PATIENCE) as reaper, connect("tcp4") as (ours, peer):
            future = reaper.submit(ours)
            handler = partial(ask_for, future, "the handler", called)
            with at_moment(moment, handler) as came:
                ask_for(future, "the program", called)
            peer.close()
            assert result_of(future).outcome is CloseOutcome.PEER_CLOSED
        expected = ["the program", "the handler"] if came else ["the program"]
        assert sorted(called, reverse=True) == expected, f"at moment {moment}"
        if not came:
            assert moment > 5
            break


def ask_for(future: Future[CloseResult], who: str, called: list[str]) -> None:
    future.add_done_callback(lambda _: called.append(who))


def test_a_signal_while_a_future_is_asked_leaves_no_half_of_it() -> None:
    for moment in count(1):
        with Reaper(timeout=PATIENCE) as reaper, connect("tcp4") as (ours, peer):
            future = reaper.submit(ours)
            with at_moment(moment, stop) as came:
                future.running()
            peer.close()
            assert result_of(future).outcome is CloseOutcome.PEER_CLOSED, f"at moment {moment}"
        if not came:
            assert moment > 5
            break


# --- TLS -----------------------------------------------------------------------------------------------


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def tls(request: pytest.FixtureRequest) -> Iterator[Any]:
    pytest.importorskip("trustme", reason="needs trustme", exc_type=ImportError)
    from test_tls import session

    with session(request.param) as both:
        yield both


def test_tls_says_goodbye_and_the_session_is_forgotten(tls: Any, reaper: Reaper) -> None:
    tls.ours.sendall(b"reply")
    future = reaper.submit(tls.ours)
    assert tls.ours.fileno() == -1
    assert tls.ours.version() is None, "OpenSSL would go on using the number"
    assert read_and_close(tls.peer) == b"reply", "an end without close_notify would be an error"
    result = result_of(future)
    assert (result.outcome, result.notified) == (CloseOutcome.PEER_CLOSED, True)


def test_tls_without_room_for_its_goodbye_goes_as_it_is(tls: Any, reaper: Reaper) -> None:
    from test_tls import fill_raw

    written = fill_raw(tls.ours)
    future = reaper.submit(tls.ours)
    await_sleep(threads()[0])  # so that it has seen for itself that there is no room
    raw = socket.socket(fileno=tls.peer.detach())
    assert len(read_and_close(raw)) > written, "and the goodbye"
    result = result_of(future)
    assert (result.outcome, result.notified) == (CloseOutcome.PEER_CLOSED, True)
    assert tls.ours.fileno() == -1
    assert tls.ours.version() is None


def test_a_tls_peers_reset_is_a_result_and_no_exception(tls: Any, reaper: Reaper) -> None:
    reset(tls.peer)
    poller = select.poll()
    poller.register(tls.ours, 0)
    assert poller.poll(PATIENCE * 1000), "POLLERR"
    result = result_of(reaper.submit(tls.ours))
    assert (result.outcome, result.notified) == (CloseOutcome.PEER_RESET, False)
    assert isinstance(result.error, ConnectionResetError)
    assert tls.ours.fileno() == -1


# --- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize("thing", [7, None, "socket"])
def test_what_is_no_socket_is_refused(thing: Any) -> None:
    with pytest.raises(TypeError, match="a socket is needed"):
        Reaper().submit(thing)


def test_a_datagram_socket_is_refused_before_it_is_touched() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as datagram:
        with pytest.raises(TypeError, match="a stream socket is needed"):
            Reaper().submit(datagram)
        assert datagram.fileno() != -1


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout": -1},
        {"idle_timeout": float("inf")},
        {"drain_limit": -1},
        {"until": CloseOutcome.ABORTED},
        {"on_timeout": LingerPolicy.TIMED},
        {"max_sockets": 0},
        {"on_overflow": LingerPolicy.TIMED},
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Reaper(**wrong)


def test_a_closed_reaper_refuses_and_leaves_the_socket_alone(
    stream: Connection, reaper: Reaper
) -> None:
    reaper.close()
    with pytest.raises(RuntimeError, match="the Reaper is closed"):
        reaper.submit(stream.ours)
    stream.ours.sendall(b"alive")
    assert stream.peer.recv(10) == b"alive"


# --- its thread -----------------------------------------------------------------------------------------


def test_there_is_no_thread_before_the_first_connection(tcp: Connection) -> None:
    with Reaper() as reaper:
        with socket.socket() as closed:
            closed.close()
            assert result_of(reaper.submit(closed)).outcome is CloseOutcome.ALREADY_CLOSED
        assert threads() == []
        reaper.submit(tcp.ours)
        assert [thread.daemon for thread in threads()] == [True]
        tcp.peer.close()
    assert threads() == []


def test_one_that_is_forgotten_finishes_by_itself(tcp: Connection) -> None:
    tcp.ours.sendall(REPLY)
    future = Reaper(timeout=PATIENCE).submit(tcp.ours)
    (thread,) = threads()
    assert read_and_close(tcp.peer) == REPLY
    assert result_of(future).outcome is CloseOutcome.PEER_CLOSED
    thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.mark.parametrize("connections", [0, 10])
def test_an_idle_one_does_not_wake_up(reaper: Reaper, connections: int) -> None:
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


def test_one_that_is_busy_is_not_woken_for_each(
    reaper: Reaper, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[list[tuple[int, bool]]] = []
    serve = CloseLoop.serve

    def count_and_serve(loop: CloseLoop, events: list[tuple[int, bool]]) -> None:
        turns.append(events)
        serve(loop, events)

    monkeypatch.setattr(CloseLoop, "serve", count_and_serve)
    assert_it_works(reaper)
    with connect_many(200) as crowd:
        await_sleep(threads()[0])
        turns.clear()
        started = time.monotonic()
        for sock, _ in crowd:
            reaper.submit(sock)
            time.sleep(0.0001)  # as a server does that waits for the next request
        took = time.monotonic() - started
        assert 1 <= len(turns) <= 2 + took / 0.002
        for _, peer in crowd:
            peer.close()


def test_one_that_may_hold_few_takes_each_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or its intake would overflow while the thread lets others come."""
    monkeypatch.setattr("graceful_close._crew._GATHERING", PATIENCE)
    started = time.monotonic()
    with Reaper(timeout=PATIENCE, max_sockets=3) as reaper:
        assert_it_works(reaper)
        assert_it_works(reaper)
    assert time.monotonic() - started < PATIENCE


def times_awake(thread: threading.Thread) -> tuple[str, ...]:
    """The thread's state, and how often it has been put to sleep (proc_pid_status(5))."""
    status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    return (
        fields["State"],
        fields["voluntary_ctxt_switches"],
        fields["nonvoluntary_ctxt_switches"],
    )


def await_sleep(thread: threading.Thread) -> tuple[str, ...]:
    """Until it does nothing for a twentieth of a second."""
    patience = time.monotonic() + PATIENCE
    while time.monotonic() < patience:
        before = times_awake(thread)
        time.sleep(0.05)
        if times_awake(thread) == before and before[0].startswith("S"):
            return before
    raise AssertionError("it never slept")


def test_a_bug_strands_nobody_and_the_next_connection_starts_afresh(
    reaper: Reaper, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", reported.append)
    with connect_many(5) as crowd:
        futures = [reaper.submit(sock) for sock, _ in crowd]
        for _, peer in crowd:
            assert peer.recv(1) == b""
        (thread,) = threads()
        with monkeypatch.context() as patch:
            bug = RuntimeError("a bug")

            def fail(*_: object) -> None:
                raise bug

            patch.setattr(CloseLoop, "serve", fail)
            crowd[0].peer.sendall(b"x")
            errors = [future.exception(PATIENCE) for future in futures]
            thread.join(PATIENCE)
        assert errors == [bug] * 5
        assert [report.exc_value for report in reported] == [bug], "it is not silent"
        for _, peer in crowd:
            assert_gone(peer)
        assert_it_works(reaper)


@pytest.mark.parametrize("where", ["add_shut", "wait"])
def test_a_bug_at_another_place_strands_nobody_either(
    reaper: Reaper, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    reported: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", reported.append)
    with connect_many(5) as crowd:
        with monkeypatch.context() as patch:
            bug = MemoryError("a bug")

            def fail(*_: object) -> None:
                raise bug

            patch.setattr(CloseLoop, where, fail)
            errors = [reaper.submit(sock).exception(PATIENCE) for sock, _ in crowd]
            for thread in threads():
                thread.join(PATIENCE)
        assert errors == [bug] * 5
        assert [peer.recv(1) for _, peer in crowd] == [b""] * 5
        assert_it_works(reaper)


def test_one_that_fails_by_no_network_has_the_exception_and_the_others_go_on(
    reaper: Reaper, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graceful_close._handed import _shutdown  # pyright: ignore[reportPrivateUsage]

    def fail_for_one(sock: socket.socket, how: int) -> None:
        if sock.getsockname() == address:
            raise OSError(errno.ENOBUFS, "no room in the kernel")
        _shutdown(sock, how)

    monkeypatch.setattr("graceful_close._handed._shutdown", fail_for_one)
    with connect("tcp4") as (victim, victims_peer), connect("tcp4") as (ours, peer):
        address = victim.getsockname()
        other = reaper.submit(ours)
        error = reaper.submit(victim).exception(PATIENCE)
        assert isinstance(error, OSError)
        assert error.errno == errno.ENOBUFS
        assert victims_peer.recv(1) == b""
        peer.close()
        assert result_of(other).outcome is CloseOutcome.PEER_CLOSED


def test_without_a_descriptor_left_for_it_the_future_has_the_error(
    stream: Connection, reaper: Reaper
) -> None:
    with descriptors.none_left():
        future = reaper.submit(stream.ours)
        error = future.exception(0)
    assert isinstance(error, OSError)
    assert error.errno == errno.EMFILE
    assert stream.ours.fileno() == -1
    assert stream.peer.recv(1) == b""
    assert_it_works(reaper)


def test_once_it_has_its_descriptors_it_needs_no_more(reaper: Reaper) -> None:
    assert_it_works(reaper)
    with connect_many(5) as crowd, descriptors.none_left():
        futures = [reaper.submit(sock) for sock, _ in crowd]
        for _, peer in crowd:
            read_and_close(peer)
        assert outcomes(futures) == [CloseOutcome.PEER_CLOSED] * 5


# --- too many ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_overflow", [LingerPolicy.ABORT, LingerPolicy.BACKGROUND])
def test_who_has_waited_longest_makes_room(on_overflow: LingerPolicy) -> None:
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


def test_while_a_callback_keeps_the_thread_room_is_made_all_the_same() -> None:
    entered, go_on = threading.Event(), threading.Event()
    told_in: list[threading.Thread] = []

    def block(_: Future[CloseResult]) -> None:
        entered.set()
        go_on.wait(PATIENCE)

    with (
        connect_many(6, peer_buffer=4096) as crowd,
        Reaper(timeout=PATIENCE, max_sockets=3) as reaper,
    ):
        for sock, _ in crowd[1:3]:
            fill(
                sock
            )  # or the peer would have had our FIN, and would take the reset for an end
        reaper.submit(crowd[0].ours).add_done_callback(block)
        crowd[0].peer.close()
        assert_eventually(entered)
        futures = [reaper.submit(sock) for sock, _ in crowd[1:]]
        for future in futures[:2]:
            future.add_done_callback(lambda _: told_in.append(threading.current_thread()))
        assert [ends_in_reset(peer) for _, peer in crowd[1:3]] == [True] * 2
        assert reaper.overflowed == 2
        (thread,) = threads()
        go_on.set()
        assert outcomes(futures[:2]) == [CloseOutcome.TIMED_OUT] * 2
        for _, peer in crowd[3:]:
            read_and_close(peer)
        assert outcomes(futures[2:]) == [CloseOutcome.PEER_CLOSED] * 3
    assert told_in == [thread] * 2


def assert_eventually(event: threading.Event) -> None:
    assert event.wait(PATIENCE), "it never happened"


def test_by_default_it_takes_half_of_the_descriptors() -> None:
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    with (
        descriptors.limited_to(2 * (highest + 10)),
        Reaper() as reaper,
        connect_many(highest // 4) as crowd,
    ):
        for sock, _ in crowd:
            reaper.submit(sock)
        assert reaper.overflowed == 0


# --- workers that lend a hand -------------------------------------------------------------------------


@contextmanager
def kept_thread(reaper: Reaper) -> Generator[None, None, None]:
    """The Reaper's thread is kept by a callback while the block runs."""
    entered, go_on = threading.Event(), threading.Event()

    def block(_: Future[CloseResult]) -> None:
        entered.set()
        go_on.wait(PATIENCE)

    close_and(reaper, block)
    assert_eventually(entered)
    try:
        yield
    finally:
        go_on.set()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever hands over a second connection looks at both."""
    monkeypatch.setattr("graceful_close._crew._RIPE", 0.0)


def is_open(number: int) -> bool:
    return Path(f"/proc/self/fd/{number}").exists()


@pytest.mark.usefixtures("at_once")
def test_a_worker_closes_what_has_waited_and_ended(reaper: Reaper) -> None:
    with connect_many(3) as crowd, kept_thread(reaper):
        numbers = [ours.fileno() for ours, _ in crowd]
        for ours, peer in crowd[:2]:
            peer.close()
            await_fin(ours)
        futures = [reaper.submit(ours) for ours, _ in crowd]
        assert [is_open(number) for number in numbers] == [False, False, True]
        assert not any(future.done() for future in futures), "the thread tells"
        for _, peer in crowd[2:]:
            peer.close()
    assert outcomes(futures) == [CloseOutcome.PEER_CLOSED] * 3
    assert [result_of(future).unacked for future in futures] == [0] * 3
    assert (len(reaper), reaper.stats()[CloseOutcome.PEER_CLOSED]) == (0, 4)


@pytest.mark.usefixtures("at_once")
def test_a_worker_leaves_to_the_thread_whatever_is_not_ordinary(
    reaper: Reaper, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect_many(6) as crowd:
        with kept_thread(reaper):
            uploads, resets, silent, full, ended = crowd[:5]
            uploads.peer.sendall(b"upload" * 1000)
            await_input(uploads.ours)
            uploads.peer.close()
            await_fin(uploads.ours)
            reset(resets.peer)
            await_reset(resets.ours)
            fill(full.ours)
            full.peer.shutdown(socket.SHUT_WR)
            await_fin(full.ours)
            ended.peer.close()
            await_fin(ended.ours)
            numbers = [ours.fileno() for ours, _ in crowd]
            with monkeypatch.context() as patch:
                patch.setattr("graceful_close._crew._RIPE", math.inf)
                futures = [reaper.submit(ours) for ours, _ in crowd[:5]]
            futures.append(reaper.submit(crowd[5].ours))
            assert [is_open(number) for number in numbers] == [True] * 4 + [False, True]
            silent.peer.close()
            crowd[5].peer.close()
            read_and_close(full.peer)
        results = [result_of(future) for future in futures]
    assert [(result.outcome, result.drained) for result in results] == [
        (CloseOutcome.PEER_CLOSED, 6000),
        (CloseOutcome.PEER_RESET, 0),
        *[(CloseOutcome.PEER_CLOSED, 0)] * 4,
    ]
    assert len(reaper) == 0


@pytest.mark.usefixtures("at_once")
def test_a_worker_closes_what_python_alone_would_wait_for(reaper: Reaper) -> None:
    """With a default timeout recv() waits for input whatever its flags say."""
    socket.setdefaulttimeout(PATIENCE)
    try:
        with connect_many(2) as crowd, kept_thread(reaper):
            started = time.monotonic()
            futures = [reaper.submit(ours) for ours, _ in crowd]
            assert time.monotonic() - started < PATIENCE / 2
            for _, peer in crowd:
                peer.close()
        assert outcomes(futures) == [CloseOutcome.PEER_CLOSED] * 2
    finally:
        socket.setdefaulttimeout(None)


@pytest.mark.usefixtures("at_once")
def test_a_signal_while_a_worker_lends_a_hand_loses_nothing() -> None:
    moments = 0
    for moment in count(1):
        with Reaper(timeout=PATIENCE) as reaper, connect_many(3) as crowd:
            with kept_thread(reaper):
                for ours, peer in crowd:
                    peer.close()
                    await_fin(ours)
                numbers = [ours.fileno() for ours, _ in crowd]
                reaper.submit(crowd[0].ours)
                with at_moment(moment, stop) as came:
                    reaper.submit(crowd[1].ours)
                if crowd[1].ours.fileno() != -1:
                    del numbers[1]  # it was interrupted before anything had happened
                reaper.submit(crowd[2].ours)
            assert_it_works(reaper)
            assert not any(map(is_open, numbers)), f"at moment {moment}"
            assert len(reaper) == 0, f"at moment {moment}"
            ended = reaper.stats()
            assert sum(ended.values()) == ended[CloseOutcome.PEER_CLOSED]
            moments += ended[CloseOutcome.PEER_CLOSED] == 5 and bool(came)
        if not came:
            assert moments > 10, "it came too early or too late each time"
            break


@pytest.mark.usefixtures("at_once")
def test_a_signal_handler_may_submit_while_a_worker_lends_a_hand() -> None:
    for moment in count(1):
        futures: list[Future[CloseResult]] = []
        with Reaper(timeout=PATIENCE) as reaper, connect_many(3) as crowd:
            with kept_thread(reaper):
                for ours, peer in crowd:
                    peer.close()
                    await_fin(ours)
                futures.append(reaper.submit(crowd[0].ours))
                with at_moment(moment, partial(submit, reaper, crowd[2].ours, futures)) as came:
                    futures.append(reaper.submit(crowd[1].ours))
            assert outcomes(futures) == [CloseOutcome.PEER_CLOSED] * (2 + len(came))
            assert len(reaper) == 0, f"at moment {moment}"
        if not came:
            assert moment > 30
            break


@pytest.mark.parametrize("threads_are_kept", [False, True])
@pytest.mark.usefixtures("at_once")
def test_what_has_ended_is_no_garbage_that_waits_for_its_collection(
    reaper: Reaper, threads_are_kept: bool
) -> None:
    """An error that was kept with its traceback would keep the connection's every trace."""
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
            with kept_thread(reaper) if threads_are_kept else nullcontext():
                for ours, _ in crowd:
                    assert hand_over(ours, reaper)
            for _, peer in crowd[2:]:
                peer.close()
        reaper.close()
        assert sum(reaper.stats().values()) >= 8
        assert [
            thing for thing in gc.get_objects() if isinstance(thing, (Handed, Closing))
        ] == []
    finally:
        gc.enable()


def test_one_that_is_over_when_it_comes_is_not_taken_for_an_orderly_end(
    reaper: Reaper, tcp: Connection
) -> None:
    """Its owner may have read the reset that ended it: nobody else can tell."""
    tcp.ours.shutdown(socket.SHUT_WR)
    read_and_close(tcp.peer)
    assert read_all(tcp.ours) == b""
    assert hand_over(tcp.ours, reaper)
    reaper.close()
    assert {outcome: n for outcome, n in reaper.stats().items() if n} == {
        CloseOutcome.NOT_CONNECTED: 1
    }


@pytest.mark.usefixtures("at_once")
def test_a_bug_that_a_worker_meets_is_the_threads(
    reaper: Reaper, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", reported.append)
    bug = MemoryError("a bug")

    def fail(*_: object) -> None:
        raise bug

    with connect_many(2) as crowd:
        with kept_thread(reaper):
            monkeypatch.setattr("graceful_close._crew.look_at", fail)
            futures = [reaper.submit(ours) for ours, _ in crowd]
        assert [future.exception(PATIENCE) for future in futures] == [bug] * 2
        for thread in threads():
            thread.join(PATIENCE)
        assert [report.exc_value for report in reported] == [bug]


@pytest.mark.usefixtures("at_once")
def test_what_a_worker_has_begun_the_thread_finishes_before_it_sleeps(reaper: Reaper) -> None:
    """Also if it was about to sleep when the worker came."""
    for _ in range(200):
        with connect_many(2) as crowd:
            futures = [reaper.submit(ours) for ours, _ in crowd]
            for _, peer in crowd:
                peer.close()
            assert outcomes(futures) == [CloseOutcome.PEER_CLOSED] * 2


# --- callbacks ----------------------------------------------------------------------------------------------


def close_and(
    reaper: Reaper, callback: Callable[[Future[CloseResult]], object]
) -> Future[CloseResult]:
    """Close a connection, and do something when it is closed."""
    with connect("tcp4") as (ours, peer):
        future = reaper.submit(ours)
        future.add_done_callback(callback)
        peer.close()
        result_of(future)
        return future


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, KeyboardInterrupt])
def test_a_callback_that_raises_harms_nobody(
    reaper: Reaper,
    error: type[BaseException],
    tcp: Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    reported: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", reported.append)
    other = reaper.submit(tcp.ours)

    def fail(_: Future[CloseResult]) -> None:
        raise error("in a callback")

    close_and(reaper, fail)
    assert_it_works(reaper)
    assert not other.done()
    tcp.peer.close()
    assert result_of(other).outcome is CloseOutcome.PEER_CLOSED
    heard = [report.exc_type for report in reported] + [
        record.exc_info[0] for record in caplog.records if record.exc_info
    ]
    assert heard == [error], "somebody is told"


def test_a_callback_may_submit(reaper: Reaper, tcp: Connection) -> None:
    futures: list[Future[CloseResult]] = []
    submitted = threading.Event()

    def submit(_: Future[CloseResult]) -> None:
        futures.append(reaper.submit(tcp.ours))
        submitted.set()

    close_and(reaper, submit)
    assert_eventually(submitted)
    tcp.peer.close()
    assert outcomes(futures) == [CloseOutcome.PEER_CLOSED]


def test_a_callback_may_close_it_and_the_rest_is_finished(
    reaper: Reaper, tcp: Connection
) -> None:
    other = reaper.submit(tcp.ours)
    closed = threading.Event()

    def close(_: Future[CloseResult]) -> None:
        reaper.close()
        closed.set()

    close_and(reaper, close)
    assert_eventually(closed)
    assert not other.done()
    tcp.peer.close()
    assert result_of(other).outcome is CloseOutcome.PEER_CLOSED


# --- the end ----------------------------------------------------------------------------------------------


def test_close_finishes_what_is_in_flight(stream: Connection, reaper: Reaper) -> None:
    stream.ours.sendall(REPLY)
    future = reaper.submit(stream.ours)
    with meanwhile(read_and_close, stream.peer) as replies:
        reaper.close()
    assert replies == [REPLY]
    assert future.result(0).outcome is CloseOutcome.PEER_CLOSED
    assert threads() == []


@pytest.mark.parametrize("timeout", [0, 0.1])
def test_close_with_a_time_lets_go_when_that_is_up(reaper: Reaper, timeout: float) -> None:
    with connect_many(10) as crowd:
        futures = [reaper.submit(sock) for sock, _ in crowd]
        reaper.close(timeout)
        results = [future.result(0) for future in futures]
        assert [result.outcome for result in results] == [CloseOutcome.TIMED_OUT] * 10
        assert all(timeout <= result.elapsed < 5 for result in results)
        assert threads() == []


def test_close_of_one_that_never_worked_is_nothing() -> None:
    reaper = Reaper()
    reaper.close()
    reaper.close(0)


@pytest.mark.parametrize("wrong", [-1, float("nan"), "5"])
def test_close_with_a_wrong_time_closes_nothing(wrong: Any) -> None:
    with Reaper() as reaper:
        with pytest.raises((TypeError, ValueError), match="timeout"):
            reaper.close(wrong)
        assert_it_works(reaper)


def test_several_threads_may_close_it_at_once(reaper: Reaper, tcp: Connection) -> None:
    future = reaper.submit(tcp.ours)
    closers = [threading.Thread(target=reaper.close) for _ in range(4)]
    for closer in closers:
        closer.start()
    reaper.close(0)  # the least time counts, for the others too
    for closer in closers:
        closer.join(PATIENCE)
        assert not closer.is_alive()
    assert future.result(0).outcome is CloseOutcome.TIMED_OUT


def test_a_callback_that_blocks_holds_close_up_no_longer_than_its_grace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("graceful_close._crew._GRACE", 0.1)
    entered, go_on = threading.Event(), threading.Event()

    def block(_: Future[CloseResult]) -> None:
        entered.set()
        go_on.wait(PATIENCE)

    reaper = Reaper(timeout=PATIENCE)
    close_and(reaper, block)
    assert_eventually(entered)
    started = time.monotonic()
    reaper.close()  # there is no connection left to wait for
    assert time.monotonic() - started < PATIENCE / 2
    go_on.set()
    for thread in threads():
        thread.join(PATIENCE)


def test_a_callback_that_blocks_does_not_keep_the_other_connections_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("graceful_close._crew._GRACE", 0.1)
    entered, go_on = threading.Event(), threading.Event()

    def block(_: Future[CloseResult]) -> None:
        entered.set()
        go_on.wait(PATIENCE)

    reaper = Reaper(timeout=PATIENCE)
    with connect_many(4) as crowd:
        waiting = [reaper.submit(sock) for sock, _ in crowd[:2]]
        for _, peer in crowd[:2]:
            assert peer.recv(1) == b""  # the thread has them
        close_and(reaper, block)
        assert_eventually(entered)
        waiting += [reaper.submit(sock) for sock, _ in crowd[2:]]  # and will never see these
        reaper.close(0.1)
        for _, peer in crowd:
            assert_gone(peer)
        go_on.set()
        assert outcomes(waiting) == [CloseOutcome.ALREADY_CLOSED] * 4
    for thread in threads():
        thread.join(PATIENCE)


def test_a_block_that_is_left_by_an_interrupt_closes_all_at_once(tcp: Connection) -> None:
    futures: list[Future[CloseResult]] = []
    with suppress(Stop), Reaper(timeout=PATIENCE) as reaper:
        futures.append(reaper.submit(tcp.ours))
        raise Stop
    assert futures[0].result(0).outcome is CloseOutcome.TIMED_OUT


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_a_block_that_fails_or_exits_gives_each_its_time(
    tcp: Connection, error: type[BaseException]
) -> None:
    futures: list[Future[CloseResult]] = []
    with suppress(error), Reaper(timeout=0.3) as reaper:
        futures.append(reaper.submit(tcp.ours))
        raise error
    assert futures[0].result(0).elapsed >= 0.3


# --- signals --------------------------------------------------------------------------------------------


@contextmanager
def at_moment(moment: int, do: Callable[[], object]) -> Generator[list[int], None, None]:
    """Do something in the block at one of the moments at which a signal handler could run.

    Those are the entry of a function of Python's, and the return of one of C's. Gives a list
    that is not empty once that moment has come.
    """
    package = str(Path(graceful_close_package.__file__).parent)
    came: list[int] = []
    to_go = moment

    def when_it_comes(frame: FrameType, event: str, _: object) -> None:
        nonlocal to_go
        if event in {"call", "c_return"} and frame.f_code.co_filename.startswith(package):
            to_go -= 1
            if to_go == 0:
                came.append(moment)
                do()

    # Not in the __del__ of the Reaper before: nobody could hear of it there.
    gc.collect()
    gc.disable()
    sys.setprofile(when_it_comes)
    try:
        yield came
    except Stop:
        pass
    finally:
        sys.setprofile(None)
        gc.enable()


def stop() -> None:
    raise Stop


def submit(reaper: Reaper, sock: socket.socket, futures: list[Future[CloseResult]]) -> None:
    futures.append(reaper.submit(sock))


@pytest.mark.parametrize("before", [0, 1], ids=["the first", "a later one"])
def test_a_signal_before_or_after_any_call_of_submit_loses_nothing(before: int) -> None:
    """Whoever is interrupted has the socket, or it is closed; and the Reaper goes on."""
    for moment in count(1):
        with Reaper(timeout=PATIENCE) as reaper, connect("tcp4") as (ours, peer):
            for _ in range(before):
                assert_it_works(reaper)
            with at_moment(moment, stop) as came:
                reaper.submit(ours)
            if ours.fileno() != -1:
                ours.sendall(b"alive")
                assert peer.recv(10) == b"alive", f"at moment {moment}"
            else:
                assert peer.recv(1) == b"", f"at moment {moment}"
            peer.close()
            assert_it_works(reaper)
            assert (len(reaper), len(threads())) == (0, 1), f"at moment {moment}"
        assert threads() == [], f"at moment {moment}"
        if not came:
            assert moment > 10
            break


@pytest.mark.parametrize("before", [0, 1], ids=["the first", "a later one"])
def test_a_signal_handler_may_submit_in_the_middle_of_a_submit(before: int) -> None:
    futures: list[Future[CloseResult]] = []
    for moment in count(1):
        futures.clear()
        with (
            Reaper(timeout=PATIENCE) as reaper,
            connect("tcp4") as (ours, peer),
            connect("tcp4") as (other, others_peer),
        ):
            for _ in range(before):
                assert_it_works(reaper)

            with at_moment(moment, partial(submit, reaper, other, futures)) as came:
                futures.append(reaper.submit(ours))
            peer.close()
            others_peer.close()
            expected = [CloseOutcome.PEER_CLOSED] * (1 + len(came))
            assert outcomes(futures) == expected, f"at moment {moment}"
        if not came:
            assert moment > 10
            break


@pytest.mark.parametrize("workers", ["rest", "lend a hand"])
def test_a_signal_handler_may_submit_in_the_middle_of_making_room(
    workers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graceful_close._crew._WORTH_IT", 0.0)
    futures: list[Future[CloseResult]] = []
    entered, go_on = threading.Event(), threading.Event()

    def block(_: Future[CloseResult]) -> None:
        entered.set()
        go_on.wait(PATIENCE)

    for moment in count(1):
        futures.clear()
        entered.clear()
        go_on.clear()
        with Reaper(timeout=PATIENCE, max_sockets=2) as reaper, connect_many(5) as crowd:
            close_and(reaper, block)
            assert_eventually(entered)
            monkeypatch.setattr("graceful_close._crew._RIPE", math.inf)
            futures += [reaper.submit(sock) for sock, _ in crowd[:2]]
            if workers == "lend a hand":
                monkeypatch.setattr("graceful_close._crew._RIPE", 0.0)
            with at_moment(moment, partial(submit, reaper, crowd[2].ours, futures)) as came:
                futures.append(reaper.submit(crowd[3].ours))
            go_on.set()
            for _, peer in crowd:
                peer.close()
            ended = Counter(outcomes(futures))
            fewest = 1 if workers == "rest" else 0
            assert fewest <= reaper.overflowed <= 1 + len(came), f"at moment {moment}"
            if workers == "rest":
                assert ended[CloseOutcome.TIMED_OUT] == reaper.overflowed, f"at {moment}"
            assert sum(reaper.stats().values()) == len(futures) + 1
            assert len(reaper) == 0
        if not came:
            assert moment > 10
            break


def test_a_signal_before_or_after_any_call_of_close_closes_all_at_once() -> None:
    for moment in count(2):  # the first is the entry of the call
        with connect_many(2) as crowd:
            reaper = Reaper(timeout=0.02)
            futures = [reaper.submit(sock) for sock, _ in crowd]
            with at_moment(moment, stop) as came:
                reaper.close()
            assert [future.done() for future in futures] == [True] * 2, f"at moment {moment}"
            for thread in threads():  # it may still be on its last lines
                thread.join(PATIENCE)
            assert threads() == []
        if not came:
            assert moment > 10
            break


def test_an_interrupted_close_closes_all_at_once(tcp: Connection) -> None:
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


# --- many threads -----------------------------------------------------------------------------------------


def test_sixteen_threads_lose_none(request: pytest.FixtureRequest, reaper: Reaper) -> None:
    """`pytest --soak 50000` submits so many; by default it is a thousand."""
    each = int(request.config.option.soak) // 16
    room = threading.BoundedSemaphore(1000)  # descriptors are finite
    ended: Counter[CloseOutcome] = Counter()
    errors: list[BaseException] = []

    def note(future: Future[CloseResult]) -> None:
        ended[future.result(0).outcome] += 1
        room.release()

    def work() -> None:
        try:
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
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    workers = [threading.Thread(target=work) for _ in range(16)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    reaper.close()
    assert errors == []
    assert ended == {CloseOutcome.PEER_CLOSED: 16 * each}
    assert reaper.stats()[CloseOutcome.PEER_CLOSED] == 16 * each
    assert len(reaper) == 0


# --- processes -------------------------------------------------------------------------------------------------

PRELUDE = """
import atexit, os, socket, sys, threading, time
from graceful_close import CloseOutcome, Linger, LingerPolicy, Reaper, get_linger, set_linger
from streams import PATIENCE, connect, connect_many
def outcomes(futures):
    return [future.result(PATIENCE).outcome for future in futures]
"""


def run(
    program: str, *arguments: str, pass_fds: tuple[int, ...] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + program, *arguments],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        pass_fds=pass_fds,
        # Some fork. Coverage has a lock that another thread may hold then.
        env={name: os.environ[name] for name in os.environ if "COVERAGE" not in name},
    )


def test_a_submit_imports_nothing() -> None:
    """A signal handler, or the child of a fork, may find an import half done."""
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
    assert outcomes(futures) == [CloseOutcome.PEER_CLOSED] * 5, "still told to the parent"
    kept.close()
print("all well")
"""


def test_a_forked_child_starts_its_own_and_leaves_the_parents_alone() -> None:
    ran = run(FORKS + FORK)
    assert ran.stdout == "all well\n", ran.stderr


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

worker = threading.Thread(target=be_busy)
worker.start()
for _ in range(int(sys.argv[1])):
    in_a_child(look_and_use_it)
over.set()
worker.join()
for peer in peers:
    peer.close()
reaper.close()
assert sum(reaper.stats().values()) == count
print("all well")
"""


def test_forks_while_the_thread_is_busy_neither_deadlock_nor_keep_copies() -> None:
    ran = run(FORKS + BUSY_FORK, "200")
    assert ran.stdout == "all well\n", ran.stderr


# Ends with a connection in flight whose input is unread; the peer is the test.
IN_FLIGHT = """
def in_flight(reaper):
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.sendall(b"reply" * 1000)
    return reaper.submit(sock)
"""
EXITS = {
    "at the end of the program": """
reaper = Reaper()
in_flight(reaper)
""",
    "with a Reaper that nobody holds": """
in_flight(Reaper())
""",
    "with one that is part of a cycle": """
class Server: pass
server = Server()
server.reaper, server.self = Reaper(), server
in_flight(server.reaper)
del server
""",
    "by an exception": """
import threading
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
    "while a thread goes on, which calls sys.exit()": """
reaper = Reaper()
def work():
    in_flight(reaper)
    sys.exit(0)
threading.Thread(target=work).start()
""",
    "from a handler that was registered before the import": """
reaper = Reaper()
ours, peer = socket.socketpair()
reaper.submit(ours)
peer.close()
def late():
    assert isinstance(in_flight(reaper).exception(0), RuntimeError)
""",
    "from a handler": """
reaper = Reaper()
ours, peer = socket.socketpair()
reaper.submit(ours)
peer.close()
atexit.register(lambda: in_flight(reaper))
""",
    "from a handler, with none submitted before": """
reaper = Reaper()
atexit.register(lambda: in_flight(reaper))
""",
}
# Then it is closed at once, because there are no new threads any more.
TOO_LATE = {"from a handler that was registered before the import"}
if sys.version_info >= (3, 12):
    TOO_LATE.add("from a handler, with none submitted before")
if (3, 12) <= sys.version_info < (3, 12, 3):  # after the main thread's end, too (gh-113964)
    TOO_LATE.add("while a thread goes on, which calls sys.exit()")


@pytest.mark.parametrize("how", EXITS)
def test_at_exit_connections_in_flight_are_finished(how: str, tcp: Connection) -> None:
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
        if how in TOO_LATE:
            with suppress(ConnectionResetError):
                read_and_close(tcp.peer)
        else:
            assert read_and_close(tcp.peer) == b"reply" * 1000
        out, err = process.communicate(timeout=PATIENCE)
    assert (out, err) == ("", "")
    assert process.returncode == (1 if how == "by an exception" else 0)


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
def test_exit_is_bounded_whatever_is_in_the_way(what: str, tcp: Connection) -> None:
    number = tcp.ours.fileno()
    started = time.monotonic()
    ran = run(IN_FLIGHT + BOUNDED_EXITS[what], str(number), pass_fds=(number,))
    assert time.monotonic() - started < PATIENCE / 2
    assert (ran.returncode, ran.stderr) == (0, "")


# --- gevent --------------------------------------------------------------------------------------------------

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
def test_under_gevent_it_is_a_greenlet_and_the_same(when: str) -> None:
    pytest.importorskip("gevent", reason="needs gevent", exc_type=ImportError)
    early = "" if when == "before the import" else "import graceful_close\n"
    patch = "import gevent, gevent.monkey\ngevent.monkey.patch_all()\n"
    ran = subprocess.run(
        [sys.executable, "-c", early + patch + PRELUDE + GEVENT],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.stdout, ran.stderr) == ("all well\n", "")
