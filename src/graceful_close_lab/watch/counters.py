"""What the kernel counts for everybody to read, in this network namespace."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Counter(NamedTuple):
    """A number that only grows.

    Attributes:
        name: The kernel's.
        means: What it says of replies.
        may_cost_a_reply: Whether each may be a reply that was lost.
    """

    name: str
    means: str
    may_cost_a_reply: bool = True


# net/ipv4/tcp.c, tcp_input.c, tcp_timer.c. A close with SO_LINGER 0 is counted by the kernel as
# TCPAbortOnData; TCPAbortOnLinger is another matter.
COUNTERS = (
    Counter("TCPAbortOnClose", "closed over unread input: RST, and the reply may be lost"),
    Counter(
        "TCPAbortOnData",
        "data came after the close, or closed with SO_LINGER 0: RST, and the reply may be lost",
    ),
    Counter("TCPAbortOnLinger", "closed with TCP_LINGER2 below 0: RST"),
    Counter(
        "TCPAbortOnTimeout",
        "the peer did not acknowledge in time: what it had not may be lost",
    ),
    Counter(
        "TCPAbortOnMemory",
        "too many closed connections in flight (tcp_max_orphans, tcp_mem): RST",
    ),
    Counter(
        "OutRsts",
        "every RST sent: also for closed ports, and for data after an acknowledged close",
        may_cost_a_reply=False,
    ),
)

_FILES = (("/proc/net/netstat", "TcpExt:"), ("/proc/net/snmp", "Tcp:"))


def read() -> dict[str, int]:
    """The counters as they are now; one that this kernel does not have is left out.

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
