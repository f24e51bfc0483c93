"""The driver for event loops. What differs between them is how to wait."""

from __future__ import annotations

from time import monotonic

from ._connection import Connection
from ._delivery import AckWatch, open_descriptor
from ._linger import LingerPolicy
from ._loop import CloseLoop
from ._many import Crowd
from ._release import let_go
from ._result import CloseResult
from ._selector import new_selector
from ._teardown import (
    ALREADY_CLOSED,
    LET_GO,
    PAUSE,
    WAIT_ACK,
    WAIT_EITHER,
    WAIT_READABLE,
    WAIT_WRITABLE,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from types import TracebackType
    from typing import Generic, Protocol, TypeVar

    from ._connection import Said
    from ._loop import Closing as Ending
    from ._terms import Terms

    S = TypeVar("S")

    class _Of(Generic[S]):
        """What `Closing` is of."""

    class Wait(Protocol):
        """How an event loop waits. Each ends by itself after `seconds`, and is cancellable."""

        async def readable(self, descriptor: int, seconds: float) -> None:
            """Until there is input on a descriptor."""
            ...

        async def writable(self, descriptor: int, seconds: float) -> None:
            """Until there is room for output."""
            ...

        async def pause(self, seconds: float) -> None:
            """Until the time is over; 0: let others run."""
            ...
else:

    class _Of:
        # The typing module is slow to import.
        def __class_getitem__(cls, _: object) -> type:
            return cls


# Where no descriptor is left to wait on for all (EMFILE), look so often. Arbitrary: a fiftieth of
# a second more for a close, against some percent of a processor.
LOOK_EVERY = 0.02

# How many connections are begun before others run. Arbitrary: a millisecond of work.
BATCH = 64


class TurnFirst:
    """A way to wait whose first wait is one turn of the event loop, and then a look.

    A busy server's peer on a fast network has closed by then; and to watch a descriptor, and to set
    a timer for it, would cost more than all the rest of the close.

    Args:
        wait: How to wait from then on.

    Attributes:
        had_a_turn: That has been.
    """

    __slots__ = ("_wait", "had_a_turn")

    def __init__(self, wait: Wait) -> None:
        self._wait = wait
        self.had_a_turn = False

    async def readable(self, descriptor: int, seconds: float) -> None:
        if self.had_a_turn:
            await self._wait.readable(descriptor, seconds)
        else:
            await self.pause(0)  # and whoever waits looks again

    async def writable(self, descriptor: int, seconds: float) -> None:
        await self._wait.writable(descriptor, seconds)

    async def pause(self, seconds: float) -> None:
        self.had_a_turn = True
        await self._wait.pause(seconds)


async def close_on(
    terms: Terms,
    sock: socket.socket,
    wait: Wait,
    since: float | None = None,
    said: Said = None,
    *,
    fin_sent: bool = False,
) -> CloseResult:
    """`graceful_close` in an event loop, with everything checked.

    A cancellation closes at once, without lingering, and goes on.

    Args:
        terms: What the caller asked for.
        sock: What to close.
        wait: How to wait.
        since: From when the deadlines count; None: from now.
        said: As for `Connection`.
        fin_sent: shutdown(SHUT_WR) was called already. Once the peer's FIN is there too, a
            second call says ENOTCONN.
    """
    watch: AckWatch | None = None
    try:
        if sock.fileno() == -1:
            return CloseResult(ALREADY_CLOSED, 0.0, 0, None, None)
        since = monotonic() if since is None else since
        connection = Connection(sock, terms, since, one_of_many=True, said=said)
        machine = connection.machine
        step = connection.first_step(since, shut=fin_sent)
        while True:
            step = connection.carry_out(step)
            if step is LET_GO:
                return connection.let_go()
            left = max(0.0, machine.wake_at - monotonic())
            readable = True
            try:
                if step is WAIT_READABLE:
                    await wait.readable(open_descriptor(sock), left)
                elif step is WAIT_ACK:
                    watch = watch or AckWatch(sock)
                    await wait.readable(watch.fileno(), left)
                    readable = watch.wait(0)
                elif step is WAIT_WRITABLE:
                    await wait.writable(open_descriptor(sock), left)
                elif step is WAIT_EITHER:
                    await _either(open_descriptor(sock), machine.wake_at, wait)
                elif step is PAUSE:
                    await wait.pause(left)
                else:
                    await wait.pause(0)  # its fill of reads: others get their turn
                    continue
            except OSError as error:
                now = monotonic()
                watching = step is WAIT_ACK
                step = machine.cannot_watch(now) if watching else machine.failed(error, now)
            else:
                step = machine.woke(monotonic(), readable=readable)
    except BaseException:
        # Something foreign: a cancellation, a bug. Close at once, without lingering.
        let_go(sock, LingerPolicy.BACKGROUND)
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
    terms: Terms, socks: list[socket.socket], wait: Wait
) -> list[CloseResult]:
    """`close_all` in an event loop, with everything checked."""
    with Crowd(terms, socks) as crowd:
        await _empty(crowd.loop, crowd.begin(), wait)
        return crowd.results()


async def _empty(loop: CloseLoop, begin: Iterator[object], wait: Wait) -> None:
    """Turn a loop until it is empty, after `begin` has put in something at each step."""
    for index, _ in enumerate(begin):
        if index % BATCH == BATCH - 1:
            await wait.pause(0)
    while loop:
        await wait_on(loop.fileno(), loop.wake_at, wait)
        loop.turn(0)


class Parting:
    """What `close_each_on` is to close, and how that ended; the rest as for `close_on`.

    Attributes:
        result: How the connection ended; None until it has.
    """

    __slots__ = ("result", "said", "since", "sock", "terms")

    def __init__(
        self, terms: Terms, sock: socket.socket, since: float, said: Said = None
    ) -> None:
        self.terms: Terms = terms
        self.sock = sock
        self.since: float = since
        self.said = said
        self.result: CloseResult | None = None


async def close_each_on(partings: Sequence[Parting], wait: Wait) -> None:
    """`close_on` for many at once; each has its result then.

    Raises:
        Exception: What the first of them failed by, if one did, by nothing that a network does.
            All are closed by then, the others as they would have been.
    """
    failures: list[Exception] = []

    def ended(ending: Ending, outcome: CloseResult | Exception) -> None:
        if isinstance(outcome, Exception):
            failures.append(outcome)  # the others are not to blame
        else:
            ending.ticket.result = outcome

    loop = CloseLoop(ended)
    try:
        begin = (loop.add(one.sock, one.terms, one.since, one, one.said) for one in partings)
        await _empty(loop, begin, wait)
    except BaseException:
        for one in partings:
            let_go(one.sock, LingerPolicy.BACKGROUND)
        raise
    finally:
        loop.close()
    if failures:
        raise failures[0]


async def wait_on(selector: int, wake_at: float, wait: Wait) -> None:
    """Wait for many: until a selector has something to tell, or until `wake_at`.

    Args:
        selector: Its descriptor, or -1 if it has none and must be asked.
        wake_at: A reading of time.monotonic().
        wait: How to wait.
    """
    left = max(0.0, wake_at - monotonic())
    if left == 0:
        await wait.pause(0)
    elif selector == -1:
        await wait.pause(min(left, LOOK_EVERY))
    else:
        await wait.readable(selector, left)


class Closing(_Of["S"]):
    """What an event loop's `closing` is made of.

    Args:
        stream: What the body gets.
        commit: Closes it gracefully.
        roll_back: Closes it with a reset.

    Attributes:
        result: How the connection ended; None until the block is left.
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
            pass  # no descriptor was left (EMFILE); what the body raised matters more
