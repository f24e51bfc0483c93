"""Phases 6 and 7 of the state machine: what a count proves, the linger policy, and the result."""

from __future__ import annotations

import errno

import pytest

from graceful_close import CloseOutcome, CloseResult, LingerPolicy
from graceful_close._platform import TcpState, View
from graceful_close._step import Step
from graceful_close._teardown import Teardown, already_closed
from machines import (
    ACCEPTING,
    BOTH_FINS,
    BSD,
    DELIVERED,
    FIN_SENT,
    LINUX,
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
    after_the_peers_fin,
    asking,
    begin,
    begun,
    deaf,
    draining,
    end_of,
    end_of_stream,
    silent,
    woke_to_count,
    woke_without_input,
)

# --- the acknowledgement ----------------------------------------------------------------------


def test_the_machine_waits_for_the_acknowledgement_after_the_peers_fin() -> None:
    machine = after_the_peers_fin()
    assert machine.counted(70_000, 0.0) is Step.READ_ERROR
    assert machine.no_error(0.0) is Step.WAIT_ACK
    assert machine.woke(1.0) is Step.COUNT
    assert machine.counted(1, 1.0) is Step.READ_ERROR
    assert machine.no_error(1.0) is Step.WAIT_ACK
    assert machine.woke(1.5) is Step.COUNT
    assert machine.counted(0, 1.5) is Step.RELEASE
    assert machine.released(1.5).outcome is PEER_CLOSED


def test_a_reset_after_the_peers_fin_is_found_although_recv_does_not_report_it() -> None:
    machine = after_the_peers_fin()
    assert machine.counted(70_000, 0.0) is Step.READ_ERROR
    assert machine.failed(OSError(errno.EPIPE, "broken"), 0.1) is Step.COUNT
    assert machine.counted(70_000, 0.1) is Step.LOOK
    assert machine.looked(OVER, 0.1) is Step.RELEASE
    assert end_of(machine, "unacked", 0.1) == (CloseOutcome.PEER_RESET, 70_000)


def test_delivery_ends_at_the_acknowledgement_without_the_peers_fin() -> None:
    machine = silent(asking(until=DELIVERED))
    assert machine.counted(1000, 0.0) is Step.WAIT_ACK
    assert machine.woke(0.2) is Step.DRAIN
    assert machine.received(10, 0.2) is Step.DRAIN, "an edge must find nothing unread"
    assert machine.would_block(0.2) is Step.COUNT
    assert machine.counted(10, 0.2) is Step.WAIT_ACK
    assert machine.woke(0.2, readable=False) is Step.COUNT, "only the acknowledgement arrived"
    assert machine.counted(0, 0.2) is Step.RELEASE
    assert machine.linger_policy is LingerPolicy.BACKGROUND
    assert machine.wake_readers
    assert machine.released(0.2) == CloseResult(DELIVERED, 0.2, 10, 0, None, peer_first=False)


@pytest.mark.parametrize("view", [BSD, MPTCP])
def test_a_count_of_0_needs_the_pending_error_on_systems_where_a_reset_clears_the_queue(
    view: View,
) -> None:
    machine = silent(asking(until=DELIVERED), view)
    assert machine.counted(0, 0.0) is Step.READ_ERROR
    assert machine.failed(RESET, 0.0) is Step.RELEASE
    assert end_of(machine, "unacked") == (CloseOutcome.PEER_RESET, None)


def test_without_a_watch_the_acknowledgement_is_polled_after_growing_pauses() -> None:
    machine = silent(asking(until=DELIVERED), BSD)
    assert machine.counted(5, 0.0) is Step.WAIT_ACK
    assert machine.cannot_watch(0.0) is Step.WAIT_READABLE
    pauses: list[float] = []
    now = 0.0
    while len(pauses) < 12:
        pauses.append(machine.wake_at - now)
        now = machine.wake_at
        assert woke_to_count(machine, 5, now) is Step.WAIT_READABLE
    assert pauses[:6] == pytest.approx([0.001, 0.002, 0.004, 0.008, 0.016, 0.032])
    assert pauses[6:] == pytest.approx([0.05] * 6)
    assert woke_to_count(machine, 4, now) is Step.WAIT_READABLE
    assert machine.wake_at - now == pytest.approx(0.001), "progress starts the pauses again"
    assert woke_to_count(machine, 4, 4.9999) is Step.WAIT_READABLE
    assert machine.wake_at == 5.0, "a pause ends with the time"


