"""The state space of a `Teardown`: every reachable state, found by breadth-first search.

A state has the slots of the machine, the position of its driver (the step and the clock), and
what the previous reports have proven. Three rules make the number of states finite. The clock
ticks in whole seconds and stops one second after the deadline, so that each report arrives
before, at and after each of the deadlines. Counts are 0, 1 or 2 ("more"). The key of a state
omits slots that decide nothing (`_pause`, which only shortens a wait, and slots that never
change).
"""

# This module reads the private state of the machine.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import enum
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from operator import attrgetter
from typing import Any, NamedTuple

from graceful_close import CloseOutcome, LingerPolicy
from graceful_close._platform import TcpState
from graceful_close._result import CloseResult
from graceful_close._step import Step
from graceful_close._teardown import Teardown
from machine_reports import (
    ACCEPTING,
    ANY_REPORT,
    NEVER_OPEN,
    OVER,
    WAITS,
    Case,
    Report,
    Seen,
    reports_of,
    seen_after,
    seen_at_first,
)

_SLOTS = tuple(Teardown.__slots__)
_all_of = attrgetter(*_SLOTS)
# Copies take most of the time, and copy.copy() is five times slower.
_SETTERS = [vars(Teardown)[name].__set__ for name in _SLOTS]
_UNCHANGING = {
    "_deadline",
    "_moved",
    "_on_timeout",
    "_one_of_many",
    "_options",
    "_pause",
    "_started",
    "_stood",
    "_unflushed",
    "_view",
    "allowance",
    "peer",
}
# Slots that still matter after the outcome is decided, and slots that matter only before.
_TO_THE_END = (
    "_abort",
    "_concluded",
    "_deaf",
    "_first_looked",
    "_fin_sent",
    "_fin_tried",
    "_held",
    "_notified",
    "_notifying",
    "_outcome",
    "_peer_fin",
    "_peer_first",
    "_peer_notified",
    "_recounting",
    "_state",
    "_unacked",
    "_void",
    "linger_policy",
    "linger_seconds",
)
_apart = {*_UNCHANGING, *_TO_THE_END, "wake_at", "_drained", "_error"}
_to_the_end_of = attrgetter(*_TO_THE_END)
_before_the_end_of = attrgetter(*(name for name in _SLOTS if name not in _apart))


def _key_of(machine: Teardown, case: Case) -> tuple[Any, ...]:
    """Return the key that identifies a state of the machine."""
    error = machine._error
    return (
        _to_the_end_of(machine),
        None if machine._outcome else _before_the_end_of(machine),
        machine._drained if case.drain_limit is not None else None,
        None if error is None else error.errno,
    )


# Calls that take no time. (A count takes time: the deadline may pass between a read and the
# count after it. Time also does not change a decision.)
_AT_ONCE = frozenset({Step.LOOK, Step.READ_ERROR, Step.CLEAR_ERRORS})

_AT_THE_END: dict[str, Any] = dict.fromkeys(("now", "life", "reads"), 0)

# In these views there is no connection, or it has ended.
_NONE = frozenset({TcpState.LISTENING, TcpState.CONNECTING, OVER, NEVER_OPEN})


class Node(NamedTuple):
    """A state, and the shortest path to it."""

    slots: tuple[Any, ...]
    seen: Seen
    before: Node | None
    report: Report | None

    def __str__(self) -> str:
        """Return the reports on the path."""
        lines: list[str] = []
        node: Node | None = self
        while node is not None:
            lines.append(f"{node.report or 'start()'} -> {node.seen.step.name}")
            node = node.before
        return "; ".join(reversed(lines))


def machine_of(node: Node) -> Teardown:
    """Return a new machine in this state."""
    machine = Teardown.__new__(Teardown)
    for setter, value in zip(_SETTERS, node.slots, strict=True):
        setter(machine, value)
    return machine


class Phase(enum.IntEnum):
    """The phases of a close; the theory of operation in `_teardown` has the same list."""

    FLUSH = 0
    STANDING = 1
    CLOSE_NOTIFY = 2
    PEER_FIRST = 3
    OUR_FIN = 4
    DRAIN = 5
    ACKNOWLEDGEMENT = 6
    RELEASE = 7


