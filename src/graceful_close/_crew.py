"""The thread behind a Reaper, what it has in hand, and who helps it."""

from __future__ import annotations

import atexit
import errno
import math
import os
import socket
import sys
import threading
import time
import weakref
from collections import deque
from itertools import chain, groupby, islice, repeat
from operator import attrgetter
from time import monotonic

from ._alike import Alike
from ._handed import Handed, look_at
from ._linger import LingerPolicy
from ._loop import CloseLoop
from ._release import let_go, release
from ._result import CloseOutcome, CloseResult
from ._teardown import TIMED_OUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import ClassVar, Final, TypeVar

    from ._future import CloseFuture
    from ._loop import Closing
    from ._selector import Events
    from ._terms import Terms

    T = TypeVar("T")

    # Who is to be told, if anybody, and what.
    Ended = tuple[CloseFuture | None, CloseResult | BaseException]

# How long the thread lets what comes in gather while a server is busy. Arbitrary: long enough that
# what a look at them costs by itself is shared by many, and nobody misses a descriptor for so long.
# But no longer than a process needs to hand over as many as may be in flight, at its very best;
# and where that is next to nothing, the thread takes each at once.
_GATHERING = 0.01
_HANDED_OVER_IN = 1e-5
_WORTH_IT = 0.004

# When the first has waited half of that, a worker lends a hand: it is there before the thread. It
# takes those that have waited half as long, so many at most: some tenths of a millisecond of work.
_RIPE = 1 / 2
_LOT = 32

# How much longer than its connections the thread may take, for callbacks of the caller's; and
# how long to wait for a lock that is held for some milliseconds at most.
_GRACE = 1.0


class Orders:
    """What a Reaper was asked for, what has become of it, and the locks around that.

    Both locks are reentrant, because a signal handler or a finalizer may come in between two
    lines, and submit. Only who forks waits for one while holding the other.

    Attributes:
        terms: For each connection.
        ordinary: The way that nearly all go.
        over: The way of those that are over when they come.
        max_sockets: How many may be in flight.
        on_overflow: How the oldest parts when there are more.
        taken: How many connections it has taken over.
        ended: How many of them have ended, or failed.
        counts: How many have ended in which way.
        overflowed: How many had to make room.
        lock: Held for the few lines that hand something from one thread to another.
        work: Held by the thread while it touches sockets, and by whoever must not meet it then.
    """

    def __init__(self, terms: Terms, max_sockets: int, on_overflow: LingerPolicy) -> None:
        self.terms: Final = terms
        self.ordinary: Final = Alike(terms, looks_at_once=True)
        self.over: Final = Alike(terms, looks_at_once=True, over=_not_connected())
        self.max_sockets: Final = max_sockets
        self.on_overflow: Final = on_overflow
        self.begin_anew()
        _ORDERS[id(self)] = self

    def begin_anew(self) -> None:
        """Nothing has happened yet, and nobody holds a lock."""
        self.taken = self.ended = 0
        self.counts = dict.fromkeys(CloseOutcome, 0)
        self.overflowed = 0
        self.lock = threading.RLock()
        self.work = threading.RLock()


def _not_connected() -> OSError:
    return OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))


_ORDERS: weakref.WeakValueDictionary[int, Orders] = weakref.WeakValueDictionary()


def _all_orders() -> list[Orders]:
    # Not values(), which another thread may disturb.
    return [orders for ref in _ORDERS.valuerefs() if (orders := ref()) is not None]


