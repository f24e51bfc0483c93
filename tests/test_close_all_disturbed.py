"""close_all: peers, threads, signals and bugs that disturb its closes, and its progress."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import monotonic

import pytest

from crowds import (
    all_closed,
    assert_untouched,
    note,
    ours,
    outcomes,
    peers,
    read_and_close_all,
    reply_early,
    when_done,
    with_select_too,
)
from graceful_close import CloseOutcome, LingerPolicy, close_all, set_linger
from graceful_close._close_all import close_all_on
from graceful_close._options import Options
from graceful_close._release import shut_for_writing
from pythons import output_of
from signals import Stop, each_moment, on_alarm, stop
from streams import (
    DEADLINE,
    REPLY,
    Connection,
    FailsToDetach,
    await_fin,
    await_input,
    connect_many,
    fill,
    meanwhile,
    read_and_close,
    reset,
    send_fin,
)

pytestmark = pytest.mark.usefixtures("selector")


# --- the peers --------------------------------------------------------------------------------


def flood(enough: threading.Event, *peers: socket.socket) -> None:
    """Write until the other side accepts no more, then read to the end and close."""
    block = bytes(1 << 20)
    for peer in peers:
        peer.setblocking(False)
    flooding = True
    while flooding:
        flooding = not enough.is_set()
        for peer in peers:
            with suppress(BlockingIOError):
                peer.send(block)
    read_and_close_all(*peers)


@with_select_too
def test_a_flood_does_not_delay_other_closes_and_ends_too(crowd: list[Connection]) -> None:
    floods, polite = crowd[:3], crowd[3:]
    enough = threading.Event()
    with (
        meanwhile(partial(flood, enough), *peers(floods)),
        meanwhile(read_and_close_all, *peers(polite)),
    ):
        results = close_all(
            ours(crowd), timeout=DEADLINE, progress=when_done(len(polite), enough.set)
        )
    assert outcomes(results) == [CloseOutcome.PEER_CLOSED] * 10
    assert all(result.drained > 0 for result in results[:3])


def test_a_flood_from_peers_that_do_not_read_does_not_delay_other_closes() -> None:
    """The close then waits for an acknowledgement, and has to read all input before it."""
    with connect_many(3, peer_buffer=4096) as floods, connect_many(5) as polite:
        for sock, _ in floods:
            fill(sock)
        enough = threading.Event()
        with meanwhile(partial(flood, enough), *peers(floods)):
            results = close_all(
                ours(floods + polite),
                timeout=DEADLINE,
                until=CloseOutcome.DELIVERED,
                progress=when_done(len(polite), enough.set),
            )
    assert outcomes(results) == [CloseOutcome.DELIVERED] * 8
    assert all(result.drained > 0 for result in results[:3])


def test_peers_that_drip_end_at_the_deadline(crowd: list[Connection]) -> None:
    done = threading.Event()

    def drip(*peers: socket.socket) -> None:
        while not done.wait(0.005):
            for peer in peers:
                with suppress(OSError):
                    peer.send(b"x")

    with meanwhile(drip, *peers(crowd)):
        results = close_all(ours(crowd), timeout=0.2)
        done.set()
    assert outcomes(results) == [CloseOutcome.TIMED_OUT] * 10
    assert all(result.drained > 0 for result in results)
    assert max(result.elapsed for result in results) < 2


def test_resets_by_peers_during_the_close_are_results(crowd: list[Connection]) -> None:
    def reset_all(*peers: socket.socket) -> None:
        for peer in peers:
            assert peer.recv(1) == b""
            reset(peer)

    with meanwhile(reset_all, *peers(crowd)):
        results = close_all(ours(crowd), timeout=DEADLINE)
    assert outcomes(results) == [CloseOutcome.PEER_RESET] * 10
    assert all(isinstance(result.error, ConnectionResetError) for result in results)


def test_half_closed_peers_still_get_our_data(crowd: list[Connection]) -> None:
    for sock, peer in crowd:
        send_fin(peer, to=sock)
        sock.sendall(REPLY)
    with meanwhile(read_and_close_all, *peers(crowd)) as replies:
        results = close_all(ours(crowd), timeout=DEADLINE)
    assert replies == [[REPLY] * 10]
    assert outcomes(results) == [CloseOutcome.PEER_CLOSED] * 10


# --- other threads ----------------------------------------------------------------------------


@with_select_too
def test_a_close_by_another_thread_has_no_effect(crowd: list[Connection]) -> None:
    """The caller's object no longer has the descriptor."""
    victim = crowd[2]

    def close_detached(*peers: socket.socket) -> list[bytes]:
        assert victim.peer.recv(1) == b""  # the close has begun
        assert victim.ours.fileno() == -1
        victim.ours.close()
        return read_and_close_all(*peers)

    for sock, peer in crowd:
        peer.sendall(b"upload")
        await_input(sock)
    others = crowd[:2] + crowd[3:]
    with meanwhile(close_detached, *peers(others), victim.peer):
        results = close_all(ours(crowd), timeout=DEADLINE)
    assert outcomes(results) == [CloseOutcome.PEER_CLOSED] * 10
    assert [result.drained for result in results] == [6] * 10


