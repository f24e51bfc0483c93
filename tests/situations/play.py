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

from wire.link import Link, why_not
from wire.packets import OURS

from .axes import Situation
from .build import Arrangement
from .closers import run
from .peers import Account, Peer
from .probe import Probe, Report
from .processes import Callers
from .scripted import Scripted
from .trace import PORTS, Event, Trace, open_trace


@dataclass
class Play:
    """What was seen.

    Attributes:
        report: Of the call.
        returned: When the call returned, or its process ended, by time.monotonic().
        status: How its process ended, if that was another (waitpid(2)).
        printed: What that process printed.
        written: Bytes that the caller had written.
        kept: Bytes that a makefile() object or a task has never sent.
        account: The peer's own record; None: there was none.
        trace: The kernel's record of the connection; None: there was none.
        leaked: Descriptors and threads that were there when everything was over.
        hurt: Connections of others that were harmed.
        warned: What was warned of.
    """

    situation: Situation
    report: Report = field(default_factory=Report)
    returned: float = 0.0
    status: int = 0
    printed: str = ""
    written: int = 0
    kept: int = 0
    account: Account | None = None
    trace: list[Event] | None = None
    leaked: list[str] = field(default_factory=list[str])
    hurt: list[str] = field(default_factory=list[str])
    warned: list[str] = field(default_factory=list[str])

    @property
    def complete(self) -> bool:
        """The peer has read all that was written, and then our FIN."""
        account = self.account
        return account is None or (account.end == "FIN" and account.received >= self.written)


class Lab:
    """Where situations are played: a network namespace of our own, if there is a wire.

    Args:
        held: Gives everything back.
        link: The wire; None: there is none.
        trace: The kernel's record, of the ports in `trace.PORTS`; None: there is none.
    """

    def __init__(
        self, held: ExitStack, link: Link | None = None, trace: Trace | None = None
    ) -> None:
        self.link = link
        self._trace = trace
        self.callers = Callers(held)
        if link is not None:
            with link.inside(OURS):
                # Both sides may, and no cookie is asked for (ip-sysctl).
                Path("/proc/sys/net/ipv4/tcp_fastopen").write_text("515")
                ports = f"{PORTS.start} {PORTS.stop - 1}"
                Path("/proc/sys/net/ipv4/ip_local_port_range").write_text(ports)

    def play(self, situation: Situation, *, plain: bool = False) -> Play:
        """Play it once; `plain`: with the close that ours replaces."""
        inside = self.link.inside(OURS) if self.link is not None else nullcontext()
        play = Play(situation)
        with inside, warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            if situation.apart:
                self.callers.start()
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
            if play.situation.apart:
                self._run_apart(play, arrangement, plain)
            else:
                probe = Probe(arrangement)
                run(arrangement, probe, plain=plain)
                probe.look_at_the_others()
                play.report = probe.report
                play.returned = probe.report.began + probe.report.seconds
            neighbours.append(_pair(held))  # which have the number that was given back
            if isinstance(arrangement.peer, Peer | Scripted):
                play.account = arrangement.peer.finish()
            arrangement.awaits(5.0)
            for kind, pair in zip(("before", "beside", "after"), neighbours, strict=True):
                if not _works(*pair):
                    play.hurt.append(kind)
            play.written, play.kept = arrangement.written, arrangement.kept
            if self._trace is not None:
                play.trace = self._trace.take(arrangement.ports)

    def _run_apart(self, play: Play, arrangement: Arrangement, plain: bool) -> None:
        """Have another process close it, which may end before it returns."""
        finished = self.callers.run(arrangement, plain=plain)
        play.printed, play.status = finished.printed, finished.status
        play.report = report = finished.report or Report()
        if play.situation.ends:
            report.began, report.seconds = finished.began, finished.ended - finished.began
            report.stopped = report.result is None and report.error is None
            report.closed, report.left = True, 0  # by the kernel
        play.returned = report.began + report.seconds


@contextmanager
def laid() -> Generator[Lab, None, None]:
    """A lab with a wire and the kernel's record, if there can be (Linux, root)."""
    with ExitStack() as held:
        if why_not() is not None:
            yield Lab(held)
            return
        link: Link | None = None
        with suppress(PermissionError):  # root of a container, which may not unshare(2)
            link = Link()
            held.callback(link.close)
        yield Lab(held, link, open_trace(held) if link is not None else None)


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
