"""Many connections on their way out, and one wait for all of them."""

from __future__ import annotations

import errno
import heapq
import math
import socket
from time import monotonic

from ._connection import Connection
from ._delivery import count_unacked
from ._discard import discard_of
from ._release import release
from ._selector import new_selector
from ._teardown import (
    DRAIN,
    LET_GO,
    PAUSE,
    WAIT_ACK,
    WAIT_READABLE,
    Step,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from ._alike import Alike
    from ._connection import Said, Shut
    from ._linger import LingerPolicy
    from ._result import CloseResult
    from ._selector import Events
    from ._teardown import Teardown
    from ._terms import Terms


# How many are looked at in one turn because their time is up. Arbitrary: a few milliseconds of
# work, after which an event loop that we share gets its turn.
_ALARMS = 128

# Alarms that may be out of date before it is worth sorting them out. Arbitrary.
_FEW = 64


class Closing(Connection):
    """A connection in a `CloseLoop`.

    Attributes:
        ticket: Whatever whoever added it wants to find again at its end.
        began: The reading of the clock from which its deadlines count.
        alike: What it has in the place of a `machine`; None: it has one.
    """

    __slots__ = ("alarm", "alike", "armed", "began", "known", "number", "ticket")

    def __init__(
        self, sock: socket.socket, ticket: Any, began: float, alike: Alike | None = None
    ) -> None:
        self.sock = sock
        self.ticket = ticket
        self.began = began
        self.alike = alike
        self.number = sock.fileno()
        self.armed: Step | None = None  # the wait whose end the selector will tell
        self.known = False  # to the selector
        self.alarm = math.inf  # the earliest reading of the clock at which it is looked at

    def begin(self, terms: Terms, said: Said = None) -> None:
        """Give it a machine, to which nothing has happened yet."""
        self.alike = None
        super().__init__(self.sock, terms, self.began, one_of_many=True, said=said)

    def own_machine(self) -> Teardown:
        """Its machine, a new one if it is alike; from now on it is not."""
        alike = self.alike
        if alike is not None:
            self.begin(alike.terms)
            self.first_step(self.began, shut=True)
        return self.machine


class CloseLoop:
    """Closes connections; whoever owns it decides when to wait and for how long.

    Not safe for use from several threads at once.

    Args:
        ended: Called with each connection that has ended and its result; or with the exception
            that ended it, if it was none of the network's. Its socket is closed by then.
    """

    def __init__(self, ended: Callable[[Closing, CloseResult | Exception], object]) -> None:
        self._ended = ended
        self._selector = new_selector()
        self._waker = -1
        self._closings: dict[int, Closing] = {}
        self._unfinished: set[Closing] = set()  # read their fill, and have more to read
        self._alarms: list[tuple[float, int]] = []  # a heap, of (when, descriptor)
        self._alarm_of_alike = math.inf  # one for all of them

    def __len__(self) -> int:
        return len(self._closings)

    def __iter__(self) -> Iterator[Closing]:
        """All that are left, in the order in which they were added."""
        return iter(list(self._closings.values()))

    def fileno(self) -> int:
        """What becomes readable when `turn` has something to do before `wake_at`, or -1."""
        return self._selector.fileno()

    @property
    def wake_at(self) -> float:
        """The latest reading of the clock at which `turn` must be called."""
        if self._unfinished:
            return 0.0
        return min(self._alarms[0][0] if self._alarms else math.inf, self._alarm_of_alike)

    def add(
        self,
        sock: socket.socket,
        terms: Terms,
        now: float,
        ticket: Any = None,
        said: Said = None,
        shut: Shut = False,
    ) -> Closing:
        """Begin to close a stream socket that is open.

        Args:
            sock: As for `Connection`, as are the next two.
            terms: What the caller asked for.
            now: From when the deadlines count.
            ticket: As for `Closing`.
            said: As for `Connection`.
            shut: As for `Connection.first_step`.
        """
        closing = Closing(sock, ticket, now)
        closing.begin(terms, said)
        self._enter(closing)
        self._go_on(closing, closing.first_step(now, shut))
        return closing

    def add_shut(
        self,
        sock: socket.socket,
        alike: Alike,
        began: float,
        ticket: Any,
        error: OSError | None = None,
    ) -> None:
        """`add` for one that `alike` takes, and whose FIN is out. It is served in the next turn.

        `error`: What a first read failed by, if that was tried already.
        """
        closing = Closing(sock, ticket, began, alike)
        self._enter(closing)
        if error is None:
            self._unfinished.add(closing)
        else:
            closing.own_machine()
            self._go_on(closing, DRAIN, error)

    def add_alike(
        self, lot: Iterable[tuple[socket.socket, Any]], alike: Alike, now: float
    ) -> None:
        """`add` for sockets that `alike` takes, each with its ticket.

        If this raises, whoever has the sockets closes them: not all are in the loop.
        """
        # The same call for all of them, and then the next, here and in _woke_alike(): the way
        # through the kernel stays in the processor's caches, which saves a tenth of it all.
        begun: list[Closing] = []
        for sock, ticket in lot:
            closing = Closing(sock, ticket, now, alike)
            try:
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                # It fails again, and then a machine of its own is told.
                self.add(sock, alike.terms, now, ticket)
            else:
                begun.append(closing)
        self._alarm_of_alike = min(self._alarm_of_alike, now + alike.patience)
        for closing in begun:
            self._enter(closing)
            try:
                self._selector.arm(closing.number, WAIT_READABLE, known=False)
            except OSError:
                closing.own_machine()
                self._go_on(closing, WAIT_READABLE)  # which fails again
            else:
                closing.known, closing.armed = True, WAIT_READABLE

    def hurry(self, closing: Closing, on_timeout: LingerPolicy) -> None:
        """End a connection now, as if its time were up."""
        self._go_on(closing, closing.own_machine().time_is_up(monotonic(), on_timeout))

    def oldest(self) -> Closing:
        """The connection that was added first of all that are left."""
        return next(iter(self._closings.values()))

    def wake_for(self, number: int) -> None:
        """Let `turn` return when a descriptor of somebody else's is readable."""
        self._waker = number
        self._selector.arm(number, WAIT_READABLE, known=False)

    def turn(self, until: float) -> None:
        """Wait for the first event, or until `until`, and carry out what follows."""
        self.serve(self.wait(until))

    def wait(self, until: float) -> Events:
        """The first half of a turn, which touches no socket."""
        return self._selector.wait(max(0.0, min(until, self.wake_at) - monotonic()))

    def serve(self, events: Events) -> None:
        """The second half, which never waits."""
        now = monotonic()
        unfinished, self._unfinished = self._unfinished, set()
        closings = self._closings
        alike: list[tuple[Closing, Alike]] = []
        for closing in unfinished:
            if closings.get(closing.number) is closing:
                if closing.alike is not None:
                    alike.append((closing, closing.alike))
                else:
                    self._go_on(closing, DRAIN)
        for number, readable in events:
            woken = closings.get(number)
            if woken is not None:
                if woken.alike is not None:
                    alike.append((woken, woken.alike))
                    continue
                if woken.armed is not WAIT_ACK:
                    woken.armed = None
                self._go_on(woken, woken.machine.woke(now, readable=readable))
            elif number == self._waker:
                self._selector.arm(number, WAIT_READABLE, known=True)
        self._woke_alike(alike)
        if self._alarm_of_alike <= now:
            self._alarm_of_alike = math.inf
            for closing in closings.values():
                if closing.alike is not None:
                    closing.alarm = closing.began + closing.alike.patience
                    heapq.heappush(self._alarms, (closing.alarm, closing.number))
        for _ in range(_ALARMS):
            if not self._alarms or self._alarms[0][0] > now:
                break
            when, number = heapq.heappop(self._alarms)
            late = closings.get(number)
            if late is None or late.alarm != when:
                continue  # it has ended, and the number may be another's
            late.alarm = math.inf
            if late.own_machine().wake_at <= now:
                self._go_on(late, late.machine.woke(now))
            else:
                self._set_alarm(late)

    def remove(self, closing: Closing) -> None:
        """Close one at once, without lingering; nothing is told of its end."""
        self._forget(closing)
        closing.abandon()

    def close(self) -> None:
        """Close all that are left at once, without lingering; nothing is told of their ends."""
        for closing in self:
            self.remove(closing)
        self._selector.close()

    def disown(self) -> None:
        """In a forked child: give our copies of the descriptors back, and touch nothing else.

        The epoll behind the selector is the parent's, too: what is told to it counts there.
        """
        for closing in self:
            release(closing.sock)
        self._closings.clear()
        try:
            self._selector.close()
        except OSError:
            pass  # EBADF: a kqueue is not inherited (kqueue(2))

    def _enter(self, closing: Closing) -> None:
        stranger = self._closings.get(closing.number)
        if stranger is not None:
            # Its descriptor is ours now, so another thread must have closed it.
            gone = stranger.own_machine().failed(_closed_by_another(), monotonic())
            self._go_on(stranger, gone)
        self._closings[closing.number] = closing

    def _woke_alike(self, woken: list[tuple[Closing, Alike]]) -> None:
        """Something has come for each: nearly always the peer's FIN, and that is the end."""
        finished: list[tuple[Closing, Alike]] = []
        for closing, alike in woken:
            closing.armed = None
            sock = closing.sock
            try:
                count = discard_of(sock, tcp=True).read(sock, alike.allowance)
            except OSError as error:
                closing.own_machine()
                self._go_on(closing, DRAIN, error)
                continue
            if count == 0:
                finished.append((closing, alike))
            else:
                self._go_on(closing, closing.own_machine().received(count, monotonic()))
        ended: list[tuple[Closing, Alike]] = []
        for closing, alike in finished:
            if count_unacked(closing.sock, tcp=True) == 0:
                ended.append((closing, alike))
            else:
                self._go_on(closing, closing.own_machine().received(0, monotonic()))
        for closing, alike in ended:
            complaint = release(closing.sock)
            del self._closings[closing.number]
            self._ended(closing, alike.released(monotonic() - closing.began, complaint))

    def _go_on(self, closing: Closing, step: Step, error: OSError | None = None) -> None:
        """Carry out `step` and what follows from it, until there is something to wait for.

        `error`: What the step failed by, if it was tried already.
        """
        outcome: CloseResult | Exception
        try:
            if error is not None:
                step = closing.report_failure(step, error)
            while True:
                step = closing.carry_out(step)
                if step is LET_GO:
                    self._forget(closing)
                    outcome = closing.let_go()
                    break
                if step is DRAIN:
                    self._unfinished.add(closing)
                    return
                if step is not closing.armed and step is not PAUSE:
                    failed = self._arm(closing, step)
                    if failed is not None:
                        step = failed
                        continue
                self._set_alarm(closing)
                return
        except Exception as failure:  # noqa: BLE001 (whatever it is, others are not to blame)
            self.remove(closing)
            outcome = failure
        self._ended(closing, outcome)

    def _arm(self, closing: Closing, step: Step) -> Step | None:
        """Have the end of a wait told. If that is not to be had: what to do instead."""
        try:
            self._selector.arm(closing.number, step, closing.known)
        except NotImplementedError:
            return closing.machine.cannot_watch(monotonic())
        except OSError as error:
            # EBADF, ENOENT or EPERM, by what has its number now.
            gone = closing.sock.fileno() != closing.number
            return closing.machine.failed(_closed_by_another() if gone else error, monotonic())
        closing.known, closing.armed = True, step
        return None

    def _forget(self, closing: Closing) -> None:
        if self._closings.get(closing.number) is closing:
            del self._closings[closing.number]
        if closing.armed is not None:
            closing.armed = None
            try:
                self._selector.forget(closing.number)
            except OSError:
                pass  # EBADF, ENOENT: another thread closed it, and the kernel forgot it then

    def _set_alarm(self, closing: Closing) -> None:
        """See to it that it is looked at when its wait is over."""
        when = closing.machine.wake_at
        if when < closing.alarm:
            closing.alarm = when
            alarms = self._alarms
            heapq.heappush(alarms, (when, closing.number))
            if len(alarms) > 2 * len(self._closings) + _FEW:
                # Most are of connections that ended long before: a server would collect
                # them for as long as a timeout.
                self._alarms = [(c.alarm, c.number) for c in self._closings.values()]
                heapq.heapify(self._alarms)


def _closed_by_another() -> OSError:
    return OSError(errno.EBADF, "another thread closed the socket")
