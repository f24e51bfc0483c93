"""Plays a situation, and keeps what everybody saw of it."""

from __future__ import annotations

import gc
import os
import socket
import threading
import warnings
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

from graceful_close import CloseResult
from wire.link import Link, why_not
from wire.packets import OURS

from .axes import Situation
from .build import Arrangement
from .closers import run
from .peers import Account


@dataclass
class Play:
    """What was seen.

    Attributes:
        result: What the call returned; None: it raised, or was not ours.
        error: What it raised.
        stopped: It was interrupted, and that came through.
        seconds, cpu: How long it took, and how much of the processor.
        closed: The object has no descriptor any more.
        left: Descriptors of the connection that were left to this process.
        leaked: Descriptors and threads that were there when everything was over.
        written: Bytes that the caller had written.
        kept: Bytes that a makefile() object has never sent.
        account: The peer's own record; None: there was none.
        asleep: Other holders that were not told of the end.
        hurt: Connections of others that were harmed.
        warned: What was warned of.
    """

    situation: Situation
    result: CloseResult | None = None
    error: BaseException | None = None
    stopped: bool = False
    seconds: float = 0.0
    cpu: float = 0.0
    closed: bool = False
    left: int = 0
    written: int = 0
    kept: int = 0
    account: Account | None = None
    leaked: list[str] = field(default_factory=list[str])
    asleep: list[str] = field(default_factory=list[str])
    hurt: list[str] = field(default_factory=list[str])
    warned: list[str] = field(default_factory=list[str])

    @property
    def complete(self) -> bool:
        """The peer has read all that was written, and then our FIN."""
        account = self.account
        return account is None or (account.end == "FIN" and account.received >= self.written)


class Lab:
    """Where situations are played: a network namespace of our own, if there is a wire."""

    def __init__(self, link: Link | None) -> None:
        self.link = link
        if link is not None:
            with link.inside(OURS):
                # Both sides may, and no cookie is asked for (ip-sysctl).
                Path("/proc/sys/net/ipv4/tcp_fastopen").write_text("515")

    def play(self, situation: Situation, *, plain: bool = False) -> Play:
        """Play it once; `plain`: with the close that ours replaces."""
        inside = self.link.inside(OURS) if self.link is not None else nullcontext()
        play = Play(situation)
        with inside, warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            before = _table()
            self._play(play, plain)
            gc.collect(0)
            play.leaked = sorted(_table() - before)
            play.warned = [str(warning.message) for warning in warned]
        return play

    def _play(self, play: Play, plain: bool) -> None:
        with ExitStack() as held:
            neighbours = [_pair(held)]
            arrangement = Arrangement(play.situation, self.link, held)
            arrangement.connect()
            neighbours.append(_pair(held))
            probe = run(arrangement, plain=plain)
            neighbours.append(_pair(held))  # which have the number that was given back
            asleep = arrangement.awaits(1.0)
            play.asleep = asleep if play.situation.holder == "reader" else []
            if play.situation.holder == "task" and not arrangement.told:
                play.asleep.append("task")
            if arrangement.peer is not None:
                play.account = arrangement.peer.finish()
            arrangement.awaits(5.0)
            if play.situation.holder == "closer":  # which may have been in the middle of it
                probe.look()
            play.left = probe.left - arrangement.holders
            for kind, pair in zip(("before", "beside", "after"), neighbours, strict=True):
                if not _works(*pair):
                    play.hurt.append(kind)
            timed = play.situation.limit != "no time"  # in which nothing can be seen
            other = arrangement.other if probe.result is not None and timed else None
            if other is not None and not other.is_well():
                play.hurt.append(f"the other of close_all(): {other.result}")
            play.result, play.error, play.stopped = probe.result, probe.error, probe.stopped
            play.seconds, play.cpu, play.closed = probe.seconds, probe.cpu, probe.closed
            play.written, play.kept = arrangement.written, arrangement.kept


@contextmanager
def laid() -> Generator[Lab, None, None]:
    """A lab with a wire, if there can be one (Linux, root)."""
    link: Link | None = None
    if why_not() is None:
        with suppress(PermissionError):  # root of a container, which may not unshare(2)
            link = Link()
    try:
        yield Lab(link)
    finally:
        if link is not None:
            link.close()


def _pair(held: ExitStack) -> tuple[socket.socket, socket.socket]:
    one, other = socket.socketpair()
    held.enter_context(one)
    held.enter_context(other)
    return one, other


def _works(one: socket.socket, other: socket.socket) -> bool:
    with suppress(OSError):
        one.settimeout(1)
        other.settimeout(1)
        one.sendall(b"?")
        other.sendall(b"!")
        return (one.recv(2), other.recv(2)) == (b"!", b"?")
    return False


def _table() -> set[str]:
    """What this process has: descriptors and threads."""
    found = {thread.name for thread in threading.enumerate()}
    for entry in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.add(f"{entry}: {os.readlink(f'/proc/self/fd/{entry}')}")
    return found
