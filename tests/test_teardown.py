"""The machine, without sockets: whatever happens, in whatever order, it keeps its promises."""

from __future__ import annotations

import errno
import itertools
import math
import socket
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graceful_close import CloseOutcome, CloseResult, LingerPolicy
from graceful_close._alike import Alike
from graceful_close._platform import BLIND, Sight
from graceful_close._teardown import Step, Teardown
from graceful_close._terms import Patience, Terms

LINUX = Sight(acks=True, survives_reset=True, kernel_lingers=False)
BSD = Sight(acks=True, survives_reset=False, kernel_lingers=False)
WINDOWS = Sight(acks=False, survives_reset=False, kernel_lingers=True)

RESET = OSError(errno.ECONNRESET, "reset")
NOT_CONNECTED = OSError(errno.ENOTCONN, "not connected")
LOST = OSError(errno.ETIMEDOUT, "lost")

DELIVERED, PEER_CLOSED = CloseOutcome.DELIVERED, CloseOutcome.PEER_CLOSED


def terms(timeout: Any = 5.0, **options: Any) -> Terms:
    return Terms(timeout, **options)


# --- one story at a time ---------------------------------------------------------------------


def test_a_polite_peer() -> None:
    machine = Teardown(terms(), 100.0, LINUX)
    assert machine.start() is Step.SHUT_WR
    assert machine.shut(100.0) is Step.DRAIN
    assert machine.would_block(100.0) is Step.WAIT_READABLE
    assert machine.wake_at == 105.0
    assert machine.woke(100.1) is Step.DRAIN
    assert machine.received(5000, 100.1) is Step.WAIT_READABLE
    assert machine.woke(100.2) is Step.DRAIN
    assert machine.received(0, 100.2) is Step.PROBE
    assert machine.probed(0, 100.2) is Step.LET_GO
    assert machine.parting is None
    assert machine.released(100.25) == CloseResult(PEER_CLOSED, 0.25, 5000, 0, None)


def test_after_the_peers_fin_the_acknowledgement_is_waited_for() -> None:
    machine = Teardown(terms(), 0.0, LINUX)
    machine.shut(0.0)
    assert machine.received(0, 0.0) is Step.PROBE
    assert machine.probed(70_000, 0.0) is Step.READ_ERROR
    assert machine.no_error(0.0) is Step.WAIT_ACK
    assert machine.woke(1.0) is Step.PROBE
    assert machine.probed(1, 1.0) is Step.READ_ERROR
    assert machine.no_error(1.0) is Step.WAIT_ACK
    assert machine.woke(1.5) is Step.PROBE
    assert machine.probed(0, 1.5) is Step.LET_GO
    assert machine.released(1.5).outcome is PEER_CLOSED


def test_a_reset_after_the_peers_fin_is_found_though_recv_cannot_tell() -> None:
    machine = Teardown(terms(), 0.0, LINUX)
    machine.shut(0.0)
    machine.received(0, 0.0)
    assert machine.probed(70_000, 0.0) is Step.READ_ERROR
    assert machine.failed(OSError(errno.EPIPE, "broken"), 0.1) is Step.PROBE
    assert machine.probed(70_000, 0.1) is Step.LET_GO
    result = machine.released(0.1)
    assert (result.outcome, result.unacked) == (CloseOutcome.PEER_RESET, 70_000)


def test_enotconn_at_shutdown_is_not_taken_for_the_end_of_the_story() -> None:
    machine = Teardown(terms(), 0.0, LINUX)
    assert machine.shut(0.0, NOT_CONNECTED) is Step.DRAIN
    assert machine.failed(RESET, 0.0) is Step.PROBE
    assert machine.probed(12, 0.0) is Step.LET_GO
    assert machine.released(0.0) == CloseResult(CloseOutcome.PEER_RESET, 0.0, 0, 12, RESET)


def test_enotconn_at_shutdown_and_at_recv_is_no_connection() -> None:
    machine = Teardown(terms(), 0.0, LINUX)
    machine.shut(0.0, NOT_CONNECTED)
    machine.failed(NOT_CONNECTED, 0.0)
    machine.probed(None, 0.0)
    assert machine.released(0.0).outcome is CloseOutcome.NOT_CONNECTED


def test_a_connection_that_was_over_before_the_call_is_not_called_a_success() -> None:
    machine = Teardown(terms(), 0.0, LINUX)
    machine.shut(0.0, NOT_CONNECTED)
    assert machine.received(0, 0.0) is Step.READ_ERROR
    assert machine.no_error(0.0) is Step.PROBE
    assert machine.probed(0, 0.0) is Step.LET_GO
    result = machine.released(0.0)
    assert (result.outcome, result.error) == (CloseOutcome.NOT_CONNECTED, NOT_CONNECTED)


