"""The state machine, without sockets: it keeps its guarantees for all events in any order."""

from __future__ import annotations

import errno
import math
from typing import Any, Final

import pytest

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
CUT_SHORT = OSError(errno.ECONNABORTED, "by the transport")

HELD = 1000  # bytes above the kernel

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
    """Begin, and return the first step after the look at the connection, if there is one."""
    step = machine.start()
    return machine.looked(state, now) if step is Step.LOOK else step


def begun(
    options: Options | None = None,
    view: View = LINUX,
    now: float = 0.0,
    state: TcpState | None = OPEN,
    **driver: Any,
) -> Teardown:
    """Return a machine whose next step is our FIN."""
    machine = Teardown(options or asking(), now, view, **driver)
    assert begin(machine, now, state) is Step.SHUT_WR
    return machine


def draining(
    options: Options | None = None,
    view: View = LINUX,
    error: OSError | None = None,
    **driver: Any,
) -> Teardown:
    """Return a machine that has sent our FIN, and reads; `error` is that of shutdown()."""
    machine = begun(options, view, **driver)
    assert machine.shut(0.0, error) is Step.DRAIN
    return machine


def silent(options: Options | None = None, view: View = LINUX, **driver: Any) -> Teardown:
    """Return a machine that has sent our FIN, and found no input."""
    machine = draining(options, view, **driver)
    machine.would_block(0.0)
    return machine


def after_the_peers_fin(options: Options | None = None, view: View = LINUX) -> Teardown:
    """Return a machine that has sent our FIN and read the peer's, and counts."""
    machine = draining(options, view)
    assert end_of_stream(machine) is Step.COUNT
    return machine


def deaf(options: Options | None = None) -> Teardown:
    """Return a machine that counts after an end of the stream that is not the peer's FIN."""
    machine = draining(options)
    assert end_of_stream(machine, state=FIN_SENT) is Step.COUNT
    return machine


def without_room(options: Options | None = None, state: TcpState = OPEN) -> Teardown:
    """Return a machine that reads because there was no room for its close_notify."""
    machine = Teardown(options or asking(), 0.0, LINUX, tls=True)
    assert begin(machine, state=state) is Step.SEND_CLOSE_NOTIFY
    assert machine.notify_would_block(0.0) is Step.DRAIN
    return machine


def letting_the_peer_be_first(**options: Any) -> Teardown:
    """Return a machine that reads before our FIN, for a second."""
    machine = Teardown(asking(peer_first=1.0, **options), 0.0, LINUX)
    assert begin(machine) is Step.DRAIN
    return machine


def flushing(options: Options | None = None, view: View = LINUX, **driver: Any) -> Teardown:
    machine = Teardown(options or asking(), 0.0, view, flush=True, **driver)
    assert machine.start() is Step.FLUSH
    return machine


def given_up(view: View = LINUX, **driver: Any) -> Teardown:
    """Return a machine whose flush has timed out, before the look at the connection."""
    machine = flushing(view=view, **driver)
    assert machine.flushing(0, 0, HELD, 5.0) is Step.LOOK
    return machine


def end_flush(machine: Teardown, drained: int, now: float, *, waited: bool = True) -> None:
    """Report the end of the flush, and our FIN."""
    assert machine.flushed(drained, now, waited=waited) is Step.LOOK
    assert machine.looked(OPEN, now) is Step.SHUT_WR
    machine.shut(now)


def after_our_fin_in_a_flush(options: Options | None = None, view: View = LINUX) -> Teardown:
    """Return a machine after a flush that took no time, and has sent our FIN."""
    machine = Teardown(options or asking(), 0.0, view, flush=True)
    machine.flushed(0, 0.0, waited=False, fin_sent=True)
    return machine


def without_input(machine: Teardown, now: float) -> Step:
    """Report a read that found nothing, and that the error queue was emptied if requested."""
    step = machine.would_block(now)
    return machine.cleared(now) if step is Step.CLEAR_ERRORS else step


def woke_without_input(machine: Teardown, now: float) -> Step:
    assert machine.woke(now) is Step.DRAIN
    return machine.would_block(now)


def woke_to_count(machine: Teardown, unacked: int, now: float) -> Step:
    """Report a wake-up without input, and the count."""
    assert woke_without_input(machine, now) is Step.COUNT
    return machine.counted(unacked, now)


def end_of_stream(machine: Teardown, now: float = 0.0, state: TcpState = BOTH_FINS) -> Step:
    """Report that recv() returned 0, then the state of the connection."""
    assert machine.received(0, now) is Step.LOOK
    return machine.looked(state, now)


def end_of(machine: Teardown, field: str, now: float = 0.0) -> tuple[CloseOutcome, Any]:
    """Release at LET_GO, and return the outcome and one more field of the result."""
    result = machine.released(now)
    return result.outcome, getattr(result, field)


# --- single sequences ---------------------------------------------------------------------


def test_a_peer_that_closes_is_reported_as_closed() -> None:
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
    assert not machine.wake_readers, "a driver that reads has read the end of the stream"
    result = machine.released(100.25)
    assert result == CloseResult(PEER_CLOSED, 0.25, 5000, 0, None, peer_first=False)


def test_the_machine_waits_for_the_acknowledgement_after_the_peers_fin() -> None:
    machine = after_the_peers_fin()
    assert machine.counted(70_000, 0.0) is Step.READ_ERROR
    assert machine.no_error(0.0) is Step.WAIT_ACK
    assert machine.woke(1.0) is Step.COUNT
    assert machine.counted(1, 1.0) is Step.READ_ERROR
    assert machine.no_error(1.0) is Step.WAIT_ACK
    assert machine.woke(1.5) is Step.COUNT
    assert machine.counted(0, 1.5) is Step.LET_GO
    assert machine.released(1.5).outcome is PEER_CLOSED


def test_a_reset_after_the_peers_fin_is_found_although_recv_does_not_report_it() -> None:
    machine = after_the_peers_fin()
    assert machine.counted(70_000, 0.0) is Step.READ_ERROR
    assert machine.failed(OSError(errno.EPIPE, "broken"), 0.1) is Step.COUNT
    assert machine.counted(70_000, 0.1) is Step.LOOK
    assert machine.looked(OVER, 0.1) is Step.LET_GO
    assert end_of(machine, "unacked", 0.1) == (CloseOutcome.PEER_RESET, 70_000)


def test_enotconn_at_shutdown_does_not_decide_the_outcome() -> None:
    machine = draining(state=OVER, error=NOT_CONNECTED)
    assert machine.failed(RESET, 0.0) is Step.COUNT
    assert machine.counted(12, 0.0) is Step.LOOK
    assert machine.looked(OVER, 0.0) is Step.LET_GO
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
    assert machine.counted(0, 0.0) is Step.LET_GO
    assert end_of(machine, "error") == (CloseOutcome.NOT_CONNECTED, NOT_CONNECTED)


def test_a_reset_before_the_call_is_found_in_the_pending_error() -> None:
    machine = draining(state=OVER, error=NOT_CONNECTED)
    assert machine.received(0, 0.0) is Step.READ_ERROR
    assert machine.failed(OSError(errno.EPIPE, "broken"), 0.0) is Step.COUNT
    machine.counted(8, 0.0)
    assert machine.released(0.0).outcome is CloseOutcome.PEER_RESET


@pytest.mark.parametrize("sign_of_life", ["data", "silence"])
def test_enotconn_at_a_second_shutdown_on_macos_is_not_an_error(sign_of_life: str) -> None:
    machine = draining(view=BSD, state=None, error=NOT_CONNECTED)
    if sign_of_life == "data":
        assert machine.received(9, 0.0) is Step.WAIT_READABLE
    else:
        assert machine.would_block(0.0) is Step.WAIT_READABLE
    machine.woke(0.1)
    assert end_of_stream(machine, 0.1) is Step.COUNT
    assert machine.counted(0, 0.1) is Step.READ_ERROR
    assert machine.no_error(0.1) is Step.LET_GO
    assert end_of(machine, "error", 0.1) == (PEER_CLOSED, None)


