"""The blocking driver: closes one connection and waits for it."""

from __future__ import annotations

import math
import select
import selectors
import sys
import time
import warnings

from ._clock import monotonic
from ._connection import Connection
from ._linger import LingerPolicy
from ._options import Options, options_of, require_seconds
from ._result import CloseOutcome, CloseResult
from ._selector import LONGEST_WAIT, new_selector
from ._sockets import require_stream
from ._step import PAUSE, RELEASE, WAIT_ACK, WAIT_EITHER, WAIT_READABLE, WAIT_WRITABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Unpack

    from ._options import CloseOptions, OnTimeout, Until
    from ._selector import Selector
    from ._step import Step


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
    """Close a connection so that the peer can read everything that was written to it.

    Sends our FIN (`shutdown(SHUT_WR)`), reads and discards input until the peer's FIN, then closes.
    A plain `close()` with unread input sends RST instead, and the peer loses the data that it has
    not read yet.

        sock.sendall(reply)
        result = graceful_close(sock, timeout=5)
        print(result)  # peer closed after 0.013 s, 5000000 bytes drained, ...

    The descriptor is taken out of `sock` first: if another thread closes `sock` during the call, it
    finds the socket closed. When this returns or raises, `sock` is closed and its descriptor is
    released, even if makefile() objects exist. Only an invalid argument leaves `sock` untouched.
    Network failures are in the result. On KeyboardInterrupt the socket is closed immediately and
    the exception propagates. The connection ends for every holder: a dup, a forked child, a thread
    in recv(), which reads the end of the stream.

    The buffer of a makefile() object is not sent. If a makefile() object that writes is still open,
    the call issues a ResourceWarning, and the result is not clean (`CloseResult.unflushed`).

    Args:
        sock: A connected stream socket: TCP, AF_UNIX or similar, blocking or not. A socket in any
            other state is closed, too, and the result reports the state.
        timeout: The total deadline in seconds, 0 or more; 0 polls once and does not wait.
        idle_timeout: Stop waiting after this many seconds, 0 or more, without input and (where
            acknowledgements are visible) without a new acknowledgement. None: only `timeout`
            counts.
        drain_limit: Stop when the peer has sent more than this many bytes, 0 or more. None: only
            the deadline limits the work. A small limit loses replies.
        until: PEER_CLOSED, or DELIVERED to return as soon as the peer's kernel has acknowledged
            everything. Where acknowledgements are not visible, DELIVERED waits for the peer's FIN
            instead, or (TCP on Windows, OpenBSD and illumos) makes the kernel linger.
        on_timeout: What happens to unacknowledged data at a deadline or limit. BACKGROUND: the kernel
            keeps sending it (but sends RST if there is unread input). ABORT: the kernel drops it
            and sends RST. Where acknowledgements are not visible, a silent peer cannot be
            distinguished from a slow one, and `idle_timeout` never aborts.
        peer_first: Wait up to this many seconds, 0 or more, for the peer's FIN before our FIN is
            sent, and drain during the wait. The side that sends the first FIN keeps the connection
            in TIME_WAIT. New in 0.2.

    Returns:
        How the connection ended.

    Raises:
        TypeError: `sock` is not a stream socket, or an argument has the wrong type.
        ValueError: An argument is out of range.

    Source: RFC 9112, section 9.6; RFC 9293, section 3.6; RFC 1122, section 4.2.2.13.

    Notes:
        The peer's FIN is read from the state of the connection, because recv() returns 0 forever
        after the caller's own shutdown(SHUT_RD), too. On systems that do not show the state
        (Windows, OpenBSD, illumos), and for AF_UNIX and MPTCP, only recv() is available. After the
        caller's own SHUT_RD the result is then PEER_CLOSED although the peer has not closed. On
        AF_UNIX the kernel does not distinguish the two: the caller's SHUT_RD ends the peer's
        direction, and the peer's send() fails (EPIPE).
    """
    options = Options(timeout, idle_timeout, drain_limit, until, on_timeout, peer_first)
    require_stream(sock)
    return close_on(options, sock)


def timed_linger_close(
    sock: socket.socket, seconds: float, *, on_timeout: OnTimeout = LingerPolicy.BACKGROUND
) -> CloseResult:
    """Wait for the peer's kernel to acknowledge everything, at most `seconds`, then close.

    SO_LINGER {1, n} should do the same, and does not: this wait has fractions of a second, is not
    ended by unread input, and reports how it ended. It does not wait for the peer's FIN. No option
    stays set on the connection, and the close itself never waits.

        sock.sendall(message)
        if timed_linger_close(sock, 2.5).outcome is CloseOutcome.DELIVERED:
            forget(message)

    When this returns or raises, `sock` is closed and its descriptor is released. Only an invalid
    argument leaves `sock` untouched.

    Args:
        sock: A connected stream socket; see `graceful_close`.
        seconds: The deadline, 0 or more; not rounded, and not limited by SO_LINGER's range.
        on_timeout: As for `graceful_close`.

    Returns:
        DELIVERED if everything was acknowledged. Where acknowledgements are not visible, see
        `until` of `graceful_close`.

    Raises:
        TypeError: `sock` is not a stream socket, or an argument has the wrong type.
        ValueError: An argument is out of range.

    Notes:
        On Linux the acknowledgement wakes the wait. On macOS and the BSDs the library polls every
        1 to 50 ms.
    """
    require_seconds("seconds", seconds)
    options = Options(seconds, until=CloseOutcome.DELIVERED, on_timeout=on_timeout)
    require_stream(sock)
    return close_on(options, sock)


