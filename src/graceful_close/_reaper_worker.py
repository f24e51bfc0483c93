"""The thread of a Reaper, its queue, and what happens to both at a fork and at the exit.

Theory of operation
-------------------
A `Reaper` has a worker, and a worker has a queue, a thread and a `CloseLoop`. This module takes no
lock that a submitter could hold, because a submitter may be a signal handler that interrupts another
submitter, or the child of a fork. All data is exchanged by single operations on a dict, a set or a
deque.

`submit` runs in the caller's thread. It adds the connection to `Worker.pending`, takes the
descriptor, executes the steps that do not wait (our FIN is sent then), and appends the connection to
`Worker._queue`. The code that pops a connection from the queue owns it: the thread, or a submitter
that finds more than `max_sockets` pending. A connection leaves `pending` when it has ended. So the
length of `pending` is the number of pending connections, and in a forked child `pending` lists every
descriptor that must be released.

The thread owns the loop. One turn moves the queue into the loop, handles all due events and
deadlines, and closes the oldest connections if there are too many. Then the thread reports the
results (futures, `on_close`) and sleeps. It sleeps in the loop's selector, where a byte on a pair of
sockets wakes it. While connections keep arriving, it sleeps for some milliseconds instead, so that
one wake-up handles many of them.

CPython passes the interpreter to a thread that requests it after 5 ms, and a close releases the
interpreter four times. So a busy submitter could starve the thread. A submitter therefore sleeps
briefly, repeatedly, while a turn takes long.

The thread decides with one setdefault() whether it is the only one: two submitters may start one
thread each, and the second thread ends immediately. If no thread can be started, the submitter
closes the connections in the queue itself.
"""

from __future__ import annotations

import atexit
import math
import mmap
import os
import socket
import sys
import threading
import time
import weakref
from collections import deque

from ._blocking import drive
from ._clock import monotonic
from ._loop import CloseLoop, Pending
from ._result import CloseOutcome, CloseResult
from ._selector import LONGEST_WAIT, LOOK_EVERY
from ._sockets import peer_of
from ._step import DRAIN, RELEASE, WAIT_READABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    from ._future import CloseFuture
    from ._options import ReaperSettings
    from ._step import Step

# The sleep between turns while connections keep arriving. Heuristic: one wake-up then handles many of
# them, and the descriptors are released soon enough. The sleep is shorter if `max_sockets` could be
# submitted in this time, at 10 µs each; under 4 ms there is no sleep.
_REST = 0.01
_SUBMITTED_IN = 1e-5
_WORTH_IT = 0.004

# A turn that takes longer than _LONG_TURN is waiting for the interpreter, and submitters release the
# interpreter by sleeping: _GIVE_WAY seconds each time, at most _GIVE_WAY_TIMES times. Heuristic: the
# work of a turn takes a few milliseconds, and no submitter loses more than a twentieth of a second.
_LONG_TURN = 0.01
_GIVE_WAY = 0.001
_GIVE_WAY_TIMES = 50

# The memory that a thread needs to start, in bytes. Heuristic: the interpreter maps a stack for its
# frames, and arenas of 1 MiB (Include/internal/pycore_obmalloc.h). The mapping is never touched.
_ROOM_FOR_A_THREAD = 1 << 22

# How much longer than its connections the thread may run, for the caller's callbacks. In seconds.
# Heuristic.
_GRACE = 1.0

# For `_take`: a function of the base class, so that one call into C pops and appends.
_POP_FIRST = deque[tuple[Pending, "Step"]].popleft