def test_a_fin_of_ours_before_the_call_proves_the_connection() -> None:
    # The caller called shutdown() before. The machine does not request a second one, which
    # raises ENOTCONN on macOS.
    machine = Teardown(asking(), 0.0, BSD)
    assert begin(machine, state=FIN_SENT) is Step.DRAIN
    step = end_of_stream(machine)
    while step is not Step.LET_GO:
        step = machine.counted(0, 0.0) if step is Step.COUNT else machine.no_error(0.0)
    assert end_of(machine, "error") == (PEER_CLOSED, None)


def test_delivery_ends_at_the_acknowledgement_without_the_peers_fin() -> None:
    machine = silent(asking(until=DELIVERED))
    assert machine.counted(1000, 0.0) is Step.WAIT_ACK
    assert machine.woke(0.2) is Step.DRAIN
    assert machine.received(10, 0.2) is Step.DRAIN, "an edge must find nothing unread"
    assert machine.would_block(0.2) is Step.COUNT
    assert machine.counted(10, 0.2) is Step.WAIT_ACK
    assert machine.woke(0.2, readable=False) is Step.COUNT, "only the acknowledgement arrived"
    assert machine.counted(0, 0.2) is Step.LET_GO
    assert machine.linger_policy is LingerPolicy.BACKGROUND
    assert machine.wake_readers
    assert machine.released(0.2) == CloseResult(DELIVERED, 0.2, 10, 0, None, peer_first=False)


@pytest.mark.parametrize("view", [BSD, MPTCP])
def test_a_count_of_0_needs_the_pending_error_on_systems_where_a_reset_clears_the_queue(
    view: View,
) -> None:
    machine = silent(asking(until=DELIVERED), view)
    assert machine.counted(0, 0.0) is Step.READ_ERROR
    assert machine.failed(RESET, 0.0) is Step.LET_GO
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


def test_without_counts_the_kernel_lingers_for_the_remaining_time() -> None:
    machine = begun(asking(until=DELIVERED), WINDOWS, 10.0)
    machine.shut(10.0)
    assert machine.received(100, 10.0) is Step.WAIT_READABLE
    assert woke_without_input(machine, 11.5) is Step.LET_GO
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
    assert machine.would_block(5.0 - left) is Step.LET_GO
    assert (machine.linger_policy, machine.linger_seconds) == (policy, left)


@pytest.mark.parametrize("error", [OSError(errno.EINTR, "interrupted"), RESET])
def test_an_error_of_a_close_without_linger_does_not_change_the_outcome(error: OSError) -> None:
    machine = after_the_peers_fin()
    machine.counted(0, 0.0)
    result = machine.released(0.0, error)
    assert (result.outcome, result.error) == (PEER_CLOSED, error)


def test_a_stream_without_acknowledgements_waits_for_the_peers_fin() -> None:
    machine = draining(asking(until=DELIVERED), OTHER)
    assert machine.would_block(0.0) is Step.WAIT_READABLE
    machine.woke(0.0)
    assert machine.received(0, 0.0) is Step.LET_GO
    assert machine.linger_policy is LingerPolicy.BACKGROUND, "there may be something to send"
    assert machine.released(0.0) == CloseResult(PEER_CLOSED, 0.0, 0, None, None)


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
    assert machine.counted(None, 0.0) is Step.LET_GO
    assert machine.released(0.0) == CloseResult(
        PEER_CLOSED, 0.0, 0, None, None, peer_first=False
    )


def test_the_deadline_ends_a_flood() -> None:
    machine = draining(asking(2.0))
    assert machine.received(1 << 20, 1.9) is Step.WAIT_READABLE
    assert machine.woke(1.9) is Step.DRAIN
    assert machine.received(1 << 20, 2.0) is Step.COUNT
    assert machine.counted(3, 2.0) is Step.LET_GO
    assert machine.released(2.0) == CloseResult(CloseOutcome.TIMED_OUT, 2.0, 2 << 20, 3, None)


def test_silence_ends_at_the_idle_deadline_and_not_before() -> None:
    machine = draining(asking(60.0, idle_timeout=2.0))
    assert machine.would_block(0.0) is Step.COUNT
    assert machine.counted(7, 0.0) is Step.WAIT_ACK
    assert machine.wake_at == 2.0
    machine.woke(1.0)
    assert machine.received(1, 1.0) is Step.DRAIN
    assert machine.would_block(1.0) is Step.COUNT
    assert machine.counted(7, 1.0) is Step.WAIT_ACK
    assert machine.wake_at == 3.0
    assert woke_to_count(machine, 7, 3.0) is Step.LET_GO
    assert end_of(machine, "unacked", 3.0) == (CloseOutcome.IDLE_TIMED_OUT, 7)


def test_a_slow_reader_that_acknowledges_is_not_idle() -> None:
    machine = silent(asking(60.0, idle_timeout=2.0))
    machine.counted(50_000, 0.0)
    for now in (2.0, 4.0, 6.0):
        assert woke_to_count(machine, 50_000 - int(now), now) is Step.WAIT_ACK
        assert machine.wake_at == now + 2.0
    woke_to_count(machine, 50_000 - 6, 8.0)
    assert machine.released(8.0).outcome is CloseOutcome.IDLE_TIMED_OUT


def test_the_idle_time_begins_again_at_the_last_acknowledgement() -> None:
    machine = silent(asking(60.0, idle_timeout=2.0))
    assert machine.counted(100, 0.0) is Step.WAIT_ACK
    assert machine.woke(0.1, readable=False) is Step.COUNT
    assert machine.counted(0, 0.1) is Step.WAIT_READABLE, "no more acknowledgements can arrive"
    assert machine.wake_at == 2.1


def test_without_a_watch_acknowledgements_are_noticed_when_the_idle_time_is_up() -> None:
    machine = silent(asking(60.0, idle_timeout=2.0), BSD)
    assert machine.counted(100, 0.0) is Step.WAIT_ACK
    assert machine.cannot_watch(0.0) is Step.WAIT_READABLE
    assert machine.wake_at == 2.0
    assert woke_to_count(machine, 0, 2.0) is Step.WAIT_READABLE
    assert machine.wake_at == 4.0


def test_one_byte_more_than_the_drain_limit_ends_the_close() -> None:
    machine = begun(asking(drain_limit=1000))
    assert machine.allowance == 1001
    machine.shut(0.0)
    assert machine.received(1000, 0.0) is Step.WAIT_READABLE
    assert machine.allowance == 1
    machine.woke(0.0)
    assert machine.received(1, 0.0) is Step.COUNT
    machine.counted(0, 0.0)
    assert end_of(machine, "drained") == (CloseOutcome.DRAIN_LIMIT, 1001)


@pytest.mark.parametrize("policy", [LingerPolicy.BACKGROUND, LingerPolicy.ABORT])
def test_a_timeout_ends_with_the_policy_of_on_timeout(policy: LingerPolicy) -> None:
    machine = silent(asking(1.0, on_timeout=policy), OTHER)
    assert woke_without_input(machine, 1.0) is Step.LET_GO
    assert machine.linger_policy is policy


def test_a_look_that_was_not_asked_for_changes_no_outcome() -> None:
    machine = draining()
    assert machine.failed(LOST, 0.0) is Step.COUNT
    assert machine.looked(BOTH_FINS, 0.0) is Step.LET_GO
    assert machine.released(0.0).outcome is CloseOutcome.TIMED_OUT


def test_a_descriptor_that_another_thread_closed_is_reported_as_already_closed() -> None:
    machine = begun()
    assert machine.shut(0.0, OSError(errno.EBADF, "closed")) is Step.LET_GO
    assert machine.released(0.0).outcome is CloseOutcome.ALREADY_CLOSED


