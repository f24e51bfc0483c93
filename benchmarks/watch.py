"""The CPU cost of `graceful-close watch` at 10,000 closes per second."""

from __future__ import annotations

import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .figures import Figure, Target, take_turns
from .peers import peer, receive_exactly

if TYPE_CHECKING:
    from collections.abc import Generator

_ROUNDS = 9
_CLOSES = 4000
_BATCH = 100  # closes, and the seconds for them: 10,000 per second
_SECONDS = 0.01
_UNREAD = bytes(100)
_DIGESTION = 0.5  # seconds after the last close for which the watch's CPU is still counted

_CONNECT, _CONNECT_AND_SEND, _CLOSE = b"c", b"s", b"x"


class _Watch(NamedTuple):
    program: subprocess.Popen[bytes]
    output: Path

    def cpu(self) -> float:
        """The seconds of CPU until now."""
        stat = Path(f"/proc/{self.program.pid}/schedstat").read_text()
        return int(stat.split()[0]) / 1e9

    def end(self) -> dict[str, Any]:
        """End the watch, and return its summary."""
        self.program.terminate()
        self.program.wait(60)
        summary: dict[str, Any] = json.loads(self.output.read_text().splitlines()[-1])
        return summary


def measure() -> list[Figure]:
    """Return two figures for each kind of close; none if resets cannot be traced."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with _watching() as watch:
        summary = watch.end()
    if not summary["traced"]:
        print(f"watch: not measured: {summary['why_not_traced']}", file=sys.stderr)
        return []
    return [
        figure
        for name, order in (("over unread input", _CONNECT_AND_SEND), ("clean", _CONNECT))
        for figure in _figures(name, order)
    ]


def _figures(name: str, order: bytes) -> list[Figure]:
    own: list[float] = []
    lost: list[int] = []
    seen: list[int] = []

    def watched() -> float:
        with _watching() as watch:
            before = watch.cpu()
            taken = _closes(order)
            time.sleep(_DIGESTION)
            own.append((watch.cpu() - before) / _CLOSES * 1e6)
            summary = watch.end()
            lost.append(summary["events_lost"])
            seen.append(sum(row["resets"] for row in summary["rows"]))
        return taken

    ours, theirs = take_turns(_ROUNDS, watched, partial(_closes, order))
    return [
        Figure(
            f"close, {name}, while watched",
            "us CPU",
            statistics.median(ours),
            statistics.median(theirs),
            "the same, not watched",
            Target("ratio", 1.5),
            {"ours": ours, "theirs": theirs, "events_lost": lost, "resets_seen": seen},
        ),
        Figure(
            f"watch itself, for each close, {name}",
            "us CPU",
            statistics.median(own),
            details={"all": own, "closes_a_second": _BATCH / _SECONDS},
        ),
    ]


def _closes(order: bytes) -> float:
    """Return the CPU of one close in µs, of this process, which accepted the connections."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=_BATCH) as listener,
        peer(partial(_connect, listener)) as orders,
    ):
        socks: list[socket.socket] = []
        while len(socks) < _CLOSES:
            orders.sendall(order)
            socks += [listener.accept()[0] for _ in range(_BATCH)]
            receive_exactly(orders, 1)
        spent = 0.0
        while socks:
            due = time.monotonic() + _SECONDS
            batch, socks = socks[:_BATCH], socks[_BATCH:]
            began = time.thread_time()
            for sock in batch:
                sock.close()
            spent += time.thread_time() - began
            time.sleep(max(due - time.monotonic(), 0))
        orders.sendall(_CLOSE)
        receive_exactly(orders, 1)
    return spent / _CLOSES * 1e6


def _connect(listener: socket.socket, orders: socket.socket) -> None:
    address = listener.getsockname()
    listener.close()
    socks: list[socket.socket] = []
    while order := orders.recv(1):
        if order == _CLOSE:
            for sock in socks:
                sock.close()
        else:
            for _ in range(_BATCH):
                sock = socket.create_connection(address)
                if order == _CONNECT_AND_SEND:
                    sock.sendall(_UNREAD)
                socks.append(sock)
        orders.sendall(b".")


@contextmanager
def _watching() -> Generator[_Watch]:
    """Start a watch, which writes to a file, so that this process need not read a pipe."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "output")
        with (
            output.open("wb") as file,
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "graceful_close", "watch"),
                    *("--json", "--pid", str(os.getpid())),
                ],
                stdout=file,
            ) as program,
        ):
            try:
                while not output.stat().st_size and program.poll() is None:
                    time.sleep(0.01)
                yield _Watch(program, output)
            finally:
                program.terminate()
