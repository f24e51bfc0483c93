"""What every driver keeps to, over every kind of stream."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import pytest

from certificates import NAME, client_context, server_context
from contract.drivers import DRIVERS, ONLY_GRACEFUL, Driver
from every_loop import ends_in_raw_reset
from graceful_close import CloseOutcome, CloseResult, LingerPolicy
from streams import DEADLINE, Connection, connect, kernel_counts, meanwhile, read_all, reset

REPLY = b"r" * 65536
UPLOAD = b"u" * 1_000_000

# name: (family, TLS version)
KINDS = {
    "tcp": ("tcp4", None),
    "unix": ("unix", None),
    "TLS 1.2": ("tcp4", ssl.TLSVersion.TLSv1_2),
    "TLS 1.3": ("tcp4", ssl.TLSVersion.TLSv1_3),
    "TLS 1.3 over unix": ("unix", ssl.TLSVersion.TLSv1_3),
}


Script = Callable[[socket.socket, threading.Event], Any]


class Stream(NamedTuple):
    """A connection of some kind, and a driver for our end."""

    driver: Driver
    connection: Connection
    version: ssl.TLSVersion | None

    @property
    def is_tcp(self) -> bool:
        return self.connection.ours.family != socket.AF_UNIX

    def against(
        self, script: Script, call: str = "graceful_close", *arguments: float, **options: Any
    ) -> tuple[CloseResult, Any]:
        """Write the reply and close while the peer follows a script; the result of both."""
        ours, raw = self.connection
        closed = threading.Event()

        def peer() -> Any:
            if self.version is None:
                return script(raw, closed)
            context = client_context(self.version)
            # Strict: the end of the stream without a close_notify is an error.
            with context.wrap_socket(
                raw, server_hostname=NAME, suppress_ragged_eofs=False
            ) as tls:
                return script(tls, closed)

        context = server_context(self.version) if self.version else None
        with meanwhile(peer) as said:
            try:
                result = self.driver(ours, context, REPLY, (call, arguments, options))
            finally:
                closed.set()
        assert ours.fileno() == -1
        return result, said[0]


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=KINDS)
def stream(request: pytest.FixtureRequest, driver: str) -> Iterator[Stream]:
    family, version = KINDS[request.param]
    with connect(family) as connection:
        yield Stream(DRIVERS[driver], connection, version)


@pytest.fixture
def able(stream: Stream, driver: str) -> Stream:
    """Of a driver that knows every call."""
    if driver in ONLY_GRACEFUL:
        stream = stream._replace(driver=DRIVERS["blocking"])
    return stream


# --- what peers do -------------------------------------------------------------------------------


def reads_and_closes(sock: socket.socket, closed: threading.Event) -> bytes:
    received = read_all(sock)
    sock.close()
    return received


def uploads_before_it_reads(sock: socket.socket, closed: threading.Event) -> bytes:
    sock.settimeout(DEADLINE)
    sock.sendall(UPLOAD)
    return reads_and_closes(sock, closed)


def holds_open(sock: socket.socket, closed: threading.Event) -> bytes:
    received = read_all(sock)
    assert closed.wait(DEADLINE)
    return received


def reads_the_reply(sock: socket.socket) -> None:
    sock.settimeout(DEADLINE)
    received = 0
    while received < len(REPLY):
        received += len(sock.recv(65536))


def floods(sock: socket.socket, closed: threading.Event) -> None:
    reads_the_reply(sock)
    with suppress(OSError):  # reset, because it had enough
        while not closed.is_set():
            sock.sendall(UPLOAD)


def resets_after_the_reply(sock: socket.socket, closed: threading.Event) -> None:
    reads_the_reply(sock)
    reset(sock)


def is_reset(sock: socket.socket, closed: threading.Event | None = None) -> bool:
    assert closed is None or closed.wait(DEADLINE)
    return ends_in_raw_reset(sock)


# --- graceful_close ------------------------------------------------------------------------------


def test_the_peers_fin_ends_it_and_all_has_arrived(stream: Stream) -> None:
    result, received = stream.against(reads_and_closes)
    assert result.outcome is CloseOutcome.PEER_CLOSED
    if kernel_counts() or not stream.is_tcp:
        assert result.unacked == (0 if stream.is_tcp else None)
    assert result.clean
    assert received == REPLY


def test_unread_input_does_not_destroy_the_reply(stream: Stream) -> None:
    result, received = stream.against(uploads_before_it_reads)
    assert result.outcome is CloseOutcome.PEER_CLOSED
    assert received == REPLY


def test_it_never_says_that_close_notify_failed_when_it_arrived(stream: Stream) -> None:
    result, received = stream.against(holds_open, timeout=0.05)
    assert received == REPLY  # a strict peer: the end was not cut
    assert result.notified is not False
    assert stream.version or result.notified is None


def test_a_peer_that_keeps_its_side_open_costs_the_timeout(stream: Stream) -> None:
    result, received = stream.against(holds_open, timeout=0.1)
    assert result.outcome is CloseOutcome.TIMED_OUT
    assert 0.1 <= result.elapsed < DEADLINE
    assert received == REPLY


def test_a_silent_peer_costs_the_idle_time(stream: Stream) -> None:
    result, _ = stream.against(holds_open, timeout=DEADLINE, idle_timeout=0.1)
    assert result.outcome is CloseOutcome.IDLE_TIMED_OUT
    assert 0.1 <= result.elapsed < DEADLINE


def test_a_peer_that_sends_too_much_meets_the_limit(stream: Stream) -> None:
    result, _ = stream.against(floods, drain_limit=10_000)
    assert result.outcome is CloseOutcome.DRAIN_LIMIT
    assert result.drained > 10_000


def test_a_peer_that_never_ends_meets_the_deadline(stream: Stream) -> None:
    result, _ = stream.against(floods, timeout=0.1)
    assert result.outcome is CloseOutcome.TIMED_OUT
    assert result.drained > 0


def test_a_reset_is_a_result(stream: Stream) -> None:
    result, _ = stream.against(resets_after_the_reply)
    # AF_UNIX has none of its own, but reports one if the peer left something unread.
    orderly = result.outcome is CloseOutcome.PEER_CLOSED and not stream.is_tcp
    assert orderly or result.outcome is CloseOutcome.PEER_RESET


def test_delivered_does_not_wait_for_the_peer_to_finish(stream: Stream) -> None:
    result, received = stream.against(holds_open, until=CloseOutcome.DELIVERED, timeout=0.5)
    wanted = CloseOutcome.DELIVERED if stream.is_tcp else CloseOutcome.TIMED_OUT
    assert result.outcome is wanted
    assert received == REPLY


# --- the other calls -----------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["abortive_close", "roll back"])
def test_an_abort_is_a_reset(able: Stream, call: str) -> None:
    result, was_reset = able.against(is_reset, call)
    assert result.outcome is CloseOutcome.ABORTED
    assert was_reset or not able.is_tcp


def test_a_timed_linger_ends_with_the_acknowledgement(able: Stream) -> None:
    result, received = able.against(holds_open, "timed_linger_close", 0.5)
    wanted = CloseOutcome.DELIVERED if able.is_tcp else CloseOutcome.TIMED_OUT
    assert result.outcome is wanted
    assert received == REPLY


# close_all() gets the stream twice.
@pytest.mark.parametrize("call", ["commit", "close_all"])
def test_unread_input_does_not_destroy_the_reply_of_the_other_calls(
    able: Stream, call: str
) -> None:
    result, received = able.against(uploads_before_it_reads, call)
    assert result.outcome is CloseOutcome.PEER_CLOSED
    assert received == REPLY


# --- what was asked for --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": -1},
        {"timeout": "5"},
        {"idle_timeout": float("nan")},
        {"drain_limit": 1.5},
        {"until": CloseOutcome.ABORTED},
        {"on_timeout": LingerPolicy.TIMED},
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_and_nothing_is_touched(
    driver: str, options: dict[str, Any]
) -> None:
    with connect("tcp4") as (ours, peer):
        result = DRIVERS[driver](ours, None, REPLY, ("refuse", (), options))
        assert result.outcome is CloseOutcome.ABORTED  # it was still there to be aborted
        assert is_reset(peer)