def test_a_machine_without_a_step_reports_already_closed() -> None:
    machine = Teardown(asking(), 0.0, LINUX, unflushed=True)
    assert machine.released(0.25) == already_closed(0.25)


@pytest.mark.parametrize("state", [OPEN, FIN_SENT, BOTH_FINS])
def test_a_pending_error_of_a_connection_that_goes_on_ends_nothing(state: TcpState) -> None:
    machine = silent(asking(until=DELIVERED), BSD)
    assert machine.counted(0, 0.0) is Step.READ_ERROR
    assert machine.pending_error(LOST, state, 0.5) is Step.LET_GO
    assert end_of(machine, "error", 0.5) == (DELIVERED, None)


@pytest.mark.parametrize("state", [None, OVER, NEVER_OPEN])
def test_a_pending_error_of_a_connection_that_is_over_ended_it(state: TcpState | None) -> None:
    machine = silent(asking(until=DELIVERED), BSD)
    assert machine.counted(0, 0.0) is Step.READ_ERROR
    assert machine.pending_error(RESET, state, 0.5) is Step.LET_GO
    assert end_of(machine, "error", 0.5) == (CloseOutcome.PEER_RESET, RESET)


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


@pytest.mark.parametrize("view", [LINUX, WINDOWS])
def test_econnrefused_before_our_fin_is_an_icmp_message_if_the_peer_has_sent_data(
    view: View,
) -> None:
    machine = Teardown(asking(peer_first=1.0), 0.0, view)
    assert begin(machine) is Step.DRAIN
    assert machine.received(10, 0.0) is Step.WAIT_READABLE
    machine.woke(0.1)
    if machine.failed(REFUSED, 0.1) is Step.COUNT:
        machine.counted(3, 0.1)
    assert end_of(machine, "error", 0.1) == (CloseOutcome.TIMED_OUT, REFUSED)


@pytest.mark.parametrize(("view", "state"), [(WINDOWS, OPEN), (LINUX, NEVER_OPEN)])
def test_a_refused_connect_is_reported_as_not_connected(view: View, state: TcpState) -> None:
    machine = draining(view=view, state=state, error=NOT_CONNECTED)
    if machine.failed(REFUSED, 0.0) is Step.COUNT:
        assert machine.counted(0, 0.0) is Step.LET_GO
    assert machine.released(0.0).outcome is CloseOutcome.NOT_CONNECTED


@pytest.mark.parametrize("view", [WINDOWS, OTHER])
def test_silence_does_not_abort_without_counts(view: View) -> None:
    options = asking(5.0, idle_timeout=1.0, on_timeout=LingerPolicy.ABORT)
    machine = draining(options, view)
    assert machine.would_block(0.0) is Step.WAIT_READABLE
    assert machine.wake_at == 1.0
    assert woke_without_input(machine, 1.0) is Step.LET_GO
    assert machine.linger_policy is LingerPolicy.BACKGROUND
    assert machine.released(1.0).outcome is CloseOutcome.IDLE_TIMED_OUT


def test_silence_aborts_with_counts() -> None:
    machine = silent(asking(5.0, idle_timeout=1.0, on_timeout=LingerPolicy.ABORT))
    machine.counted(7, 0.0)
    assert woke_to_count(machine, 7, 1.0) is Step.LET_GO
    assert machine.linger_policy is LingerPolicy.ABORT


# --- the state of the connection --------------------------------------------------------------


@pytest.mark.parametrize("view", [WINDOWS, OTHER, MPTCP])
def test_without_states_the_machine_does_not_request_a_look(view: View) -> None:
    assert Teardown(asking(), 0.0, view).start() is Step.SHUT_WR


@pytest.mark.parametrize("abort", [False, True])
@pytest.mark.parametrize("tls", [False, True])
def test_a_listener_has_no_connection_and_nothing_unacknowledged(
    abort: bool, tls: bool
) -> None:
    machine = Teardown(asking(), 0.0, LINUX, tls=tls, abort=abort)
    assert begin(machine, state=LISTENING) is Step.LET_GO
    assert machine.linger_policy is None
    result = machine.released(0.0)
    assert (result.outcome, result.unacked) == (CloseOutcome.NOT_CONNECTED, 0)
    assert result.clean


@pytest.mark.parametrize("abort", [False, True])
def test_a_pending_connect_times_out_with_an_unknown_count(abort: bool) -> None:
    machine = Teardown(asking(), 0.0, LINUX, abort=abort)
    assert begin(machine, state=CONNECTING) is Step.LET_GO
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
    assert machine.counted(count, 0.0) is Step.LET_GO
    result = machine.released(0.0)
    assert result.outcome is CloseOutcome.NOT_CONNECTED
    expected = None if count else 0
    assert result.unacked == expected, "a count of what never was a connection means nothing"


def test_a_connection_that_never_opened_is_no_peers_end_though_our_fin_is_out() -> None:
    # A Fast Open server's: the handshake was reset, and another reader has received the error.
    machine = after_our_fin_in_a_flush()
    step = begin(machine, state=NEVER_OPEN)
    assert step is Step.READ_ERROR
    while step is not Step.LET_GO:
        step = machine.counted(0, 0.0) if step is Step.COUNT else machine.no_error(0.0)
    assert machine.released(0.0).outcome is CloseOutcome.NOT_CONNECTED


def test_a_count_after_a_failed_handshake_does_not_prove_delivery() -> None:
    machine = draining(asking(until=DELIVERED), state=ACCEPTING)
    assert end_of_stream(machine, state=NEVER_OPEN) is Step.READ_ERROR
    assert machine.no_error(0.0) is Step.COUNT
    assert machine.counted(0, 0.0) is Step.LET_GO
    assert machine.released(0.0).outcome is CloseOutcome.NOT_CONNECTED


def test_open_after_our_fin_is_treated_as_an_unknown_state() -> None:
    # gVisor: the end of the stream is the only proof.
    machine = silent()
    machine.woke(1.0)
    assert end_of_stream(machine, 1.0, state=OPEN) is Step.COUNT
    assert machine.counted(None, 1.0) is Step.LET_GO
    assert machine.released(1.0).outcome is PEER_CLOSED


def test_with_an_unknown_state_the_end_of_the_stream_is_the_proof() -> None:
    machine = Teardown(asking(), 0.0, LINUX)
    machine.start()
    assert machine.looked(None, 0.0) is Step.SHUT_WR
    machine.shut(0.0)
    assert machine.received(0, 0.0) is Step.LOOK
    assert machine.looked(None, 0.0) is Step.COUNT
    assert machine.counted(0, 0.0) is Step.LET_GO
    assert end_of(machine, "peer_first") == (PEER_CLOSED, None)


# --- recv() returns 0 before the peer's FIN: the caller's own shutdown(SHUT_RD) ---------


def test_the_end_of_the_stream_is_not_a_fin_if_the_state_disagrees() -> None:
    machine = deaf()
    assert machine.counted(70_000, 0.0) is Step.WAIT_ACK, "always readable: this would spin"
    assert machine.wake_at == 5.0
    assert machine.woke(1.0) is Step.LOOK
    assert machine.looked(FIN_SENT, 1.0) is Step.COUNT
    assert machine.counted(0, 1.0) is Step.WAIT_ACK
    assert machine.woke(2.0) is Step.LOOK
    assert machine.looked(BOTH_FINS, 2.0) is Step.COUNT
    assert machine.counted(0, 2.0) is Step.LET_GO
    assert end_of(machine, "peer_first", 2.0) == (PEER_CLOSED, None)


def test_without_a_watch_a_fin_that_recv_cannot_report_is_polled_after_pauses() -> None:
    machine = deaf()
    assert machine.counted(0, 0.0) is Step.WAIT_ACK
    assert machine.cannot_watch(0.0) is Step.PAUSE
    assert machine.wake_at == pytest.approx(0.001)
    assert machine.woke(0.001) is Step.LOOK