@with_select_too
def test_a_reused_descriptor_number_is_not_touched(crowd: list[Connection]) -> None:
    """A new socket with the number of an ended one is untouched until all closes end."""
    first, unrelated, *others = crowd
    number = first.ours.fileno()
    taken: list[socket.socket] = []

    def reuse_number(done: int, _: int) -> None:
        if done == 1:
            os.dup2(unrelated.ours.fileno(), number)
            taken.append(socket.socket(fileno=number))
            for peer in peers(others):
                peer.close()

    first.peer.close()
    await_fin(first.ours)
    results = close_all(ours([first, *others]), timeout=DEADLINE, progress=reuse_number)
    with taken[0] as tenant:
        assert outcomes(results) == [CloseOutcome.PEER_CLOSED] * 9
        assert_untouched([unrelated, Connection(tenant, unrelated.peer)])


@with_select_too
def test_a_descriptor_closed_by_os_close_is_reported_as_already_closed(
    crowd: list[Connection],
) -> None:
    """Only os.close() can close it."""
    victim, *others = crowd
    number = victim.ours.fileno()

    def steal(*peers: socket.socket) -> None:
        assert victim.peer.recv(1) == b""  # the close has begun
        os.close(number)
        read_and_close_all(*peers)

    with meanwhile(steal, *peers(others)):
        results = close_all(ours(crowd), timeout=0.5)
    assert outcomes(results) == [
        CloseOutcome.ALREADY_CLOSED,
        *[CloseOutcome.PEER_CLOSED] * 9,
    ]


# --- progress ---------------------------------------------------------------------------------


def test_progress_is_reported_during_the_closes_and_ends_with_all(
    crowd: list[Connection],
) -> None:
    reports: list[tuple[int, int]] = []
    crowd[9].ours.close()
    with meanwhile(read_and_close_all, *peers(crowd)):
        close_all(ours(crowd), timeout=DEADLINE, progress=partial(note, reports))
    assert reports[-1] == (10, 10)
    assert {total for _, total in reports} == {10}
    done = [figure for figure, _ in reports]
    assert done == sorted(set(done)), "each report has more than the report before"


def test_progress_is_not_reported_before_a_socket_is_closed(tcp: Connection) -> None:
    reports: list[tuple[int, int]] = []
    with meanwhile(read_and_close, tcp.peer):
        close_all([tcp.ours], timeout=DEADLINE, progress=partial(note, reports))
    assert reports == [(1, 1)]


def test_the_deadlines_count_from_the_time_that_is_given(crowd: list[Connection]) -> None:
    results = close_all_on(Options(DEADLINE), ours(crowd), monotonic() - 2 * DEADLINE)
    assert outcomes(results) == [CloseOutcome.TIMED_OUT] * 10
    assert all(result.elapsed >= 2 * DEADLINE for result in results)


def test_an_exception_of_progress_is_raised_after_all_sockets_are_closed(
    crowd: list[Connection],
) -> None:
    crowd[0].peer.close()

    def give_up(_: int, __: int) -> None:
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        close_all(ours(crowd), timeout=DEADLINE, progress=give_up)
    assert all_closed(crowd)


# --- signals and bugs -------------------------------------------------------------------------


@with_select_too
def test_an_exception_from_a_signal_handler_closes_all_sockets_immediately_and_propagates(
    crowd: list[Connection],
) -> None:
    set_linger(crowd[0].ours, LingerPolicy.TIMED, 20)
    with on_alarm(stop, 0.05), pytest.raises(Stop):
        close_all(ours(crowd), timeout=DEADLINE)
    assert all_closed(crowd)


def test_a_signal_handler_that_returns_does_not_shorten_the_wait(
    crowd: list[Connection],
) -> None:
    with on_alarm(lambda *_: None, 0.01, 0.01):
        results = close_all(ours(crowd), timeout=0.1)
    assert outcomes(results) == [CloseOutcome.TIMED_OUT] * 10
    assert all(result.elapsed >= 0.1 for result in results)


