"""Plays a situation, and records the observations of the caller, the peer and the kernel."""

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
from .programs import Program
from .scripted import Scripted
from .trace import PORTS, Event, Trace, open_trace


@dataclass
class Play:
    """The records of one play.

    Attributes:
        report: The measurements of the call.
        returned: When the call returned, or its process ended, by time.monotonic().
        status: How the caller's own process ended (waitpid(2)); 0 without one.
        printed: The output of that process.
        written: The number of bytes that the caller had written.
        unsent: The number of bytes in a makefile() object, or in a file that a task was sending.
        account: The peer's own record; None: there was no peer.
        trace: The kernel's record of the connection; None: the kernel kept no record.
        leaked: Descriptors and threads that remained at the end.
        harmed: Other connections that do not work any more.
        warned: The warnings.
    """

    situation: Situation
    report: Report = field(default_factory=Report)
    returned: float = 0.0
    status: int = 0
    printed: str = ""
    written: int = 0
    unsent: int = 0
    account: Account | None = None
    trace: list[Event] | None = None
    leaked: list[str] = field(default_factory=list[str])
    harmed: list[str] = field(default_factory=list[str])
    warned: list[str] = field(default_factory=list[str])

    @property
    def complete(self) -> bool:
        """Whether the peer has read everything that was written, and then our FIN."""
        account = self.account
        return account is None or (account.end == "FIN" and account.received >= self.written)


class Lab:
    """Plays situations in a network namespace of its own, if a wire is available.

    Args:
        held: Releases everything at its end.
        link: The wire; None: not available.
        trace: The kernel's record of the ports in `trace.PORTS`; None: not available.
    """

    def __init__(
        self, held: ExitStack, link: Link | None = None, trace: Trace | None = None
    ) -> None:
        self.link = link
        self._trace = trace
        self.callers = Callers(held)
        if link is not None:
            with link.inside(OURS):
                # TCP Fast Open for clients and servers, without a cookie, and also after a client's
                # connections have failed (ip-sysctl).
                Path("/proc/sys/net/ipv4/tcp_fastopen").write_text("519")
                Path("/proc/sys/net/ipv4/tcp_fastopen_blackhole_timeout_sec").write_text("0")
                ports = f"{PORTS.start} {PORTS.stop - 1}"
                Path("/proc/sys/net/ipv4/ip_local_port_range").write_text(ports)

    def play(self, situation: Situation, *, plain: bool = False) -> Play:
        """Play the situation once; `plain`: with the close that the library replaces."""
        inside = self.link.inside(OURS) if self.link is not None else nullcontext()
        play = Play(situation)
        with inside, warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            if situation.own_process:
                self.callers.start()
            before = _table()
            self._play(play, plain)
            gc.collect()
            play.leaked = sorted(_table() - before)
            play.warned = [str(warning.message) for warning in warned]
        return play

    def _play(self, play: Play, plain: bool) -> None:
        with ExitStack() as held:
            neighbours = [_pair(held)]
            arrangement = Arrangement(play.situation, self.link, held)
            arrangement.connect()
            neighbours.append(_pair(held))
            if play.situation.own_process:
                self._run_in_own_process(play, arrangement, plain)
            else:
                probe = Probe(arrangement)
                run(arrangement, probe, plain=plain)
                probe.inspect_the_others()
                play.report = probe.report
                play.returned = probe.report.began + probe.report.seconds
            neighbours.append(_pair(held))  # with the number of the released descriptor
            if isinstance(arrangement.peer, Peer | Program | Scripted):
                play.account = arrangement.peer.finish()
            arrangement.still_running(5.0)
            for kind, pair in zip(("before", "beside", "after"), neighbours, strict=True):
                if not _works(*pair):
                    play.harmed.append(kind)
            play.written, play.unsent = arrangement.written, arrangement.unsent
            if self._trace is not None:
                play.trace = self._trace.take(arrangement.ports)

    def _run_in_own_process(self, play: Play, arrangement: Arrangement, plain: bool) -> None:
        """Let a process of its own close the connection; the process may end before the call."""
        finished = self.callers.run(arrangement, plain=plain)
        play.printed, play.status = finished.printed, finished.status
        play.report = report = finished.report or Report()
        if play.situation.process_ends:
            report.began, report.seconds = finished.began, finished.ended - finished.began
            report.stopped = report.result is None and report.error is None
            report.closed, report.left = True, 0  # by the kernel
        play.returned = report.began + report.seconds


@contextmanager
def open_lab() -> Generator[Lab, None, None]:
    """Yield a lab, with a wire and the kernel's record where they are available (Linux, root)."""
    with ExitStack() as held:
        if why_not() is not None:
            yield Lab(held)
            return
        link: Link | None = None
        with suppress(PermissionError):  # root of a container without unshare(2)
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
    """Return the descriptors and the threads of this process."""
    found = {thread.name for thread in threading.enumerate()}
    for entry in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.add(f"{entry}: {os.readlink(f'/proc/self/fd/{entry}')}")
    return found
