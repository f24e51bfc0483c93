"""The waits of the blocking driver: what ends them, and what does not."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator
from time import monotonic

import pytest

from graceful_close._blocking import _Sleeper  # pyright: ignore[reportPrivateUsage]
from streams import DEADLINE, Connection, connect, fill

SHORT = 0.05


@pytest.fixture(params=["poll", "another selector"], autouse=True)
def _call(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As gevent and eventlet, which replace these functions, and as Windows, which has no poll()."""
    if request.param != "poll":
        monkeypatch.delattr(select, "poll")


@pytest.fixture
def full() -> Iterator[Connection]:
    with connect("unix") as connection:
        fill(connection.ours)
        yield connection


def lasts(wait: Callable[[float], object], seconds: float) -> bool:
    """Whether a wait ends because its time is over."""
    until = monotonic() + seconds
    wait(until)
    return monotonic() >= until


def test_a_wait_for_input_ends_when_there_is_input(tcp: Connection) -> None:
    sleeper = _Sleeper(tcp.ours)
    assert lasts(sleeper.until_readable, SHORT), "there is room, but no input"
    tcp.peer.send(b"x")
    assert not lasts(sleeper.until_readable, DEADLINE)


def test_a_wait_for_room_ends_when_there_is_room(full: Connection) -> None:
    sleeper = _Sleeper(full.ours)
    full.peer.send(b"x")

    def until_room(wake_at: float) -> None:
        sleeper.until_room(wake_at, or_input=False)

    assert lasts(until_room, SHORT), "there is input, but no room"
    while full.peer.recv(1 << 20, socket.MSG_DONTWAIT):
        if select.select([], [full.ours], [], 0)[1]:
            break
    assert not lasts(until_room, DEADLINE)


def test_a_wait_for_room_or_input_ends_at_either(full: Connection, tcp: Connection) -> None:
    sleeper, with_room = _Sleeper(full.ours), _Sleeper(tcp.ours)
    assert lasts(lambda wake_at: sleeper.until_room(wake_at, or_input=True), SHORT)
    full.peer.send(b"x")
    assert not lasts(lambda wake_at: sleeper.until_room(wake_at, or_input=True), DEADLINE)
    assert not lasts(lambda wake_at: with_room.until_room(wake_at, or_input=True), DEADLINE)


def test_an_event_that_is_no_input_is_told_from_input(tcp: Connection) -> None:
    sleeper = _Sleeper(tcp.ours)
    try:
        assert not sleeper.until_anything(monotonic() + DEADLINE), "the event of being added"
        tcp.peer.send(b"x")
        assert sleeper.until_anything(monotonic() + DEADLINE)
    finally:
        sleeper.close()
