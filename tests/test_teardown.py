"""The machine, without sockets: whatever happens, in whatever order, it keeps its promises."""

from __future__ import annotations

import errno
import itertools
import math
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graceful_close import CloseOutcome, CloseResult, LingerPolicy
from graceful_close._options import Options
from graceful_close._platform import SYSTEMS, TcpState, View
from graceful_close._step import Step
from graceful_close._teardown import Teardown, already_closed

LINUX = SYSTEMS["linux"].tcp
BSD = SYSTEMS["macos"].tcp
WINDOWS = SYSTEMS["windows"].tcp
OTHER = SYSTEMS["linux"].other  # AF_UNIX and the like
MPTCP = SYSTEMS["linux"].mptcp

RESET = OSError(errno.ECONNRESET, "reset")
NOT_CONNECTED = OSError(errno.ENOTCONN, "not connected")
LOST = OSError(errno.ETIMEDOUT, "lost")
REFUSED = OSError(errno.ECONNREFUSED, "refused")

DELIVERED: Final = CloseOutcome.DELIVERED
PEER_CLOSED: Final = CloseOutcome.PEER_CLOSED

LISTENING, CONNECTING, ACCEPTING = (
    TcpState.LISTENING,
    TcpState.CONNECTING,
    TcpState.ACCEPTING,
)
OPEN, FIN_SENT, PEER_FIN = TcpState.OPEN, TcpState.FIN_SENT, TcpState.PEER_FIN
BOTH_FINS, OVER, NEVER_OPEN = TcpState.BOTH_FINS, TcpState.OVER, TcpState.NEVER_OPEN


def asking(timeout: Any = 5.0, **options: Any) -> Options:
    return Options(timeout, **options)


def begin(machine: Teardown, now: float = 0.0, state: TcpState | None = OPEN) -> Step:
    """The first step after the look at the connection, which is only asked for where it shows."""
    step = machine.start()
    return machine.looked(state, now) if step is Step.LOOK else step


def begun(
    options: Options | None = None,
    view: View = LINUX,
    now: float = 0.0,
    state: TcpState | None = OPEN,
    **more: Any,
) -> Teardown:
    """A machine that asks for our FIN."""
    machine = Teardown(options or asking(), now, view, **more)
    assert begin(machine, now, state) is Step.SHUT_WR
    return machine


def end_of_stream(machine: Teardown, now: float = 0.0, state: TcpState = BOTH_FINS) -> Step:
    """recv() returns 0, and the state of the connection says why."""
    assert machine.received(0, now) is Step.LOOK
    return machine.looked(state, now)


# --- one story at a time ---------------------------------------------------------------------


def test_a_polite_peer() -> None:
    machine = Teardown(asking(), 100.0, LINUX)
    assert machine.start() is Step.LOOK
    assert machine.looked(OPEN, 100.0) is Step.SHUT_WR
    assert machine.shut(100.0) is Step.DRAIN
    assert machine.would_block(100.0) is Step.WAIT_READABLE
    assert machine.wake_at == 105.0
    assert machine.woke(100.1) is Step.DRAIN
    assert machine.received(5000, 100.1) is Step.WAIT_READABLE
    assert machine.woke(100.2) is Step.DRAIN
    assert machine.received(0, 100.2) is Step.LOOK
    assert machine.looked(BOTH_FINS, 100.2) is Step.COUNT
    assert machine.counted(0, 100.2) is Step.LET_GO
    assert machine.linger_policy is None
    assert not machine.wake_readers, "whoever reads has read the end of the stream"
    result = machine.released(100.25)
    assert result == CloseResult(PEER_CLOSED, 0.25, 5000, 0, None, peer_first=False)


def test_after_the_peers_fin_the_acknowledgement_is_waited_for() -> None:
    machine = begun()
    machine.shut(0.0)
    assert end_of_stream(machine) is Step.COUNT
    assert machine.counted(70_000, 0.0) is Step.READ_ERROR
    assert machine.no_error(0.0) is Step.WAIT_ACK
    assert machine.woke(1.0) is Step.COUNT
    assert machine.counted(1, 1.0) is Step.READ_ERROR
    assert machine.no_error(1.0) is Step.WAIT_ACK
    assert machine.woke(1.5) is Step.COUNT
    assert machine.counted(0, 1.5) is Step.LET_GO
    assert machine.released(1.5).outcome is PEER_CLOSED


def test_a_reset_after_the_peers_fin_is_found_though_recv_cannot_tell() -> None:
    machine = begun()
    machine.shut(0.0)
    end_of_stream(machine)
    assert machine.counted(70_000, 0.0) is Step.READ_ERROR
    assert machine.failed(OSError(errno.EPIPE, "broken"), 0.1) is Step.COUNT
    assert machine.counted(70_000, 0.1) is Step.LET_GO
    result = machine.released(0.1)
    assert (result.outcome, result.unacked) == (CloseOutcome.PEER_RESET, 70_000)


def test_enotconn_at_shutdown_is_not_taken_for_the_end_of_the_story() -> None:
    machine = begun(state=OVER)
    assert machine.shut(0.0, NOT_CONNECTED) is Step.DRAIN
    assert machine.failed(RESET, 0.0) is Step.COUNT
    assert machine.counted(12, 0.0) is Step.LET_GO
    assert machine.released(0.0) == CloseResult(CloseOutcome.PEER_RESET, 0.0, 0, 12, RESET)


def test_enotconn_at_shutdown_and_at_recv_is_no_connection() -> None:
    machine = begun(state=NEVER_OPEN)
    machine.shut(0.0, NOT_CONNECTED)
    machine.failed(NOT_CONNECTED, 0.0)
    machine.counted(None, 0.0)
    assert machine.released(0.0).outcome is CloseOutcome.NOT_CONNECTED


def test_a_connection_that_was_over_before_the_call_is_not_called_a_success() -> None:
    machine = begun(state=OVER)
    machine.shut(0.0, NOT_CONNECTED)
    assert machine.received(0, 0.0) is Step.READ_ERROR
    assert machine.no_error(0.0) is Step.COUNT
    assert machine.counted(0, 0.0) is Step.LET_GO
    result = machine.released(0.0)
    assert (result.outcome, result.error) == (CloseOutcome.NOT_CONNECTED, NOT_CONNECTED)


def test_a_reset_before_the_call_shows_in_the_pending_error_alone() -> None:
    machine = begun(state=OVER)
    machine.shut(0.0, NOT_CONNECTED)
    assert machine.received(0, 0.0) is Step.READ_ERROR
    assert machine.failed(OSError(errno.EPIPE, "broken"), 0.0) is Step.COUNT
    machine.counted(8, 0.0)
    assert machine.released(0.0).outcome is CloseOutcome.PEER_RESET


@pytest.mark.parametrize("sign_of_life", ["data", "silence"])
def test_enotconn_at_a_second_shutdown_on_macos_is_no_error(sign_of_life: str) -> None:
    machine = begun(view=BSD, state=None)
    machine.shut(0.0, NOT_CONNECTED)
    if sign_of_life == "data":
        assert machine.received(9, 0.0) is Step.WAIT_READABLE
    else:
        assert machine.would_block(0.0) is Step.WAIT_READABLE
    machine.woke(0.1)
    assert end_of_stream(machine, 0.1) is Step.COUNT
    assert machine.counted(0, 0.1) is Step.READ_ERROR
    assert machine.no_error(0.1) is Step.LET_GO
    result = machine.released(0.1)
    assert (result.outcome, result.error) == (PEER_CLOSED, None)


def test_a_fin_of_ours_that_was_seen_out_needs_no_other_sign_of_life() -> None:
    # The caller's shutdown() was before the call. A second one is not asked for: it would say
    # ENOTCONN on macOS.
    machine = Teardown(asking(), 0.0, BSD)
    assert begin(machine, state=FIN_SENT) is Step.DRAIN
    step = end_of_stream(machine)
    while step is not Step.LET_GO:
        step = machine.counted(0, 0.0) if step is Step.COUNT else machine.no_error(0.0)
    result = machine.released(0.0)
    assert (result.outcome, result.error) == (PEER_CLOSED, None)


def test_delivery_ends_at_the_acknowledgement_without_the_peers_fin() -> None:
    machine = begun(asking(until=DELIVERED))
    assert machine.shut(0.0) is Step.DRAIN
    assert machine.would_block(0.0) is Step.COUNT
    assert machine.counted(1000, 0.0) is Step.WAIT_ACK
    assert machine.woke(0.2) is Step.DRAIN
    assert machine.received(10, 0.2) is Step.DRAIN, "an edge must find nothing unread"
    assert machine.would_block(0.2) is Step.COUNT
    assert machine.counted(10, 0.2) is Step.WAIT_ACK
    assert machine.woke(0.2, readable=False) is Step.COUNT, "nothing came but the news"
    assert machine.counted(0, 0.2) is Step.LET_GO
    assert machine.linger_policy is LingerPolicy.BACKGROUND
    assert machine.wake_readers
    assert machine.released(0.2) == CloseResult(DELIVERED, 0.2, 10, 0, None, peer_first=False)


@pytest.mark.parametrize("view", [BSD, MPTCP])
def test_where_a_reset_empties_the_queue_zero_is_not_believed_before_the_error_is_read(
    view: View,
) -> None:
    machine = begun(asking(until=DELIVERED), view)
    machine.shut(0.0)
    machine.would_block(0.0)
    assert machine.counted(0, 0.0) is Step.READ_ERROR
    assert machine.failed(RESET, 0.0) is Step.LET_GO
    result = machine.released(0.0)
    assert (result.outcome, result.unacked) == (CloseOutcome.PEER_RESET, None)