def test_a_reset_after_the_peers_fin_shows_in_the_pending_error_alone() -> None:
    machine = Teardown(terms(), 0.0, LINUX)
    machine.shut(0.0, NOT_CONNECTED)
    assert machine.received(0, 0.0) is Step.READ_ERROR
    assert machine.failed(OSError(errno.EPIPE, "broken"), 0.0) is Step.PROBE
    machine.probed(8, 0.0)
    assert machine.released(0.0).outcome is CloseOutcome.PEER_RESET


@pytest.mark.parametrize("sign_of_life", ["data", "silence"])
def test_enotconn_at_a_second_shutdown_on_macos_is_no_error(sign_of_life: str) -> None:
    machine = Teardown(terms(), 0.0, BSD)
    machine.shut(0.0, NOT_CONNECTED)
    if sign_of_life == "data":
        assert machine.received(9, 0.0) is Step.WAIT_READABLE
    else:
        assert machine.would_block(0.0) is Step.WAIT_READABLE
    machine.woke(0.1)
    assert machine.received(0, 0.1) is Step.PROBE
    assert machine.probed(0, 0.1) is Step.READ_ERROR
    assert machine.no_error(0.1) is Step.LET_GO
    result = machine.released(0.1)
    assert (result.outcome, result.error) == (PEER_CLOSED, None)


def test_delivery_ends_at_the_acknowledgement_without_the_peers_fin() -> None:
    machine = Teardown(terms(until=DELIVERED), 0.0, LINUX)
    assert machine.shut(0.0) is Step.DRAIN
    assert machine.would_block(0.0) is Step.PROBE
    assert machine.probed(1000, 0.0) is Step.WAIT_ACK
    assert machine.woke(0.2) is Step.DRAIN
    assert machine.received(10, 0.2) is Step.DRAIN, "an edge must find nothing unread"
    assert machine.would_block(0.2) is Step.PROBE
    assert machine.probed(10, 0.2) is Step.WAIT_ACK
    assert machine.woke(0.2, readable=False) is Step.PROBE, "nothing came but the news"
    assert machine.probed(0, 0.2) is Step.LET_GO
    assert machine.parting is LingerPolicy.BACKGROUND
    assert machine.released(0.2) == CloseResult(DELIVERED, 0.2, 10, 0, None)


def test_where_a_reset_empties_the_queue_zero_is_not_believed_before_the_error_is_read() -> (
    None
):
    machine = Teardown(terms(until=DELIVERED), 0.0, BSD)
    machine.shut(0.0)
    machine.would_block(0.0)
    assert machine.probed(0, 0.0) is Step.READ_ERROR
    assert machine.failed(RESET, 0.0) is Step.LET_GO
    result = machine.released(0.0)
    assert (result.outcome, result.unacked) == (CloseOutcome.PEER_RESET, None)


def test_without_a_watch_the_acknowledgement_is_looked_for_after_growing_pauses() -> None:
    machine = Teardown(terms(until=DELIVERED), 0.0, BSD)
    machine.shut(0.0)
    machine.would_block(0.0)
    assert machine.probed(5, 0.0) is Step.WAIT_ACK
    assert machine.cannot_watch(0.0) is Step.WAIT_READABLE
    pauses: list[float] = []
    now = 0.0
    while len(pauses) < 12:
        pauses.append(machine.wake_at - now)
        now = machine.wake_at
        assert machine.woke(now) is Step.DRAIN
        assert machine.would_block(now) is Step.PROBE
        assert machine.probed(5, now) is Step.WAIT_READABLE
    assert pauses[0] == pytest.approx(0.001)
    assert all(later > earlier - 1e-9 for earlier, later in itertools.pairwise(pauses))
    assert pauses[-1] == pytest.approx(0.05)
    machine.woke(now)
    machine.would_block(now)
    assert machine.probed(4, now) is Step.WAIT_READABLE
    assert machine.wake_at - now == pytest.approx(0.001), "progress starts the pauses again"
    machine.woke(4.9999)
    machine.would_block(4.9999)
    assert machine.probed(4, 4.9999) is Step.WAIT_READABLE
    assert machine.wake_at == 5.0, "a pause ends with the time"


def test_after_the_peers_fin_a_pause_does_not_wait_for_input_that_is_always_there() -> None:
    machine = Teardown(terms(), 0.0, BSD)
    machine.shut(0.0)
    machine.received(0, 0.0)
    machine.probed(5, 0.0)
    assert machine.no_error(0.0) is Step.WAIT_ACK
    assert machine.cannot_watch(0.0) is Step.PAUSE
    assert machine.woke(0.001) is Step.PROBE


