"""Reaper: the future of a submission, its callbacks, and on_close."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, as_completed, wait
from functools import partial
from typing import Any

import pytest

from graceful_close import CloseOutcome, CloseResult, Reaper
from graceful_close._future import CloseFuture
from reaping import (
    assert_it_works,
    await_end,
    close_and,
    outcomes,
    result_of,
    start_and_let_it_run,
    submit,
    threads,
    wait_until_counted,
)
from signals import moments, stop
from streams import DEADLINE, Connection, await_reset, connect, meanwhile, reset, wait_until

pytestmark = pytest.mark.usefixtures("no_threads_of_an_earlier_test")

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


ASK: dict[str, Callable[[Future[CloseResult]], CloseResult]] = {
    "result()": result_of,
    "exception()": lambda future: (future.exception(DEADLINE), future.result(0))[1],
    "wait()": lambda future: wait([future], DEADLINE).done.pop().result(0),
    "as_completed()": lambda future: next(as_completed([future], DEADLINE)).result(0),
    "asyncio": lambda future: asyncio.run(wrapped(future)),
    "a callback": lambda future: from_callback(future).result(0),
}


async def wrapped(future: Future[CloseResult]) -> CloseResult:
    return await asyncio.wait_for(asyncio.wrap_future(future), DEADLINE)


def from_callback(future: Future[CloseResult]) -> Future[CloseResult]:
    called_with: list[Future[CloseResult]] = []
    called = threading.Event()
    future.add_done_callback(called_with.append)
    future.add_done_callback(lambda _: called.set())
    assert called.wait(DEADLINE)
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


def test_a_signal_handler_may_use_a_future_during_its_first_use() -> None:
    for moment in moments(at_least=5):
        called: list[str] = []
        with Reaper(timeout=DEADLINE) as reaper, connect("tcp4") as (ours, peer):
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
        with Reaper(timeout=DEADLINE) as reaper, connect("tcp4") as (ours, peer):
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
    assert closed.wait(DEADLINE)
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
        timeout=DEADLINE,
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

    with Reaper(timeout=DEADLINE, on_close=fail) as reaper:
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

    with Reaper(timeout=DEADLINE, on_close=called_with.append) as reaper:
        future = close_and(reaper, leave)
    assert called_with == [future.result(0)]
    assert reported == [exiting]


def test_on_close_may_submit_and_close(tcp: Connection) -> None:
    futures: list[Future[CloseResult]] = []

    def continue_later(_: CloseResult) -> None:
        if not futures:
            submit(idle, tcp.ours, futures)
            idle.close()

    idle = Reaper(timeout=DEADLINE, on_close=continue_later)
    assert_it_works(idle)
    wait_until(lambda: futures)
    tcp.peer.close()
    assert outcomes(futures) == [CloseOutcome.PEER_CLOSED]
    await_end(*threads())
