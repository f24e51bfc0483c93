"""What the kernel says of a connection, after the program has closed its socket too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# include/net/tcp_states.h, counted from 1.
_STATES = (
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
    "NEW_SYN_RECV",
)

_FILES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))


@dataclass(frozen=True)
class Standing:
    """One end of a connection in the kernel's eyes.

    Attributes:
        state: The TCP state, by its usual name (RFC 9293, section 3.3.2).
        send_queue: Bytes that the peer has not acknowledged, an unacknowledged FIN counted as
            one: what `ss` and `netstat` call Send-Q.
    """

    state: str
    send_queue: int


def standing(port: int, peer_port: int) -> Standing | None:
    """Look a connection up by the ports of its two ends.

    Args:
        port: The port of the end that is asked about.
        peer_port: The other end's.

    Returns:
        How it stands; None where the kernel does not show it: there is no such connection, or
        the system has no list of them to read. Who saw it before and does not now knows that
        it is gone.

    Source: proc_net_tcp.rst and proc(5), on Linux.
    """
    wanted = b":%04X " % port  # most lines are others', and some machines have very many
    for file in _FILES:
        try:
            with file.open("rb") as lines:
                found = [line.decode("ascii") for line in lines if wanted in line]
        except OSError:
            continue  # ENOENT: not Linux, or no IPv6. EACCES: a sandbox.
        for line in found:
            _, local, remote, state, queues, *_ = line.split()
            if (_port(local), _port(remote)) == (port, peer_port):
                number = int(state, 16)
                name = _STATES[number - 1] if 0 < number <= len(_STATES) else f"state {number}"
                return Standing(name, int(queues.partition(":")[0], 16))
    return None


def _port(address: str) -> int:
    """The port of `0100007F:1F90`."""
    return int(address.rpartition(":")[2], 16)
