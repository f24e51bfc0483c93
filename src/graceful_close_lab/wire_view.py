"""When packets of a connection arrive on loopback, where this process may see them.

That takes Linux, and CAP_NET_RAW: root, as a rule. Elsewhere nothing is seen, and a story keeps the
times at which the calls of the programs returned.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import itertools
import mmap
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from .story import Arrow, Exchange, Kind, Side

if TYPE_CHECKING:
    from collections.abc import Generator

_LOOPBACK = "lo"
_ETH_P_IP = 0x0800  # linux/if_ether.h
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_SOL_PACKET = 263  # linux/socket.h

# linux/if_packet.h, and packet_mmap.rst. The kernel writes each packet into a frame of a ring, with
# the time at which it came: without a ring the first few would have the time at which they are read.
_PACKET_RX_RING, _PACKET_STATISTICS, _PACKET_VERSION = 5, 6, 10
_TPACKET_V2 = 1
_FRAME_IS_OURS = 0x01
_HEADER = struct.Struct("IIIHHII")  # status, len, snaplen, mac, net, sec, nsec
_KIND_AT = 32 + 10  # of a frame: sll_pkttype of the address behind its header
_PACKET_HOST = 0
_BLOCK, _BLOCKS, _FRAME = 4096, 512, 256  # bytes: room for 8,192 packets, twice an upload's

_HEADERS = 120  # bytes: the longest of IPv4 and the longest of TCP
_FIN, _SYN, _RST, _ACK = 0x01, 0x02, 0x04, 0x10


class Packet(NamedTuple):
    """One packet that arrived.

    Attributes:
        at: When, by `time.perf_counter()`.
        port: The sender's.
        kind: What it is; a FIN or an RST whether it carries data or not.
        start: The sequence number of what it carries, or of what is to come.
        end: That of what comes behind it.
        acked: What it acknowledges; None: nothing, as the first of all.
    """

    at: float
    port: int
    kind: Kind
    start: int
    end: int
    acked: int | None


class Wire:
    """What was seen.

    Attributes:
        packets: In their order; complete when the block of `watched()` has been left.
        complete: Whether these are all of them.
    """

    def __init__(self) -> None:
        self.packets: list[Packet] = []
        self.complete = False


@contextlib.contextmanager
def watched(port: int) -> Generator[Wire]:
    """Watch what arrives on IPv4 loopback to or from a port, while the block runs."""
    wire = Wire()
    with contextlib.ExitStack() as stack:
        try:
            sock = stack.enter_context(_listening(port))
            ring = stack.enter_context(mmap.mmap(sock.fileno(), _BLOCK * _BLOCKS))
            sock.bind((_LOOPBACK, _ETH_P_IP))
        except (OSError, AttributeError):  # not allowed, or not Linux
            yield wire
            return
        yield wire
        wire.packets += _collect(ring)
        _, lost = struct.unpack("II", sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        wire.complete = lost == 0


def as_it_arrived(exchange: Exchange, wire: Wire, began: float, server: int) -> Exchange:
    """The exchange, with each arrow from when its first packet arrived to when its last did.

    A packet on loopback arrives when it is sent. What cannot be found on the wire stays as it is.

    Args:
        exchange: As the programs and the kernel's list report it.
        wire: What was seen during it.
        began: When the story began, by `time.perf_counter()`.
        server: The server's port.
    """
    if not wire.complete:
        return exchange
    sent = {
        side: [
            packet
            for packet in wire.packets
            if (packet.port == server) is (side is Side.SERVER)
        ]
        for side in Side
    }
    if not all(sent.values()):
        return exchange
    reached = dict.fromkeys(Side, 0)  # by the arrows before
    arrows: list[Arrow] = []
    for arrow in sorted(exchange.arrows, key=lambda arrow: arrow.reach):
        if arrow.seen_at is None:
            arrows.append(arrow)
            continue
        times = [packet.at - began for packet in _of_arrow(arrow, sent, reached[arrow.sender])]
        if arrow.kind is Kind.DATA:
            reached[arrow.sender] = arrow.reach
        arrows.append(
            dataclasses.replace(arrow, sent_at=times[0], seen_at=times[-1]) if times else arrow
        )
    arrows.sort(key=lambda arrow: arrow.sent_at)
    return dataclasses.replace(exchange, arrows=tuple(arrows), on_wire=True)


def _of_arrow(arrow: Arrow, sent: dict[Side, list[Packet]], reached: int) -> list[Packet]:
    """The packets that an arrow stands for; none, if they are not there.

    Args:
        arrow: Which.
        sent: All packets by their senders.
        reached: How far the arrow of data before this one went.
    """
    other = Side.CLIENT if arrow.sender is Side.SERVER else Side.SERVER
    if arrow.kind is Kind.ACK:
        base = sent[other][0].start
        first = (
            packet
            for packet in sent[arrow.sender]
            if packet.acked is not None and _far(packet.acked, base) >= arrow.reach
        )
        return list(itertools.islice(first, 1))
    if arrow.kind is not Kind.DATA:
        return [packet for packet in sent[arrow.sender] if packet.kind is arrow.kind][:1]
    base = sent[arrow.sender][0].start
    found: list[Packet] = []
    for packet in sent[arrow.sender]:
        if _far(packet.end, base) > reached and packet.end > packet.start:
            found.append(packet)
        if _far(packet.end, base) >= arrow.reach:
            return found
    return []


def _listening(port: int) -> socket.socket:
    if sys.platform != "linux":
        raise OSError("no packet sockets here")
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)  # 0: nothing comes yet
    try:
        program = _program(port)
        instructions = b"".join(struct.pack("HBBI", *each) for each in program)
        kept = ctypes.create_string_buffer(instructions, len(instructions))
        filtering = struct.pack("HP", len(program), ctypes.addressof(kept))  # sock_fprog
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filtering)
        sock.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V2)
        frames = _BLOCK * _BLOCKS // _FRAME
        request = struct.pack("IIII", _BLOCK, _BLOCKS, _FRAME, frames)  # tpacket_req
        sock.setsockopt(_SOL_PACKET, _PACKET_RX_RING, request)
    except BaseException:
        sock.close()
        raise
    return sock


def _program(port: int) -> list[tuple[int, int, int, int]]:
    """What accepts TCP over IPv4 from or to a port, as bpf(4) writes it: code, jt, jf, k."""
    load_byte, length_of_ip, load_half_behind = 0x30, 0xB1, 0x48
    equal, give = 0x15, 0x06
    return [
        (load_byte, 0, 0, 9),
        (equal, 0, 6, socket.IPPROTO_TCP),
        (length_of_ip, 0, 0, 0),
        (load_half_behind, 0, 0, 0),
        (equal, 2, 0, port),
        (load_half_behind, 0, 0, 2),
        (equal, 0, 1, port),
        (give, 0, 0, _HEADERS),
        (give, 0, 0, 0),
    ]


def _collect(ring: mmap.mmap) -> Generator[Packet]:
    wall_to_ours = _wall_to_ours()
    for frame in range(0, len(ring), _FRAME):
        status, _, size, _, start, seconds, nanoseconds = _HEADER.unpack_from(ring, frame)
        if not status & _FRAME_IS_OURS:
            return
        if ring[frame + _KIND_AT] == _PACKET_HOST:  # each goes out, too
            raw = ring[frame + start : frame + start + size]
            yield _read(raw, seconds + nanoseconds / 1e9 + wall_to_ours)


def _wall_to_ours() -> float:
    """What to add to the time of day: the one of a few tries that nothing came between."""
    tries: list[tuple[float, float]] = []
    for _ in range(10):
        before = time.perf_counter()
        wall = time.time()
        after = time.perf_counter()
        tries.append((after - before, (before + after) / 2 - wall))
    return min(tries)[1]


def _read(raw: bytes, at: float) -> Packet:
    """A packet from its headers (RFC 791, RFC 9293)."""
    header = 4 * (raw[0] & 0x0F)
    tcp = raw[header:]
    port, _, start, acked, length, flags = struct.unpack("!HHIIBB", tcp[:14])
    data = int.from_bytes(raw[2:4]) - header - 4 * (length >> 4)
    if flags & _SYN:  # counts as one
        start += 1
    if flags & _RST:
        kind = Kind.RST
    elif flags & _FIN:
        kind = Kind.FIN
    else:
        kind = Kind.DATA if data > 0 else Kind.ACK
    return Packet(at, port, kind, start, start + data, acked if flags & _ACK else None)


def _far(number: int, base: int) -> int:
    """How far a sequence number is behind another, which they count on from after 2**32 - 1."""
    return (number - base) % (1 << 32)