def test_without_a_watch_the_acknowledgement_is_looked_for_after_growing_pauses() -> None:
    machine = begun(asking(until=DELIVERED), BSD)
    machine.shut(0.0)
    machine.would_block(0.0)
    assert machine.counted(5, 0.0) is Step.WAIT_ACK
    assert machine.cannot_watch(0.0) is Step.WAIT_READABLE
    pauses: list[float] = []
    now = 0.0
    while len(pauses) < 12:
        pauses.append(machine.wake_at - now)
        now = machine.wake_at
        assert machine.woke(now) is Step.DRAIN
        assert machine.would_block(now) is Step.COUNT
        assert machine.counted(5, now) is Step.WAIT_READABLE
    assert pauses[0] == pytest.approx(0.001)
    assert all(later > earlier - 1e-9 for earlier, later in itertools.pairwise(pauses))
    assert pauses[-1] == pytest.approx(0.05)
    machine.woke(now)
    machine.would_block(now)
    assert machine.counted(4, now) is Step.WAIT_READABLE
    assert machine.wake_at - now == pytest.approx(0.001), "progress starts the pauses again"
    machine.woke(4.9999)
    machine.would_block(4.9999)
    assert machine.counted(4, 4.9999) is Step.WAIT_READABLE
    assert machine.wake_at == 5.0, "a pause ends with the time"


def test_after_the_peers_fin_a_pause_does_not_wait_for_input_that_is_always_there() -> None:
    machine = begun(view=BSD)
    machine.shut(0.0)
    end_of_stream(machine)
    machine.counted(5, 0.0)
    assert machine.no_error(0.0) is Step.WAIT_ACK
    assert machine.cannot_watch(0.0) is Step.PAUSE
    assert machine.woke(0.001) is Step.COUNT


def test_where_nothing_can_be_seen_the_kernel_lingers_for_the_time_that_is_left() -> None:
    machine = begun(asking(until=DELIVERED), WINDOWS, 10.0)
    machine.shut(10.0)
    assert machine.received(100, 10.0) is Step.WAIT_READABLE
    assert machine.woke(11.5) is Step.DRAIN
    assert machine.would_block(11.5) is Step.LET_GO
    assert machine.linger_policy is LingerPolicy.TIMED
    assert machine.linger_seconds == 3.5
    result = machine.released(12.0)
    assert (result.outcome, result.unacked) == (CloseOutcome.TIMED_OUT, None)


def test_a_reset_that_the_lingering_close_reports_is_a_reset() -> None:
    machine = begun(asking(until=DELIVERED), WINDOWS)
    machine.shut(0.0)
    machine.would_block(0.0)
    assert machine.released(0.1, RESET).outcome is CloseOutcome.PEER_RESET


def test_what_close_complains_of_is_information_and_no_outcome() -> None:
    machine = begun()
    machine.shut(0.0)
    end_of_stream(machine)
    machine.counted(0, 0.0)
    interrupted = OSError(errno.EINTR, "interrupted")
    result = machine.released(0.0, interrupted)
    assert (result.outcome, result.error) == (PEER_CLOSED, interrupted)


def test_a_reset_that_close_complains_of_changes_nothing_where_it_did_not_linger() -> None:
    machine = begun()
    machine.shut(0.0)
    end_of_stream(machine)
    machine.counted(0, 0.0)
    assert machine.released(0.0, RESET).outcome is PEER_CLOSED


def test_a_stream_that_shows_no_acknowledgements_waits_for_the_peers_fin_instead() -> None:
    machine = begun(asking(until=DELIVERED), OTHER)
    machine.shut(0.0)
    assert machine.would_block(0.0) is Step.WAIT_READABLE
    machine.woke(0.0)
    assert machine.received(0, 0.0) is Step.LET_GO
    assert machine.linger_policy is LingerPolicy.BACKGROUND, "there may be something to send"
    assert machine.released(0.0) == CloseResult(PEER_CLOSED, 0.0, 0, None, None)


def test_a_count_is_not_believed_where_nobody_can_count() -> None:
    machine = begun(view=OTHER)
    machine.shut(0.0)
    machine.counted(1, 0.0)
    machine.received(0, 0.0)
    assert machine.released(0.0).unacked is None


def test_a_kernel_that_will_not_count_after_all_is_done_without() -> None:
    machine = begun(asking(until=DELIVERED))
    machine.shut(0.0)
    machine.would_block(0.0)
    assert machine.counted(None, 0.0) is Step.WAIT_READABLE
    machine.woke(0.0)
    assert end_of_stream(machine) is Step.COUNT
    assert machine.counted(None, 0.0) is Step.LET_GO
    assert machine.released(0.0) == CloseResult(
        PEER_CLOSED, 0.0, 0, None, None, peer_first=False
    )


def test_the_total_deadline_ends_a_flood_in_the_middle_of_it() -> None:
    machine = begun(asking(2.0))
    machine.shut(0.0)
    assert machine.received(1 << 20, 1.9) is Step.WAIT_READABLE
    assert machine.woke(1.9) is Step.DRAIN
    assert machine.received(1 << 20, 2.1) is Step.COUNT
    assert machine.counted(3, 2.1) is Step.LET_GO
    assert machine.released(2.1) == CloseResult(CloseOutcome.TIMED_OUT, 2.1, 2 << 20, 3, None)


def test_silence_ends_at_the_idle_deadline_and_not_before() -> None:
    machine = begun(asking(60.0, idle_timeout=2.0))
    machine.shut(0.0)
    assert machine.would_block(0.0) is Step.COUNT
    assert machine.counted(7, 0.0) is Step.WAIT_ACK
    assert machine.wake_at == 2.0
    machine.woke(1.0)
    assert machine.received(1, 1.0) is Step.DRAIN
    assert machine.would_block(1.0) is Step.COUNT
    assert machine.counted(7, 1.0) is Step.WAIT_ACK
    assert machine.wake_at == 3.0
    machine.woke(3.0)
    assert machine.would_block(3.0) is Step.COUNT
    assert machine.counted(7, 3.0) is Step.LET_GO
    result = machine.released(3.0)
    assert (result.outcome, result.unacked) == (CloseOutcome.IDLE_TIMED_OUT, 7)


def test_a_slow_reader_that_acknowledges_is_not_idle() -> None:
    machine = begun(asking(60.0, idle_timeout=2.0))
    machine.shut(0.0)
    machine.would_block(0.0)
    machine.counted(50_000, 0.0)
    for now in (2.0, 4.0, 6.0):
        assert machine.woke(now) is Step.DRAIN
        assert machine.would_block(now) is Step.COUNT
        assert machine.counted(50_000 - int(now), now) is Step.WAIT_ACK
        assert machine.wake_at == now + 2.0
    machine.woke(8.0)
    machine.would_block(8.0)
    machine.counted(50_000 - 6, 8.0)
    assert machine.released(8.0).outcome is CloseOutcome.IDLE_TIMED_OUT


def test_the_idle_time_begins_anew_when_the_last_acknowledgement_comes() -> None:
    machine = begun(asking(60.0, idle_timeout=2.0))
    machine.shut(0.0)
    machine.would_block(0.0)
    assert machine.counted(100, 0.0) is Step.WAIT_ACK
    assert machine.woke(0.1, readable=False) is Step.COUNT
    assert machine.counted(0, 0.1) is Step.WAIT_READABLE, "no more acknowledgements can come"
    assert machine.wake_at == 2.1


def test_without_a_watch_acknowledgements_are_noticed_when_the_idle_time_is_up() -> None:
    machine = begun(asking(60.0, idle_timeout=2.0), BSD)
    machine.shut(0.0)
    machine.would_block(0.0)
    assert machine.counted(100, 0.0) is Step.WAIT_ACK
    assert machine.cannot_watch(0.0) is Step.WAIT_READABLE
    assert machine.wake_at == 2.0
    machine.woke(2.0)
    machine.would_block(2.0)
    assert machine.counted(0, 2.0) is Step.WAIT_READABLE
    assert machine.wake_at == 4.0


def test_the_drain_limit_is_what_may_be_read_and_one_more_ends_it() -> None:
    machine = begun(asking(drain_limit=1000))
    assert machine.allowance == 1001
    machine.shut(0.0)
    assert machine.received(1000, 0.0) is Step.WAIT_READABLE
    assert machine.allowance == 1
    machine.woke(0.0)
    assert machine.received(1, 0.0) is Step.COUNT
    machine.counted(0, 0.0)
    result = machine.released(0.0)
    assert (result.outcome, result.drained) == (CloseOutcome.DRAIN_LIMIT, 1001)


@pytest.mark.parametrize("policy", [LingerPolicy.BACKGROUND, LingerPolicy.ABORT])
def test_giving_up_ends_as_on_timeout_says(policy: LingerPolicy) -> None:
    machine = begun(asking(1.0, on_timeout=policy), OTHER)
    machine.shut(0.0)
    machine.would_block(0.0)
    machine.woke(1.0)
    assert machine.would_block(1.0) is Step.LET_GO
    assert machine.linger_policy is policy


def test_a_connection_that_the_kernel_gave_up_has_timed_out_as_the_kernel_says() -> None:
    machine = begun()
    machine.shut(0.0)
    machine.failed(LOST, 0.0)
    machine.counted(4, 0.0)
    assert machine.released(0.0) == CloseResult(CloseOutcome.TIMED_OUT, 0.0, 0, 4, LOST)


def test_a_descriptor_that_another_thread_closed_is_already_closed() -> None:
    machine = begun()
    assert machine.shut(0.0, OSError(errno.EBADF, "closed")) is Step.LET_GO
    assert machine.released(0.0).outcome is CloseOutcome.ALREADY_CLOSED


