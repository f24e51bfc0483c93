"""What the event loops share: the pending closes of a loop, in one `CloseLoop` that the loop turns.

Every close of an event loop takes this route:

1. The loop's module begins the close, and awaits the flush if there is one.
2. `Multiplexer.finish` gives the peer one turn of the event loop. On a fast network the peer of a busy
   server has closed by then, and nothing has to be watched.
3. Otherwise the close joins the others in the `CloseLoop`, and its task sleeps until the end.

The event loop watches one descriptor, the selector of the `CloseLoop`, and has one timer, for the next
deadline of all closes. A subclass for each kind of event loop knows how a task sleeps, and how the
loop is made to look.
"""

from __future__ import annotations

import math
from typing import Generic, TypeVar, cast

from ._clock import monotonic
from ._close_all import close_at_once
from ._loop import CloseLoop, Pending
from ._selector import LOOK_EVERY
from ._step import FLUSH, RELEASE, WAIT_READABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Sequence
    from types import TracebackType
    from typing import Any, Protocol

    from ._connection import Connection
    from ._options import OnTimeout, Options
    from ._result import CloseResult
    from ._step import Step

    class Flush(Protocol):
        """What is above the kernel, and how that gets there."""

        async def go_on(self, connection: Connection) -> Step:
            """Wait until something has moved, or until `wake_at`, and tell the machine.

            Called once after the other, with nothing to wait for the first time.
            """
            ...

        def wake(self) -> None:
            """Make `go_on` return now."""
            ...

        def stop(self) -> None:
            """End the flush early; called before the descriptor is closed."""
            ...


S = TypeVar("S")


# How many connections are begun before other tasks run. Heuristic: a millisecond of work.
BATCH = 64


class TaskClose(Pending):
    """A close whose end a task may await.

    Attributes:
        outcome: The result, or the exception of a bug or an interrupt; None before the end.
        waiter: What wakes the task that waits; None: no task waits.
        flushed_by: The flush that is in progress.
        on_expiry: The policy of `Multiplexer.expire`; None: not called.
    """

    __slots__ = ("flushed_by", "on_expiry", "outcome", "waiter")

    def __init__(self, options: Options, now: float, **more: Any) -> None:
        super().__init__(options, now, **more)
        self.outcome: CloseResult | BaseException | None = None
        self.waiter: Any = None
        self.flushed_by: Flush | None = None
        self.on_expiry: OnTimeout | None = None


