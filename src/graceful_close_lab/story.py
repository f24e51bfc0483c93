"""What the two programs of an experiment did and saw, written down as it happens.

Without root nobody sees packets on loopback. What is here is what the programs were told by
their calls and what the kernel says of its connections; where it has to follow that a packet
went out (a reset that somebody was told of) it is here, and nothing else is.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from time import perf_counter


class Side(enum.Enum):
    """Which of the two programs."""

    SERVER = "server"
    CLIENT = "client"


class Kind(enum.Enum):
    """What travels."""

    DATA = "data"
    FIN = "FIN"
    RST = "RST"
    ACK = "ACK"


@dataclass(frozen=True)
class Event:
    """Something that happened at one side.

    Attributes:
        at: Seconds after the experiment began.
        side: Where.
        text: What: a call, or what it was told.
        kernel: Whether the kernel says so; False: it is the program's event.
    """

    at: float
    side: Side
    text: str
    kernel: bool = False


@dataclass(frozen=True)
class Arrow:
    """Something that one side sent to the other.

    Attributes:
        sent_at: Seconds after the experiment began.
        seen_at: When it was known to be there; None: the other program never saw it.
        sender: The side that sent it.
        kind: What it is.
        text: What it says of itself.
    """

    sent_at: float
    seen_at: float | None
    sender: Side
    kind: Kind
    text: str


@dataclass(frozen=True)
class Exchange:
    """All of it, in the order of time."""

    events: tuple[Event, ...]
    arrows: tuple[Arrow, ...]


class Story:
    """The record of one experiment. Both sides may write it, each in a thread of its own.

    Attributes:
        waits_for: What the experiment waits for now, in a few words; empty: nothing.
    """

    def __init__(self) -> None:
        self.waits_for = ""
        self._began = perf_counter()
        self._events: list[Event] = []
        self._arrows: list[Arrow] = []

    def now(self) -> float:
        """Seconds since it began."""
        return perf_counter() - self._began

    def does(self, side: Side, text: str, *, kernel: bool = False) -> float:
        """Write down what happens now, and give the time."""
        at = self.now()
        self._events.append(Event(at, side, text, kernel))
        return at

    def sends(
        self, sender: Side, kind: Kind, text: str, at: float, seen_at: float | None
    ) -> None:
        """Write down what was sent, once it is known whether it was seen."""
        self._arrows.append(Arrow(at, seen_at, sender, kind, text))

    def so_far(self) -> Exchange:
        """What is known by now."""
        return Exchange(
            tuple(sorted(self._events, key=lambda event: event.at)),
            tuple(sorted(self._arrows, key=lambda arrow: arrow.sent_at)),
        )