@pytest.mark.parametrize("selector", ["epoll", "poll"], indirect=True)
@pytest.mark.parametrize(
    "close",
    [
        partial(close_all_on, Options(0.003, until=CloseOutcome.DELIVERED)),
        partial(close_all_on, Options(0.003), progress=partial(note, [])),
    ],
    ids=["delivery", "drain"],
)
def test_a_signal_at_any_call_leaves_all_sockets_closed(
    close: Callable[[list[socket.socket]], object],
) -> None:
    for stopped in each_moment():
        with connect_many(3) as crowd:
            crowd[0].peer.sendall(b"x")
            crowd[1].peer.close()
            await_input(crowd[0].ours)
            await_fin(crowd[1].ours)
            with stopped():
                close(ours(crowd))
            assert all_closed(crowd)


def test_a_bug_in_one_close_does_not_shorten_the_others(
    crowd: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    victims_peer = crowd[0].ours.getpeername()
    bug = MemoryError("a bug")

    def fail_for_one(sock: socket.socket) -> None:
        if sock.getpeername() == victims_peer:
            raise bug
        shut_for_writing(sock)

    monkeypatch.setattr("graceful_close._connection.shut_for_writing", fail_for_one)
    reports: list[tuple[int, int]] = []
    reply_early(crowd, b"unread")
    with meanwhile(read_and_close_all, *peers(crowd[1:])) as replies:
        with pytest.raises(MemoryError) as raised:
            close_all(ours(crowd), timeout=DEADLINE, progress=partial(note, reports))
    assert raised.value is bug
    assert all_closed(crowd)
    assert replies == [[REPLY] * 9]
    assert reports[-1] == (10, 10)


def test_a_socket_that_fails_before_its_close_begins_does_not_shorten_the_others(
    crowd: list[Connection],
) -> None:
    broken = FailsToDetach(fileno=crowd[4].ours.detach())
    others = crowd[:4] + crowd[5:]
    socks = [*ours(crowd[:4]), broken, *ours(crowd[5:])]
    reply_early(others, b"unread")
    with meanwhile(read_and_close_all, *peers(others)) as replies:
        with pytest.raises(RuntimeError, match="a bug"):
            close_all(socks, timeout=DEADLINE)
    assert crowd[4].peer.recv(1) == b""
    assert all_closed(crowd)
    assert replies == [[REPLY] * 9]


# --- other systems ----------------------------------------------------------------------------


ELSEWHERE = """
{patch}
import socket, threading
from graceful_close import CloseOutcome, close_all
from streams import DEADLINE, connect_many, meanwhile, read_and_close
with connect_many(50) as crowd, connect_many(2, "unix") as silent:
    for ours, peer in crowd:
        ours.sendall(b"reply")
        peer.sendall(b"unread")
    def read(*peers):
        return [read_and_close(peer) for peer in peers]
    turns = 0
    def count():
        global turns
        import time
        while turns < 1000:
            turns += 1
            time.sleep(0.01)
    counter = threading.Thread(target=count, daemon=True)
    counter.start()
    with meanwhile(read, *(peer for _, peer in crowd)) as replies:
        results = close_all([ours for ours, _ in crowd], timeout=DEADLINE)
    assert replies == [[b"reply"] * 50], replies
    assert {result.outcome for result in results} == {CloseOutcome.PEER_CLOSED}, results
    results = close_all([ours for ours, _ in silent], timeout=0.2)
    assert {result.outcome for result in results} == {CloseOutcome.TIMED_OUT}, results
    assert turns > 3, "the wait must let others run"
print("all well")
"""

NO_EPOLL = "import select; del select.epoll"
NO_EPOLL_NO_POLL = NO_EPOLL + ", select.poll"
GEVENT = "import gevent.monkey; gevent.monkey.patch_all()"
GEVENT_LATE = "import graceful_close; " + GEVENT


@pytest.mark.parametrize(
    "patch",
    [NO_EPOLL, NO_EPOLL_NO_POLL, GEVENT, GEVENT_LATE],
    ids=["no epoll", "only select", "gevent", "gevent after the import"],
)
@pytest.mark.parametrize(
    "selector", ["epoll"], indirect=True
)  # the coverage of this process, not of the child
def test_close_all_works_with_other_selectors(patch: str) -> None:
    if "gevent" in patch:
        pytest.importorskip("gevent", reason="needs gevent", exc_type=ImportError)
    output, errors = output_of(ELSEWHERE.replace("{patch}", patch))
    assert output == "all well\n", errors
