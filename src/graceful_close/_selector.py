"""Selectors: waiting on many sockets at the same time, each for its own event."""

from __future__ import annotations

import errno
import select
import selectors
import sys
import time

from ._clock import monotonic
from ._step import WAIT_ACK, WAIT_EITHER, WAIT_READABLE, WAIT_WRITABLE, Step

# How many events are taken at a time. Heuristic: enough to spread the cost of the call, and at most a
# few milliseconds of work, after which a shared event loop gets its turn.
MOST_EVENTS = 128

# In seconds: poll() counts milliseconds in an int. A longer wait is repeated.
LONGEST_WAIT = 1_000_000.0

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    # Descriptors with an event, and whether the event is input or an error.
    Events = list[tuple[int, bool]]

    class Selector(Protocol):
        """Descriptors, each armed for the end of one wait at a time."""

        def arm(self, number: int, step: Step, known: bool) -> None:
            """Report one event that ends `step`, a wait; with WAIT_ACK, report every event.

            Args:
                number: The descriptor.
                step: WAIT_READABLE, WAIT_WRITABLE, WAIT_EITHER or WAIT_ACK.
                known: Whether the descriptor was armed before.

            Raises:
                OSError: The system has no room for one more (ENOMEM, ENOSPC), or `step` is
                    WAIT_ACK and the system does not report acknowledgements (EOPNOTSUPP).
            """
            ...

        def forget(self, number: int) -> None:
            """Disarm; required before an armed descriptor is closed."""
            ...

        def wait(self, seconds: float, most: int = MOST_EVENTS) -> Events:
            """Sleep until an armed descriptor has an event.

            Args:
                seconds: The longest sleep, 0 or more.
                most: The largest number of events; others are left for the next call.
            """
            ...

        def fileno(self) -> int:
            """Return a descriptor that is readable when there is an event, or -1."""
            ...

        def close(self) -> None:
            """Release the selector's own descriptor."""
            ...


# The limit of one select() on Windows, FD_SETSIZE in CPython's selectmodule.c.
_SELECTABLE = 512

# The polling interval, in seconds, where no event can end a wait: no descriptor is left for an epoll
# (EMFILE), or one select() is not enough. Heuristic: a fiftieth of a second more for a close, against
# some percent of a processor.
LOOK_EVERY = 0.02

_EVENTS_OF = {
    WAIT_READABLE: selectors.EVENT_READ,
    WAIT_WRITABLE: selectors.EVENT_WRITE,
    WAIT_EITHER: selectors.EVENT_READ | selectors.EVENT_WRITE,
}


def _no_watch() -> OSError:
    return OSError(errno.EOPNOTSUPP, "acknowledgements are not reported here")


class Portable:
    """A selector of the module `selectors`; acknowledgements are not reported."""

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
            time.sleep(min(seconds, LONGEST_WAIT))  # all connections are in a pause
            return []
        try:
            numbers = [key.fd for key, _ in self._selector.select(min(seconds, LONGEST_WAIT))]
        except OSError:
            # EINVAL: more descriptors than RLIMIT_NOFILE, which was lowered (poll(2)). ENOMEM.
            time.sleep(min(seconds, LOOK_EVERY))
            numbers = [key.fd for key in self._selector.get_map().values()]
        for number in numbers:
            self._selector.unregister(number)
        return [(number, True) for number in numbers]

    def fileno(self) -> int:
        fileno = getattr(self._selector, "fileno", None)  # epoll, kqueue and /dev/poll have it
        return -1 if fileno is None else fileno()

    def close(self) -> None:
        self._selector.close()


class ChunkedSelect:
    """select() in chunks within its limit, for Windows."""

    def __init__(self) -> None:
        self._armed: dict[int, int] = {}  # descriptor: events

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
                time.sleep(min(left, LOOK_EVERY) if chunks else left)

    def _look(self, chunk: list[int], timeout: float) -> list[int]:
        readers = [number for number in chunk if self._armed[number] & selectors.EVENT_READ]
        writers = [number for number in chunk if self._armed[number] & selectors.EVENT_WRITE]
        try:
            readable, writable, _ = select.select(readers, writers, [], timeout)
        except OSError:
            # EBADF, WSAENOTSOCK: another thread closed one of them, which is to be reported.
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
    """Return the best selector of this system.

    It uses one descriptor. If none is left (EMFILE, ENFILE), the result is a poll() selector, which
    uses none; a wait for acknowledgements then polls.
    """
    try:
        # Looked up late, because gevent and eventlet remove epoll.
        if sys.platform == "linux" and hasattr(select, "epoll"):
            return Epoll()
        if issubclass(selectors.DefaultSelector, selectors.SelectSelector):
            return ChunkedSelect()
        return Portable(selectors.DefaultSelector())
    except OSError:
        return Portable(getattr(selectors, "PollSelector", selectors.SelectSelector)())


if sys.platform == "linux":

    class Epoll:
        """epoll(7): idle descriptors cost nothing, and acknowledgements wake it.

        Linux wakes every sleeper on a socket when the FIN is acknowledged (FIN_WAIT1 to FIN_WAIT2,
        tcp_rcv_state_process()). A poll() does not return then, because a socket that is shut down
        for writing always counts as writable. An edge-triggered epoll reports the wake-up itself.
        Its first wait returns immediately, with the event of being added.
        """

        # One-shot, so that a descriptor with an event can be closed without another call. If it were
        # armed, a dup would keep it in the list, with further events.
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
                # A dup kept the connection in the list when an earlier descriptor with this number
                # was closed, and was then duplicated to this number again.
                self._modify(number, events)

        def forget(self, number: int) -> None:
            self._epoll.unregister(number)

        def wait(self, seconds: float, most: int = MOST_EVENTS) -> Events:
            events = self._epoll.poll(min(seconds, LONGEST_WAIT), most)
            return [(number, what != select.EPOLLOUT) for number, what in events]
