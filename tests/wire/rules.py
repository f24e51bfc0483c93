"""The terms of rules: `wire.drop(first(FIN, from_=OURS))`."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from .packets import Packet, Side


@dataclass(frozen=True)
class Kind:
    """A kind of packet, and a function that recognises it."""

    name: str
    is_one: Callable[[Packet], bool]


FIN = Kind("FIN", lambda packet: "F" in packet.flags)
RST = Kind("RST", lambda packet: "R" in packet.flags)
DATA = Kind("segment with data", lambda packet: packet.length > 0)
ACK = Kind("plain acknowledgement", lambda packet: packet.flags == "A" and not packet.length)
ACK_OF_FIN = Kind("acknowledgement of the FIN", lambda packet: packet.acks_fin)
PROBE = Kind("probe", lambda packet: packet.probe)
ZERO_WINDOW = Kind(
    "closed window", lambda packet: packet.window == 0 and "R" not in packet.flags
)


def carrying(number: int) -> Kind:
    """Match the segment with this byte of data, counted from 1."""
    return Kind(
        f"segment with byte {number}",
        lambda packet: packet.seq <= number < packet.seq + packet.length,
    )


def past(number: int) -> Kind:
    """Match a segment with data after this byte."""
    return Kind(f"segment past byte {number}", lambda p: p.seq + p.length > number + 1)


def acknowledging(number: int) -> Kind:
    """Match a packet that acknowledges this byte of data, counted from 1."""
    return Kind(f"acknowledgement of byte {number}", lambda packet: packet.ack > number)


def of(peer: socket.socket, kind: Kind) -> Kind:
    """Match the packets of a kind that belong to the connection of this peer."""
    port = peer.getsockname()[1]
    return Kind(kind.name, lambda packet: packet.connection == port and kind.is_one(packet))


class Which(NamedTuple):
    """The selected packets of a kind, counted from 1."""

    kind: Kind
    from_: Side
    earliest: int
    latest: int

    def is_one(self, packet: Packet) -> bool:
        return packet.from_ is self.from_ and self.kind.is_one(packet)

    def counts(self, number: int) -> bool:
        return self.earliest <= number <= self.latest

    def __str__(self) -> str:
        return f"{self.kind.name} number {self.earliest} from {self.from_.value}"


def first(kind: Kind, *, from_: Side) -> Which:
    return Which(kind, from_, 1, 1)


def nth(number: int, kind: Kind, *, from_: Side) -> Which:
    return Which(kind, from_, number, number)


def every(kind: Kind, *, from_: Side) -> Which:
    return Which(kind, from_, 1, sys.maxsize)
