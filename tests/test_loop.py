"""The loop that closes many connections, without a driver: its turns, and how it is given up."""

from __future__ import annotations

import errno
import math
import os
import select
import selectors
import socket
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import pytest

from graceful_close import CloseOutcome, CloseResult, LingerPolicy
from graceful_close._loop import CloseLoop, Pending
from graceful_close._options import Options
from streams import (
    DEADLINE,
    Connection,
    await_input,
    connect_many,
    fill,
    meanwhile,
    read_all,
)

End = CloseResult | BaseException
LONG = Options(1000.0)


class Loop(CloseLoop):
    """A loop that keeps what it reports."""

    def __init__(self) -> None:
        super().__init__(lambda pending, end: self.ends.append((pending.key, end)))
        self.ends: list[tuple[Any, End]] = []

    def close_one(
        self, sock: socket.socket, options: Options = LONG, key: Any = None
    ) -> Pending:
        pending = Pending(options, monotonic(), key)
        self.begin(pending, sock)
        return pending

    def turn_until(self, true: Callable[[], object]) -> None:
        until = monotonic() + DEADLINE
        while not true():
            assert monotonic() < until
            self.turn(monotonic() + 0.01)

    @property
    def outcomes(self) -> dict[Any, CloseOutcome]:
        return {key: end.outcome for key, end in self.ends if isinstance(end, CloseResult)}


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def crowd() -> Iterator[list[Connection]]:
    with connect_many(3) as crowd:
        yield crowd


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


# --- turns ---------------------------------------------------------------------------------------


def test_a_connection_is_in_the_loop_until_it_ends(loop: Loop, tcp: Connection) -> None:
    pending = loop.close_one(tcp.ours, key="the one")
    assert (pending in loop, len(loop), loop.ends) == (True, 1, [])
    tcp.peer.close()
    loop.turn_until(lambda: loop.ends)
    assert loop.outcomes == {"the one": CloseOutcome.PEER_CLOSED}
    assert (pending in loop, len(loop)) == (False, 0)


def test_the_result_has_what_the_connection_was_made_with(loop: Loop, tcp: Connection) -> None:
    pending = Pending(Options(0), monotonic(), peer=("192.0.2.1", 80))
    loop.begin(pending, tcp.ours)
    [(_, end)] = loop.ends
    assert isinstance(end, CloseResult)
    assert end.peer == ("192.0.2.1", 80)


def test_the_loop_is_in_the_order_of_the_beginnings(
    loop: Loop, crowd: list[Connection]
) -> None:
    all_of_them = [loop.close_one(sock) for sock, _ in crowd]
    assert list(loop) == all_of_them
    assert loop.oldest() is all_of_them[0]
    loop.remove(all_of_them[0])
    assert loop.oldest() is all_of_them[1]


def test_the_descriptor_of_the_loop_is_readable_when_a_peer_has_closed(
    loop: Loop, tcp: Connection
) -> None:
    loop.close_one(tcp.ours)
    assert not select.select([loop], [], [], 0)[0]
    tcp.peer.close()
    assert select.select([loop], [], [], DEADLINE)[0]


def test_the_next_turn_is_at_the_first_deadline(loop: Loop, crowd: list[Connection]) -> None:
    assert loop.wake_at == math.inf
    before = monotonic()
    for (sock, _), seconds in zip(crowd, (500, 100, 900), strict=True):
        loop.close_one(sock, Options(seconds))
    assert before + 100 <= loop.wake_at <= monotonic() + 100


