"""The record of all packets on a wire, and waits for packets."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

from streams import DEADLINE

from .packets import Fate, Packet, Side
from .rules import FIN, RST, Kind, Which


class Note(NamedTuple):
    """A note about a program's action, for the drawing."""

    time: float
    side: Side
    text: str


class Record:
    """Packets and notes. The forwarder writes and the test reads; `changed` is their lock."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.began = monotonic()
        self._packets: list[Packet] = []
        self._notes: list[Note] = []

    def add(self, packet: Packet) -> None:
        with self.changed:
            self._packets.append(packet)
            self.changed.notify_all()

    def mark_delivered(self, packet: Packet, time: float) -> None:
        with self.changed:
            packet.delivered.append(time)
            self.changed.notify_all()

    def note(self, side: Side, text: str) -> None:
        with self.changed:
            self._notes.append(Note(monotonic(), side, text))

    def packets(self, *, from_: Side | None = None) -> list[Packet]:
        """Return the packets recorded until now, oldest first."""
        with self.changed:
            return [p for p in self._packets if from_ is None or p.from_ is from_]

    def notes(self) -> list[Note]:
        with self.changed:
            return list(self._notes)

    # --- queries ------------------------------------------------------------------------------

    def flags_sent(self, from_: Side) -> list[str]:
        """Return the flags of each packet of a side, without retransmissions.

        A kernel retransmits what is not acknowledged within milliseconds (RFC 8985, section 7),
        which happens when this process carries the acknowledgement slowly. The answers to such
        retransmissions may follow the expected packets; no other packets may.
        """
        return [packet.flags for packet in self.packets(from_=from_) if not packet.again]

    def distinct(self, kind: Kind, from_: Side) -> int:
        """Return the number of packets of a kind, without retransmissions."""
        return len({p.seq + p.length for p in self.packets(from_=from_) if kind.is_one(p)})

    def fins_sent(self, from_: Side) -> int:
        return self.distinct(FIN, from_)

    def resets_sent(self, from_: Side) -> int:
        """Return the RSTs that a side sent, without forged ones; a side may send several."""
        return sum(
            1 for p in self.packets(from_=from_) if RST.is_one(p) and p.fate is not Fate.FORGED
        )

    def find(self, which: Which) -> Packet | None:
        """Return the first packet of the record that matches."""
        with self.changed:
            count = 0
            for packet in self._packets:
                if which.is_one(packet):
                    count += 1
                    if which.counts(count):
                        return packet
        return None

    # --- waiting ------------------------------------------------------------------------------

    def await_packet(self, which: Which) -> Packet:
        """Wait until a packet is recorded; return immediately if it is."""
        return self._await(lambda: self.find(which), f"{which} never came")

    def await_delivery(self, which: Which) -> Packet:
        """Wait until a packet is delivered."""

        def found() -> Packet | None:
            packet = self.find(which)
            return packet if packet is not None and packet.delivered else None

        return self._await(found, f"{which} was never delivered")

    def _await(self, find: Callable[[], Packet | None], message: str) -> Packet:
        with self.changed:
            packet = self.changed.wait_for(find, DEADLINE)
        assert packet is not None, f"{message}\n{self.draw()}"
        return packet

    # --- showing ------------------------------------------------------------------------------

    def draw(self) -> str:
        """One line for each packet and note, in order of time."""
        lines: list[tuple[float, str]] = []
        for packet in self.packets():
            text = str(packet)
            if packet.states is not None:
                text += f"  ({packet.states[0]} | {packet.states[1]})"
            if packet.delivered and packet.delivered[0] - packet.time > 0.001:
                text += f", delivered after {(packet.delivered[0] - packet.time) * 1000:.0f} ms"
            lines.append((packet.time, text))
        lines += [(note.time, f"{note.side.value}: {note.text}") for note in self.notes()]
        lines.sort(key=lambda line: line[0])
        return "\n".join(
            f"{(time - self.began) * 1000:9.2f} ms  {text}" for time, text in lines
        )