def test_where_nothing_can_be_seen_the_kernel_lingers_for_the_time_that_is_left() -> None:
    machine = Teardown(terms(until=DELIVERED), 10.0, WINDOWS)
    machine.shut(10.0)
    assert machine.received(100, 10.0) is Step.WAIT_READABLE
    assert machine.woke(11.5) is Step.DRAIN
    assert machine.would_block(11.5) is Step.LET_GO
    assert machine.parting is LingerPolicy.TIMED
    assert machine.linger_seconds == 3.5
    result = machine.released(12.0)
    assert (result.outcome, result.unacked) == (CloseOutcome.TIMED_OUT, None)


def test_a_reset_that_the_lingering_close_reports_is_a_reset() -> None:
    machine = Teardown(terms(until=DELIVERED), 0.0, WINDOWS)
    machine.shut(0.0)
    machine.would_block(0.0)
    assert machine.released(0.1, RESET).outcome is CloseOutcome.PEER_RESET


def test_what_close_complains_of_is_information_and_no_outcome() -> None:
    machine = Teardown(terms(), 0.0, LINUX)
    machine.shut(0.0)
    machine.received(0, 0.0)
    machine.probed(0, 0.0)
    interrupted = OSError(errno.EINTR, "interrupted")
    result = machine.released(0.0, interrupted)
    assert (result.outcome, result.error) == (PEER_CLOSED, interrupted)


def test_a_stream_that_shows_no_acknowledgements_waits_for_the_peers_fin_instead() -> None:
    machine = Teardown(terms(until=DELIVERED), 0.0, BLIND)
    machine.shut(0.0)
    assert machine.would_block(0.0) is Step.WAIT_READABLE
    machine.woke(0.0)
    assert machine.received(0, 0.0) is Step.LET_GO
    assert machine.parting is LingerPolicy.BACKGROUND, "there may be something to linger for"
    assert machine.released(0.0) == CloseResult(PEER_CLOSED, 0.0, 0, None, None)


def test_a_count_is_not_believed_where_nobody_can_count() -> None:
    machine = Teardown(terms(), 0.0, BLIND)
    machine.shut(0.0)
    machine.probed(1, 0.0)
    machine.received(0, 0.0)
    assert machine.released(0.0).unacked is None


def test_a_kernel_that_will_not_count_after_all_is_done_without() -> None:
    machine = Teardown(terms(until=DELIVERED), 0.0, LINUX)
    machine.shut(0.0)
    machine.would_block(0.0)
    assert machine.probed(None, 0.0) is Step.WAIT_READABLE
    machine.woke(0.0)
    assert machine.received(0, 0.0) is Step.PROBE
    assert machine.probed(None, 0.0) is Step.LET_GO
    assert machine.released(0.0) == CloseResult(PEER_CLOSED, 0.0, 0, None, None)


def test_the_total_deadline_ends_a_flood_in_the_middle_of_it() -> None:
    machine = Teardown(terms(2.0), 0.0, LINUX)
    machine.shut(0.0)
    assert machine.received(1 << 20, 1.9) is Step.WAIT_READABLE
    assert machine.woke(1.9) is Step.DRAIN
    assert machine.received(1 << 20, 2.1) is Step.PROBE
    assert machine.probed(3, 2.1) is Step.LET_GO
    assert machine.released(2.1) == CloseResult(CloseOutcome.TIMED_OUT, 2.1, 2 << 20, 3, None)


def test_silence_ends_at_the_idle_deadline_and_not_before() -> None:
    machine = Teardown(terms(60.0, idle_timeout=2.0), 0.0, LINUX)
    machine.shut(0.0)
    assert machine.would_block(0.0) is Step.PROBE
    assert machine.probed(7, 0.0) is Step.WAIT_ACK
    assert machine.wake_at == 2.0
    machine.woke(1.0)
    assert machine.received(1, 1.0) is Step.DRAIN
    assert machine.would_block(1.0) is Step.PROBE
    assert machine.probed(7, 1.0) is Step.WAIT_ACK
    assert machine.wake_at == 3.0
    machine.woke(3.0)
    assert machine.would_block(3.0) is Step.PROBE
    assert machine.probed(7, 3.0) is Step.LET_GO
    result = machine.released(3.0)
    assert (result.outcome, result.unacked) == (CloseOutcome.IDLE_TIMED_OUT, 7)


def test_a_slow_reader_that_acknowledges_is_not_idle() -> None:
    machine = Teardown(terms(60.0, idle_timeout=2.0), 0.0, LINUX)
    machine.shut(0.0)
    machine.would_block(0.0)
    machine.probed(50_000, 0.0)
    for now in (2.0, 4.0, 6.0):
        assert machine.woke(now) is Step.DRAIN
        assert machine.would_block(now) is Step.PROBE
        assert machine.probed(50_000 - int(now), now) is Step.WAIT_ACK
        assert machine.wake_at == now + 2.0
    machine.woke(8.0)
    machine.would_block(8.0)
    machine.probed(50_000 - 6, 8.0)
    assert machine.released(8.0).outcome is CloseOutcome.IDLE_TIMED_OUT