def phase_of(node: Node) -> Phase:
    machine = machine_of(node)
    if machine._outcome or node.seen.step is Step.RELEASE:
        return Phase.RELEASE
    if node.seen.step is Step.FLUSH:
        return Phase.FLUSH
    if not machine._first_looked and node.seen.step is Step.LOOK:
        return Phase.STANDING
    if machine._notifying:
        return Phase.CLOSE_NOTIFY
    if machine._peer_first_until:
        return Phase.PEER_FIRST
    if node.seen.step is Step.SHUT_WR:
        return Phase.OUR_FIN
    return Phase.ACKNOWLEDGEMENT if machine._peer_fin else Phase.DRAIN


class Guarantees:
    """The guarantees of every close.

    Args:
        case: The case.
        any_order: Whether the driver reports what was not requested.

    Attributes:
        violations: The broken guarantees, one of each kind, with the first path to it.
    """

    def __init__(self, case: Case, *, any_order: bool = False) -> None:
        self.case, self.any_order = case, any_order
        self.violations: dict[str, str] = {}
        self._final: set[Any] = set()

    def violate(self, what: str, node: Node) -> None:
        self.violations.setdefault(what, str(node))

    def _check_end(
        self, machine: Teardown, seen: Seen, before: Node | None, report: Report | None
    ) -> None:
        node = Node(_all_of(machine), seen, before, report)
        result = machine.released(seen.now)
        self._check_proof(node, result)
        if not self.any_order:
            self._check_result(machine, node, result)
        key = _key_of(machine, self.case)
        if key not in self._final:
            self._final.add(key)
            self._check_finality(node, result)

    def _check(self, machine: Teardown, node: Node) -> None:
        seen, case = node.seen, self.case
        if seen.step in WAITS:
            if machine.wake_at > case.timeout:
                self.violate("a wait ends after the deadline", node)
            if self.any_order:
                return
            if case.abort:
                self.violate("an abort waits", node)
            idle = math.inf if case.idle_timeout is None else case.idle_timeout
            if machine.wake_at > seen.life + idle:
                self.violate("a wait ends after the idle time", node)
            if seen.end_of_stream and seen.step in {Step.WAIT_READABLE, Step.WAIT_EITHER}:
                self.violate("it waits for input that is always available", node)
            counts = case.view.acks is not None and seen.shown is not ACCEPTING
            watches = seen.step in {Step.WAIT_ACK, Step.PAUSE} and not machine._notifying
            if watches and counts and machine._peer_fin and not seen.counted:
                self.violate("it waits for an acknowledgement without a look at it", node)
        elif not self.any_order:
            if seen.step is Step.COUNT and seen.shown is ACCEPTING:
                self.violate("it requests a count that the kernel does not have", node)
            if seen.step is Step.CLEAR_ERRORS and not case.view.error_queue:
                self.violate("it empties an error queue that does not exist", node)
            if seen.step is Step.SHUT_WR and seen.fin_asked:
                self.violate("our FIN is requested twice", node)

    def _check_finality(self, node: Node, result: CloseResult) -> None:
        """Check that no report after RELEASE has an effect."""
        for name, value in ANY_REPORT:
            machine = machine_of(node)
            report = Report(name, value, node.seen.now)
            if report.tell(machine) is not Step.RELEASE:
                self.violate(f"it continues after RELEASE when it gets the report {name}", node)
            elif machine.released(node.seen.now) != result:
                self.violate(
                    f"the result changes after RELEASE when it gets the report {name}", node
                )

    def _check_proof(self, node: Node, result: CloseResult) -> None:
        seen = node.seen
        proven = {
            CloseOutcome.PEER_CLOSED: seen.peer_fin,
            CloseOutcome.DELIVERED: seen.delivered,
            CloseOutcome.PEER_RESET: seen.reset,
            CloseOutcome.ABORTED: self.case.abort,
        }.get(result.outcome, True)
        if not proven:
            self.violate(f"{result.outcome.name} without proof", node)

    def _check_result(self, machine: Teardown, node: Node, result: CloseResult) -> None:
        seen, case = node.seen, self.case
        outcome = result.outcome
        idle = math.inf if case.idle_timeout is None else case.idle_timeout
        right = True
        match outcome:
            case CloseOutcome.PEER_CLOSED:
                right = result.unacked in {0, None}
            case CloseOutcome.DELIVERED:
                right = result.unacked == 0 and case.until is CloseOutcome.DELIVERED
            case CloseOutcome.TIMED_OUT if result.error is None:
                lingers = machine.linger_policy is LingerPolicy.TIMED
                right = seen.now >= case.timeout or lingers
            case CloseOutcome.IDLE_TIMED_OUT:
                right = seen.now >= seen.life + idle
                aborts = machine.linger_policy is LingerPolicy.ABORT and not machine._abort
                if case.view.acks is None and aborts:
                    self.violate(
                        "silence aborts although slowness cannot be distinguished", node
                    )
            case CloseOutcome.DRAIN_LIMIT:
                right = case.drain_limit is not None and result.drained == case.drain_limit + 1
            case CloseOutcome.NOT_CONNECTED:
                right = seen.shown in _NONE or result.error is not None
            case CloseOutcome.ALREADY_CLOSED | CloseOutcome.PEER_RESET:
                right = result.error is not None
            case _:
                pass  # only the proofs are checked here
        if not right:
            self.violate(f"{outcome.name}, but it was not so", node)
        counts = case.view.acks is not None or seen.shown is TcpState.LISTENING
        if result.unacked is not None and not counts:
            self.violate("a count that the kernel does not have", node)
        if result.peer_first is not None and case.view.state is None:
            self.violate("a side is reported as first, though the state is not known", node)
        if result.unflushed != (case.unflushed and outcome is not CloseOutcome.ALREADY_CLOSED):
            self.violate("the makefile() object is not reported", node)
        if result.peer_first and seen.ours_was_first:
            self.violate("the peer is reported as first, but our FIN was first", node)
        if machine._abort and machine.linger_policy not in {None, LingerPolicy.ABORT}:
            self.violate("a truncated stream ends with a FIN", node)
        orderly = outcome in {CloseOutcome.PEER_CLOSED, CloseOutcome.DELIVERED}
        if result.peer_first is None and seen.fin_before_ours and orderly:
            self.violate("no side is reported as first, though the peer was", node)
        if result.peer_first is False and seen.fin_before_ours:
            self.violate("we are reported as first, but the peer was", node)


