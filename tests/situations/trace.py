"""The kernel's record of a connection: each reset and each change of state, from tracefs.

Documentation/trace/events.rst; the events are in include/trace/events/tcp.h and sock.h.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import NamedTuple

from graceful_close_lab.watch.tracefs import NoTracingError, Tracing

# The local ports of our namespace. Other connections of the machine use other ports by default.
PORTS = range(10_000, 30_000)
_OURS = f"sport >= {PORTS.start} && sport < {PORTS.stop}"

# The name of the event, and the ports: of the socket, or of the packet with the reset.
_LINE = re.compile(
    r".* (?P<time>\d+\.\d+): (?P<name>\w+):"
    r".*? (?:sport=|src=\S+:)(?P<ours>\d+) (?:dport=|dest=\S+:)(?P<peers>\d+)(?P<rest>.*)"
)
_CHANGE = re.compile(r" oldstate=TCP_(\w+) newstate=TCP_(\w+)")
_REASON = re.compile(r" reason=(\w+)")


class Event(NamedTuple):
    """One report of the kernel.

    Attributes:
        time: In seconds, on the clock of time.monotonic().
        name: "sent reset", "received reset", or "state".
        old, new: The states before and after a change. For a sent reset, `new` is the reason.
    """

    time: float
    name: str
    old: str = ""
    new: str = ""


_NAMES = {
    "tcp_send_reset": "sent reset",
    "tcp_receive_reset": "received reset",
    "inet_sock_set_state": "state",
}


class Trace:
    """An instance of tracefs that records the connections with `PORTS`."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        (tracing.path / "trace_clock").write_text("mono")
        tracing.enable("tcp/tcp_send_reset")
        tracing.enable("tcp/tcp_receive_reset", _OURS)
        tracing.enable("sock/inet_sock_set_state", f"protocol == 6 && {_OURS}")

    def take(self, ports: tuple[int, int] | None) -> list[Event]:
        """Return the events of the connection with these ports, and forget all others.

        Args:
            ports: Our port and the peer's; None: return no events.
        """
        events: list[Event] = []
        while True:
            events += [event for line in self._tracing.lines() for event in _read(line, ports)]
            if self._tracing.idle:
                return events


def _read(line: str, ports: tuple[int, int] | None) -> list[Event]:
    match = _LINE.fullmatch(line)
    if match is None or (int(match["ours"]), int(match["peers"])) != ports:
        return []
    name = _NAMES[match["name"]]
    change, reason = _CHANGE.search(match["rest"]), _REASON.search(match["rest"])
    old, new = change.groups() if change else ("", reason[1] if reason else "")
    return [Event(float(match["time"]), name, old, new)]


def open_trace(held: ExitStack) -> Trace | None:
    """Open a record until the end of `held`; None: tracefs is not available to this user."""
    try:
        return Trace(held.enter_context(Tracing()))
    except NoTracingError:
        return None
