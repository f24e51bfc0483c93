"""One selector for many sockets, each of which waits for its own event."""

from __future__ import annotations

import errno
import os
import select
import selectors
import socket
import sys
import time
from collections.abc import Callable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest

from graceful_close import _selector
from graceful_close._selector import ChunkedSelect, Portable, new_selector
from graceful_close._step import WAIT_ACK, WAIT_EITHER, WAIT_READABLE, WAIT_WRITABLE
from streams import DEADLINE, Connection, connect_many, fill

if TYPE_CHECKING:
    from graceful_close._selector import Selector
    from graceful_close._step import Step

KINDS: dict[str, Callable[[], Selector]] = {
    "best": new_selector,
    "portable": lambda: Portable(selectors.DefaultSelector()),
    "chunked": ChunkedSelect,
}

needs_epoll = pytest.mark.skipif(sys.platform != "linux", reason="Linux has epoll")


@pytest.fixture(params=KINDS)
def selector(request: pytest.FixtureRequest) -> Iterator[Selector]:
    selector = KINDS[request.param]()
    yield selector
    selector.close()


def only(*kinds: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("selector", kinds, indirect=True)


def armed(selector: Selector, sock: socket.socket, step: Step) -> None:
    selector.arm(sock.fileno(), step, known=False)


def all_armed(
    selector: Selector, connections: list[Connection], step: Step = WAIT_READABLE
) -> None:
    for connection in connections:
        armed(selector, connection.ours, step)


def test_input_ends_a_wait_for_it_once(selector: Selector, tcp: Connection) -> None:
    armed(selector, tcp.ours, WAIT_READABLE)
    assert selector.wait(0) == []
    tcp.peer.sendall(b"x")
    assert selector.wait(DEADLINE) == [(tcp.ours.fileno(), True)]
    assert selector.wait(0) == [], "it is not armed any more"


@pytest.mark.parametrize("step", [WAIT_WRITABLE, WAIT_EITHER])
def test_room_ends_a_wait_for_it(selector: Selector, step: Step, tcp: Connection) -> None:
    fill(tcp.ours)
    armed(selector, tcp.ours, step)
    assert selector.wait(0) == []
    tcp.peer.settimeout(0)
    until = monotonic() + DEADLINE
    ready: list[tuple[int, bool]] = []
    while not ready and monotonic() < until:
        try:
            tcp.peer.recv(1 << 20)
        except BlockingIOError:
            pass
        ready = selector.wait(0)
    assert [number for number, _ in ready] == [tcp.ours.fileno()]


def test_input_ends_a_wait_for_either_and_not_a_wait_for_room(
    selector: Selector, tcp: Connection
) -> None:
    fill(tcp.ours)
    tcp.peer.sendall(b"x")
    armed(selector, tcp.ours, WAIT_WRITABLE)
    assert selector.wait(0) == []
    selector.arm(tcp.ours.fileno(), WAIT_EITHER, known=True)
    assert selector.wait(DEADLINE) == [(tcp.ours.fileno(), True)]


def test_what_is_forgotten_is_not_reported(selector: Selector, tcp: Connection) -> None:
    armed(selector, tcp.ours, WAIT_READABLE)
    selector.forget(tcp.ours.fileno())
    tcp.peer.sendall(b"x")
    assert selector.wait(0) == []
    armed(selector, tcp.ours, WAIT_READABLE)
    assert selector.wait(DEADLINE) == [(tcp.ours.fileno(), True)]


@only("portable", "chunked")
def test_what_was_reported_may_be_forgotten_too(selector: Selector, tcp: Connection) -> None:
    armed(selector, tcp.ours, WAIT_WRITABLE)
    assert selector.wait(DEADLINE)
    selector.forget(tcp.ours.fileno())


def test_a_wait_ends_with_its_time(selector: Selector, tcp: Connection) -> None:
    began = monotonic()
    assert selector.wait(0.01) == [], "nothing is armed"
    armed(selector, tcp.ours, WAIT_READABLE)
    assert selector.wait(0.01) == []
    assert monotonic() - began >= 0.02


def test_one_of_many_is_reported_alone(selector: Selector) -> None:
    with connect_many(5) as connections:
        all_armed(selector, connections)
        connections[3].peer.sendall(b"x")
        assert selector.wait(DEADLINE) == [(connections[3].ours.fileno(), True)]


@needs_epoll
@only("best", "portable")
def test_its_descriptor_is_readable_when_there_is_an_event(
    selector: Selector, tcp: Connection
) -> None:
    armed(selector, tcp.ours, WAIT_READABLE)
    with selectors.DefaultSelector() as outer:
        outer.register(selector.fileno(), selectors.EVENT_READ)
        assert outer.select(0) == []
        tcp.peer.sendall(b"x")
        assert outer.select(DEADLINE)


def test_a_selector_without_a_descriptor_says_so() -> None:
    assert ChunkedSelect().fileno() == -1
    assert Portable(selectors.SelectSelector()).fileno() == -1


@only("portable", "chunked")
def test_only_epoll_reports_acknowledgements(selector: Selector, tcp: Connection) -> None:
    with pytest.raises(OSError, match="not reported") as caught:
        armed(selector, tcp.ours, WAIT_ACK)
    assert caught.value.errno == errno.EOPNOTSUPP
    assert caught.value.strerror == "acknowledgements are not reported here"


@needs_epoll
@only("best")
def test_an_acknowledgement_of_our_fin_is_no_input(selector: Selector, tcp: Connection) -> None:
    armed(selector, tcp.ours, WAIT_ACK)
    # Added, it has an event immediately: there is room.
    assert selector.wait(DEADLINE) == [(tcp.ours.fileno(), False)]
    tcp.ours.shutdown(socket.SHUT_WR)
    assert selector.wait(DEADLINE) == [(tcp.ours.fileno(), False)]
    tcp.peer.sendall(b"x")
    assert selector.wait(DEADLINE) == [(tcp.ours.fileno(), True)], "it is armed still"


@needs_epoll
@only("best")
def test_a_wait_that_is_armed_again_is_for_the_new_event(
    selector: Selector, tcp: Connection
) -> None:
    armed(selector, tcp.ours, WAIT_READABLE)
    selector.arm(tcp.ours.fileno(), WAIT_WRITABLE, known=True)
    assert selector.wait(DEADLINE) == [(tcp.ours.fileno(), False)]


@needs_epoll
@only("best")
def test_a_number_that_a_dup_has_kept_in_the_list_is_armed_anew(
    selector: Selector, tcp: Connection
) -> None:
    number = tcp.ours.fileno()
    armed(selector, tcp.ours, WAIT_READABLE)
    kept = os.dup(number)
    os.close(number)
    os.dup2(kept, number)
    os.close(kept)
    selector.arm(number, WAIT_WRITABLE, known=False)
    assert selector.wait(DEADLINE) == [(number, False)]


@needs_epoll
@only("best")
def test_at_most_so_many_events_are_taken_at_a_time(selector: Selector) -> None:
    with connect_many(5) as connections:
        all_armed(selector, connections, WAIT_WRITABLE)
        first = selector.wait(DEADLINE, 3)
        assert len(first) == 3
        assert len({*first, *selector.wait(DEADLINE, 3)}) == 5


# --- select() on Windows -----------------------------------------------------------------------------


@pytest.fixture
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_selector, "_SELECTABLE", 2)


