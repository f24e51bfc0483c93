"""The CPU time of throwing 1 GB away, against a recv(65536) loop."""

from __future__ import annotations

import socket
import statistics
import time
from typing import TYPE_CHECKING

from graceful_close import graceful_close

from .figures import Figure, Target, take_turns
from .peers import idiom, peer, times_asleep

if TYPE_CHECKING:
    from collections.abc import Callable

_BYTES = 10**9
_ROUNDS = 15
_TIMEOUT = 60.0


def measure() -> list[Figure]:
    """Two figures: CPU, and how often the process slept."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        peer(_peer_of(listener)) as orders,
    ):
        sleeps: dict[Callable[[socket.socket], int], list[float]] = {_ours: [], _theirs: []}

        def drain(close: Callable[[socket.socket], int]) -> float:
            """Seconds of this process's CPU."""
            orders.sendall(b".")
            sock = listener.accept()[0]
            slept, started = times_asleep(), time.process_time()
            count = close(sock)
            spent = time.process_time() - started
            sleeps[close].append(times_asleep() - slept)
            if count != _BYTES:
                raise RuntimeError(f"{count} of {_BYTES} bytes were drained")
            return spent

        ours, theirs = take_turns(_ROUNDS, lambda: drain(_ours), lambda: drain(_theirs))
    return [
        Figure(
            "draining 1 GB",
            "s CPU",
            statistics.median(ours),
            statistics.median(theirs),
            "recv(65536) loop",
            Target("ratio", 0.5),
            {"least_ours": min(ours), "least_theirs": min(theirs)},
        ),
        Figure(
            "draining 1 GB, times asleep",
            "",
            statistics.median(sleeps[_ours]),
            statistics.median(sleeps[_theirs]),
            "recv(65536) loop",
        ),
    ]


def _ours(sock: socket.socket) -> int:
    return graceful_close(sock, timeout=_TIMEOUT).check().drained


def _theirs(sock: socket.socket) -> int:
    return idiom(sock, _TIMEOUT)


def _peer_of(listener: socket.socket) -> Callable[[socket.socket], None]:
    address = listener.getsockname()

    def work(orders: socket.socket) -> None:
        listener.close()
        block = memoryview(bytes(1 << 20))
        while orders.recv(1):
            with socket.create_connection(address) as sock:
                if sock.recv(1):
                    raise RuntimeError("something came before the FIN")
                left = _BYTES
                while left:
                    part = block[:left]
                    sock.sendall(part)
                    left -= len(part)

    return work
