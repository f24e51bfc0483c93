"""A small TCP of our own behind a TUN device: any order of segments, legal or illegal, and ICMP."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable
from time import monotonic
from typing import Any, ClassVar, NamedTuple

from wire.icmp import in_ip, message_about
from wire.link import ADDRESSES, Journey, Link
from wire.packets import OURS, PEER, Segment, Side

from .axes import SILENT
from .peers import LITTLE, MUCH, SILENCE, Account

_dpkt: Any = importlib.import_module("dpkt")

_FLAGS = {"S": 2, "F": 1, "R": 4, "P": 8, "A": 16, "U": 32}
_MODULUS = 1 << 32
_START = 4_294_000_000  # the sequence numbers wrap within the first megabyte
_WINDOW = 60_000
_MSS = b"\x02\x04\x05\xb4"
_COOKIE = b"\x22\x0acookie!!\x01\x01"  # TCP Fast Open (RFC 7413, section 4.1.1)
_REQUEST = b"GET /"
_LATER = 0.04

# kind, code and the rest of the header, of each version (RFC 792, RFC 4443).
_ICMP = {
    "is unreachable": ((3, 1, 0), (1, 3, 0)),
    "is unreachable once": ((3, 1, 0), (1, 3, 0)),
    "has no network": ((3, 0, 0), (1, 0, 0)),
    "has no port": ((3, 3, 0), (1, 4, 0)),
    "has no protocol": ((3, 2, 0), (4, 1, 0)),
    "is prohibited": ((3, 13, 0), (1, 1, 0)),
    "is too far": ((11, 0, 0), (3, 0, 0)),
    "requires smaller packets": ((3, 4, 576), (2, 0, 1280)),
}
_LOSES: dict[str, Callable[[Segment], bool]] = {
    "loses our data": lambda segment: segment.length > 0,
    "loses our FIN": lambda segment: "F" in segment.flags,
    "is unreachable once": lambda segment: segment.length > 0 or "F" in segment.flags,
    "requires smaller packets": lambda segment: segment.length > 0,
}


class _Reply(NamedTuple):
    """A segment of the script. Its numbers count from its own SYN and from ours."""

    flags: str
    seq: int
    ack: int
    data: bytes = b""
    window: int = _WINDOW
    after: float = 0.0


class Scripted:
    """The other end of a connection, without a kernel.

    Args:
        link: The wire, which has no other connection at the same time.
        version: "IPv4" or "IPv6".
        name: Its behaviour; see `axes`.
        port: Its port.
    """

    def __init__(self, link: Link, version: str, name: str, port: int) -> None:
        self.name = name
        self.account = Account(exact=0)
        self._link = link
        self._version = version
        self._port = port
        self._our_port = 0
        self._our_start = 0
        self._next = 0  # its next sequence number
        self._has = 0  # the number of our bytes that arrived in order
        self._our_fin: int | None = None
        self._acted = False
        self._lost = False  # a packet, which is sent again
        self._late = False  # the handshake is delayed
        self._at_start = 0
        self._greeted = threading.Event()
        self._lock = threading.Lock()
        link.hand_to(self)

    @property
    def address(self) -> tuple[str, int]:
        return ADDRESSES[self._version][PEER], self._port

    # --- the handshake ---------------------------------------------------------------------------

    def connect(self, port: int, *, fast_open: bool = False) -> None:
        """Connect to a listener of ours."""
        self._our_port = port
        data = _REQUEST if fast_open else b""
        self._late = fast_open
        self.account.sent += len(data)
        self._next = 1 + len(data)
        self._send(_Reply("S", 0, 0, data), options=_MSS + (_COOKIE if fast_open else b""))
        assert self._greeted.wait(5), "the SYN was not answered"

    def carry(self, raw: bytes, from_: Side, now: float) -> list[Journey]:
        """Return the answers to a packet, for the forwarder."""
        if from_ is not OURS:
            return []
        segment = Segment.read(raw)
        if segment is None or segment.target_port != self._port:
            return []
        with self._lock:
            return [self._journey(reply, now) for reply in self._react(segment, raw, now)]

    def _react(self, segment: Segment, raw: bytes, now: float) -> list[_Reply]:
        account = self.account
        if "S" in segment.flags:
            self._our_start, self._our_port = segment.seq, segment.source_port
            self._has = max(self._has, 1)
            if "A" not in segment.flags:  # we connect
                if segment.length and self.name in SILENT:
                    return self._lose(raw, now)
                self._next = 1
                self._has = max(self._has, 1 + segment.length)
                account.received = self._has - 1
                return [_Reply("SA", 0, self._has)]
            self._greeted.set()
            if self._late:
                return [] if self.name in SILENT else [self._ack(1, after=_LATER)]
            return [self._ack(1)]
        at = (segment.seq - self._our_start) % _MODULUS
        if "R" in segment.flags:
            account.end = account.end or "RST"
            return []
        end = at + segment.length + ("F" in segment.flags)
        loses = _LOSES.get(self.name)
        if loses is not None and loses(segment) and not self._lost:
            return self._lose(raw, now)
        if "F" in segment.flags:
            self._our_fin = end
        if at <= self._has < end:
            self._has = end
        if self._our_fin is not None and self._has >= self._our_fin:
            account.end = account.end or "FIN"
        account.received = self._has - 1 - (account.end == "FIN")
        if end == at:  # a pure acknowledgement
            crossed = self.name == "crosses our FIN" and self._acted
            return [self._ack(self._has)] if crossed else []
        if self.name in SILENT:
            return self._lose(raw, now)
        act = self._AT_OUR_FIN.get(self.name)
        if act is not None:
            return act(self) if self._fin_came else [self._ack(self._has)]
        return self._SCRIPTS.get(self.name, Scripted._answer)(self)

    def _lose(self, raw: bytes, now: float) -> list[_Reply]:
        self._lost = True
        if self.name in _ICMP:
            self._send_icmp(raw, now)
        return []

    def _ack(self, upto: int, *, window: int = _WINDOW, after: float = 0.0) -> _Reply:
        return _Reply("A", self._next, upto, window=window, after=after)

    # --- the behaviours --------------------------------------------------------------------------

    @property
    def _fin_came(self) -> bool:
        """Whether our FIN has just arrived for the first time."""
        if self.account.end != "FIN" or self._acted:
            return False
        self._acted = True
        return True

    @property
    def _data(self) -> int:
        """The number of our bytes without the FIN."""
        return self._has - (self.account.end == "FIN")

    def _fin(self, ack: int, *, after: float = 0.0) -> _Reply:
        self.account.fin = True
        self._next += 1
        return _Reply("FA", self._next - 1, ack, after=after)

    def _rst(self, off: int = 0, *, after: float = 0.0) -> _Reply:
        if not off:
            self.account.rst = True
        return _Reply("RA", self._next + off, self._data, after=after)

    def _upload(self, count: int, ack: int, flags: str = "PA") -> _Reply:
        self.account.sent += count
        self._next += count
        return _Reply(flags, self._next - count, ack, b"u" * count)

    def _answer(self) -> list[_Reply]:
        if self._fin_came and not self.account.fin:
            return [self._fin(self._has)]
        return [self._ack(self._has)]

    def _hold(self) -> list[_Reply]:
        return [self._ack(self._has)]

    def _be_silent(self) -> list[_Reply]:
        return []

    def _leave_fin(self) -> list[_Reply]:
        return [self._ack(self._data)]

    def _fin_alone(self) -> list[_Reply]:
        return [self._fin(1)] if self._fin_came else []

    def _fin_past_a_hole(self) -> list[_Reply]:
        replies = [self._ack(self._has)]
        if self._fin_came:
            replies.append(self._fin_past_the_hole())
        return replies

    def _fill_later(self) -> list[_Reply]:
        past = self._fin_past_the_hole()
        fill = self._upload(10, self._has)._replace(after=_LATER)
        self._next += 1
        self.account.fin = True
        return [self._ack(self._has), past, fill]

    def _fin_past_the_hole(self) -> _Reply:
        return _Reply("FA", self._next + 10, self._has)

    def _cross(self) -> list[_Reply]:
        if self._fin_came:
            return [self._fin(self._data)]
        return [self._ack(self._has if self._acted else self._data)]

    def _rst_at_fin(self) -> list[_Reply]:
        return [self._rst()] if self._fin_came else [self._ack(self._data)]

    def _rst_after_fins(self) -> list[_Reply]:
        if not self._fin_came:
            return [self._ack(self._data)]
        return [self._fin(self._data), self._rst(after=_LATER)]

    def _rst_in_window(self) -> list[_Reply]:
        replies = [self._ack(self._has)]
        return [*replies, self._rst(5)] if self._fin_came else replies

    def _rst_out_of_window(self) -> list[_Reply]:
        return [self._rst(50_000_000), self._fin(self._has, after=_LATER)]

    def _data_then_rst(self) -> list[_Reply]:
        return [self._upload(500, self._has), self._rst()]

    def _data_after_fin(self) -> list[_Reply]:
        uploads = [self._upload(500, self._has)._replace(after=_LATER * n) for n in range(3)]
        return [*uploads, self._fin(self._has, after=_LATER * 3)]

    def _close_window(self) -> list[_Reply]:
        return [self._ack(self._has, window=0)]

    def _repeat(self) -> list[_Reply]:
        return self._answer() * 3

    def _ack_the_unsent(self) -> list[_Reply]:
        return [_Reply("A", self._next, self._has + 100_000)]

    def _syn_again(self) -> list[_Reply]:
        return [_Reply("S", self._next, 0), self._fin(self._has)]

    def _ack_late(self) -> list[_Reply]:
        return [reply._replace(after=_LATER) for reply in self._answer()]

    def _ack_the_half(self) -> list[_Reply]:
        return [self._ack(self._has - (self._has - self._acked) // 2)]

    def _open_window_later(self) -> list[_Reply]:
        return [self._ack(self._has, window=0), *self._ack_late()]

    def _fin_with_data(self) -> list[_Reply]:
        upload, fin = self._upload(500, self._has), self._fin(self._has)
        return [upload._replace(flags=fin.flags)]

    def _repeat_data(self) -> list[_Reply]:
        first, second = self._upload(500, self._has), self._upload(250, self._has)
        overlap = _Reply("PA", first.seq + 250, self._has, first.data[250:] + second.data)
        return [first, first, overlap, self._fin(self._has)]

    _SCRIPTS: ClassVar[dict[str, Callable[[Scripted], list[_Reply]]]] = {
        "holds": _hold,
        "is silent": _be_silent,
        "acknowledges no FIN": _leave_fin,
        "sends FIN and acknowledges nothing": _fin_alone,
        "sends FIN first": _hold,
        "sends FIN out of order": _fin_past_a_hole,
        "crosses our FIN": _cross,
        "sends RST at our FIN": _rst_at_fin,
        "sends RST after both FINs": _rst_after_fins,
        "sends RST in the window": _rst_in_window,
        "closes its window": _close_window,
        "repeats itself": _repeat,
        "acknowledges the unsent": _ack_the_unsent,
        "acknowledges late": _ack_late,
        "acknowledges the half": _ack_the_half,
        "opens its window later": _open_window_later,
    }

    # These acknowledge everything, and act when our FIN arrives.
    _AT_OUR_FIN: ClassVar[dict[str, Callable[[Scripted], list[_Reply]]]] = {
        "fills the hole later": _fill_later,
        "sends RST out of the window": _rst_out_of_window,
        "sends data, then RST": _data_then_rst,
        "sends data after our FIN": _data_after_fin,
        "sends SYN again": _syn_again,
        "sends FIN with data": _fin_with_data,
        "repeats its data": _repeat_data,
    }

    # --- the interface of a peer -----------------------------------------------------------------

    def before(self, unread: str) -> None:
        """Do what precedes the call. When this returns, our kernel has received it."""
        count = {"nothing": 0, "urgent": LITTLE, "little": LITTLE, "much": MUCH}[unread]
        self._link.come_to_rest()
        while count and not (self.account.fin or self.account.rst):
            piece = min(count, 1400)
            count -= piece
            with self._lock:
                flags = "UA" if unread == "urgent" else "PA"
                reply = self._upload(piece, self._acked, flags)
            self._send(reply)
        if self.name == "sends FIN first":
            with self._lock:
                reply = self._fin(self._acked)
            self._send(reply)
        self._link.come_to_rest()
        self.account.fin_before = self.account.fin

    @property
    def _acked(self) -> int:
        return max(self.account.exact or 0, 1)

    def start(self) -> None:
        """Begin to count; the script acts when a packet arrives."""
        self._at_start = self.account.exact or 0

    def cpu(self) -> float:
        return self._link.cpu()

    def returned(self) -> None:
        """Do nothing at the return of the call: `exact` is always current."""

    def finish(self) -> Account:
        """Wait for our end, reset the connection in our kernel, and return the record."""
        # A retransmission may take longer than another silence.
        silence = SILENCE * (2 if self.name in _LOSES else 1)
        has, until = self._has, monotonic() + silence
        while not self.account.end and monotonic() < until:
            time.sleep(0.005)
            if self._has != has:
                has, until = self._has, monotonic() + silence
        self._link.come_to_rest()
        self.name = "is silent"
        self._send(_Reply("RA", self._next, self._data))
        self._send(_Reply("RA", self._acked_seq(), self._data))
        self._link.come_to_rest()
        self._link.hand_to(None)
        self.account.lately = (self.account.exact or 0) - self._at_start
        return self.account

    def _acked_seq(self) -> int:
        return max(self._next - 1, 0)

    # --- packets ---------------------------------------------------------------------------------

    def _send(self, reply: _Reply, options: bytes = b"") -> None:
        self._link.send(self._journey(reply, monotonic(), options))

    def _journey(self, reply: _Reply, now: float, options: bytes = b"") -> Journey:
        raw = self._raw(reply, options)

        def load(_now: float) -> tuple[bytes, Callable[[], None]]:
            account = self.account
            # Recorded before the write, because the kernel may act before the write returns.
            believable = (
                "A" in reply.flags and "R" not in reply.flags and reply.ack <= self._has
            )
            if believable:
                account.exact = max(account.exact or 0, reply.ack)
            return raw, lambda: None

        return Journey(now + reply.after, OURS, load)

    def _raw(self, reply: _Reply, options: bytes) -> bytes:
        tcp = _dpkt.tcp.TCP(
            sport=self._port,
            dport=self._our_port,
            seq=(_START + reply.seq) % _MODULUS,
            ack=(self._our_start + reply.ack) % _MODULUS if "A" in reply.flags else 0,
            flags=sum(_FLAGS[flag] for flag in reply.flags),
            win=reply.window,
            urp=len(reply.data) if "U" in reply.flags else 0,
            opts=options,
            data=reply.data,
        )
        tcp.off = 5 + len(options) // 4
        return in_ip(self._version, _dpkt.ip.IP_PROTO_TCP, tcp)

    def _send_icmp(self, raw: bytes, now: float) -> None:
        """Report with ICMP that our packet did not arrive."""
        header = _ICMP[self.name][0 if self._version == "IPv4" else 1]
        self._link.send(Journey.of(message_about(raw, self._version, *header), OURS, now))
