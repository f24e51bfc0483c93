"""The fast path at the first look must return what the machine returns for the same reports."""

from __future__ import annotations

import itertools
import socket
from time import monotonic
from typing import Any

import pytest

from graceful_close import CloseOutcome, CloseResult, LingerPolicy, graceful_close
from graceful_close._blocking import drive
from graceful_close._connection import Connection as ClosingConnection
from graceful_close._options import Options
from graceful_close._platform import SYSTEMS, TcpState, View
from graceful_close._step import Step
from graceful_close._teardown import (
    PEER_FIN_SEEN,
    Teardown,
    closed_by_peer,
    may_end_at_first_look,
)
from streams import DEADLINE, Connection, meanwhile, read_and_close, send_fin

PEER_CLOSED = CloseOutcome.PEER_CLOSED

STATES: list[TcpState | None] = [None, *TcpState]
VIEWS: dict[str, View] = {
    f"{name}-{kind}": getattr(system, kind)
    for name, system in SYSTEMS.items()
    for kind in ("tcp", "mptcp", "other")
    if kind == "tcp" or name == "linux"
}
_EACH: Any = itertools.product(
    (0.0, 5.0),
    (None, 0.0, 2.0),
    (None, 0, 100),
    (PEER_CLOSED, CloseOutcome.DELIVERED),
    (LingerPolicy.BACKGROUND, LingerPolicy.ABORT),
    (0.0, 1.0),
)
OPTIONS = [Options(*options) for options in _EACH]


def result_of_machine(
    options: Options,
    view: View,
    first: TcpState | None,
    then: TcpState,
    later: float,
    **given: bool,
) -> tuple[CloseResult, LingerPolicy | None, bool]:
    """Return the machine's result for the same end; all reports arrive `later`."""
    machine = Teardown(options, 0.0, view, **given)
    assert machine.start() is Step.LOOK
    assert machine.looked(first, 0.0) is Step.SHUT_WR
    step = machine.shut(0.0)
    if step is Step.WAIT_READABLE:  # one of many: its driver learns of input without a read
        step = machine.woke(later)
    assert step is Step.DRAIN
    step = machine.received(0, later)
    if step is Step.LOOK:
        step = machine.looked(then, later)
    assert step is Step.COUNT
    assert machine.counted(0, later) is Step.RELEASE
    policy, wake_readers = machine.linger_policy, machine.wake_readers
    return machine.released(later), policy, wake_readers


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_the_machine_returns_the_same_result_for_the_same_reports(view: View) -> None:
    cases = itertools.product(
        OPTIONS, STATES, sorted(PEER_FIN_SEEN, key=str), (0.0, 1.0), (False, True), (False, True)
    )  # fmt: skip
    for options, first, then, later, one_of_many, unflushed in cases:
        if not may_end_at_first_look(options, view, first):
            continue
        if then is TcpState.PEER_FIN and first is not TcpState.PEER_FIN:
            continue  # it was OPEN and our FIN was sent, so the peer's FIN leads to BOTH_FINS
        result, policy, wake_readers = result_of_machine(
            options, view, first, then, later, one_of_many=one_of_many, unflushed=unflushed
        )
        at_first_look = closed_by_peer(
            later, True if first is TcpState.PEER_FIN else None, None, unflushed, None
        )
        assert result == at_first_look
        assert (result.outcome, result.unacked, result.drained) == (PEER_CLOSED, 0, 0)
        assert policy is None, "like the first look, which closes without a policy"
        assert not wake_readers, "it also causes no wake-up"


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_close_without_these_conditions_does_not_end_at_its_first_look(view: View) -> None:
    """Each condition of the rule is necessary."""
    counts = view.acks is not None and view.count_survives_reset
    for state, options in itertools.product(STATES, OPTIONS):
        connected = state in (TcpState.OPEN, TcpState.PEER_FIN)
        may = may_end_at_first_look(options, view, state)
        asks_for_less = options.until is PEER_CLOSED and not options.peer_first
        assert may == (connected and counts and asks_for_less)


def test_on_linux_a_close_ends_at_its_first_look() -> None:
    """Otherwise the tests above would test nothing."""
    assert may_end_at_first_look(Options(), VIEWS["linux-tcp"], TcpState.OPEN)


def test_an_error_of_close_is_only_information() -> None:
    result = closed_by_peer(0.5, None, OSError(5, "at the end"), False, ("192.0.2.2", 80))
    assert (result.outcome, result.elapsed, result.peer) == (
        PEER_CLOSED,
        0.5,
        ("192.0.2.2", 80),
    )
    assert result.error is not None
    assert result.error.__traceback__ is None


def closed(options: Options, sock: socket.socket, *, by_machine: bool) -> CloseResult:
    """Return the result of `graceful_close`, without the time; `by_machine`: no fast path."""
    connection = ClosingConnection(options, monotonic())
    try:
        step = connection.begin(sock)
        if by_machine:
            assert connection.machine is not None, "reading the attribute creates the machine"
        drive(connection, step)
        result = connection.release()
    except BaseException:
        connection.abandon(sock)
        raise
    return CloseResult(
        result.outcome, 0.0, result.drained, result.unacked, result.error, result.notified,
        result.peer_notified, result.peer_first, result.unflushed, result.peer,
    )  # fmt: skip


@pytest.mark.parametrize("limit", [None, 0, 100])
@pytest.mark.parametrize("idle_timeout", [None, 5.0])
@pytest.mark.parametrize("timeout", [0.0, DEADLINE])
@pytest.mark.parametrize("by_machine", [False, True])
def test_a_real_connection_has_the_same_result_with_and_without_the_fast_path(
    tcp: Connection,
    limit: int | None,
    idle_timeout: float | None,
    timeout: float,
    by_machine: bool,
) -> None:
    send_fin(tcp.peer, to=tcp.ours)
    options = Options(timeout, idle_timeout, limit)
    result = closed(options, tcp.ours, by_machine=by_machine)
    assert result == CloseResult(PEER_CLOSED, 0.0, 0, 0, None, peer_first=True)
    assert tcp.peer.recv(1) == b""


def test_the_machine_decides_what_the_first_look_cannot(tcp: Connection) -> None:
    with meanwhile(read_and_close, tcp.peer):
        result = graceful_close(tcp.ours, timeout=DEADLINE)
    assert (result.outcome, result.unacked) == (PEER_CLOSED, 0)
