"""A connection between two waits, without a driver: what it looks at, and how it is given up."""

# How far it has come is what this looks at.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import errno
import os
import socket
import ssl
import sys
from collections.abc import Iterator
from time import monotonic
from typing import Any

import pytest

from graceful_close import CloseOutcome, LingerPolicy, get_linger, set_linger, unacked_bytes
from graceful_close._blocking import drive
from graceful_close._connection import Connection
from graceful_close._options import Options
from graceful_close._sockets import plain_dup
from graceful_close._step import (
    COUNT,
    DRAIN,
    FLUSH,
    RELEASE,
    SHUT_WR,
    WAIT_ACK,
    WAIT_READABLE,
    Step,
)
from graceful_close._tls import LastRecords
from signals import Stop
from streams import (
    DEADLINE,
    await_reset,
    ends_in_reset,
    fill,
    read_all,
    reset,
    send_fin,
)
from streams import Connection as Pair
from tls_sessions import Session, session

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the first look is Linux's")


def begun(pair: Pair, options: Options | None = None, **more: Any) -> Connection:
    """A connection whose first step is a read."""
    connection = Connection(options or Options(), monotonic(), **more)
    assert connection.begin(pair.ours) is DRAIN
    return connection


def holder_of(connection: Connection) -> socket.socket:
    return socket.socket(fileno=os.dup(connection.sock.fileno()))


def await_acknowledgement(connection: Connection) -> None:
    """Wait until our FIN is acknowledged."""
    until = monotonic() + DEADLINE
    while unacked_bytes(connection.sock):
        assert monotonic() < until


# --- the first look ------------------------------------------------------------------------------


def test_the_first_wait_needs_no_machine_and_the_next_one_does(tcp: Pair) -> None:
    connection = begun(tcp)
    assert connection.carry_out(DRAIN) is WAIT_READABLE
    assert connection._machine is None
    step = connection.waited(WAIT_READABLE)
    assert connection.carry_out(step) is WAIT_READABLE
    assert connection._machine is not None, "it counts the wake-ups that bring nothing"
    connection.abandon()


def test_without_time_there_is_no_wait_at_all(tcp: Pair) -> None:
    connection = begun(tcp, Options(0))
    assert connection.carry_out(DRAIN) is RELEASE
    assert connection.release().outcome is CloseOutcome.TIMED_OUT


@pytest.mark.parametrize("acknowledged", [True, False])
def test_an_idle_time_needs_a_machine_if_acknowledgements_are_to_come(
    acknowledged: bool, tcp: Pair
) -> None:
    if not acknowledged:
        fill(tcp.ours)
    connection = begun(tcp, Options(5, idle_timeout=2))
    if acknowledged:
        await_acknowledgement(connection)
    connection.carry_out(DRAIN)
    assert (connection._machine is None) is acknowledged
    connection.abandon()


def test_a_wait_without_a_machine_has_the_deadlines_of_the_options(tcp: Pair) -> None:
    before = monotonic()
    connection = begun(tcp, Options(5, idle_timeout=2))
    assert before + 2 <= connection.wake_at <= monotonic() + 2
    connection.abandon()


def test_the_first_look_reads_no_more_than_the_limit_and_one_byte(tcp: Pair) -> None:
    tcp.peer.sendall(bytes(1000))
    send_fin(tcp.peer, to=tcp.ours)
    connection = Connection(Options(5, drain_limit=10), monotonic())
    drive(connection, connection.begin(tcp.ours))
    result = connection.release()
    assert (result.outcome, result.drained) == (CloseOutcome.DRAIN_LIMIT, 11)


@pytest.mark.parametrize(
    ("options", "step"),
    [
        (Options(), WAIT_READABLE),
        (Options(0), DRAIN),
        (Options(5, idle_timeout=2), DRAIN),
    ],
)
def test_one_of_many_looks_first_only_without_time_or_with_an_idle_time(
    options: Options, step: Step, tcp: Pair
) -> None:
    connection = Connection(options, monotonic(), one_of_many=True)
    assert connection.begin(tcp.ours) is step
    connection.abandon()


def test_one_of_many_looks_at_once_if_the_peers_fin_is_there(tcp: Pair) -> None:
    send_fin(tcp.peer, to=tcp.ours)
    connection = Connection(Options(), monotonic(), one_of_many=True)
    assert connection.begin(tcp.ours) is DRAIN
    assert connection.carry_out(DRAIN) is RELEASE
    assert connection._machine is None
    assert connection.release().peer_first is True


