"""A place to leave connections that are to be closed, so that a worker can go on.

Theory of operation
-------------------
A `Reaper` is a queue, a thread and a `CloseLoop`. Nothing here takes a lock that a submitter could
hold, because a submitter may be a signal handler that came in the middle of another submitter, or
the child of a fork: everything is handed over by single operations on a dict or a deque.

`submit` runs in the caller's thread. It enters the connection in `_Worker.pending`, takes the
descriptor, carries out what need not wait (our FIN is out then), and appends it to
`_Worker.queue`. Whoever pops a connection from the queue owns it: the thread does so, and a
submitter who finds more than `max_sockets` pending. A connection leaves `pending` when it has
ended, so its length is what is in flight, and in a forked child it lists every descriptor that
must be released.

The thread owns the loop. One turn of it moves the queue into the loop, serves every event and every
deadline that is due, however many, and lets the oldest go if there are too many. Then it reports
what has ended (futures, `on_close`), and sleeps: in the loop's selector, where a byte on a pair of
sockets wakes it, or, while connections keep coming, for some milliseconds, so that one wake-up
serves many of them.

CPython gives the interpreter to a thread that asks for it after 5 ms, and a close gives it up four
times. A busy submitter could starve the thread so. Whoever submits while a turn takes long
therefore sleeps for moments until it is done: that is all that the thread needs.

Who may be the thread is decided by one setdefault() in the thread itself: two submitters may start
one each, and the second ends at once. If none can be started, the submitter closes what is in the
queue itself.
"""

from __future__ import annotations

import atexit
import math
import os
import socket
import sys
import threading
import time
import weakref
from collections import deque
from time import monotonic

from . import _platform
from ._blocking import close_on, drive, warn_unflushed
from ._linger import LingerPolicy
from ._loop import CloseLoop, Pending
from ._options import Options, require_count, require_policy, require_seconds
from ._result import CloseOutcome, CloseResult
from ._selector import LONGEST_WAIT
from ._sockets import has_open_writer, require_stream
from ._teardown import DRAIN, LET_GO, WAIT_READABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from types import TracebackType
    from typing import Any, Final, Self

    from ._future import CloseFuture
    from ._option_types import ReaperOptions as ReaperOptions  # noqa: PLC0414 (others import it from here)
    from ._options import OnTimeout, Until
    from ._teardown import Step

# Where a process may have as many descriptors as it likes (Windows). Arbitrary: what a server
# that is asked to hold ten thousand connections may leave behind.
_MAX_SOCKETS = 10_000

# While connections keep coming, the thread sleeps so long between turns. Arbitrary: one wake-up
# serves many of them then, and nobody misses a descriptor for so long. Where a process could hand
# over `max_sockets` in that time, at 10 us each, it is shorter; under 4 ms it is not worth a sleep.
_REST = 0.01
_SUBMITTED_IN = 1e-5
_WORTH_IT = 0.004

# A turn that takes longer than this waits for the interpreter, and submitters give it to the thread
# by sleeping: for so long at a time, so often at the most. Arbitrary: a turn's own work is a
# few milliseconds, and no submitter loses more than a twentieth of a second.
_LONG_TURN = 0.01
_GIVE_WAY = 0.001
_GIVE_WAY_TIMES = 50

# Where no descriptor is left for a pair of sockets (EMFILE), the thread looks at its queue so often.
_LOOK_EVERY = 0.02

# How much longer than its connections the thread may take, for callbacks of the caller's.
_GRACE = 1.0