def test_the_deadline_ends_the_wait_for_a_fin_that_recv_cannot_report() -> None:
    machine = deaf()
    machine.counted(4, 0.0)
    assert machine.woke(5.0) is Step.LOOK
    assert machine.looked(FIN_SENT, 5.0) is Step.COUNT
    assert machine.counted(4, 5.0) is Step.LET_GO
    assert machine.released(5.0) == CloseResult(CloseOutcome.TIMED_OUT, 5.0, 0, 4, None)


def test_delivery_is_detected_without_the_peers_fin() -> None:
    machine = deaf(asking(until=DELIVERED))
    assert machine.counted(0, 0.0) is Step.LET_GO
    assert machine.released(0.0).outcome is DELIVERED


def test_an_end_that_recv_could_not_report_may_be_a_reset() -> None:
    machine = deaf()
    machine.counted(9, 0.0)
    machine.woke(1.0)
    assert machine.looked(OVER, 1.0) is Step.READ_ERROR
    assert machine.failed(RESET, 1.0) is Step.COUNT
    machine.counted(9, 1.0)
    assert machine.released(1.0).outcome is CloseOutcome.PEER_RESET


def test_an_end_without_a_reset_is_counted_again_without_a_wait() -> None:
    # The count was read before the end. One segment had the FIN's acknowledgement and the
    # peer's FIN, and the kernel sends no more events after it.
    machine = deaf()
    machine.counted(9, 0.0)
    machine.woke(1.0)
    assert machine.looked(OVER, 1.0) is Step.READ_ERROR
    assert machine.no_error(1.0) is Step.COUNT
    assert machine.counted(0, 1.0) is Step.LET_GO
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


# --- TLS --------------------------------------------------------------------------------------


def test_close_notify_is_sent_before_the_fin() -> None:
    machine = without_room()
    assert machine.would_block(0.0) is Step.WAIT_EITHER
    assert machine.wake_at == 5.0
    assert machine.woke(1.0) is Step.SEND_CLOSE_NOTIFY
    assert machine.notified(True, 1.0, received=False) is Step.SHUT_WR
    assert machine.shut(1.0) is Step.DRAIN
    assert end_of_stream(machine, 1.0) is Step.COUNT
    assert machine.counted(0, 1.0) is Step.LET_GO
    result = machine.released(1.0)
    assert result.notified
    assert result.peer_notified is None, "the end may be that of the caller's own SHUT_RD"


def test_an_end_without_close_notify_is_proven_by_the_peers_fin() -> None:
    machine = Teardown(asking(), 0.0, LINUX, tls=True)
    assert begin(machine, state=PEER_FIN) is Step.SEND_CLOSE_NOTIFY
    machine.notified(True, 0.0, received=False)
    assert machine.released(0.0).peer_notified is False


@pytest.mark.parametrize("received", [None, True, False])
def test_the_peers_close_notify_before_ours_is_kept(
    received: bool | None,
) -> None:
    machine = Teardown(asking(), 0.0, OTHER, tls=True)
    machine.peer_close_notify(True)
    machine.start()
    machine.notified(True, 0.0, received)
    machine.shut(0.0)
    machine.received(0, 0.0)
    assert machine.released(0.0).peer_notified is (True if received is None else received)


def test_a_missing_session_leaves_notified_unknown() -> None:
    machine = Teardown(asking(), 0.0, OTHER, tls=True)
    machine.start()
    assert machine.notified(None, 0.0) is Step.SHUT_WR
    machine.shut(0.0)
    machine.received(0, 0.0)
    assert machine.released(0.0).notified is None


def test_a_connection_that_fails_before_close_notify_is_not_notified() -> None:
    machine = Teardown(asking(), 0.0, LINUX, tls=True)
    begin(machine)
    assert machine.failed(RESET, 0.0) is Step.COUNT
    assert machine.counted(12, 0.0) is Step.LOOK
    assert machine.looked(OVER, 0.0) is Step.LET_GO
    assert end_of(machine, "notified") == (CloseOutcome.PEER_RESET, False)


def test_input_is_drained_while_close_notify_waits_for_room() -> None:
    machine = without_room()
    assert machine.received(70_000, 0.0) is Step.WAIT_EITHER
    assert machine.woke(0.5) is Step.SEND_CLOSE_NOTIFY
    assert machine.notify_would_block(0.5) is Step.DRAIN
    step = end_of_stream(machine, 0.5, PEER_FIN)
    assert step is Step.WAIT_WRITABLE, "always readable: this would spin"
    assert machine.woke(1.0) is Step.SEND_CLOSE_NOTIFY
    assert machine.notified(True, 1.0) is Step.SHUT_WR
    assert machine.shut(1.0) is Step.COUNT
    assert machine.counted(0, 1.0) is Step.LET_GO
    result = machine.released(1.0)
    assert (result.outcome, result.drained) == (PEER_CLOSED, 70_000)
    assert result.peer_first, "its FIN arrived during the wait for room"


def test_close_notify_waits_only_for_room_if_recv_cannot_report_a_fin() -> None:
    machine = without_room()
    assert end_of_stream(machine, state=OPEN) is Step.WAIT_WRITABLE
    assert machine.woke(0.5) is Step.SEND_CLOSE_NOTIFY
    assert machine.notify_would_block(0.5) is Step.WAIT_WRITABLE, "there is nothing to read"
    assert machine.woke(0.6) is Step.SEND_CLOSE_NOTIFY
    assert machine.notified(True, 0.6) is Step.SHUT_WR


@pytest.mark.parametrize("moment", ["at the wait", "at the write"])
def test_close_notify_without_room_in_time_is_omitted(moment: str) -> None:
    machine = without_room(asking(1.0))
    step = machine.woke(1.0) if moment == "at the wait" else machine.notify_would_block(1.0)
    assert step is Step.SHUT_WR
    assert machine.shut(1.0) is Step.DRAIN
    assert machine.would_block(1.0) is Step.COUNT
    assert machine.counted(9, 1.0) is Step.LET_GO
    assert end_of(machine, "notified", 1.0) == (CloseOutcome.TIMED_OUT, False)


def test_acknowledgements_restart_the_idle_time_while_close_notify_waits_for_room() -> None:
    machine = without_room(asking(60.0, idle_timeout=1.0))
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
    assert machine.released(4.0).notified is False


# --- one of many ------------------------------------------------------------------------------


def test_a_driver_of_many_waits_before_it_reads() -> None:
    machine = begun(one_of_many=True)
    assert machine.shut(0.0) is Step.WAIT_READABLE
    assert machine.wake_at == 5.0
    assert machine.woke(1.0) is Step.DRAIN


@pytest.mark.parametrize(
    ("options", "state"),
    [
        (asking(), PEER_FIN),
        (asking(0), OPEN),
        (asking(idle_timeout=1.0), OPEN),
        (asking(until=DELIVERED), OPEN),
    ],
    ids=["known input", "no time", "an idle time", "delivery"],
)
def test_a_driver_of_many_reads_at_once_if_there_is_a_reason(
    options: Options, state: TcpState
) -> None:
    machine = begun(options, one_of_many=True, state=state)
    assert machine.shut(0.0) is Step.DRAIN


def test_a_driver_of_many_never_lingers_in_the_kernel() -> None:
    machine = begun(asking(until=DELIVERED), WINDOWS, one_of_many=True)
    machine.shut(0.0)
    assert machine.would_block(0.0) is Step.WAIT_READABLE
    assert woke_without_input(machine, 5.0) is Step.LET_GO
    assert machine.linger_policy is LingerPolicy.BACKGROUND


def test_a_driver_that_must_end_chooses_the_policy() -> None:
    machine = silent()
    assert machine.time_is_up(1.0, LingerPolicy.ABORT) is Step.DRAIN
    assert machine.would_block(1.0) is Step.COUNT
    assert machine.counted(7, 1.0) is Step.LET_GO
    assert machine.linger_policy is LingerPolicy.ABORT
    assert machine.released(1.0) == CloseResult(
        CloseOutcome.TIMED_OUT, 1.0, 0, 7, None, peer_first=False
    )