def test_a_machine_that_was_never_asked_for_a_step_closed_what_was_closed_already() -> None:
    machine = Teardown(asking(), 0.0, LINUX, unflushed=True)
    assert machine.released(0.25) == already_closed(0.25)


def test_an_error_that_can_only_be_a_bug_of_ours_is_raised() -> None:
    machine = begun()
    machine.shut(0.0)
    with pytest.raises(OSError, match="fault"):
        machine.failed(OSError(errno.EFAULT, "fault"), 0.0)


@pytest.mark.parametrize(
    "number",
    [errno.EHOSTUNREACH, errno.EACCES, errno.EIO, errno.ECONNABORTED, errno.EPROTO, 4242, None],
)
def test_any_other_error_is_the_networks_way_to_give_up(number: int | None) -> None:
    error = OSError(number, "played") if number is not None else OSError("no number")
    machine = begun()
    machine.shut(0.0)
    assert machine.failed(error, 0.5) is Step.COUNT
    machine.counted(3, 0.5)
    assert machine.released(0.5) == CloseResult(CloseOutcome.TIMED_OUT, 0.5, 0, 3, error)


@pytest.mark.parametrize("view", [LINUX, BSD, WINDOWS, OTHER, MPTCP])
def test_a_refusal_on_a_connection_is_an_icmp_message(view: View) -> None:
    machine = begun(view=view)
    machine.shut(0.0)
    if machine.failed(REFUSED, 0.5) is Step.COUNT:
        machine.counted(3, 0.5)
    result = machine.released(0.5)
    assert (result.outcome, result.error) == (CloseOutcome.TIMED_OUT, REFUSED)


@pytest.mark.parametrize("view", [LINUX, WINDOWS])
def test_a_refusal_is_an_icmp_message_before_our_fin_too_if_the_peer_has_spoken(
    view: View,
) -> None:
    machine = Teardown(asking(peer_first=1.0), 0.0, view)
    assert begin(machine) is Step.DRAIN
    assert machine.received(10, 0.0) is Step.WAIT_READABLE
    machine.woke(0.1)
    if machine.failed(REFUSED, 0.1) is Step.COUNT:
        machine.counted(3, 0.1)
    result = machine.released(0.1)
    assert (result.outcome, result.error) == (CloseOutcome.TIMED_OUT, REFUSED)


def test_a_connect_that_was_refused_made_no_connection() -> None:
    machine = begun(view=WINDOWS)
    assert machine.shut(0.0, NOT_CONNECTED) is Step.DRAIN
    assert machine.failed(REFUSED, 0.0) is Step.LET_GO
    assert machine.released(0.0).outcome is CloseOutcome.NOT_CONNECTED
    machine = begun(state=NEVER_OPEN)
    assert machine.shut(0.0, NOT_CONNECTED) is Step.DRAIN
    assert machine.failed(REFUSED, 0.0) is Step.COUNT
    assert machine.counted(0, 0.0) is Step.LET_GO
    assert machine.released(0.0).outcome is CloseOutcome.NOT_CONNECTED


@pytest.mark.parametrize("view", [WINDOWS, OTHER])
def test_silence_aborts_nothing_where_slowness_looks_the_same(view: View) -> None:
    options = asking(5.0, idle_timeout=1.0, on_timeout=LingerPolicy.ABORT)
    machine = begun(options, view)
    machine.shut(0.0)
    assert machine.would_block(0.0) is Step.WAIT_READABLE
    assert machine.wake_at == 1.0
    machine.woke(1.0)
    assert machine.would_block(1.0) is Step.LET_GO
    assert machine.linger_policy is LingerPolicy.BACKGROUND
    assert machine.released(1.0).outcome is CloseOutcome.IDLE_TIMED_OUT


def test_silence_aborts_where_acknowledgements_would_have_been_seen() -> None:
    machine = begun(asking(5.0, idle_timeout=1.0, on_timeout=LingerPolicy.ABORT))
    machine.shut(0.0)
    machine.would_block(0.0)
    machine.counted(7, 0.0)
    machine.woke(1.0)
    machine.would_block(1.0)
    assert machine.counted(7, 1.0) is Step.LET_GO
    assert machine.linger_policy is LingerPolicy.ABORT


# --- where a connection stands -----------------------------------------------------------------


@pytest.mark.parametrize("view", [WINDOWS, OTHER, MPTCP])
def test_where_no_state_is_shown_nobody_looks(view: View) -> None:
    assert Teardown(asking(), 0.0, view).start() is Step.SHUT_WR


@pytest.mark.parametrize("abort", [False, True])
@pytest.mark.parametrize("tls", [False, True])
def test_a_listener_has_no_connection_to_end_and_nothing_unacknowledged(
    abort: bool, tls: bool
) -> None:
    machine = Teardown(asking(), 0.0, LINUX, tls=tls, abort=abort)
    assert begin(machine, state=LISTENING) is Step.LET_GO
    assert machine.linger_policy is None
    result = machine.released(0.0)
    assert (result.outcome, result.unacked) == (CloseOutcome.NOT_CONNECTED, 0)
    assert result.clean


@pytest.mark.parametrize("abort", [False, True])
def test_a_connect_under_way_is_given_up_and_what_it_held_is_unknown(abort: bool) -> None:
    machine = Teardown(asking(), 0.0, LINUX, abort=abort)
    assert begin(machine, state=CONNECTING) is Step.LET_GO
    result = machine.released(0.0)
    assert (result.outcome, result.unacked) == (CloseOutcome.NOT_CONNECTED, None)


@pytest.mark.parametrize("end", ["an error", "the end of the stream", "no error"])
def test_whatever_a_socket_that_never_connected_says_it_is_not_connected(end: str) -> None:
    machine = begun(state=NEVER_OPEN)
    machine.shut(0.0, NOT_CONNECTED)
    if end == "an error":
        assert machine.failed(RESET, 0.0) is Step.COUNT
    else:
        assert machine.received(0, 0.0) is Step.READ_ERROR
        step = machine.no_error(0.0) if end == "no error" else machine.failed(LOST, 0.0)
        assert step is Step.COUNT
    assert machine.counted(8, 0.0) is Step.LET_GO
    result = machine.released(0.0)
    assert result.outcome is CloseOutcome.NOT_CONNECTED
    assert result.unacked is None, "a count of what never was a connection means nothing"


def test_a_connection_that_never_opened_is_no_peers_end_though_our_fin_is_out() -> None:
    # A Fast Open server's: the handshake was reset, and somebody has read the error.
    machine = Teardown(asking(), 0.0, LINUX, fin_sent=True)
    step = begin(machine, state=NEVER_OPEN)
    assert step is Step.READ_ERROR
    while step is not Step.LET_GO:
        step = machine.counted(0, 0.0) if step is Step.COUNT else machine.no_error(0.0)
    assert machine.released(0.0).outcome is CloseOutcome.NOT_CONNECTED


def test_a_count_in_a_handshake_that_failed_delivers_nothing() -> None:
    machine = begun(asking(until=DELIVERED), state=ACCEPTING)
    assert machine.shut(0.0) is Step.DRAIN
    step = end_of_stream(machine, state=NEVER_OPEN)
    while step is not Step.LET_GO and step not in WAITS:
        step = machine.counted(0, 0.0) if step is Step.COUNT else machine.no_error(0.0)
    if step is Step.LET_GO:
        assert machine.released(0.0).outcome is CloseOutcome.NOT_CONNECTED


def test_a_kernel_that_shows_open_after_our_fin_does_not_tell() -> None:
    # gVisor: the end of the stream is all the proof that there is.
    machine = begun()
    machine.shut(0.0)
    machine.would_block(0.0)
    machine.woke(1.0)
    assert end_of_stream(machine, 1.0, state=OPEN) is Step.COUNT
    assert machine.counted(None, 1.0) is Step.LET_GO
    assert machine.released(1.0).outcome is PEER_CLOSED


def test_a_state_that_cannot_be_known_leaves_the_end_of_the_stream_as_proof() -> None:
    machine = Teardown(asking(), 0.0, LINUX)
    machine.start()
    assert machine.looked(None, 0.0) is Step.SHUT_WR
    machine.shut(0.0)
    assert machine.received(0, 0.0) is Step.LOOK
    assert machine.looked(None, 0.0) is Step.COUNT
    assert machine.counted(0, 0.0) is Step.LET_GO
    result = machine.released(0.0)
    assert (result.outcome, result.peer_first) == (PEER_CLOSED, None)


# --- recv() returns 0 and the peer's FIN has not come: the caller's own shutdown(SHUT_RD) ---------


def test_the_end_of_the_stream_is_no_fin_while_the_connection_says_otherwise() -> None:
    machine = begun()
    machine.shut(0.0)
    assert end_of_stream(machine, state=FIN_SENT) is Step.COUNT
    assert machine.counted(70_000, 0.0) is Step.WAIT_ACK, "readable for good: this would spin"
    assert machine.wake_at == 5.0
    assert machine.woke(1.0) is Step.LOOK
    assert machine.looked(FIN_SENT, 1.0) is Step.COUNT
    assert machine.counted(0, 1.0) is Step.WAIT_ACK
    assert machine.woke(2.0) is Step.LOOK
    assert machine.looked(BOTH_FINS, 2.0) is Step.COUNT
    assert machine.counted(0, 2.0) is Step.LET_GO
    result = machine.released(2.0)
    assert (result.outcome, result.peer_first) == (PEER_CLOSED, None)


