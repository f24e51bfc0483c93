"""What tracefs says, line by line."""

from __future__ import annotations

import re
from typing import NamedTuple

RESET = "tcp/tcp_send_reset"
STATE = "sock/inet_sock_set_state"
END = "tcp/tcp_destroy_sock"

# "          python-14681   (  14681) [001] ..s1. 11655.157370: tcp_send_reset: skbaddr=..."
# The third of the flags says what was interrupted, if anything: "." is a process at work.
_LINE = re.compile(
    r"\s*(?P<name>.*)-(?P<thread>\d+)\s+(?:\(\s*(?P<process>\d+|-+)\)\s+)?"
    r"\[\d+\]\s+..(?P<context>.)\S*\s+[\d.]+: (?P<event>\w+): (?P<said>.*)"
)
_FIELDS = re.compile(r"(\w+)=(\S+)")


class Endpoint(NamedTuple):
    """An address and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Connection(NamedTuple):
    """Both ends, seen from one."""

    local: Endpoint
    peer: Endpoint

    def reversed(self) -> Connection:
        """Seen from the other."""
        return Connection(self.peer, self.local)


class Event(NamedTuple):
    """One event.

    Attributes:
        name: Which; without its group.
        name_of_thread: As the kernel knew it.
        thread: Its number.
        process: The number of its process; 0: not told.
        by_process: Whether that thread did it. If not, it was interrupted for it: whoever sent
            the packet, or anybody.
        connection: Whose event it is.
        fields: All else.
    """

    name: str
    name_of_thread: str
    thread: int
    process: int
    by_process: bool
    connection: Connection
    fields: dict[str, str]


def parse(line: str) -> Event | None:
    """The event that a line of trace_pipe tells of; None: it tells of none ("[LOST 7 EVENTS]")."""
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    fields: dict[str, str] = dict(_FIELDS.findall(match["said"]))
    process = match["process"] or ""
    return Event(
        match["event"],
        "" if match["name"] == "<...>" else match["name"],
        int(match["thread"]),
        int(process) if process.isdecimal() else 0,
        match["context"] == ".",
        _connection(fields),
        fields,
    )


def _connection(fields: dict[str, str]) -> Connection:
    if "src" in fields:  # Linux 6.2 and later, in tcp_send_reset: "[::1]:80"
        return Connection(_endpoint(fields["src"]), _endpoint(fields["dest"]))
    return Connection(
        Endpoint(_host(fields["saddrv6"]), int(fields["sport"])),
        Endpoint(_host(fields["daddrv6"]), int(fields["dport"])),
    )


def _endpoint(text: str) -> Endpoint:
    host, _, port = text.rpartition(":")
    return Endpoint(_host(host.strip("[]")), int(port))


def _host(text: str) -> str:
    """One spelling for IPv4 and IPv4 in IPv6: a connection has both, in different events."""
    return text[7:] if text.startswith("::ffff:") and "." in text else text
