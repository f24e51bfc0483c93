"""The longest stall of an event loop during a close that takes a second.

The peer reads nothing, so that our data is never acknowledged completely: the close waits for
its whole timeout of a second. A periodic task in the loop measures the stalls.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from typing import TYPE_CHECKING

from graceful_close import CloseOutcome, LingerPolicy, Reaper, set_linger

from .crowd import Crowd, crowd, why_not
from .figures import Figure, Target, all_take_turns

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

_ROUNDS = 5
_SECONDS = 1
_BEAT = 0.001

# Milliseconds more than in an idle loop. A heuristic: such a stall is not noticeable.
_LEEWAY = 5.0


def measure() -> list[Figure]:
    """Return two figures: against the kernel's wait in the loop, and an idle loop."""
    if reason := why_not():
        print(f"loop_stall: not measured: {reason}", file=sys.stderr)
        return []
    with (
        crowd() as peers,
        Reaper(timeout=_SECONDS, idle_timeout=None, until=CloseOutcome.DELIVERED) as reaper,
    ):

        async def in_the_reaper(sock: socket.socket) -> None:
            result = await asyncio.wrap_future(reaper.submit(sock))
            if result.outcome is not CloseOutcome.TIMED_OUT:
                raise RuntimeError(f"this should have taken {_SECONDS} s: {result}")

        taken = all_take_turns(
            _ROUNDS,
            {
                "reaper": lambda: _longest_stall(peers, in_the_reaper),
                "close": lambda: _longest_stall(peers, _in_the_loop),
                "idle": lambda: _longest_stall(peers, _nothing),
            },
        )
    median = {name: statistics.median(stalls) for name, stalls in taken.items()}
    worst = {name: max(stalls) for name, stalls in taken.items()}
    what = f"longest stall of an event loop, closing in {_SECONDS} s"
    return [
        Figure(
            what,
            "ms",
            median["reaper"],
            median["close"],
            f"close() with SO_LINGER {{1, {_SECONDS}}} in the loop",
            None,
            {"worst_ours": worst["reaper"], "worst_theirs": worst["close"]},
        ),
        Figure(
            what,
            "ms",
            median["reaper"],
            median["idle"],
            "a loop that closes nothing",
            Target("excess", _LEEWAY),
            {"worst_ours": worst["reaper"], "worst_theirs": worst["idle"]},
        ),
    ]


def _longest_stall(peers: Crowd, close: Callable[[socket.socket], Awaitable[None]]) -> float:
    """Return the longest time between two runs of the periodic task, in milliseconds."""
    (sock,) = peers.connect(1, silent=1)
    sock.setblocking(False)
    try:
        while True:
            sock.send(bytes(1 << 16))
    except BlockingIOError:  # both buffers are full
        pass

    async def main() -> float:
        now = asyncio.get_running_loop().time
        closing = asyncio.ensure_future(close(sock))
        longest, last = 0.0, now()
        while not closing.done():
            await asyncio.sleep(_BEAT)
            longest, last = max(longest, now() - last), now()
        await closing
        return longest * 1e3

    with sock:
        longest = asyncio.run(main())
    peers.forget()
    return longest


async def _in_the_loop(sock: socket.socket) -> None:
    set_linger(sock, LingerPolicy.TIMED, _SECONDS)
    sock.close()


async def _nothing(sock: socket.socket) -> None:
    await asyncio.sleep(_SECONDS)
