"""A loop that closes many connections with one wait for all of them.

Theory of operation
-------------------
Each connection waits for an event on its descriptor, for a time, or for both. `_go_on` executes its
steps until a step is a wait. Then the selector is armed for the event, and the time is in a heap.

- `armed` is the wait for whose event the selector is armed. An event disarms the descriptor, except with
  WAIT_ACK. If a wait ended at its time, the next wait of the same kind needs no system call.
- `alarm` is the time of the connection's valid entry in the heap. A deadline that moves to a later time
  changes nothing: when the entry is due, the connection gets another. So input, which restarts
  `idle_timeout`, does not touch the heap. Entries of connections that have ended are skipped, and the
  heap is rebuilt when most entries are such.
- A connection whose peer sends without a pause yields after some reads, and continues in the next turn.

The number of a descriptor identifies a connection: the loop owns the descriptor, and forgets the number
before it releases the descriptor.
"""

from __future__ import annotations

import errno
import heapq
import math

from ._clock import monotonic
from ._connection import Connection
from ._selector import MOST_EVENTS, new_selector
from ._step import DRAIN, PAUSE, RELEASE, WAIT_ACK, WAIT_READABLE, Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from typing import Any

    from ._linger import LingerPolicy
    from ._options import Options
    from ._result import CloseResult
    from ._selector import Events

# How many deadlines are handled in one turn. Heuristic: a few milliseconds of work, after which a
# shared event loop gets its turn.
_ALARMS = 128

# How many obsolete alarms are kept before the heap is rebuilt. Heuristic.
_FEW = 64


class Pending(Connection):
    """A connection in a `CloseLoop`.

    Args:
        options: As for `Connection`, as are the others.
        now: The time from which its deadlines count.
        key: An object of the code that added the connection, for use at its end.
    """

    __slots__ = ("alarm", "armed", "key", "known", "number")

    def __init__(self, options: Options, now: float, key: Any = None, **more: Any) -> None:
        super().__init__(options, now, one_of_many=True, **more)
        self.key = key
        self.number = -1
        self.armed: Step | None = None  # the wait whose end the selector reports
        self.known = False  # whether the selector has it
        self.alarm = math.inf  # the time of its next entry in the heap


