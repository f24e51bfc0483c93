"""The timeline of an experiment: what its two programs did and observed.

Without root, packets on loopback are not visible (with root: `wire_view`). So a timeline has
the results of the programs' calls and the kernel's state of the connections. It has a packet
only if these prove that the packet was sent, for example a reset that a call reported.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from time import perf_counter


class Side(enum.Enum):
    """One of the two programs."""

    SERVER = "server"
    CLIENT = "client"


class Kind(enum.Enum):
    """The kind of a packet."""

    DATA = "data"
    FIN = "FIN"
    RST = "RST"
    ACK = "ACK"


@dataclass(frozen=True)
class Event:
    """Something that happened at one side.

    Attributes:
        at: Seconds after the experiment began.
        side: The program.
        text: A call, or its result.
        kernel: Whether the kernel reported it; False: the program did it.
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
        seen_at: When it was known to have arrived; None: the other program never saw it.
        sender: The side that sent it.
        kind: The kind of packet.
        text: The label.
        reach: Bytes of the sender's stream up to the end of the packet. For an ACK: the
            acknowledged bytes of the other side's stream, where a FIN counts as one. 0:
            unknown.
    """

    sent_at: float
    seen_at: float | None
    sender: Side
    kind: Kind
    text: str
    reach: int = 0


@dataclass(frozen=True)
class Exchange:
    """All events and arrows, ordered by time.

    Attributes:
        events: The events of both sides.
        arrows: The packets between the sides.
        on_wire: Whether the times of the arrows are those of the packets; False: those of the
            programs' calls.
    """

    events: tuple[Event, ...]
    arrows: tuple[Arrow, ...]
    on_wire: bool = False


class Timeline:
    """The record of one experiment. Both sides may write it, each in its own thread.

    Attributes:
        waiting_for: A short text that says what the experiment waits for now; empty: nothing.
        began: The start of the experiment, by `time.perf_counter()`.
    """

    def __init__(self) -> None:
        self.waiting_for = ""
        self.began = perf_counter()
        self._events: list[Event] = []
        self._arrows: list[Arrow] = []

    def now(self) -> float:
        """Return the seconds since the start."""
        return perf_counter() - self.began

    def add_event(self, side: Side, text: str, *, kernel: bool = False) -> float:
        """Record an event that happens now, and return its time."""
        at = self.now()
        self._events.append(Event(at, side, text, kernel))
        return at

    def add_packet(
        self,
        sender: Side,
        kind: Kind,
        text: str,
        at: float,
        seen_at: float | None,
        reach: int = 0,
    ) -> None:
        """Record a packet, after it is known whether it was seen; see `Arrow`."""
        self._arrows.append(Arrow(at, seen_at, sender, kind, text, reach))

    def exchange(self) -> Exchange:
        """Return what has been recorded until now."""
        return Exchange(
            tuple(sorted(self._events, key=lambda event: event.at)),
            tuple(sorted(self._arrows, key=lambda arrow: arrow.sent_at)),
        )