def test_an_answer_to_our_fin_needs_no_machine(tcp: Pair) -> None:
    connection = begun(tcp)
    assert connection.carry_out(DRAIN) is WAIT_READABLE
    send_fin(tcp.peer, to=connection.sock)
    assert connection.carry_out(connection.waited(WAIT_READABLE)) is RELEASE
    assert connection._machine is None
    result = connection.release()
    assert (result.outcome, result.peer_first) == (CloseOutcome.PEER_CLOSED, False)
    assert 0 <= result.elapsed < DEADLINE


def test_which_of_two_fins_that_have_crossed_was_first_is_not_known(tcp: Pair) -> None:
    connection = begun(tcp)
    send_fin(tcp.peer, to=connection.sock)
    assert connection.carry_out(DRAIN) is RELEASE
    assert connection.release().peer_first is None


def test_many_reads_in_a_row_are_interrupted(
    tcp: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tcp.ours)
    tcp.peer.sendall(bytes(20))
    connection = Connection(Options(until=CloseOutcome.DELIVERED), monotonic())
    step = connection.begin(tcp.ours)
    monkeypatch.setattr(connection._drain, "_size", 1)
    with holder_of(connection) as holder:
        while len(holder.recv(100, socket.MSG_PEEK)) < 20:
            pass
        for left in (12, 4):
            step = connection.carry_out(step)
            assert (step, len(holder.recv(100, socket.MSG_PEEK))) == (DRAIN, left)
        assert connection.carry_out(step) is WAIT_ACK
    connection.abandon()


def test_a_socket_that_was_closed_has_no_steps() -> None:
    sock = socket.socket()
    sock.close()
    connection = Connection(Options(), monotonic())
    assert connection.begin(sock) is RELEASE
    assert connection.release().outcome is CloseOutcome.ALREADY_CLOSED


@pytest.mark.parametrize("by_machine", [False, True])
def test_the_peers_name_is_in_the_result(by_machine: bool, tcp: Pair) -> None:
    peer = ("192.0.2.1", 80)
    connection = Connection(Options(), monotonic(), peer=peer)
    send_fin(tcp.peer, to=tcp.ours)
    step = connection.begin(tcp.ours)
    if by_machine:
        assert connection.machine.peer == peer
    drive(connection, step)
    assert (connection._machine is not None) is by_machine
    assert connection.release().peer == peer


@pytest.mark.parametrize("how", ["first look", "machine", "flush"])
def test_a_reset_that_another_holder_has_read_is_not_the_peers_fin(how: str, tcp: Pair) -> None:
    connection = Connection(Options(), monotonic(), flush=how == "flush")
    step = connection.begin(tcp.ours)
    if how == "flush":
        step = connection.carry_out(connection.machine.flushed(0, monotonic(), waited=False))
        step = connection.waited(step)
    elif how == "machine":
        assert connection.machine, "it is made when it is first asked for"
    await_acknowledgement(connection)
    with holder_of(connection) as holder:
        reset(tcp.peer)
        await_reset(holder)
        with pytest.raises(ConnectionResetError):
            holder.recv(1)
        assert connection.carry_out(step) is RELEASE
    result = connection.release()
    assert result.outcome is CloseOutcome.PEER_RESET
    assert "Connection reset by peer" in str(result.error)


def test_a_reset_before_our_fin_is_reported_although_the_fin_is_refused(tcp: Pair) -> None:
    connection = Connection(Options(until=CloseOutcome.DELIVERED), monotonic())
    assert connection.begin(tcp.ours) is SHUT_WR
    reset(tcp.peer)
    await_reset(connection.sock)
    drive(connection, SHUT_WR)
    assert connection.release().outcome is CloseOutcome.PEER_RESET


@pytest.mark.parametrize("machine", [False, True])
def test_an_error_of_close_itself_is_in_the_result(machine: bool, tcp: Pair) -> None:
    send_fin(tcp.peer, to=tcp.ours)
    connection = begun(tcp)
    if machine:
        assert connection.machine
    assert connection.carry_out(DRAIN) is RELEASE
    os.close(connection.sock.fileno())
    result = connection.release()
    assert result.outcome is CloseOutcome.PEER_CLOSED
    assert result.error is not None
    assert result.error.errno == errno.EBADF


