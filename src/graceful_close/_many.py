"""Closing many connections at once, in the time that the slowest of them takes."""

from __future__ import annotations

import math
from time import monotonic

from ._alike import Alike
from ._checks import require_stream
from ._linger import LingerPolicy
from ._loop import CloseLoop
from ._release import let_go
from ._result import CloseOutcome, CloseResult
from ._teardown import ALREADY_CLOSED
from ._terms import Terms

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType
    from typing import Self

    from ._loop import Closing

# How many are begun together. Arbitrary: a millisecond of work.
_LOT = 64


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
    once and goes on. One that fails by nothing that a network does is closed at once; the
    others end as they would have, and only then is its error raised.

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
    return close_all_on(terms, require_streams(socks), progress)


def close_all_on(
    terms: Terms,
    socks: list[socket.socket],
    progress: Callable[[int, int], object] | None = None,
) -> list[CloseResult]:
    """`close_all` with everything checked."""
    try:
        with Crowd(terms, socks) as crowd:
            for _ in crowd.begin():
                pass
            told = 0
            while True:
                if progress is not None and crowd.done > told:
                    told = crowd.done
                    progress(told, crowd.total)
                if not crowd.loop:
                    return crowd.results()
                crowd.loop.turn(math.inf)
    except BaseException:
        _close_at_once(socks)  # also if a signal's exception came on the way into the crowd
        raise


def require_streams(socks: Iterable[socket.socket]) -> list[socket.socket]:
    """Refuse them all if one of them is no stream socket.

    Raises:
        TypeError: One of them is none; the message says which.
    """
    socks = list(socks)
    for index, sock in enumerate(socks):
        try:
            require_stream(sock)
        except TypeError as error:
            raise TypeError(f"socks[{index}]: {error}") from None
    return socks


class Crowd:
    """What `close_all` closes. A context manager that closes all whatever happens.

    Attributes:
        loop: What is to be turned until it is empty.
        total: How many different sockets there are.
    """

    def __init__(self, terms: Terms, socks: list[socket.socket]) -> None:
        self._terms = terms
        self._socks = socks
        self._different = {id(sock): sock for sock in socks}
        self._results: dict[int, CloseResult] = {}
        self._failures: list[Exception] = []
        self.loop = CloseLoop(self._ended)
        self.total = len(self._different)

    @property
    def done(self) -> int:
        """How many of them are closed."""
        return len(self._results) + len(self._failures)

    def begin(self) -> Iterator[None]:
        """Begin to close one at each step, or a lot of those that are alike."""
        now = monotonic()
        alike = Alike(self._terms)
        lot: list[tuple[socket.socket, int]] = []
        for name, sock in self._different.items():
            if sock.fileno() == -1:
                self._results[name] = CloseResult(ALREADY_CLOSED, 0.0, 0, None, None)
            elif alike.takes(sock):
                lot.append((sock, name))
                if len(lot) == _LOT:
                    self.loop.add_alike(lot, alike, now)
                    lot.clear()
            else:
                self.loop.add(sock, self._terms, now, name)
            yield
        if lot:
            self.loop.add_alike(lot, alike, now)

    def results(self) -> list[CloseResult]:
        """How each ended, in the order in which they were given.

        Raises:
            Exception: What the first of them failed by, if one did.
        """
        if self._failures:
            raise self._failures[0]
        return [self._results[id(sock)] for sock in self._socks]

    def _ended(self, closing: Closing, outcome: CloseResult | Exception) -> None:
        if isinstance(outcome, Exception):
            self._failures.append(outcome)  # the others are not to blame
        else:
            self._results[closing.ticket] = outcome

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
            _close_at_once(self._socks)


def _close_at_once(socks: list[socket.socket]) -> None:
    """Something foreign happened, a KeyboardInterrupt or a bug: do not linger over any."""
    for sock in socks:
        let_go(sock, LingerPolicy.BACKGROUND)