@pytest.mark.usefixtures("_small_chunks")
def test_more_than_one_select_takes_are_looked_at_in_chunks() -> None:
    selector = ChunkedSelect()
    with connect_many(5) as connections:
        all_armed(selector, connections)
        assert selector.wait(0.01) == []
        for index in (0, 4):
            connections[index].peer.sendall(b"x")
            assert selector.wait(DEADLINE) == [(connections[index].ours.fileno(), True)]


class Waits:
    """How long a selector sleeps each time, by a clock that nothing else advances."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.selects: list[float] = []
        self.sleeps: list[float] = []
        self.now = 100.0
        self._select = select.select
        monkeypatch.setattr(select, "select", self.select)
        monkeypatch.setattr(time, "sleep", self.sleep)
        monkeypatch.setattr(_selector, "monotonic", lambda: self.now)

    def select(self, readers: Any, writers: Any, others: Any, timeout: float) -> Any:
        self.selects.append(timeout)
        ready = self._select(readers, writers, others, 0)
        if not any(ready):
            self.now += timeout
        return ready

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


def test_what_one_select_takes_is_waited_for_in_it(
    tcp: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    selector = ChunkedSelect()
    armed(selector, tcp.ours, WAIT_READABLE)
    waits = Waits(monkeypatch)
    assert selector.wait(3.0) == []
    assert waits.selects == [3.0, 0.0]
    assert waits.sleeps == []


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("count", [3, 5])
def test_more_than_one_select_takes_is_looked_at_after_pauses(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    selector = ChunkedSelect()
    with connect_many(count) as connections:
        all_armed(selector, connections)
        waits = Waits(monkeypatch)
        assert selector.wait(0.05) == []
    assert set(waits.selects) == {0.0}
    assert waits.sleeps == pytest.approx([0.02, 0.02, 0.01])


def test_nothing_is_waited_for_in_one_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = Waits(monkeypatch)
    assert ChunkedSelect().wait(3.0) == []
    assert (waits.selects, waits.sleeps) == ([], [3.0])


@pytest.mark.parametrize("index", [0, 2, 4])
def test_one_that_another_thread_closed_is_reported(
    index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    selector = ChunkedSelect()
    with connect_many(5) as connections:
        numbers = [connection.ours.fileno() for connection in connections]
        all_armed(selector, connections)
        connections[index].ours.close()
        waits = Waits(monkeypatch)
        assert selector.wait(DEADLINE) == [(numbers[index], True)]
        assert set(waits.selects[1:]) == {0}, "the search for it does not wait"
        assert selector.wait(0) == []


# --- when there is no epoll --------------------------------------------------------------------------


@needs_epoll
@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE])
def test_without_a_descriptor_for_epoll_poll_waits(
    error: int, tcp: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("select.epoll", refuse)
    selector = new_selector()
    assert isinstance(selector, Portable)
    assert isinstance(vars(selector)["_selector"], selectors.PollSelector), "it has no limit"
    assert selector.fileno() == -1
    armed(selector, tcp.ours, WAIT_READABLE)
    tcp.peer.sendall(b"x")
    assert selector.wait(DEADLINE) == [(tcp.ours.fileno(), True)]
    selector.close()


@pytest.mark.parametrize(
    ("default", "kind"),
    [
        (selectors.SelectSelector, ChunkedSelect),
        (getattr(selectors, "PollSelector", selectors.SelectSelector), Portable),
    ],
)
def test_without_epoll_the_systems_best_is_taken(
    default: type, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("select.epoll", raising=False)
    monkeypatch.setattr(selectors, "DefaultSelector", default)
    selector = new_selector()
    assert isinstance(selector, kind)
    selector.close()
