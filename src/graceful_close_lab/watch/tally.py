"""What has been counted until now."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from . import counters
from .judgement import Cost, Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .ledger import Entry
    from .processes import Process

_WINDOW = 10  # ticks that "now" is. Arbitrary.


class Row(NamedTuple):
    """Resets that belong together: of one process, at one of its ports, of one kind.

    Attributes:
        process: Whose.
        port: Its own.
        how: The kind; or the kernel's reason, where that is no kind of ours.
    """

    process: Process
    port: int
    how: str


class Growth(NamedTuple):
    """How much a counter of the kernel grew.

    Attributes:
        since_start: Since the watch began.
        a_second: In the last ten seconds.
    """

    since_start: int
    a_second: float


@dataclass
class Tally:
    """All that there is to tell.

    Attributes:
        ports: Only connections of these count; empty: all.
        pids: Only these processes count; empty: all.
        traced: Whether resets are seen; if not, only what the kernel counts for everybody.
        why_not: Why they are not seen; a sentence without its full stop.
        reservations: What cannot be told here; sentences.
        rows: Resets of the side that had accepted, by what they cost.
        by_others: Resets of the side that had connected, by process.
        events_lost: How many the kernel threw away.
        notices_lost: How often it threw some away.
    """

    ports: frozenset[int] = frozenset()
    pids: frozenset[int] = frozenset()
    traced: bool = False
    why_not: str = ""
    reservations: list[str] = field(default_factory=list[str])
    rows: dict[Row, Counter[Cost]] = field(default_factory=dict[Row, "Counter[Cost]"])
    by_others: Counter[str] = field(default_factory=Counter[str])
    events_lost: int = 0
    notices_lost: int = 0

    def __post_init__(self) -> None:
        self._began = time.monotonic()
        self._at_start = counters.read()
        self._latest: deque[tuple[float, Mapping[str, int]]] = deque(
            [(self._began, self._at_start)], _WINDOW + 1
        )

    def counts(self, entry: Entry) -> bool:
        """Whether the user asked for it."""
        return (not self.ports or entry.connection.local.port in self.ports) and (
            not self.pids or entry.process.number in self.pids
        )

    def add(self, entry: Entry) -> None:
        """A reset that has been judged."""
        if entry.judgement is None or not self.counts(entry):
            return
        cost = entry.judgement.cost
        if cost is Cost.NO_REPLY:
            self.by_others[entry.process.name] += 1
            return
        row = Row(entry.process, entry.connection.local.port, how(entry))
        self.rows.setdefault(row, Counter())[cost] += 1

    def tick(self) -> None:
        """Read the kernel's counters."""
        self._latest.append((time.monotonic(), counters.read()))

    @property
    def seconds(self) -> float:
        """How long it has been, at the last tick."""
        return self._latest[-1][0] - self._began

    @property
    def grown(self) -> dict[str, Growth]:
        """The kernel's counters, by their names."""
        (before, old), (now, new) = self._latest[0], self._latest[-1]
        return {
            name: Growth(
                value - self._at_start.get(name, 0),
                (value - old.get(name, 0)) / (now - before) if now > before else 0.0,
            )
            for name, value in new.items()
        }

    def total(self, *costs: Cost) -> int:
        """How many resets cost that."""
        return sum(row[cost] for row in self.rows.values() for cost in costs)

    @property
    def may_have_cost(self) -> int:
        """How many replies were lost or may have been: what a gate is held against."""
        if self.traced:
            return self.total(Cost.LOST, Cost.MAY)
        grown = self.grown
        return sum(
            grown[counter.name].since_start
            for counter in counters.COUNTERS
            if counter.may_cost_a_reply and counter.name in grown
        )


def how(entry: Entry) -> str:
    """How a process brought a reset about, for people."""
    kind = entry.reset.kind
    return f"the kernel says {entry.reset.reason}" if kind is Kind.OTHER else kind.value