def test_without_a_watch_a_fin_that_recv_cannot_show_is_looked_for_after_pauses() -> None:
    machine = begun()
    machine.shut(0.0)
    end_of_stream(machine, state=FIN_SENT)
    assert machine.counted(0, 0.0) is Step.WAIT_ACK
    assert machine.cannot_watch(0.0) is Step.PAUSE
    assert machine.wake_at == pytest.approx(0.001)
    assert machine.woke(0.001) is Step.LOOK


def test_where_recv_cannot_show_a_fin_the_deadline_ends_the_wait_for_it() -> None:
    machine = begun()
    machine.shut(0.0)
    end_of_stream(machine, state=FIN_SENT)
    machine.counted(4, 0.0)
    assert machine.woke(5.0) is Step.LOOK
    assert machine.looked(FIN_SENT, 5.0) is Step.COUNT
    assert machine.counted(4, 5.0) is Step.LET_GO
    assert machine.released(5.0) == CloseResult(CloseOutcome.TIMED_OUT, 5.0, 0, 4, None)


def test_delivery_is_seen_though_the_peers_fin_is_not() -> None:
    machine = begun(asking(until=DELIVERED))
    machine.shut(0.0)
    end_of_stream(machine, state=FIN_SENT)
    assert machine.counted(0, 0.0) is Step.LET_GO
    assert machine.released(0.0).outcome is DELIVERED


def test_an_end_that_came_while_nobody_could_hear_it_may_have_been_a_reset() -> None:
    machine = begun()
    machine.shut(0.0)
    end_of_stream(machine, state=FIN_SENT)
    machine.counted(9, 0.0)
    machine.woke(1.0)
    assert machine.looked(OVER, 1.0) is Step.READ_ERROR
    assert machine.failed(RESET, 1.0) is Step.COUNT
    machine.counted(9, 1.0)
    assert machine.released(1.0).outcome is CloseOutcome.PEER_RESET


def test_an_end_that_was_no_reset_is_counted_anew_and_not_waited_for() -> None:
    # The count is from before the end: the FIN's acknowledgement and the peer's FIN came in one
    # segment, after which the kernel wakes nobody any more.
    machine = begun()
    machine.shut(0.0)
    end_of_stream(machine, state=FIN_SENT)
    machine.counted(9, 0.0)
    machine.woke(1.0)
    assert machine.looked(OVER, 1.0) is Step.READ_ERROR
    assert machine.no_error(1.0) is Step.COUNT
    assert machine.counted(0, 1.0) is Step.LET_GO
    assert machine.released(1.0).outcome is PEER_CLOSED


# --- TLS -----------------------------------------------------------------------------------------


def test_tls_says_goodbye_before_the_fin() -> None:
    machine = Teardown(asking(), 0.0, LINUX, tls=True)
    assert begin(machine) is Step.SEND_CLOSE_NOTIFY
    assert machine.notify_would_block(0.0) is Step.DRAIN
    assert machine.would_block(0.0) is Step.WAIT_EITHER
    assert machine.wake_at == 5.0
    assert machine.woke(1.0) is Step.SEND_CLOSE_NOTIFY
    assert machine.notified(True, 1.0, received=False) is Step.SHUT_WR
    assert machine.shut(1.0) is Step.DRAIN
    assert end_of_stream(machine, 1.0) is Step.COUNT
    assert machine.counted(0, 1.0) is Step.LET_GO
    result = machine.released(1.0)
    assert result.notified
    assert result.peer_notified is False


@pytest.mark.parametrize("received", [None, True, False])
def test_what_was_heard_before_our_close_notify_is_kept_unless_more_is_known(
    received: bool | None,
) -> None:
    machine = Teardown(asking(), 0.0, OTHER, tls=True)
    machine.peer_close_notify(True)
    machine.start()
    machine.notified(True, 0.0, received)
    machine.shut(0.0)
    machine.received(0, 0.0)
    assert machine.released(0.0).peer_notified is (True if received is None else received)


def test_a_session_that_was_none_is_no_news() -> None:
    machine = Teardown(asking(), 0.0, OTHER, tls=True)
    machine.start()
    assert machine.notified(None, 0.0) is Step.SHUT_WR
    machine.shut(0.0)
    machine.received(0, 0.0)
    assert machine.released(0.0).notified is None


def test_a_connection_that_fails_before_the_close_notify_was_not_notified() -> None:
    machine = Teardown(asking(), 0.0, LINUX, tls=True)
    begin(machine)
    assert machine.failed(RESET, 0.0) is Step.COUNT
    assert machine.counted(12, 0.0) is Step.LET_GO
    result = machine.released(0.0)
    assert (result.outcome, result.notified) == (CloseOutcome.PEER_RESET, False)


def test_a_close_notify_that_waits_for_room_lets_the_peer_finish_meanwhile() -> None:
    machine = Teardown(asking(), 0.0, LINUX, tls=True)
    begin(machine)
    machine.notify_would_block(0.0)
    assert machine.received(70_000, 0.0) is Step.WAIT_EITHER
    assert machine.woke(0.5) is Step.SEND_CLOSE_NOTIFY
    assert machine.notify_would_block(0.5) is Step.DRAIN
    step = end_of_stream(machine, 0.5, PEER_FIN)
    assert step is Step.WAIT_WRITABLE, "readable for good: this would spin"
    assert machine.woke(1.0) is Step.SEND_CLOSE_NOTIFY
    assert machine.notified(True, 1.0) is Step.SHUT_WR
    assert machine.shut(1.0) is Step.COUNT
    assert machine.counted(0, 1.0) is Step.LET_GO
    result = machine.released(1.0)
    assert result.outcome is PEER_CLOSED
    assert result.drained == 70_000


def test_a_peer_whose_fin_came_while_close_notify_waited_for_room_was_first() -> None:
    machine = Teardown(asking(), 0.0, LINUX, tls=True)
    begin(machine)
    machine.notify_would_block(0.0)
    end_of_stream(machine, 0.5, PEER_FIN)
    machine.notified(True, 1.0)
    machine.shut(1.0)
    machine.counted(0, 1.0)
    assert machine.released(1.0).peer_first is True


def test_a_close_notify_waits_for_room_alone_where_recv_cannot_show_a_fin() -> None:
    machine = Teardown(asking(), 0.0, LINUX, tls=True)
    begin(machine)
    assert machine.notify_would_block(0.0) is Step.DRAIN
    assert end_of_stream(machine, state=OPEN) is Step.WAIT_WRITABLE
    assert machine.woke(0.5) is Step.SEND_CLOSE_NOTIFY
    assert machine.notify_would_block(0.5) is Step.WAIT_WRITABLE, "there is nothing to read"
    assert machine.woke(0.6) is Step.SEND_CLOSE_NOTIFY
    assert machine.notified(True, 0.6) is Step.SHUT_WR


@pytest.mark.parametrize("moment", ["at the wait", "at the write"])
def test_a_close_notify_that_finds_no_room_in_time_is_left_out(moment: str) -> None:
    machine = Teardown(asking(1.0), 0.0, LINUX, tls=True)
    begin(machine)
    machine.notify_would_block(0.0)
    step = machine.woke(1.0) if moment == "at the wait" else machine.notify_would_block(1.0)
    assert step is Step.SHUT_WR
    assert machine.shut(1.0) is Step.DRAIN
    assert machine.would_block(1.0) is Step.COUNT
    assert machine.counted(9, 1.0) is Step.LET_GO
    result = machine.released(1.0)
    assert result.outcome is CloseOutcome.TIMED_OUT
    assert result.notified is False


def test_acknowledgements_are_signs_of_life_while_close_notify_waits_for_room() -> None:
    machine = Teardown(asking(60.0, idle_timeout=1.0), 0.0, LINUX, tls=True)
    begin(machine)
    assert machine.notify_would_block(0.0) is Step.DRAIN
    assert machine.would_block(0.0) is Step.COUNT
    assert machine.counted(9_000, 0.0) is Step.WAIT_EITHER
    for second in (1.0, 2.0, 3.0):
        assert machine.wake_at == second
        assert machine.woke(second) is Step.SEND_CLOSE_NOTIFY
        assert machine.notify_would_block(second) is Step.DRAIN
        assert machine.would_block(second) is Step.COUNT
        assert machine.counted(9_000 - int(second), second) is Step.WAIT_EITHER
    machine.woke(4.0)
    machine.notify_would_block(4.0)
    machine.would_block(4.0)
    assert machine.counted(9_000 - 3, 4.0) is Step.SHUT_WR, "nothing more for a second"


# --- one of many -----------------------------------------------------------------------------------


def test_a_driver_of_many_waits_before_it_reads() -> None:
    machine = begun(one_of_many=True)
    assert machine.shut(0.0) is Step.WAIT_READABLE
    assert machine.wake_at == 5.0
    assert machine.woke(1.0) is Step.DRAIN


def test_a_driver_of_many_reads_at_once_what_is_known_to_be_there() -> None:
    machine = begun(one_of_many=True, state=PEER_FIN)
    assert machine.shut(0.0) is Step.DRAIN


def test_a_driver_of_many_is_never_held_up_by_the_kernels_linger() -> None:
    machine = begun(asking(until=DELIVERED), WINDOWS, one_of_many=True)
    machine.shut(0.0)
    assert machine.would_block(0.0) is Step.WAIT_READABLE
    assert machine.woke(5.0) is Step.DRAIN
    assert machine.would_block(5.0) is Step.LET_GO
    assert machine.linger_policy is LingerPolicy.BACKGROUND


@pytest.mark.parametrize("options", [{"idle_timeout": 1.0}, {"until": DELIVERED}])
def test_a_driver_of_many_reads_first_where_a_count_is_needed(options: Any) -> None:
    machine = begun(asking(**options), one_of_many=True)
    assert machine.shut(0.0) is Step.DRAIN


