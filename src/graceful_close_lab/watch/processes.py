"""The process of a connection."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")
_FRESH = 1.0  # seconds for which an answer is cached. A heuristic.
_LISTENING = "0A"  # net/tcp_states.h, as /proc/net/tcp writes it
_INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # linux/proc_ns.h: PROC_PID_INIT_INO


class Process(NamedTuple):
    """A process.

    Attributes:
        number: Its pid; None: not known.
        name: Its comm, or "unknown".
        elsewhere: Whether it is known to be in another network namespace.
    """

    number: int | None = None
    name: str = "unknown"
    elsewhere: bool = False

    def __str__(self) -> str:
        return self.name if self.number is None else f"{self.name} {self.number}"


class Processes:
    """The processes in /proc."""

    def __init__(self) -> None:
        # Events have the pids of the initial pid namespace. In a container /proc has others.
        self.numbers_are_ours = _inode("self/ns/pid") in (_INITIAL_PID_NAMESPACE, 0)
        self._netns = _inode("self/ns/net")
        self._named: dict[int, tuple[float, Process]] = {}
        self._listening: set[int] = set()
        self._owners: dict[int, Process] = {}
        self._owners_found_at = float("-inf")
        self._read_listeners()

    def find(self, process: int, thread: int, name: str) -> Process:
        """Find a process by its pid or a thread's id; `name` is the thread's name."""
        if not self.numbers_are_ours:
            return Process(process or thread, name or "unknown")
        number = process or _process_of(thread)
        now = time.monotonic()
        asked, known = self._named.get(number, (float("-inf"), Process()))
        if now - asked < _FRESH:
            return known
        named = _name(number)
        if not named and known.number is not None:
            return known  # it has ended
        found = Process(number, named or name or "unknown", self._is_elsewhere(number))
        self._named[number] = now, found
        return found

    def begins_to_listen(self, port: int) -> None:
        """Record that a process listens on a port."""
        self._listening.add(port)

    def listens(self, port: int) -> bool:
        """Return whether a process has listened on a port, in any network namespace."""
        return port in self._listening

    def owner(self, port: int) -> Process:
        """Return the only process that listens on a port; "unknown": none, or several."""
        if time.monotonic() - self._owners_found_at >= _FRESH:
            self._owners = self._find_owners()
            self._owners_found_at = time.monotonic()
        return self._owners.get(port, Process())

    def _is_elsewhere(self, number: int) -> bool:
        netns = _inode(f"{number}/ns/net")
        return netns not in (0, self._netns)

    def _read_listeners(self) -> dict[str, int]:
        """Return the ports by the inode of the listening socket, in every network namespace."""
        found: dict[str, int] = {}
        seen: set[int] = set()
        for number in _numbers():
            netns = _inode(f"{number}/ns/net")
            if netns in seen:
                continue
            seen.add(netns)
            for table in ("tcp", "tcp6"):
                try:
                    _, *rows = (_PROC / number / "net" / table).read_text().splitlines()
                except (OSError, ValueError):  # the process has ended, or there is no IPv6
                    continue
                for row in rows:
                    fields = row.split()
                    if fields[3] == _LISTENING:
                        found[fields[9]] = int(fields[1].rpartition(":")[2], 16)
        self._listening.update(found.values())
        return found

    def _find_owners(self) -> dict[int, Process]:
        ports = self._read_listeners()
        holders: dict[int, set[int]] = {}
        for number in _numbers():
            try:
                entries = list(os.scandir(_PROC / number / "fd"))
            except OSError:  # the process has ended, or access is not permitted
                continue
            for entry in entries:
                try:
                    name = os.readlink(entry.path)
                except OSError:
                    continue
                if name.startswith("socket:[") and (port := ports.get(name[8:-1])):
                    holders.setdefault(port, set()).add(int(number))
        return {
            port: self.find(min(numbers), 0, "")
            for port, numbers in holders.items()
            if len(numbers) == 1
        }


def _numbers() -> list[str]:
    return [name for name in os.listdir(_PROC) if name.isdecimal()]


def _inode(path: str) -> int:
    try:
        return os.stat(_PROC / path).st_ino
    except OSError:
        return 0


def _name(number: int) -> str:
    try:
        return (_PROC / str(number) / "comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return ""


def _process_of(thread: int) -> int:
    try:
        for line in (_PROC / str(thread) / "status").read_text(errors="replace").splitlines():
            if line.startswith("Tgid:"):
                return int(line.split()[1])
    except OSError:
        pass
    return thread
