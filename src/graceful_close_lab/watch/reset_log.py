"""Events and socket notices combined: each reset with its process and its cost."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from .events import END, RESET, STATE
from .judgement import Cost, Judgement, Kind, Reset, judge

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from .events import Connection, Event
    from .processes import Process, Processes
    from .socket_notices import SocketNotice, SocketNotices

# Seconds for which a reset waits for the end of the peer's socket, if the peer is on this
# machine, and for the notice of its own socket. A heuristic: a peer that has not closed by then
# proves nothing.
_PEER_TIMEOUT = 5.0
_OWN_TIMEOUT = 1.0

# How many closes are kept, to find the process of a reset when data arrives later. A heuristic:
# at 10,000 closes a second, the last 13 seconds.
_CLOSES = 1 << 17
_ENDS = 1 << 14

_RESET, _STATE, _END = (event.partition("/")[2] for event in (RESET, STATE, END))


@dataclass
class Entry:
    """A reset.

    Attributes:
        when: When the event was read, by time.time().
        connection: The connection, from the side that sent the reset.
        reset: The kernel's report.
        process: The process of the socket.
        known_by: How the process is known: "reset" (it sent the reset), "close" (it had sent
            the FIN), "listener" (only it listens on the port), "" (not known).
        accepted: Whether a process listens on the local port.
        waits_until: When the reset is judged at the latest, by time.monotonic().
        cookie: The cookie of its socket; 0: not known.
        peers_cookie: The cookie of the other end, if it is on this machine.
        peer_was_gone: Whether the other end had closed, and ended, before the reset.
        own: The notice of its socket; None: it has not arrived.
        peer: The notice of the other end.
        is_new: Whether it was never judged.
        judgement: The judgement; None: not decided yet.
    """

    when: float
    connection: Connection
    reset: Reset
    process: Process
    known_by: str
    accepted: bool
    waits_until: float
    cookie: int = 0
    peers_cookie: int = 0
    peer_was_gone: bool = False
    own: SocketNotice | None = None
    peer: SocketNotice | None = None
    is_new: bool = True
    judgement: Judgement | None = None

    @property
    def peer_is_here(self) -> bool:
        """Whether both ends are on one machine."""
        local, peer = self.connection
        return local.host == peer.host or local.host.startswith("127.")

    @property
    def needs_own(self) -> bool:
        """Whether the notice of its own socket is useful."""
        return self.reset.counts_are_kept and not self.reset.fin_was_acknowledged


class _End(NamedTuple):
    """The end of a socket.

    Attributes:
        cookie: The cookie of the socket.
        peers_cookie: The cookie of the other end, if it had ended before; 0: it had not.
        first: Whether this end of the connection ended first.
    """

    cookie: int
    peers_cookie: int
    first: bool


class ResetLog:
    """All resets. Add events with `add`, and call `settle` regularly."""

    def __init__(self, processes: Processes, socket_notices: SocketNotices | None) -> None:
        self._processes = processes
        self._notices = socket_notices
        self._open: list[Entry] = []
        self._closers: OrderedDict[Connection, tuple[int, int, str]] = OrderedDict()
        self._ended: OrderedDict[Connection, _End] = OrderedDict()
        self._before_their_end: dict[Connection, Entry] = {}
        self._before_their_peers_end: dict[Connection, Entry] = {}

    def add(self, event: Event) -> None:
        """Add one event; events must be added in the order of their time."""
        if event.name == _STATE:
            self._state(event)
        elif event.name == _END:
            self._end(event)
        elif event.name == _RESET:
            self._reset(event)

    def settle(self, *, at_once: bool = False) -> Generator[Entry]:
        """Yield the resets that are decided, with judgement; `at_once`: all of them."""
        now = time.monotonic()
        open_, self._open = self._open, []
        for entry in open_:
            if not (self._update(entry) or at_once or now >= entry.waits_until):
                self._open.append(entry)
                continue
            peer = entry.peer if self._is_in_this_namespace(entry) else None
            judgement = judge(entry.reset, entry.own, peer, peer_was_gone=entry.peer_was_gone)
            if not entry.accepted:
                judgement = Judgement(Cost.NO_REPLY, "it came from the side that had connected")
            if at_once or now >= entry.waits_until or self._is_decided(entry, judgement):
                entry.judgement = judgement
                self._before_their_end.pop(entry.connection, None)
                self._before_their_peers_end.pop(entry.connection.reversed(), None)
                yield entry
            else:
                self._open.append(entry)

    @property
    def undecided(self) -> Sequence[Entry]:
        """The resets that are not decided yet."""
        return self._open

    def _state(self, event: Event) -> None:
        state = event.field("newstate")
        if state == "TCP_LISTEN":
            self._processes.begins_to_listen(event.connection.local.port)
        elif state in ("TCP_FIN_WAIT1", "TCP_LAST_ACK") and event.by_process:
            self._closers[event.connection] = event.process, event.thread, event.name_of_thread
            if len(self._closers) > _CLOSES:
                self._closers.popitem(last=False)

    def _end(self, event: Event) -> None:
        cookie, connection = int(event.field("sock_cookie") or "0", 16), event.connection
        if entry := self._before_their_end.pop(connection, None):
            entry.cookie = cookie
        if entry := self._before_their_peers_end.pop(connection, None):
            entry.peers_cookie = cookie
        # Another connection may soon have the same ports, so the peer's end is moved to this
        # one.
        peer = self._ended.pop(connection.reversed(), None)
        self._ended[connection] = _End(cookie, peer.cookie if peer else 0, peer is None)
        if len(self._ended) > _ENDS:
            self._ended.popitem(last=False)

    def _reset(self, event: Event) -> None:
        connection = event.connection
        process, known_by = self._find_process(event)
        now = time.monotonic()
        entry = Entry(
            time.time(),
            connection,
            Reset(event.field("reason"), event.field("state"), event.by_process),
            process,
            known_by,
            self._processes.listens(connection.local.port),
            now + _OWN_TIMEOUT,
        )
        own = self._ended.get(connection)
        peer = self._ended.get(connection.reversed())
        if entry.needs_own:
            # If data arrives after a close, the socket ends before the reset is sent.
            if entry.reset.kind is Kind.DATA:
                entry.cookie = own.cookie if own else 0
            else:
                self._before_their_end[connection] = entry
        if entry.reset.kind is Kind.DATA and own and own.peers_cookie:
            entry.peers_cookie, entry.peer_was_gone = own.peers_cookie, True
        elif peer is not None and peer.first:
            entry.peers_cookie, entry.peer_was_gone = peer.cookie, True
        elif entry.peer_is_here:
            entry.waits_until = now + _PEER_TIMEOUT
            self._before_their_peers_end[connection.reversed()] = entry
        self._open.append(entry)

    def _find_process(self, event: Event) -> tuple[Process, str]:
        """Return the process that caused a reset, and how it is known.

        A reset that a packet causes is sent while any process runs; on loopback, while the
        sender of the packet runs.
        """
        closer = self._closers.pop(event.connection, None)
        if event.by_process:
            return (
                self._processes.find(event.process, event.thread, event.name_of_thread),
                "reset",
            )
        if closer is not None:
            return self._processes.find(*closer), "close"
        process = self._processes.owner(event.connection.local.port)
        return process, "listener" if process.number is not None else ""

    def _update(self, entry: Entry) -> bool:
        """Add new notices to an entry; return whether there were any, or the entry is new."""
        changed, entry.is_new = entry.is_new, False
        if self._notices is None or entry.process.elsewhere:
            return changed
        if entry.own is None and entry.cookie:
            entry.own = self._notices.take(entry.cookie)
            changed |= entry.own is not None
        if entry.peer is None and entry.peers_cookie:
            entry.peer = self._notices.take(entry.peers_cookie)
            changed |= entry.peer is not None
        return changed

    def _is_in_this_namespace(self, entry: Entry) -> bool:
        """Return whether a reset is known to be in this network namespace.

        Notices are only of this namespace, but events are of all. Another namespace may have a
        connection between the same addresses.
        """
        known = self._processes.numbers_are_ours and entry.process.number is not None
        return entry.own is not None or (known and not entry.process.elsewhere)

    def _is_decided(self, entry: Entry, judgement: Judgement) -> bool:
        if judgement.cost is Cost.NO_REPLY:
            return True
        if self._notices is None or entry.process.elsewhere:
            return True
        if entry.needs_own and entry.own is None:
            return False
        return (
            judgement.cost is not Cost.MAY
            or entry.peer is not None
            or not (entry.peer_is_here or entry.peer_was_gone)
        )