def test_a_driver_that_can_wait_no_longer_decides_how_to_end() -> None:
    machine = begun()
    machine.shut(0.0)
    machine.would_block(0.0)
    assert machine.time_is_up(1.0, LingerPolicy.ABORT) is Step.DRAIN
    assert machine.would_block(1.0) is Step.COUNT
    assert machine.counted(7, 1.0) is Step.LET_GO
    assert machine.linger_policy is LingerPolicy.ABORT
    assert machine.released(1.0) == CloseResult(
        CloseOutcome.TIMED_OUT, 1.0, 0, 7, None, peer_first=False
    )


def test_a_fin_that_came_just_in_time_is_seen_when_the_driver_can_wait_no_longer() -> None:
    machine = begun()
    machine.shut(0.0)
    machine.would_block(0.0)
    machine.time_is_up(1.0, LingerPolicy.ABORT)
    end_of_stream(machine, 1.0)
    machine.counted(0, 1.0)
    assert machine.released(1.0).outcome is PEER_CLOSED


# --- an abort ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", [LINUX, BSD, WINDOWS, OTHER, MPTCP])
@pytest.mark.parametrize("tls", [False, True])
def test_an_abort_looks_counts_and_resets(view: View, tls: bool) -> None:
    # Under TLS too: a close_notify would tell the peer that the message is whole.
    machine = Teardown(asking(), 0.0, view, abort=True, tls=tls)
    assert machine.start() is Step.LOOK
    step = machine.looked(OPEN, 0.0)
    if view.acks is not None:
        assert step is Step.COUNT
        step = machine.counted(70_000, 0.0)
    assert step is Step.LET_GO
    assert machine.linger_policy is LingerPolicy.ABORT
    unacked = None if view.acks is None else 70_000
    assert machine.released(0.0) == CloseResult(CloseOutcome.ABORTED, 0.0, 0, unacked, None)


@pytest.mark.parametrize(
    ("state", "peer_first"), [(FIN_SENT, False), (PEER_FIN, True), (BOTH_FINS, False)]
)
def test_an_abort_says_who_had_begun_to_end_it(state: TcpState, peer_first: bool) -> None:
    machine = Teardown(asking(), 0.0, LINUX, abort=True)
    assert begin(machine, state=state) is Step.COUNT
    assert machine.counted(0, 0.0) is Step.LET_GO
    result = machine.released(0.0)
    assert (result.outcome, result.peer_first) == (CloseOutcome.ABORTED, peer_first)


def test_an_abort_of_what_is_over_finds_out_what_ended_it() -> None:
    machine = Teardown(asking(), 0.0, LINUX, abort=True)
    assert begin(machine, state=OVER) is Step.READ_ERROR
    assert machine.failed(RESET, 0.0) is Step.COUNT
    assert machine.counted(5, 0.0) is Step.LET_GO
    assert machine.linger_policy is None
    assert machine.released(0.0) == CloseResult(CloseOutcome.PEER_RESET, 0.0, 0, 5, RESET)


@pytest.mark.parametrize("state", [OVER, NEVER_OPEN])
@pytest.mark.parametrize("error", [None, NOT_CONNECTED, LOST, REFUSED])
def test_an_abort_of_what_no_reset_ended_had_nothing_to_abort(
    state: TcpState, error: OSError | None
) -> None:
    machine = Teardown(asking(), 0.0, LINUX, abort=True)
    assert begin(machine, state=state) is Step.READ_ERROR
    step = machine.no_error(0.0) if error is None else machine.failed(error, 0.0)
    assert step is Step.COUNT
    assert machine.counted(0, 0.0) is Step.LET_GO
    result = machine.released(0.0)
    assert (result.outcome, result.error) == (CloseOutcome.NOT_CONNECTED, error)


def test_an_abort_of_a_descriptor_that_another_thread_closed_is_already_closed() -> None:
    machine = Teardown(asking(), 0.0, LINUX, abort=True)
    assert begin(machine, state=OVER) is Step.READ_ERROR
    assert machine.failed(OSError(errno.EBADF, "closed"), 0.0) is Step.LET_GO
    assert machine.released(0.0).outcome is CloseOutcome.ALREADY_CLOSED


def test_an_abort_in_a_handshake_counts_if_the_kernel_does_by_now() -> None:
    machine = Teardown(asking(), 0.0, LINUX, abort=True)
    assert begin(machine, state=ACCEPTING) is Step.LOOK
    assert machine.looked(OPEN, 0.0) is Step.COUNT
    assert machine.counted(7, 0.0) is Step.LET_GO
    assert machine.released(0.0).unacked == 7
    machine = Teardown(asking(), 0.0, LINUX, abort=True)
    assert begin(machine, state=ACCEPTING) is Step.LOOK
    assert machine.looked(ACCEPTING, 0.0) is Step.LET_GO
    assert machine.linger_policy is LingerPolicy.ABORT
    assert machine.released(0.0).unacked is None


# --- the peer first ------------------------------------------------------------------------------------


def test_a_peer_that_ends_in_time_is_first() -> None:
    machine = Teardown(asking(peer_first=1.0), 10.0, LINUX)
    assert machine.start() is Step.LOOK
    assert machine.looked(OPEN, 10.0) is Step.DRAIN
    assert machine.would_block(10.0) is Step.WAIT_READABLE
    assert machine.wake_at == 11.0
    assert machine.woke(10.2) is Step.DRAIN
    assert machine.received(100, 10.2) is Step.WAIT_READABLE
    assert machine.wake_at == 11.0, "what it sends buys no time"
    assert machine.woke(10.3) is Step.DRAIN
    assert end_of_stream(machine, 10.3, PEER_FIN) is Step.SHUT_WR
    assert machine.shut(10.3) is Step.COUNT, "there is nothing more to read"
    assert machine.counted(1, 10.3) is Step.READ_ERROR
    assert machine.no_error(10.3) is Step.WAIT_ACK
    assert machine.woke(10.4) is Step.COUNT
    assert machine.counted(0, 10.4) is Step.LET_GO
    result = machine.released(10.5)
    assert result == CloseResult(PEER_CLOSED, 0.5, 100, 0, None, peer_first=True)


def test_a_peer_that_lets_its_time_pass_is_not_first() -> None:
    machine = Teardown(asking(peer_first=1.0), 0.0, LINUX)
    begin(machine)
    machine.would_block(0.0)
    assert machine.woke(1.0) is Step.DRAIN
    assert machine.would_block(1.0) is Step.SHUT_WR
    assert machine.shut(1.0) is Step.DRAIN
    assert machine.would_block(1.0) is Step.WAIT_READABLE
    assert machine.wake_at == 5.0
    machine.woke(1.5)
    assert end_of_stream(machine, 1.5) is Step.COUNT
    machine.counted(0, 1.5)
    result = machine.released(1.5)
    assert (result.outcome, result.peer_first) == (PEER_CLOSED, False)


@pytest.mark.parametrize("options", [{"timeout": 0.5}, {"timeout": 5.0, "idle_timeout": 0.5}])
def test_letting_the_peer_be_first_is_bounded_by_all_the_other_times(options: Any) -> None:
    machine = Teardown(asking(peer_first=60.0, **options), 0.0, LINUX)
    begin(machine)
    assert machine.would_block(0.0) is Step.WAIT_READABLE
    assert machine.wake_at == 0.5
    machine.woke(0.5)
    assert machine.would_block(0.5) is Step.SHUT_WR, "our FIN goes out all the same"


def test_a_peer_that_was_first_before_the_call_is_not_waited_for() -> None:
    machine = Teardown(asking(peer_first=1.0), 0.0, LINUX)
    begin(machine, state=PEER_FIN)
    assert machine.received(0, 0.0) is Step.SHUT_WR
    assert machine.shut(0.0) is Step.COUNT
    assert machine.counted(0, 0.0) is Step.LET_GO
    assert machine.released(0.0).peer_first is True


@pytest.mark.parametrize("peer_first", [0.0, 1.0])
@pytest.mark.parametrize("state", [FIN_SENT, BOTH_FINS])
def test_a_caller_who_was_first_before_the_call_stays_so(
    state: TcpState, peer_first: float
) -> None:
    machine = Teardown(asking(peer_first=peer_first), 0.0, LINUX)
    assert begin(machine, state=state) is Step.DRAIN, "our FIN is out, and nobody is waited for"
    assert end_of_stream(machine) is Step.COUNT
    assert machine.counted(0, 0.0) is Step.LET_GO
    assert machine.released(0.0).peer_first is False


def test_where_no_state_is_shown_the_peer_may_be_first_but_nobody_says_so() -> None:
    machine = Teardown(asking(peer_first=1.0), 0.0, WINDOWS)
    assert machine.start() is Step.DRAIN
    assert machine.would_block(0.0) is Step.WAIT_READABLE
    machine.woke(0.5)
    assert machine.received(0, 0.5) is Step.SHUT_WR
    assert machine.shut(0.5) is Step.LET_GO
    result = machine.released(0.5)
    assert (result.outcome, result.peer_first) == (PEER_CLOSED, None)


def test_close_notify_goes_out_before_the_peer_is_let_be_first() -> None:
    machine = Teardown(asking(peer_first=1.0), 0.0, LINUX, tls=True)
    assert begin(machine) is Step.SEND_CLOSE_NOTIFY
    assert machine.notified(True, 0.0) is Step.DRAIN
    assert machine.would_block(0.0) is Step.WAIT_READABLE
    assert machine.wake_at == 1.0


def test_more_than_may_be_drained_ends_it_before_our_fin_too() -> None:
    machine = Teardown(asking(peer_first=1.0, drain_limit=10), 0.0, LINUX)
    begin(machine)
    assert machine.received(11, 0.0) is Step.COUNT
    assert machine.counted(3, 0.0) is Step.LET_GO
    assert machine.released(0.0).outcome is CloseOutcome.DRAIN_LIMIT


