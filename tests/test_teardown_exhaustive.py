"""The state machine in every reachable state.

`machine_space` says what a state is, and `machine_reports` what may be reported in it. The product
of the views and of all options is too large for a test that anybody runs. It is cut pairwise: of the
seven that have two levels (tls, peer_first, until, idle_timeout, one_of_many, drain_limit, fin_sent)
the eight rows of Taguchi's L8 have each pair of levels of each two of them, and each row is run on
every view but macOS's: four rows there, which have each level of each one. (What it has in common
with Linux is run there, and that its count does not survive a reset is MPTCP's case, too.) An abort
looks at none of these but tls and fin_sent; no flush that sent our FIN is an abort. After a flush the
close is as any other.
"""

from __future__ import annotations

from typing import Any

import pytest

from graceful_close import CloseOutcome
from graceful_close._platform import SYSTEMS
from graceful_close._step import Step
from machine_reports import WAITS, Case
from machine_space import Node, Space

# Millions of calls of lines that test_teardown_* cover too: measured, they would take three times as long.
pytestmark = pytest.mark.usefixtures("unmeasured")

DELIVERED = CloseOutcome.DELIVERED

VIEWS = {
    "linux": SYSTEMS["linux"].tcp,
    "macos": SYSTEMS["macos"].tcp,
    "windows": SYSTEMS["windows"].tcp,
    "other": SYSTEMS["linux"].other,
    "mptcp": SYSTEMS["linux"].mptcp,
}

L8 = (
    (0, 0, 0, 0, 0, 0, 0),
    (0, 0, 0, 1, 1, 1, 1),
    (0, 1, 1, 0, 0, 1, 1),
    (0, 1, 1, 1, 1, 0, 0),
    (1, 0, 1, 0, 1, 0, 1),
    (1, 0, 1, 1, 0, 1, 0),
    (1, 1, 0, 0, 1, 1, 0),
    (1, 1, 0, 1, 0, 0, 1),
)

# The two levels of each option. A limit of 0 ends the close at the first byte. Reads below a
# limit are like reads without one.
LEVELS: dict[str, tuple[Any, Any]] = {
    "tls": (False, True),
    "peer_first": (0, 1),
    "until": (CloseOutcome.PEER_CLOSED, DELIVERED),
    "idle_timeout": (None, 1),
    "one_of_many": (False, True),
    "drain_limit": (None, 0),
    "fin_sent": (False, True),
}

ON_MACOS = (0, 3, 4, 6)  # rows with each level of each option


def _case(view: str, row: tuple[int, ...]) -> Case:
    options = {name: LEVELS[name][level] for name, level in zip(LEVELS, row, strict=True)}
    asked = [name for name, level in zip(LEVELS, row, strict=True) if level]
    return Case("-".join((view, *asked)), VIEWS[view], **options)


CASES = (
    [
        _case(view, row)
        for number, row in enumerate(L8)
        for view in VIEWS
        if view != "macos" or number in ON_MACOS
    ]
    + [
        Case(f"{view}-{way}{'-tls' * tls}", VIEWS[view], tls=tls, **{way: True})
        for view in VIEWS
        for tls in (False, True)
        for way in ("abort", "flush")
        if way == "abort" or view in {"linux", "other"}
    ]
    + [
        Case(
            f"{view}-expired{'-tls' * tls}",
            VIEWS[view],
            tls=tls,
            flush=True,
            expired=True,
            timeout=0,
        )
        for view in ("linux", "other")
        for tls in (False, True)
    ]
)

# Tests that check only the order or the waits use small cases.
SMALL = [
    case
    for case in CASES
    if case.view not in {VIEWS["linux"], VIEWS["macos"]} and not case.abort
] + [CASES[0], CASES[1]]


def _is_work(node: Node) -> bool:
    return node.seen.step not in WAITS and node.seen.step is not Step.RELEASE


def _names(cases: list[Case]) -> list[str]:
    return [case.name for case in cases]


@pytest.mark.parametrize("case", CASES, ids=_names(CASES))
def test_no_sequence_of_reports_breaks_a_guarantee(case: Case) -> None:
    space = Space(case)
    space.check_ends()
    # The number of steps of all phases, with one read in each.
    assert space.longest(_is_work) <= 16
    # After the time is up, the waits count too, because they end immediately.
    assert space.longest(lambda node: node.seen.now >= case.timeout) <= 16
    assert space.violations == {}
    _, between = space.phases()
    assert all(before <= after for before, after in between), "no phase is repeated"


@pytest.mark.parametrize("case", SMALL, ids=_names(SMALL))
def test_no_wait_for_input_repeats_forever(case: Case) -> None:
    space = Space(case)
    # One wake-up may be caused by another reader, the next empties the error queue, and then
    # the machine pauses.
    space.check_spins(most=6)
    assert space.violations.get("it spins") is None


# In any order there are too many states, so the paths are limited to this number of reports.
MOST_REPORTS = 3

ANY_ORDER = [
    case._replace(timeout=1)
    for case in (
        Case("windows-peer_first", VIEWS["windows"], peer_first=1),
        Case("linux-DELIVERED", VIEWS["linux"], until=DELIVERED),
        Case("other-tls", VIEWS["other"], tls=True),
        Case("linux-abort", VIEWS["linux"], abort=True),
    )
]


@pytest.mark.parametrize("case", ANY_ORDER, ids=_names(ANY_ORDER))
def test_no_order_of_reports_makes_the_machine_continue_after_its_end(case: Case) -> None:
    space = Space(case, any_order=True, most_reports=MOST_REPORTS)
    # Reports that the machine did not request are mistakes of the driver, and may prove false
    # facts.
    assert {what: how for what, how in space.violations.items() if "proof" not in what} == {}
