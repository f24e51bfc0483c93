"""Servers and clients in processes of their own, so that nothing but the network joins them."""

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
    """A client that waits for orders."""

    orders: IO[str]
    answers: IO[str]

    def ask(self, order: Order) -> Answer:
        """One try.

        Raises:
            EOFError: Its process has died.
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
    """A server that serves.

    Attributes:
        port: Where it listens.
        session: Of its processes (setsid(2)), and nobody else's.
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
    """A process, and its first line. It is killed, with its children, when the block is left.

    Raises:
        RuntimeError: It did not start; the message is what it said.
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
