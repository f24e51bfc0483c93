"""The figures of a benchmark, and the alternation of its two sides."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """The target of a figure. A missed target fails nothing.

    Attributes:
        of: The compared number: ours, the ratio (ours / theirs) or the excess (ours - theirs).
        at_most: The bound, in the figure's unit (a ratio has none).
    """

    of: Literal["ours", "ratio", "excess"]
    at_most: float

    def text(self) -> str:
        """Format for the table."""
        return f"{self.of} <= {self.at_most:g}"


@dataclass(frozen=True)
class Figure:
    """One row of the table.

    Attributes:
        what: The measured quantity.
        unit: The unit of both sides.
        ours: This package's number, a median.
        theirs: The alternative's number from the same run, a median; None: there is no
            alternative.
        against: The alternative.
        target: The target; None: the figure is for information.
        details: Other values for the JSON file.
    """

    what: str
    unit: str
    ours: float
    theirs: float | None = None
    against: str = ""
    target: Target | None = None
    details: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def ratio(self) -> float | None:
        """Ours / theirs; None: there is no alternative."""
        return self.ours / self.theirs if self.theirs else None

    @property
    def met(self) -> bool | None:
        """Whether the target was met in this run; None: there is no target."""
        if self.target is None:
            return None
        if self.target.of == "ours":
            number = self.ours
        elif self.theirs is None:
            raise ValueError(f"{self.what}: {self.target.of} needs a peer")
        elif self.target.of == "ratio":
            number = self.ours / self.theirs
        else:
            number = self.ours - self.theirs
        return number <= self.target.at_most

    def as_dict(self) -> dict[str, Any]:
        """Convert for the JSON file."""
        return asdict(self) | {"ratio": self.ratio, "met": self.met}


def take_turns(
    rounds: int, ours: Callable[[], float], theirs: Callable[[], float]
) -> tuple[list[float], list[float]]:
    """Measure both sides `rounds` times, alternating: A B A B.

    Each side runs once before that, uncounted. If the machine becomes slower, both sides do.
    """
    taken = all_take_turns(rounds, {"ours": ours, "theirs": theirs})
    return taken["ours"], taken["theirs"]


def all_take_turns(rounds: int, sides: dict[K, Callable[[], T]]) -> dict[K, list[T]]:
    """Measure more than two sides, by name: A B C A B C."""
    for side in sides.values():
        side()
    taken: dict[K, list[T]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            taken[name].append(side())
    return taken


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def table(figures: list[Figure]) -> str:
    """Format all figures as text."""
    rows = _rows(figures)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if column in _NUMBERS else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def markdown(figures: list[Figure]) -> str:
    """Format the same table as Markdown."""
    head, *rows = _rows(figures)
    rule = ["---:" if column in _NUMBERS else "---" for column in range(len(head))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


_NUMBERS = (1, 2, 4)


def _rows(figures: list[Figure]) -> list[tuple[str, ...]]:
    return [
        ("what", "ours", "theirs", "unit", "ratio", "target", "met", "theirs is"),
        *(
            (
                figure.what,
                f"{figure.ours:.4g}",
                "" if figure.theirs is None else f"{figure.theirs:.4g}",
                figure.unit,
                "" if figure.ratio is None else f"{figure.ratio:.2f}",
                "" if figure.target is None else figure.target.text(),
                {None: "", True: "yes", False: "NO"}[figure.met],
                figure.against,
            )
            for figure in figures
        ),
    ]