class Reaper:
    """Closes connections gracefully in a thread of its own, so that a worker can go on.

    A worker that waits in `graceful_close` for a slow client serves nobody meanwhile. It can
    leave the socket here instead:

        reaper = Reaper()
        ...
        sock.sendall(reply)
        reaper.submit(sock)

    One thread serves all connections, from the first `submit` until `close`. Any thread may submit,
    and so may a signal handler. A Reaper that is forgotten finishes by itself. After a fork the
    child's Reaper is empty, and starts a thread of its own; the connections in flight and their
    futures remain the parent's, and the child holds no copies of them.

    The thread is a daemon, because the interpreter waits for other threads before anything
    could tell this one to end. At exit, and at the end of a worker of multiprocessing, the Reaper
    is closed as `close()` does it: connections in flight are given what is left of their time, and
    no more. Where no thread can be had (a limit of processes, a subinterpreter, the exit itself),
    `submit` closes the connection before it returns, and waits for the peer as `graceful_close`
    does; a non-blocking socket is closed without waiting.

    Args:
        timeout: Seconds for each connection, from its submission.
        idle_timeout, drain_limit, until, on_timeout, peer_first: For each; see `graceful_close`.
        max_sockets: How many connections may be in flight, 1 or more. None: half of the
            descriptors that the process may have (RLIMIT_NOFILE), or 10,000 without a limit.
        on_overflow: When there are more, the one that has waited longest is let go, as if its
            time were up, with this in the place of `on_timeout`.
        on_close: Called with the result of every connection, in the Reaper's thread; `peer` of the
            result is the peer's address, where it was still known. What it raises is reported
            by `threading.excepthook`.

    Raises:
        TypeError, ValueError: An argument is not what it says there.
    """

    def __init__(
        self,
        *,
        timeout: float = 30.0,
        idle_timeout: float | None = 5.0,
        drain_limit: int | None = None,
        until: Until = CloseOutcome.PEER_CLOSED,
        on_timeout: OnTimeout = LingerPolicy.BACKGROUND,
        peer_first: float = 0,
        max_sockets: int | None = None,
        on_overflow: OnTimeout = LingerPolicy.ABORT,
        on_close: Callable[[CloseResult], object] | None = None,
    ) -> None:
        # Not with this module, because it loads logging; and not in submit(), because a signal
        # handler, or the child of a fork, may find another thread in the middle of an import.
        from ._future import CloseFuture

        options = Options(timeout, idle_timeout, drain_limit, until, on_timeout, peer_first)
        require_policy("on_overflow", on_overflow)
        if on_close is not None and not callable(on_close):
            raise TypeError(f"on_close must be callable, not {on_close!r}")
        if max_sockets is None:
            limit = _platform.descriptor_limit()
            max_sockets = _MAX_SOCKETS if limit is None else max(1, limit // 2)
        require_count("max_sockets", max_sockets, "sockets", least=1)
        self._new_future: type[CloseFuture] = CloseFuture
        self._worker = _Worker(options, max_sockets, on_overflow, on_close)

    def submit(self, sock: socket.socket) -> Future[CloseResult]:
        """Take a connection over and close it gracefully; does not wait for the network.

        When this returns, our FIN is out and `sock` is closed: its descriptor is the Reaper's.
        If it raises, `sock` was not touched. (The one exception is a TLS socket that found no
        room for its close_notify: our FIN follows that, and the object has its descriptor until
        then, whatever is done with it meanwhile.)

        While the thread is behind, because submitters keep the interpreter busy, a call takes some
        milliseconds longer, and the thread catches up.

        Args:
            sock: A stream socket; see `graceful_close`. gevent's and eventlet's are taken, too.

        Returns:
            The future of the result. It cannot be cancelled. Its callbacks run in the Reaper's
            thread, and everybody waits while they do. If the close fails by a bug, the connection
            is closed at once, and the future has the exception. A KeyboardInterrupt closes it
            at once and is raised.

        Raises:
            TypeError: `sock` is not a stream socket.
            RuntimeError: The Reaper is closed.
        """
        require_stream(sock)
        if has_open_writer(sock):
            warn_unflushed(stacklevel=2)
        future = self._new_future()
        self._worker.submit(sock, future, None)
        return future

    def stats(self) -> dict[CloseOutcome, int]:
        """How many connections have ended in which way; every outcome is there."""
        counted = self._worker.tally.read()
        return {outcome: counted[outcome] for outcome in CloseOutcome}

    @property
    def overflowed(self) -> int:
        """How many connections were let go to make room for others."""
        return self._worker.tally.read()["overflowed"]

    def __len__(self) -> int:
        """How many connections are in flight."""
        return len(self._worker.pending)

    def __bool__(self) -> bool:
        return True  # or an idle one would be taken for none

    def close(self, timeout: float | None = None) -> None:
        """Take no more connections, finish those in flight, and end the thread.

        When this returns, all connections are closed, and nearly all callbacks have run: one
        that blocks is waited for no longer than a second after the last connection's time.
        Calling it again is harmless; a callback that calls it does not wait. A KeyboardInterrupt
        closes all connections at once and is raised.

        Args:
            timeout: Seconds after which what is unfinished is let go as `on_timeout` says.
                None: each connection has the time that it was given.

        Raises:
            TypeError, ValueError: `timeout` is not a number of seconds, 0 or more.
        """
        worker = self._worker
        seconds = (
            worker.options.timeout if timeout is None else require_seconds("timeout", timeout)
        )
        worker.closed = True
        try:
            worker.end(seconds)
            worker.join()
        except BaseException:
            worker.end(0)
            worker.join()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it; at once if the block was left by something foreign: an interrupt, say.

        sys.exit() is how a server ends in good order, and a Reaper at the interpreter's exit
        finishes too.
        """
        foreign = error is not None and not isinstance(error, (Exception, SystemExit))
        self.close(0 if foreign else None)

    def __del__(self) -> None:
        worker = getattr(self, "_worker", None)  # not there if the arguments were refused
        # At the very end of the interpreter modules lose their names, in any order; all that is in
        # flight was finished before.
        if worker is not None and monotonic is not None:
            worker.end(worker.options.timeout)


class _Worker:
    """What is behind a Reaper; see the theory of operation above.

    Attributes:
        options: For each connection.
        pending: The connections in flight, by the id of their object.
        tally: How many have ended in which way, and how many were let go to make room.
        closed: It takes no more.
    """

    def __init__(
        self,
        options: Options,
        max_sockets: int,
        on_overflow: OnTimeout,
        on_close: Callable[[CloseResult], object] | None,
    ) -> None:
        self.options: Final = options
        self.on_close: Final = on_close
        self._max_sockets: Final = max_sockets
        self._on_overflow: Final = on_overflow
        rest = min(_REST, max_sockets * _SUBMITTED_IN)
        self._rest: Final = rest if rest >= _WORTH_IT else 0.0
        self._begin_anew()
        _WORKERS[id(self)] = self

    def _begin_anew(self) -> None:
        """Nothing has happened yet."""
        self.pending: dict[int, Pending] = {}
        self.tally = _Tally((*CloseOutcome, "overflowed"))
        self.closed = False
        self._queue: deque[tuple[Pending, Step]] = deque()
        self._ended: deque[tuple[Pending, CloseResult | BaseException]] = deque()
        self._threads: dict[str, threading.Thread] = {}  # at most one, "the thread"
        self._last_thread: threading.Thread | None = None
        self._loop: CloseLoop | None = None
        self._pair: list[socket.socket] = []  # a byte for the second wakes the thread
        self._waker: socket.socket | None = None  # the first, once it does
        self._busy: dict[int, bool] = {}  # the threads that open and close just now
        self._forking = False
        self._asleep = False
        self._turn_began = math.inf
        self._end_at = math.inf  # finite: when the last connection is to be let go
        self._all_closed = threading.Lock()  # free when the thread's last connection is closed
        self._all_closed.acquire()

    # --- in submitters ---

    def submit(self, sock: socket.socket, future: CloseFuture | None, peer: object) -> None:
        """`Reaper.submit`, with a future only for whoever wants one."""
        waits = sock.gettimeout() != 0
        if peer is None and self.on_close is not None:
            peer = _peer_of(sock)
        pending = Pending(self.options, monotonic(), future, peer=peer)
        key = id(pending)
        self.pending[key] = pending
        if self.closed:  # looked at after the line above: whoever closes waits for `pending`
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
        self.pending[id(pending)] = pending
        try:
            self._enqueue(pending, step, waits=False)
        except BaseException:
            self._drop([pending])
            raise

    def _enqueue(self, pending: Pending, step: Step, *, waits: bool) -> None:
        # A first read is for the thread, when the peer has had time to answer.
        self._queue.append((pending, step if step is DRAIN else pending.carry_out(step)))
        self._have_it_served(waits)

    def _drop(self, dropped: list[Pending], sock: socket.socket | None = None) -> None:
        """Close at once: something foreign happened."""
        for pending in dropped:
            pending.abandon(sock)
            self.pending.pop(id(pending), None)

    def _have_it_served(self, waits: bool) -> None:
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
        """Start the thread, unless another submitter does. False: none can be had."""
        if not _exiting:
            _finish_at_the_end_of_workers()
            try:
                # A daemon: see `Reaper`.
                threading.Thread(
                    target=self._run, name="graceful-close reaper", daemon=True
                ).start()
            except RuntimeError:
                pass  # no thread to be had: a limit, the exit, a subinterpreter without daemons
            else:
                return True
        return bool(self._threads)

    def _take(self, into: list[Pending]) -> Step | None:
        """Move the first of the queue to `into`; its next step, or None: the queue is empty.

        Whatever a signal's exception interrupts, it is in one of the two.
        """
        taken: list[tuple[Pending, Step]] = []
        try:
            taken.extend(map(_POP_FIRST, (self._queue,)))
        except IndexError:
            return None  # the other one was faster
        finally:
            into.extend(pending for pending, _ in taken)
        return taken[0][1] if taken else None

    def _close_here(self, waits: bool) -> None:
        """Close what is in the queue in this thread, and wait for it unless that must not be."""
        taken: list[Pending] = []
        try:
            while (step := self._take(taken)) is not None:
                pending = taken[-1]
                try:
                    if not waits and step is not LET_GO:
                        step = pending.machine.time_is_up(monotonic(), self.options.on_timeout)
                    drive(pending, step)
                    outcome: CloseResult | Exception = pending.let_go()
                except Exception as error:  # noqa: BLE001 (for whoever asks the future)
                    pending.abandon()
                    outcome = error
                self._note(pending, outcome)
                taken.clear()
        except BaseException:
            self._drop(taken)
            raise
        self._report()

    def _make_room(self) -> None:
        """More are pending than may be: let go of those for which the thread had no time."""
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
                if step is not LET_GO:
                    step = pending.machine.time_is_up(monotonic(), self._on_overflow)
                drive(pending, step)
                self._note(pending, pending.let_go())
                taken.clear()
        except BaseException:
            self._drop(taken)
            raise
        finally:
            self._leave()
        if self._asleep:
            self.wake()  # to report them

    def _enter(self) -> None:
        """From here until `_leave` this thread opens and closes: nobody forks meanwhile.

        A child would hold a descriptor that is just being closed, and that no object has any more.
        """
        me = threading.get_ident()
        self._busy[me] = True
        while self._forking:
            del self._busy[me]
            time.sleep(_GIVE_WAY)
            self._busy[me] = True

    def _leave(self) -> None:
        self._busy.pop(threading.get_ident(), None)

    def wake(self) -> None:
        self._asleep = False
        waker = self._waker
        if waker is not None:
            try:
                waker.send(b"\0")
            except OSError:
                pass  # EWOULDBLOCK: it has enough to wake for. EBADF: it is gone

    def end(self, seconds: float) -> None:
        """Finish, and let go after `seconds` of what is unfinished then."""
        self._end_at = min(self._end_at, monotonic() + seconds)
        self.wake()

    def join(self) -> None:
        """Wait for the end that was ordered, unless it is the thread itself that asks."""
        give_up_at = monotonic() + _GRACE
        while self.pending and not self._threads and monotonic() < give_up_at:
            time.sleep(_GIVE_WAY)  # another submitter is starting it
        thread = self._threads.get("the thread", self._last_thread)
        if thread is threading.current_thread():
            return
        if thread is None or not thread.is_alive():
            self._drop(list(self.pending.values()))  # somebody was interrupted
            return
        while self.pending and (left := self._end_at - monotonic()) > 0:
            if self._all_closed.acquire(timeout=min(left, LONGEST_WAIT)):
                self._all_closed.release()
                break
        thread.join(_GRACE)
        if thread.is_alive():
            # A callback keeps it. Close what it has; it finds that out if it comes back.
            for pending in list(self.pending.values()):
                pending.let_go_at_once(self.options.on_timeout)

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
                pass  # EMFILE, ENFILE, ENOMEM: it looks at its queue from time to time
            self._serve(loop, pair)
        except BaseException as bug:
            self._fail(bug)
            raise
        finally:
            # Another thread may have begun by now, and have its own.
            self._turn_began = math.inf
            self._enter()
            if self._pair is pair:
                self._waker = None
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
            if self._is_over() and not self._goes_on():
                return
            most = len(loop) + 1
            if busy and self._rest and loop.wake_at > monotonic() + self._rest:
                # Whoever hands over one connection hands over the next soon. To be woken for
                # each, and to wait for each, costs half as much again as closing it does.
                time.sleep(self._rest)  # the module's, if gevent has patched it since
                events = loop.wait(0, most)
                continue
            self._asleep = True
            until = self._end_at if pair else min(self._end_at, monotonic() + _LOOK_EVERY)
            events = loop.wait(0 if self._queue else until, most)
            self._asleep = False
            if pair:
                try:
                    pair[1].recv(4096)
                except OSError:
                    pass  # EWOULDBLOCK: it was not by us that it was woken

    def _turn(self, loop: CloseLoop, events: list[tuple[int, bool]]) -> None:
        """Close what can be closed now."""
        for _ in range(len(self._queue)):
            try:
                pending, step = self._queue.popleft()
            except IndexError:
                break  # a submitter made room
            # The peer's FIN is often there by now, and to look costs less than to wait.
            loop.add(pending, DRAIN if step is WAIT_READABLE else step)
        loop.serve(events, math.inf)
        for _ in range(len(loop) - self._max_sockets):
            self.tally.add("overflowed")
            loop.hurry(loop.oldest(), self._on_overflow)
        if monotonic() >= self._end_at:
            for pending in loop:
                loop.hurry(pending, self.options.on_timeout)

    def _is_over(self) -> bool:
        return self._end_at < math.inf and not self.pending and not self._queue

    def _goes_on(self) -> bool:
        """Whether the thread serves a submitter who came at the last moment."""
        me = self._threads.pop("the thread")
        # Looked at after the line above: a submitter enters `pending` before it looks for a thread.
        if self.pending and self._threads.setdefault("the thread", me) is me:
            return True
        self._tell_all_closed()
        return False

    def _tell_all_closed(self) -> None:
        try:
            self._all_closed.release()
        except RuntimeError:
            pass  # it was told before

    def _note(self, pending: Pending, outcome: CloseResult | Exception) -> None:
        """A connection has ended."""
        if isinstance(outcome, CloseResult):
            self.tally.add(outcome.outcome)
        if pending.key is not None or self.on_close is not None:
            self._ended.append((pending, outcome))
        self.pending.pop(id(pending), None)

    def _report(self) -> None:
        """Tell whoever wants to know; what they do then belongs to the caller."""
        self.tally.add_up()
        while self._ended:
            try:
                pending, outcome = self._ended.popleft()
            except IndexError:
                return  # another thread closes, too
            future: CloseFuture | None = pending.key
            if future is not None:
                _call(future.settle, outcome)
            if self.on_close is not None and isinstance(outcome, CloseResult):
                _call(self.on_close, outcome)

    def _fail(self, bug: BaseException) -> None:
        """Strand nobody: close all, and let their futures have the exception."""
        self._threads.clear()
        self._queue.clear()
        for pending in list(self.pending.values()):
            pending.abandon()
            self._ended.append((pending, bug))
            self.pending.pop(id(pending), None)
        self._tell_all_closed()

    # --- around a fork ---

    def disown(self) -> None:
        """In a forked child: release our copies of the descriptors, and touch nothing else."""
        for pending in list(self.pending.values()):
            pending.disown()
        if self._loop is not None:
            self._loop.disown()
        for sock in self._pair:
            sock.close()
        self._begin_anew()

    def pause(self) -> None:
        """Before a fork: let no descriptor be in the middle of its close."""
        self._forking = True
        give_up_at = monotonic() + _GRACE
        me = threading.get_ident()
        while any(one != me for one in list(self._busy)) and monotonic() < give_up_at:
            time.sleep(_GIVE_WAY)

    def go_on(self) -> None:
        self._forking = False


class _Tally:
    """Numbers to which every thread may add 1, and a signal handler that interrupts one at it.

    `number += 1` reads, adds and writes, and loses what others have written meanwhile. So who adds
    appends to a deque, which is one step, and whoever finds nobody else at it adds up.

    Args:
        names: What is counted.
    """

    def __init__(self, names: tuple[CloseOutcome | str, ...]) -> None:
        self._sums = dict.fromkeys(names, 0)
        self._new: deque[CloseOutcome | str] = deque()
        self._adding: dict[str, object] = {}  # empty, or one entry: somebody adds up

    def add(self, name: CloseOutcome | str) -> None:
        self._new.append(name)

    def add_up(self) -> None:
        me = object()  # not the thread: a handler in the midst of this one is somebody else
        try:
            # Looked at again afterwards: who was refused has appended before, and relies on us.
            while self._new and self._adding.setdefault("by", me) is me:
                while self._new:
                    self._sums[self._new.popleft()] += 1
                del self._adding["by"]
        finally:
            if self._adding.get("by") is me:  # interrupted
                del self._adding["by"]

    def read(self) -> dict[CloseOutcome | str, int]:
        self.add_up()
        for _ in range(_GIVE_WAY_TIMES):  # bounded: it may be the one that we interrupt
            if not self._adding:
                break
            time.sleep(_GIVE_WAY)
        return dict(self._sums)


def _call(callback: Callable[[Any], object], outcome: object) -> None:
    """Call what belongs to the caller; no SystemExit of its may end the Reaper's thread."""
    try:
        callback(outcome)
    except BaseException as error:
        # Where no thread could be had, this is the main thread, and the exception a signal's.
        if (
            not isinstance(error, Exception)
            and threading.current_thread() is threading.main_thread()
        ):
            raise
        threading.excepthook(
            threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread()))
        )


