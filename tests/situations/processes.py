"""Callers in processes of their own, which run out of memory, exit or are killed during the call.

The lab makes the connection and has the peer. A server, which has imported all modules, forks one
caller for each situation. The caller gets the descriptor of the connection and a channel to the lab.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import IO, TYPE_CHECKING, Any, cast

from pythons import without_coverage

if TYPE_CHECKING:
    from .build import Arrangement
    from .probe import Report

_LONGEST_MESSAGE = 1 << 17
_DEADLINE = 10.0  # longer than any caller takes
_EXITS_AFTER = 0.02
# atexit calls the last registered function first: the library's functions before the reports.
_SERVER = """
import atexit, sys
reports = []
atexit.register(lambda: [report() for report in reports])
sys.path[:] = {path}
from situations.processes import serve
serve(reports)
"""


class Callers:
    """The server of callers."""

    def __init__(self, held: ExitStack) -> None:
        self._held = held
        self._server: socket.socket | None = None
        self._output: IO[str] | None = None

    def start(self) -> None:
        """Start the server, if it does not run yet."""
        if self._server is not None:
            return
        here, there = socket.socketpair(type=socket.SOCK_SEQPACKET)
        self._held.enter_context(here)
        output = tempfile.TemporaryFile("w+")  # noqa: SIM115 (`held` closes it)
        self._output = self._held.enter_context(output)
        with there:
            process = subprocess.Popen(
                [sys.executable, "-c", _SERVER.format(path=sys.path)],
                env=without_coverage(),
                stdin=there.fileno(),
                stdout=output.fileno(),
                stderr=output.fileno(),
            )
        self._held.callback(process.wait, _DEADLINE)
        self._held.callback(here.close)  # which ends it
        here.settimeout(3 * _DEADLINE)
        self._server = here

    def run(self, arrangement: Arrangement, *, plain: bool) -> Finished:
        """Let a caller close the connection of `arrangement`, and wait for the end of the caller."""
        server = self._server
        assert server is not None
        ours = arrangement.ours
        here, there = socket.socketpair(type=socket.SOCK_SEQPACKET)
        with here:
            with there:
                job = pickle.dumps((arrangement.situation, plain))
                socket.send_fds(server, [job], [ours.fileno(), there.fileno()])
            os.close(ours.detach())
            finished = _serve_peer(arrangement, here)
        finished.status = int.from_bytes(server.recv(4), "little")
        finished.ended = monotonic()
        finished.printed = self._printed()
        return finished

    def _printed(self) -> str:
        """Return what was printed since the last call."""
        assert self._output is not None
        self._output.seek(0)
        printed = self._output.read()
        self._output.seek(0)
        self._output.truncate()
        return printed


@dataclass
class Finished:
    """A caller that has ended.

    Attributes:
        report: The measurements of its call; None: it ended before the report.
        began: When the peer was started, just before the call, by time.monotonic().
        ended: When the process ended.
        status: How the process ended (waitpid(2)).
        printed: Its standard output and error.
    """

    report: Report | None = None
    began: float = 0.0
    ended: float = 0.0
    status: int = 0
    printed: str = ""


def _serve_peer(arrangement: Arrangement, channel: socket.socket) -> Finished:
    """Execute the requests of the caller for the peer, until the caller has ended."""
    finished = Finished()
    channel.settimeout(3 * _DEADLINE)
    while message := _receive(channel):
        asked, arrangement.written, arrangement.unsent, what = pickle.loads(message)
        if asked == "report":
            finished.report = what
            continue
        if asked == "start":
            finished.began = monotonic()
        answer = getattr(arrangement.peer, asked)(**what)
        with suppress(OSError):  # the caller was killed during the request
            channel.send(pickle.dumps(answer))
    return finished


def _receive(channel: socket.socket) -> bytes:
    try:
        return channel.recv(_LONGEST_MESSAGE)
    except ConnectionResetError:
        return b""  # the caller was killed before it read an answer


# --- in the server ---------------------------------------------------------------------------------


def serve(reports: list[Callable[[], None]]) -> None:
    """Fork a caller for each job on standard input. A caller returns from this, and so exits.

    Args:
        reports: What is called at the exit.
    """
    importlib.import_module(".closers", __package__)  # and all modules that it imports

    jobs = socket.socket(fileno=os.dup(0))
    gc.collect()
    gc.freeze()
    while True:
        job, descriptors, _, _ = socket.recv_fds(jobs, _LONGEST_MESSAGE, 2)
        if not job:
            return
        caller = os.fork()
        if caller == 0:
            jobs.close()
            ours, channel = descriptors
            _call(job, ours, channel, reports)
            return
        for descriptor in descriptors:
            os.close(descriptor)
        jobs.send(_wait(caller).to_bytes(4, "little"))


def _wait(caller: int) -> int:
    """Return how the caller ended (waitpid(2)). A caller that does not end is aborted."""
    descriptor = os.pidfd_open(caller)
    if not select.select([descriptor], [], [], 2 * _DEADLINE)[0]:
        os.kill(caller, signal.SIGABRT)
    os.close(descriptor)
    return os.waitpid(caller, 0)[1]


# --- in a caller -----------------------------------------------------------------------------------


class Remote:
    """The peer, through the channel to the lab."""

    def __init__(self, channel: socket.socket, arrangement: Arrangement) -> None:
        self._channel = channel
        self._arrangement = arrangement
        self._lock = threading.Lock()

    def report(self, report: Report) -> None:
        """Report to the lab."""
        with self._lock:
            self._send("report", report)

    def _send(self, name: str, what: object) -> None:
        arrangement = self._arrangement
        message = (name, arrangement.written, arrangement.unsent, what)
        self._channel.send(pickle.dumps(message))

    def _ask(self, name: str, **arguments: object) -> Any:
        with self._lock:
            self._send(name, arguments)
            return pickle.loads(self._channel.recv(_LONGEST_MESSAGE))

    def handshake(self, *, half: bool = False) -> None:
        self._ask("handshake", half=half)

    def send_close_notify(self) -> None:
        self._ask("send_close_notify")

    def send_alert(self) -> None:
        self._ask("send_alert")

    def before(self, unread: str) -> None:
        self._ask("before", unread=unread)

    def start(self) -> None:
        self._ask("start")

    def cpu(self) -> float:
        return cast(float, self._ask("cpu"))

    def returned(self) -> None:
        self._ask("returned")


in_the_call = threading.Event()


def _call(job: bytes, ours: int, channel: int, reports: list[Callable[[], None]]) -> None:
    from .build import Arrangement
    from .closers import run
    from .probe import Probe

    faulthandler.dump_traceback_later(_DEADLINE, exit=True)
    situation, plain = pickle.loads(job)
    held = ExitStack()
    arrangement = Arrangement(situation, None, held)
    peer = Remote(socket.socket(fileno=channel), arrangement)
    arrangement.take_over(socket.socket(fileno=ours), peer)
    probe = Probe(arrangement)

    def report() -> None:
        # A Reaper that ends at the exit reports to its callback.
        probe.result = probe.result or next(iter(arrangement.results), None)
        peer.report(probe.report)

    if situation.interrupt == "exit":
        reports.append(report)
        thread = threading.Thread(
            target=run, args=(arrangement, probe), kwargs={"plain": plain}, daemon=True
        )
        thread.start()
        in_the_call.wait(_DEADLINE)
        thread.join(_EXITS_AFTER)
        return
    run(arrangement, probe, plain=plain)
    probe.inspect_the_others()
    report()
    held.close()
    os._exit(0)


@contextmanager
def no_memory_left() -> Generator[None, None, None]:
    """The process cannot map another page (RLIMIT_AS), but can use memory that it has freed."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize(), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
