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
    r"\s*(?P<name>.*?)-(?P<thread>\d+)\s+(?:\(\s*(?P<process>\d+|-+)\)\s+)?"
    r"\[\d+\]\s+..(?P<context>.)\S*\s+[\d.]+: (?P<event>\w+):(?P<said> .*)"
)
# In tcp_send_reset, Linux 6.2 and later; an IPv6 address in brackets. And in the others.
_ENDPOINTS = re.compile(r".* src=(\S+):(\d+) dest=(\S+):(\d+)")
_ADDRESSES = re.compile(r".*?sport=(\d+) dport=(\d+) .*saddrv6=(\S+) daddrv6=(\S+)")


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
        said: All of it: "name=value", with a space before each.
    """

    name: str
    name_of_thread: str
    thread: int
    process: int
    by_process: bool
    connection: Connection
    said: str

    def field(self, name: str) -> str:
        """One of the others; "": this kernel does not tell it."""
        return self.said.partition(f" {name}=")[2].partition(" ")[0]


def parse(line: str) -> Event | None:
    """The event that a line of trace_pipe tells of; None: it tells of none ("[LOST 7 EVENTS]")."""
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    said, process = match["said"], match["process"] or ""
    connection = _connection(said)
    if connection is None:
        return None
    return Event(
        match["event"],
        "" if match["name"] == "<...>" else match["name"],
        int(match["thread"]),
        int(process) if process.isdecimal() else 0,
        match["context"] == ".",
        connection,
        said,
    )


def _connection(said: str) -> Connection | None:
    if match := _ADDRESSES.match(said):
        port, peers_port, host, peers_host = match.groups()
    elif match := _ENDPOINTS.match(said):
        host, port, peers_host, peers_port = match.groups()
    else:
        return None
    return Connection(
        Endpoint(_host(host.strip("[]")), int(port)),
        Endpoint(_host(peers_host.strip("[]")), int(peers_port)),
    )


def _host(text: str) -> str:
    """One spelling for IPv4 and IPv4 in IPv6: a connection has both, in different events."""
    return text[7:] if text.startswith("::ffff:") and "." in text else text