def abortive_close(sock: socket.socket) -> CloseResult:
    """Discard a connection: drop unsent data and send RST to the peer.

    Never waits. When this returns or raises, `sock` is closed and its descriptor is released, even
    if makefile() objects exist. Only an object that is not a stream socket is not touched.

        try:
            sock.sendall(reply)
        except BaseException:
            abortive_close(sock)  # the peer must not take half a reply for a whole one
            raise

    On Linux the TCP connection is reset immediately, even if it has other holders: a dup, a forked
    child, a thread in recv(). On other systems the kernel sends RST when the last reference is
    gone.

    Args:
        sock: A stream socket. AF_UNIX has no RST: the peer reads the end of the stream, or
            ECONNRESET if the peer had sent something that was not read.

    Returns:
        ABORTED, with the number of dropped bytes in `unacked`; or NOT_CONNECTED; or PEER_RESET if
        the peer had reset the connection before.

    Raises:
        TypeError: `sock` is not a stream socket.

    Source: RFC 9293, section 3.10.5 (ABORT); connect(2), AF_UNSPEC; socket(7), SO_LINGER.

    Notes:
        The function does not call shutdown() first: after a FIN the peer may read a clean end
        instead. For the same reason an abort after `shutdown(SHUT_WR)` is ambiguous to the peer.
    """
    require_stream(sock)
    return abort_on(sock)


class closing:
    """A context manager that commits or rolls back a stream.

    When the block ends normally, it calls `graceful_close`: a peer that reads the end of the stream
    knows that the message is complete. When the block raises, it calls `abortive_close`: a peer
    that reads a reset knows that the message is not complete. In both cases the socket is closed
    afterwards. An exception of the block propagates, even if the close fails.

        with closing(listener.accept()[0], timeout=10) as sock:
            sock.sendall(reply)

    Args:
        sock: A stream socket.
        options: Those of `graceful_close`.

    Attributes:
        result: How the connection ended; None inside the block.

    Raises:
        TypeError, ValueError: As for `graceful_close`, raised by the constructor.
    """

    result: CloseResult | None

    def __init__(self, sock: socket.socket, **options: Unpack[CloseOptions]) -> None:
        self._options = options_of("closing", options)
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
        except Exception:  # noqa: BLE001, S110 (the block's own exception matters more)
            pass


_NO_OPTIONS = Options()


def abort_on(sock: socket.socket) -> CloseResult:
    """`abortive_close` for a socket that was validated before."""
    return close_on(_NO_OPTIONS, sock, abort=True)


def close_on(options: Options, sock: socket.socket, *, abort: bool = False) -> CloseResult:
    """Close with validated arguments."""
    connection: Connection | None = None
    try:
        connection = Connection(options, monotonic(), abort=abort)
        drive(connection, connection.begin(sock))
        result = connection.release()
    except BaseException:
        # None: an interrupt arrived before the constructor returned.
        (connection or Connection(options, 0.0, abort=abort)).abandon(sock)
        raise
    if result.unflushed:
        warn_unflushed(stacklevel=3)
    return result


def warn_unflushed(stacklevel: int) -> None:
    """Warn that a makefile() object may hold unsent data."""
    warnings.warn(
        "a socket was closed while a makefile() object that writes to it was open: "
        "the content of its buffer was not sent",
        ResourceWarning,
        stacklevel=stacklevel + 1,
    )


def drive(connection: Connection, step: Step) -> None:
    """Execute the steps of the state machine, and wait where a step is a wait, until RELEASE."""
    sleeper: _Sleeper | None = None
    try:
        while (step := connection.carry_out(step)) is not RELEASE:
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
                    continue  # a long read would yield to other connections; there are none
            except OSError as error:
                step = connection.waited(step, error)
            else:
                step = connection.waited(step, readable=readable)
    finally:
        if sleeper is not None:
            sleeper.close()


class _Sleeper:
    """Waits on one socket; creates its poller when it is first needed."""

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
        """Wait for any event; return whether there is input or an error to read."""
        if self._watch is None:
            self._watch = watch = new_selector()
            watch.arm(self._number, WAIT_ACK, known=False)
        return any(readable for _, readable in self._watch.wait(_left(wake_at)))

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()


def _sleep_on(number: int, events: int) -> Callable[[float], object]:
    """Return a function that waits up to so many seconds for input, or for room for output."""
    # Looked up late, because gevent and eventlet replace these functions. select() does not
    # support descriptors above 1023. Windows has no poll().
    if sys.platform != "win32" and hasattr(select, "poll"):
        poller = select.poll()
        readable = select.POLLIN if events & selectors.EVENT_READ else 0
        writable = select.POLLOUT if events & selectors.EVENT_WRITE else 0
        poller.register(number, readable | writable)
        return lambda seconds: poller.poll(math.ceil(seconds * 1000))  # PyPy rounds down

    def select_once(seconds: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(number, events)
            selector.select(seconds)

    return select_once


def _left(wake_at: float) -> float:
    """Return the seconds left: not negative, and at most what every system's wait supports."""
    return min(max(wake_at - monotonic(), 0.0), LONGEST_WAIT)
