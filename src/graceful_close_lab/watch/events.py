"""The events in the lines of tracefs."""

from __future__ import annotations

import re
from typing import NamedTuple

RESET = "tcp/tcp_send_reset"
STATE = "sock/inet_sock_set_state"
END = "tcp/tcp_destroy_sock"

# "          python-14681   (  14681) [001] ..s1. 11655.157370: tcp_send_reset: skbaddr=..."
# The third of the flags is the context: "." is a process, and others are interrupts.
_LINE = re.compile(
    r"\s*(?P<name>.*?)-(?P<thread>\d+)\s+(?:\(\s*(?P<process>\d+|-+)\)\s+)?"
    r"\[\d+\]\s+..(?P<context>.)\S*\s+[\d.]+: (?P<event>\w+):(?P<fields> .*)"
)
# The first is the format of tcp_send_reset, Linux 6.2 and later, with an IPv6 address in
# brackets; the second that of the other events.
_ENDPOINTS = re.compile(r".* src=(\S+):(\d+) dest=(\S+):(\d+)")
_ADDRESSES = re.compile(r".*?sport=(\d+) dport=(\d+) .*saddrv6=(\S+) daddrv6=(\S+)")


class Endpoint(NamedTuple):
    """An address and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Connection(NamedTuple):
    """Both ends of a connection."""

    local: Endpoint
    peer: Endpoint

    def reversed(self) -> Connection:
        """Return the connection as the peer sees it."""
        return Connection(self.peer, self.local)


class Event(NamedTuple):
    """One event.

    Attributes:
        name: The name of the event, without its group.
        name_of_thread: The kernel's name of the running thread.
        thread: The id of the thread.
        process: The pid of its process; 0: not reported.
        by_process: Whether a system call of that thread caused the event. If not, the event
            happened in an interrupt, while that thread ran.
        connection: The connection of the event.
        fields: The other fields: "name=value", with a space before each.
    """

    name: str
    name_of_thread: str
    thread: int
    process: int
    by_process: bool
    connection: Connection
    fields: str

    def field(self, name: str) -> str:
        """Return another field; "": this kernel does not report it."""
        return self.fields.partition(f" {name}=")[2].partition(" ")[0]


def parse(line: str) -> Event | None:
    """Parse a line of trace_pipe; None: the line is not an event ("[LOST 7 EVENTS]")."""
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    fields, process = match["fields"], match["process"] or ""
    connection = _connection(fields)
    if connection is None:
        return None
    return Event(
        match["event"],
        "" if match["name"] == "<...>" else match["name"],
        int(match["thread"]),
        int(process) if process.isdecimal() else 0,
        match["context"] == ".",
        connection,
        fields,
    )


def _connection(fields: str) -> Connection | None:
    if match := _ADDRESSES.match(fields):
        port, peers_port, host, peers_host = match.groups()
    elif match := _ENDPOINTS.match(fields):
        host, port, peers_host, peers_port = match.groups()
    else:
        return None
    return Connection(
        Endpoint(_host(host.strip("[]")), int(port)),
        Endpoint(_host(peers_host.strip("[]")), int(peers_port)),
    )


def _host(text: str) -> str:
    """Return one form for IPv4 and IPv4 in IPv6: the events of a connection use both."""
    return text[7:] if text.startswith("::ffff:") and "." in text else text
