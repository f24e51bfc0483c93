"""Servers and clients in separate processes, which are connected only by the network."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from .clients import Answer, Order

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from contextlib import AbstractContextManager

    from .places import Place

_ROOT = Path(__file__).parents[2]


class Client(NamedTuple):
    """A client process that waits for orders."""

    orders: IO[str]
    answers: IO[str]

    def ask(self, order: Order) -> Answer:
        """Make one try.

        Raises:
            EOFError: The process has ended.
        """
        print(json.dumps(order), file=self.orders, flush=True)
        answer = self.answers.readline()
        if not answer:
            raise EOFError("the client's process has ended")
        return Answer(*json.loads(answer))


@contextmanager
def client(place: Place, name: str) -> Generator[Client]:
    with _process(place.asking, "clients", name) as (process, _):
        assert process.stdin is not None
        assert process.stdout is not None
        yield Client(process.stdin, process.stdout)


class Server(NamedTuple):
    """A running server.

    Attributes:
        port: The port that it listens on.
        session: The session of its processes (setsid(2)), which has no others.
    """

    port: int
    session: int


@contextmanager
def server(place: Place, name: str, side: str) -> Generator[Server]:
    with _process(place.serving, "table", name, side, place.host) as (process, port):
        yield Server(int(port), process.pid)


@contextmanager
def _process(
    inside: Callable[[], AbstractContextManager[None]], kind: str, *arguments: str
) -> Generator[tuple[subprocess.Popen[str], str]]:
    """Yield a process and its first line of output; kill it and its children after the block.

    Raises:
        RuntimeError: It did not start; the message is its output.
    """
    with tempfile.TemporaryFile("w+") as complaints:
        with inside():
            process = subprocess.Popen(
                [sys.executable, "-m", f"benchmarks.servers.{kind}", *arguments],
                cwd=_ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
                start_new_session=True,  # gunicorn has children
            )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                complaints.seek(0)
                raise RuntimeError(f"{' '.join(arguments)}: {complaints.read()}")
            yield process, line
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
