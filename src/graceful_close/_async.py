"""The driver for event loops, which differ only in how they wait."""

from __future__ import annotations

from time import monotonic
from typing import Generic, TypeVar

from ._close_all import Batch, close_at_once
from ._connection import Connection
from ._loop import CloseLoop, Pending
from ._selector import new_selector
from ._step import FLUSH, LET_GO, PAUSE, WAIT_ACK, WAIT_EITHER, WAIT_READABLE, WAIT_WRITABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from types import TracebackType
    from typing import Protocol

    from ._connection import CloseNotify
    from ._options import Options
    from ._result import CloseResult
    from ._selector import Selector
    from ._step import Step

    class Wait(Protocol):
        """The waits of an event loop. Each wait ends after `seconds`, and is cancellable."""

        async def readable(self, descriptor: int, seconds: float) -> None:
            """Wait until there is input on a descriptor."""
            ...

        async def writable(self, descriptor: int, seconds: float) -> None:
            """Wait until there is room for output."""
            ...

        async def pause(self, seconds: float) -> None:
            """Wait until the time is over; 0: give other tasks a turn."""
            ...

    class Flush(Protocol):
        """What is above the kernel, and how that gets there."""

        async def go_on(self, connection: Connection) -> Step:
            """Wait until something has moved, or until `wake_at`, and tell the machine.

            Called once after the other, with nothing to wait for the first time.
            """
            ...


S = TypeVar("S")


# The polling interval if no descriptor is left for an epoll (EMFILE). Heuristic: a fiftieth of a
# second more for a close, against some percent of a processor.
LOOK_EVERY = 0.02

# How many connections are begun before other tasks run. Heuristic: a millisecond of work.
BATCH = 64


class TurnFirst:
    """A `Wait` whose first wait is one turn of the event loop.

    On a fast network the peer of a busy server has closed after one turn. Watching the descriptor
    and setting a timer would cost more than the rest of the close.

    Args:
        wait: The waits after the first.

    Attributes:
        had_a_turn: Whether the first wait is over.
    """

    __slots__ = ("_wait", "had_a_turn")

    def __init__(self, wait: Wait) -> None:
        self._wait = wait
        self.had_a_turn = False

    async def readable(self, descriptor: int, seconds: float) -> None:
        if self.had_a_turn:
            await self._wait.readable(descriptor, seconds)
        else:
            await self.pause(0)  # the caller then polls

    async def writable(self, descriptor: int, seconds: float) -> None:
        await self._wait.writable(descriptor, seconds)

    async def pause(self, seconds: float) -> None:
        self.had_a_turn = True
        await self._wait.pause(seconds)


async def close_on(
    options: Options,
    sock: socket.socket,
    wait: Wait,
    since: float | None = None,
    close_notify: CloseNotify = None,
    *,
    abort: bool = False,
    flush: Flush | None = None,
    stood: bool = False,
) -> CloseResult:
    """`graceful_close` in an event loop, with validated arguments.

    On cancellation the socket is closed immediately, without lingering, and the exception
    propagates.

    Args:
        options: The options of the close.
        sock: The socket to close.
        wait: The waits of the event loop.
        since: The time from which the deadlines count; None: now.
        close_notify: As for `Connection`.
        abort: Discard the connection.
        flush: The buffer to flush first.
        stood: As for `Teardown`.
    """
    connection = Connection(
        options,
        monotonic() if since is None else since,
        one_of_many=True,
        abort=abort,
        close_notify=close_notify,
        flush=flush is not None,
        stood=stood,
    )
    watch: Selector | None = None
    try:
        step = connection.begin(sock)
        while (step := connection.carry_out(step)) is not LET_GO:
            if flush is not None and step is FLUSH:
                step = await flush.go_on(connection)
                continue
            number, wake_at = connection.sock.fileno(), connection.wake_at
            left = max(0.0, wake_at - monotonic())
            readable = True
            try:
                if step is WAIT_READABLE:
                    await wait.readable(number, left)
                elif step is WAIT_ACK:
                    if watch is None:
                        watch = new_selector()
                        watch.arm(number, WAIT_ACK, known=False)
                    await wait.readable(watch.fileno(), left)
                    readable = any(input_ for _, input_ in watch.wait(0))
                elif step is WAIT_WRITABLE:
                    await wait.writable(number, left)
                elif step is WAIT_EITHER:
                    await _either(number, wake_at, wait)
                elif step is PAUSE:
                    await wait.pause(left)
                else:
                    await wait.pause(0)  # after many reads, other tasks get a turn
                    continue
            except OSError as error:
                step = connection.waited(step, error)
            else:
                step = connection.waited(step, readable=readable)
        return connection.let_go()
    except BaseException:
        # A cancellation or a bug: close immediately, without lingering.
        connection.abandon(sock)
        raise
    finally:
        if watch is not None:
            watch.close()