@pytest.mark.parametrize("then", ["a turn", "removed"])
def test_a_long_read_is_interrupted_until_the_next_turn(
    then: str, loop: Loop, tcp: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graceful_close._connection.READS_IN_A_ROW", 1)
    fill(tcp.ours)
    tcp.peer.sendall(b"x")
    await_input(tcp.ours)
    pending = loop.close_one(tcp.ours, Options(1000.0, until=CloseOutcome.DELIVERED))
    assert loop.wake_at <= monotonic()
    if then == "removed":
        loop.remove(pending)
    loop.turn(math.inf)
    assert loop.wake_at > monotonic()
    assert loop.ends == []


def test_acknowledgements_are_polled_for_if_the_selector_does_not_report_them(
    tcp: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(select, "epoll", raising=False)
    monkeypatch.setattr(selectors, "DefaultSelector", selectors.PollSelector)
    fill(tcp.ours)
    loop = Loop()
    loop.close_one(tcp.ours, Options(1000.0, until=CloseOutcome.DELIVERED), "one")
    with meanwhile(read_all, tcp.peer):
        loop.turn_until(lambda: loop.ends)
    assert loop.outcomes == {"one": CloseOutcome.DELIVERED}
    loop.close()


def test_a_turn_takes_a_limited_number_of_events(loop: Loop, crowd: list[Connection]) -> None:
    for sock, peer in crowd:
        loop.close_one(sock)
        peer.close()
    assert len(loop.wait(monotonic() + DEADLINE, 1)) == 1


def test_a_turn_handles_a_limited_number_of_deadlines(
    loop: Loop, crowd: list[Connection]
) -> None:
    for sock, _ in crowd:
        loop.close_one(sock, Options(0.001))
    last = monotonic() + 0.001  # the deadline of the last is not later
    while monotonic() < last:
        pass
    loop.serve([], most=2)
    assert len(loop.ends) == 2
    loop.serve([], most=2)
    assert len(loop.ends) == 3


def test_the_deadline_of_an_ended_connection_is_not_that_of_its_numbers_next(
    loop: Loop, crowd: list[Connection]
) -> None:
    (first, its_peer), (second, _), _ = crowd
    pending = loop.close_one(first, Options(0.05), "first")
    number = pending.number
    its_peer.close()
    loop.turn_until(lambda: loop.ends)
    os.dup2(second.fileno(), number)
    second.close()
    loop.close_one(socket.socket(fileno=number), key="second")
    while monotonic() < pending.since + 0.06:
        loop.turn(monotonic() + 0.01)
    assert loop.outcomes == {"first": CloseOutcome.PEER_CLOSED}


def test_deadlines_of_ended_connections_do_not_accumulate(loop: Loop) -> None:
    """A server would keep them for the length of a timeout."""
    with connect_many(100) as connections:
        for sock, peer in connections:
            loop.close_one(sock)
            peer.close()
            loop.turn_until(lambda: not len(loop))
            assert len(loop._alarms) <= 70  # pyright: ignore[reportPrivateUsage]


def test_a_connection_is_ended_as_at_its_deadline(loop: Loop, tcp: Connection) -> None:
    pending = loop.close_one(tcp.ours, key="one")
    loop.expire(pending, LingerPolicy.ABORT)
    assert loop.outcomes == {"one": CloseOutcome.TIMED_OUT}
    assert len(loop) == 0


def test_the_owner_wakes_the_loop_each_time(loop: Loop) -> None:
    owners, wakes = socket.socketpair()
    with owners, wakes:
        loop.wake_for(owners.fileno())
        for _ in range(3):
            wakes.send(b"x")
            events = loop.wait(monotonic() + DEADLINE)
            assert events == [(owners.fileno(), True)]
            assert owners.recv(10) == b"x"
            loop.serve(events)
        assert loop.wait(0) == []


# --- failures ------------------------------------------------------------------------------------


class Broken(socket.socket):
    """A socket whose close cannot begin."""

    @property
    def _io_refs(self) -> int:
        raise RuntimeError("a bug")

    @_io_refs.setter
    def _io_refs(self, count: int) -> None:
        pass


def test_a_close_that_cannot_begin_is_reported_and_its_socket_is_closed(
    loop: Loop, crowd: list[Connection]
) -> None:
    (sock, peer), (other, _), _ = crowd
    broken = Broken(fileno=sock.detach())
    loop.close_one(other)
    loop.close_one(broken, key="broken")
    assert [(key, str(end)) for key, end in loop.ends] == [("broken", "a bug")]
    assert read_all(peer) == b""
    assert len(loop) == 1


def test_a_descriptor_that_another_thread_has_closed_is_reported_as_closed(
    loop: Loop, tcp: Connection
) -> None:
    pending = Pending(LONG, monotonic())
    step = pending.begin(tcp.ours)
    pending.sock.close()
    loop.add(pending, step)
    [(_, end)] = loop.ends
    assert isinstance(end, CloseResult)
    assert end.outcome is CloseOutcome.ALREADY_CLOSED
    assert end.error is not None
    assert end.error.errno == errno.EBADF
    assert "another thread" in str(end.error)
    assert len(loop) == 0


def test_a_wait_that_the_system_refuses_ends_the_close(loop: Loop, tcp: Connection) -> None:
    pending = Pending(LONG, monotonic(), "one")
    step = pending.begin(tcp.ours)
    os.close(pending.sock.fileno())
    loop.add(pending, step)
    assert loop.outcomes == {"one": CloseOutcome.ALREADY_CLOSED}


# --- given up ------------------------------------------------------------------------------------


def test_a_connection_that_is_removed_is_closed_and_not_reported(
    loop: Loop, crowd: list[Connection]
) -> None:
    pending, other = loop.close_one(crowd[0].ours), loop.close_one(crowd[1].ours)
    number = pending.number
    loop.remove(pending)
    assert (list(loop), loop.ends, is_open(number)) == ([other], [], False)


def test_a_removed_connection_wakes_the_loop_no_more(loop: Loop, tcp: Connection) -> None:
    """An epoll watches a connection until its last descriptor is closed."""
    with tcp.ours.dup():
        pending = loop.close_one(tcp.ours)
        loop.remove(pending)
        tcp.peer.send(b"x")
        assert loop.wait(0) == []
        assert not select.select([loop], [], [], 0)[0]


@pytest.mark.parametrize("end", ["close", "disown"])
def test_an_ended_loop_has_released_its_descriptors_and_reports_nothing(
    end: str, crowd: list[Connection]
) -> None:
    """close() ends the loop; disown() releases the copies of a forked child."""
    loop = Loop()
    numbers = [loop.close_one(sock).number for sock, _ in crowd] + [loop.fileno()]
    getattr(loop, end)()
    assert (list(loop), loop.ends) == ([], [])
    assert not any(map(is_open, numbers))
