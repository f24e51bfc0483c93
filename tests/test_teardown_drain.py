"""Our FIN and the drain, phases 4 and 5 of the state machine: reads until the peer's FIN or a limit."""

from __future__ import annotations

import pytest

from graceful_close import CloseOutcome, CloseResult, LingerPolicy
from graceful_close._options import Options
from graceful_close._platform import TcpState, View
from graceful_close._step import Step
from graceful_close._teardown import Teardown
from machines import (
    BOTH_FINS,
    BSD,
    DELIVERED,
    FIN_SENT,
    LINUX,
    LOST,
    MPTCP,
    NOT_CONNECTED,
    OPEN,
    OTHER,
    OVER,
    PEER_CLOSED,
    PEER_FIN,
    RESET,
    WINDOWS,
    asking,
    begin,
    begun,
    deaf,
    draining,
    end_of,
    end_of_stream,
    silent,
    without_input,
    woke_to_count,
    woke_without_input,
)


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
    assert machine.counted(0, 100.2) is Step.RELEASE
    assert machine.linger_policy is None
    assert not machine.wake_readers, "a driver that reads has read the end of the stream"
    result = machine.released(100.25)
    assert result == CloseResult(PEER_CLOSED, 0.25, 5000, 0, None, peer_first=False)


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
    assert machine.no_error(0.1) is Step.RELEASE
    assert end_of(machine, "error", 0.1) == (PEER_CLOSED, None)


def test_a_stream_without_acknowledgements_waits_for_the_peers_fin() -> None:
    machine = draining(asking(until=DELIVERED), OTHER)
    assert machine.would_block(0.0) is Step.WAIT_READABLE
    machine.woke(0.0)
    assert machine.received(0, 0.0) is Step.RELEASE
    assert machine.linger_policy is LingerPolicy.BACKGROUND, "there may be something to send"
    assert machine.released(0.0) == CloseResult(PEER_CLOSED, 0.0, 0, None, None)


def test_the_deadline_ends_a_flood() -> None:
    machine = draining(asking(2.0))
    assert machine.received(1 << 20, 1.9) is Step.WAIT_READABLE
    assert machine.woke(1.9) is Step.DRAIN
    assert machine.received(1 << 20, 2.0) is Step.COUNT
    assert machine.counted(3, 2.0) is Step.RELEASE
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
    assert woke_to_count(machine, 7, 3.0) is Step.RELEASE
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


def test_the_end_of_the_stream_is_not_a_fin_if_the_state_disagrees() -> None:
    machine = deaf()
    assert machine.counted(70_000, 0.0) is Step.WAIT_ACK, "always readable: this would spin"
    assert machine.wake_at == 5.0
    assert machine.woke(1.0) is Step.LOOK
    assert machine.looked(FIN_SENT, 1.0) is Step.COUNT
    assert machine.counted(0, 1.0) is Step.WAIT_ACK
    assert machine.woke(2.0) is Step.LOOK
    assert machine.looked(BOTH_FINS, 2.0) is Step.COUNT
    assert machine.counted(0, 2.0) is Step.RELEASE
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
    assert machine.counted(4, 5.0) is Step.RELEASE
    assert machine.released(5.0) == CloseResult(CloseOutcome.TIMED_OUT, 5.0, 0, 4, None)


def test_an_end_that_recv_could_not_report_may_be_a_reset() -> None:
    machine = deaf()
    machine.counted(9, 0.0)
    machine.woke(1.0)
    assert machine.looked(OVER, 1.0) is Step.READ_ERROR
    assert machine.failed(RESET, 1.0) is Step.COUNT
    machine.counted(9, 1.0)
    assert machine.released(1.0).outcome is CloseOutcome.PEER_RESET


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


def test_a_fin_that_has_arrived_is_seen_when_the_driver_must_end() -> None:
    machine = silent()
    machine.time_is_up(1.0, LingerPolicy.ABORT)
    end_of_stream(machine, 1.0)
    machine.counted(0, 1.0)
    assert machine.released(1.0).outcome is PEER_CLOSED


def test_a_fin_that_failed_is_not_sent_again() -> None:
    machine = draining(error=NOT_CONNECTED)
    assert machine.failed(LOST, 0.0) is Step.COUNT
    machine = begun()
    assert machine.shut(0.0, LOST) is Step.COUNT


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


def test_input_resets_the_count_of_empty_wake_ups() -> None:
    machine = silent()
    for _ in range(10):
        assert woke_without_input(machine, 0.0) is Step.WAIT_READABLE
        assert machine.woke(0.0) is Step.DRAIN
        assert machine.received(1, 0.0) is Step.WAIT_READABLE