class Worker:
    """The implementation of a Reaper; see the theory of operation above.

    Attributes:
        options: The options of each connection.
        pending: The pending connections, by the id of their object.
        tally: The number of connections by outcome, and of those closed to make room.
        closed: Whether new connections are rejected.
    """

    def __init__(self, settings: ReaperSettings) -> None:
        self.options: Final = settings.options
        self.on_close: Final = settings.on_close
        self._max_sockets: Final = settings.max_sockets
        self._on_overflow: Final = settings.on_overflow
        rest = min(_REST / _SUBMITTED_IN, settings.max_sockets) * _SUBMITTED_IN
        self._rest: Final = rest if rest >= _WORTH_IT else 0.0
        self._reset()
        _WORKERS[id(self)] = self

    def _reset(self) -> None:
        """Set the initial state."""
        self.pending: dict[int, Pending] = {}
        self.tally = _Tally((*CloseOutcome, "overflowed"))
        self.closed = False
        self._queue: deque[tuple[Pending, Step]] = deque()
        self._ended: deque[tuple[Pending, CloseResult | BaseException]] = deque()
        self._threads: dict[str, threading.Thread] = {}  # at most one, "the thread"
        self._last_thread: threading.Thread | None = None
        self._loop: CloseLoop | None = None
        self._pair: list[socket.socket] = []  # a byte to the second wakes the thread
        self._waker: socket.socket | None = None  # the first, once it does
        self._busy: set[int] = set()  # the threads that are opening or closing descriptors
        self._forking = False
        self._asleep = False
        self._short_of_descriptors = False
        self._turn_began = math.inf
        self._end_at = math.inf  # finite: the deadline of all connections
        self._all_closed = threading.Lock()  # free when the thread's last connection is closed
        self._all_closed.acquire()

    # --- in submitters ---

    def submit(
        self,
        sock: socket.socket,
        future: CloseFuture | None,
        peer: object,
        *,
        unflushed: bool | None = None,
    ) -> None:
        """`Reaper.submit`; the future is optional."""
        waits = sock.gettimeout() != 0
        if peer is None and self.on_close is not None:
            peer = peer_of(sock)
        pending = Pending(self.options, monotonic(), future, peer=peer)
        pending.unflushed = unflushed
        key = id(pending)
        self.pending[key] = pending
        if self.closed:  # read after the line above, because close() waits for `pending`
            del self.pending[key]
            raise RuntimeError(f"the Reaper is closed, and cannot take {sock!r}")
        try:
            self._enqueue(pending, pending.begin(sock), waits=waits)
        except BaseException as error:
            self._drop([pending], sock)
            if not isinstance(error, Exception):
                raise
            if future is not None:
                future.settle(error)

    def go_on_with(self, pending: Pending, step: Step) -> None:
        """Take a close that has begun; `step` is its next step."""
        self.pending[id(pending)] = pending
        try:
            self._enqueue(pending, step, waits=False)
        except BaseException:
            self._drop([pending])
            raise

    def _enqueue(self, pending: Pending, step: Step, *, waits: bool) -> None:
        # A first read is for the thread, when the peer has had time to answer.
        self._queue.append((pending, step if step is DRAIN else pending.carry_out(step)))
        self._ensure_served(waits)

    def _drop(self, dropped: list[Pending], sock: socket.socket | None = None) -> None:
        """Close immediately, after a bug or an interrupt."""
        for pending in dropped:
            self.pending.pop(id(pending), None)  # first, because abandon() may raise again
            pending.abandon(sock)

    def _ensure_served(self, waits: bool) -> None:
        if not self._threads and not self._start():
            self._close_here(waits)
            return
        if self._asleep:
            self.wake()
        if len(self.pending) > self._max_sockets:
            self._make_room()
        for _ in range(_GIVE_WAY_TIMES):
            if monotonic() - self._turn_began < _LONG_TURN:
                break
            time.sleep(_GIVE_WAY)

    def _start(self) -> bool:
        """Start the thread, unless another submitter does. False: it cannot be started."""
        if not _exiting:
            _finish_at_the_end_of_workers()
            try:
                # If a new thread has no memory for its first steps, Thread.start() waits for it
                # without end (python/cpython#140746).
                mmap.mmap(-1, _ROOM_FOR_A_THREAD).close()
                # A daemon: see `Reaper`.
                threading.Thread(
                    target=self._run, name="graceful-close reaper", daemon=True
                ).start()
            except (RuntimeError, OSError, MemoryError):
                pass  # no thread available: a limit, the exit, a subinterpreter without daemons
            else:
                return True
        return bool(self._threads)

    def _take(self, into: list[Pending]) -> Step | None:
        """Move the first connection of the queue to `into`; return its next step, None if empty.

        If a signal's exception interrupts this, the connection is in one of the two.
        """
        taken: list[tuple[Pending, Step]] = []
        try:
            taken.extend(map(_POP_FIRST, (self._queue,)))
        except IndexError:
            return None  # another thread was faster
        finally:
            into.extend(pending for pending, _ in taken)
        return taken[0][1]

    def _close_here(self, waits: bool) -> None:
        """Close the connections in the queue in this thread; wait for them if `waits`."""
        taken: list[Pending] = []
        try:
            while (step := self._take(taken)) is not None:
                pending = taken[-1]
                try:
                    if not waits and step is not RELEASE:
                        step = pending.machine.time_is_up(monotonic(), self.options.on_timeout)
                    drive(pending, step)
                    outcome: CloseResult | Exception = pending.release()
                except Exception as error:  # noqa: BLE001 (it goes to the future)
                    pending.abandon()
                    outcome = error
                self._note(pending, outcome)
                taken.clear()
        except BaseException:
            self._drop(taken)
            raise
        self._report()

    def _make_room(self) -> None:
        """Close queued connections early if more than `max_sockets` are pending."""
        taken: list[Pending] = []
        try:
            self._enter()
            while len(self._queue) > self._max_sockets:
                step = self._take(taken)
                if step is None:
                    return  # the thread was faster
                pending = taken[-1]
                if len(self.pending) <= self._max_sockets:
                    self._queue.appendleft((pending, step))  # another submitter was faster
                    return
                self.tally.add("overflowed")
                if step is not RELEASE:
                    step = pending.machine.time_is_up(monotonic(), self._on_overflow)
                drive(pending, step)
                self._note(pending, pending.release())
                taken.clear()
        except BaseException:
            self._drop(taken)
            raise
        finally:
            self._leave()
        if self._asleep:
            self.wake()  # to report them

    def _enter(self) -> None:
        """Mark this thread as opening and closing descriptors until `_leave`; forks wait.

        Otherwise a child could inherit a descriptor that is being closed and that no object has.
        """
        me = threading.get_ident()
        self._busy.add(me)
        while self._forking:
            self._busy.discard(me)
            time.sleep(_GIVE_WAY)
            self._busy.add(me)

    def _leave(self) -> None:
        self._busy.discard(threading.get_ident())

    def wake(self) -> None:
        self._asleep = False
        waker = self._waker
        if waker is not None:
            try:
                waker.send(b"\0")
            except OSError:
                pass  # EWOULDBLOCK: enough bytes are pending. EBADF: closed

    def release_descriptors(self) -> None:
        """End the older half of the connections soon, because the process needs descriptors."""
        if self.pending:
            self._short_of_descriptors = True
            self.wake()

    def end(self, seconds: float) -> None:
        """Finish all connections within `seconds`."""
        self._end_at = min(self._end_at, monotonic() + seconds)
        self.wake()

    def join(self) -> None:
        """Wait for the end of the thread, unless the calling thread is the thread itself."""
        give_up_at = monotonic() + _GRACE
        while self.pending and not self._threads and monotonic() < give_up_at:
            time.sleep(_GIVE_WAY)  # another submitter is starting the thread
        thread = self._threads.get("the thread", self._last_thread)
        if thread is threading.current_thread():
            return
        if thread is None or not thread.is_alive():
            self._drop(list(self.pending.values()))  # a submitter was interrupted
            return
        while self.pending and (left := self._end_at - monotonic()) > 0:
            if self._all_closed.acquire(timeout=min(left, LONGEST_WAIT)):
                self._all_closed.release()
                break
        thread.join(_GRACE)
        if thread.is_alive():
            # A callback blocks the thread. Close its connections; it notices if the callback returns.
            for pending in list(self.pending.values()):
                pending.release_at_once(self.options.on_timeout)

    # --- in the thread ---

    def _run(self) -> None:
        me = threading.current_thread()
        if self._threads.setdefault("the thread", me) is not me:
            return
        self._last_thread = me
        self._enter()
        loop: CloseLoop | None = None
        pair: list[socket.socket] = []
        try:
            loop = self._loop = CloseLoop(self._note)
            self._pair = pair
            try:
                pair.extend(socket.socketpair())
                for sock in pair:
                    sock.setblocking(False)
                loop.wake_for(pair[1].fileno())
                self._waker = pair[0]
            except OSError:
                pass  # EMFILE, ENFILE, ENOMEM: the thread polls its queue
            self._serve(loop, pair)
        except BaseException as bug:
            self._fail(bug)
            raise
        finally:
            self._turn_began = math.inf
            self._enter()
            if loop is not None:
                loop.close()
            for sock in pair:
                sock.close()
            self._leave()
            self._report()

    def _serve(self, loop: CloseLoop, pair: list[socket.socket]) -> None:
        events: list[tuple[int, bool]] = []
        while True:
            self._enter()
            self._turn_began = monotonic()
            busy = bool(self._queue)
            self._turn(loop, events)
            self._turn_began = math.inf
            self._leave()
            self._report()
            if loop is not self._loop:
                return  # in a child that a callback has forked
            if self._is_over() and not self._goes_on():
                return
            most = len(loop) + 1  # each connection may have an event, and the waker
            if busy and self._rest and loop.wake_at > monotonic() + self._rest:
                # More submissions are likely soon. One wake-up and one wait for each would cost half
                # as much as the close itself.
                time.sleep(self._rest)  # by the module, because gevent may have patched it
                events = loop.wait(0, most)
                continue
            self._asleep = True
            until = self._end_at if pair else min(self._end_at, monotonic() + LOOK_EVERY)
            events = loop.wait(0 if self._queue else until, most)
            self._asleep = False
            if pair:
                try:
                    pair[1].recv(4096)
                except OSError:
                    pass  # EWOULDBLOCK: woken by a connection

    def _turn(self, loop: CloseLoop, events: list[tuple[int, bool]]) -> None:
        """Close the connections that can be closed now."""
        # First, so that all that were submitted before `release_descriptors` are in the loop.
        short = self._short_of_descriptors
        if short:
            self._short_of_descriptors = False
        for _ in range(len(self._queue)):
            try:
                pending, step = self._queue.popleft()
            except IndexError:
                break  # a submitter made room
            # The peer's FIN has often arrived by now, and a poll costs less than a wait.
            loop.add(pending, DRAIN if step is WAIT_READABLE else step)
        loop.serve(events, math.inf)
        too_many = len(loop) - self._max_sockets
        if short:
            too_many = max(too_many, (len(loop) + 1) // 2)
        for _ in range(too_many):
            self.tally.add("overflowed")
            loop.expire(loop.oldest(), self._on_overflow)
        if monotonic() >= self._end_at:
            for pending in loop:
                loop.expire(pending, self.options.on_timeout)

    def _is_over(self) -> bool:
        return self._end_at < math.inf and not self.pending and not self._queue

    def _goes_on(self) -> bool:
        """Whether the thread continues, because of a submission at the last moment."""
        me = self._threads.pop("the thread")
        # Read after the line above: a submitter adds to `pending` before it looks for a thread.
        if self.pending and self._threads.setdefault("the thread", me) is me:
            return True
        self._signal_all_closed()
        return False

    def _signal_all_closed(self) -> None:
        try:
            self._all_closed.release()
        except RuntimeError:
            pass  # already released

    def _note(self, pending: Pending, outcome: CloseResult | BaseException) -> None:
        """Record the end of a connection."""
        if isinstance(outcome, CloseResult):
            self.tally.add(outcome.outcome)
        if pending.key is not None or self.on_close is not None:
            self._ended.append((pending, outcome))
        self.pending.pop(id(pending), None)

    def _report(self) -> None:
        """Settle the futures and call `on_close`."""
        self.tally.add_up()
        while self._ended:
            try:
                pending, outcome = self._ended.popleft()
            except IndexError:
                return  # another thread reports, too
            future: CloseFuture | None = pending.key
            if future is not None:
                _call(future.settle, outcome)
            if self.on_close is not None and isinstance(outcome, CloseResult):
                _call(self.on_close, outcome)

    def _fail(self, bug: BaseException) -> None:
        """Close all connections after a bug, and set the exception on their futures."""
        self._threads.clear()
        self._queue.clear()
        for pending in list(self.pending.values()):
            pending.abandon()
            self._ended.append((pending, bug))
            self.pending.pop(id(pending), None)
        self._signal_all_closed()

    # --- around a fork ---

    def disown(self) -> None:
        """In a forked child: release our copies of the descriptors, and change nothing else."""
        for pending in list(self.pending.values()):
            pending.disown()
        if self._loop is not None:
            self._loop.disown()
        for sock in self._pair:
            sock.close()
        self._reset()

    def pause(self) -> None:
        """Before a fork: wait until no descriptor is being closed."""
        self._forking = True
        give_up_at = monotonic() + _GRACE
        me = threading.get_ident()
        while any(one != me for one in list(self._busy)) and monotonic() < give_up_at:
            time.sleep(_GIVE_WAY)

    def resume(self) -> None:
        """After a fork, in the parent."""
        self._forking = False


class _Tally:
    """Counters that threads and interrupting signal handlers can increment.

    `number += 1` reads, adds and writes, and loses the increments of other threads in between. So
    `add` appends to a deque, which is one step, and one thread at a time adds up.

    Args:
        names: The names of the counters.
    """

    def __init__(self, names: tuple[CloseOutcome | str, ...]) -> None:
        self._sums = dict.fromkeys(names, 0)
        self._new: deque[CloseOutcome | str] = deque()
        self._adding: dict[str, object] = {}  # empty, or one entry while a thread adds up

    def add(self, name: CloseOutcome | str) -> None:
        self._new.append(name)

    def add_up(self) -> None:
        me = object()  # not the thread: a signal handler that interrupts it is another adder
        try:
            # Checked again afterwards: a rejected adder has appended before, and relies on us.
            while self._new and self._adding.setdefault("by", me) is me:
                while self._new:
                    self._sums[self._new.popleft()] += 1
                del self._adding["by"]
        finally:
            if self._adding.get("by") is me:  # interrupted
                del self._adding["by"]

    def read(self) -> dict[CloseOutcome | str, int]:
        self.add_up()
        for _ in range(_GIVE_WAY_TIMES):  # bounded: the adder may be the code that we interrupt
            if not self._adding:
                break
            time.sleep(_GIVE_WAY)
        return dict(self._sums)


def _call(callback: Callable[[Any], object], outcome: object) -> None:
    """Call the caller's function; its SystemExit must not end the Reaper's thread."""
    try:
        callback(outcome)
    except BaseException as error:
        if _is_a_signals(error):
            raise
        try:
            threading.excepthook(
                threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread()))
            )
        except BaseException as unreported:
            # The hook is the program's own, or stderr is closed or a broken pipe.
            if _is_a_signals(unreported):
                raise