# --- the end of a wait ---------------------------------------------------------------------------


@pytest.fixture
def waiting(tcp: Pair) -> Iterator[Connection]:
    """A connection that waits for acknowledgements."""
    fill(tcp.ours)
    connection = Connection(Options(until=CloseOutcome.DELIVERED), monotonic())
    assert connection.carry_out(connection.begin(tcp.ours)) is WAIT_ACK
    yield connection
    connection.abandon()


def test_only_an_event_that_may_be_input_causes_a_read(waiting: Connection) -> None:
    assert waiting.waited(WAIT_ACK, readable=False) is COUNT
    assert waiting.waited(WAIT_ACK) is DRAIN


def test_without_events_for_acknowledgements_they_are_polled_for(waiting: Connection) -> None:
    assert waiting.waited(WAIT_ACK, OSError(errno.ENOMEM, "")) is WAIT_READABLE


def test_a_wait_for_input_that_fails_ends_the_close(tcp: Pair) -> None:
    connection = begun(tcp)
    step = connection.waited(WAIT_READABLE, OSError(errno.EBADF, ""))
    assert connection.carry_out(step) is RELEASE
    assert connection.release().outcome is CloseOutcome.ALREADY_CLOSED


# --- a descriptor that another object closes -----------------------------------------------------


def test_a_borrowed_descriptor_is_its_owners_after_an_end_at_the_first_look(tcp: Pair) -> None:
    send_fin(tcp.peer, to=tcp.ours)
    connection = Connection(Options(), monotonic())
    assert connection.begin_borrowed(tcp.ours) is DRAIN
    assert connection.carry_out(DRAIN) is RELEASE
    result = connection.release()
    assert (result.outcome, result.unflushed) == (CloseOutcome.PEER_CLOSED, False)
    assert os.fstat(tcp.ours.fileno())


def test_a_dup_of_a_borrowed_descriptor_is_closed(tcp: Pair) -> None:
    connection = Connection(Options(), monotonic())
    assert connection.begin_borrowed(tcp.ours) is DRAIN
    borrowed = connection.sock
    dup = plain_dup(borrowed)
    connection.adopt(dup)
    assert borrowed.fileno() == -1
    assert connection.sock is dup
    connection.abandon()
    assert dup.fileno() == -1
    assert os.fstat(tcp.ours.fileno())


# --- an interrupt --------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before begin", "in begin", "after begin"])
def test_an_interrupt_ends_the_connection_in_order(moment: str, tcp: Pair) -> None:
    connection = Connection(Options(), monotonic())
    if moment != "before begin":
        connection.begin(tcp.ours)
    connection.abandon(None if moment == "after begin" else tcp.ours)
    assert tcp.ours.fileno() == -1
    assert read_all(tcp.peer) == b""


@pytest.mark.parametrize("moment", ["before begin", "after begin"])
def test_an_interrupt_of_an_abort_resets(moment: str, tcp: Pair) -> None:
    connection = Connection(Options(), monotonic(), abort=True)
    if moment == "after begin":
        connection.begin(tcp.ours)
    connection.abandon(tcp.ours)
    assert tcp.ours.fileno() == -1
    assert ends_in_reset(tcp.peer)


def test_an_interrupt_of_a_flush_resets_whoever_else_holds_the_connection(tcp: Pair) -> None:
    connection = Connection(Options(), monotonic(), flush=True)
    assert connection.begin(tcp.ours) is FLUSH
    with holder_of(connection):
        connection.abandon()
        assert ends_in_reset(tcp.peer)


def test_an_interrupt_after_a_flush_ends_in_order(tcp: Pair) -> None:
    connection = Connection(Options(), monotonic(), flush=True)
    connection.begin(tcp.ours)
    connection.machine.flushed(0, monotonic(), waited=False)
    connection.abandon()
    assert read_all(tcp.peer) == b""


@pytest.mark.parametrize("moment", ["before begin", "in begin", "after begin"])
def test_an_interrupt_under_tls_releases_the_callers_object_too(
    moment: str, tls: Session
) -> None:
    connection = Connection(Options(), monotonic())
    if moment != "before begin":
        connection.begin(tls.ours)
    connection.abandon(None if moment == "after begin" else tls.ours)
    assert tls.ours.fileno() == -1
    with pytest.raises(OSError):  # noqa: PT011 (the stream ends without a close_notify)
        tls.peer.unwrap()


