"""The kernel's state of a connection, also after the program has closed its socket."""

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
class KernelState:
    """The kernel's state of one end of a connection.

    Attributes:
        state: The name of the TCP state (RFC 9293, section 3.3.2).
        send_queue: Bytes that the peer has not acknowledged; an unacknowledged FIN counts as
            one. `ss` and `netstat` call it Send-Q.
    """

    state: str
    send_queue: int


def kernel_state(port: int, peer_port: int) -> KernelState | None:
    """Look a connection up by the ports of its two ends.

    Args:
        port: The port of the end whose state is returned.
        peer_port: The port of the other end.

    Returns:
        The state; None if the kernel does not list the connection: there is no such connection,
        or the system has no list. If an earlier call returned a state, None means that the
        connection is gone.

    Source: proc_net_tcp.rst and proc(5), on Linux.
    """
    wanted = b":%04X " % port  # a busy machine has very many lines
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
                return KernelState(name, int(queues.partition(":")[0], 16))
    return None


def _port(address: str) -> int:
    """Return the port of `0100007F:1F90`."""
    return int(address.rpartition(":")[2], 16)
