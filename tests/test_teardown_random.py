"""The state machine on random paths: every combination of options, times of any length, any report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graceful_close import CloseOutcome, CloseResult, LingerPolicy
from graceful_close._step import Step
from machine_reports import ANY_REPORT, WAITS, Case, Report
from machine_space import Walk
from test_teardown_exhaustive import VIEWS


# A flush that has sent our FIN is no abort.
def _case(way: str, **options: Any) -> Case:
    chosen: dict[str, Any] = {way: True} if way else {}
    return Case("random", **options, **chosen)


CASES = st.builds(
    _case,
    way=st.sampled_from(["", "fin_sent", "flush", "abort"]),
    view=st.sampled_from(list(VIEWS.values())),
    timeout=st.sampled_from([0, 0.5, 5.0]),
    idle_timeout=st.sampled_from([None, 0, 0.25, 2.0]),
    drain_limit=st.sampled_from([None, 0, 2, 10_000]),
    until=st.sampled_from([CloseOutcome.PEER_CLOSED, CloseOutcome.DELIVERED]),
    on_timeout=st.sampled_from([LingerPolicy.BACKGROUND, LingerPolicy.ABORT]),
    peer_first=st.sampled_from([0, 0.3, 60.0]),
    tls=st.booleans(),
    one_of_many=st.booleans(),
    unflushed=st.booleans(),
)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), CASES)
def test_no_network_makes_the_machine_break_a_guarantee(
    data: st.DataObject, case: Case
) -> None:
    def choose(options: Sequence[Any]) -> Any:
        return data.draw(st.sampled_from(options))

    assert Walk(case, choose).violations == {}


@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    CASES,
    st.lists(
        st.tuples(st.sampled_from(ANY_REPORT), st.sampled_from([0, 0.01, 1.0])), max_size=40
    ),
)
def test_no_order_of_reports_makes_the_machine_wait_too_long_or_continue_after_the_end(
    case: Case, reports: list[tuple[tuple[str, Any], float]]
) -> None:
    machine = case.machine()
    machine.start()
    now = 0.0
    ended: CloseResult | None = None
    for (name, value), pause in reports:
        now += pause
        step = Report(name, value, now).tell(machine)
        if step in WAITS:
            assert machine.wake_at <= case.timeout
        if ended is not None:
            assert step is Step.RELEASE
            assert machine.released(0.0) == ended
        elif step is Step.RELEASE:
            ended = machine.released(0.0)
            if ended.outcome in {CloseOutcome.PEER_CLOSED, CloseOutcome.DELIVERED}:
                assert ended.unacked in {0, None}
