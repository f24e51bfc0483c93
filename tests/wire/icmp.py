"""Packets of the peer's side that no kernel has written: anything in IP, and ICMP messages."""

from __future__ import annotations

import importlib
import socket
import struct
from typing import Any

from .link import ADDRESSES
from .packets import OURS, PEER

_dpkt: Any = importlib.import_module("dpkt")

_FAMILIES = {"IPv4": socket.AF_INET, "IPv6": socket.AF_INET6}


def in_ip(version: str, protocol: int, data: Any) -> bytes:
    """Return a packet from the peer to us."""
    source, target = _ends(version)
    if version == "IPv4":
        ip = _dpkt.ip.IP(p=protocol, ttl=64, src=source, dst=target, data=data)
        ip.len = 20 + len(data)
    else:
        ip = _dpkt.ip6.IP6(
            nxt=protocol, hlim=64, plen=len(data), src=source, dst=target, data=data
        )
    return bytes(ip)


def message_about(raw: bytes, version: str, kind: int, code: int, rest: int = 0) -> bytes:
    """Return the ICMP message about one of our packets; `rest` is the rest of its header."""
    quoted = raw[:48] if version == "IPv4" else raw[:100]
    body = struct.pack("!BBHI", kind, code, 0, rest) + quoted
    if version == "IPv4":
        return in_ip(version, 1, _with_checksum(body, b""))
    # RFC 4443, section 2.3: the checksum includes the pseudo-header.
    pseudo = b"".join(_ends(version)) + struct.pack("!II", len(body), 58)
    return in_ip(version, 58, _with_checksum(body, pseudo))


def _ends(version: str) -> tuple[bytes, bytes]:
    ends = ADDRESSES[version]
    family = _FAMILIES[version]
    return socket.inet_pton(family, ends[PEER]), socket.inet_pton(family, ends[OURS])


def _with_checksum(body: bytes, before: bytes) -> bytes:
    checksum: int = _dpkt.dpkt.in_cksum(before + body)
    return body[:2] + struct.pack("!H", checksum) + body[4:]
