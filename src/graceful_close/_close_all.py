"""Closes many connections at the same time, in the time of the slowest."""

from __future__ import annotations

import math

from ._blocking import warn_unflushed
from ._clock import monotonic
from ._connection import Connection
from ._linger import LingerPolicy
from ._loop import CloseLoop, Pending
from ._options import Options, options_of, require_callable
from ._sockets import require_stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from typing_extensions import Unpack

    from ._options import CloseOptions
    from ._result import CloseResult


def close_all(
    socks: Iterable[socket.socket],
    *,
    progress: Callable[[int, int], object] | None = None,
    **options: Unpack[CloseOptions],
) -> list[CloseResult]:
    """`graceful_close` for many sockets at the same time, with one deadline.

        for result in close_all(connections, timeout=10):
            print(result)  # after 10 seconds at most, for all together

    Sends every FIN first, then drains the peers that send. Silent peers cost the deadline once, not
    once each.

    When this returns or raises, every socket is closed and its descriptor released. Only if an
    argument is invalid, no socket is touched. On KeyboardInterrupt all sockets are closed
    immediately and the exception propagates. If closing a socket raises a non-network error, that
    socket is closed immediately, the others end normally, and then the error is raised.

    Args:
        socks: Stream sockets; see `graceful_close`. An object that is given twice is closed once,
            and both places get its result.
        progress: Called as `progress(done, total)` when some are closed; each object counts once.
            Its exceptions propagate, after all sockets are closed.
        options: Those of `graceful_close`: `timeout` applies to all sockets together, the others to
            each socket.

    Returns:
        How each connection ended, in the order of `socks`.

    Raises:
        TypeError: An item of `socks` is not a stream socket (the message has its index), or an
            argument has the wrong type.
        ValueError: An argument is out of range.

    Notes:
        The call uses one descriptor of its own, for an epoll or a kqueue. If none is left (EMFILE),
        it uses poll(), which needs no descriptor and costs more for each wake-up.
    """
    require_callable("progress", progress, optional=True)
    results = close_all_on(
        options_of("close_all", options), require_streams(socks), progress=progress
    )
    if any(result.unflushed for result in results):
        warn_unflushed(stacklevel=2)
    return results


def close_all_on(
    options: Options,
    socks: list[socket.socket],
    since: float | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> list[CloseResult]:
    """`close_all` with validated arguments; the deadlines count from `since`, or from now."""
    loop: CloseLoop | None = None
    started: list[Pending] = []
    results: dict[int, CloseResult] = {}
    failures: list[BaseException] = []

    def ended(pending: Pending, outcome: CloseResult | BaseException) -> None:
        if isinstance(outcome, BaseException):
            failures.append(outcome)  # the other connections continue
        else:
            results[pending.key] = outcome

    try:
        loop = CloseLoop(ended)
        now = monotonic() if since is None else since
        different = {id(sock): sock for sock in socks}
        for key, sock in different.items():
            pending = Pending(options, now, key)
            started.append(pending)
            loop.begin(pending, sock)
        reported = 0
        while True:
            done = len(results) + len(failures)
            if progress is not None and done > reported:
                reported = done
                progress(done, len(different))
            if not loop:
                break
            loop.turn(math.inf)
        loop.close()
    except BaseException:
        if loop is not None:
            loop.close()
        for pending in started:
            pending.abandon()
        close_at_once(socks)
        raise
    if failures:
        raise failures[0]
    return [results[id(sock)] for sock in socks]


def require_streams(socks: Iterable[socket.socket]) -> list[socket.socket]:
    """Raise if one of the sockets is not a stream socket.

    Raises:
        TypeError: One of them is not; the message has its index.
    """
    socks = list(socks)
    for index, sock in enumerate(socks):
        try:
            require_stream(sock)
        except TypeError as error:
            raise TypeError(f"socks[{index}]: {error}") from None
    return socks


def close_at_once(
    socks: list[socket.socket], policy: LingerPolicy = LingerPolicy.BACKGROUND
) -> None:
    """Close without waiting, after a KeyboardInterrupt or a bug."""
    options = Options(0)
    for sock in socks:
        Connection(options, 0.0, abort=policy is LingerPolicy.ABORT).abandon(sock)
