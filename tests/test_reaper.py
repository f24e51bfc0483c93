"""Reaper: a worker submits its connection and continues."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import pytest

from graceful_close import CloseOutcome, CloseResult, LingerPolicy, Reaper
from reaping import (
    assert_gone,
    assert_it_works,
    await_end,
    await_sleep,
    kept_thread,
    outcomes,
    result_of,
    threads,
)
from signals import Stop
from streams import (
    DEADLINE,
    REPLY,
    Connection,
    await_input,
    connect,
    connect_many,
    fill,
    meanwhile,
    read_and_close,
    reply_early,
    reset,
)
from tls_sessions import Session, fill_raw

pytestmark = pytest.mark.usefixtures("no_threads_of_an_earlier_test")

# --- the purpose ------------------------------------------------------------------------------


def test_unread_input_does_not_destroy_the_reply(stream: Connection, reaper: Reaper) -> None:
    reply_early(stream, b"upload" * 1000)
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


def test_a_close_by_another_thread_has_no_effect(stream: Connection, reaper: Reaper) -> None:
    reply_early(stream, b"upload" * 1000)
    future = reaper.submit(stream.ours)
    closer = threading.Thread(target=stream.ours.close)
    closer.start()
    await_end(closer)
    assert read_and_close(stream.peer) == REPLY
    result = result_of(future)
    assert (result.outcome, result.drained) == (CloseOutcome.PEER_CLOSED, 6000)


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
        Reaper(timeout=DEADLINE, idle_timeout=None, drain_limit=0) as reaper,
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


# --- TLS --------------------------------------------------------------------------------------


def test_a_close_over_tls_sends_close_notify_and_drops_the_session(
    tls: Session, reaper: Reaper
) -> None:
    tls.ours.sendall(b"reply")
    future = reaper.submit(tls.ours)
    assert tls.ours.fileno() == -1
    assert tls.ours.version() is None, "OpenSSL would continue to use the number"
    assert read_and_close(tls.peer) == b"reply", "an end without close_notify would be an error"
    result = result_of(future)
    assert (result.outcome, result.notified) == (CloseOutcome.PEER_CLOSED, True)


def test_close_notify_without_room_is_sent_when_there_is_room(
    tls: Session, reaper: Reaper
) -> None:
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


def test_close_drops_the_descriptor_number_of_a_tls_socket_that_waits_for_room(
    tls: Session, reaper: Reaper
) -> None:
    """Another socket may have the number when the object is closed."""
    fill_raw(tls.ours)
    with kept_thread(reaper):
        reaper.submit(tls.ours)
        reaper.close(0)
        assert tls.ours.fileno() == -1
        assert tls.ours.version() is None


# --- invalid arguments ------------------------------------------------------------------------


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
    reaper = Reaper(timeout=DEADLINE)
    with kept_thread(reaper):
        started = time.monotonic()
        reaper.close()  # no pending close is left
        assert time.monotonic() - started < DEADLINE / 2
    await_end(*threads())


def test_a_callback_that_blocks_does_not_keep_the_other_connections_open() -> None:
    reaper = Reaper(timeout=DEADLINE)
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