class CloseLoop:
    """Closes connections; its owner decides when to wait and for how long.

    Not thread-safe, except for `wait`.

    Args:
        ended: Called with each connection that has ended, and with its result or (after a bug or an
            interrupt) its exception. The socket is closed by then.
        clock: The clock of its owner's waits, and of the connections.
    """

    def __init__(
        self,
        ended: Callable[[Pending, CloseResult | BaseException], object],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._ended = ended
        self._clock = clock
        self._selector = new_selector()
        self._waker = -1
        self._pending: dict[int, Pending] = {}  # by descriptor, oldest first
        self._unfinished: set[Pending] = set()  # interrupted after many reads in a row
        self._alarms: list[tuple[float, int]] = []  # a heap, of (when, descriptor)

    def __len__(self) -> int:
        return len(self._pending)

    def __contains__(self, pending: Pending) -> bool:
        return self._pending.get(pending.number) is pending

    def __iter__(self) -> Iterator[Pending]:
        """Iterate over the remaining connections, oldest first."""
        return iter(list(self._pending.values()))

    def fileno(self) -> int:
        """Return a descriptor that is readable when `turn` has work before `wake_at`, or -1."""
        return self._selector.fileno()

    @property
    def wake_at(self) -> float:
        """The latest time at which `turn` must be called."""
        if self._unfinished:
            return 0.0
        return self._alarms[0][0] if self._alarms else math.inf

    def begin(self, pending: Pending, sock: socket.socket) -> None:
        """Begin to close a socket."""
        try:
            step = pending.begin(sock)
        except Exception as failure:  # noqa: BLE001 (any failure; the other connections continue)
            pending.abandon(sock)
            self._ended(pending, failure)
        else:
            self.add(pending, step)

    def add(self, pending: Pending, step: Step) -> None:
        """Add a close that has begun; `step` is its next step."""
        if step is not RELEASE and pending.sock.fileno() == -1:
            gone = OSError(errno.EBADF, "closed by another thread")
            step = pending.waited(PAUSE, gone)
        if step is RELEASE:
            self._end(pending)
            return
        pending.number = pending.sock.fileno()
        self._pending[pending.number] = pending
        self._go_on(pending, step)

    def expire(self, pending: Pending, on_timeout: LingerPolicy) -> None:
        """End a connection now, as at its deadline."""
        self._go_on(pending, pending.machine.time_is_up(self._clock(), on_timeout))

    def oldest(self) -> Pending:
        """Return the oldest of the remaining connections."""
        return next(iter(self._pending.values()))

    def wake_for(self, number: int) -> None:
        """Make `wait` return when a descriptor of the owner is readable."""
        self._waker = number
        self._selector.arm(number, WAIT_READABLE, known=False)

    def turn(self, until: float) -> None:
        """Wait for the first event, or until `until`, and handle the events."""
        self.serve(self.wait(until))

    def wait(self, until: float, most: int = MOST_EVENTS) -> Events:
        """The first half of a turn, which touches no socket."""
        return self._selector.wait(max(0.0, min(until, self.wake_at) - self._clock()), most)

    def serve(self, events: Events, most: float = _ALARMS) -> None:
        """The second half, which never waits.

        Args:
            events: What `wait` returned.
            most: The largest number of deadlines handled; others are left for the next turn.
        """
        for pending in list(self._unfinished):
            self._unfinished.discard(pending)
            if self._pending.get(pending.number) is pending:
                self._go_on(pending, DRAIN)
        for number, readable in events:
            woken = self._pending.get(number)
            if woken is not None:
                if woken.armed is not WAIT_ACK:
                    woken.armed = None
                self._go_on(woken, woken.waited(WAIT_READABLE, readable=readable))
            elif number == self._waker:
                self._selector.arm(number, WAIT_READABLE, known=True)
        now = self._clock()
        while self._alarms and self._alarms[0][0] <= now and most > 0:
            most -= 1
            when, number = heapq.heappop(self._alarms)
            late = self._pending.get(number)
            if late is None or late.alarm != when:
                continue  # it has ended, and another connection may have the number
            late.alarm = math.inf
            if late.wake_at <= now:
                self._go_on(late, late.waited(PAUSE))
            else:
                self._set_alarm(late)

    def recover(self) -> None:
        """Arm every wait again: an interrupted `turn` has lost events and deadlines."""
        self._alarms.clear()
        for pending in self:
            pending.alarm = math.inf
            if pending.armed is None:
                self._unfinished.add(pending)
            elif failed := self._arm(pending, pending.armed):
                self._go_on(pending, failed)
            else:
                self._set_alarm(pending)

    def remove(self, pending: Pending) -> None:
        """Close one connection immediately, without lingering and without a report."""
        self._forget(pending)
        pending.abandon()

    def close(self) -> None:
        """Close all connections immediately, without lingering and without reports."""
        for pending in self:
            self.remove(pending)
        self._selector.close()

    def disown(self) -> None:
        """In a forked child: release our copies of the descriptors, and change nothing else.

        The parent shares the selector's epoll: changes to it would affect the parent.
        """
        for pending in self:
            pending.disown()
        self._pending.clear()
        try:
            self._selector.close()
        except OSError:
            pass  # EBADF: a kqueue is not inherited (kqueue(2))

    def _go_on(self, pending: Pending, step: Step) -> None:
        """Execute `step` and the following steps, until a step is a wait."""
        try:
            while True:
                step = pending.carry_out(step)
                if step is RELEASE:
                    break
                if step is DRAIN:
                    self._unfinished.add(pending)
                    return
                if step is not pending.armed and step is not PAUSE:
                    failed = self._arm(pending, step)
                    if failed is not None:
                        step = failed
                        continue
                self._set_alarm(pending)
                return
            self._forget(pending)
            self._end(pending)
        except BaseException as failure:
            self.remove(pending)
            self._ended(pending, failure)
            if not isinstance(failure, Exception):
                raise  # a signal's: the owner calls `recover`, or closes all

    def _end(self, pending: Pending) -> None:
        self._ended(pending, pending.release())

    def _arm(self, pending: Pending, step: Step) -> Step | None:
        """Arm the selector for a wait. If that fails, return the next step."""
        try:
            self._selector.arm(pending.number, step, pending.known)
        except OSError as error:
            return pending.waited(step, error)
        pending.known, pending.armed = True, step
        return None

    def _forget(self, pending: Pending) -> None:
        self._pending.pop(pending.number, None)
        if pending.armed is not None:
            pending.armed = None
            try:
                self._selector.forget(pending.number)
            except OSError:
                pass  # EBADF, ENOENT: another thread closed the descriptor

    def _set_alarm(self, pending: Pending) -> None:
        """Add the end of its wait to the heap."""
        when = pending.wake_at
        if when < pending.alarm:
            pending.alarm = when
            alarms = self._alarms
            heapq.heappush(alarms, (when, pending.number))
            if len(alarms) > 2 * len(self._pending) + _FEW:
                # Most belong to connections that have ended: a server would accumulate them for the
                # length of a timeout.
                self._alarms = [(one.alarm, one.number) for one in self._pending.values()]
                heapq.heapify(self._alarms)