def test_after_the_peers_fin_a_pause_does_not_wait_for_input() -> None:
    machine = after_the_peers_fin(view=BSD)
    machine.counted(5, 0.0)
    assert machine.no_error(0.0) is Step.WAIT_ACK
    assert machine.cannot_watch(0.0) is Step.PAUSE
    assert machine.woke(0.001) is Step.COUNT


def test_a_count_is_ignored_on_streams_without_counts() -> None:
    machine = draining(view=OTHER)
    machine.counted(1, 0.0)
    machine.received(0, 0.0)
    assert machine.released(0.0).unacked is None


@pytest.mark.parametrize(("view", "wake_at"), [(LINUX, 0.001), (MPTCP, 5.0)])
def test_a_kernel_that_will_not_count_is_polled_for_the_state_alone(
    view: View, wake_at: float
) -> None:
    machine = silent(asking(until=DELIVERED), view)
    assert machine.counted(None, 0.0) is Step.WAIT_READABLE
    assert machine.wake_at == wake_at


def test_a_kernel_that_will_not_count_is_not_polled_for_what_nobody_asked_for() -> None:
    machine = silent(asking(idle_timeout=2.0))
    assert machine.counted(None, 0.0) is Step.WAIT_READABLE
    assert machine.wake_at == 2.0


def test_a_kernel_that_rejects_the_count_is_treated_as_without_counts() -> None:
    machine = silent(asking(until=DELIVERED))
    assert machine.counted(None, 0.0) is Step.WAIT_READABLE
    machine.woke(0.0)
    assert end_of_stream(machine) is Step.COUNT
    assert machine.counted(None, 0.0) is Step.RELEASE
    assert machine.released(0.0) == CloseResult(
        PEER_CLOSED, 0.0, 0, None, None, peer_first=False
    )


@pytest.mark.parametrize("state", [OPEN, FIN_SENT, BOTH_FINS])
def test_a_pending_error_of_a_connection_that_goes_on_ends_nothing(state: TcpState) -> None:
    machine = silent(asking(until=DELIVERED), BSD)
    assert machine.counted(0, 0.0) is Step.READ_ERROR
    assert machine.pending_error(LOST, state, 0.5) is Step.RELEASE
    assert end_of(machine, "error", 0.5) == (DELIVERED, None)


@pytest.mark.parametrize("state", [None, OVER, NEVER_OPEN])
def test_a_pending_error_of_a_connection_that_is_over_ended_it(state: TcpState | None) -> None:
    machine = silent(asking(until=DELIVERED), BSD)
    assert machine.counted(0, 0.0) is Step.READ_ERROR
    assert machine.pending_error(RESET, state, 0.5) is Step.RELEASE
    assert end_of(machine, "error", 0.5) == (CloseOutcome.PEER_RESET, RESET)


def test_a_count_after_a_failed_handshake_does_not_prove_delivery() -> None:
    machine = draining(asking(until=DELIVERED), state=ACCEPTING)
    assert end_of_stream(machine, state=NEVER_OPEN) is Step.READ_ERROR
    assert machine.no_error(0.0) is Step.COUNT
    assert machine.counted(0, 0.0) is Step.RELEASE
    assert machine.released(0.0).outcome is CloseOutcome.NOT_CONNECTED


def test_delivery_is_detected_without_the_peers_fin() -> None:
    machine = deaf(asking(until=DELIVERED))
    assert machine.counted(0, 0.0) is Step.RELEASE
    assert machine.released(0.0).outcome is DELIVERED


def test_an_end_without_a_reset_is_counted_again_without_a_wait() -> None:
    # The count was read before the end. One segment had the FIN's acknowledgement and the
    # peer's FIN, and the kernel sends no more events after it.
    machine = deaf()
    machine.counted(9, 0.0)
    machine.woke(1.0)
    assert machine.looked(OVER, 1.0) is Step.READ_ERROR
    assert machine.no_error(1.0) is Step.COUNT
    assert machine.counted(0, 1.0) is Step.RELEASE
    assert machine.released(1.0).outcome is PEER_CLOSED


