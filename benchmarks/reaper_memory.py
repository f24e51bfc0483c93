"""The memory of a pending close in a Reaper, whose peer does not answer."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tracemalloc
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from graceful_close import CloseOutcome, Reaper

from .crowd import Crowd, affordable, crowd, why_not
from .figures import Figure, Target

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from concurrent.futures import Future

    from graceful_close import CloseResult

_COUNT = 5_000


def measure() -> list[Figure]:
    """Return five figures, in bytes: the total, its parts, and the total by use of futures."""
    if reason := why_not():
        print(f"reaper_memory: not measured: {reason}", file=sys.stderr)
        return []
    parts = _run("kept")
    dropped, asked = _run("dropped"), _run("asked")
    details = {"connections": affordable(_COUNT), **_run("resident")}
    what = "waiting in the Reaper, for each"
    return [
        Figure(
            what, "bytes", sum(parts.values()), target=Target("ours", 1536), details=details
        ),
        *(Figure(f"{what}: {part}", "bytes", size) for part, size in parts.items()),
        Figure(f"{what}, no Future kept", "bytes", sum(dropped.values())),
        Figure(f"{what}, each Future used", "bytes", sum(asked.values())),
    ]


def _run(what: str) -> dict[str, float]:
    """Measure in a new interpreter, whose memory has no free space of earlier objects."""
    output = subprocess.run(
        [sys.executable, "-m", "benchmarks.reaper_memory", what],
        check=True,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
        timeout=120,
    ).stdout
    answer: dict[str, float] = json.loads(output)
    return answer


def _traced(*, keep: bool, ask: bool = False) -> dict[str, float]:
    """Return the bytes of Python's allocator, by purpose.

    The sockets are those of accept(). The rest belongs to the Reaper, with its futures.
    """
    with crowd() as peers, _reaper() as reaper:
        count = affordable(_COUNT)
        _see_one_closed(peers, reaper)  # objects that are made once are not counted
        tracemalloc.start()
        empty = _held()
        socks = peers.connect(count, silent=count)
        for_sockets = _held() - empty
        futures: list[Future[CloseResult]] = []
        _submit(socks, reaper, futures if keep else None)
        if ask and any(future.done() for future in futures):
            raise RuntimeError("no peer should have answered")
        _see_one_closed(peers, reaper)  # it was submitted last, so the Reaper has all others
        for_all = _held() - empty
        tracemalloc.stop()
        _finish(peers, reaper, count)
    return {
        "socket object": for_sockets / count,
        "the rest": (for_all - for_sockets) / count,
    }


def _resident() -> dict[str, float]:
    """Return the growth of the process in bytes, measured in pages (proc_pid_statm(5))."""
    with crowd() as peers, _reaper() as reaper:
        count = affordable(_COUNT)
        _see_one_closed(peers, reaper)
        empty = _pages()
        futures: list[Future[CloseResult]] = []
        _submit(peers.connect(count, silent=count), reaper, futures)
        _see_one_closed(peers, reaper)
        for_all = _pages() - empty
        _finish(peers, reaper, count)
    return {"resident": for_all * os.sysconf("SC_PAGE_SIZE") / count}


_MEASUREMENTS: dict[str, Callable[[], dict[str, float]]] = {
    "kept": partial(_traced, keep=True),
    "dropped": partial(_traced, keep=False),
    "asked": partial(_traced, keep=True, ask=True),
    "resident": _resident,
}


def _reaper() -> Reaper:
    return Reaper(timeout=300, idle_timeout=None, max_sockets=_COUNT + 1)


def _submit(
    socks: list[socket.socket], reaper: Reaper, futures: list[Future[CloseResult]] | None
) -> None:
    """Submit all connections, and keep only the futures."""
    while socks:
        future = reaper.submit(socks.pop())
        if futures is not None:
            futures.append(future)


def _see_one_closed(peers: Crowd, reaper: Reaper) -> None:
    """Submit one connection whose peer answers, and wait for its end."""
    reaper.submit(peers.connect(1)[0]).result(timeout=60).check()


def _finish(peers: Crowd, reaper: Reaper, count: int) -> None:
    """Let the silent peers close, and check that all closes were pending."""
    peers.forget()
    reaper.close()
    closed = reaper.stats()[CloseOutcome.PEER_CLOSED]
    if closed != count + 2:
        raise RuntimeError(f"{count} peers should have been waited for, and 2 more: {closed}")


def _held() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def _pages() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1])


if __name__ == "__main__":
    print(json.dumps(_MEASUREMENTS[sys.argv[1]]()))