def _is_a_signals(error: BaseException) -> bool:
    """Whether a signal handler may have raised: in the main thread, which reports without a thread."""
    main = threading.current_thread() is threading.main_thread()
    return main and not isinstance(error, Exception)


# --- the interpreter's exit, a worker's end, a fork ------------------------------------------------

_WORKERS: weakref.WeakValueDictionary[int, Worker] = weakref.WeakValueDictionary()
_exiting = False


def _all_workers() -> list[Worker]:
    # Not values(), because another thread may change the dictionary.
    return [worker for ref in _WORKERS.valuerefs() if (worker := ref()) is not None]


def end_all() -> None:
    """At interpreter exit: finish all Reapers together, each as long as a peer may be silent."""
    workers = _all_workers()
    for worker in workers:
        worker.end(worker.options.longest_silence)
    for worker in workers:
        worker.join()


def _exit() -> None:
    global _exiting  # noqa: PLW0603
    _exiting = True
    end_all()


# Handlers run last in, first out: a handler that is registered later than this can still submit.
atexit.register(_exit)


_registered_with: set[object] = set()  # the registries of finalizers, which a fork empties


def _finish_at_the_end_of_workers() -> None:
    """Register a finalizer: a multiprocessing worker ends with os._exit(), without atexit.

    The finalizers of the main process run early at its exit, and other exit handlers after them.
    """
    util = sys.modules.get("multiprocessing.util")
    if util is None or util in _registered_with:
        return
    if sys.modules["multiprocessing.process"].parent_process() is not None:
        _registered_with.add(util)
        util.Finalize(None, _exit, exitpriority=0)


def _pause() -> None:
    for worker in _all_workers():
        worker.pause()


def _resume() -> None:
    for worker in _all_workers():
        worker.resume()


def _reset_in_child() -> None:
    _registered_with.clear()
    for worker in _all_workers():
        worker.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_pause, after_in_parent=_resume, after_in_child=_reset_in_child)
