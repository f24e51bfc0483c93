"""The thread behind a Reaper, and what it has in hand."""

from __future__ import annotations

import _socket
import atexit
import math
import socket
import threading
from collections import deque
from time import monotonic

from ._checks import is_native
from ._linger import LingerPolicy
from ._loop import CloseLoop
from ._release import let_go, release
from ._result import CloseOutcome, CloseResult
from ._teardown import TIMED_OUT
from ._tls import send_close_notify, speaks_tls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from concurrent.futures import Future
    from typing import Final

    from ._loop import Closing
    from ._teardown import Terms

    Said = tuple[bool | None, bool | None] | None

# How much longer than its connections the thread may take, for callbacks of the caller's.
_GRACE = 1.0


class Orders:
    """What a Reaper was asked for, and what has become of it.

    Attributes:
        terms: For each connection.
        max_sockets: How many may be in flight.
        on_overflow: How the oldest parts when there are more.
        counts: How many have ended in which way.
        overflowed: How many had to make room.
    """

    __slots__ = ("counts", "max_sockets", "on_overflow", "overflowed", "terms")

    def __init__(self, terms: Terms, max_sockets: int, on_overflow: LingerPolicy) -> None:
        self.terms: Final = terms
        self.max_sockets: Final = max_sockets
        self.on_overflow: Final = on_overflow
        self.counts = dict.fromkeys(CloseOutcome, 0)
        self.overflowed = 0

    def tell(self, future: Future[CloseResult], result: CloseResult) -> None:
        """A connection has ended."""
        self.counts[result.outcome] += 1
        future.set_result(result)


class Handed:
    """A connection that is the Reaper's, and that nobody has begun to close yet."""

    __slots__ = ("future", "said", "since", "sock")

    def __init__(
        self, sock: socket.socket, said: Said, since: float, future: Future[CloseResult]
    ) -> None:
        self.sock: Final = sock
        self.said: Final = said
        self.since: Final = since
        self.future: Final = future


def take_over(sock: socket.socket, future: Future[CloseResult]) -> Handed | None:
    """Move the descriptor to an object of our own. None: it was closed already."""
    since = monotonic()
    said: Said = None
    if speaks_tls(sock) and sock.fileno() != -1:
        # The TLS session stays with the caller's object, so its goodbye is said first.
        try:
            said = send_close_notify(sock)
        except BlockingIOError:
            return Handed(sock, None, since, future)
    family, kind, proto = sock.family, sock.type, sock.proto
    number = _socket.socket.detach(sock) if is_native(sock) else sock.detach()
    if number == -1:
        return None
    try:
        return Handed(socket.socket(family, kind, proto, number), said, since, future)
    except BaseException:
        socket.close(number)
        raise


_RUNNING: set[Crew] = set()


def _end_all() -> None:
    """At the exit of the interpreter: all of them together, each within its time."""
    for crew in list(_RUNNING):
        crew.end(crew.patience)
    for crew in list(_RUNNING):
        crew.join(crew.patience)