def test_a_first_fin_that_recv_cannot_show_is_watched_for() -> None:
    machine = Teardown(asking(peer_first=1.0), 0.0, LINUX)
    begin(machine)
    assert end_of_stream(machine, state=OPEN) is Step.WAIT_ACK
    assert machine.wake_at == 1.0
    assert machine.woke(0.5) is Step.LOOK
    assert machine.looked(PEER_FIN, 0.5) is Step.SHUT_WR
    assert machine.shut(0.5) is Step.COUNT
    machine.counted(0, 0.5)
    assert machine.released(0.5).peer_first is True


def test_without_a_watch_a_first_fin_that_recv_cannot_show_is_looked_for_no_longer() -> None:
    machine = Teardown(asking(peer_first=1.0, idle_timeout=0.5), 0.0, LINUX)
    begin(machine)
    assert end_of_stream(machine, state=OPEN) is Step.WAIT_ACK
    assert machine.cannot_watch(0.0) is Step.PAUSE
    assert machine.woke(0.4999) is Step.LOOK
    assert machine.looked(OPEN, 0.4999) is Step.PAUSE
    assert machine.wake_at == 0.5
    assert machine.woke(0.5) is Step.LOOK
    step = machine.looked(OPEN, 0.5)
    if step is Step.CLEAR_ERRORS:
        step = machine.cleared(0.5)
    assert step is Step.SHUT_WR


def test_a_watch_that_is_not_to_be_had_keeps_no_fin_of_ours_back() -> None:
    machine = Teardown(asking(peer_first=1.0, idle_timeout=0.5), 0.0, LINUX)
    begin(machine)
    assert end_of_stream(machine, state=OPEN) is Step.WAIT_ACK
    assert machine.cannot_watch(0.5) is Step.SHUT_WR, "as every other end of this phase"


def test_a_first_wait_that_ends_without_input_says_nothing_of_what_is_acknowledged() -> None:
    # Of everything: our FIN is not out, so that nothing can be called delivered.
    machine = Teardown(asking(peer_first=1.0, until=DELIVERED), 0.0, LINUX)
    begin(machine)
    assert machine.would_block(0.0) is Step.WAIT_READABLE
    step = machine.woke(0.5, readable=False)
    if step is Step.COUNT:
        step = machine.counted(0, 0.5)
    assert step is not Step.LET_GO


# --- wake-ups that bring nothing -----------------------------------------------------------------------


def test_an_error_queue_that_wakes_every_wait_is_emptied() -> None:
    machine = begun()
    machine.shut(0.0)
    machine.would_block(0.0)
    assert machine.woke(0.0) is Step.DRAIN
    assert machine.would_block(0.0) is Step.WAIT_READABLE, "one is another reader's work"
    assert machine.woke(0.0) is Step.DRAIN
    assert machine.would_block(0.0) is Step.CLEAR_ERRORS
    assert machine.cleared(0.0) is Step.WAIT_READABLE
    assert machine.woke(0.1) is Step.DRAIN
    assert machine.received(10, 0.1) is Step.WAIT_READABLE


@pytest.mark.parametrize("view", [LINUX, BSD, WINDOWS, OTHER, MPTCP])
@pytest.mark.parametrize("phase", ["peer first", "drain"])
def test_where_nothing_ends_the_wake_ups_time_wakes_it_instead(view: View, phase: str) -> None:
    machine = Teardown(asking(peer_first=5.0 if phase == "peer first" else 0), 0.0, view)
    if begin(machine) is Step.SHUT_WR:
        machine.shut(0.0)
    steps = [machine.would_block(0.0)]
    for _ in range(8):
        assert machine.woke(0.0) is Step.DRAIN
        step = machine.would_block(0.0)
        if step is Step.CLEAR_ERRORS:
            step = machine.cleared(0.0)
        steps.append(step)
    assert Step.PAUSE in steps
    assert steps[-1] is Step.PAUSE
    assert machine.wake_at > 0.0


def test_input_ends_the_suspicion() -> None:
    machine = begun()
    machine.shut(0.0)
    machine.would_block(0.0)
    for _ in range(10):
        assert machine.woke(0.0) is Step.DRAIN
        assert machine.would_block(0.0) is Step.WAIT_READABLE
        assert machine.woke(0.0) is Step.DRAIN
        assert machine.received(1, 0.0) is Step.WAIT_READABLE


# --- a FIN that the driver has sent, and what a makefile() object holds ---------------------------------


@pytest.mark.parametrize("state", [OPEN, FIN_SENT, BOTH_FINS, PEER_FIN])
def test_a_fin_that_the_driver_sent_is_not_sent_again(state: TcpState) -> None:
    machine = Teardown(asking(), 0.0, LINUX, fin_sent=True)
    assert begin(machine, state=state) is Step.DRAIN


@pytest.mark.parametrize(("view", "state"), [(LINUX, OPEN), (LINUX, FIN_SENT), (OTHER, OPEN)])
def test_a_fin_that_the_driver_sent_makes_it_too_late_for_the_peer_to_be_first(
    view: View, state: TcpState
) -> None:
    # OPEN after our FIN is a kernel that does not tell. Nothing is waited for in vain, nor sent
    # a second time.
    machine = Teardown(asking(peer_first=1.0), 0.0, view, fin_sent=True)
    assert begin(machine, state=state) is Step.DRAIN
    assert machine.would_block(0.0) is Step.WAIT_READABLE
    assert machine.wake_at == 5.0


def test_a_driver_that_sent_the_fin_learns_that_the_connection_is_over() -> None:
    machine = Teardown(asking(), 0.0, LINUX, fin_sent=True)
    assert begin(machine, state=OVER) is Step.DRAIN
    assert machine.received(0, 0.0) is Step.COUNT
    assert machine.counted(0, 0.0) is Step.LET_GO
    assert machine.released(0.0).outcome is PEER_CLOSED


def test_what_a_makefile_object_holds_back_is_no_clean_end() -> None:
    machine = begun(view=OTHER, unflushed=True)
    machine.shut(0.0)
    machine.received(0, 0.0)
    result = machine.released(0.0)
    assert (result.outcome, result.unflushed, result.clean) == (PEER_CLOSED, True, False)


def test_the_peer_is_named_in_the_result() -> None:
    machine = begun(view=OTHER)
    machine.peer = ("192.0.2.1", 80)
    machine.shut(0.0)
    machine.received(0, 0.0)
    assert machine.released(0.0).peer == ("192.0.2.1", 80)


# --- TCP Fast Open: a server's connection before the handshake is finished --------------------------------


def test_in_a_handshake_the_kernels_zero_is_not_asked_for() -> None:
    machine = begun(asking(until=DELIVERED), state=ACCEPTING)
    assert machine.shut(0.0) is Step.DRAIN
    assert machine.would_block(0.0) is Step.LOOK
    assert machine.looked(ACCEPTING, 0.0) is Step.WAIT_ACK
    assert machine.woke(0.1) is Step.DRAIN
    assert machine.would_block(0.1) is Step.LOOK
    assert machine.looked(FIN_SENT, 0.1) is Step.COUNT, "the handshake is finished"
    assert machine.counted(5, 0.1) is Step.WAIT_ACK
    assert machine.woke(0.2, readable=False) is Step.COUNT
    assert machine.counted(0, 0.2) is Step.LET_GO
    assert machine.released(0.2).outcome is DELIVERED


def test_a_handshake_that_does_not_finish_times_out_with_nothing_counted() -> None:
    machine = begun(asking(1.0), state=ACCEPTING)
    machine.shut(0.0)
    assert machine.would_block(0.0) is Step.WAIT_READABLE
    machine.woke(1.0)
    assert machine.would_block(1.0) is Step.LOOK
    assert machine.looked(ACCEPTING, 1.0) is Step.LET_GO
    result = machine.released(1.0)
    assert (result.outcome, result.unacked) == (CloseOutcome.TIMED_OUT, None)


def test_a_close_notify_in_a_handshake_waits_for_room_uncounted() -> None:
    machine = Teardown(asking(idle_timeout=1.0), 0.0, LINUX, tls=True)
    begin(machine, state=ACCEPTING)
    assert machine.notify_would_block(0.0) is Step.DRAIN
    assert machine.would_block(0.0) is Step.LOOK
    assert machine.looked(ACCEPTING, 0.0) is Step.WAIT_EITHER


# --- every story -------------------------------------------------------------------------------

WAITS = {Step.WAIT_READABLE, Step.WAIT_WRITABLE, Step.WAIT_EITHER, Step.WAIT_ACK, Step.PAUSE}

ERRORS = st.sampled_from(
    [
        errno.ECONNRESET,
        errno.EPIPE,
        errno.ENOTCONN,
        errno.ETIMEDOUT,
        errno.EBADF,
        errno.ECONNREFUSED,
        errno.EHOSTUNREACH,
        4242,
    ]
).map(lambda number: OSError(number, "played"))

VIEWS = st.sampled_from([LINUX, BSD, WINDOWS, OTHER, MPTCP])

ANY_OPTIONS = st.builds(
    Options,
    st.sampled_from([0, 0.5, 5.0]),
    st.sampled_from([None, 0, 0.25, 2.0]),
    st.sampled_from([None, 0, 10, 10_000]),
    st.sampled_from([PEER_CLOSED, DELIVERED]),
    st.sampled_from([LingerPolicy.BACKGROUND, LingerPolicy.ABORT]),
    st.sampled_from([0, 0.3, 60.0]),
)

