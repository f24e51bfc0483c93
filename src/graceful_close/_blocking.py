"""Closing one connection, and waiting for it: the blocking driver."""

from __future__ import annotations

import select
import selectors
import sys
import time
import warnings
from time import monotonic

from ._connection import Connection
from ._linger import LingerPolicy
from ._options import Options, require_seconds
from ._result import CloseOutcome, CloseResult
from ._selector import LONGEST_WAIT, new_selector
from ._sockets import require_stream
from ._teardown import LET_GO, PAUSE, WAIT_ACK, WAIT_EITHER, WAIT_READABLE, WAIT_WRITABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Unpack

    from ._options import CloseOptions, OnTimeout, Until
    from ._selector import Selector
    from ._teardown import Step


def graceful_close(
    sock: socket.socket,
    *,
    timeout: float = 5.0,
    idle_timeout: float | None = None,
    drain_limit: int | None = None,
    until: Until = CloseOutcome.PEER_CLOSED,
    on_timeout: OnTimeout = LingerPolicy.BACKGROUND,
    peer_first: float = 0,
) -> CloseResult:
    """End a connection so that the peer can read all that was written to it.

    Sends our FIN (`shutdown(SHUT_WR)`), reads and throws away what the peer still sends, until
    its FIN, then closes. A plain `close()` with input unread sends RST instead, and the peer
    loses what it has not read yet.

    The descriptor is taken out of `sock` first: another thread that closes it meanwhile finds it
    closed. When this returns or raises, `sock` is closed and its descriptor is released, makefile()
    objects or not. What the network does is in the result. A KeyboardInterrupt closes at once and
    is raised. The connection ends for every holder: a dup, a forked child, a thread in recv(),
    which reads the end of the stream.

    What the buffer of a makefile() object holds is not sent. If one that writes is still open, that
    is a ResourceWarning, and the result is not clean (`CloseResult.unflushed`).

    Args:
        sock: A connected stream socket: TCP, AF_UNIX or the like, blocking or not. Any other
            state is closed too, and the result reports which it was.
        timeout: Seconds for all of it, 0 or more; 0 looks once and does not wait.
        idle_timeout: Give up after this many seconds, 0 or more, in which the peer sent nothing
            and (where that can be seen) acknowledged nothing new. None: only `timeout` counts.
        drain_limit: Give up when the peer has sent more than this many bytes, 0 or more. None:
            the deadline is what bounds the work; a small limit loses replies.
        until: PEER_CLOSED, or DELIVERED to end as soon as the peer's kernel has acknowledged
            everything. Where acknowledgements cannot be seen, DELIVERED waits for the peer's
            FIN instead, or (TCP on Windows and illumos) lets the kernel linger.
        on_timeout: What to do with what is unacknowledged when giving up. BACKGROUND: the
            kernel goes on sending it (but sends RST if there is unread input). ABORT: it is
            dropped, and TCP sends RST. Where acknowledgements cannot be seen, silence is not
            told from slowness, and `idle_timeout` never aborts.
        peer_first: Wait for so many seconds, 0 or more, for the peer's FIN before ours goes out,
            and drain meanwhile. Whoever sends the first FIN keeps the connection in TIME_WAIT.

    Returns:
        How the connection ended.

    Raises:
        TypeError: `sock` is not a stream socket, or an argument is of the wrong kind.
        ValueError: An argument is out of its range.

    Source: RFC 9112, section 9.6; RFC 9293, section 3.6; RFC 1122, section 4.2.2.13.

    Notes:
        The peer's FIN is seen in the state of the connection, so that a shutdown(SHUT_RD) of the
        caller's, after which recv() returns 0 for ever, is not taken for it. On systems that show
        no state (Windows, illumos), and for AF_UNIX and MPTCP, recv() is all there is.
    """
    options = Options(timeout, idle_timeout, drain_limit, until, on_timeout, peer_first)
    require_stream(sock)
    return close_on(options, sock)


