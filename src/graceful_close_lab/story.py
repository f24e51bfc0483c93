"""What the two programs of an experiment did and saw, written down as it happens.

Without root nobody sees packets on loopback (where they can be seen: `wire_view`). What is here is what the programs were told by
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
        reach: How far it goes: bytes of the sender's stream up to its end, or, of an ACK, of the
            other's that it acknowledges, a FIN counted as one. 0: unknown.
    """

    sent_at: float
    seen_at: float | None
    sender: Side
    kind: Kind
    text: str
    reach: int = 0


@dataclass(frozen=True)
class Exchange:
    """All of it, in the order of time.

    Attributes:
        events: What happened at either side.
        arrows: What went from one to the other.
        on_wire: Whether the arrows are as the packets arrived; False: as the programs were told.
    """

    events: tuple[Event, ...]
    arrows: tuple[Arrow, ...]
    on_wire: bool = False


class Story:
    """The record of one experiment. Both sides may write it, each in a thread of its own.

    Attributes:
        waits_for: What the experiment waits for now, in a few words; empty: nothing.
        began: When it did, by `time.perf_counter()`.
    """

    def __init__(self) -> None:
        self.waits_for = ""
        self.began = perf_counter()
        self._events: list[Event] = []
        self._arrows: list[Arrow] = []

    def now(self) -> float:
        """Seconds since it began."""
        return perf_counter() - self.began

    def does(self, side: Side, text: str, *, kernel: bool = False) -> float:
        """Write down what happens now, and give the time."""
        at = self.now()
        self._events.append(Event(at, side, text, kernel))
        return at

    def sends(
        self,
        sender: Side,
        kind: Kind,
        text: str,
        at: float,
        seen_at: float | None,
        reach: int = 0,
    ) -> None:
        """Write down what was sent, once it is known whether it was seen; see `Arrow`."""
        self._arrows.append(Arrow(at, seen_at, sender, kind, text, reach))

    def so_far(self) -> Exchange:
        """What is known by now."""
        return Exchange(
            tuple(sorted(self._events, key=lambda event: event.at)),
            tuple(sorted(self._arrows, key=lambda arrow: arrow.sent_at)),
        )