def test_a_fin_that_has_arrived_is_seen_when_the_driver_must_end() -> None:
    machine = silent()
    machine.time_is_up(1.0, LingerPolicy.ABORT)
    end_of_stream(machine, 1.0)
    machine.counted(0, 1.0)
    assert machine.released(1.0).outcome is PEER_CLOSED


# --- an abort ---------------------------------------------------------------------------------


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
    assert step is Step.LET_GO
    assert machine.linger_policy is LingerPolicy.ABORT
    unacked = None if view.acks is None else 70_000
    assert machine.released(0.0) == CloseResult(CloseOutcome.ABORTED, 0.0, 0, unacked, None)


@pytest.mark.parametrize(
    ("state", "peer_first"), [(FIN_SENT, False), (PEER_FIN, True), (BOTH_FINS, False)]
)
def test_an_abort_reports_who_sent_the_first_fin(state: TcpState, peer_first: bool) -> None:
    machine = Teardown(asking(), 0.0, LINUX, abort=True)
    assert begin(machine, state=state) is Step.COUNT
    assert machine.counted(0, 0.0) is Step.LET_GO
    assert end_of(machine, "peer_first") == (CloseOutcome.ABORTED, peer_first)


def test_an_abort_of_an_ended_connection_reports_how_it_ended() -> None:
    machine = Teardown(asking(), 0.0, LINUX, abort=True)
    assert begin(machine, state=OVER) is Step.READ_ERROR
    assert machine.failed(RESET, 0.0) is Step.COUNT
    assert machine.counted(5, 0.0) is Step.LET_GO
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
    assert machine.counted(0, 0.0) is Step.LET_GO
    assert end_of(machine, "error") == (CloseOutcome.NOT_CONNECTED, error)


def test_an_abort_of_a_descriptor_that_another_thread_closed_is_reported_as_already_closed() -> (
    None
):
    machine = Teardown(asking(), 0.0, LINUX, abort=True)
    assert begin(machine, state=OVER) is Step.READ_ERROR
    assert machine.failed(OSError(errno.EBADF, "closed"), 0.0) is Step.LET_GO
    assert machine.released(0.0).outcome is CloseOutcome.ALREADY_CLOSED


def test_an_abort_in_a_handshake_counts_if_the_kernel_counts() -> None:
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


def test_an_abort_in_a_handshake_that_fails_meanwhile_asks_for_nothing_more() -> None:
    machine = Teardown(asking(), 0.0, LINUX, abort=True)
    assert begin(machine, state=ACCEPTING) is Step.LOOK
    assert machine.looked(NEVER_OPEN, 0.0) is Step.LET_GO


# --- the peer first ---------------------------------------------------------------------------


def test_a_peer_that_sends_its_fin_in_time_is_first() -> None:
    machine = Teardown(asking(peer_first=1.0), 10.0, LINUX)
    assert machine.start() is Step.LOOK
    assert machine.looked(OPEN, 10.0) is Step.DRAIN
    assert machine.would_block(10.0) is Step.WAIT_READABLE
    assert machine.wake_at == 11.0
    assert machine.woke(10.2) is Step.DRAIN
    assert machine.received(100, 10.2) is Step.WAIT_READABLE
    assert machine.wake_at == 11.0, "data does not extend the time"
    assert machine.woke(10.3) is Step.DRAIN
    assert end_of_stream(machine, 10.3, PEER_FIN) is Step.SHUT_WR
    assert machine.shut(10.3) is Step.COUNT, "there is nothing more to read"
    assert machine.counted(1, 10.3) is Step.READ_ERROR
    assert machine.no_error(10.3) is Step.WAIT_ACK
    assert machine.woke(10.4) is Step.COUNT
    assert machine.counted(0, 10.4) is Step.LET_GO
    result = machine.released(10.5)
    assert result == CloseResult(PEER_CLOSED, 0.5, 100, 0, None, peer_first=True)


def test_a_peer_that_does_not_send_its_fin_in_time_is_not_first() -> None:
    machine = letting_the_peer_be_first()
    machine.would_block(0.0)
    assert woke_without_input(machine, 1.0) is Step.SHUT_WR
    assert machine.shut(1.0) is Step.DRAIN
    assert machine.would_block(1.0) is Step.WAIT_READABLE
    assert machine.wake_at == 5.0
    machine.woke(1.5)
    assert end_of_stream(machine, 1.5) is Step.COUNT
    machine.counted(0, 1.5)
    assert end_of(machine, "peer_first", 1.5) == (PEER_CLOSED, False)


@pytest.mark.parametrize("options", [{"timeout": 0.5}, {"timeout": 5.0, "idle_timeout": 0.5}])
def test_peer_first_is_limited_by_all_other_times(options: Any) -> None:
    machine = Teardown(asking(peer_first=60.0, **options), 0.0, LINUX)
    begin(machine)
    assert machine.would_block(0.0) is Step.WAIT_READABLE
    assert machine.wake_at == 0.5
    assert woke_without_input(machine, 0.5) is Step.SHUT_WR, "our FIN is sent anyway"


def test_the_machine_does_not_wait_for_a_peer_that_was_first_before_the_call() -> None:
    machine = Teardown(asking(peer_first=1.0), 0.0, LINUX)
    begin(machine, state=PEER_FIN)
    assert machine.received(0, 0.0) is Step.SHUT_WR
    assert machine.shut(0.0) is Step.COUNT
    assert machine.counted(0, 0.0) is Step.LET_GO
    assert machine.released(0.0).peer_first is True


@pytest.mark.parametrize("peer_first", [0.0, 1.0])
@pytest.mark.parametrize("state", [FIN_SENT, BOTH_FINS])
def test_a_caller_that_was_first_before_the_call_is_reported_as_first(
    state: TcpState, peer_first: float
) -> None:
    machine = Teardown(asking(peer_first=peer_first), 0.0, LINUX)
    assert begin(machine, state=state) is Step.DRAIN, "our FIN was sent, so there is no wait"
    assert end_of_stream(machine) is Step.COUNT
    assert machine.counted(0, 0.0) is Step.LET_GO
    assert machine.released(0.0).peer_first is False


def test_without_states_who_was_first_is_unknown() -> None:
    machine = Teardown(asking(peer_first=1.0), 0.0, WINDOWS)
    assert machine.start() is Step.DRAIN
    assert machine.would_block(0.0) is Step.WAIT_READABLE
    machine.woke(0.5)
    assert machine.received(0, 0.5) is Step.SHUT_WR
    assert machine.shut(0.5) is Step.LET_GO
    assert end_of(machine, "peer_first", 0.5) == (PEER_CLOSED, None)


def test_close_notify_is_sent_before_peer_first() -> None:
    machine = Teardown(asking(peer_first=1.0), 0.0, LINUX, tls=True)
    assert begin(machine) is Step.SEND_CLOSE_NOTIFY
    assert machine.notified(True, 0.0) is Step.DRAIN
    assert machine.would_block(0.0) is Step.WAIT_READABLE
    assert machine.wake_at == 1.0


def test_a_peer_that_ended_while_close_notify_waited_for_room_is_not_waited_for() -> None:
    machine = without_room(asking(peer_first=1.0))
    end_of_stream(machine, 0.5, PEER_FIN)
    assert machine.notified(True, 0.5) is Step.SHUT_WR


def test_a_first_fin_that_recv_cannot_show_is_watched_for_after_close_notify_too() -> None:
    machine = without_room(asking(peer_first=1.0))
    end_of_stream(machine, state=OPEN)
    assert machine.notified(True, 0.5) is Step.WAIT_ACK
    assert machine.wake_at == 1.0


