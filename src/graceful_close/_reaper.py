"""A place to leave connections that are to be closed, so that a worker can go on."""

from __future__ import annotations

from . import _platform
from ._checks import require_count, require_seconds, require_stream
from ._crew import Crew, Orders
from ._handed import Handed
from ._linger import LingerPolicy
from ._release import let_go
from ._result import CloseOutcome, CloseResult
from ._sync import graceful_close
from ._teardown import ALREADY_CLOSED
from ._terms import Terms, require_parting

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from concurrent.futures import Future
    from types import TracebackType
    from typing import Self, TypedDict

    from ._future import CloseFuture

    class ReaperOptions(TypedDict, total=False):
        """What a `Reaper` can be asked for."""

        timeout: float
        idle_timeout: float | None
        drain_limit: int | None
        until: CloseOutcome
        on_timeout: LingerPolicy
        max_sockets: int | None
        on_overflow: LingerPolicy


# Where a process may have as many descriptors as it likes (Windows). Arbitrary: what a server
# that is asked to hold ten thousand connections may leave behind.
_MAX_SOCKETS = 10_000


class Reaper:
    """Closes connections gracefully in a thread of its own, so that a worker can go on.

    A worker that waits in `graceful_close` for a slow client serves nobody meanwhile. It can
    leave the socket here instead:

        reaper = Reaper()
        ...
        sock.sendall(reply)
        reaper.submit(sock)

    One thread serves all connections, from the first `submit` until `close`. While a server is
    busy it rests, some milliseconds at a time, and whoever submits closes those before it that are
    through: some tenths of a millisecond of work at most, and no callbacks. Any thread may submit,
    and so may a signal handler. A Reaper that is forgotten finishes by itself. After a
    fork the child's Reaper is empty, and starts a thread of its own; the connections in flight
    and their futures remain the parent's, and the child holds no copies of them.

    The thread is a daemon, because the interpreter waits for other threads before anything
    could tell this one to end. At exit the Reaper is closed as `close()` does it: connections in
    flight are given what is left of their time, and no more.

    Args:
        timeout: Seconds for each connection, from its submission.
        idle_timeout, drain_limit, until, on_timeout: For each; see `graceful_close`.
        max_sockets: How many connections may be in flight, 1 or more. None: half of the
            descriptors that the process may have (RLIMIT_NOFILE), or 10,000 without a limit.
            While a callback keeps the thread, as many again may wait for it.
        on_overflow: When there are more, the one that has waited longest is let go, as if its
            time were up, with this in the place of `on_timeout`.

    Raises:
        TypeError, ValueError: An argument is not what it says there.
    """

    def __init__(
        self,
        *,
        timeout: float = 30.0,
        idle_timeout: float | None = 5.0,
        drain_limit: int | None = None,
        until: CloseOutcome = CloseOutcome.PEER_CLOSED,
        on_timeout: LingerPolicy = LingerPolicy.BACKGROUND,
        max_sockets: int | None = None,
        on_overflow: LingerPolicy = LingerPolicy.ABORT,
    ) -> None:
        # Not with this module, because it loads logging; and not in submit(), because a signal
        # handler, or the child of a fork, may find another thread in the middle of an import.
        from ._future import CloseFuture

        terms = Terms(timeout, idle_timeout, drain_limit, until, on_timeout)
        require_parting("on_overflow", on_overflow)
        if max_sockets is None:
            limit = _platform.descriptor_limit()
            max_sockets = _MAX_SOCKETS if limit is None else max(1, limit // 2)
        require_count("max_sockets", max_sockets, "sockets", least=1)
        self._orders = Orders(terms, max_sockets, on_overflow)
        self._new_future: type[CloseFuture] = CloseFuture
        self._closed = False
        self._crew: Crew | None = None

    # --- for callers -------------------------------------------------------------------------

    def submit(self, sock: socket.socket) -> Future[CloseResult]:
        """Take a connection over and close it gracefully; never waits.

        When this returns, our FIN is out and `sock` is closed: its descriptor is the Reaper's.
        If it raises, `sock` was not touched. (The one exception is a TLS socket that found no
        room for its close_notify: our FIN follows that, and the object is closed with the
        connection.)

        Args:
            sock: A stream socket; see `graceful_close`.

        Returns:
            The future of the result. It cannot be cancelled. Its callbacks run in the Reaper's
            thread, and everybody waits while they do. If the Reaper itself fails (no descriptor
            or no thread to be had for it, a bug), the connection is closed at once, and the
            future has the exception. A KeyboardInterrupt closes it at once and goes on.

        Raises:
            TypeError: `sock` is not a stream socket.
            RuntimeError: The Reaper is closed.
        """
        require_stream(sock)
        future = self._new_future(self._orders)
        self._take(sock, future)
        if sock.fileno() == -1:
            sock.detach()  # finds nothing, but lets the object know that it is closed
        return future

    def stats(self) -> dict[CloseOutcome, int]:
        """How many connections have ended in which way; every outcome is there."""
        return dict(self._orders.counts)

    @property
    def overflowed(self) -> int:
        """How many connections were let go to make room for others."""
        return self._orders.overflowed

    def __len__(self) -> int:
        """How many connections are in flight."""
        return self._orders.taken - self._orders.ended

    def __bool__(self) -> bool:
        return True  # or an idle one would be taken for none

    def close(self, timeout: float | None = None) -> None:
        """Take no more connections, finish those in flight, and end the thread.

        When this returns, all connections are closed, and nearly all callbacks have run: one
        that blocks is waited for no longer than a second after the last connection's time.
        Calling it again is harmless; a callback that calls it does not wait. A KeyboardInterrupt
        closes all connections at once and goes on.

        Args:
            timeout: Seconds after which what is unfinished is let go as `on_timeout` says.
                None: each connection has the time that it was given.

        Raises:
            TypeError, ValueError: `timeout` is no number of seconds, 0 or more.
        """
        patience = (
            self._orders.terms.timeout
            if timeout is None
            else require_seconds("timeout", timeout)
        )
        try:
            self._end(patience)
            self._join()
        except BaseException:
            self._end(0)
            self._join()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it; at once if the block was left by something foreign: an interrupt, say.

        sys.exit() is how a server ends in good order, and a Reaper at the interpreter's exit
        finishes too.
        """
        foreign = error is not None and not isinstance(error, (Exception, SystemExit))
        self.close(0 if foreign else None)

    def __del__(self) -> None:
        crew = getattr(self, "_crew", None)  # not there if the arguments were refused
        if crew is not None:
            crew.end(self._orders.terms.timeout)

    # --- behind it ---------------------------------------------------------------------------

    def _take(self, sock: socket.socket, future: CloseFuture | None) -> None:
        """`submit`, with a future only for whoever wants one."""
        orders, crew = self._orders, self._crew
        handed = Handed(future)
        behind = False
        with orders.lock:
            if self._closed:
                raise RuntimeError(f"the Reaper is closed, and cannot take {sock!r}")
            try:
                if handed.take(sock, orders):
                    if crew is None or crew.over:
                        crew = self._crew_at_work()
                    behind = crew.hand(handed)
                    orders.taken += 1
                else:
                    orders.counts[ALREADY_CLOSED] += 1
                    if future is not None:
                        future.settle(CloseResult(ALREADY_CLOSED, 0.0, 0, None, None))
            except BaseException as error:
                # No descriptor (EMFILE), no thread (RuntimeError), a signal's exception.
                if crew is not None:
                    crew.take_back(handed)
                handed.let_go(LingerPolicy.BACKGROUND)
                let_go(sock, LingerPolicy.BACKGROUND)
                if not isinstance(error, Exception):
                    raise
                if future is not None:
                    future.settle(error)
        if behind and crew is not None:
            crew.lend_a_hand(handed.since)

    def _crew_at_work(self) -> Crew:
        if self._crew is None or self._crew.over:
            crew = Crew(self._orders)
            crew.begin()
            if self._crew is None or self._crew.over:
                self._crew = crew
            else:
                crew.end(0)  # a signal handler that submits came in between, and made its own
        return self._crew

    def _end(self, patience: float) -> None:
        with self._orders.lock:
            self._closed = True
            if self._crew is not None:
                self._crew.end(patience)

    def _join(self) -> None:
        if self._crew is not None:
            self._crew.join()


def hand_over(sock: socket.socket, reaper: Reaper) -> bool:
    """Have whoever closes a stream socket leave it to a Reaper.

    Args:
        sock: It is to be closed afterwards all the same, but has no descriptor any more.
        reaper: Who closes the connection.

    Returns:
        False: it is closed, or SO_LINGER {1, 0} says that it is to be aborted.
    """
    linger = _platform.HERE.linger
    try:
        if linger is not None and linger.aborts(sock):
            return False
        reaper._take(sock, None)  # pyright: ignore[reportPrivateUsage]
    except OSError:
        return False  # EBADF: it is closed
    except RuntimeError:
        # The Reaper is closed already. Now whoever closes must wait, unless it is an event loop.
        graceful_close(sock, timeout=0.0 if sock.gettimeout() == 0 else 5.0)
    return True
