"""Events and obituaries brought together: resets, whose each was, and what it cost."""

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
    from .obituaries import Obituaries, Obituary
    from .processes import Process, Processes

# Seconds that a reset waits for the end of its peer's socket, if that is on this machine, and for
# the notice of its own. Arbitrary: a peer that has not closed by then proves nothing.
_PATIENCE = 5.0
_OWN_PATIENCE = 1.0

# How many closes are remembered, to tell whose it was when data comes later. Arbitrary: at
# 10,000 closes a second, the last 13 seconds.
_CLOSES = 1 << 17
_ENDS = 1 << 14

_RESET, _STATE, _END = (event.partition("/")[2] for event in (RESET, STATE, END))


@dataclass
class Entry:
    """A reset.

    Attributes:
        when: By time.time(), when it was read of.
        connection: From the side that sent it.
        reset: What the kernel said.
        process: Whose it was.
        known_by: How that is known: "reset" (it sent it), "close" (it had sent the FIN),
            "listener" (it alone listens on the port), "" (it is not).
        accepted: Whether its port is one that somebody listens on.
        waits_until: When it is judged by what is known then, by time.monotonic().
        cookie: Of its socket; 0: not known.
        peers_cookie: Of the other end, where that is on this machine.
        peer_was_gone: Whether the other end had closed, and ended, before the reset.
        own: The notice of its socket; None: it has not come.
        peer: That of the other end.
        is_new: Whether it has never been judged.
        judgement: What it cost; None: not decided yet.
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
    own: Obituary | None = None
    peer: Obituary | None = None
    is_new: bool = True
    judgement: Judgement | None = None

    @property
    def peer_is_here(self) -> bool:
        """Whether both ends are on one machine."""
        local, peer = self.connection
        return local.host == peer.host or local.host.startswith("127.")

    @property
    def needs_own(self) -> bool:
        """Whether the notice of its own socket would tell anything."""
        return self.reset.tells_what_was_sent and not self.reset.fin_was_acknowledged


class _End(NamedTuple):
    """Of a socket.

    Attributes:
        cookie: Its own.
        peers_cookie: That of the other end, if it had ended before; 0: it had not.
        alone: Whether it was the first end of its connection.
    """

    cookie: int
    peers_cookie: int
    alone: bool


class Ledger:
    """What has happened. Feed it, and settle it now and then."""

    def __init__(self, processes: Processes, obituaries: Obituaries | None) -> None:
        self._processes = processes
        self._obituaries = obituaries
        self._open: list[Entry] = []
        self._closers: OrderedDict[Connection, tuple[int, int, str]] = OrderedDict()
        self._ended: OrderedDict[Connection, _End] = OrderedDict()
        self._before_their_end: dict[Connection, Entry] = {}
        self._before_their_peers_end: dict[Connection, Entry] = {}

    def take_in(self, event: Event) -> None:
        """One event, in the order in which they happened."""
        if event.name == _STATE:
            self._state(event)
        elif event.name == _END:
            self._end(event)
        elif event.name == _RESET:
            self._reset(event)

    def settle(self, *, at_once: bool = False) -> Generator[Entry]:
        """Those of which no more will be learnt, judged. `at_once`: of all others too."""
        now = time.monotonic()
        open_, self._open = self._open, []
        for entry in open_:
            if not (self._learns(entry) or at_once or now >= entry.waits_until):
                self._open.append(entry)
                continue
            peer = entry.peer if self._is_of_here(entry) else None
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
        """Those that wait for more to be learnt."""
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
        # The same ports may soon be another connection's: what is known of the peer goes with us.
        peer = self._ended.pop(connection.reversed(), None)
        self._ended[connection] = _End(cookie, peer.cookie if peer else 0, peer is None)
        if len(self._ended) > _ENDS:
            self._ended.popitem(last=False)

    def _reset(self, event: Event) -> None:
        connection = event.connection
        process, known_by = self._whose(event)
        now = time.monotonic()
        entry = Entry(
            time.time(),
            connection,
            Reset(event.field("reason"), event.field("state"), event.by_process),
            process,
            known_by,
            self._processes.listens(connection.local.port),
            now + _OWN_PATIENCE,
        )
        own = self._ended.get(connection)
        peer = self._ended.get(connection.reversed())
        if entry.needs_own:
            # Where data comes after a close, the socket ends and then the reset goes.
            if entry.reset.kind is Kind.DATA:
                entry.cookie = own.cookie if own else 0
            else:
                self._before_their_end[connection] = entry
        if entry.reset.kind is Kind.DATA and own and own.peers_cookie:
            entry.peers_cookie, entry.peer_was_gone = own.peers_cookie, True
        elif peer is not None and peer.alone:
            entry.peers_cookie, entry.peer_was_gone = peer.cookie, True
        elif entry.peer_is_here:
            entry.waits_until = now + _PATIENCE
            self._before_their_peers_end[connection.reversed()] = entry
        self._open.append(entry)

    def _whose(self, event: Event) -> tuple[Process, str]:
        """Who sent a reset.

        One that a packet brought about is sent while anybody runs: on loopback, while the one
        who sent the packet does.
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

    def _learns(self, entry: Entry) -> bool:
        """Whether there is news of it since the last time."""
        news, entry.is_new = entry.is_new, False
        if self._obituaries is None or entry.process.elsewhere:
            return news
        if entry.own is None and entry.cookie:
            entry.own = self._obituaries.take(entry.cookie)
            news |= entry.own is not None
        if entry.peer is None and entry.peers_cookie:
            entry.peer = self._obituaries.take(entry.peers_cookie)
            news |= entry.peer is not None
        return news

    def _is_of_here(self, entry: Entry) -> bool:
        """Whether it is known to be of this network namespace.

        Notices come from this one alone, but events from all, and in another one there may be a
        connection between the same addresses.
        """
        known = self._processes.numbers_are_ours and entry.process.number is not None
        return entry.own is not None or (known and not entry.process.elsewhere)

    def _is_decided(self, entry: Entry, judgement: Judgement) -> bool:
        if judgement.cost is Cost.NO_REPLY:
            return True
        if self._obituaries is None or entry.process.elsewhere:
            return True
        if entry.needs_own and entry.own is None:
            return False
        return (
            judgement.cost is not Cost.MAY
            or entry.peer is not None
            or not (entry.peer_is_here or entry.peer_was_gone)
        )