@pytest.mark.parametrize("state", [OVER, NEVER_OPEN])
def test_nobody_is_waited_for_on_a_connection_that_is_over(state: TcpState) -> None:
    machine = Teardown(asking(peer_first=1.0), 0.0, LINUX)
    assert begin(machine, state=state) is Step.SHUT_WR


def test_the_drain_limit_ends_the_close_before_our_fin() -> None:
    machine = letting_the_peer_be_first(drain_limit=10)
    assert machine.received(11, 0.0) is Step.SHUT_WR, "close() sends no FIN if a dup exists"
    assert machine.shut(0.0) is Step.COUNT
    assert machine.counted(3, 0.0) is Step.LET_GO
    assert machine.released(0.0).outcome is CloseOutcome.DRAIN_LIMIT


def test_a_fin_that_failed_is_not_sent_again() -> None:
    machine = draining(error=NOT_CONNECTED)
    assert machine.failed(LOST, 0.0) is Step.COUNT
    machine = begun()
    assert machine.shut(0.0, LOST) is Step.COUNT


def test_a_drain_limit_that_aborts_sends_no_fin() -> None:
    options = asking(peer_first=1.0, drain_limit=10, on_timeout=LingerPolicy.ABORT)
    machine = Teardown(options, 0.0, LINUX)
    begin(machine)
    assert machine.received(11, 0.0) is Step.COUNT
    machine.counted(3, 0.0)
    assert machine.linger_policy is LingerPolicy.ABORT


def test_a_drain_limit_while_close_notify_waits_sends_our_fin_without_it() -> None:
    machine = without_room(asking(drain_limit=10))
    assert machine.received(11, 0.0) is Step.SHUT_WR
    assert machine.shut(0.0, NOT_CONNECTED) is Step.COUNT, "whatever shutdown() returns"
    machine.counted(3, 0.0)
    assert end_of(machine, "notified") == (CloseOutcome.DRAIN_LIMIT, False)


@pytest.mark.parametrize("seen", [OPEN, FIN_SENT, PEER_FIN, BOTH_FINS])
def test_a_count_after_another_holder_disconnected_the_socket_is_not_reported(
    seen: TcpState,
) -> None:
    machine = Teardown(asking(), 0.0, LINUX)
    if begin(machine, state=seen) is Step.SHUT_WR:
        machine.shut(0.0)
    assert machine.failed(RESET, 0.1) is Step.COUNT
    assert machine.counted(65_538, 0.1) is Step.LOOK
    assert machine.looked(NEVER_OPEN, 0.1) is Step.LET_GO
    assert end_of(machine, "unacked", 0.1) == (CloseOutcome.PEER_RESET, None)


def test_a_disconnected_socket_whose_error_another_reader_took_was_reset() -> None:
    machine = draining()
    assert machine.failed(NOT_CONNECTED, 0.1) is Step.COUNT
    assert machine.counted(65_538, 0.1) is Step.LOOK
    assert machine.looked(NEVER_OPEN, 0.1) is Step.LET_GO
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
    assert machine.looked(NEVER_OPEN, 5.0) is Step.LET_GO
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
    assert machine.counted(65_538, 0.1) is Step.LET_GO
    result = machine.released(0.1)
    assert (result.outcome, result.unacked) == (CloseOutcome.PEER_RESET, None)
    assert result.error is not None
    assert result.error.errno == errno.ECONNRESET


def test_a_first_fin_that_recv_cannot_report_is_watched() -> None:
    machine = letting_the_peer_be_first()
    assert end_of_stream(machine, state=OPEN) is Step.WAIT_ACK
    assert machine.wake_at == 1.0
    assert machine.woke(0.5) is Step.LOOK
    assert machine.looked(PEER_FIN, 0.5) is Step.SHUT_WR
    assert machine.shut(0.5) is Step.COUNT
    machine.counted(0, 0.5)
    assert machine.released(0.5).peer_first is True


def test_without_a_watch_a_first_fin_that_recv_cannot_report_is_not_waited_for() -> None:
    machine = letting_the_peer_be_first(idle_timeout=0.5)
    assert end_of_stream(machine, state=OPEN) is Step.WAIT_ACK
    assert machine.cannot_watch(0.0) is Step.PAUSE
    assert machine.woke(0.4999) is Step.LOOK
    assert machine.looked(OPEN, 0.4999) is Step.PAUSE
    assert machine.wake_at == 0.5
    assert machine.woke(0.5) is Step.LOOK
    assert machine.looked(OPEN, 0.5) is Step.SHUT_WR


def test_a_missing_watch_does_not_delay_our_fin() -> None:
    machine = letting_the_peer_be_first(idle_timeout=0.5)
    assert end_of_stream(machine, state=OPEN) is Step.WAIT_ACK
    assert machine.cannot_watch(0.5) is Step.SHUT_WR, "like every other end of this phase"


def test_a_first_wait_that_ends_without_input_does_not_prove_acknowledgement() -> None:
    # Even with everything acknowledged: our FIN was not sent, so the outcome cannot be
    # DELIVERED.
    machine = letting_the_peer_be_first(until=DELIVERED)
    assert machine.would_block(0.0) is Step.WAIT_READABLE
    assert machine.woke(0.5, readable=False) is Step.DRAIN


# --- wake-ups without input -------------------------------------------------------------------


def test_an_error_queue_that_wakes_every_wait_is_emptied() -> None:
    machine = silent()
    assert woke_without_input(machine, 0.0) is Step.WAIT_READABLE, (
        "one wake-up may be caused by another reader"
    )
    assert woke_without_input(machine, 0.0) is Step.CLEAR_ERRORS
    assert machine.cleared(0.0) is Step.WAIT_READABLE
    assert machine.woke(0.1) is Step.DRAIN
    assert machine.received(10, 0.1) is Step.WAIT_READABLE


@pytest.mark.parametrize("view", [LINUX, BSD, WINDOWS, OTHER, MPTCP])
@pytest.mark.parametrize("phase", ["peer first", "drain"])
def test_if_the_wake_ups_do_not_end_the_machine_pauses_instead(view: View, phase: str) -> None:
    machine = Teardown(asking(peer_first=5.0 if phase == "peer first" else 0), 0.0, view)
    if begin(machine) is Step.SHUT_WR:
        machine.shut(0.0)
    steps = [machine.would_block(0.0)]
    for _ in range(8):
        assert machine.woke(0.0) is Step.DRAIN
        steps.append(without_input(machine, 0.0))
    assert Step.PAUSE in steps
    assert steps[-1] is Step.PAUSE
    assert machine.wake_at > 0.0


def test_where_nothing_ends_the_wake_ups_a_wait_for_room_is_a_pause_too() -> None:
    machine = Teardown(asking(), 0.0, LINUX, tls=True)
    begin(machine)
    steps: list[Step] = []
    for _ in range(8):
        machine.notify_would_block(0.0)
        steps.append(without_input(machine, 0.0))
        assert machine.woke(0.0) is Step.SEND_CLOSE_NOTIFY
    assert steps[0] is Step.WAIT_EITHER
    assert steps[-1] is Step.PAUSE


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


def test_what_woke_the_wait_for_room_is_not_suspected_after_it() -> None:
    machine = without_room()
    machine.would_block(0.0)
    machine.woke(0.0)
    machine.notified(True, 0.0)
    machine.shut(0.0)
    assert machine.would_block(0.0) is Step.WAIT_READABLE
    assert woke_without_input(machine, 0.0) is Step.WAIT_READABLE, (
        "one is another reader's work"
    )


def test_input_resets_the_count_of_empty_wake_ups() -> None:
    machine = silent()
    for _ in range(10):
        assert woke_without_input(machine, 0.0) is Step.WAIT_READABLE
        assert machine.woke(0.0) is Step.DRAIN
        assert machine.received(1, 0.0) is Step.WAIT_READABLE


def test_an_acknowledgement_ends_the_suspicion() -> None:
    machine = silent(asking(until=DELIVERED))
    machine.counted(100, 0.0)
    for count in range(99, 90, -1):
        assert woke_to_count(machine, count, 0.0) is Step.WAIT_ACK


