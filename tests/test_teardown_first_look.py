"""The first look, phase 1 of the state machine: whether there is a connection, and an abort of it."""

from __future__ import annotations

import errno

import pytest

from graceful_close import CloseOutcome, CloseResult, LingerPolicy
from graceful_close._platform import TcpState, View
from graceful_close._step import Step
from graceful_close._teardown import Teardown
from machines import (
    ACCEPTING,
    BOTH_FINS,
    BSD,
    CONNECTING,
    FIN_SENT,
    LINUX,
    LISTENING,
    LOST,
    MPTCP,
    NEVER_OPEN,
    NOT_CONNECTED,
    OPEN,
    OTHER,
    OVER,
    PEER_CLOSED,
    PEER_FIN,
    REFUSED,
    RESET,
    WINDOWS,
    after_our_fin_in_a_flush,
    asking,
    begin,
    draining,
    end_of,
    end_of_stream,
    silent,
)


def test_enotconn_at_shutdown_does_not_decide_the_outcome() -> None:
    machine = draining(state=OVER, error=NOT_CONNECTED)
    assert machine.failed(RESET, 0.0) is Step.COUNT
    assert machine.counted(12, 0.0) is Step.LOOK
    assert machine.looked(OVER, 0.0) is Step.RELEASE
    assert machine.released(0.0) == CloseResult(CloseOutcome.PEER_RESET, 0.0, 0, 12, RESET)


def test_enotconn_at_shutdown_and_at_recv_is_not_connected() -> None:
    machine = draining(state=NEVER_OPEN, error=NOT_CONNECTED)
    machine.failed(NOT_CONNECTED, 0.0)
    machine.counted(None, 0.0)
    assert machine.released(0.0).outcome is CloseOutcome.NOT_CONNECTED


def test_a_connection_that_ended_before_the_call_is_not_reported_as_a_success() -> None:
    machine = draining(state=OVER, error=NOT_CONNECTED)
    assert machine.received(0, 0.0) is Step.READ_ERROR
    assert machine.no_error(0.0) is Step.COUNT
    assert machine.counted(0, 0.0) is Step.RELEASE
    assert end_of(machine, "error") == (CloseOutcome.NOT_CONNECTED, NOT_CONNECTED)


def test_a_reset_before_the_call_is_found_in_the_pending_error() -> None:
    machine = draining(state=OVER, error=NOT_CONNECTED)
    assert machine.received(0, 0.0) is Step.READ_ERROR
    assert machine.failed(OSError(errno.EPIPE, "broken"), 0.0) is Step.COUNT
    machine.counted(8, 0.0)
    assert machine.released(0.0).outcome is CloseOutcome.PEER_RESET


def test_a_fin_of_ours_before_the_call_proves_the_connection() -> None:
    # The caller called shutdown() before. The machine does not request a second one, which
    # raises ENOTCONN on macOS.
    machine = Teardown(asking(), 0.0, BSD)
    assert begin(machine, state=FIN_SENT) is Step.DRAIN
    step = end_of_stream(machine)
    while step is not Step.RELEASE:
        step = machine.counted(0, 0.0) if step is Step.COUNT else machine.no_error(0.0)
    assert end_of(machine, "error") == (PEER_CLOSED, None)


@pytest.mark.parametrize(("view", "state"), [(WINDOWS, OPEN), (LINUX, NEVER_OPEN)])
def test_a_refused_connect_is_reported_as_not_connected(view: View, state: TcpState) -> None:
    machine = draining(view=view, state=state, error=NOT_CONNECTED)
    if machine.failed(REFUSED, 0.0) is Step.COUNT:
        assert machine.counted(0, 0.0) is Step.RELEASE
    assert machine.released(0.0).outcome is CloseOutcome.NOT_CONNECTED


@pytest.mark.parametrize("view", [WINDOWS, OTHER, MPTCP])
def test_without_states_the_machine_does_not_request_a_look(view: View) -> None:
    assert Teardown(asking(), 0.0, view).start() is Step.SHUT_WR


