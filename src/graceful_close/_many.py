"""Closing many connections at once, in the time that the slowest of them takes."""

from __future__ import annotations

import math
from time import monotonic

from ._checks import require_stream
from ._linger import LingerPolicy
from ._loop import CloseLoop
from ._release import let_go
from ._result import CloseOutcome, CloseResult
from ._teardown import ALREADY_CLOSED, Terms

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from ._loop import Closing


def close_all(
    socks: Iterable[socket.socket],
    *,
    timeout: float = 5.0,
    idle_timeout: float | None = None,
    drain_limit: int | None = None,
    until: CloseOutcome = CloseOutcome.PEER_CLOSED,
    on_timeout: LingerPolicy = LingerPolicy.BACKGROUND,
    progress: Callable[[int, int], object] | None = None,
) -> list[CloseResult]:
    """`graceful_close` for many sockets at once, under one deadline.

    Sends every FIN first, then drains whichever peer has something to say. Peers that never
    answer cost the deadline once, not once each.

    When this returns or raises, every socket is closed and its descriptor released; only if
    something was wrong with the arguments, none is touched. A KeyboardInterrupt closes all at
    once and goes on.

    Args:
        socks: Stream sockets; see `graceful_close`. The same object twice is closed once, and
            both places get its result.
        timeout: Seconds for all of them together, 0 or more.
        idle_timeout: Seconds of silence after which one is given up; see `graceful_close`.
        drain_limit: Bytes from one peer after which it is given up.
        until: PEER_CLOSED or DELIVERED, for each.
        on_timeout: BACKGROUND or ABORT, for each that is given up.
        progress: Called as `progress(done, total)` whenever some are done; each object counts
            once. What it raises is raised here, after all are closed.

    Returns:
        How each connection ended, in the order of `socks`.

    Raises:
        TypeError: One of `socks` is not a stream socket (the message says which), or an
            argument is of the wrong kind.
        ValueError: An argument is out of its range.

    Notes:
        It takes one descriptor of its own, for an epoll or a kqueue. If there is none left
        (EMFILE), it uses poll(), which needs none and costs more for each wake-up.
    """
    terms = Terms(timeout, idle_timeout, drain_limit, until, on_timeout)
    socks = list(socks)
    for index, sock in enumerate(socks):
        try:
            require_stream(sock)
        except TypeError as error:
            raise TypeError(f"socks[{index}]: {error}") from None
    return close_all_on(terms, socks, progress)


def close_all_on(
    terms: Terms,
    socks: list[socket.socket],
    progress: Callable[[int, int], object] | None = None,
) -> list[CloseResult]:
    """`close_all` with everything checked."""
    results: dict[int, CloseResult] = {}

    def ended(closing: Closing, outcome: CloseResult | Exception) -> None:
        if isinstance(outcome, Exception):
            raise outcome
        results[closing.ticket] = outcome

    now = monotonic()
    try:
        loop = CloseLoop(ended)
        try:
            different = {id(sock): sock for sock in socks}
            for name, sock in different.items():
                if sock.fileno() == -1:
                    results[name] = CloseResult(ALREADY_CLOSED, 0.0, 0, None, None)
                else:
                    loop.add(sock, terms, now, name)
            told = 0
            while True:
                if progress is not None and len(results) > told:
                    told = len(results)
                    progress(told, len(different))
                if not loop:
                    break
                loop.turn(math.inf)
        finally:
            loop.close()
    except BaseException:
        # Something foreign: KeyboardInterrupt, a bug. Close all at once, without lingering.
        for sock in socks:
            let_go(sock, LingerPolicy.BACKGROUND)
        raise
    return [results[id(sock)] for sock in socks]