def test_the_idle_time_begins_anew_when_the_last_acknowledgement_comes() -> None:
    machine = Teardown(terms(60.0, idle_timeout=2.0), 0.0, LINUX)
    machine.shut(0.0)
    machine.would_block(0.0)
    assert machine.probed(100, 0.0) is Step.WAIT_ACK
    assert machine.woke(0.1, readable=False) is Step.PROBE
    assert machine.probed(0, 0.1) is Step.WAIT_READABLE, "no more acknowledgements can come"
    assert machine.wake_at == 2.1


def test_without_a_watch_acknowledgements_are_noticed_when_the_idle_time_is_up() -> None:
    machine = Teardown(terms(60.0, idle_timeout=2.0), 0.0, BSD)
    machine.shut(0.0)
    machine.would_block(0.0)
    assert machine.probed(100, 0.0) is Step.WAIT_ACK
    assert machine.cannot_watch(0.0) is Step.WAIT_READABLE
    assert machine.wake_at == 2.0
    machine.woke(2.0)
    machine.would_block(2.0)
    assert machine.probed(0, 2.0) is Step.WAIT_READABLE
    assert machine.wake_at == 4.0


def test_the_drain_limit_is_what_may_be_read_and_one_more_ends_it() -> None:
    machine = Teardown(terms(drain_limit=1000), 0.0, LINUX)
    assert machine.allowance == 1001
    machine.shut(0.0)
    assert machine.received(1000, 0.0) is Step.WAIT_READABLE
    assert machine.allowance == 1
    machine.woke(0.0)
    assert machine.received(1, 0.0) is Step.PROBE
    machine.probed(0, 0.0)
    result = machine.released(0.0)
    assert (result.outcome, result.drained) == (CloseOutcome.DRAIN_LIMIT, 1001)


@pytest.mark.parametrize("policy", [LingerPolicy.BACKGROUND, LingerPolicy.ABORT])
def test_giving_up_parts_as_on_timeout_says(policy: LingerPolicy) -> None:
    machine = Teardown(terms(1.0, on_timeout=policy), 0.0, BLIND)
    machine.shut(0.0)
    machine.would_block(0.0)
    machine.woke(1.0)
    assert machine.would_block(1.0) is Step.LET_GO
    assert machine.parting is policy


def test_a_connection_that_the_kernel_gave_up_has_timed_out_and_nothing_lingers() -> None:
    machine = Teardown(terms(on_timeout=LingerPolicy.ABORT), 0.0, LINUX)
    machine.shut(0.0)
    machine.failed(LOST, 0.0)
    machine.probed(4, 0.0)
    assert machine.parting is None
    assert machine.released(0.0) == CloseResult(CloseOutcome.TIMED_OUT, 0.0, 0, 4, LOST)


def test_a_descriptor_that_another_thread_closed_is_already_closed() -> None:
    machine = Teardown(terms(), 0.0, LINUX)
    assert machine.shut(0.0, OSError(errno.EBADF, "closed")) is Step.LET_GO
    assert machine.released(0.0).outcome is CloseOutcome.ALREADY_CLOSED


def test_an_error_that_no_network_makes_is_raised() -> None:
    machine = Teardown(terms(), 0.0, LINUX)
    machine.shut(0.0)
    with pytest.raises(OSError, match="fault"):
        machine.failed(OSError(errno.EFAULT, "fault"), 0.0)


def test_tls_says_goodbye_before_the_fin() -> None:
    machine = Teardown(terms(), 0.0, LINUX, tls=True)
    assert machine.start() is Step.SEND_CLOSE_NOTIFY
    assert machine.notify_would_block(0.0) is Step.DRAIN
    assert machine.would_block(0.0) is Step.WAIT_EITHER
    assert machine.wake_at == 5.0
    assert machine.woke(1.0) is Step.SEND_CLOSE_NOTIFY
    assert machine.notified(True, peers=False) is Step.SHUT_WR
    assert machine.shut(1.0) is Step.DRAIN
    assert machine.received(0, 1.0) is Step.PROBE
    assert machine.probed(0, 1.0) is Step.LET_GO
    result = machine.released(1.0)
    assert result.notified
    assert result.peer_notified is False


def test_a_driver_of_many_waits_before_it_reads() -> None:
    machine = Teardown(terms(), 0.0, LINUX, one_of_many=True)
    assert machine.shut(0.0) is Step.WAIT_READABLE
    assert machine.wake_at == 5.0
    assert machine.woke(1.0) is Step.DRAIN


def test_a_driver_of_many_is_never_held_up_by_the_kernels_linger() -> None:
    machine = Teardown(terms(until=DELIVERED), 0.0, WINDOWS, one_of_many=True)
    machine.shut(0.0)
    assert machine.would_block(0.0) is Step.WAIT_READABLE
    assert machine.woke(5.0) is Step.DRAIN
    assert machine.would_block(5.0) is Step.LET_GO
    assert machine.parting is LingerPolicy.BACKGROUND


