"""The contents of packets, with sequence numbers from the start of their connection."""

from __future__ import annotations

import enum
import importlib
import socket
from dataclasses import dataclass, field
from typing import Any, NamedTuple

# dpkt has no types; `Segment` has.
_dpkt: Any = importlib.import_module("dpkt")

_FLAGS = ((0x02, "S"), (0x01, "F"), (0x04, "R"), (0x08, "P"), (0x10, "A"))
_MODULUS = 1 << 32  # sequence numbers wrap (RFC 9293, section 3.4)


class Side(enum.Enum):
    """A side of the wire: ours is closed, and the peer observes it."""

    OURS = "ours"
    PEER = "peer"

    @property
    def other(self) -> Side:
        return Side.PEER if self is Side.OURS else Side.OURS


OURS, PEER = Side.OURS, Side.PEER


class Segment(NamedTuple):
    """The TCP part of a raw packet, with its original numbers."""

    source_port: int
    target_port: int
    flags: str
    seq: int
    ack: int
    window: int
    length: int

    @classmethod
    def read(cls, raw: bytes) -> Segment | None:
        """Read a segment; None: the packet is not TCP."""
        ip = _dpkt.ip.IP(raw) if raw[0] >> 4 == 4 else _dpkt.ip6.IP6(raw)
        tcp = ip.data
        if not isinstance(tcp, _dpkt.tcp.TCP):
            return None
        flags = "".join(letter for bit, letter in _FLAGS if tcp.flags & bit)
        return cls(
            tcp.sport, tcp.dport, flags, tcp.seq, tcp.ack if "A" in flags else 0,
            tcp.win, len(tcp.data),
        )  # fmt: skip


class Fate(enum.Enum):
    """What the wire did with a packet. The value is used in drawings."""

    PASSED = ""
    DROPPED = "dropped"
    HELD = "held"
    DOUBLED = "doubled"
    SWAPPED = "swapped"
    REFUSED = "answered with RST"
    FORGED = "forged"


@dataclass(slots=True, eq=False)
class Packet:
    """A recorded packet.

    Attributes:
        time: When the wire read it, by time.monotonic().
        from_: The sender; for a forged packet, the apparent sender.
        flags: The flags in the order SFRPA: FIN with ACK is "FA".
        seq, ack: Sequence numbers from the side's SYN, which is 0: the first byte of data is 1.
        length: The number of bytes of data.
        window: The window of the header, not scaled.
        connection: The peer's port, which identifies the connection.
        again: Whether it has only data that was sent before.
        probe: Whether it is a keep-alive or window probe: without data, and with a used
            sequence number.
        acks_fin: Whether it acknowledges the other side's FIN.
        fate: What the wire did with it.
        delivered: The times of its delivery: none, one or two.
        states: The TCP states of (ours, peer) when the wire read it, if they are sampled.
    """

    time: float
    from_: Side
    flags: str
    seq: int
    ack: int
    length: int
    window: int
    connection: int
    again: bool = False
    probe: bool = False
    acks_fin: bool = False
    fate: Fate = Fate.PASSED
    delivered: list[float] = field(default_factory=list[float])
    states: tuple[str, str] | None = None

    @property
    def end(self) -> int:
        """The sequence number after it: SYN and FIN count as one byte."""
        return self.seq + self.length + ("S" in self.flags) + ("F" in self.flags)

    @property
    def direction(self) -> str:
        return f"{self.from_.value}→{self.from_.other.value}"

    def delivered_by(self, time: float) -> bool:
        """Return whether it had been delivered by that time."""
        return bool(self.delivered) and self.delivered[0] <= time

    def __str__(self) -> str:
        line = f"{self.direction}  {self.flags:<3}  seq {self.seq} ack {self.ack}"
        if self.length:
            line += f" len {self.length}"
        if self.window == 0 and "R" not in self.flags:
            line += " window 0"
        if self.again or self.probe:
            line += " (again)" if self.again else " (probe)"
        return f"{line} [{self.fate.value}]" if self.fate.value else line


class Conversation:
    """The sequence numbers of one connection: the first and the last of each side.

    Args:
        addresses: The address and port of each side.
    """

    def __init__(self, addresses: dict[Side, tuple[str, int]]) -> None:
        self.addresses = addresses
        self.name = addresses[PEER][1]
        self._start: dict[Side, int] = {}
        self._sent = {OURS: 0, PEER: 0}
        self._fin: dict[Side, int] = {}
        self._arrived: dict[Side, int] = {OURS: 0, PEER: 0}

    def tell(self, from_: Side, segment: Segment, time: float) -> Packet:
        """Convert a segment of `from_` to the numbers of the connection."""
        if "S" in segment.flags:
            self._start[from_] = segment.seq
        packet = Packet(
            time, from_, segment.flags,
            (segment.seq - self._start.get(from_, 0)) % _MODULUS,
            (segment.ack - self._start.get(from_.other, 0)) % _MODULUS
            if "A" in segment.flags else 0,
            segment.length, segment.window, self.name,
        )  # fmt: skip
        takes_room = packet.end > packet.seq
        packet.again = takes_room and packet.end <= self._sent[from_]
        packet.probe = packet.flags == "A" and packet.end < self._sent[from_]
        if takes_room:
            self._sent[from_] = max(self._sent[from_], packet.end)
        if "F" in packet.flags:
            self._fin[from_] = packet.end
        others_fin = self._fin.get(from_.other)
        packet.acks_fin = others_fin is not None and packet.ack >= others_fin
        return packet

    def arrived(self, packet: Packet) -> None:
        """Record that a packet was delivered."""
        if "R" not in packet.flags:
            self._arrived[packet.from_] = max(self._arrived[packet.from_], packet.end)

    def forge_reset(self, to: Side, time: float, *, too_far: int) -> tuple[Packet, bytes]:
        """Forge an RST to `to`, `too_far` bytes after the number that it expects.

        With 0 the RST is accepted (RFC 5961, section 3), if no earlier data is missing.
        """
        from_ = to.other
        seq, ack = self._arrived[from_] + too_far, self._arrived[to]
        packet = Packet(time, from_, "RA", seq, ack, 0, 0, self.name, fate=Fate.FORGED)
        (source, source_port), (target, target_port) = (
            self.addresses[from_],
            self.addresses[to],
        )
        tcp = _dpkt.tcp.TCP(
            sport=source_port,
            dport=target_port,
            seq=(seq + self._start[from_]) % _MODULUS,
            ack=(ack + self._start[to]) % _MODULUS,
            flags=_dpkt.tcp.TH_RST | _dpkt.tcp.TH_ACK,
            win=0,
        )
        family = socket.AF_INET6 if ":" in source else socket.AF_INET
        ends: dict[str, Any] = {
            "src": socket.inet_pton(family, source),
            "dst": socket.inet_pton(family, target),
            "data": tcp,
        }
        if family == socket.AF_INET:
            ip = _dpkt.ip.IP(p=_dpkt.ip.IP_PROTO_TCP, ttl=64, **ends)
        else:
            ip = _dpkt.ip6.IP6(nxt=_dpkt.ip.IP_PROTO_TCP, hlim=64, plen=len(tcp), **ends)
        return packet, bytes(ip)