def timed_linger_close(
    sock: socket.socket, seconds: float, *, on_timeout: OnTimeout = LingerPolicy.BACKGROUND
) -> CloseResult:
    """Wait for the peer's kernel to acknowledge everything, at most `seconds`, then close.

    What SO_LINGER {1, n} promises and does not keep: this wait knows fractions of a second, is
    not cut short by unread input, and reports how it ended. It does not wait for the peer's FIN.
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
    options = Options(seconds, until=CloseOutcome.DELIVERED, on_timeout=on_timeout)
    require_stream(sock)
    return close_on(options, sock)


def abortive_close(sock: socket.socket) -> CloseResult:
    """Throw a connection away: drop what is unsent and tell the peer with RST.

    Never waits. When this returns or raises, `sock` is closed and its descriptor is released,
    makefile() objects or not.

    On Linux the TCP connection itself is reset, at once, whoever else holds it: a dup, a forked
    child, a thread inside recv(). Elsewhere RST goes out when the last reference goes.

    Args:
        sock: A stream socket. AF_UNIX knows no RST: the peer reads the end of the stream, or
            ECONNRESET if it had sent something that was not read.

    Returns:
        ABORTED, with the count of what was dropped in `unacked`; or NOT_CONNECTED, or
        PEER_RESET if the peer was first.

    Raises:
        TypeError: `sock` is not a stream socket.

    Source: RFC 9293, section 3.10.5 (ABORT); connect(2), AF_UNSPEC; socket(7), SO_LINGER.

    Notes:
        There is no shutdown() before it: after a FIN the peer may read a clean end instead. For
        the same reason an abort after `shutdown(SHUT_WR)` is not a clear sign to the peer.
    """
    require_stream(sock)
    return abort_on(sock)


class closing:
    """Commit and rollback for a stream.

    When the body ends, `graceful_close`: a peer that sees the end of the stream knows that the
    message is whole. When the body raises, `abortive_close`: a peer that sees a reset knows
    that it is not. Either way the socket is closed when the block is left, and what the body
    raised is raised, whatever the closing met.

        with closing(listener.accept()[0], timeout=10) as sock:
            sock.sendall(reply)

    Args:
        sock: A stream socket.
        options: Those of `graceful_close`.

    Attributes:
        result: How the connection ended; None until the block is left.

    Raises:
        TypeError, ValueError: As `graceful_close`, when it is made, not when it is left.
    """

    result: CloseResult | None

    def __init__(self, sock: socket.socket, **options: Unpack[CloseOptions]) -> None:
        self._options = Options(**options)
        require_stream(sock)
        self._sock = sock
        self.result = None

    def __enter__(self) -> socket.socket:
        return self._sock

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.result = close_on(self._options, self._sock)
            return
        try:
            self.result = abort_on(self._sock)
        except Exception:  # noqa: BLE001, S110 (what the body raised matters more)
            pass


_NO_OPTIONS = Options()


def abort_on(sock: socket.socket) -> CloseResult:
    """`abortive_close` for a socket that was checked already."""
    return close_on(_NO_OPTIONS, sock, abort=True)


def close_on(options: Options, sock: socket.socket, *, abort: bool = False) -> CloseResult:
    """Close with everything checked."""
    connection: Connection | None = None
    try:
        connection = Connection(options, monotonic(), abort=abort)
        drive(connection, connection.begin(sock))
        result = connection.let_go()
    except BaseException:
        (connection or Connection(options, 0.0, abort=abort)).abandon(sock)
        raise
    if result.unflushed:
        warn_unflushed(stacklevel=3)
    return result


def warn_unflushed(stacklevel: int) -> None:
    """Say that a makefile() object may have held something back."""
    warnings.warn(
        "a socket was closed while a makefile() object that writes to it was open: "
        "what that had buffered is not sent",
        ResourceWarning,
        stacklevel=stacklevel + 1,
    )


def drive(connection: Connection, step: Step) -> None:
    """Wait as the machine says, and have the rest carried out, until it says to let go."""
    sleeper: _Sleeper | None = None
    try:
        while (step := connection.carry_out(step)) is not LET_GO:
            if sleeper is None:
                sleeper = _Sleeper(connection.sock)
            wake_at = connection.wake_at
            readable = True
            try:
                if step is WAIT_READABLE:
                    sleeper.until_readable(wake_at)
                elif step is WAIT_ACK:
                    readable = sleeper.until_anything(wake_at)
                elif step is WAIT_WRITABLE or step is WAIT_EITHER:
                    sleeper.until_room(wake_at, or_input=step is WAIT_EITHER)
                elif step is PAUSE:
                    time.sleep(_left(wake_at))
                else:
                    continue  # its fill of reads, but nobody else is waiting for a turn
            except OSError as error:
                step = connection.waited(step, error)
            else:
                step = connection.waited(step, readable=readable)
    finally:
        if sleeper is not None:
            sleeper.close()


class _Sleeper:
    """Waits on one socket; what it needs for that is made when it is first needed."""

    __slots__ = ("_number", "_readable", "_watch")

    def __init__(self, sock: socket.socket) -> None:
        self._number = sock.fileno()
        self._readable: Callable[[float], object] | None = None
        self._watch: Selector | None = None

    def until_readable(self, wake_at: float) -> None:
        if self._readable is None:
            self._readable = _sleep_on(self._number, selectors.EVENT_READ)
        self._readable(_left(wake_at))

    def until_room(self, wake_at: float, *, or_input: bool) -> None:
        events = selectors.EVENT_WRITE | (selectors.EVENT_READ if or_input else 0)
        _sleep_on(self._number, events)(_left(wake_at))

    def until_anything(self, wake_at: float) -> bool:
        """Whether there is input or an error to be read."""
        if self._watch is None:
            self._watch = watch = new_selector()
            watch.arm(self._number, WAIT_ACK, known=False)
        return any(readable for _, readable in self._watch.wait(_left(wake_at)))

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()


def _sleep_on(number: int, events: int) -> Callable[[float], object]:
    """What waits for so many seconds until there is input, or room for output."""
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


def _left(wake_at: float) -> float:
    """Seconds to go: not negative, and no more than every system's wait can count."""
    return min(max(wake_at - monotonic(), 0.0), LONGEST_WAIT)