def test_a_driver_that_can_wait_no_longer_decides_how_to_part() -> None:
    machine = Teardown(terms(), 0.0, LINUX)
    machine.shut(0.0)
    machine.would_block(0.0)
    assert machine.time_is_up(1.0, LingerPolicy.ABORT) is Step.DRAIN
    assert machine.would_block(1.0) is Step.PROBE
    assert machine.probed(7, 1.0) is Step.LET_GO
    assert machine.parting is LingerPolicy.ABORT
    assert machine.released(1.0) == CloseResult(CloseOutcome.TIMED_OUT, 1.0, 0, 7, None)


def test_a_fin_that_came_just_in_time_is_seen_when_the_driver_can_wait_no_longer() -> None:
    machine = Teardown(terms(), 0.0, LINUX)
    machine.shut(0.0)
    machine.would_block(0.0)
    machine.time_is_up(1.0, LingerPolicy.ABORT)
    machine.received(0, 1.0)
    machine.probed(0, 1.0)
    assert machine.released(1.0).outcome is PEER_CLOSED


@pytest.mark.parametrize("options", [{"idle_timeout": 1.0}, {"until": DELIVERED}])
def test_a_driver_of_many_reads_first_where_a_count_is_needed(options: Any) -> None:
    machine = Teardown(terms(**options), 0.0, LINUX, one_of_many=True)
    assert machine.shut(0.0) is Step.DRAIN


def test_a_close_notify_that_waits_for_room_lets_the_peer_finish_meanwhile() -> None:
    machine = Teardown(terms(), 0.0, LINUX, tls=True)
    machine.start()
    machine.notify_would_block(0.0)
    assert machine.received(70_000, 0.0) is Step.WAIT_EITHER
    assert machine.woke(0.5) is Step.SEND_CLOSE_NOTIFY
    assert machine.notify_would_block(0.5) is Step.DRAIN
    assert machine.received(0, 0.5) is Step.WAIT_WRITABLE  # and not for input, which would spin
    assert machine.woke(1.0) is Step.SEND_CLOSE_NOTIFY
    assert machine.notified(True) is Step.SHUT_WR
    assert machine.shut(1.0) is Step.PROBE
    assert machine.probed(0, 1.0) is Step.LET_GO
    result = machine.released(1.0)
    assert result.outcome is PEER_CLOSED
    assert result.drained == 70_000


@pytest.mark.parametrize("moment", ["at the wait", "at the write"])
def test_a_close_notify_that_finds_no_room_in_time_is_left_out(moment: str) -> None:
    machine = Teardown(terms(1.0), 0.0, LINUX, tls=True)
    machine.start()
    machine.notify_would_block(0.0)
    step = machine.woke(1.0) if moment == "at the wait" else machine.notify_would_block(1.0)
    assert step is Step.SHUT_WR
    assert machine.shut(1.0) is Step.DRAIN
    assert machine.would_block(1.0) is Step.PROBE
    assert machine.probed(9, 1.0) is Step.LET_GO
    result = machine.released(1.0)
    assert result.outcome is CloseOutcome.TIMED_OUT
    assert result.notified is False


def test_acknowledgements_are_signs_of_life_while_close_notify_waits_for_room() -> None:
    machine = Teardown(terms(60.0, idle_timeout=1.0), 0.0, LINUX, tls=True)
    machine.start()
    assert machine.notify_would_block(0.0) is Step.DRAIN
    assert machine.would_block(0.0) is Step.PROBE
    assert machine.probed(9_000, 0.0) is Step.WAIT_EITHER
    for second in (1.0, 2.0, 3.0):
        assert machine.wake_at == second
        assert machine.woke(second) is Step.SEND_CLOSE_NOTIFY
        assert machine.notify_would_block(second) is Step.DRAIN
        assert machine.would_block(second) is Step.PROBE
        assert machine.probed(9_000 - int(second), second) is Step.WAIT_EITHER
    machine.woke(4.0)
    machine.notify_would_block(4.0)
    machine.would_block(4.0)
    assert machine.probed(9_000 - 3, 4.0) is Step.SHUT_WR, "nothing more for a second"


# --- every story -------------------------------------------------------------------------------

ERRORS = st.sampled_from(
    [errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EBADF]
).map(lambda number: OSError(number, "played"))

SIGHTS = st.sampled_from([LINUX, BSD, WINDOWS, BLIND])

ANY_TERMS = st.builds(
    Terms,
    st.sampled_from([0, 0.5, 5.0]),
    st.sampled_from([None, 0, 0.25, 2.0]),
    st.sampled_from([None, 0, 10, 10_000]),
    st.sampled_from([PEER_CLOSED, DELIVERED]),
    st.sampled_from([LingerPolicy.BACKGROUND, LingerPolicy.ABORT]),
)


