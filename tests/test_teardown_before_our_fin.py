"""Phases 2 and 3 of the state machine: close_notify, and a wait for the peer's FIN before ours."""

from __future__ import annotations

from typing import Any

import pytest

from graceful_close import CloseOutcome, CloseResult, LingerPolicy
from graceful_close._platform import TcpState, View
from graceful_close._step import Step
from graceful_close._teardown import Teardown
from machines import (
    ACCEPTING,
    BOTH_FINS,
    DELIVERED,
    FIN_SENT,
    LINUX,
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
    asking,
    begin,
    end_of,
    end_of_stream,
    letting_the_peer_be_first,
    without_input,
    without_room,
    woke_without_input,
)

# --- close_notify -----------------------------------------------------------------------------


def test_close_notify_is_sent_before_the_fin() -> None:
    machine = without_room()
    assert machine.would_block(0.0) is Step.WAIT_EITHER
    assert machine.wake_at == 5.0
    assert machine.woke(1.0) is Step.SEND_CLOSE_NOTIFY
    assert machine.notified(True, 1.0, received=False) is Step.SHUT_WR
    assert machine.shut(1.0) is Step.DRAIN
    assert end_of_stream(machine, 1.0) is Step.COUNT
    assert machine.counted(0, 1.0) is Step.RELEASE
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
    assert machine.looked(OVER, 0.0) is Step.RELEASE
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
    assert machine.counted(0, 1.0) is Step.RELEASE
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
    assert machine.counted(9, 1.0) is Step.RELEASE
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


def test_a_drain_limit_while_close_notify_waits_sends_our_fin_without_it() -> None:
    machine = without_room(asking(drain_limit=10))
    assert machine.received(11, 0.0) is Step.SHUT_WR
    assert machine.shut(0.0, NOT_CONNECTED) is Step.COUNT, "whatever shutdown() returns"
    machine.counted(3, 0.0)
    assert end_of(machine, "notified") == (CloseOutcome.DRAIN_LIMIT, False)


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


def test_a_close_notify_in_a_handshake_waits_for_room_without_a_count() -> None:
    machine = without_room(asking(idle_timeout=1.0), state=ACCEPTING)
    assert machine.would_block(0.0) is Step.LOOK
    assert machine.looked(ACCEPTING, 0.0) is Step.WAIT_EITHER


# --- the peer first ---------------------------------------------------------------------------


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
    assert machine.counted(0, 10.4) is Step.RELEASE
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
    assert machine.counted(0, 0.0) is Step.RELEASE
    assert machine.released(0.0).peer_first is True


@pytest.mark.parametrize("peer_first", [0.0, 1.0])
@pytest.mark.parametrize("state", [FIN_SENT, BOTH_FINS])
def test_a_caller_that_was_first_before_the_call_is_reported_as_first(
    state: TcpState, peer_first: float
) -> None:
    machine = Teardown(asking(peer_first=peer_first), 0.0, LINUX)
    assert begin(machine, state=state) is Step.DRAIN, "our FIN was sent, so there is no wait"
    assert end_of_stream(machine) is Step.COUNT
    assert machine.counted(0, 0.0) is Step.RELEASE
    assert machine.released(0.0).peer_first is False


def test_without_states_who_was_first_is_unknown() -> None:
    machine = Teardown(asking(peer_first=1.0), 0.0, WINDOWS)
    assert machine.start() is Step.DRAIN
    assert machine.would_block(0.0) is Step.WAIT_READABLE
    machine.woke(0.5)
    assert machine.received(0, 0.5) is Step.SHUT_WR
    assert machine.shut(0.5) is Step.RELEASE
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
    assert machine.counted(3, 0.0) is Step.RELEASE
    assert machine.released(0.0).outcome is CloseOutcome.DRAIN_LIMIT


def test_a_drain_limit_that_aborts_sends_no_fin() -> None:
    options = asking(peer_first=1.0, drain_limit=10, on_timeout=LingerPolicy.ABORT)
    machine = Teardown(options, 0.0, LINUX)
    begin(machine)
    assert machine.received(11, 0.0) is Step.COUNT
    machine.counted(3, 0.0)
    assert machine.linger_policy is LingerPolicy.ABORT


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