class Crew:
    """A thread that closes what it is handed, until it is told to end.

    Args:
        orders: What to do.

    Attributes:
        patience: The seconds that each connection has.
        running: All that have a thread.
        exiting: The interpreter is; no thread can be had any more.
        over: It takes no more: not begun yet, or told to end and has, or failed by a bug.
    """

    running: ClassVar[set[Crew]] = set()
    exiting: ClassVar[bool] = False

    def __init__(self, orders: Orders) -> None:
        self.over = True
        self.patience: Final = orders.terms.timeout
        self._orders = orders
        self._end_at = math.inf  # finite: when the last connection is to be let go
        self._intake: deque[Handed] = deque()
        self._in_hand: deque[Handed] = deque()  # to be looked at for the first time
        self._awaited: deque[Handed] = deque()  # between that and the loop
        self._all_handed: Final = (self._intake, self._in_hand, self._awaited)
        self._ended: deque[Ended] = deque()
        self._hurried = 0  # to make room
        self._all_closed = threading.Event()
        self._loop = CloseLoop(self._note)
        self._pair: tuple[socket.socket, ...] = ()  # a byte for the first wakes the thread
        self._asleep = False  # it waits, or is about to, and has to be woken for the intake
        self._making_room = False
        gathering = min(_GATHERING, orders.max_sockets * _HANDED_OVER_IN)
        self._gathering: Final = gathering if gathering >= _WORTH_IT else 0.0
        self._lending = False  # a worker is at it
        self._lent = False  # one was, since the thread last took something
        # A daemon: see `Reaper`.
        self._thread = threading.Thread(
            target=self._run, name="graceful-close reaper", daemon=True
        )

    # --- from other threads; the first three by whoever holds `lock` -------------------------

    def begin(self) -> None:
        """Start the thread, which does nothing before `lock` is free.

        Raises:
            OSError: No descriptor is left for it (EMFILE, ENFILE).
            RuntimeError: No thread is to be had, at the exit of the interpreter for example.
        """
        if Crew.exiting:
            raise RuntimeError("the interpreter is exiting")
        try:
            self._pair = socket.socketpair()
            for sock in self._pair:
                sock.setblocking(False)
            self._loop.wake_for(self._pair[1].fileno())
            Crew.running.add(self)
            self._thread.start()
        except BaseException:
            self._put_away()  # if the thread did start, it will see that this is `over`
            raise
        self.over = False

    def hand(self, handed: Handed) -> bool:
        """Take a connection over; if too many wait for the thread, let go of the first.

        Whether to `lend_a_hand` now.
        """
        intake = self._intake
        intake.append(handed)
        if self._asleep:
            self._wake()
            self._asleep = False
        if len(intake) > self._orders.max_sockets:
            self._make_room()
        if self._awaited or self._making_room or not self._gathering:
            return False  # peers take their time, or this is a signal handler, or nobody rests
        # A signal handler that came in between may have lent a hand already.
        return bool(intake) and handed.since - intake[0].since > self._gathering * _RIPE

    def _make_room(self) -> None:
        if self._making_room:
            return  # this is a signal handler that came in between, and will be counted there
        self._making_room = True
        try:
            while len(self._intake) > self._orders.max_sockets:
                first = self._intake[0]
                complaint = first.let_go(self._orders.on_overflow)
                waited = monotonic() - first.since
                first.outcome = CloseResult(TIMED_OUT, waited, 0, None, complaint)
                self._note_end_of(self._intake)  # told where all callbacks run
                self._orders.overflowed += 1
        finally:
            self._making_room = False

    def lend_a_hand(self, now: float) -> None:
        """Be the thread for a moment: look at those that had waited for a while at `now`.

        For a worker that has handed over one more, and holds no lock. Worker and thread would take
        the interpreter from each other at each system call, and that costs more than the calls.
        """
        if self._lending:
            return  # a signal handler that came in between, or one worker too many
        orders = self._orders
        held: list[bool] = []
        try:
            # In one call, because a signal's exception between two would leave it locked.
            held.extend(map(orders.work.acquire, (False,)))
            if held == [True]:
                self._lending = self._lent = True
                with orders.lock:
                    before = now - self._gathering * _RIPE / 2
                    lot = islice(self._intake, _LOT)
                    ripe = sum(handed.since <= before for handed in lot)
                    _move(self._intake, self._in_hand, ripe)
                self._look()
        except Exception:  # noqa: BLE001, S110 (a bug: the thread meets it, too, and reports it)
            pass
        finally:
            if held == [True]:
                self._lending = False
                orders.work.release()

    def take_back(self, handed: Handed) -> None:
        """Forget a connection whose handing over was interrupted."""
        try:
            self._intake.remove(handed)
        except ValueError:
            pass  # it did not come so far

    def end(self, patience: float) -> None:
        """Finish, and let go after `patience` seconds of what is unfinished then."""
        with self._orders.lock:
            self._end_at = min(self._end_at, monotonic() + patience)
            self._wake()

    def join(self) -> None:
        """Wait for the end that was ordered, unless it is the thread itself that asks."""
        thread = self._thread
        if thread is threading.current_thread() or not thread.is_alive():
            return
        if self._has_connections():
            self._all_closed.wait(max(0.0, self._end_at - monotonic()))
        thread.join(_GRACE)
        if thread.is_alive():
            self._close_for_it()

    def disown(self) -> None:
        """In a forked child: give our copies of the descriptors back, and touch nothing else."""
        self.over = True
        for some in self._all_handed:
            for handed in some:
                release(handed.held[0])
            some.clear()
        self._loop.disown()
        self._put_away()

    def _wake(self) -> None:
        try:
            self._pair[0].send(b"\0")
        except OSError:
            pass  # EWOULDBLOCK: it has enough to wake for. EBADF: it is gone.

    def _has_connections(self) -> bool:
        with self._orders.lock:
            return any(self._all_handed) or bool(self._loop)

    def _close_for_it(self) -> None:
        """A callback keeps the thread. Close what it has; it finds that out if it comes back."""
        work, parting = self._orders.work, self._orders.terms.on_timeout
        if work.acquire(timeout=_GRACE):
            try:
                for closing in self._loop:
                    let_go(closing.sock, parting)
                for handed in chain(*self._all_handed):
                    handed.let_go(parting)
            finally:
                work.release()

    # --- in the thread -----------------------------------------------------------------------

    def _run(self) -> None:
        with self._orders.lock:
            abandoned = self.over  # whoever began it was interrupted
        try:
            if not abandoned:
                self._serve()
        except BaseException as bug:
            self._fail(bug)
            raise
        finally:
            with self._orders.work:
                self._put_away()

    def _serve(self) -> None:
        orders, loop = self._orders, self._loop
        events: Events = []
        while True:
            with orders.work:
                with orders.lock:
                    busy = self._take_from_intake()
                self._look()
                self._go_on(events)
            with orders.lock:
                ended = self._write_down()
            if self.over:
                self._all_closed.set()
            _tell(ended)
            if self.over:
                return
            if busy:
                # Whoever hands over one connection hands over the next soon. To be woken for
                # each, and to wait for each, would cost several times what closing it does.
                time.sleep(self._gathering)  # the module's, if gevent has patched it since
                events = loop.wait(0)
            else:
                events = self._sleep()

    def _sleep(self) -> Events:
        """Wait until something is handed over, or happens, or time is up."""
        with self._orders.lock:
            self._asleep = not (self._ended or any(self._all_handed))
            until = self._end_at if self._asleep else 0
        events = self._loop.wait(until)
        self._asleep = False
        try:
            self._pair[1].recv(4096)
        except BlockingIOError:
            pass  # it was not by us that it was woken
        return events

    def _take_from_intake(self) -> bool:
        """Take what was handed over; whether more is likely to come soon."""
        intake, lent = self._intake, self._lent
        self._lent = False
        busy = bool(intake or lent) and self._gathering > 0
        # Workers that lend a hand will see to what is young, or are going to rest.
        if not lent or not intake or monotonic() - intake[0].since > self._gathering:
            _move(intake, self._in_hand, len(intake))
        return busy

    def _look(self) -> None:
        """Be done with those in hand that have ended already."""
        lot = list(self._in_hand)
        look_at(lot)
        with self._orders.lock:
            for outcome, run in groupby(lot, _outcome):
                count = len(list(run))
                if outcome is None:
                    _move(self._in_hand, self._awaited, count)
                else:
                    self._note_end_of(self._in_hand, count)

    def _note_end_of(self, handed: deque[Handed], count: int = 1) -> None:
        """Note that the first ones have ended. In one call: see _move()."""
        self._ended.extend(map(_future_and_outcome, map(_pop_first, repeat(handed, count))))

    def _go_on(self, events: Events) -> None:
        """Close what can be closed now."""
        orders, loop, awaited = self._orders, self._loop, self._awaited
        while awaited:
            handed = awaited[0]
            sock, since, future = handed.held[0], handed.since, handed.future
            if handed.way is orders.ordinary:
                loop.add_shut(sock, orders.ordinary, since, future, handed.error)
            else:
                # An error that was found meanwhile is what has ended the connection.
                shut = handed.error or handed.shut
                loop.add(sock, orders.terms, since, future, handed.said, shut)
            awaited.popleft()
        loop.serve(events)
        for _ in range(len(loop) - orders.max_sockets):
            self._hurried += 1
            loop.hurry(loop.oldest(), orders.on_overflow)
        if monotonic() >= self._end_at:
            for closing in loop:
                loop.hurry(closing, orders.terms.on_timeout)

    def _note(self, closing: Closing, outcome: CloseResult | Exception) -> None:
        self._ended.append((closing.ticket, outcome))

    def _write_down(self) -> list[tuple[CloseFuture, CloseResult | BaseException]]:
        """Count what has ended, and return whom to tell; is it the end?"""
        orders = self._orders
        ended = list(self._ended)
        self._ended.clear()
        orders.ended += len(ended)
        for outcome, times in _counted(outcome for _, outcome in ended):
            if isinstance(outcome, CloseResult):
                orders.counts[outcome.outcome] += times
        orders.overflowed += self._hurried
        self._hurried = 0
        self.over = self._end_at < math.inf and not self._has_connections()
        return [
            (future, outcome)
            for future, outcome in ended
            if future is not None and not future.settle(outcome)
        ]

    def _fail(self, bug: BaseException) -> None:
        """Strand nobody: close all, and let their futures have the exception."""
        orders = self._orders
        with orders.lock:
            self.over = True
        with orders.work:
            stranded: dict[int, CloseFuture | None] = {}  # once each: it may be in two places
            for closing in self._loop:
                stranded[id(closing.sock)] = closing.ticket
            for some in self._all_handed:
                for handed in some:
                    stranded[id(handed.held[0])] = handed.future
                    handed.let_go(LingerPolicy.BACKGROUND)
                some.clear()
            self._loop.close()
        with orders.lock:
            self._ended.extend((future, bug) for future in stranded.values())
            ended = self._write_down()
            self.over = True
        self._all_closed.set()
        _tell(ended)

    def _put_away(self) -> None:
        Crew.running.discard(self)
        self._loop.close()
        for sock in self._pair:
            sock.close()


