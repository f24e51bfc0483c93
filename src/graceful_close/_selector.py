"""Waiting on many sockets at once, each for what its machine waits for."""

from __future__ import annotations

import errno
import select
import selectors
import sys
import time
from time import monotonic

from ._teardown import WAIT_ACK, WAIT_EITHER, WAIT_READABLE, WAIT_WRITABLE, Step

# How many events are taken at a time. Arbitrary: enough to spread the cost of the call, and
# a few milliseconds of work at most, after which an event loop that we share gets its turn.
MOST_EVENTS = 128

# In seconds: poll() counts milliseconds in an int. Whoever has longer waits again.
LONGEST_WAIT = 1_000_000.0

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    # To whom something happened, and whether it is input, or an error.
    Events = list[tuple[int, bool]]

    class Selector(Protocol):
        """Descriptors, each armed for the end of one wait at a time."""

        def arm(self, number: int, step: Step, known: bool) -> None:
            """Tell once when `step`, a wait, ends by an event; WAIT_ACK: tell every time.

            Args:
                number: The descriptor.
                step: WAIT_READABLE, WAIT_WRITABLE, WAIT_EITHER or WAIT_ACK.
                known: It was armed before.

            Raises:
                OSError: The system has no room for one more (ENOMEM, ENOSPC), or WAIT_ACK, and
                    nothing here tells of acknowledgements (EOPNOTSUPP).
            """
            ...

        def forget(self, number: int) -> None:
            """Disarm, as must be done before an armed descriptor is closed."""
            ...

        def wait(self, seconds: float, most: int = MOST_EVENTS) -> Events:
            """Sleep, at most so long, until something happens to one that is armed.

            Args:
                seconds: How long, 0 or more.
                most: How many events are wanted at the most; more are left for the next call.
            """
            ...

        def fileno(self) -> int:
            """What can be waited on in the place of all; -1: there is no such thing."""
            ...

        def close(self) -> None:
            """Give back what descriptor it has of its own."""
            ...


# What one select() takes on Windows, FD_SETSIZE in CPython's selectmodule.c.
_SELECTABLE = 512

# Where one select() cannot take all, look at each chunk so often. Arbitrary: a fiftieth of a second
# more for a close, against some percent of a processor.
_LOOK_EVERY = 0.02


_EVENTS_OF = {
    WAIT_READABLE: selectors.EVENT_READ,
    WAIT_WRITABLE: selectors.EVENT_WRITE,
    WAIT_EITHER: selectors.EVENT_READ | selectors.EVENT_WRITE,
}


def _no_watch() -> OSError:
    return OSError(errno.EOPNOTSUPP, "acknowledgements wake nobody here")