def test_an_interrupt_while_the_session_ends_releases_the_callers_object_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(_: object) -> None:
        raise Stop

    with session(ssl.TLSVersion.TLSv1_3) as (ours, _):
        connection = Connection(Options(), monotonic())
        step = connection.begin(ours)
        with monkeypatch.context() as patched:
            patched.setattr("graceful_close._tls.Session.end", interrupt)
            with pytest.raises(Stop):
                connection.carry_out(step)
        connection.abandon(ours)
        assert ours.fileno() == -1
        assert ours.version() is None, "OpenSSL would continue to use the number"


# --- the release ---------------------------------------------------------------------------------


def test_at_the_deadline_a_reset_ends_the_connection_whoever_else_holds_it(tcp: Pair) -> None:
    connection = Connection(Options(0, on_timeout=LingerPolicy.ABORT), monotonic())
    fill(tcp.ours)
    drive(connection, connection.begin(tcp.ours))
    with holder_of(connection):
        assert connection.release().outcome is CloseOutcome.TIMED_OUT
        await_reset(tcp.peer)


def test_at_the_deadline_other_readers_read_the_end(tcp: Pair) -> None:
    connection = Connection(Options(0), monotonic())
    drive(connection, connection.begin(tcp.ours))
    with holder_of(connection) as holder:
        connection.release()
        assert holder.recv(1, socket.MSG_DONTWAIT) == b""


# --- given up by another -------------------------------------------------------------------------


def test_another_thread_may_reset_it(tcp: Pair) -> None:
    connection = begun(tcp)
    with holder_of(connection):
        connection.release_at_once(LingerPolicy.ABORT)
        await_reset(tcp.peer)


def test_another_thread_may_end_it_in_order(tcp: Pair) -> None:
    connection = begun(tcp)
    connection.release_at_once(LingerPolicy.BACKGROUND)
    assert read_all(tcp.peer) == b""


def test_what_was_not_begun_is_nothing_to_give_up() -> None:
    connection = Connection(Options(), monotonic())
    connection.release_at_once(LingerPolicy.ABORT)
    connection.disown()
    connection.abandon()


def test_a_forked_child_changes_nothing_but_its_own_copy(tcp: Pair) -> None:
    set_linger(tcp.ours, LingerPolicy.TIMED, 7)
    connection = Connection(Options(), monotonic(), flush=True)
    connection.begin(tcp.ours)
    number = connection.sock.fileno()
    with holder_of(connection) as parents:
        connection.disown()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)
        assert get_linger(parents).seconds == 7
        parents.sendall(b"x")
        assert tcp.peer.recv(1) == b"x"


@pytest.mark.parametrize(
    ("stood", "outcome"),
    [(True, CloseOutcome.PEER_RESET), (False, CloseOutcome.NOT_CONNECTED)],
)
def test_a_reset_that_was_read_before_is_known_if_the_connection_stood(
    stood: bool, outcome: CloseOutcome, tcp: Pair
) -> None:
    reset(tcp.peer)
    with pytest.raises(ConnectionResetError):
        tcp.ours.recv(1)
    connection = Connection(Options(), monotonic(), stood=stood)
    drive(connection, connection.begin(tcp.ours))
    assert connection.release().outcome is outcome


# --- close_notify --------------------------------------------------------------------------------


@pytest.mark.parametrize("notified", [(True, True), (True, False), (False, None), (None, None)])
def test_what_became_of_a_frameworks_session_is_in_the_result(
    notified: tuple[bool | None, bool | None], tcp: Pair
) -> None:
    tcp.peer.shutdown(socket.SHUT_WR)
    connection = Connection(Options(5), monotonic(), close_notify=notified)
    drive(connection, connection.begin(tcp.ours))
    result = connection.release()
    assert (result.notified, result.peer_notified) == notified


def test_the_peers_close_notify_is_in_the_result_if_there_is_no_room_for_ours(
    tcp: Pair,
) -> None:
    fill(tcp.ours)
    tcp.ours.setblocking(False)
    records = LastRecords(bytes(5_000_000), True, True)
    connection = Connection(Options(0), monotonic(), close_notify=records)
    drive(connection, connection.begin(tcp.ours))
    result = connection.release()
    assert (result.notified, result.peer_notified) == (False, True)
