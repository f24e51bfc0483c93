"""Closing one connection, and waiting for it: the blocking driver."""

from __future__ import annotations

import select
import selectors
import sys
import time
from time import monotonic

from . import _platform
from ._checks import is_tcp, require_seconds, require_stream
from ._connection import Connection
from ._delivery import AckWatch, count_unacked, open_descriptor, pending_error
from ._linger import LingerPolicy
from ._platform import Meaning, disconnect, meaning
from ._release import let_go
from ._result import CloseOutcome, CloseResult
from ._teardown import LET_GO, PAUSE, WAIT_ACK, WAIT_EITHER, WAIT_READABLE, WAIT_WRITABLE
from ._terms import Terms

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable


def graceful_close(
    sock: socket.socket,
    *,
    timeout: float = 5.0,
    idle_timeout: float | None = None,
    drain_limit: int | None = None,
    until: CloseOutcome = CloseOutcome.PEER_CLOSED,
    on_timeout: LingerPolicy = LingerPolicy.BACKGROUND,
) -> CloseResult:
    """End a connection so that the peer can read all that was written to it.

    Sends our FIN (`shutdown(SHUT_WR)`), reads and throws away what the peer still sends, until
    its FIN, then closes. A plain `close()` with input unread sends RST instead, and the peer
    loses what it has not read yet.

    When this returns or raises, `sock` is closed and its descriptor is released, makefile()
    objects or not. What the network does is in the result. A KeyboardInterrupt closes at once
    and goes on. Data in the buffer of a makefile() object is not sent: flush it before.

    Args:
        sock: A connected stream socket: TCP or AF_UNIX, blocking or not. Any other state is
            closed too, and the result says which it was.
        timeout: Seconds for all of it, 0 or more; 0 looks once and does not wait.
        idle_timeout: Give up after this many seconds, 0 or more, in which the peer sent nothing
            and (where that can be seen) acknowledged nothing new. None: only `timeout` counts.
        drain_limit: Give up when the peer has sent more than this many bytes, 0 or more, after
            our FIN. None: the deadline is what bounds the work; a small limit loses replies.
        until: PEER_CLOSED, or DELIVERED to end as soon as the peer's kernel has acknowledged
            everything. Where acknowledgements cannot be seen, DELIVERED waits for the peer's
            FIN instead, or (TCP on Windows and illumos) lets the kernel linger.
        on_timeout: What to do with what is unacknowledged when giving up. BACKGROUND: the
            kernel goes on sending it (but sends RST if there is unread input). ABORT: it is
            dropped, and TCP sends RST.

    Returns:
        How the connection ended.

    Raises:
        TypeError: `sock` is not a stream socket, or an argument is of the wrong kind.
        ValueError: An argument is out of its range.

    Source: RFC 9112, section 9.6; RFC 9293, section 3.6; RFC 1122, section 4.2.2.13.
    """
    terms = Terms(timeout, idle_timeout, drain_limit, until, on_timeout)
    require_stream(sock)
    return close_on(terms, sock)


def timed_linger_close(
    sock: socket.socket,
    seconds: float,
    *,
    on_timeout: LingerPolicy = LingerPolicy.BACKGROUND,
) -> CloseResult:
    """Wait for the peer's kernel to acknowledge everything, at most `seconds`, then close.

    What SO_LINGER {1, n} promises and does not keep: this wait knows fractions of a second, is
    not cut short by unread input, and says how it ended. It does not wait for the peer's FIN.
    Nothing is left set on the connection, and the closing itself never waits.

    When this returns or raises, `sock` is closed and its descriptor is released.

    Args:
        sock: A connected stream socket; see `graceful_close`.
        seconds: How long to wait, 0 or more; not rounded, and not bounded by SO_LINGER's range.
        on_timeout: As for `graceful_close`.

    Returns:
        DELIVERED if everything was acknowledged. Where acknowledgements cannot be seen, see
        `until` of `graceful_close`.

    Raises:
        TypeError: `sock` is not a stream socket, or an argument is of the wrong kind.
        ValueError: An argument is out of its range.

    Notes:
        On Linux the wait is woken by the acknowledgement itself. macOS and the BSDs are asked
        again after pauses that grow from 1 to 50 ms.
    """
    require_seconds("seconds", seconds)
    terms = Terms(seconds, until=CloseOutcome.DELIVERED, on_timeout=on_timeout)
    require_stream(sock)
    return close_on(terms, sock)


def abortive_close(sock: socket.socket, *, every_holder: bool = False) -> CloseResult:
    """Throw a connection away: drop what is unsent and tell the peer with RST.

    Never waits. When this returns or raises, `sock` is closed and its descriptor is released,
    makefile() objects or not. RST goes out when the **last** reference to the connection goes:
    a dup, a forked child or a thread inside recv() keeps it alive past this call.

    Args:
        sock: A stream socket. AF_UNIX knows no RST: the peer reads the end of the stream, or
            ECONNRESET if it had sent something that was not read.
        every_holder: End the connection itself, at once, whoever else holds it. Linux TCP only.

    Returns:
        ABORTED, with the count of what was dropped in `unacked`; or NOT_CONNECTED, or
        PEER_RESET if the peer was first.

    Raises:
        TypeError: `sock` is not a stream socket.
        ValueError: `every_holder` is asked of a system or a socket that does not have it.

    Source: RFC 9293, section 3.10.5 (ABORT); socket(7), SO_LINGER.

    Notes:
        There is no shutdown() before it: after a FIN the peer may read a clean end instead. For
        the same reason an abort after `shutdown(SHUT_WR)` is not a clear sign to the peer.
    """
    require_stream(sock)
    if every_holder and not (_platform.HERE.disconnects and is_tcp(sock)):
        raise ValueError(f"every_holder=True needs TCP on Linux, not {sock!r}")
    return abort_on(sock, every_holder)