def test_an_end_that_was_no_reset_is_counted_anew_only_once_before_the_next_wait() -> None:
    machine = deaf()
    machine.counted(9, 0.0)
    machine.woke(1.0)
    machine.looked(OVER, 1.0)
    machine.no_error(1.0)
    assert machine.counted(9, 1.0) is Step.READ_ERROR
    assert machine.no_error(1.0) is Step.WAIT_ACK
    assert machine.woke(2.0) is Step.COUNT, "the end was seen, and is not looked for"


@pytest.mark.parametrize("seen", [OPEN, FIN_SENT, PEER_FIN, BOTH_FINS])
def test_a_count_after_another_holder_disconnected_the_socket_is_not_reported(
    seen: TcpState,
) -> None:
    machine = Teardown(asking(), 0.0, LINUX)
    if begin(machine, state=seen) is Step.SHUT_WR:
        machine.shut(0.0)
    assert machine.failed(RESET, 0.1) is Step.COUNT
    assert machine.counted(65_538, 0.1) is Step.LOOK
    assert machine.looked(NEVER_OPEN, 0.1) is Step.RELEASE
    assert end_of(machine, "unacked", 0.1) == (CloseOutcome.PEER_RESET, None)


def test_a_disconnected_socket_whose_error_another_reader_took_was_reset() -> None:
    machine = draining()
    assert machine.failed(NOT_CONNECTED, 0.1) is Step.COUNT
    assert machine.counted(65_538, 0.1) is Step.LOOK
    assert machine.looked(NEVER_OPEN, 0.1) is Step.RELEASE
    assert end_of(machine, "unacked", 0.1) == (CloseOutcome.PEER_RESET, None)


def test_a_connection_without_af_unspec_is_not_reported_as_disconnected() -> None:
    machine = draining(view=BSD)
    machine.failed(NOT_CONNECTED, 0.1)
    assert machine.released(0.1).outcome is CloseOutcome.NOT_CONNECTED


def test_a_count_of_a_socket_that_was_disconnected_after_the_peers_fin_is_not_reported() -> (
    None
):
    machine = after_the_peers_fin()
    assert machine.counted(65_538, 5.0) is Step.READ_ERROR
    assert machine.no_error(5.0) is Step.LOOK, "another reader has taken the error"
    assert machine.looked(NEVER_OPEN, 5.0) is Step.RELEASE
    assert end_of(machine, "unacked", 5.0) == (CloseOutcome.TIMED_OUT, None)


@pytest.mark.parametrize("taken", [False, True])
def test_a_socket_that_is_disconnected_between_a_read_and_the_look_was_reset(
    taken: bool,
) -> None:
    machine = draining()
    assert end_of_stream(machine, state=NEVER_OPEN) is Step.READ_ERROR
    if taken:
        assert machine.no_error(0.1) is Step.COUNT
    else:
        assert machine.failed(RESET, 0.1) is Step.COUNT
    assert machine.counted(65_538, 0.1) is Step.RELEASE
    result = machine.released(0.1)
    assert (result.outcome, result.unacked) == (CloseOutcome.PEER_RESET, None)
    assert result.error is not None
    assert result.error.errno == errno.ECONNRESET


def test_where_nothing_ends_the_wake_ups_there_is_no_watch_and_time_wakes_it() -> None:
    machine = silent(asking(until=DELIVERED), BSD)
    machine.counted(5, 0.0)
    assert machine.cannot_watch(0.0) is Step.WAIT_READABLE
    steps: list[Step] = []
    for _ in range(8):
        assert woke_without_input(machine, 0.0) is Step.COUNT
        steps.append(machine.counted(5, 0.0))
    assert steps[0] is Step.WAIT_READABLE
    assert steps[-1] is Step.PAUSE


def test_an_acknowledgement_ends_the_suspicion() -> None:
    machine = silent(asking(until=DELIVERED))
    machine.counted(100, 0.0)
    for count in range(99, 90, -1):
        assert woke_to_count(machine, count, 0.0) is Step.WAIT_ACK


