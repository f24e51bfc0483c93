"""Closes many connections at the same time, in the time of the slowest."""

from __future__ import annotations

import math
from time import monotonic

from ._blocking import warn_unflushed
from ._connection import Connection
from ._linger import LingerPolicy
from ._loop import CloseLoop, Pending
from ._options import Options, options_of
from ._sockets import require_stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType
    from typing import Self

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
    try:
        with Batch(options, socks, since) as batch:
            for _ in batch.begin():
                pass
            reported = 0
            while True:
                if progress is not None and batch.done > reported:
                    reported = batch.done
                    progress(reported, batch.total)
                if not batch.loop:
                    return batch.results()
                batch.loop.turn(math.inf)
    except BaseException:
        close_at_once(socks)  # also if a signal's exception arrived before the batch
        raise


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


class Batch:
    """The sockets of a `close_all`. A context manager that closes all of them on every path.

    Attributes:
        loop: The loop to turn until it is empty.
        total: The number of different sockets.
    """

    def __init__(
        self, options: Options, socks: list[socket.socket], since: float | None = None
    ) -> None:
        self._options = options
        self._since = since
        self._socks = socks
        self._different = {id(sock): sock for sock in socks}
        self._started: list[Pending] = []
        self._results: dict[int, CloseResult] = {}
        self._failures: list[Exception] = []
        self.loop = CloseLoop(self._ended)
        self.total = len(self._different)

    @property
    def done(self) -> int:
        """The number of closed sockets."""
        return len(self._results) + len(self._failures)

    def begin(self) -> Iterator[None]:
        """Begin to close one socket at each step."""
        now = monotonic() if self._since is None else self._since
        for key, sock in self._different.items():
            pending = Pending(self._options, now, key)
            self._started.append(pending)
            self.loop.begin(pending, sock)
            yield

    def results(self) -> list[CloseResult]:
        """How each connection ended, in the order of the sockets.

        Raises:
            Exception: The first failure, if any.
        """
        if self._failures:
            raise self._failures[0]
        return [self._results[id(sock)] for sock in self._socks]

    def _ended(self, pending: Pending, outcome: CloseResult | Exception) -> None:
        if isinstance(outcome, Exception):
            self._failures.append(outcome)  # the other connections continue
        else:
            self._results[pending.key] = outcome

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.loop.close()
        if error is not None:
            for pending in self._started:
                pending.abandon()
            close_at_once(self._socks)


def close_at_once(
    socks: list[socket.socket], policy: LingerPolicy = LingerPolicy.BACKGROUND
) -> None:
    """Close without waiting, after a KeyboardInterrupt or a bug."""
    options = Options(0)
    for sock in socks:
        Connection(options, 0.0, abort=policy is LingerPolicy.ABORT).abandon(sock)