@pytest.mark.parametrize("abort", [False, True])
@pytest.mark.parametrize("tls", [False, True])
def test_a_listener_has_no_connection_and_nothing_unacknowledged(
    abort: bool, tls: bool
) -> None:
    machine = Teardown(asking(), 0.0, LINUX, tls=tls, abort=abort)
    assert begin(machine, state=LISTENING) is Step.RELEASE
    assert machine.linger_policy is None
    result = machine.released(0.0)
    assert (result.outcome, result.unacked) == (CloseOutcome.NOT_CONNECTED, 0)
    assert result.clean


@pytest.mark.parametrize("abort", [False, True])
def test_a_pending_connect_times_out_with_an_unknown_count(abort: bool) -> None:
    machine = Teardown(asking(), 0.0, LINUX, abort=abort)
    assert begin(machine, state=CONNECTING) is Step.RELEASE
    assert end_of(machine, "unacked") == (CloseOutcome.NOT_CONNECTED, None)


@pytest.mark.parametrize("count", [0, 1, 8])
@pytest.mark.parametrize("end", ["an error", "the end of the stream", "no error"])
def test_whatever_a_socket_that_never_connected_says_it_is_not_connected(
    end: str, count: int
) -> None:
    machine = draining(state=NEVER_OPEN, error=NOT_CONNECTED)
    if end == "an error":
        assert machine.failed(RESET, 0.0) is Step.COUNT
    else:
        assert machine.received(0, 0.0) is Step.READ_ERROR
        step = machine.no_error(0.0) if end == "no error" else machine.failed(LOST, 0.0)
        assert step is Step.COUNT
    assert machine.counted(count, 0.0) is Step.RELEASE
    result = machine.released(0.0)
    assert result.outcome is CloseOutcome.NOT_CONNECTED
    expected = None if count else 0
    assert result.unacked == expected, "a count of what never was a connection means nothing"


def test_a_connection_that_never_opened_is_no_peers_end_though_our_fin_is_out() -> None:
    # A Fast Open server's: the handshake was reset, and another reader has received the error.
    machine = after_our_fin_in_a_flush()
    step = begin(machine, state=NEVER_OPEN)
    assert step is Step.READ_ERROR
    while step is not Step.RELEASE:
        step = machine.counted(0, 0.0) if step is Step.COUNT else machine.no_error(0.0)
    assert machine.released(0.0).outcome is CloseOutcome.NOT_CONNECTED


def test_open_after_our_fin_is_treated_as_an_unknown_state() -> None:
    # gVisor: the end of the stream is the only proof.
    machine = silent()
    machine.woke(1.0)
    assert end_of_stream(machine, 1.0, state=OPEN) is Step.COUNT
    assert machine.counted(None, 1.0) is Step.RELEASE
    assert machine.released(1.0).outcome is PEER_CLOSED


def test_with_an_unknown_state_the_end_of_the_stream_is_the_proof() -> None:
    machine = Teardown(asking(), 0.0, LINUX)
    machine.start()
    assert machine.looked(None, 0.0) is Step.SHUT_WR
    machine.shut(0.0)
    assert machine.received(0, 0.0) is Step.LOOK
    assert machine.looked(None, 0.0) is Step.COUNT
    assert machine.counted(0, 0.0) is Step.RELEASE
    assert end_of(machine, "peer_first") == (PEER_CLOSED, None)


@pytest.mark.parametrize("view", [LINUX, BSD, WINDOWS, OTHER, MPTCP])
@pytest.mark.parametrize("tls", [False, True])
def test_an_abort_looks_counts_and_then_resets(view: View, tls: bool) -> None:
    # With TLS too: a close_notify would mean that the message is complete.
    machine = Teardown(asking(), 0.0, view, abort=True, tls=tls)
    assert machine.start() is Step.LOOK
    step = machine.looked(OPEN, 0.0)
    if view.acks is not None:
        assert step is Step.COUNT
        step = machine.counted(70_000, 0.0)
    assert step is Step.RELEASE
    assert machine.linger_policy is LingerPolicy.ABORT
    unacked = None if view.acks is None else 70_000
    assert machine.released(0.0) == CloseResult(CloseOutcome.ABORTED, 0.0, 0, unacked, None)