class World:
    """Answers each step as some network could, and checks each promise as it goes."""

    def __init__(self, data: st.DataObject, terms: Terms, sight: Sight, tls: bool) -> None:
        self.data, self.terms, self.sight = data, terms, sight
        self.now = self.life = 1000.0
        one_of_many = data.draw(st.booleans())
        self.machine = Teardown(terms, self.now, sight, tls=tls, one_of_many=one_of_many)
        self.fin_came = False
        self.last_count: int | None = None
        self.drained = 0
        self.early_wakes = 10

    def draw(self, strategy: st.SearchStrategy[Any]) -> Any:
        return self.data.draw(strategy)

    def play(self) -> CloseResult:
        step = self.machine.start()
        for _ in range(1000):
            if step is Step.LET_GO:
                return self.machine.released(self.now)
            self.now += self.draw(st.sampled_from([0.02, 0.1]))
            step = self.answer(step)
        raise AssertionError("the close never ended")

    def answer(self, step: Step) -> Step:
        match step:
            case Step.SEND_CLOSE_NOTIFY:
                if self.draw(st.booleans()):
                    return self.machine.notify_would_block(self.now)
                return self.machine.notified(self.draw(st.sampled_from([None, True, False])))
            case Step.SHUT_WR:
                return self.machine.shut(self.now, self.draw(st.none() | ERRORS))
            case Step.DRAIN:
                return self.drain()
            case Step.PROBE:
                count = self.draw(st.sampled_from([None, 0, 0, 1, 500, 70_000]))
                if (
                    count is not None
                    and self.last_count is not None
                    and count < self.last_count
                ):
                    self.life = self.now
                self.last_count = count
                return self.machine.probed(count, self.now)
            case Step.READ_ERROR:
                error = self.draw(st.none() | ERRORS)
                if error is None:
                    return self.machine.no_error(self.now)
                return self.machine.failed(error, self.now)
            case Step.WAIT_ACK if self.draw(st.booleans()):
                return self.machine.cannot_watch(self.now)
            case _:
                return self.wait(step)

    def drain(self) -> Step:
        assert not self.fin_came, "nothing comes after the peer's FIN"
        allowance = self.machine.allowance
        assert allowance is None or allowance > 0
        what = self.draw(st.sampled_from(["data", "nothing", "nothing", "fin", "error"]))
        if what == "data":
            most = 100_000 if allowance is None else min(allowance, 100_000)
            count = self.draw(st.integers(1, most))
            self.drained += count
            self.life = self.now
            return self.machine.received(count, self.now)
        if what == "nothing":
            return self.machine.would_block(self.now)
        if what == "fin":
            self.fin_came = True
            return self.machine.received(0, self.now)
        return self.machine.failed(self.draw(ERRORS), self.now)

    def wait(self, step: Step) -> Step:
        wake_at = self.machine.wake_at
        assert wake_at <= 1000.0 + self.terms.timeout
        if step is not Step.WAIT_WRITABLE:
            assert wake_at <= self.life + self.terms.idle_timeout
        if self.fin_came:
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


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), ANY_TERMS, SIGHTS, st.booleans())
def test_no_network_makes_it_break_a_promise(
    data: st.DataObject, terms: Terms, sight: Sight, tls: bool
) -> None:
    world = World(data, terms, sight, tls)
    result = world.play()
    assert result.elapsed >= 0
    assert result.drained == world.drained
    match result.outcome:
        case CloseOutcome.PEER_CLOSED:
            assert world.fin_came
            assert result.unacked in {0, None}
        case CloseOutcome.DELIVERED:
            assert terms.until is DELIVERED
            assert result.unacked == 0
            assert world.last_count == 0
        case CloseOutcome.TIMED_OUT if result.error is None:
            over = result.elapsed >= terms.timeout
            assert over or world.machine.parting is LingerPolicy.TIMED
        case CloseOutcome.IDLE_TIMED_OUT:
            assert world.now - world.life >= terms.idle_timeout
        case CloseOutcome.DRAIN_LIMIT:
            assert terms.drain_limit is not None
            assert result.drained == terms.drain_limit + 1
        case outcome:
            assert outcome is not CloseOutcome.ABORTED
            assert result.error is not None
    if result.unacked is not None:
        assert sight.acks


EVENTS = st.sampled_from(
    ["notified", "blocked", "shut", "shut badly", "fin", "data", "nothing", "failed",
     "probed", "no error", "woke", "cannot watch", "time is up"]
)  # fmt: skip