# --- a FIN that the flush has sent, and what a makefile() object holds ---------------------------------


@pytest.mark.parametrize("state", [OPEN, FIN_SENT, BOTH_FINS, PEER_FIN])
def test_a_fin_that_the_flush_sent_is_not_sent_again(state: TcpState) -> None:
    machine = after_our_fin_in_a_flush()
    assert begin(machine, state=state) is Step.DRAIN


@pytest.mark.parametrize(("view", "state"), [(LINUX, OPEN), (LINUX, FIN_SENT), (OTHER, OPEN)])
def test_a_fin_that_the_flush_sent_makes_it_too_late_for_the_peer_to_be_first(
    view: View, state: TcpState
) -> None:
    # OPEN after our FIN is a kernel that does not tell. Nothing is waited for without success, nor sent
    # a second time.
    machine = after_our_fin_in_a_flush(asking(peer_first=1.0), view)
    assert begin(machine, state=state) is Step.DRAIN
    assert machine.would_block(0.0) is Step.WAIT_READABLE
    assert machine.wake_at == 5.0


def test_after_a_flush_that_sent_the_fin_the_connection_may_be_over() -> None:
    machine = after_our_fin_in_a_flush()
    assert begin(machine, state=OVER) is Step.DRAIN
    assert machine.received(0, 0.0) is Step.COUNT
    assert machine.counted(0, 0.0) is Step.LET_GO
    assert machine.released(0.0).outcome is PEER_CLOSED


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


# --- TCP Fast Open: a server's connection before the handshake has finished -------------------


def test_in_a_handshake_the_machine_does_not_request_a_count() -> None:
    machine = draining(asking(until=DELIVERED), state=ACCEPTING)
    assert machine.would_block(0.0) is Step.LOOK
    assert machine.looked(ACCEPTING, 0.0) is Step.WAIT_ACK
    assert woke_without_input(machine, 0.1) is Step.LOOK
    assert machine.looked(FIN_SENT, 0.1) is Step.COUNT, "the handshake is finished"
    assert machine.counted(5, 0.1) is Step.WAIT_ACK
    assert machine.woke(0.2, readable=False) is Step.COUNT
    assert machine.counted(0, 0.2) is Step.LET_GO
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
    assert machine.looked(ACCEPTING, 1.0) is Step.LET_GO
    assert end_of(machine, "unacked", 1.0) == (CloseOutcome.TIMED_OUT, None)


def test_a_close_notify_in_a_handshake_waits_for_room_without_a_count() -> None:
    machine = without_room(asking(idle_timeout=1.0), state=ACCEPTING)
    assert machine.would_block(0.0) is Step.LOOK
    assert machine.looked(ACCEPTING, 0.0) is Step.WAIT_EITHER


# --- the options -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["timeout", "idle_timeout", "peer_first"])
@pytest.mark.parametrize("value", [-1, -0.001, math.inf, math.nan, 10**400])
def test_a_timeout_must_be_finite_and_not_negative(name: str, value: float) -> None:
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
def test_a_timeout_must_be_a_number(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a finite number of seconds"):
        asking(**{name: value})


@pytest.mark.parametrize(
    ("value", "error"),
    [(-1, ValueError), (1.5, TypeError), (True, TypeError), ("9", TypeError)],
)
def test_a_drain_limit_is_a_whole_number_of_bytes(value: Any, error: type[Exception]) -> None:
    expected = (
        "drain_limit must be at least 0, not -1"
        if error is ValueError
        else f"drain_limit must be a whole number of bytes, 0 or more, not {value!r}"
    )
    with pytest.raises(error) as caught:
        Options(5.0, drain_limit=value)
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("value", "error"),
    [(CloseOutcome.ABORTED, ValueError), ("delivered", TypeError), (None, TypeError)],
)
def test_until_is_one_of_two_outcomes(value: Any, error: type[Exception]) -> None:
    with pytest.raises(
        error, match=r"until must be CloseOutcome.PEER_CLOSED or .*DELIVERED, not"
    ):
        asking(until=value)


def test_on_timeout_must_be_one_of_two_policies() -> None:
    with pytest.raises(ValueError, match=r"on_timeout must be .*BACKGROUND or .*ABORT, not"):
        asking(on_timeout=LingerPolicy.TIMED)


def test_without_a_drain_limit_only_time_limits_the_drain() -> None:
    assert asking().limit == math.inf
    assert asking(drain_limit=0).limit == 0


# --- the flush --------------------------------------------------------------------------------


def test_the_transports_buffer_is_flushed_first() -> None:
    machine = flushing()
    assert machine.wake_at == 5
    assert machine.flushing(0, 0, HELD, 1.0) is Step.FLUSH
    end_flush(machine, 0, 2.0)
    assert machine.wake_at == 7, "the rest has its own time"


def test_after_a_flush_the_close_is_as_any_other() -> None:
    machine = flushing()
    machine.flushing(0, 0, HELD, 1.0)
    assert machine.is_flushing
    machine.flushed(10, 2.0, waited=True)
    assert not machine.is_flushing
    assert machine.looked(OPEN, 2.0) is Step.SHUT_WR
    assert machine.shut(2.0) is Step.DRAIN
    assert machine.would_block(2.0) is Step.WAIT_READABLE
    assert machine.woke(3.0) is Step.DRAIN
    assert end_of_stream(machine, 3.0) is Step.COUNT
    assert machine.counted(0, 3.0) is Step.LET_GO
    result = machine.released(3.0)
    assert result == CloseResult(PEER_CLOSED, 3.0, 10, 0, None, peer_first=False)


@pytest.mark.parametrize("flush_timeout", [None, 120])
def test_a_flush_without_a_wait_does_not_change_the_deadline(
    flush_timeout: float | None,
) -> None:
    machine = flushing(flush_timeout=flush_timeout)
    end_flush(machine, 0, 0.1, waited=False)
    assert machine.wake_at == 5


def test_the_deadline_does_not_end_a_flush_with_progress() -> None:
    machine = flushing()
    for turn in range(1, 100):
        assert machine.flushing(turn * 4096, 0, HELD, turn * 4.9) is Step.FLUSH
        assert machine.wake_at == pytest.approx(turn * 4.9 + 5)


def test_a_flush_may_permit_a_longer_silence_than_the_rest() -> None:
    machine = flushing(asking(timeout=30, idle_timeout=5), flush_timeout=120)
    assert machine.wake_at == 120
    assert machine.flushing(4096, 0, HELD, 100.0) is Step.FLUSH
    assert machine.flushing(4096, 0, HELD, 219.0) is Step.FLUSH
    machine.flushed(0, 219.0, waited=True)
    assert machine.wake_at == 224


def test_the_longer_silence_of_a_flush_ends_in_a_reset_too() -> None:
    machine = flushing(flush_timeout=120)
    assert machine.flushing(0, 0, HELD, 120.0) is Step.LOOK
    machine.looked(OPEN, 120.0)
    assert machine.counted(7, 120.0) is Step.LET_GO
    assert machine.linger_policy is LingerPolicy.ABORT
    assert machine.released(120.0).outcome is CloseOutcome.TIMED_OUT


def test_the_longer_silence_of_a_flush_can_be_taken_back() -> None:
    machine = flushing(asking(timeout=30, idle_timeout=5), flush_timeout=120)
    machine.limit_flush(50.0)
    assert machine.wake_at == 55
    machine.limit_flush(54.0)
    assert machine.wake_at == 55, "once, or a second call would extend it"
    assert machine.flushing(0, 0, HELD, 55.0) is Step.LOOK
    assert machine.wake_at == 55