class Walk(Guarantees):
    """One path through a case; `choose` chooses the report and its time at each step."""

    def __init__(self, case: Case, choose: Callable[[Sequence[Any]], Any]) -> None:
        super().__init__(case)
        machine = case.machine()
        node = Node(_all_of(machine), seen_at_first(case, machine), None, None)
        steps_after_deadline = 0
        for number in range(300):
            seen = node.seen
            if seen.step is Step.RELEASE:
                self._check_end(machine, seen, node.before, node.report)
                return
            self._check(machine, node)
            steps_after_deadline += seen.now >= case.timeout
            if steps_after_deadline > 20:
                self.violate("the deadline has passed long ago", node)
            name, value = choose(tuple(reports_of(case, seen, machine)))
            now = seen.now + choose((0, 0.02, 0.1))
            if seen.step in WAITS and choose((True, False)):
                now = max(now, machine.wake_at)
            if number > 200:  # so long a path has an end because its time is over
                now = max(now, case.timeout)
            report = Report(name, value, now)
            step = report.tell(machine)
            seen = seen._replace(step=step, **seen_after(case, seen, report))
            node = Node(_all_of(machine), seen, node, report)
        self.violate("it never ends", node)


class Space(Guarantees):
    """All reachable states of one case.

    Args:
        case: The case.
        any_order: Whether to make all reports in all states, and not only reports about the
            requested step.
        most_reports: The longest path.

    Attributes:
        nodes: The states.
        edges: The numbers of the successors of each state.
        ends: How often RELEASE was reached; all ends are one node.
    """

    def __init__(
        self, case: Case, *, any_order: bool = False, most_reports: float = math.inf
    ) -> None:
        super().__init__(case, any_order=any_order)
        self.nodes: list[Node] = []
        self.edges: list[list[int]] = []
        self.ends = 0
        self._numbers: dict[Any, int] = {}
        # Facts that no check of this case needs would only multiply the states.
        self._irrelevant: dict[str, Any] = {}
        if any_order:
            self._irrelevant |= {"reads": 0, "counted": False}
        if any_order or case.idle_timeout is None:
            self._irrelevant |= {"life": 0, "last_count": None}
        if case.until is not CloseOutcome.DELIVERED:
            self._irrelevant["delivered"] = False
        machine = case.machine()
        self._enter(machine, seen_at_first(case, machine), None, None)
        queue = deque([(0, 0)])
        while queue:
            number, reports = queue.popleft()
            if reports < most_reports:
                queue.extend((after, reports + 1) for after in self._expand(number))

    def _enter(
        self, machine: Teardown, seen: Seen, before: Node | None, report: Report | None
    ) -> int:
        if seen.step is Step.RELEASE:
            self.ends += 1
            self._check_end(machine, seen, before, report)
            seen = seen._replace(**_AT_THE_END)
            key: Any = Step.RELEASE
        else:
            # Otherwise only shut() uses this fact, and no other.
            in_time = seen.now < machine.wake_at
            wake_at = math.ceil(machine.wake_at) if seen.step in WAITS else in_time
            key = (_key_of(machine, self.case), wake_at, seen)
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.nodes)
            node = Node(_all_of(machine), seen, before, report)
            self.nodes.append(node)
            self.edges.append([])
            self._check(machine, node)
        return number

    def _expand(self, number: int) -> Iterator[int]:
        node = self.nodes[number]
        seen, case = node.seen, self.case
        if seen.step is Step.RELEASE:
            return
        last = case.timeout + 1
        times = {seen.now, min(seen.now + 1, last)}
        machine = machine_of(node)
        if machine._outcome or (seen.step in _AT_ONCE and not self.any_order):
            times = {seen.now}
        elif seen.step in WAITS and not self.any_order:
            times.add(min(max(seen.now, math.ceil(machine.wake_at)), last))
        reports = ANY_REPORT if self.any_order else tuple(reports_of(case, seen, machine))
        new_from = len(self.nodes)
        for now in sorted(times):
            for name, value in reports:
                report = Report(name, value, now)
                machine = machine_of(node)
                step = report.tell(machine)
                news = seen_after(case, seen, report) | self._irrelevant
                after = seen._replace(step=step, **news)
                self.edges[number].append(self._enter(machine, after, node, report))
        yield from range(new_from, len(self.nodes))

    # --- checks of the whole graph ---

    def phases(self) -> tuple[Counter[Phase], Counter[tuple[Phase, Phase]]]:
        """Count the states of each phase, and the reports that lead to another phase."""
        of = [phase_of(node) for node in self.nodes]
        between = Counter(
            (of[number], of[after])
            for number, successors in enumerate(self.edges)
            for after in successors
        )
        return Counter(of), between

    def check_ends(self) -> None:
        """Check that every state leads to an end, and soon after the time is up."""
        backwards: list[list[int]] = [[] for _ in self.nodes]
        for number, successors in enumerate(self.edges):
            for successor in successors:
                backwards[successor].append(number)
        ended = [n for n, node in enumerate(self.nodes) if node.seen.step is Step.RELEASE]
        with_end = set(ended)
        while ended:
            for before in backwards[ended.pop()]:
                if before not in with_end:
                    with_end.add(before)
                    ended.append(before)
        for number, node in enumerate(self.nodes):
            if number not in with_end:
                self.violate("a state without an end", node)

    def check_spins(self, most: int) -> None:
        """Check that waits that end immediately without input do not repeat forever."""
        for node in self.nodes:
            if node.seen.step is not Step.WAIT_READABLE or node.seen.now >= self.case.timeout:
                continue
            machine, now = machine_of(node), node.seen.now
            step: Step = Step.WAIT_READABLE
            wakes = 0
            while wakes <= most:
                if step is Step.WAIT_READABLE:
                    wakes += 1
                    step = machine.woke(now)
                elif step is Step.DRAIN:
                    step = machine.would_block(now)
                elif step is Step.CLEAR_ERRORS:
                    step = machine.cleared(now)
                elif step is Step.COUNT:
                    step = machine.counted(machine._unacked, now)
                elif step is Step.LOOK:
                    step = machine.looked(machine._state, now)
                elif step is Step.READ_ERROR:
                    step = machine.no_error(now)
                else:
                    break
            else:
                self.violate("it spins", node)

    def longest(self, belongs: Callable[[Node], bool]) -> int:
        """Return the longest chain of steps among the given states; a cycle is a violation."""
        inside = {number for number, node in enumerate(self.nodes) if belongs(node)}
        after = {number: inside.intersection(self.edges[number]) for number in inside}
        lengths: dict[int, int] = {}
        try:
            for number in TopologicalSorter(after).static_order():  # the successors first
                lengths[number] = 1 + max((lengths[s] for s in after[number]), default=0)
        except CycleError as error:
            cycle: list[int] = error.args[1]
            self.violate("a cycle of steps", self.nodes[cycle[0]])
        return max(lengths.values(), default=0)