def tell(machine: Teardown, event: str, now: float, data: st.DataObject) -> Step:
    match event:
        case "notified":
            return machine.notified(True)
        case "blocked":
            return machine.notify_would_block(now)
        case "shut":
            return machine.shut(now)
        case "shut badly":
            return machine.shut(now, data.draw(ERRORS))
        case "fin":
            return machine.received(0, now)
        case "data":
            return machine.received(data.draw(st.integers(1, 20_000)), now)
        case "nothing":
            return machine.would_block(now)
        case "failed":
            return machine.failed(data.draw(ERRORS), now)
        case "probed":
            return machine.probed(data.draw(st.sampled_from([None, 0, 1, 9000])), now)
        case "no error":
            return machine.no_error(now)
        case "woke":
            return machine.woke(now)
        case "time is up":
            return machine.time_is_up(now, LingerPolicy.ABORT)
        case _:
            return machine.cannot_watch(now)


WAITS = {Step.WAIT_READABLE, Step.WAIT_WRITABLE, Step.WAIT_EITHER, Step.WAIT_ACK, Step.PAUSE}


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), ANY_TERMS, SIGHTS, st.booleans(), st.lists(EVENTS, max_size=40))
def test_no_order_of_reports_at_all_makes_it_wait_too_long_or_go_on_after_the_end(
    data: st.DataObject, terms: Terms, sight: Sight, tls: bool, events: list[str]
) -> None:
    now = 50.0
    machine = Teardown(terms, now, sight, tls=tls)
    step = machine.start()
    ended: CloseResult | None = None
    for event in events:
        now += data.draw(st.sampled_from([0.0, 0.01, 1.0]))
        step = tell(machine, event, now, data)
        if step in WAITS:
            assert machine.wake_at <= 50.0 + terms.timeout
        if ended is not None:
            assert step is Step.LET_GO
            assert machine.released(0.0) == ended
        elif step is Step.LET_GO:
            ended = machine.released(0.0)
            if ended.outcome in {PEER_CLOSED, DELIVERED}:
                assert ended.unacked in {0, None}


# --- many stories that are one -------------------------------------------------------------------

LATER = st.sampled_from([0.0, 0.02, 0.5, 60.0])


@settings(max_examples=400, deadline=None)
@given(ANY_TERMS, SIGHTS, st.booleans(), LATER, LATER, LATER, st.none() | ERRORS)
def test_one_machine_answers_for_all_that_are_alike_as_each_ones_own_would(
    terms: Terms,
    sight: Sight,
    looks_at_once: bool,
    to_shut: float,
    to_wake: float,
    to_let_go: float,
    complaint: OSError | None,
) -> None:
    alike = Alike(terms, looks_at_once=looks_at_once, sight=sight)
    with socket.socket() as sock:
        if not alike.takes(sock):
            return
    machine = Teardown(terms, 50.0, sight, one_of_many=True)
    assert (50.0 + alike.patience, alike.allowance) == (machine.wake_at, machine.allowance)
    now = 50.0 + to_shut
    assert machine.start() is Step.SHUT_WR
    step = machine.shut(now)
    if step is Step.WAIT_READABLE or not looks_at_once:
        assert step is Step.WAIT_READABLE or to_shut >= alike.patience
        now += to_wake
        step = machine.woke(now)
    assert step is Step.DRAIN
    assert machine.received(0, now) is Step.PROBE
    assert machine.probed(0, now) is Step.LET_GO
    assert machine.parting is None
    now += to_let_go
    ended = machine.released(now, complaint)
    assert alike.released(now - 50.0, complaint).elapsed == pytest.approx(ended.elapsed)
    assert str(alike.released(now - 50.0, complaint)) == str(ended)


@pytest.mark.parametrize(
    ("sight", "options", "takes"),
    [
        (LINUX, {}, True),
        (LINUX, {"drain_limit": 0, "on_timeout": LingerPolicy.ABORT}, True),
        (LINUX, {"until": DELIVERED}, False),  # one of many reads and counts first
        (LINUX, {"idle_timeout": 1.0}, False),
        (LINUX, {"timeout": 0}, False),
        (BSD, {}, False),  # a reset would look the same
        (WINDOWS, {}, False),
    ],
)
def test_only_those_that_wait_for_the_peers_fin_alone_are_alike(
    sight: Sight, options: Any, takes: bool
) -> None:
    with socket.socket() as sock:
        assert Alike(terms(**options), sight=sight).takes(sock) is takes


@pytest.mark.parametrize(
    ("options", "takes"),
    [
        ({}, True),
        ({"idle_timeout": 1.0}, True),
        ({"timeout": 0}, True),
        ({"until": DELIVERED}, False),
    ],
)
def test_whoever_looks_at_once_need_not_have_counted_before(options: Any, takes: bool) -> None:
    with socket.socket() as sock:
        alike = Alike(terms(**options), looks_at_once=True, sight=LINUX)
        assert alike.takes(sock) is takes