def test_a_flush_of_a_byte_a_second_times_out() -> None:
    machine = flushing()
    for second in range(1, 5):
        assert machine.flushing(second, 0, HELD, float(second)) is Step.FLUSH
    assert machine.flushing(5, 0, HELD, 5.0) is Step.LOOK
    assert machine.looked(OPEN, 5.0) is Step.COUNT
    assert machine.counted(7, 5.0) is Step.LET_GO
    assert machine.linger_policy is LingerPolicy.ABORT, (
        "a FIN would mean that the stream is complete"
    )
    result = machine.released(5.0)
    assert (result.outcome, result.unacked) == (CloseOutcome.TIMED_OUT, 7 + HELD)
    assert not result.clean


def test_an_upload_during_a_flush_is_progress_but_not_forever() -> None:
    machine = flushing()
    assert machine.flushing(0, 1 << 30, HELD, 4.0) is Step.FLUSH
    assert machine.flushing(0, 2 << 30, HELD, 8.0) is Step.FLUSH
    assert machine.flushing(0, 3 << 30, HELD, 9.0) is Step.LOOK


def test_the_idle_time_ends_a_flush_if_it_is_shorter() -> None:
    machine = flushing(asking(timeout=50, idle_timeout=5))
    assert machine.flushing(0, 0, None, 5.0) is Step.LOOK
    machine.looked(OPEN, 5.0)
    assert machine.counted(7, 5.0) is Step.LET_GO
    assert end_of(machine, "unacked", 5.0) == (CloseOutcome.IDLE_TIMED_OUT, None)


@pytest.mark.parametrize("drained", [100, 150])
def test_bytes_drained_during_a_flush_count_for_the_drain_limit(drained: int) -> None:
    machine = flushing(asking(drain_limit=100))
    assert machine.flushing(0, 100, HELD, 1.0) is Step.FLUSH
    end_flush(machine, drained, 1.0)
    assert machine.allowance == 1, "0 is no limit to recv_into()"
    machine.received(1, 1.0)
    machine.counted(0, 1.0)
    assert end_of(machine, "drained", 1.0) == (CloseOutcome.DRAIN_LIMIT, drained + 1)


def test_the_drain_limit_ends_a_flush_with_a_reset() -> None:
    machine = flushing(asking(drain_limit=100))
    assert machine.flushing(0, 101, HELD, 1.0) is Step.LOOK
    machine.looked(OPEN, 1.0)
    machine.counted(0, 1.0)
    assert machine.linger_policy is LingerPolicy.ABORT
    assert machine.released(1.0).outcome is CloseOutcome.DRAIN_LIMIT


def test_a_truncated_stream_ends_with_a_reset_and_is_not_notified() -> None:
    machine = flushing(tls=True)
    assert machine.cut_short(HELD, CUT_SHORT, 1.0) is Step.LOOK
    assert machine.looked(OPEN, 1.0) is Step.COUNT
    assert machine.counted(0, 1.0) is Step.LET_GO
    assert machine.linger_policy is LingerPolicy.ABORT
    assert machine.released(1.0) == CloseResult(
        CloseOutcome.TIMED_OUT, 1.0, 0, HELD, CUT_SHORT, notified=False
    )


@pytest.mark.parametrize(("view", "notified"), [(LINUX, False), (OTHER, None)])
def test_a_close_notify_of_a_flush_that_timed_out_is_destroyed_where_there_is_a_reset(
    view: View, notified: bool | None
) -> None:
    machine = given_up(view, tls=True)
    if machine.looked(OPEN, 5.0) is Step.COUNT:
        assert machine.counted(0, 5.0) is Step.LET_GO
    assert machine.released(5.0).notified is notified


def test_a_flush_that_was_cut_short_has_sent_no_close_notify() -> None:
    machine = flushing(view=OTHER, tls=True)
    machine.cut_short(HELD, CUT_SHORT, 5.0)
    assert machine.looked(OPEN, 5.0) is Step.LET_GO
    assert machine.released(5.0).notified is False


@pytest.mark.parametrize(("view", "notified"), [(LINUX, False), (OTHER, None)])
def test_a_pending_reset_is_reported_when_a_flush_times_out(
    view: View, notified: bool | None
) -> None:
    machine = given_up(view, tls=True)
    assert machine.looked(OVER, 5.0) is Step.READ_ERROR
    if machine.failed(RESET, 5.0) is Step.COUNT:
        machine.counted(0, 5.0)
    assert end_of(machine, "notified", 5.0) == (CloseOutcome.PEER_RESET, notified)


@pytest.mark.parametrize(
    ("held", "policy"),
    [(0, LingerPolicy.BACKGROUND), (1, LingerPolicy.ABORT), (None, LingerPolicy.ABORT)],
)
def test_an_error_in_the_flush_resets_what_remains_of_the_connection_if_bytes_are_lost(
    held: int | None, policy: LingerPolicy
) -> None:
    # Not every error ends it: an ICMP message does not (IP_RECVERR).
    machine = flushing()
    step = machine.failed(LOST, 1.0, held)
    if policy is LingerPolicy.BACKGROUND:
        assert step is Step.SHUT_WR
        step = machine.shut(1.0)
    assert step is Step.LOOK
    assert machine.looked(OPEN, 1.0) is Step.COUNT
    assert machine.counted(7, 1.0) is Step.LET_GO
    assert machine.linger_policy is policy


@pytest.mark.parametrize("end", ["the time is up", "cut short", "an error"])
def test_an_interrupt_after_a_flush_that_failed_must_still_reset(end: str) -> None:
    machine = flushing()
    if end == "the time is up":
        machine.flushing(0, 0, HELD, 5.0)
    elif end == "cut short":
        machine.cut_short(HELD, CUT_SHORT, 5.0)
    else:
        machine.failed(LOST, 5.0, HELD)
    assert machine.is_flushing


def test_a_wake_up_in_a_flush_goes_on_with_it() -> None:
    machine = flushing()
    assert machine.woke(4.9) is Step.FLUSH


def test_a_flush_that_fails_in_the_handshake_of_fast_open_counts_nothing() -> None:
    machine = flushing()
    unreachable = OSError(errno.EHOSTUNREACH, "of an ICMP message")
    assert machine.failed(unreachable, 1.0, HELD) is Step.LOOK
    assert machine.looked(ACCEPTING, 1.0) is Step.LET_GO
    assert end_of(machine, "unacked", 1.0) == (CloseOutcome.TIMED_OUT, None)


def test_a_close_notify_sent_by_the_flush_is_not_requested_again() -> None:
    machine = flushing(tls=True)
    notified = True, None
    assert machine.flushed(0, 1.0, waited=True, fin_sent=True, notified=notified) is Step.LOOK
    assert machine.looked(FIN_SENT, 1.0) is not Step.SEND_CLOSE_NOTIFY


def test_a_driver_that_must_end_during_a_flush_gets_the_outcome() -> None:
    machine = flushing()
    assert machine.time_is_up(1.0, LingerPolicy.BACKGROUND) is Step.LOOK
    machine.looked(OPEN, 1.0)
    machine.counted(0, 1.0)
    assert machine.linger_policy is LingerPolicy.ABORT


@pytest.mark.parametrize("flush_timeout", [None, 120])
def test_progress_after_an_expiry_does_not_prolong_a_flush(flush_timeout: float | None) -> None:
    machine = flushing(flush_timeout=flush_timeout)
    machine.expire(1.0, LingerPolicy.ABORT)
    assert machine.flushing(1 << 20, 0, HELD, 1.1) is Step.LOOK


def test_a_flush_that_ends_after_an_expiry_leaves_no_time_for_the_rest() -> None:
    machine = flushing()
    machine.expire(1.0, LingerPolicy.ABORT)
    machine.flushed(0, 1.1, waited=True)
    assert machine.wake_at <= 1.1


def test_an_established_connection_that_is_gone_was_reset() -> None:
    machine = draining(state=OVER, error=NOT_CONNECTED, stood=True)
    machine.received(0, 1.0)
    machine.no_error(1.0)
    machine.counted(0, 1.0)
    assert machine.released(1.0).outcome is CloseOutcome.PEER_RESET
