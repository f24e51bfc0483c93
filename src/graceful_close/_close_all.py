"""Closing many connections at once, in the time that the slowest of them takes."""

from __future__ import annotations

import math
from time import monotonic

from ._blocking import warn_unflushed
from ._linger import LingerPolicy
from ._loop import CloseLoop, Pending
from ._options import Options, options_of
from ._release import close_socket
from ._sockets import require_stream, take_descriptor, view_of

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
    """`graceful_close` for many sockets at once, under one deadline.

    Sends every FIN first, then drains whichever peer has something to say. Peers that never
    answer cost the deadline once, not once each.

    When this returns or raises, every socket is closed and its descriptor released; only if
    something was wrong with the arguments, none is touched. A KeyboardInterrupt closes all at
    once and is raised. One that fails by a bug is closed at once; the others end as they would
    have, and only then is its error raised.

    Args:
        socks: Stream sockets; see `graceful_close`. The same object twice is closed once, and
            both places get its result.
        progress: Called as `progress(done, total)` whenever some are done; each object counts
            once. What it raises is raised here, after all are closed.
        options: Those of `graceful_close`: `timeout` for all together, the others for each.

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
    """`close_all` with everything checked; `since`: from when the deadlines count, if not now."""
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
        close_at_once(socks)  # also if a signal's exception came on the way into the batch
        raise


def require_streams(socks: Iterable[socket.socket]) -> list[socket.socket]:
    """Refuse them all if one of them is not a stream socket.

    Raises:
        TypeError: One of them is not; the message says which.
    """
    socks = list(socks)
    for index, sock in enumerate(socks):
        try:
            require_stream(sock)
        except TypeError as error:
            raise TypeError(f"socks[{index}]: {error}") from None
    return socks


class Batch:
    """What `close_all` closes. A context manager that closes all whatever happens.

    Attributes:
        loop: What is to be turned until it is empty.
        total: How many different sockets there are.
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
        """How many of them are closed."""
        return len(self._results) + len(self._failures)

    def begin(self) -> Iterator[None]:
        """Begin to close one at each step."""
        now = monotonic() if self._since is None else self._since
        for key, sock in self._different.items():
            pending = Pending(self._options, now, key)
            self._started.append(pending)
            self.loop.begin(pending, sock)
            yield

    def results(self) -> list[CloseResult]:
        """How each ended, in the order in which they were given.

        Raises:
            Exception: What the first of them failed by, if one did.
        """
        if self._failures:
            raise self._failures[0]
        return [self._results[id(sock)] for sock in self._socks]

    def _ended(self, pending: Pending, outcome: CloseResult | Exception) -> None:
        if isinstance(outcome, Exception):
            self._failures.append(outcome)  # the others are not to blame
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
    """Something foreign happened, a KeyboardInterrupt or a bug: do not wait for any."""
    held: list[socket.socket] = []
    for sock in socks:
        take_descriptor(sock, held)
    for sock in held:
        close_socket(sock, policy, view_of(sock))
