"""The CPU time of discarding 1 GB, compared with loops of recv(65536) and recv(4096)."""

from __future__ import annotations

import socket
import statistics
import time
from functools import partial
from typing import TYPE_CHECKING

from graceful_close import graceful_close

from .figures import Figure, Target, all_take_turns
from .peers import idiom, peer, times_asleep

if TYPE_CHECKING:
    from collections.abc import Callable

_BYTES = 10**9
_ROUNDS = 11
_TIMEOUT = 60.0

_LARGE = "recv(65536) loop"
_SMALL = "recv(4096) loop"  # NGX_LINGERING_BUFFER_SIZE in ngx_http_request.h


def measure() -> list[Figure]:
    """Return four figures: CPU, the number of sleeps, and gigabytes for a second of CPU."""
    closers: dict[str, Callable[[socket.socket], int]] = {
        "ours": _ours,
        _LARGE: partial(_theirs, 65536),
        _SMALL: partial(_theirs, 4096),
    }
    sleeps: dict[str, list[int]] = {name: [] for name in closers}
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        peer(_peer_of(listener)) as orders,
    ):

        def drain(name: str, close: Callable[[socket.socket], int]) -> float:
            """Return the seconds of CPU of this process."""
            orders.sendall(b".")
            sock = listener.accept()[0]
            slept, started = times_asleep(), time.process_time()
            count = close(sock)
            spent = time.process_time() - started
            sleeps[name].append(times_asleep() - slept)
            if count != _BYTES:
                raise RuntimeError(f"{count} of {_BYTES} bytes were drained")
            return spent

        taken = all_take_turns(
            _ROUNDS, {name: partial(drain, name, close) for name, close in closers.items()}
        )
    cpu = {name: statistics.median(seconds) for name, seconds in taken.items()}
    return [
        Figure(
            "draining 1 GB",
            "s CPU",
            cpu["ours"],
            cpu[_LARGE],
            _LARGE,
            Target("ratio", 0.5),
            {"least_ours": min(taken["ours"]), "least_theirs": min(taken[_LARGE])},
        ),
        Figure(
            "draining 1 GB, times asleep",
            "",
            statistics.median(sleeps["ours"]),
            statistics.median(sleeps[_LARGE]),
            _LARGE,
        ),
        *(
            Figure(
                "drained in a second of CPU (more is better)",
                "GB",
                _BYTES / cpu["ours"] / 1e9,
                _BYTES / cpu[name] / 1e9,
                name,
            )
            for name in (_LARGE, _SMALL)
        ),
    ]


def _ours(sock: socket.socket) -> int:
    return graceful_close(sock, timeout=_TIMEOUT).check().drained


def _theirs(size: int, sock: socket.socket) -> int:
    return idiom(sock, _TIMEOUT, size)


def _peer_of(listener: socket.socket) -> Callable[[socket.socket], None]:
    address = listener.getsockname()

    def work(orders: socket.socket) -> None:
        listener.close()
        block = memoryview(bytes(1 << 20))
        while orders.recv(1):
            with socket.create_connection(address) as sock:
                if sock.recv(1):
                    raise RuntimeError("data arrived before the FIN")
                left = _BYTES
                while left:
                    part = block[:left]
                    sock.sendall(part)
                    left -= len(part)

    return work
