"""A Reaper closes submitted connections in a background thread, so that a worker can continue.

`_reaper_worker.py` has the thread. Here are the class of the public interface, and what the servers
of this package do with a Reaper.
"""

from __future__ import annotations

import errno
import math

from . import _platform
from ._blocking import close_on, warn_unflushed
from ._clock import monotonic
from ._linger import LingerPolicy
from ._options import Options, ReaperSettings, require_seconds
from ._reaper_worker import Worker
from ._result import CloseOutcome
from ._sockets import has_open_writer, require_stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from concurrent.futures import Future
    from types import TracebackType
    from typing import Self

    from ._future import CloseFuture
    from ._loop import Pending
    from ._option_types import ReaperOptions as ReaperOptions  # noqa: PLC0414 (others import it from here)
    from ._options import OnTimeout, Until
    from ._result import CloseResult
    from ._step import Step


class Reaper:
    """Closes connections gracefully in a background thread, so that a worker can continue.

    A worker that waits in `graceful_close` for a slow client serves no other client. It can submit
    the socket instead:

        reaper = Reaper()
        ...
        sock.sendall(reply)
        reaper.submit(sock)

    `with Reaper() as reaper:` closes the Reaper at the end of the block, `len(reaper)` is the number
    of pending connections, and a Reaper is always true.

    One thread closes all connections, from the first `submit` until `close`. Any thread and any
    signal handler may submit. A Reaper that is garbage-collected finishes its connections. After a
    fork the child's Reaper is empty, and starts a thread of its own. The pending connections and
    their futures remain the parent's, and the child holds no copies of them.

    The thread is a daemon, because the interpreter waits for other threads before it could stop
    this one. At interpreter exit, and at the end of a multiprocessing worker, the Reaper is closed
    as by `close(idle_timeout)`: the exit takes 5 seconds at most, unless `idle_timeout` is another.
    To wait longer, call `close()` before. If no thread can be started (a process limit, no memory, a
    subinterpreter, the exit itself), `submit` closes the connection before it returns, and waits for
    the peer as `graceful_close` does. A non-blocking socket is then closed without waiting.

    Args:
        timeout: The deadline of each connection in seconds, 0 or more, from its submission.
        idle_timeout: For each connection; see `graceful_close`.
        drain_limit: For each connection; see `graceful_close`.
        until: For each connection; see `graceful_close`.
        on_timeout: For each connection; see `graceful_close`.
        peer_first: For each connection; see `graceful_close`. New in 0.2.
        max_sockets: The largest number of pending connections, 1 or more. None: half of the
            descriptors that the process may have (RLIMIT_NOFILE), or 10,000 without a limit.
        on_overflow: With more than `max_sockets` pending, the oldest connection is closed as at its
            deadline, with this policy instead of `on_timeout`. BACKGROUND, the default, does what
            `close()` does: the kernel still delivers the reply. ABORT also releases the kernel's
            memory. If the accept() of a GracefulListener finds no free descriptor (EMFILE), the
            older half of the connections is closed so.
        on_close: Called with the result of every connection, in the Reaper's thread. `peer` of the
            result is the peer's address, if it is known. `threading.excepthook` reports its
            exceptions. New in 0.2.

    Raises:
        TypeError, ValueError: An argument has the wrong type or is out of range.
    """

    def __init__(
        self,
        *,
        timeout: float = 30.0,
        idle_timeout: float | None = 5.0,
        drain_limit: int | None = None,
        until: Until = CloseOutcome.PEER_CLOSED,
        on_timeout: OnTimeout = LingerPolicy.BACKGROUND,
        peer_first: float = 0,
        max_sockets: int | None = None,
        on_overflow: OnTimeout = LingerPolicy.BACKGROUND,
        on_close: Callable[[CloseResult], object] | None = None,
    ) -> None:
        # Not at the top, because the module loads logging. Not in submit(), because a signal handler,
        # or the child of a fork, may interrupt another thread's import.
        from ._future import CloseFuture

        settings = ReaperSettings(
            timeout=timeout,
            idle_timeout=idle_timeout,
            drain_limit=drain_limit,
            until=until,
            on_timeout=on_timeout,
            peer_first=peer_first,
            max_sockets=max_sockets,
            on_overflow=on_overflow,
            on_close=on_close,
        )
        self._new_future: type[CloseFuture] = CloseFuture
        self._worker = Worker(settings)

    def submit(self, sock: socket.socket) -> Future[CloseResult]:
        """Take a connection and close it gracefully, without waiting for the network.

        When this returns, our FIN is sent and `sock` is closed: the Reaper has its descriptor. (One
        exception: if there is no room for the close_notify of a TLS socket, our FIN is sent after
        it, and the object keeps its descriptor until then.) If this raises TypeError or
        RuntimeError, `sock` was not touched. On KeyboardInterrupt the connection is closed
        immediately and the exception propagates.

        If the thread is behind, because submitters keep the interpreter busy, the call takes some
        milliseconds longer, so that the thread catches up.

        Args:
            sock: A stream socket; see `graceful_close`. gevent's and eventlet's are accepted, too.

        Returns:
            The future of the result. It cannot be cancelled. Its callbacks run in the Reaper's
            thread and block the Reaper while they run. If the close fails because of a bug, the
            connection is closed immediately, and the future has the exception.

        Raises:
            TypeError: `sock` is not a stream socket.
            RuntimeError: The Reaper is closed.
        """
        require_stream(sock)
        unflushed = has_open_writer(sock)
        if unflushed:
            warn_unflushed(stacklevel=2)
        future = self._new_future()
        self._worker.submit(sock, future, None, unflushed=unflushed)
        return future

    def stats(self) -> dict[CloseOutcome, int]:
        """Return the number of connections by outcome; every outcome is a key."""
        counted = self._worker.tally.read()
        return {outcome: counted[outcome] for outcome in CloseOutcome}

    @property
    def overflowed(self) -> int:
        """The number of connections that were closed early to make room for others."""
        return self._worker.tally.read()["overflowed"]

    def __len__(self) -> int:
        """Return the number of pending connections."""
        return len(self._worker.pending)

    def __bool__(self) -> bool:
        return True  # an idle Reaper has the length 0

    def close(self, timeout: float | None = None) -> None:
        """Accept no more connections, finish the pending ones, and end the thread.

        When this returns, all connections are closed, and their callbacks have run. (A callback that
        blocks is waited for until one second after the last connection's deadline.) Calling it
        again has no effect; a callback that calls it does not wait. On KeyboardInterrupt all
        connections are closed immediately and the exception propagates.

        Args:
            timeout: The deadline in seconds, 0 or more, for all pending connections; then
                `on_timeout` applies. None: each connection keeps its own deadline.

        Raises:
            TypeError, ValueError: `timeout` is not a number of seconds, 0 or more.
        """
        worker = self._worker
        seconds = (
            worker.options.timeout if timeout is None else require_seconds("timeout", timeout)
        )
        worker.closed = True
        try:
            worker.end(seconds)
            worker.join()
        except BaseException:
            worker.end(0)
            worker.join()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the Reaper; immediately after an exception such as KeyboardInterrupt.

        After sys.exit() the pending connections are finished, as at interpreter exit.
        """
        foreign = error is not None and not isinstance(error, (Exception, SystemExit))
        self.close(0 if foreign else None)

    def __del__(self) -> None:
        worker = getattr(self, "_worker", None)  # missing if the constructor raised
        # At the very end of the interpreter modules lose their names, in any order; all that is in
        # flight was finished before.
        if worker is not None and monotonic is not None:
            worker.end(worker.options.timeout)


def after_failed_accept(error: OSError, reaper: Reaper) -> None:
    """If no descriptor was free, let the Reaper end its oldest connections.

    A plain close() would have released their descriptors.
    """
    if is_shortage(error):
        reaper._worker.release_descriptors()  # pyright: ignore[reportPrivateUsage]


def is_shortage(error: OSError) -> bool:
    """Whether an accept() found no free descriptor."""
    return error.errno in {errno.EMFILE, errno.ENFILE}


def stop(reaper: Reaper, at_most: float = math.inf) -> None:
    """Close a Reaper because its server stops, within the time that an exit takes, or `at_most`."""
    longest = reaper._worker.options.longest_silence  # pyright: ignore[reportPrivateUsage]
    reaper.close(min(longest, at_most))


def hand_over(sock: socket.socket, reaper: Reaper, peer: object = None) -> bool:
    """Move the connection of a stream socket to a Reaper.

    Args:
        sock: Has no descriptor afterwards. The caller still closes the object.
        reaper: The Reaper that closes the connection.
        peer: The peer's address, if it is known.

    Returns:
        False: `sock` is closed, or its SO_LINGER is {1, 0}, so the caller must abort it.
    """
    if set_to_abort(sock) or sock.fileno() == -1:
        return False
    worker = reaper._worker  # pyright: ignore[reportPrivateUsage]
    try:
        worker.submit(sock, None, peer)
    except RuntimeError:
        # The Reaper is closed. The calling thread waits, unless it runs an event loop.
        close_on(Options(0) if sock.gettimeout() == 0 else Options(), sock)
    return True


def set_to_abort(sock: socket.socket) -> bool:
    """Whether SO_LINGER is {1, 0}, with which the caller has configured an abort."""
    linger = _platform.HERE.linger
    try:
        return linger is not None and linger.aborts(sock)
    except OSError:
        return False  # ENOPROTOOPT: a stream without SO_LINGER. EBADF: closed


def leave_to(reaper: Reaper, pending: Pending, step: Step) -> None:
    """Let an open Reaper continue a close; `step` is its next step."""
    reaper._worker.go_on_with(pending, step)  # pyright: ignore[reportPrivateUsage]
