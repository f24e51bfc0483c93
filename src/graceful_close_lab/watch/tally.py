"""The counts until now."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from . import counters
from .judgement import Cost, Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .processes import Process
    from .reset_log import Entry

_WINDOW = 10  # ticks for the present rate. A heuristic.


class Row(NamedTuple):
    """A row of the table: resets of one process, at one local port, of one kind.

    Attributes:
        process: The process.
        port: The local port.
        how: The kind, or the kernel's reason if it is of no known kind.
    """

    process: Process
    port: int
    how: str


class Growth(NamedTuple):
    """The growth of a kernel counter.

    Attributes:
        since_start: The growth since the watch began.
        a_second: The growth per second, in the last ten seconds.
    """

    since_start: int
    a_second: float


@dataclass
class Tally:
    """All counts of a watch.

    Attributes:
        ports: The counted local ports; empty: all.
        pids: The counted processes; empty: all.
        traced: Whether resets are traced; if not, there are only the kernel's counters.
        why_not: Why resets are not traced: a sentence without its full stop.
        reservations: What cannot be reported on this machine: sentences.
        rows: Resets by the side that had accepted, by cost.
        by_others: Resets by the side that had connected, by process.
        events_lost: How many events the kernel discarded.
        notices_lost: How often the kernel discarded notices.
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
        """Return whether a reset is of a counted port and process."""
        return (not self.ports or entry.connection.local.port in self.ports) and (
            not self.pids or entry.process.number in self.pids
        )

    def add(self, entry: Entry) -> None:
        """Count a reset that has been judged."""
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
        """The duration until the last tick."""
        return self._latest[-1][0] - self._began

    @property
    def grown(self) -> dict[str, Growth]:
        """The growth of the kernel's counters, by name."""
        (before, old), (now, new) = self._latest[0], self._latest[-1]
        return {
            name: Growth(
                value - self._at_start.get(name, 0),
                (value - old.get(name, 0)) / (now - before) if now > before else 0.0,
            )
            for name, value in new.items()
        }

    def total(self, *costs: Cost) -> int:
        """Return the number of resets with these costs."""
        return sum(row[cost] for row in self.rows.values() for cost in costs)

    @property
    def may_have_cost(self) -> int:
        """The number of replies that were or may have been lost, which --fail-over limits."""
        if self.traced:
            return self.total(Cost.LOST, Cost.MAY)
        grown = self.grown
        return sum(
            grown[counter.name].since_start
            for counter in counters.COUNTERS
            if counter.may_cost_a_reply and counter.name in grown
        )


def how(entry: Entry) -> str:
    """Describe how a process caused a reset."""
    kind = entry.reset.kind
    return f"the kernel's reason is {entry.reset.reason}" if kind is Kind.OTHER else kind.value