class Crew:
    """A thread that closes what it is handed, until it is told to end.

    Args:
        orders: What to do.
        lock: Held by whoever calls `hand`, and by the thread when it fails.

    Attributes:
        patience: The seconds that each connection has.
        over: It takes no more: it was told to end and has, or failed by a bug.

    Raises:
        OSError: No descriptor is left for it (EMFILE, ENFILE).
        RuntimeError: No thread is to be had, at the exit of the interpreter for example.
    """

    def __init__(self, orders: Orders, lock: threading.RLock) -> None:
        self.over = False
        self.patience: Final = orders.terms.timeout
        self._orders = orders
        self._lock = lock
        self._end_at = math.inf  # finite: when the last connection is to be let go
        self._intake: deque[Handed] = deque()
        self._in_hand: Handed | None = None  # between the intake and the loop
        self._waking = False
        self._loop = CloseLoop(self._ended)
        try:
            self._waker, self._wakened = socket.socketpair()
        except BaseException:
            self._loop.close()
            raise
        try:
            self._waker.setblocking(False)
            self._wakened.setblocking(False)
            self._loop.wake_for(self._wakened.fileno())
            # A daemon: see `Reaper`.
            self._thread = threading.Thread(
                target=self._run, name="graceful-close reaper", daemon=True
            )
            if not _RUNNING:
                atexit.unregister(_end_all)
                atexit.register(_end_all)
            _RUNNING.add(self)
            self._thread.start()
        except BaseException:
            self._put_away()
            raise

    def __len__(self) -> int:
        """How many connections are in flight."""
        return len(self._intake) + len(self._loop)

    # --- from other threads ------------------------------------------------------------------

    def hand(self, handed: Handed) -> Handed | None:
        """Take a connection over; if too many wait for the thread, give back the first."""
        self._intake.append(handed)
        self._wake()
        too_many = len(self._intake) > self._orders.max_sockets
        return self._intake.popleft() if too_many else None

    def end(self, patience: float) -> None:
        """Finish, and let go after `patience` seconds of what is unfinished then."""
        self._end_at = min(self._end_at, monotonic() + patience)
        self._wake()

    def join(self, patience: float) -> None:
        """Wait for the end, unless it is the thread itself that asks."""
        if self._thread is not threading.current_thread():
            self._thread.join(patience + _GRACE)

    def disown(self) -> None:
        """In a forked child: give our copies of the descriptors back, and touch nothing else."""
        _RUNNING.discard(self)
        for handed in (*self._intake, self._in_hand):
            if handed is not None:
                release(handed.sock)
        self._loop.disown()
        self._waker.close()
        self._wakened.close()

    def _wake(self) -> None:
        if not self._waking:
            self._waking = True
            try:
                self._waker.send(b"\0")
            except OSError:
                pass  # EWOULDBLOCK: it has enough to wake for. EBADF: it is gone.

    # --- in the thread -----------------------------------------------------------------------

    def _run(self) -> None:
        orders, loop = self._orders, self._loop
        try:
            while not self._finished():
                self._take_in()
                for _ in range(len(loop) - orders.max_sockets):
                    orders.overflowed += 1
                    loop.hurry(loop.oldest(), orders.on_overflow)
                if monotonic() >= self._end_at:
                    for closing in loop:
                        loop.hurry(closing, orders.terms.on_timeout)
                else:
                    loop.turn(self._end_at)
        except BaseException as bug:  # noqa: BLE001 (nobody else would hear of it)
            self._fail(bug)
        finally:
            self._put_away()

    def _finished(self) -> bool:
        with self._lock:
            self.over = self._end_at < math.inf and len(self) == 0
            return self.over

    def _take_in(self) -> None:
        """Begin to close what was handed in."""
        try:
            self._wakened.recv(4096)
        except BlockingIOError:
            pass
        self._waking = False
        terms, loop = self._orders.terms, self._loop
        while self._intake:
            with self._lock:
                if not self._intake:
                    break  # it made room for another
                handed = self._in_hand = self._intake.popleft()
            loop.add(handed.sock, terms, handed.since, handed.future, handed.said)
            self._in_hand = None

    def _ended(self, closing: Closing, outcome: CloseResult | Exception) -> None:
        if isinstance(outcome, Exception):
            closing.ticket.set_exception(outcome)
        else:
            self._orders.tell(closing.ticket, outcome)

    def _fail(self, bug: BaseException) -> None:
        """Strand nobody: close all, and let their futures have the exception."""
        with self._lock:
            self.over = True
            handed = [*self._intake, self._in_hand]
            self._intake.clear()
        stranded = [(one.sock, one.future) for one in handed if one is not None]
        stranded += [(closing.sock, closing.ticket) for closing in self._loop]
        for sock, future in stranded:
            let_go(sock, LingerPolicy.BACKGROUND)
            if not future.done():
                future.set_exception(bug)

    def _put_away(self) -> None:
        _RUNNING.discard(self)
        self._loop.close()
        self._waker.close()
        self._wakened.close()


def leave_behind(handed: Handed, orders: Orders) -> None:
    """Let go of a connection for which there is no room, before the thread has seen it."""
    orders.overflowed += 1
    complaint = let_go(handed.sock, orders.on_overflow)
    waited = monotonic() - handed.since
    orders.tell(handed.future, CloseResult(TIMED_OUT, waited, 0, None, complaint))