DRIVERS = st.fixed_dictionaries(
    {name: st.booleans() for name in ("tls", "one_of_many", "abort", "unflushed", "fin_sent")}
)

# A driver that has sent our FIN aborts no more.
SENSIBLE_DRIVERS = DRIVERS.filter(lambda more: not (more["abort"] and more["fin_sent"]))

_RESETS = {errno.ECONNRESET, errno.EPIPE}
_PEER_FIN_SEEN = {PEER_FIN, BOTH_FINS, OVER}


class Proofs:
    """What the reports have shown so far, and so which outcomes can be right."""

    def __init__(self, view: View, *, abort: bool, fin_sent: bool) -> None:
        self.view = view
        self.abort = abort
        self.fin_sent = fin_sent
        self.state: TcpState | None = None
        self.peer_fin = self.delivered = self.reset = self.end_of_stream = False

    def looked(self, state: TcpState | None) -> None:
        # OPEN after our FIN is what a kernel shows that does not tell.
        self.state = None if state is OPEN and self.fin_sent else state
        if self.state in _PEER_FIN_SEEN:
            self.peer_fin = True
        self._judge()

    def received_nothing(self) -> None:
        self.end_of_stream = True
        self._judge()

    def _judge(self) -> None:
        if self.end_of_stream and (self.view.state is None or self.state is None):
            self.peer_fin = True

    def counted(self, count: int | None) -> None:
        counts = self.state not in {ACCEPTING, NEVER_OPEN}
        if count == 0 and self.view.acks is not None and counts:
            self.delivered = True

    def failed(self, error: OSError | None) -> None:
        if error is not None and error.errno in _RESETS:
            self.reset = True

    def hold(self, outcome: CloseOutcome) -> bool:
        return {
            PEER_CLOSED: self.peer_fin,
            DELIVERED: self.delivered,
            CloseOutcome.PEER_RESET: self.reset,
            CloseOutcome.ABORTED: self.abort,
        }.get(outcome, True)


class World:
    """Answers each step as some network could, and checks each promise as it goes."""

    def __init__(
        self, data: st.DataObject, options: Options, view: View, driver: dict[str, bool]
    ) -> None:
        self.data, self.options, self.view, self.driver = data, options, view, driver
        self.now = self.life = 1000.0
        self.deadline = 1000.0 + options.timeout
        self.machine = Teardown(options, self.now, view, **driver)
        self.proofs = Proofs(view, abort=driver["abort"], fin_sent=driver["fin_sent"])
        self.fin_seen = False  # and said by the machine to be the peer's
        self.ours_was_asked = False
        self.last_count: int | None = None
        self.drained = 0
        self.early_wakes = 10

    def draw(self, strategy: st.SearchStrategy[Any]) -> Any:
        return self.data.draw(strategy)

    def play(self) -> CloseResult:
        step = self.machine.start()
        late = 0
        for _ in range(1000):
            if step is Step.LET_GO:
                return self.machine.released(self.now)
            # The sequence from the last word of TLS to LET_GO, with no wait in it.
            late += self.now >= self.deadline
            assert late <= 20, "the time was up long ago"
            self.now += self.draw(st.sampled_from([0.02, 0.1]))
            step = self.answer(step)
        raise AssertionError("the close never ended")

    def answer(self, step: Step) -> Step:
        match step:
            case Step.LOOK:
                shown = list(TcpState) if self.view.state is not None else [OPEN, OVER]
                state = self.draw(st.none() | st.sampled_from(shown))
                self.proofs.looked(state)
                return self.machine.looked(state, self.now)
            case Step.SEND_CLOSE_NOTIFY:
                if self.draw(st.booleans()):
                    return self.machine.notify_would_block(self.now)
                sent = self.draw(st.sampled_from([None, True, False]))
                return self.machine.notified(sent, self.now, self.draw(st.none()))
            case Step.SHUT_WR:
                assert not self.ours_was_asked, "one FIN is enough"
                self.ours_was_asked = True
                # shutdown() finds no connection where there never was one (shutdown(2)).
                never = self.proofs.state is NEVER_OPEN
                error = self.draw(ERRORS if never else st.none() | ERRORS)
                self.proofs.failed(error)
                self.proofs.fin_sent = self.proofs.fin_sent or error is None
                return self.machine.shut(self.now, error)
            case Step.DRAIN:
                return self.drain()
            case Step.COUNT:
                return self.count()
            case Step.READ_ERROR:
                error = self.draw(st.none() | ERRORS)
                if error is None:
                    return self.machine.no_error(self.now)
                return self.fail(error)
            case Step.CLEAR_ERRORS:
                assert self.view.error_queue
                return self.machine.cleared(self.now)
            case Step.WAIT_ACK if self.draw(st.booleans()):
                return self.machine.cannot_watch(self.now)
            case _:
                return self.wait(step)

    def count(self) -> Step:
        assert self.proofs.state is not ACCEPTING, "the kernel says 0 and means nothing"
        count = self.draw(st.sampled_from([None, 0, 0, 1, 500, 70_000]))
        self.proofs.counted(count)
        if self.proofs.state is NEVER_OPEN and count != 0:
            count = None
        if count is not None and self.last_count is not None and count < self.last_count:
            self.life = self.now
        self.last_count = count
        return self.machine.counted(count, self.now)

    def drain(self) -> Step:
        allowance = self.machine.allowance
        assert allowance is None or allowance > 0
        # After a shutdown(SHUT_RD) of the caller's it may be asked for more than once.
        kinds = ["data", "nothing", "nothing", "end", "error"]
        what = "end" if self.proofs.end_of_stream else self.draw(st.sampled_from(kinds))
        if what == "data":
            most = 100_000 if allowance is None else min(allowance, 100_000)
            count = self.draw(st.integers(1, most))
            self.drained += count
            self.life = self.now
            self.proofs.fin_sent = self.proofs.fin_sent or self.ours_was_asked
            return self.machine.received(count, self.now)
        if what == "nothing":
            self.proofs.fin_sent = self.proofs.fin_sent or self.ours_was_asked
            return self.machine.would_block(self.now)
        if what == "end":
            self.proofs.received_nothing()
            return self.machine.received(0, self.now)
        return self.fail(self.draw(ERRORS))

    def fail(self, error: OSError) -> Step:
        self.proofs.failed(error)
        return self.machine.failed(error, self.now)

    def wait(self, step: Step) -> Step:
        assert step in WAITS
        assert not self.driver["abort"], "an abort never waits"
        wake_at = self.machine.wake_at
        assert wake_at <= self.deadline
        if step is not Step.WAIT_WRITABLE:
            assert wake_at <= self.life + self.options.idle_timeout
        if self.proofs.end_of_stream:
            spins = {Step.WAIT_READABLE, Step.WAIT_EITHER}
            assert step not in spins, "readable for good: this would spin"
        # Early, for nothing or for something, or at the end of the time.
        if self.early_wakes and self.draw(st.booleans()):
            self.early_wakes -= 1
        else:
            self.now = max(self.now, wake_at)
        if step is Step.WAIT_ACK:
            return self.machine.woke(self.now, readable=self.draw(st.booleans()))
        return self.machine.woke(self.now)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), ANY_OPTIONS, VIEWS, SENSIBLE_DRIVERS)
def test_no_network_makes_it_break_a_promise(
    data: st.DataObject, options: Options, view: View, driver: dict[str, bool]
) -> None:
    world = World(data, options, view, driver)
    result = world.play()
    assert result.elapsed >= 0
    assert result.drained == world.drained
    assert world.proofs.hold(result.outcome)
    match result.outcome:
        case CloseOutcome.PEER_CLOSED:
            assert result.unacked in {0, None}
        case CloseOutcome.DELIVERED:
            assert options.until is DELIVERED
            assert result.unacked == 0
            assert world.last_count == 0
        case CloseOutcome.TIMED_OUT if result.error is None:
            over = result.elapsed >= options.timeout
            assert over or world.machine.linger_policy is LingerPolicy.TIMED
        case CloseOutcome.IDLE_TIMED_OUT:
            assert world.now - world.life >= options.idle_timeout
            if view.acks is None:
                assert world.machine.linger_policy is LingerPolicy.BACKGROUND
        case CloseOutcome.DRAIN_LIMIT:
            assert options.drain_limit is not None
            assert result.drained == options.drain_limit + 1
        case CloseOutcome.PEER_RESET | CloseOutcome.ALREADY_CLOSED:
            assert result.error is not None
        case _:
            pass  # the proofs are all there is to say
    if result.unacked is not None:
        assert view.acks is not None or world.proofs.state is LISTENING
    assert result.unflushed is driver["unflushed"] or (
        result.outcome is CloseOutcome.ALREADY_CLOSED
    )
    if view.state is None:
        assert result.peer_first is None


REPORTS = st.sampled_from(
    ["looked", "notified", "blocked", "shut", "shut badly", "end", "data", "nothing", "cleared",
     "failed", "counted", "no error", "woke", "woke for nothing", "cannot watch", "time is up"]
)  # fmt: skip


