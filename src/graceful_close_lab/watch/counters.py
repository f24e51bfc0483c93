"""The kernel's counters of this network namespace, which every user can read."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Counter(NamedTuple):
    """A number that only grows.

    Attributes:
        name: The kernel's name of the counter.
        means: What an increment means for replies.
        may_cost_a_reply: Whether each increment may be a lost reply.
    """

    name: str
    means: str
    may_cost_a_reply: bool = True


# net/ipv4/tcp.c, tcp_input.c, tcp_timer.c. The kernel counts a close with SO_LINGER 0 as
# TCPAbortOnData, and not as TCPAbortOnLinger.
COUNTERS = (
    Counter("TCPAbortOnClose", "closed with unread input: RST, and the reply may be lost"),
    Counter(
        "TCPAbortOnData",
        "data arrived after the close, or closed with SO_LINGER 0: RST, and the reply may be "
        "lost",
    ),
    Counter("TCPAbortOnLinger", "closed with TCP_LINGER2 below 0: RST"),
    Counter(
        "TCPAbortOnTimeout",
        "the peer did not acknowledge in time: the unacknowledged data may be lost",
    ),
    Counter(
        "TCPAbortOnMemory",
        "too many closed connections pending (tcp_max_orphans, tcp_mem): RST",
    ),
    Counter(
        "OutRsts",
        "every RST sent: also for closed ports, and for data after an acknowledged close",
        may_cost_a_reply=False,
    ),
)

_FILES = (("/proc/net/netstat", "TcpExt:"), ("/proc/net/snmp", "Tcp:"))


def read() -> dict[str, int]:
    """Return the present values; counters that this kernel does not have are omitted.

    Raises:
        OSError: There is no /proc/net.
    """
    names = {counter.name for counter in COUNTERS}
    found: dict[str, int] = {}
    for file, group in _FILES:
        lines = [line.split() for line in Path(file).read_text(encoding="ascii").splitlines()]
        for heads, values in zip(lines[::2], lines[1::2], strict=False):
            if heads[0] == group:
                pairs = zip(heads[1:], values[1:], strict=True)
                found |= {head: int(value) for head, value in pairs if head in names}
    return found
