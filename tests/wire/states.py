"""TCP states by address, queried from the kernel without a descriptor of the socket.

A dup for getsockopt(TCP_INFO) would keep the connection open. The socket monitor needs no dup,
and reports TIME_WAIT too.

Source: sock_diag(7); linux/inet_diag.h.
"""

from __future__ import annotations

import socket
import struct

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_NLMSG_ERROR = 2
_NO_COOKIE = b"\xff" * 8
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr

# include/net/tcp_states.h
_NAMES = {
    1: "ESTABLISHED",
    2: "SYN_SENT",
    3: "SYN_RECV",
    4: "FIN_WAIT1",
    5: "FIN_WAIT2",
    6: "TIME_WAIT",
    7: "CLOSED",
    8: "CLOSE_WAIT",
    9: "LAST_ACK",
    10: "LISTEN",
    11: "CLOSING",
    12: "SYN_RECV",
}


class StateMonitor:
    """Queries the connections of the namespace in which it was made."""

    def __init__(self) -> None:
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG)

    def close(self) -> None:
        self._netlink.close()

    def state(self, local: tuple[str, int], remote: tuple[str, int]) -> str:
        """Return the state of one connection; CLOSED: the kernel has none."""
        family = socket.AF_INET6 if ":" in local[0] else socket.AF_INET
        identity = struct.pack(
            "!HH16s16s4x8s",
            local[1],
            remote[1],
            socket.inet_pton(family, local[0]),
            socket.inet_pton(family, remote[0]),
            _NO_COOKIE,
        )
        every_state = 0xFFFFFFFF
        question = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, 0, every_state) + identity
        length = _HEADER.size + len(question)
        header = _HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0)
        self._netlink.sendto(header + question, (0, 0))
        answer = self._netlink.recv(4096)
        if _HEADER.unpack_from(answer)[1] == _NLMSG_ERROR:
            return "CLOSED"  # ENOENT
        return _NAMES[answer[_HEADER.size + 1]]  # struct inet_diag_msg: family, state
