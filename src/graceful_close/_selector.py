"""Waiting on many sockets at once, each for what its machine waits for."""

from __future__ import annotations

import select
import selectors
import sys

from ._teardown import WAIT_ACK, WAIT_WRITABLE, Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Selector(Protocol):
        """Descriptors, each armed for the end of one wait at a time."""

        def arm(self, number: int, step: Step, known: bool) -> None:
            """Tell once when `step`, a wait, ends by an event; WAIT_ACK: tell every time.

            Args:
                number: The descriptor.
                step: WAIT_READABLE, WAIT_WRITABLE or WAIT_ACK.
                known: It was armed before.

            Raises:
                NotImplementedError: WAIT_ACK, and nothing here tells of acknowledgements.
                OSError: The system has no room for one more (ENOMEM, ENOSPC).
            """
            ...

        def forget(self, number: int) -> None:
            """Disarm, as must be done before an armed descriptor is closed."""
            ...

        def wait(self, seconds: float) -> list[tuple[int, bool]]:
            """Sleep, at most so long; to whom something happened, and whether it is input."""
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


class Portable:
    """What `selectors` has to offer; acknowledgements wake nobody."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector

    def arm(self, number: int, step: Step, known: bool) -> None:
        if step is WAIT_ACK:
            raise NotImplementedError
        event = selectors.EVENT_WRITE if step is WAIT_WRITABLE else selectors.EVENT_READ
        self.forget(number)
        self._selector.register(number, event)

    def forget(self, number: int) -> None:
        if number in self._selector.get_map():
            self._selector.unregister(number)

    def wait(self, seconds: float) -> list[tuple[int, bool]]:
        numbers = [key.fd for key, _ in self._selector.select(min(seconds, _LONGEST))]
        for number in numbers:
            self._selector.unregister(number)
        return [(number, True) for number in numbers]

    def fileno(self) -> int:
        fileno = getattr(self._selector, "fileno", None)  # epoll, kqueue and /dev/poll have it
        return -1 if fileno is None else fileno()

    def close(self) -> None:
        self._selector.close()


def new_selector() -> Selector:
    """The best of this system.

    It takes one descriptor. Where none is left (EMFILE, ENFILE), poll() does, which takes none:
    a wait for acknowledgements is then one that looks again after pauses.
    """
    try:
        # Looked for late, because gevent and eventlet take epoll away.
        if sys.platform == "linux" and hasattr(select, "epoll"):
            return Epoll()
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
            (self._modify if known else self._register)(number, events)

        def forget(self, number: int) -> None:
            self._epoll.unregister(number)

        def wait(self, seconds: float) -> list[tuple[int, bool]]:
            events = self._epoll.poll(min(seconds, _LONGEST), _EVENTS)
            return [(number, what != select.EPOLLOUT) for number, what in events]