def tell(
    machine: Teardown, report: str, now: float, data: st.DataObject, proofs: Proofs
) -> Step:
    match report:
        case "looked":
            state = data.draw(st.none() | st.sampled_from(TcpState))
            proofs.looked(state)
            return machine.looked(state, now)
        case "notified":
            return machine.notified(True, now)
        case "blocked":
            return machine.notify_would_block(now)
        case "shut":
            proofs.fin_sent = True
            return machine.shut(now)
        case "shut badly":
            error = data.draw(ERRORS)
            proofs.failed(error)
            return machine.shut(now, error)
        case "end":
            proofs.received_nothing()
            return machine.received(0, now)
        case "data":
            return machine.received(data.draw(st.integers(1, 20_000)), now)
        case "nothing":
            return machine.would_block(now)
        case "cleared":
            return machine.cleared(now)
        case "failed":
            error = data.draw(ERRORS)
            proofs.failed(error)
            return machine.failed(error, now)
        case "counted":
            count = data.draw(st.sampled_from([None, 0, 1, 9000]))
            proofs.counted(count)
            return machine.counted(count, now)
        case "no error":
            return machine.no_error(now)
        case "woke" | "woke for nothing":
            return machine.woke(now, readable=report == "woke")
        case "time is up":
            return machine.time_is_up(now, LingerPolicy.ABORT)
        case _:
            return machine.cannot_watch(now)


@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), ANY_OPTIONS, VIEWS, DRIVERS, st.lists(REPORTS, max_size=40))
def test_no_order_of_reports_at_all_makes_it_wait_too_long_or_go_on_after_the_end(
    data: st.DataObject,
    options: Options,
    view: View,
    driver: dict[str, bool],
    reports: list[str],
) -> None:
    now = 50.0
    machine = Teardown(options, now, view, **driver)
    proofs = Proofs(view, abort=driver["abort"], fin_sent=driver["fin_sent"])
    step = machine.start()
    ended: CloseResult | None = None
    for report in reports:
        now += data.draw(st.sampled_from([0.0, 0.01, 1.0]))
        step = tell(machine, report, now, data, proofs)
        if step in WAITS:
            assert machine.wake_at <= 50.0 + options.timeout
        if ended is not None:
            assert step is Step.LET_GO
            assert machine.released(0.0) == ended
        elif step is Step.LET_GO:
            ended = machine.released(0.0)
            if ended.outcome in {PEER_CLOSED, DELIVERED}:
                assert ended.unacked in {0, None}


# --- what may be asked for -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["timeout", "idle_timeout", "peer_first"])
@pytest.mark.parametrize("value", [-1, -0.001, math.inf, math.nan, 10**400])
def test_a_wait_is_finite_and_not_negative(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a finite number of seconds"):
        asking(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timeout", None),
        ("timeout", "5"),
        ("timeout", True),
        ("idle_timeout", "5"),
        ("peer_first", None),
    ],
)
def test_a_wait_is_a_number(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a finite number of seconds"):
        asking(**{name: value})


@pytest.mark.parametrize(
    ("value", "error"),
    [(-1, ValueError), (1.5, TypeError), (True, TypeError), ("9", TypeError)],
)
def test_a_drain_limit_is_a_whole_number_of_bytes(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"drain_limit must be"):
        Options(5.0, drain_limit=value)


def test_until_is_one_of_two_outcomes() -> None:
    with pytest.raises(
        ValueError, match=r"until must be CloseOutcome.PEER_CLOSED or .*DELIVERED, not"
    ):
        asking(until=CloseOutcome.ABORTED)


def test_on_timeout_is_one_of_two_policies() -> None:
    with pytest.raises(ValueError, match=r"on_timeout must be .*BACKGROUND or .*ABORT, not"):
        asking(on_timeout=LingerPolicy.TIMED)


def test_without_a_limit_the_drain_is_bounded_by_nothing_but_time() -> None:
    assert asking().limit == math.inf
    assert asking(drain_limit=0).limit == 0


# --- the flush ----------------------------------------------------------------------------------

HELD = 1000


def flushing(options: Options | None = None, **driver: Any) -> Teardown:
    machine = Teardown(options or asking(timeout=5), 0.0, LINUX, flush=True, **driver)
    assert machine.start() is Step.FLUSH
    assert machine.wake_at == 5
    return machine


def test_what_is_held_above_the_kernel_is_flushed_before_anything_else() -> None:
    machine = flushing()
    assert machine.flushing(0, 0, HELD, 1.0) is Step.FLUSH
    assert machine.flushed(0, 2.0, waited=True) is Step.LOOK
    assert machine.looked(OPEN, 2.0) is Step.SHUT_WR
    machine.shut(2.0)
    assert machine.wake_at == 7, "the rest has a time of its own"


def test_a_flush_that_took_no_time_leaves_the_deadline_as_it_was() -> None:
    machine = flushing()
    assert machine.flushed(0, 0.1, waited=False) is Step.LOOK
    machine.looked(OPEN, 0.1)
    machine.shut(0.1)
    assert machine.wake_at == 5


def test_a_reader_that_makes_progress_is_not_cut_off_by_the_total() -> None:
    machine = flushing()
    for turn in range(1, 100):
        assert machine.flushing(turn * 4096, 0, HELD, turn * 4.9) is Step.FLUSH
        assert machine.wake_at == pytest.approx(turn * 4.9 + 5)


def test_a_reader_of_a_byte_a_second_is_given_up() -> None:
    machine = flushing()
    for second in range(1, 5):
        assert machine.flushing(second, 0, HELD, float(second)) is Step.FLUSH
    assert machine.flushing(5, 0, HELD, 5.0) is Step.LOOK
    assert machine.looked(OPEN, 5.0) is Step.COUNT
    assert machine.counted(7, 5.0) is Step.LET_GO
    assert machine.linger_policy is LingerPolicy.ABORT, "the end would say that it was whole"
    result = machine.released(5.0)
    assert (result.outcome, result.unacked) == (CloseOutcome.TIMED_OUT, 7 + HELD)
    assert not result.clean


def test_a_peer_that_uploads_makes_progress_but_not_for_ever() -> None:
    machine = flushing()
    assert machine.flushing(0, 1 << 30, HELD, 4.0) is Step.FLUSH
    assert machine.flushing(0, 2 << 30, HELD, 8.0) is Step.FLUSH
    assert machine.flushing(0, 3 << 30, HELD, 9.0) is Step.LOOK


def test_silence_gives_a_flush_up_when_the_idle_time_is_shorter() -> None:
    options = asking(timeout=50, idle_timeout=5)
    machine = flushing(options)
    assert machine.flushing(0, 0, None, 5.0) is Step.LOOK
    machine.looked(OPEN, 5.0)
    assert machine.counted(7, 5.0) is Step.LET_GO
    result = machine.released(5.0)
    assert (result.outcome, result.unacked) == (CloseOutcome.IDLE_TIMED_OUT, None)


def test_what_is_drained_in_the_flush_counts_for_the_limit() -> None:
    machine = flushing(asking(timeout=5, drain_limit=100))
    assert machine.flushing(0, 100, HELD, 1.0) is Step.FLUSH
    assert machine.flushed(100, 1.0, waited=True) is Step.LOOK
    machine.looked(OPEN, 1.0)
    machine.shut(1.0)
    assert machine.allowance == 1
    machine.received(1, 1.0)
    machine.counted(0, 1.0)
    result = machine.released(1.0)
    assert (result.outcome, result.drained) == (CloseOutcome.DRAIN_LIMIT, 101)


def test_a_limit_that_is_passed_in_the_flush_ends_it_in_a_reset() -> None:
    machine = flushing(asking(timeout=5, drain_limit=100))
    assert machine.flushing(0, 101, HELD, 1.0) is Step.LOOK
    machine.looked(OPEN, 1.0)
    machine.counted(0, 1.0)
    assert machine.linger_policy is LingerPolicy.ABORT
    assert machine.released(1.0).outcome is CloseOutcome.DRAIN_LIMIT


def test_what_was_cut_short_ends_in_a_reset_and_not_notified() -> None:
    machine = flushing(tls=True)
    cut = OSError(errno.ECONNABORTED, "by the transport")
    assert machine.cut_short(HELD, cut, 1.0) is Step.LOOK
    assert machine.looked(OPEN, 1.0) is Step.COUNT
    assert machine.counted(0, 1.0) is Step.LET_GO
    assert machine.linger_policy is LingerPolicy.ABORT
    result = machine.released(1.0)
    assert (result.outcome, result.unacked, result.notified) == (
        CloseOutcome.TIMED_OUT,
        HELD,
        False,
    )
    assert result.error is cut


def test_a_reset_that_the_flush_has_not_met_is_told_when_it_is_given_up() -> None:
    machine = flushing()
    assert machine.flushing(0, 0, HELD, 5.0) is Step.LOOK
    assert machine.looked(TcpState.OVER, 5.0) is Step.READ_ERROR
    machine.failed(ConnectionResetError(errno.ECONNRESET, "reset"), 5.0)
    machine.counted(0, 5.0)
    assert machine.released(5.0).outcome is CloseOutcome.PEER_RESET


def test_a_close_notify_that_went_out_with_the_flush_is_not_asked_for_again() -> None:
    machine = flushing(tls=True)
    notified = True, None
    assert machine.flushed(0, 1.0, waited=True, fin_sent=True, notified=notified) is Step.LOOK
    assert machine.looked(FIN_SENT, 1.0) is not Step.SEND_CLOSE_NOTIFY


def test_time_is_up_in_a_flush() -> None:
    machine = flushing()
    assert machine.time_is_up(1.0, LingerPolicy.BACKGROUND) is Step.LOOK
    machine.looked(OPEN, 1.0)
    machine.counted(0, 1.0)
    assert machine.linger_policy is LingerPolicy.ABORT


def test_a_connection_that_stood_and_is_gone_was_reset() -> None:
    machine = Teardown(asking(timeout=5), 0.0, LINUX, stood=True)
    assert machine.start() is Step.LOOK
    machine.looked(TcpState.OVER, 1.0)
    machine.shut(1.0, OSError(errno.ENOTCONN, "not connected"))
    machine.received(0, 1.0)
    machine.no_error(1.0)
    machine.counted(0, 1.0)
    assert machine.released(1.0).outcome is CloseOutcome.PEER_RESET