def test_in_a_handshake_the_machine_does_not_request_a_count() -> None:
    machine = draining(asking(until=DELIVERED), state=ACCEPTING)
    assert machine.would_block(0.0) is Step.LOOK
    assert machine.looked(ACCEPTING, 0.0) is Step.WAIT_ACK
    assert woke_without_input(machine, 0.1) is Step.LOOK
    assert machine.looked(FIN_SENT, 0.1) is Step.COUNT, "the handshake is finished"
    assert machine.counted(5, 0.1) is Step.WAIT_ACK
    assert machine.woke(0.2, readable=False) is Step.COUNT
    assert machine.counted(0, 0.2) is Step.RELEASE
    assert machine.released(0.2).outcome is DELIVERED


def test_the_peers_fin_is_seen_after_a_handshake_that_was_counted_late() -> None:
    machine = draining(asking(until=DELIVERED), state=ACCEPTING)
    assert machine.would_block(0.0) is Step.LOOK
    assert machine.looked(FIN_SENT, 0.0) is Step.COUNT
    assert machine.counted(5, 0.0) is Step.WAIT_ACK
    machine.woke(0.1)
    assert end_of_stream(machine, 0.1) is Step.COUNT
    assert machine.counted(5, 0.1) is Step.READ_ERROR
    assert machine.no_error(0.1) is Step.WAIT_ACK
    assert machine.woke(0.2) is Step.COUNT, "there is nothing more to read"


def test_a_handshake_that_does_not_finish_times_out_with_an_unknown_count() -> None:
    machine = draining(asking(1.0), state=ACCEPTING)
    assert machine.would_block(0.0) is Step.WAIT_READABLE
    assert woke_without_input(machine, 1.0) is Step.LOOK
    assert machine.looked(ACCEPTING, 1.0) is Step.RELEASE
    assert end_of(machine, "unacked", 1.0) == (CloseOutcome.TIMED_OUT, None)


# --- the release ------------------------------------------------------------------------------


def test_without_counts_the_kernel_lingers_for_the_remaining_time() -> None:
    machine = begun(asking(until=DELIVERED), WINDOWS, 10.0)
    machine.shut(10.0)
    assert machine.received(100, 10.0) is Step.WAIT_READABLE
    assert woke_without_input(machine, 11.5) is Step.RELEASE
    assert machine.linger_policy is LingerPolicy.TIMED
    assert machine.linger_seconds == 3.5
    assert end_of(machine, "unacked", 12.0) == (CloseOutcome.TIMED_OUT, None)


def test_a_reset_that_the_lingering_close_reports_is_a_reset() -> None:
    machine = silent(asking(until=DELIVERED), WINDOWS)
    assert machine.released(0.1, RESET).outcome is CloseOutcome.PEER_RESET


@pytest.mark.parametrize(
    ("left", "policy"), [(0.5, LingerPolicy.TIMED), (0.0, LingerPolicy.BACKGROUND)]
)
def test_where_nothing_can_be_seen_and_no_time_is_left_the_kernel_does_not_linger(
    left: float, policy: LingerPolicy
) -> None:
    machine = draining(asking(until=DELIVERED), WINDOWS)
    assert machine.would_block(5.0 - left) is Step.RELEASE
    assert (machine.linger_policy, machine.linger_seconds) == (policy, left)


@pytest.mark.parametrize("error", [OSError(errno.EINTR, "interrupted"), RESET])
def test_an_error_of_a_close_without_linger_does_not_change_the_outcome(error: OSError) -> None:
    machine = after_the_peers_fin()
    machine.counted(0, 0.0)
    result = machine.released(0.0, error)
    assert (result.outcome, result.error) == (PEER_CLOSED, error)


@pytest.mark.parametrize("policy", [LingerPolicy.BACKGROUND, LingerPolicy.ABORT])
def test_a_timeout_ends_with_the_policy_of_on_timeout(policy: LingerPolicy) -> None:
    machine = silent(asking(1.0, on_timeout=policy), OTHER)
    assert woke_without_input(machine, 1.0) is Step.RELEASE
    assert machine.linger_policy is policy


def test_a_look_that_was_not_asked_for_changes_no_outcome() -> None:
    machine = draining()
    assert machine.failed(LOST, 0.0) is Step.COUNT
    assert machine.looked(BOTH_FINS, 0.0) is Step.RELEASE
    assert machine.released(0.0).outcome is CloseOutcome.TIMED_OUT