def abort_on(sock: socket.socket, every_holder: bool = False) -> CloseResult:
    """`abortive_close` for a socket that was checked already."""
    try:
        if sock.fileno() == -1:
            return CloseResult(CloseOutcome.ALREADY_CLOSED, 0.0, 0, None, None)
        started = monotonic()
        outcome, error = _standing(sock)
        unacked = count_unacked(sock, tcp=is_tcp(sock))
        if every_holder and outcome is CloseOutcome.ABORTED:
            disconnect(sock)
            complaint = let_go(sock, None)  # done: leave the other holders' option alone
        else:
            complaint = let_go(sock, LingerPolicy.ABORT)
        return CloseResult(outcome, monotonic() - started, 0, unacked, error or complaint)
    except BaseException:
        let_go(sock, LingerPolicy.ABORT)
        raise


def _standing(sock: socket.socket) -> tuple[CloseOutcome, OSError | None]:
    """Is there a connection to abort?"""
    try:
        sock.getpeername()
    except OSError as error:
        # ENOTCONN, and on macOS EINVAL once it is over (getpeername(2)). EBADF: another thread
        # was faster. If it was a reset that nobody has read yet, SO_ERROR has it.
        if meaning(error) is Meaning.CLOSED:
            return CloseOutcome.ALREADY_CLOSED, error.with_traceback(None)
        reset = pending_error(sock)
        if reset is not None and meaning(reset) is Meaning.RESET:
            return CloseOutcome.PEER_RESET, reset
        return CloseOutcome.NOT_CONNECTED, error.with_traceback(None)
    return CloseOutcome.ABORTED, None


def close_on(terms: Terms, sock: socket.socket) -> CloseResult:
    """`graceful_close` with everything checked."""
    try:
        if sock.fileno() == -1:
            return CloseResult(CloseOutcome.ALREADY_CLOSED, 0.0, 0, None, None)
        connection = Connection(sock, terms, monotonic())
        _drive(connection)
        return connection.let_go()
    except BaseException:
        # Something foreign: KeyboardInterrupt, a bug. Close at once, without lingering.
        let_go(sock, LingerPolicy.BACKGROUND)
        raise


def _drive(connection: Connection) -> None:
    """Wait as the machine says, and have the rest carried out, until it says to let go."""
    machine = connection.machine
    sleeper = _Sleeper(connection.sock)
    try:
        step = connection.first_step(monotonic())
        while True:
            step = connection.carry_out(step)
            if step is LET_GO:
                return
            readable = True
            try:
                if step is WAIT_READABLE:
                    sleeper.until_readable(machine.wake_at)
                elif step is WAIT_ACK:
                    readable = sleeper.until_anything(machine.wake_at)
                elif step is WAIT_WRITABLE or step is WAIT_EITHER:
                    sleeper.until_room(machine.wake_at, or_input=step is WAIT_EITHER)
                elif step is PAUSE:
                    time.sleep(_left(machine.wake_at))
                else:
                    continue  # its fill of reads, but nobody else is waiting for a turn
            except OSError as error:
                now = monotonic()
                watching = step is WAIT_ACK
                step = machine.cannot_watch(now) if watching else machine.failed(error, now)
            else:
                step = machine.woke(monotonic(), readable=readable)
    finally:
        sleeper.close()


class _Sleeper:
    """Waits on one socket; what it needs for that is made when it is first needed."""

    __slots__ = ("_readable", "_sock", "_watch")

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._readable: Callable[[float], object] | None = None
        self._watch: AckWatch | None = None

    def until_readable(self, wake_at: float) -> None:
        if self._readable is None:
            self._readable = _sleep_on(self._sock, selectors.EVENT_READ)
        self._readable(_left(wake_at))

    def until_room(self, wake_at: float, *, or_input: bool) -> None:
        events = selectors.EVENT_WRITE | (selectors.EVENT_READ if or_input else 0)
        _sleep_on(self._sock, events)(_left(wake_at))

    def until_anything(self, wake_at: float) -> bool:
        if self._watch is None:
            self._watch = AckWatch(self._sock)
        return self._watch.wait(_left(wake_at))

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()


def _sleep_on(sock: socket.socket, events: int) -> Callable[[float], object]:
    """What waits for so many seconds until there is input, or room for output."""
    number = open_descriptor(sock)
    # Looked up late, because gevent and eventlet replace them; and no select(), which ends at
    # descriptor 1023. Windows has no poll().
    if sys.platform != "win32" and hasattr(select, "poll"):
        poller = select.poll()
        readable = select.POLLIN if events & selectors.EVENT_READ else 0
        writable = select.POLLOUT if events & selectors.EVENT_WRITE else 0
        poller.register(number, readable | writable)
        return lambda seconds: poller.poll(seconds * 1000)

    def select_once(seconds: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(number, events)
            selector.select(seconds)

    return select_once


_LONGEST = 1_000_000.0


def _left(wake_at: float) -> float:
    """Seconds to go: not negative, and no more than a poll() can count in milliseconds."""
    left = wake_at - monotonic()
    return left if 0 < left < _LONGEST else min(max(left, 0), _LONGEST)