@settings(max_examples=200, deadline=None)
@given(ANY_TERMS, SIGHTS, LATER)
def test_one_machine_answers_for_all_that_are_over_when_they_come(
    terms: Terms, sight: Sight, later: float
) -> None:
    alike = Alike(terms, looks_at_once=True, sight=sight, over=NOT_CONNECTED)
    if not alike.kinds:
        return
    machine = Teardown(terms, 50.0, sight, one_of_many=True)
    now = 50.0 + later
    assert machine.start() is Step.SHUT_WR
    assert machine.shut(now, NOT_CONNECTED) is Step.DRAIN
    assert machine.received(0, now) is Step.READ_ERROR
    assert machine.no_error(now) is Step.PROBE
    assert machine.probed(0, now) is Step.LET_GO
    assert machine.parting is None
    ended = machine.released(now)
    assert alike.released(now - 50.0).elapsed == pytest.approx(ended.elapsed)
    assert str(alike.released(now - 50.0)) == str(ended)


@pytest.mark.parametrize(("sight", "one_way"), [(LINUX, True), (BSD, True), (WINDOWS, False)])
def test_those_that_are_over_go_one_way_where_acknowledgements_are_counted(
    sight: Sight, one_way: bool
) -> None:
    assert (
        bool(Alike(terms(), looks_at_once=True, sight=sight, over=NOT_CONNECTED).kinds)
        is one_way
    )


def test_only_a_plain_tcp_socket_is_alike() -> None:
    class Special(socket.socket):
        pass

    alike = Alike(terms(), sight=LINUX)
    with Special() as special, socket.socket(socket.AF_UNIX) as unix:
        assert not alike.takes(special)
        assert not alike.takes(unix)


def test_what_the_close_of_one_complains_of_is_nothing_of_the_others() -> None:
    alike = Alike(terms(), sight=LINUX)
    interrupted = OSError(errno.EINTR, "interrupted")
    assert alike.released(1.0, interrupted).error is interrupted
    assert alike.released(1.0, None) == CloseResult(PEER_CLOSED, 1.0, 0, 0, None)


# --- what may be asked for -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["timeout", "idle_timeout"])
@pytest.mark.parametrize("value", [-1, -0.001, math.inf, math.nan, 10**400])
def test_a_wait_is_finite_and_not_negative(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a finite number of seconds"):
        terms(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("timeout", None), ("timeout", "5"), ("timeout", True), ("idle_timeout", "5")],
)
def test_a_wait_is_a_number(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a finite number of seconds"):
        terms(**{name: value})


@pytest.mark.parametrize(
    ("value", "error"),
    [(-1, ValueError), (1.5, TypeError), (True, TypeError), ("9", TypeError)],
)
def test_a_drain_limit_is_a_whole_number_of_bytes(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"drain_limit must be .*0 or more"):
        Terms(5.0, drain_limit=value)


def test_until_is_one_of_two_outcomes() -> None:
    with pytest.raises(ValueError, match="PEER_CLOSED or DELIVERED, not <CloseOutcome.ABORTED"):
        Terms(5.0, until=CloseOutcome.ABORTED)


def test_on_timeout_is_one_of_two_policies() -> None:
    with pytest.raises(ValueError, match="BACKGROUND or ABORT, not <LingerPolicy.TIMED"):
        Terms(5.0, on_timeout=LingerPolicy.TIMED)


# --- before the machine begins ---------------------------------------------------------------------


def test_what_is_left_of_the_terms_is_what_was_not_used_up() -> None:
    asked = Terms(5.0, 2.0, 1000, DELIVERED, LingerPolicy.ABORT)
    left = asked.after(3.0, 400)
    assert (left.timeout, left.idle_timeout, left.drain_limit) == (2.0, 2.0, 600)
    assert (left.until, left.on_timeout) == (DELIVERED, LingerPolicy.ABORT)
    nothing = asked.after(9.0, 4000)
    assert (nothing.timeout, nothing.drain_limit) == (0.0, 0)
    endless = Terms(5.0).after(1.0, 10**9)
    assert (endless.idle_timeout, endless.drain_limit) == (math.inf, None)


def test_patience_ends_with_the_silence_the_time_or_the_limit() -> None:
    patience = Patience(Terms(5.0, 2.0, 1000), 100.0, 101.0)
    assert patience.wake_at == 103.0
    assert patience.gives_up(102.9, 1000) is None
    assert patience.gives_up(103.0, 1000) is CloseOutcome.IDLE_TIMED_OUT
    patience.sign_of_life(103.5)
    assert patience.wake_at == 105.0
    assert patience.gives_up(104.9, 0) is None
    assert patience.gives_up(105.0, 0) is CloseOutcome.TIMED_OUT
    assert patience.gives_up(105.0, 1001) is CloseOutcome.DRAIN_LIMIT