def test_a_descriptor_that_another_thread_closed_is_reported_as_already_closed() -> None:
    machine = begun()
    assert machine.shut(0.0, OSError(errno.EBADF, "closed")) is Step.RELEASE
    assert machine.released(0.0).outcome is CloseOutcome.ALREADY_CLOSED


def test_a_machine_without_a_step_reports_already_closed() -> None:
    machine = Teardown(asking(), 0.0, LINUX, unflushed=True)
    assert machine.released(0.25) == already_closed(0.25)


def test_an_error_that_only_a_bug_can_cause_is_raised() -> None:
    machine = draining()
    with pytest.raises(OSError, match="fault"):
        machine.failed(OSError(errno.EFAULT, "fault"), 0.0)


@pytest.mark.parametrize(
    "number",
    [
        errno.ETIMEDOUT,
        errno.EHOSTUNREACH,
        errno.EACCES,
        errno.EIO,
        errno.ECONNABORTED,
        errno.EPROTO,
        4242,
        None,
    ],
)
def test_any_other_error_is_reported_as_a_timeout(number: int | None) -> None:
    error = OSError(number, "played") if number is not None else OSError("no number")
    machine = draining()
    assert machine.failed(error, 0.5) is Step.COUNT
    machine.counted(3, 0.5)
    assert machine.released(0.5) == CloseResult(CloseOutcome.TIMED_OUT, 0.5, 0, 3, error)


@pytest.mark.parametrize("view", [LINUX, BSD, WINDOWS, OTHER, MPTCP])
def test_econnrefused_on_a_connection_is_an_icmp_message(view: View) -> None:
    machine = draining(view=view)
    if machine.failed(REFUSED, 0.5) is Step.COUNT:
        machine.counted(3, 0.5)
    assert end_of(machine, "error", 0.5) == (CloseOutcome.TIMED_OUT, REFUSED)


@pytest.mark.parametrize("view", [WINDOWS, OTHER])
def test_silence_does_not_abort_without_counts(view: View) -> None:
    options = asking(5.0, idle_timeout=1.0, on_timeout=LingerPolicy.ABORT)
    machine = draining(options, view)
    assert machine.would_block(0.0) is Step.WAIT_READABLE
    assert machine.wake_at == 1.0
    assert woke_without_input(machine, 1.0) is Step.RELEASE
    assert machine.linger_policy is LingerPolicy.BACKGROUND
    assert machine.released(1.0).outcome is CloseOutcome.IDLE_TIMED_OUT


def test_silence_aborts_with_counts() -> None:
    machine = silent(asking(5.0, idle_timeout=1.0, on_timeout=LingerPolicy.ABORT))
    machine.counted(7, 0.0)
    assert woke_to_count(machine, 7, 1.0) is Step.RELEASE
    assert machine.linger_policy is LingerPolicy.ABORT


def test_a_driver_of_many_never_lingers_in_the_kernel() -> None:
    machine = begun(asking(until=DELIVERED), WINDOWS, one_of_many=True)
    machine.shut(0.0)
    assert machine.would_block(0.0) is Step.WAIT_READABLE
    assert woke_without_input(machine, 5.0) is Step.RELEASE
    assert machine.linger_policy is LingerPolicy.BACKGROUND


def test_a_driver_that_must_end_chooses_the_policy() -> None:
    machine = silent()
    assert machine.time_is_up(1.0, LingerPolicy.ABORT) is Step.DRAIN
    assert machine.would_block(1.0) is Step.COUNT
    assert machine.counted(7, 1.0) is Step.RELEASE
    assert machine.linger_policy is LingerPolicy.ABORT
    assert machine.released(1.0) == CloseResult(
        CloseOutcome.TIMED_OUT, 1.0, 0, 7, None, peer_first=False
    )


def test_data_in_a_makefile_object_makes_the_result_unclean() -> None:
    machine = draining(view=OTHER, unflushed=True)
    machine.received(0, 0.0)
    result = machine.released(0.0)
    assert (result.outcome, result.unflushed, result.clean) == (PEER_CLOSED, True, False)


def test_the_result_has_the_peers_address() -> None:
    machine = begun(view=OTHER)
    machine.peer = ("192.0.2.1", 80)
    machine.shut(0.0)
    machine.received(0, 0.0)
    assert machine.released(0.0).peer == ("192.0.2.1", 80)