class Multiplexer:
    """The pending closes of one event loop.

    Attributes:
        closes: The connections, from the first that waits; `look` turns them.
        clock: The clock of the event loop's waits.
    """

    clock: Callable[[], float] = staticmethod(monotonic)

    def __init__(self) -> None:
        self.closes: CloseLoop | None = None
        self._look_at = math.inf  # the time of the event loop's timer

    async def close(
        self, close: TaskClose, sock: socket.socket, flush: Flush | None = None
    ) -> CloseResult:
        """Close a socket, after a flush if there is one.

        On cancellation the socket is closed immediately, without lingering, and the exception
        propagates.
        """
        close.flush, close.flushed_by = flush is not None, flush
        try:
            step = close.begin(sock)
            while step is FLUSH and flush is not None:
                if close.on_expiry is not None:
                    close.machine.expire(close.clock(), close.on_expiry)
                step = await flush.go_on(close)
            close.flushed_by = None
            return await self.finish(close, step)
        except BaseException:
            if flush is not None:
                flush.stop()
            self.drop(close)
            close.abandon(sock)
            raise

    async def finish(self, close: TaskClose, step: Step) -> CloseResult:
        """The rest of `close`, after the beginning and the flush; `step` is the next step."""
        try:
            await self.turn()
            if step is WAIT_READABLE:
                step = close.waited(step)
            step = close.carry_out(step)
            if step is RELEASE:
                return close.release()
            self.add(close, step)
        except BaseException:
            self.drop(close)
            raise
        return await self.end_of(close)

    async def close_each(
        self, closes: Sequence[tuple[TaskClose, socket.socket]]
    ) -> list[CloseResult]:
        """Close many sockets at the same time. The rest as for `finish`.

        Raises:
            Exception: The first failure, if there was a bug. All sockets are closed by then, the
                others normally.
        """
        failures: list[Exception] = []
        results: list[CloseResult] = []
        try:
            for index, (close, sock) in enumerate(closes):
                self._ready().begin(close, sock)
                if index % BATCH == BATCH - 1:
                    await self.turn()
            self.schedule()
            for close, _ in closes:
                try:
                    results.append(await self.end_of(close))
                except Exception as failure:  # noqa: BLE001 (the others continue)
                    failures.append(failure)
        except BaseException:
            for close, _ in closes:
                self.drop(close)
            close_at_once([sock for _, sock in closes])
            raise
        if failures:
            raise failures[0]
        return results

    def add(self, close: TaskClose, step: Step) -> None:
        """Continue a close in the background; `step` is its next step."""
        closes = self._ready()
        closes.add(close, step)
        if close.on_expiry is not None and close.outcome is None:
            closes.expire(close, close.on_expiry)
        self.schedule()

    def _ready(self) -> CloseLoop:
        closes = self.closes
        # One without a descriptor (EMFILE) is replaced as soon as it is empty.
        if closes is None or (not closes and closes.fileno() == -1):
            closes = CloseLoop(self._ended, self.clock)
            try:
                self.begin(closes)
            except BaseException:
                closes.close()
                raise
            self.closes = closes
        return closes

    def expire(self, close: TaskClose, on_timeout: OnTimeout) -> None:
        """End a close as at its deadline: now, or as soon as it would wait."""
        close.on_expiry = on_timeout
        if close.flushed_by is not None:
            close.flushed_by.wake()
        elif self.closes is not None and close in self.closes:
            self.closes.expire(close, on_timeout)

    async def end_of(self, close: TaskClose) -> CloseResult:
        """Wait for the end of a close that was added.

        Raises:
            Exception: A bug. The socket is closed.
        """
        if close.outcome is None:
            try:
                await self.park(close)
            except BaseException:
                self.drop(close)
                raise
        if isinstance(close.outcome, BaseException):
            raise close.outcome
        return cast("CloseResult", close.outcome)

    def drop(self, close: TaskClose) -> None:
        """Close a connection immediately, without lingering, unless it has ended."""
        if self.closes is not None and close in self.closes:
            self.closes.remove(close)
        elif close.outcome is None:
            close.abandon()

    def look(self) -> None:
        """Handle what has happened; the event loop calls this."""
        if self.closes is not None:
            self.closes.turn(0)
            self.schedule()

    def recover(self) -> None:
        """Continue the other closes after an exception of a signal in `look`, or before it."""
        if self.closes is not None:
            self.closes.recover()
            self._look_at = math.inf
            self.schedule()

    # Not a method of the object: the selector is closed with the event loop, without a cycle.
    @classmethod
    def _ended(cls, close: Pending, outcome: CloseResult | BaseException) -> None:
        close = cast("TaskClose", close)
        close.outcome = close.outcome or outcome  # an interrupt may come after the end
        if close.waiter is not None:
            cls.wake(close)

    def look_on_time(self) -> None:
        """`look`, after the timer; the event loop calls this."""
        self._look_at = math.inf
        self.look()

    def schedule(self) -> None:
        """Have the event loop look at the next deadline, if its timer is later than that.

        A timer that is too early costs one look; each close would cost a timer otherwise.
        """
        if not self.closes:
            return
        now = self.clock()
        left = max(0.0, self.closes.wake_at - now)
        if self.closes.fileno() == -1:
            left = min(left, LOOK_EVERY)
        # The time of the timer is over if an exception of a signal came before its `look`.
        if now + left < self._look_at or self._look_at < now:
            self._look_at = now + left
            self.set_timer(left)

    # --- what differs between event loops ---

    async def turn(self) -> None:
        """Give other tasks a turn."""
        raise NotImplementedError

    async def park(self, close: TaskClose) -> None:
        """Sleep until `wake` is called for this close."""
        raise NotImplementedError

    @staticmethod
    def wake(close: TaskClose) -> None:
        """End the sleep of the task that waits for a close."""
        raise NotImplementedError

    def begin(self, closes: CloseLoop) -> None:
        """Make the event loop call `look` on every event of a new selector, if it has a descriptor."""
        raise NotImplementedError

    def set_timer(self, seconds: float) -> None:
        """Make the event loop call `look_on_time` after so many seconds, and at no other time."""
        raise NotImplementedError


class AsyncClosing(Generic[S]):
    """The base class of each event loop's `closing`.

    Args:
        stream: The stream, which the block gets.
        commit: Closes the stream gracefully.
        roll_back: Closes the stream with a reset.

    Attributes:
        result: How the connection ended; None inside the block.
    """

    result: CloseResult | None

    def __init__(
        self,
        stream: S,
        commit: Callable[[], Awaitable[CloseResult]],
        roll_back: Callable[[], Awaitable[CloseResult]],
    ) -> None:
        self._stream = stream
        self._commit = commit
        self._roll_back = roll_back
        self.result = None

    async def __aenter__(self) -> S:
        return self._stream

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.result = await self._commit()
            return
        try:
            self.result = await self._roll_back()
        except OSError:
            pass  # no descriptor was left (EMFILE); the block's own exception matters more