class Portable:
    """What `selectors` has to offer; acknowledgements wake nobody."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector

    def arm(self, number: int, step: Step, known: bool) -> None:
        if step is WAIT_ACK:
            raise _no_watch()
        self.forget(number)
        self._selector.register(number, _EVENTS_OF[step])

    def forget(self, number: int) -> None:
        if number in self._selector.get_map():
            self._selector.unregister(number)

    def wait(self, seconds: float, most: int = MOST_EVENTS) -> Events:
        if not self._selector.get_map():
            time.sleep(min(seconds, LONGEST_WAIT))  # all pause
            return []
        numbers = [key.fd for key, _ in self._selector.select(min(seconds, LONGEST_WAIT))]
        for number in numbers:
            self._selector.unregister(number)
        return [(number, True) for number in numbers]

    def fileno(self) -> int:
        fileno = getattr(self._selector, "fileno", None)  # epoll, kqueue and /dev/poll have it
        return -1 if fileno is None else fileno()

    def close(self) -> None:
        self._selector.close()


class ChunkedSelect:
    """select(), where there is nothing better (Windows), in chunks that it can take."""

    def __init__(self) -> None:
        self._armed: dict[int, int] = {}  # for which events

    def arm(self, number: int, step: Step, known: bool) -> None:
        if step is WAIT_ACK:
            raise _no_watch()
        self._armed[number] = _EVENTS_OF[step]

    def forget(self, number: int) -> None:
        self._armed.pop(number, None)

    def wait(self, seconds: float, most: int = MOST_EVENTS) -> Events:
        wake_at = monotonic() + min(seconds, LONGEST_WAIT)
        armed = list(self._armed)
        chunks = [armed[i : i + _SELECTABLE] for i in range(0, len(armed), _SELECTABLE)]
        while True:
            left = max(0.0, wake_at - monotonic())
            timeout = left if len(chunks) == 1 else 0.0
            ready = [number for chunk in chunks for number in self._look(chunk, timeout)]
            for number in ready:
                del self._armed[number]
            if ready or left == 0:
                return [(number, True) for number in ready]
            if len(chunks) != 1:
                time.sleep(min(left, _LOOK_EVERY) if chunks else left)

    def _look(self, chunk: list[int], timeout: float) -> list[int]:
        readers = [number for number in chunk if self._armed[number] & selectors.EVENT_READ]
        writers = [number for number in chunk if self._armed[number] & selectors.EVENT_WRITE]
        try:
            readable, writable, _ = select.select(readers, writers, [], timeout)
        except OSError:
            # EBADF, WSAENOTSOCK: another thread closed one of them, who is to hear of it.
            if len(chunk) == 1:
                return chunk
            half = len(chunk) // 2
            return self._look(chunk[:half], 0) + self._look(chunk[half:], 0)
        return list({*readable, *writable})

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self._armed.clear()


def new_selector() -> Selector:
    """The best of this system.

    It takes one descriptor. Where none is left (EMFILE, ENFILE), poll() does, which takes none:
    a wait for acknowledgements is then one that looks again after pauses.
    """
    try:
        # Looked for late, because gevent and eventlet take epoll away.
        if sys.platform == "linux" and hasattr(select, "epoll"):
            return Epoll()
        if issubclass(selectors.DefaultSelector, selectors.SelectSelector):
            return ChunkedSelect()
        return Portable(selectors.DefaultSelector())
    except OSError:
        return Portable(getattr(selectors, "PollSelector", selectors.SelectSelector)())


if sys.platform == "linux":

    class Epoll:
        """epoll(7): those to whom nothing happens cost nothing, and acknowledgements wake it.

        Linux wakes every sleeper on a socket when the FIN is acknowledged (FIN_WAIT1 to FIN_WAIT2,
        tcp_rcv_state_process()), but to a poll() nothing has changed then: a socket that is shut
        for writing counts as writable all the time. An edge-triggered epoll reports the wake-up
        itself. Its first wait returns at once, with the edge of being added.
        """

        # Once, so that a descriptor which had its event may be closed with no further call:
        # were it armed, a dup would keep it in the list, and its events coming.
        _READABLE = select.EPOLLIN | select.EPOLLONESHOT
        _WRITABLE = select.EPOLLOUT | select.EPOLLONESHOT
        _EITHER = select.EPOLLIN | select.EPOLLOUT | select.EPOLLONESHOT
        _ANYTHING = select.EPOLLIN | select.EPOLLOUT | select.EPOLLET

        def __init__(self) -> None:
            epoll = self._epoll = select.epoll()
            self._register, self._modify = epoll.register, epoll.modify
            self.fileno, self.close = epoll.fileno, epoll.close

        def arm(self, number: int, step: Step, known: bool) -> None:
            events = self._READABLE
            if step is WAIT_ACK:
                events = self._ANYTHING
            elif step is WAIT_WRITABLE:
                events = self._WRITABLE
            elif step is WAIT_EITHER:
                events = self._EITHER
            if known:
                self._modify(number, events)
                return
            try:
                self._register(number, events)
            except FileExistsError:
                # A dup kept the connection in the list when an earlier owner of this very
                # number was closed; and was dup'd to it again.
                self._modify(number, events)

        def forget(self, number: int) -> None:
            self._epoll.unregister(number)

        def wait(self, seconds: float, most: int = MOST_EVENTS) -> Events:
            events = self._epoll.poll(min(seconds, LONGEST_WAIT), most)
            return [(number, what != select.EPOLLOUT) for number, what in events]
