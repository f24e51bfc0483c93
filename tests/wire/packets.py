"""What a packet says: read from the raw bytes, and numbered from the start of its connection."""

from __future__ import annotations

import enum
import importlib
import socket
from dataclasses import dataclass, field
from typing import Any, NamedTuple

# dpkt has no types: they begin at `Segment`.
_dpkt: Any = importlib.import_module("dpkt")

_FLAGS = ((0x02, "S"), (0x01, "F"), (0x04, "R"), (0x08, "P"), (0x10, "A"))
_MODULUS = 1 << 32  # sequence numbers wrap (RFC 9293, section 3.4)


class Side(enum.Enum):
    """An end of the wire: the one that is closed, and the one that watches it happen."""

    OURS = "ours"
    PEER = "peer"

    @property
    def other(self) -> Side:
        return Side.PEER if self is Side.OURS else Side.OURS


OURS, PEER = Side.OURS, Side.PEER


class Segment(NamedTuple):
    """The TCP part of a raw packet, in the numbers that were on the wire."""

    source_port: int
    target_port: int
    flags: str
    seq: int
    ack: int
    window: int
    length: int

    @classmethod
    def read(cls, raw: bytes) -> Segment | None:
        """None: it is not TCP."""
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
    """What the wire did with a packet. The value is the word in a drawing."""

    PASSED = ""
    DROPPED = "dropped"
    HELD = "held"
    DOUBLED = "doubled"
    SWAPPED = "swapped"
    REFUSED = "answered with RST"
    FORGED = "forged"


@dataclass(slots=True, eq=False)
class Packet:
    """One packet on the record.

    Attributes:
        time: When the wire took it, by time.monotonic().
        from_: Who sent it; for a forged one, who seems to have.
        flags: In the order SFRPA, so that FIN with ACK is "FA".
        seq, ack: Counted from the side's SYN, which is 0: the first byte of data is 1.
        length: Bytes of data in it.
        window: As in the header, not scaled. 0 is 0 all the same.
        connection: The peer's port, which names the connection.
        again: Nothing in it is new: it was sent before.
        probe: It asks for an answer and carries nothing: a keep-alive or window probe, whose
            number is one that was used already.
        acks_fin: It acknowledges the other side's FIN.
        fate: What the wire did with it.
        delivered: When it was handed to the other side: not at all, once, or twice.
        states: The TCP states of (ours, peer) when the wire took it, if they were asked for.
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
        """Whether the other side had it by then."""
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
    """One connection as the wire knows it: where each side's numbers start and how far they are.

    Args:
        addresses: Each side's address and port.
    """

    def __init__(self, addresses: dict[Side, tuple[str, int]]) -> None:
        self.addresses = addresses
        self.name = addresses[PEER][1]
        self._start: dict[Side, int] = {}
        self._sent = {OURS: 0, PEER: 0}
        self._fin: dict[Side, int] = {}
        self._arrived: dict[Side, int] = {OURS: 0, PEER: 0}

    def tell(self, from_: Side, segment: Segment, time: float) -> Packet:
        """Put a segment that `from_` sent into the connection's own numbers."""
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
        """The other side has it now."""
        if "R" not in packet.flags:
            self._arrived[packet.from_] = max(self._arrived[packet.from_], packet.end)

    def forge_reset(self, to: Side, time: float, *, too_far: int) -> tuple[Packet, bytes]:
        """An RST for `to`, `too_far` bytes past the number it expects.

        With 0 it will be believed (RFC 5961, section 3), if nothing is missing before it.
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