def _peer_of(sock: socket.socket) -> object:
    try:
        return sock.getpeername()
    except OSError:
        return None  # ENOTCONN: never connected, or reset by now


def hand_over(sock: socket.socket, reaper: Reaper, peer: object = None) -> bool:
    """Have whoever closes a stream socket leave it to a Reaper.

    Args:
        sock: It is to be closed afterwards all the same, but has no descriptor any more.
        reaper: Who closes the connection.
        peer: The peer's address, if it is known.

    Returns:
        False: it is closed, or SO_LINGER {1, 0} says that it is to be aborted.
    """
    linger = _platform.HERE.linger
    try:
        if linger is not None and linger.aborts(sock):
            return False
    except OSError:
        if sock.fileno() == -1:
            return False
        # ENOPROTOOPT: a stream that knows no SO_LINGER
    worker = reaper._worker  # pyright: ignore[reportPrivateUsage]
    try:
        worker.submit(sock, None, peer)
    except RuntimeError:
        # The Reaper is closed already. Now whoever closes must wait, unless it is an event loop.
        seconds = 0.0 if sock.gettimeout() == 0 else 5.0
        close_on(Options(seconds), sock)
    return True


def leave_to(reaper: Reaper, pending: Pending, step: Step) -> None:
    """Have a Reaper go on with a close of which `step` is next. It is not closed yet."""
    reaper._worker.go_on_with(pending, step)  # pyright: ignore[reportPrivateUsage]


