"""The kernel's notices of ended sockets, with what each had sent and received (sock_diag).

Any process may read the notices of its own network namespace, without privileges:
NETLINK_SOCK_DIAG, groups SKNLGRP_INET_TCP_DESTROY and SKNLGRP_INET6_TCP_DESTROY. sock_diag(7),
linux/sock_diag.h, linux/inet_diag.h, linux/tcp.h.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from typing import NamedTuple, Self

if sys.platform != "linux":
    raise ImportError("sock_diag is Linux's")

_NETLINK_SOCK_DIAG = 4
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_TCP_ENDED, _TCP6_ENDED = 1, 3
_SO_RCVBUFFORCE = 33
_BUFFER = 16 << 20  # bytes: some 10,000 notices. A heuristic.
_KEPT = 1 << 14  # the least number of notices that are kept for later calls. A heuristic: 8 MB.

# struct nlmsghdr (16 bytes), then struct inet_diag_msg (72), then attributes.
_COOKIE, _QUEUES, _ATTRIBUTES = struct.Struct("=II"), struct.Struct("=II"), 88
_COOKIE_AT, _QUEUES_AT = 60, 72
_INET_DIAG_INFO = 2
# struct tcp_info: tcpi_bytes_acked and _received at 120, _notsent_bytes at 144, _bytes_sent and
# _bytes_retrans at 200 (Linux 4.19 and later).
_ACKED, _NOT_SENT, _SENT = struct.Struct("=QQ"), struct.Struct("=I"), struct.Struct("=QQ")
_ACKED_AT, _NOT_SENT_AT, _SENT_AT = 120, 144, 200


class SocketNotice(NamedTuple):
    """The counts of an ended socket, in bytes. A FIN counts as one byte in each of them.

    Attributes:
        unread: Received by the kernel, and not read by the process.
        received: Received by the kernel.
        sent: Sent at least once; without the FIN.
        not_sent: Written, and never sent.
        acknowledged: Acknowledged by the peer's kernel.
    """

    unread: int
    received: int
    sent: int
    not_sent: int
    acknowledged: int


class SocketNotices:
    """The notices of sockets that end from now on. Call `close`, or use it in a `with` block.

    Raises:
        OSError: This kernel has no such notices.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
        try:
            self._socket.setblocking(False)
            self._enlarge_buffer()
            self._socket.bind((0, 0))
            for group in (_TCP_ENDED, _TCP6_ENDED):
                self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        except BaseException:
            self._socket.close()
            raise
        self._new: dict[int, bytes] = {}  # by cookie, which is unique on the machine
        self._old: dict[int, bytes] = {}
        self.overflowed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop receiving notices."""
        self._socket.close()

    def collect(self) -> None:
        """Read the pending notices. `overflowed` counts how often the kernel discarded some."""
        while True:
            try:
                notice = self._socket.recv(4096)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.overflowed += 1
                continue
            if len(notice) >= _ATTRIBUTES:
                low, high = _COOKIE.unpack_from(notice, _COOKIE_AT)
                if len(self._new) >= _KEPT:
                    self._old, self._new = self._new, {}
                self._new[high << 32 | low] = notice

    def take(self, cookie: int) -> SocketNotice | None:
        """Remove and return the notice of a socket, by cookie; None: it has not arrived."""
        notice = self._new.pop(cookie, None) or self._old.pop(cookie, None)
        return None if notice is None else _read(notice)

    def _enlarge_buffer(self) -> None:
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)


def _read(notice: bytes) -> SocketNotice | None:
    unread, _ = _QUEUES.unpack_from(notice, _QUEUES_AT)
    at = _ATTRIBUTES
    while at + 4 <= len(notice):
        size, kind = struct.unpack_from("=HH", notice, at)
        if size < 4:
            break
        info = notice[at + 4 : at + size]
        if kind == _INET_DIAG_INFO and len(info) >= _SENT_AT + _SENT.size:
            acknowledged, received = _ACKED.unpack_from(info, _ACKED_AT)
            [not_sent] = _NOT_SENT.unpack_from(info, _NOT_SENT_AT)
            sent, again = _SENT.unpack_from(info, _SENT_AT)
            return SocketNotice(unread, received, sent - again, not_sent, acknowledged)
        at += (size + 3) & ~3
    return None
