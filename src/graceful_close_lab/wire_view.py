"""The times at which packets of a connection arrive on loopback, if this process may see them.

This requires Linux and CAP_NET_RAW, which usually means root. Otherwise no packets are seen,
and a timeline keeps the times at which the calls of the programs returned.
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

from .timeline import Arrow, Exchange, Kind, Side

if TYPE_CHECKING:
    from collections.abc import Generator

_LOOPBACK = "lo"
_ETH_P_IP = 0x0800  # linux/if_ether.h
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_SOL_PACKET = 263  # linux/socket.h

# linux/if_packet.h, and packet_mmap.rst. The kernel writes each packet into a frame of a ring,
# with the time of its arrival. Without a ring the first few packets get the time at which they
# are read.
_PACKET_RX_RING, _PACKET_STATISTICS, _PACKET_VERSION = 5, 6, 10
_TPACKET_V2 = 1
_FRAME_IS_OURS = 0x01
_HEADER = struct.Struct("IIIHHII")  # status, len, snaplen, mac, net, sec, nsec
_KIND_AT = 32 + 10  # in a frame: sll_pkttype of the address after the header
_PACKET_HOST = 0
_BLOCK, _BLOCKS, _FRAME = 4096, 512, 256  # bytes: room for 8,192 packets, twice an upload's

_HEADERS = 120  # bytes: the longest IPv4 header and the longest TCP header
_FIN, _SYN, _RST, _ACK = 0x01, 0x02, 0x04, 0x10


class Packet(NamedTuple):
    """One packet that arrived.

    Attributes:
        at: The time of arrival, by `time.perf_counter()`.
        port: The sender's port.
        kind: The kind. A packet with FIN or RST has that kind, with or without data.
        start: The sequence number of its first byte; without data: of the next byte.
        end: The sequence number after its last byte.
        acked: The acknowledgement number; None: it has none, like the first packet.
    """

    at: float
    port: int
    kind: Kind
    start: int
    end: int
    acked: int | None


class Wire:
    """The recorded packets.

    Attributes:
        packets: In order of arrival; filled when the block of `watched()` is left.
        complete: Whether no packet is missing.
    """

    def __init__(self) -> None:
        self.packets: list[Packet] = []
        self.complete = False


@contextlib.contextmanager
def watched(port: int) -> Generator[Wire]:
    """Record the packets on IPv4 loopback to or from a port, while the block runs."""
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
    """Return the exchange with the times of each arrow's first and last packet.

    A packet on loopback arrives when it is sent. Arrows without a recorded packet are not
    changed.

    Args:
        exchange: The exchange as the programs and the kernel's list reported it.
        wire: The packets recorded during it.
        began: The start of the timeline, by `time.perf_counter()`.
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
    reached = dict.fromkeys(Side, 0)  # by the preceding arrows
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
    """Return the packets of an arrow; empty if they were not recorded.

    Args:
        arrow: The arrow.
        sent: All packets by their senders.
        reached: The end of the preceding arrow of data.
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
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)  # 0: receive nothing yet
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
    """Return a filter for TCP over IPv4 from or to a port: code, jt, jf, k, as in bpf(4)."""
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
        if ring[frame + _KIND_AT] == _PACKET_HOST:  # not the outgoing copy
            raw = ring[frame + start : frame + start + size]
            yield _read(raw, seconds + nanoseconds / 1e9 + wall_to_ours)


def _wall_to_ours() -> float:
    """Return the offset from the time of day, from the least interrupted of a few tries."""
    tries: list[tuple[float, float]] = []
    for _ in range(10):
        before = time.perf_counter()
        wall = time.time()
        after = time.perf_counter()
        tries.append((after - before, (before + after) / 2 - wall))
    return min(tries)[1]


def _read(raw: bytes, at: float) -> Packet:
    """Read a packet from its headers (RFC 791, RFC 9293)."""
    header = 4 * (raw[0] & 0x0F)
    tcp = raw[header:]
    port, _, start, acked, length, flags = struct.unpack("!HHIIBB", tcp[:14])
    data = int.from_bytes(raw[2:4]) - header - 4 * (length >> 4)
    if flags & _SYN:  # SYN counts as one byte
        start += 1
    if flags & _RST:
        kind = Kind.RST
    elif flags & _FIN:
        kind = Kind.FIN
    else:
        kind = Kind.DATA if data > 0 else Kind.ACK
    return Packet(at, port, kind, start, start + data, acked if flags & _ACK else None)


def _far(number: int, base: int) -> int:
    """Return the distance between two sequence numbers, which wrap at 2**32."""
    return (number - base) % (1 << 32)