_POP_FIRST = deque[tuple[Pending, "Step"]].popleft


# --- the interpreter's exit, a worker's end, a fork ------------------------------------------------

_WORKERS: weakref.WeakValueDictionary[int, _Worker] = weakref.WeakValueDictionary()
_exiting = False


def _all_workers() -> list[_Worker]:
    # Not values(), which another thread may disturb.
    return [worker for ref in _WORKERS.valuerefs() if (worker := ref()) is not None]


def end_all() -> None:
    """At the exit of the interpreter: all of them together, each within its time."""
    workers = _all_workers()
    for worker in workers:
        worker.end(worker.options.timeout)
    for worker in workers:
        worker.join()


def _exit() -> None:
    global _exiting  # noqa: PLW0603
    _exiting = True
    end_all()


# Handlers run last in, first out: whoever registers one later than this may still submit in it.
atexit.register(_exit)


_registered_with: set[object] = set()  # the registries of finalizers, which a fork empties


def _finish_at_the_end_of_workers() -> None:
    """A worker of multiprocessing ends by os._exit(), without atexit, but runs these."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None and util not in _registered_with:
        _registered_with.add(util)
        util.Finalize(None, end_all, exitpriority=0)


def _pause() -> None:
    for worker in _all_workers():
        worker.pause()


def _go_on() -> None:
    for worker in _all_workers():
        worker.go_on()


def _begin_anew_in_child() -> None:
    _registered_with.clear()
    for worker in _all_workers():
        worker.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_pause, after_in_parent=_go_on, after_in_child=_begin_anew_in_child
    )
