"""The driver for event loops. What differs between them is how to wait."""

from __future__ import annotations

from time import monotonic

from ._connection import Connection
from ._delivery import AckWatch, open_descriptor
from ._linger import LingerPolicy
from ._many import Crowd
from ._release import let_go
from ._result import CloseResult
from ._teardown import ALREADY_CLOSED, LET_GO, PAUSE, WAIT_ACK, WAIT_READABLE, WAIT_WRITABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Protocol

    from ._teardown import Terms

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


# Where no descriptor is left to wait on for all (EMFILE), look so often. Arbitrary: a fiftieth of
# a second more for a close, against some percent of a processor.
_LOOK_EVERY = 0.02

# How many connections are begun before others run. Arbitrary: a millisecond of work.
_BATCH = 64


async def close_on(terms: Terms, sock: socket.socket, wait: Wait) -> CloseResult:
    """`graceful_close` in an event loop, with everything checked.

    A cancellation closes at once, without lingering, and goes on.
    """
    watch: AckWatch | None = None
    try:
        if sock.fileno() == -1:
            return CloseResult(ALREADY_CLOSED, 0.0, 0, None, None)
        connection = Connection(sock, terms, monotonic(), one_of_many=True)
        machine = connection.machine
        step = machine.start()
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


async def close_all_on(
    terms: Terms, socks: list[socket.socket], wait: Wait
) -> list[CloseResult]:
    """`close_all` in an event loop, with everything checked."""
    with Crowd(terms, socks) as crowd:
        for index, _ in enumerate(crowd.begin()):
            if index % _BATCH == _BATCH - 1:
                await wait.pause(0)
        loop = crowd.loop
        while loop:
            left = max(0.0, loop.wake_at - monotonic())
            descriptor = loop.fileno()
            if left == 0:
                await wait.pause(0)
            elif descriptor == -1:
                await wait.pause(min(left, _LOOK_EVERY))
            else:
                await wait.readable(descriptor, left)
            loop.turn(0)
        return crowd.results()
