"""The flush, phase 0 of the state machine: the buffer of a transport is written before the close."""

from __future__ import annotations

import errno

import pytest

from graceful_close import CloseOutcome, CloseResult, LingerPolicy
from graceful_close._platform import TcpState, View
from graceful_close._step import Step
from machines import (
    ACCEPTING,
    BOTH_FINS,
    CUT_SHORT,
    FIN_SENT,
    HELD,
    LINUX,
    LOST,
    OPEN,
    OTHER,
    OVER,
    PEER_CLOSED,
    PEER_FIN,
    RESET,
    after_our_fin_in_a_flush,
    asking,
    begin,
    end_flush,
    end_of,
    end_of_stream,
    flushing,
    given_up,
)


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
    assert machine.counted(0, 0.0) is Step.RELEASE
    assert machine.released(0.0).outcome is PEER_CLOSED


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
    assert machine.counted(0, 3.0) is Step.RELEASE
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
    assert machine.counted(7, 120.0) is Step.RELEASE
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
    assert machine.counted(7, 5.0) is Step.RELEASE
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
    assert machine.counted(7, 5.0) is Step.RELEASE
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
    assert machine.counted(0, 1.0) is Step.RELEASE
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
        assert machine.counted(0, 5.0) is Step.RELEASE
    assert machine.released(5.0).notified is notified


def test_a_flush_that_was_cut_short_has_sent_no_close_notify() -> None:
    machine = flushing(view=OTHER, tls=True)
    machine.cut_short(HELD, CUT_SHORT, 5.0)
    assert machine.looked(OPEN, 5.0) is Step.RELEASE
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
    assert machine.counted(7, 1.0) is Step.RELEASE
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
    assert machine.looked(ACCEPTING, 1.0) is Step.RELEASE
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