async def _either(descriptor: int, wake_at: float, wait: Wait) -> None:
    """Wait until there is input or room for output."""
    selector = new_selector()
    try:
        selector.arm(descriptor, WAIT_EITHER, known=False)
        await wait_on(selector.fileno(), wake_at, wait)
    finally:
        selector.close()


async def close_all_on(
    options: Options, socks: list[socket.socket], wait: Wait, since: float
) -> list[CloseResult]:
    """`close_all` in an event loop, with validated arguments."""
    with Batch(options, socks, since) as batch:
        await _empty(batch.loop, batch.begin(), wait)
        return batch.results()


async def _empty(loop: CloseLoop, begin: Iterator[object], wait: Wait) -> None:
    """Turn a loop until it is empty, after `begin` has added its connections."""
    for index, _ in enumerate(begin):
        if index % BATCH == BATCH - 1:
            await wait.pause(0)
    while loop:
        await wait_on(loop.fileno(), loop.wake_at, wait)
        loop.turn(0)


class PendingClose:
    """A connection for `close_each_on`, and its result; the rest as for `close_on`.

    Attributes:
        result: How the connection ended; None before the end.
    """

    __slots__ = ("close_notify", "options", "result", "since", "sock", "stood")

    def __init__(
        self,
        options: Options,
        sock: socket.socket,
        since: float,
        close_notify: CloseNotify = None,
        *,
        stood: bool = False,
    ) -> None:
        self.options: Options = options
        self.stood = stood
        self.sock = sock
        self.since: float = since
        self.close_notify = close_notify
        self.result: CloseResult | None = None


async def close_each_on(closes: Sequence[PendingClose], wait: Wait) -> None:
    """`close_on` for many connections at the same time; sets the result of each.

    Raises:
        Exception: The first failure, if there was a bug. All connections are closed by then, the
            others normally.
    """
    failures: list[Exception] = []

    def ended(pending: Pending, outcome: CloseResult | Exception) -> None:
        if isinstance(outcome, Exception):
            failures.append(outcome)  # the other connections continue
        else:
            pending.key.result = outcome

    def begin() -> Iterator[None]:
        for one in closes:
            pending = Pending(
                one.options, one.since, one, close_notify=one.close_notify, stood=one.stood
            )
            loop.begin(pending, one.sock)
            yield

    loop = CloseLoop(ended)
    try:
        await _empty(loop, begin(), wait)
    except BaseException:
        close_at_once([one.sock for one in closes])
        raise
    finally:
        loop.close()
    if failures:
        raise failures[0]


async def wait_on(selector: int, wake_at: float, wait: Wait) -> None:
    """Wait until a selector has an event, or until `wake_at`.

    Args:
        selector: The descriptor of the selector, or -1 if it has none and must be polled.
        wake_at: A reading of time.monotonic().
        wait: The waits of the event loop.
    """
    left = max(0.0, wake_at - monotonic())
    if left == 0:
        await wait.pause(0)
    elif selector == -1:
        await wait.pause(min(left, LOOK_EVERY))
    else:
        await wait.readable(selector, left)


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