@pytest.mark.parametrize(
    ("state", "peer_first"), [(FIN_SENT, False), (PEER_FIN, True), (BOTH_FINS, False)]
)
def test_an_abort_reports_who_sent_the_first_fin(state: TcpState, peer_first: bool) -> None:
    machine = Teardown(asking(), 0.0, LINUX, abort=True)
    assert begin(machine, state=state) is Step.COUNT
    assert machine.counted(0, 0.0) is Step.RELEASE
    assert end_of(machine, "peer_first") == (CloseOutcome.ABORTED, peer_first)


def test_an_abort_of_an_ended_connection_reports_how_it_ended() -> None:
    machine = Teardown(asking(), 0.0, LINUX, abort=True)
    assert begin(machine, state=OVER) is Step.READ_ERROR
    assert machine.failed(RESET, 0.0) is Step.COUNT
    assert machine.counted(5, 0.0) is Step.RELEASE
    assert machine.linger_policy is None
    assert machine.released(0.0) == CloseResult(CloseOutcome.PEER_RESET, 0.0, 0, 5, RESET)


@pytest.mark.parametrize("state", [OVER, NEVER_OPEN])
@pytest.mark.parametrize("error", [None, NOT_CONNECTED, LOST, REFUSED])
def test_an_abort_of_a_connection_that_ended_without_a_reset_is_reported_as_not_connected(
    state: TcpState, error: OSError | None
) -> None:
    machine = Teardown(asking(), 0.0, LINUX, abort=True)
    assert begin(machine, state=state) is Step.READ_ERROR
    step = machine.no_error(0.0) if error is None else machine.failed(error, 0.0)
    assert step is Step.COUNT
    assert machine.counted(0, 0.0) is Step.RELEASE
    assert end_of(machine, "error") == (CloseOutcome.NOT_CONNECTED, error)


def test_an_abort_of_a_descriptor_that_another_thread_closed_is_reported_as_already_closed() -> (
    None
):
    machine = Teardown(asking(), 0.0, LINUX, abort=True)
    assert begin(machine, state=OVER) is Step.READ_ERROR
    assert machine.failed(OSError(errno.EBADF, "closed"), 0.0) is Step.RELEASE
    assert machine.released(0.0).outcome is CloseOutcome.ALREADY_CLOSED


@pytest.mark.parametrize(("state", "unacked"), [(OPEN, 7), (ACCEPTING, None)])
def test_an_abort_in_a_handshake_counts_if_the_kernel_counts(
    state: TcpState, unacked: int | None
) -> None:
    machine = Teardown(asking(), 0.0, LINUX, abort=True)
    assert begin(machine, state=ACCEPTING) is Step.LOOK
    if machine.looked(state, 0.0) is Step.COUNT:
        assert machine.counted(7, 0.0) is Step.RELEASE
    assert machine.linger_policy is LingerPolicy.ABORT
    assert machine.released(0.0).unacked == unacked


def test_an_abort_in_a_handshake_that_fails_meanwhile_asks_for_nothing_more() -> None:
    machine = Teardown(asking(), 0.0, LINUX, abort=True)
    assert begin(machine, state=ACCEPTING) is Step.LOOK
    assert machine.looked(NEVER_OPEN, 0.0) is Step.RELEASE


def test_an_established_connection_that_is_gone_was_reset() -> None:
    machine = draining(state=OVER, error=NOT_CONNECTED, stood=True)
    machine.received(0, 1.0)
    machine.no_error(1.0)
    machine.counted(0, 1.0)
    assert machine.released(1.0).outcome is CloseOutcome.PEER_RESET