_pop_first = deque[Handed].popleft
_outcome = attrgetter("outcome")
_future_and_outcome = attrgetter("future", "outcome")


def _move(source: deque[Handed], target: deque[Handed], count: int = 1) -> None:
    """Move the first ones, in one call: a signal's exception between two would lose one."""
    target.extend(map(_pop_first, repeat(source, count)))


def _counted(outcomes: Iterable[T]) -> Iterator[tuple[T, int]]:
    """Each, and how often it comes in a row: whoever is not to be told has the same as others."""
    for _, run in groupby(outcomes, id):
        same = list(run)
        yield same[0], len(same)


def _tell(ended: list[tuple[CloseFuture, CloseResult | BaseException]]) -> None:
    """Let the futures know, whose callbacks belong to the caller."""
    for future, outcome in ended:
        try:
            future.tell(outcome)
        except BaseException:  # noqa: BLE001 (no callback's SystemExit may end the others)
            threading.excepthook(
                threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread()))
            )


def _end_all() -> None:
    """At the exit of the interpreter: all of them together, each within its time."""
    Crew.exiting = True
    crews = list(Crew.running)
    for crew in crews:
        crew.end(crew.patience)
    for crew in crews:
        crew.join()


# Handlers run last in, first out: whoever registers one later than this may still submit in it.
atexit.register(_end_all)


# --- around a fork, in whose child only the thread that forked goes on -----------------------------


def _be_at_rest() -> None:
    """Have no thread in the middle of anything: the child would hold what nobody knows of."""
    for orders in _all_orders():
        orders.work.acquire(timeout=_GRACE)
        orders.lock.acquire(timeout=_GRACE)


def _go_on_in_parent() -> None:
    for orders in _all_orders():
        for lock in (orders.lock, orders.work):
            try:
                lock.release()
            except RuntimeError:
                pass  # it was not to be had, or is new


def _begin_anew_in_child() -> None:
    for crew in list(Crew.running):
        crew.disown()
    for orders in _all_orders():
        orders.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_be_at_rest,
        after_in_parent=_go_on_in_parent,
        after_in_child=_begin_anew_in_child,
    )
