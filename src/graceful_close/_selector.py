"""Waiting on many sockets at once, each for what its machine waits for."""

from __future__ import annotations

import select
import selectors
import sys
import time
from time import monotonic

from ._teardown import WAIT_ACK, WAIT_EITHER, WAIT_READABLE, WAIT_WRITABLE, Step

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
                NotImplementedError: WAIT_ACK, and nothing here tells of acknowledgements.
                OSError: The system has no room for one more (ENOMEM, ENOSPC).
            """
            ...

        def forget(self, number: int) -> None:
            """Disarm, as must be done before an armed descriptor is closed."""
            ...

        def wait(self, seconds: float) -> Events:
            """Sleep, at most so long, until something happens to one that is armed."""
            ...

        def fileno(self) -> int:
            """What can be waited on in the place of all; -1: there is no such thing."""
            ...

        def close(self) -> None:
            """Give back what descriptor it has of its own."""
            ...


# How many events are taken at a time. Arbitrary: enough to spread the cost of the call, and
# a few milliseconds of work at most, after which an event loop that we share gets its turn.
_EVENTS = 128

# poll() counts milliseconds in an int.
_LONGEST = 1_000_000.0

# What one select() takes on Windows, FD_SETSIZE in CPython's selectmodule.c.
_SELECTABLE = 512

# Where one select() cannot take all, look at each lot so often. Arbitrary: a fiftieth of a second
# more for a close, against some percent of a processor.
_LOOK_EVERY = 0.02


_EVENTS_OF = {
    WAIT_READABLE: selectors.EVENT_READ,
    WAIT_WRITABLE: selectors.EVENT_WRITE,
    WAIT_EITHER: selectors.EVENT_READ | selectors.EVENT_WRITE,
}


class Portable:
    """What `selectors` has to offer; acknowledgements wake nobody."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector

    def arm(self, number: int, step: Step, known: bool) -> None:
        if step is WAIT_ACK:
            raise NotImplementedError
        self.forget(number)
        self._selector.register(number, _EVENTS_OF[step])

    def forget(self, number: int) -> None:
        if number in self._selector.get_map():
            self._selector.unregister(number)

    def wait(self, seconds: float) -> Events:
        if not self._selector.get_map():
            time.sleep(min(seconds, _LONGEST))  # all pause
            return []
        numbers = [key.fd for key, _ in self._selector.select(min(seconds, _LONGEST))]
        for number in numbers:
            self._selector.unregister(number)
        return [(number, True) for number in numbers]

    def fileno(self) -> int:
        fileno = getattr(self._selector, "fileno", None)  # epoll, kqueue and /dev/poll have it
        return -1 if fileno is None else fileno()

    def close(self) -> None:
        self._selector.close()


class Lots:
    """select(), where there is nothing better (Windows), in lots that it can take."""

    def __init__(self) -> None:
        self._armed: dict[int, int] = {}  # for which events

    def arm(self, number: int, step: Step, known: bool) -> None:
        if step is WAIT_ACK:
            raise NotImplementedError
        self._armed[number] = _EVENTS_OF[step]

    def forget(self, number: int) -> None:
        self._armed.pop(number, None)

    def wait(self, seconds: float) -> Events:
        wake_at = monotonic() + min(seconds, _LONGEST)
        armed = list(self._armed)
        lots = [armed[i : i + _SELECTABLE] for i in range(0, len(armed), _SELECTABLE)]
        while True:
            left = max(0.0, wake_at - monotonic())
            patience = left if len(lots) == 1 else 0.0
            ready = [number for lot in lots for number in self._look(lot, patience)]
            for number in ready:
                del self._armed[number]
            if ready or left == 0:
                return [(number, True) for number in ready]
            if len(lots) != 1:
                time.sleep(min(left, _LOOK_EVERY) if lots else left)

    def _look(self, lot: list[int], patience: float) -> list[int]:
        readers = [number for number in lot if self._armed[number] & selectors.EVENT_READ]
        writers = [number for number in lot if self._armed[number] & selectors.EVENT_WRITE]
        try:
            readable, writable, _ = select.select(readers, writers, [], patience)
        except OSError:
            # EBADF, WSAENOTSOCK: another thread closed one of them, who is to hear of it.
            if len(lot) == 1:
                return lot
            half = len(lot) // 2
            return self._look(lot[:half], 0) + self._look(lot[half:], 0)
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
            return Lots()
        return Portable(selectors.DefaultSelector())
    except OSError:
        return Portable(getattr(selectors, "PollSelector", selectors.SelectSelector)())


if sys.platform == "linux":

    class Epoll:
        """epoll(7): those to whom nothing happens cost nothing, and acknowledgements wake it."""

        # Once, so that a descriptor which had its event may be closed with no further call:
        # were it armed, a dup would keep it in the list, and its events coming.
        _READABLE = select.EPOLLIN | select.EPOLLONESHOT
        _WRITABLE = select.EPOLLOUT | select.EPOLLONESHOT
        _EITHER = select.EPOLLIN | select.EPOLLOUT | select.EPOLLONESHOT
        _ANYTHING = select.EPOLLIN | select.EPOLLOUT | select.EPOLLET  # see AckWatch

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
                # number, one that had had its event, was closed; and was dup'd to it again.
                self._modify(number, events)

        def forget(self, number: int) -> None:
            self._epoll.unregister(number)

        def wait(self, seconds: float) -> Events:
            events = self._epoll.poll(min(seconds, _LONGEST), _EVENTS)
            return [(number, what != select.EPOLLOUT) for number, what in events]
