"""The close sequence as a state machine that touches no socket.

`Teardown` receives reports and returns the next `Step`. A driver (blocking, many sockets, asyncio,
trio) executes the steps and reports the results; it decides nothing. An example, the close of a TCP
connection whose peer answers:

    driver                            machine
    ------                            -------
    start()                       ->  LOOK            is there a connection, and in which state?
    looked(OPEN, now)             ->  SHUT_WR         our FIN is sent
    shut(now)                     ->  DRAIN           read and discard
    would_block(now)              ->  WAIT_READABLE   until `wake_at` at the latest
    woke(now)                     ->  DRAIN
    received(5_000, now)          ->  WAIT_READABLE
    woke(now)                     ->  DRAIN
    received(0, now)              ->  LOOK            the end of the stream: is it the peer's FIN?
    looked(BOTH_FINS, now)        ->  COUNT           is everything acknowledged?
    counted(0, now)               ->  RELEASE          close with `linger_policy`
    released(now)                     the CloseResult

Theory of operation
-------------------
A close has these phases, some of which may be missing:

0. *Flush*: FLUSH until the buffer of an event loop's transport or stream is written to the kernel.
1. *Standing*: LOOK. Without a connection there is nothing to close.
2. *close_notify*: with TLS, SEND_CLOSE_NOTIFY until there is room for it.
3. *Peer first*: with `peer_first`, drain until the peer's FIN or until this time is over.
4. *Our FIN*: SHUT_WR.
5. *Drain*: DRAIN and WAIT until the peer's FIN (and, for DELIVERED, only until everything is
   acknowledged).
6. *Acknowledgement*: COUNT and WAIT_ACK until our last byte is acknowledged.
7. *Release*: RELEASE.

`_deadline` and `_idle_at` limit every wait in every phase. In the flush both begin again whenever
4 KiB have moved, so that the silence is limited there, and not the total time. A flush may permit a
longer silence than the phases after it. An abort has the phases 1 and 7, and a count between them. A
flush that was given up or cut short continues as an abort, because the peer has only a part of the
data.

The proofs: the peer's FIN is a *state* of the connection (LOOK), because recv() returns 0 after the
caller's own SHUT_RD, too. Delivery is a count of 0 in a state in which the kernel counts. A reset is
an error that the kernel reported.

An outcome is decided once (`_outcome`) and does not change. After that the machine requests at most
our FIN, if the close ends before phase 4, one last count and, if a reset changes the count, one last
look. So each report first checks whether the outcome is decided.

RFC 9112, section 9.6 recommends the sequence to servers; RFC 9293, section 3.6 defines half-closed
connections.
"""

from __future__ import annotations

import math

from ._linger import LingerPolicy
from ._platform import ErrorKind, TcpState, View, error_kind, reset_error
from ._result import CloseOutcome, CloseResult
from ._step import (
    CLEAR_ERRORS,
    COUNT,
    DRAIN,
    FLUSH,
    LOOK,
    PAUSE,
    READ_ERROR,
    RELEASE,
    SEND_CLOSE_NOTIFY,
    SHUT_WR,
    WAIT_ACK,
    WAIT_EITHER,
    WAIT_READABLE,
    WAIT_WRITABLE,
    Step,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._options import Options


PEER_CLOSED = CloseOutcome.PEER_CLOSED
DELIVERED = CloseOutcome.DELIVERED
PEER_RESET = CloseOutcome.PEER_RESET
TIMED_OUT = CloseOutcome.TIMED_OUT
IDLE_TIMED_OUT = CloseOutcome.IDLE_TIMED_OUT
DRAIN_LIMIT = CloseOutcome.DRAIN_LIMIT
ABORTED = CloseOutcome.ABORTED
NOT_CONNECTED = CloseOutcome.NOT_CONNECTED
ALREADY_CLOSED = CloseOutcome.ALREADY_CLOSED

OPEN = TcpState.OPEN
FIN_SENT = TcpState.FIN_SENT
PEER_FIN = TcpState.PEER_FIN
ACCEPTING = TcpState.ACCEPTING
OVER = TcpState.OVER
NEVER_OPEN = TcpState.NEVER_OPEN

# In these states the peer's FIN was received. A connection that is over, and whose end the caller has
# not read yet, ended with the peer's FIN, too: recv() would have reported a reset.
PEER_FIN_SEEN = frozenset({PEER_FIN, TcpState.BOTH_FINS, OVER})
_NO_CONNECTION = frozenset({TcpState.LISTENING, TcpState.CONNECTING})
_STOOD = frozenset({OPEN, FIN_SENT, PEER_FIN, TcpState.BOTH_FINS, OVER})

# The pauses between two polls for acknowledgements if no event wakes us. Heuristic: the first is about
# a round trip in a fast network. The longest limits a wait of seconds to some dozens of polls, and
# delays its end by at most a twentieth of a second.
_FIRST_PAUSE = 0.001
_LONGEST_PAUSE = 0.05

# The bytes that must move for a flush to get more time. Heuristic: a peer that reads less in a timeout
# of seconds is slower than any modem, and 10 MB at this speed would take hours.
_LEAST_PROGRESS = 4096

# Input counts as progress up to this limit, because a peer may send its whole request before it
# reads. Heuristic: more than any upload that a server rejects early.
_MOST_INPUT = 1 << 30

# Wake-ups in a row without an event and before a deadline. The cause of one may be another reader that
# was faster. From the second on the error queue is cleared; if that does not help, we poll.
_SUSPICIOUS = 2
_HOPELESS = 4


def may_end_at_first_look(options: Options, view: View, state: TcpState | None) -> bool:
    """Whether a close can end without a state machine, if its first look finds the end.

    Most closes follow the same sequence: our FIN, then the peer's FIN, and everything is
    acknowledged. The driver sends our FIN and reads once. If the read, the state and the count
    confirm the sequence, `closed_by_peer` is the result. All other events are reported to a state
    machine, which would return the same result for this sequence (tests/test_first_look.py).
    """
    return (
        (state is OPEN or state is PEER_FIN)
        and options.until is PEER_CLOSED
        and not options.peer_first
        and view.acks is not None
        and view.count_survives_reset
    )


def closed_by_peer(
    seconds: float,
    peer_first: bool | None,
    error: OSError | None,
    unflushed: bool,
    peer: object,
) -> CloseResult:
    """Return the result of a close that ended at its first look."""
    if error is not None:
        error = error.with_traceback(None)
    return CloseResult(
        PEER_CLOSED, seconds, 0, 0, error, None, None, peer_first, unflushed, peer
    )


class Teardown:
    """The close of one connection.

    A report that does not match the last step is a bug of the driver. With any report the machine
    never waits after its deadline, and after RELEASE it requests no other step.

    Args:
        options: The options of the close.
        now: Seconds on a monotonic clock; every report has a newer reading.
        view: What the system shows of this connection.
        tls: Begin with close_notify.
        one_of_many: The driver has other connections, too. Its selector reports input without a
            system call for each socket, so that a wait is cheaper than a read without input. It
            must not block in the kernel's linger.
        abort: Discard the connection.
        unflushed: A makefile() object of the caller is open, and its buffer is not sent.
        flush: Begin with the buffer of an event loop's transport or stream.
        stood: There was a connection when the close began; a later absence means a reset.
        flush_timeout: The seconds of silence that end a flush; None: `timeout` and `idle_timeout`.

    Attributes:
        wake_at: The time at which a wait must end.
        allowance: The largest number of bytes for the next DRAIN; None: no limit.
        linger_policy: At RELEASE, the policy to close with; None: the connection is over on both
            sides, and the policy has no effect.
        linger_seconds: With TIMED, the number of seconds.
        wake_readers: At RELEASE, whether threads that wait for input read the end of the stream.
        peer: The peer's address, for the result.
    """

    __slots__ = (
        "_abort",
        "_abort_outcome",
        "_deadline",
        "_deaf",
        "_doubted",
        "_drained",
        "_error",
        "_fin_sent",
        "_fin_tried",
        "_first_looked",
        "_flush_timeout",
        "_flushing",
        "_held",
        "_idle_at",
        "_idle_wakes",
        "_moved",
        "_notified",
        "_notifying",
        "_on_timeout",
        "_one_of_many",
        "_options",
        "_outcome",
        "_concluded",
        "_pause",
        "_peer_fin",
        "_peer_first",
        "_peer_first_until",
        "_peer_notified",
        "_recounting",
        "_stale",
        "_started",
        "_state",
        "_stood",
        "_timeout",
        "_unacked",
        "_unflushed",
        "_view",
        "_void",
        "_wants_acks",
        "_watchable",
        "allowance",
        "linger_policy",
        "linger_seconds",
        "peer",
        "wake_at",
    )

    def __init__(
        self,
        options: Options,
        now: float,
        view: View,
        *,
        tls: bool = False,
        one_of_many: bool = False,
        abort: bool = False,
        unflushed: bool = False,
        flush: bool = False,
        stood: bool = False,
        flush_timeout: float | None = None,
    ) -> None:
        self._options = options
        self._view = view
        self._one_of_many = one_of_many
        self._abort = abort
        self._abort_outcome = ABORTED  # or the reason for which a flush was given up
        self._stood = stood
        self._unflushed = unflushed

        # The flush
        self._flushing = flush  # remains True if the flush fails or is given up
        self._flush_timeout = flush_timeout
        self._moved = 0  # bytes flushed and drained when the deadlines began
        self._held: int | None = 0  # bytes above the kernel, which a close loses

        # Times
        self._started = self._deadline = self._idle_at = self.wake_at = now
        self._timeout = options.timeout
        # 0: no such phase. Otherwise `_begin_deadlines` makes it a time.
        self._peer_first_until = options.peer_first
        self._begin_deadlines(now)
        self._pause = _FIRST_PAUSE  # the length of the next, if no event wakes us
        self._idle_wakes = 0  # in a row
        self._watchable = True  # WAIT_ACK is available

        # The state of the connection, and what it proves
        self._state: TcpState | None = None  # at the last look; None: not known
        self._first_looked = False
        self._fin_sent = False
        self._fin_tried = False  # shutdown() was called, and may have failed
        self._peer_fin = False
        self._peer_first: bool | None = None
        self._deaf = False  # recv() returns 0 although the peer's FIN has not arrived

        # close_notify
        self._notifying = tls and not abort  # ours is not sent yet
        self._notified: bool | None = None
        self._peer_notified: bool | None = None

        # The count
        # Whether the acknowledgement ends the close, and is visible.
        self._wants_acks = view.acks is not None and options.until is DELIVERED
        self._recounting = False  # a look is in progress, and a count follows
        self._stale = False  # the count is older than the peer's FIN, and proves nothing
        self._doubted = False  # the last look was requested
        self._void = False  # another holder has reset the socket's counters

        # The end
        self._concluded = False  # RELEASE was returned

        limit = options.drain_limit
        self.allowance = None if limit is None else limit + 1
        self._drained = 0
        self._unacked: int | None = None
        self._error: OSError | None = None
        self._outcome: CloseOutcome | None = None
        self._on_timeout: LingerPolicy = options.on_timeout
        self.linger_policy: LingerPolicy | None = None
        self.linger_seconds = 0.0
        self.peer: object = None

    # --- reports: what happened --------------------------------------------------------------

    def start(self) -> Step:
        """Return the first step."""
        return FLUSH if self._flushing else self._look_or_begin(self._started)

    def flushing(self, flushed: int, drained: int, held: int | None, now: float) -> Step:
        """FLUSH is in progress.

        Args:
            flushed: Bytes that have left the buffers of the framework and the kernel so far.
            drained: Bytes that were read and discarded so far.
            held: Bytes that are above the kernel; None: not known.
            now: The current time.
        """
        if self._outcome:
            return self._conclude()
        self._drained = drained
        self._held = held
        moved = flushed + min(drained, _MOST_INPUT)
        if moved - self._moved >= _LEAST_PROGRESS:
            self._moved = moved
            self._begin_deadlines(now)
        if drained > self._options.limit:
            return self._give_up_flush(DRAIN_LIMIT)
        if now >= self._deadline:
            return self._give_up_flush(TIMED_OUT)
        return FLUSH if now < self._idle_at else self._give_up_flush(IDLE_TIMED_OUT)

    def flushed(
        self,
        drained: int,
        now: float,
        *,
        waited: bool,
        fin_sent: bool = False,
        notified: tuple[bool, bool | None] | None = None,
    ) -> Step:
        """FLUSH is over, and the kernel has everything.

        Args:
            drained: Bytes that were read and discarded.
            now: The current time.
            waited: The flush waited; the deadlines begin again for the rest.
            fin_sent: The flush sent our FIN.
            notified: Whether the flush sent our close_notify, and whether the peer's arrived, as
                for `notified`.
        """
        if self._outcome:
            return self._conclude()
        self._flushing = False
        self._held = 0
        self._drained = drained
        self._fin_sent = fin_sent
        if notified is not None:
            self._notifying = False
            self._notified, self._peer_notified = notified
        if waited or self._flush_timeout is not None:
            self._begin_deadlines(now if waited else self._started)
        if self.allowance is not None:
            # At least 1: the flush may have read more, and recv_into() takes 0 for no limit.
            self.allowance = max(1, self.allowance - drained)
        return self._look_or_begin(now)

    def cut_short(self, held: int | None, error: OSError, now: float) -> Step:
        """FLUSH is over, and the kernel will never have everything.

        Args:
            held: Bytes that were above the kernel; None: not known.
            error: The error for the result.
            now: The current time.
        """
        if self._outcome:
            return self._conclude()
        self._held = held
        self._error = error
        return self._give_up_flush(TIMED_OUT, notified=False)

    def looked(self, state: TcpState | None, now: float) -> Step:
        """LOOK found the connection in `state`; None: not known.

        The machine looks to learn whether there is a connection (`_first_looked` is False), before a
        count (`_recounting`), after the end of the stream, and after a count that a reset may have
        changed (`_doubted`).
        """
        # The state after a reset that has changed the count.
        reset = NEVER_OPEN if self._view.count_survives_reset else OVER
        if self._doubted and not self._concluded and state is reset:
            self._unacked = None
        if self._concluded or (self._outcome and not self._recounting):
            return self._conclude()
        if state is NEVER_OPEN and self._state in _STOOD:
            # Another holder has reset the connection by connect() to AF_UNSPEC, and the socket is like
            # one that was never connected.
            self._stood = self._void = True
            self._fin_sent = self._recounting = False
            return READ_ERROR if self._outcome is None else self._conclude()
        if state is OPEN and self._fin_sent:
            state = None  # this kernel does not update the state (gVisor)
        self._state = state
        first, self._first_looked = not self._first_looked, True
        self._peer_notified = self._as_proven(self._peer_notified)
        if first and not self._recounting:
            return self._after_first_look(state, now)
        if state is NEVER_OPEN:
            # The handshake failed, and no data was sent.
            self._recounting = self._fin_sent = False
            return READ_ERROR if self._outcome is None else self._conclude()
        if state is PEER_FIN and self._peer_first is None:
            self._peer_first = True
        if self._recounting:
            self._recounting = False
            return COUNT if state is not ACCEPTING else self._without_count(now)
        # recv() has returned 0. If the system shows no state, there is no other proof.
        if state is None or state in PEER_FIN_SEEN:
            if self._deaf and state is OVER:
                # Input after the caller's SHUT_RD was answered with RST, by one of the sides.
                self._deaf = False
                self._peer_fin = True
                self._stale = True
                return READ_ERROR
            self._peer_fin = True
            return self._after_the_peers_fin(now)
        self._deaf = True
        if self._peer_first_until or self._notifying:
            return self.would_block(now)
        return self._request_count()

    def peer_close_notify(self, received: bool | None) -> None:
        """Record the peer's close_notify before ours is sent."""
        self._peer_notified = received

    def notified(self, sent: bool | None, now: float, received: bool | None = None) -> Step:
        """The close_notify was sent, or cannot be sent.

        Args:
            sent: Whether it was sent; None: there was no TLS session to end.
            now: The current time.
            received: Whether the peer's has arrived; False: its stream ended without one; None: not
                known.
        """
        if self._outcome:
            return self._conclude()
        self._notifying = False
        self._notified = sent
        self._idle_wakes = 0
        if received is not None:
            self._peer_notified = self._as_proven(received)
        return self._begin(now)

    def _as_proven(self, peer_notified: bool | None) -> bool | None:
        """Return None for an end without close_notify that may be the caller's own SHUT_RD."""
        unproven = self._state is not None and self._state not in PEER_FIN_SEEN
        return None if peer_notified is False and unproven else peer_notified

    def notify_would_block(self, now: float) -> Step:
        """There was no room for the close_notify."""
        # At the deadline our FIN is sent nevertheless: it needs no room, and a peer that reads it
        # without a close_notify knows that the stream is truncated (RFC 8446, section 6.1).
        if self._outcome or now >= self._deadline:
            return self.notified(False, now)
        # A peer that sends everything before it reads makes no room until we read.
        return self._without_room(now) if self._peer_fin or self._deaf else DRAIN

    def shut(self, now: float, error: OSError | None = None) -> Step:
        """shutdown(SHUT_WR) was called."""
        self._fin_tried = True
        if error is None:
            self._fin_sent = True
        if self._outcome:
            return self._conclude() if self._concluded else self._count_and_conclude()
        if error is not None:
            if error_kind(error) is not ErrorKind.NOT_CONNECTED:
                return self.failed(error, now)
            # Not the end: after a reset the actual error is still to be read, and macOS returns this
            # error for a second SHUT_WR on an open connection.
            self._error = error.with_traceback(None)
        if self._peer_fin:
            return self._after_the_peers_fin(now)
        # An idle time begins with a count, which follows a first read.
        counts = self._view.acks is not None and self._options.idle_timeout < math.inf
        patient = self._one_of_many and now < self.wake_at and self._state is not PEER_FIN
        patient = patient and not self._options.peer_first  # a read shows that ours was first
        if patient and error is None and not (counts or self._wants_acks):
            return self._wait(now)
        return DRAIN

    def received(self, count: int, now: float) -> Step:
        """DRAIN discarded `count` bytes; 0 is the end of the stream."""
        if self._outcome:
            return self._conclude()
        self._idle_wakes = 0
        if count == 0:
            if self._view.state is not None and self._state not in (PEER_FIN, OVER, NEVER_OPEN):
                return LOOK
            self._peer_fin = True
            return self._after_the_peers_fin(now)
        self._confirm_connection()
        self._drained += count
        self._idle_at = now + self._options.idle_timeout
        limit = self._options.drain_limit
        if limit is not None:
            if self._drained > limit:
                return self._end_with(DRAIN_LIMIT)
            self.allowance = limit - self._drained + 1
        if self._notifying:
            return self._wait_for_room(now)
        if self._peer_first_until:
            return self._wait_for_peer_first(now)
        if now >= self._deadline:
            return self._end_with(TIMED_OUT)
        # WAIT_ACK is edge-triggered: all input must be read before it.
        return DRAIN if self._follows_acks() else self._wait(now)

    def would_block(self, now: float) -> Step:
        """DRAIN found no input."""
        if self._outcome:
            return self._conclude()
        if self._idle_wakes == _SUSPICIOUS and self._view.error_queue:
            self._idle_wakes += 1
            return CLEAR_ERRORS
        if self._notifying:
            return self._without_room(now)
        if self._peer_first_until:
            return self._wait_for_peer_first(now)
        self._confirm_connection()
        # Our FIN was sent, and the peer's FIN has not arrived.
        if self._state is not None and self._peer_first is None and not self._deaf:
            self._peer_first = False
        view, options = self._view, self._options
        if view.acks is not None:
            # Acknowledgements restart the idle time, so an idle time begins with a count. At the end
            # a new count goes into the result.
            baseline = self._unacked is None and options.idle_timeout < math.inf
            late = now >= min(self._deadline, self._idle_at)
            if baseline or late or self._follows_acks():
                return self._request_count()
        elif view.kernel_lingers and options.until is DELIVERED and not self._one_of_many:
            self.linger_seconds = self._deadline - now
            if self.linger_seconds > 0:
                self.linger_policy = LingerPolicy.TIMED
                return self._conclude(TIMED_OUT)  # unless released() reports a reset
        return self._end_or_wait(now)

    def cleared(self, now: float) -> Step:
        """CLEAR_ERRORS emptied the error queue."""
        return self.would_block(now)

    def failed(self, error: OSError, now: float, held: int | None = 0) -> Step:
        """A step or a wait failed.

        Args:
            error: Its error.
            now: The current time.
            held: Bytes that a flush has not written to the kernel, which are lost; None: not known.
                Not every error ends the connection (IP_RECVERR): a remaining connection is reset.

        Raises:
            OSError: `error`, if only a bug of this library can cause it.
        """
        if self._outcome:
            return self._conclude()
        kind = error_kind(error)
        if kind is ErrorKind.OURS:
            raise error
        self._held = held
        if held != 0:
            self._on_timeout = LingerPolicy.ABORT
        outcome = self._outcome_of(kind)
        self._error = error.with_traceback(None)  # a traceback would refer to the socket
        return self._end_with(outcome)

    def counted(self, unacked: int | None, now: float) -> Step:
        """COUNT counted the unacknowledged bytes, an unacknowledged FIN among them."""
        if self._concluded:
            return RELEASE
        gone = self._state is NEVER_OPEN and unacked != 0
        if self._view.acks is None or gone or self._void:
            unacked = None  # without a connection the kernel's count has no meaning
        if unacked is not None:
            unacked = None if self._held is None else unacked + self._held
        before, self._unacked = self._unacked, unacked
        if self._outcome:
            return self._conclude()
        if before is not None and unacked is not None and unacked < before:
            self._idle_at = now + self._options.idle_timeout
            self._pause = _FIRST_PAUSE
            self._idle_wakes = 0
        if self._notifying:
            return self._wait_for_room_or_give_up(now)
        return self._after_count(unacked, now)

    def pending_error(self, error: OSError, state: TcpState | None, now: float) -> Step:
        """READ_ERROR found `error`, with the connection in `state`.

        SO_ERROR also reports an ICMP message about one segment (`sk_err_soft` in Linux's
        tcp_v4_err()). TCP then continues to try (RFC 1122, section 4.2.3.9), and the connection has
        not ended.
        """
        if state is None or state in (OVER, NEVER_OPEN):
            return self.failed(error, now)
        return self.no_error(now)

    def no_error(self, now: float) -> Step:
        """READ_ERROR found no error that has ended the connection."""
        if self._outcome:
            return self._conclude()
        if not self._fin_sent:
            # The connection was over before the call, and its end is no longer visible. If it stood,
            # the code that read until the end has already taken the reset.
            if not self._stood:
                return self._end_with(NOT_CONNECTED)
            self._error = self._error or reset_error()
            return self._end_with(PEER_RESET)
        if self._stale:
            self._stale = False
            return self._request_count()
        proven = self._unacked == 0 and (self._peer_fin or self._wants_acks)
        return self._conclude(self._success()) if proven else self._end_or_wait(now)

    def woke(self, now: float, *, readable: bool = True) -> Step:
        """A wait is over; `readable`: there may be input or an error."""
        if self._outcome:
            return self._conclude()
        if now < self.wake_at and self._idle_wakes < _HOPELESS:
            self._idle_wakes += 1
        if self._flushing:
            return FLUSH if now < self._deadline else self._give_up_flush(TIMED_OUT)
        if self._notifying:
            return SEND_CLOSE_NOTIFY if now < self._deadline else self.notified(False, now)
        if self._deaf:
            return LOOK
        if self._peer_first_until or (readable and not self._peer_fin):
            return DRAIN
        return self._request_count()

    def time_is_up(self, now: float, on_timeout: LingerPolicy) -> Step:
        """The driver ends the close now, with `on_timeout`. No later step is a wait."""
        self.expire(now, on_timeout)
        return self.woke(now)

    def expire(self, now: float, on_timeout: LingerPolicy) -> None:
        """Make the deadline that of now, with `on_timeout`, for the next report."""
        self._timeout = 0.0  # also if the deadlines begin again
        self._flush_timeout = None
        self._deadline = self.wake_at = min(self._deadline, now)
        self._on_timeout = on_timeout

    def limit_flush(self, now: float) -> None:
        """From now on `timeout` and `idle_timeout` limit the silence of the flush."""
        if self._flushing and self._flush_timeout is not None:
            self._flush_timeout = None
            self._begin_deadlines(now)

    def cannot_watch(self, now: float) -> Step:
        """WAIT_ACK is not available: no epoll on this system, or no descriptor left for it."""
        self._watchable = False
        return self._wait_otherwise(now)

    def cannot_wait(self, now: float) -> Step:
        """No wait is available: a limit of the system (poll(2), epoll_ctl(2)). Poll after pauses."""
        self._idle_wakes = _HOPELESS
        return self._wait_otherwise(now)

    def _wait_otherwise(self, now: float) -> Step:
        """Choose the wait again, because one was not available."""
        if self._outcome:
            return self._conclude()
        if self._notifying:
            return self._wait_for_room(now)
        if self._peer_first_until:
            return self._wait_for_peer_first(now)
        return self._end_or_wait(now)

    def released(self, now: float, error: OSError | None = None) -> CloseResult:
        """The descriptor is released; `error` is the error of close(), if any.

        The descriptor is released even if close() fails (close(2)): its errors are information. If
        no step was requested before, the socket had no descriptor.
        """
        outcome = self._outcome or ALREADY_CLOSED
        if error is not None:
            timed = self.linger_policy is LingerPolicy.TIMED
            if timed and error_kind(error) is ErrorKind.RESET:
                outcome = PEER_RESET
            error = error.with_traceback(None)
        return CloseResult(
            outcome,
            now - self._started,
            self._drained,
            self._unacked,
            self._error or error,
            self._notified,
            self._peer_notified,
            self._peer_first,
            self._unflushed and outcome is not ALREADY_CLOSED,
            self.peer,
        )

    @property
    def may_send_fin(self) -> bool:
        """Whether a flush that has ended may send our FIN: the peer's is not awaited before it."""
        return not self._peer_first_until

    @property
    def is_flushing(self) -> bool:
        """Whether the peer has only a part of the data: a flush is in progress, or did not succeed."""
        return self._flushing

    @property
    def wake_readers(self) -> bool:
        return not self._peer_fin and self._fin_sent and self._error is None

    # --- decisions ---------------------------------------------------------------------------

    def _begin_deadlines(self, now: float) -> None:
        options = self._options
        if self._flushing and self._flush_timeout is not None:
            self._deadline, self._idle_at = now + self._flush_timeout, math.inf
        else:
            self._deadline = now + self._timeout
            self._idle_at = now + options.idle_timeout
        self.wake_at = min(self._deadline, self._idle_at)
        if self._peer_first_until:
            self._peer_first_until = now + options.peer_first

    def _give_up_flush(self, outcome: CloseOutcome, notified: bool | None = None) -> Step:
        """Abort: the end of the stream would tell the peer that what it has is the whole."""
        if self._notifying:
            # An abort destroys what is on its way; but AF_UNIX knows no RST, and counts nothing.
            known = self._view.acks is not None
            self._notifying, self._notified = False, False if known else notified
        self._abort, self._abort_outcome = True, outcome
        return LOOK

    def _look_or_begin(self, now: float) -> Step:
        return LOOK if self._view.state is not None or self._abort else self._begin(now)

    def _after_first_look(self, state: TcpState | None, now: float) -> Step:
        """Decide after the first look whether there is a connection to close."""
        if state in _NO_CONNECTION:
            self._unacked = 0 if state is TcpState.LISTENING else None
            return self._conclude(NOT_CONNECTED)
        if state is PEER_FIN:
            self._peer_first = True
        elif state in (FIN_SENT, TcpState.BOTH_FINS):
            self._peer_first = False  # the caller's own shutdown() was before the peer's
            self._fin_sent = True
        elif state is NEVER_OPEN and self._fin_sent:
            self._fin_sent = self._notifying = False
            return READ_ERROR
        if not self._abort:
            return self._begin(now)
        if state is OVER or state is NEVER_OPEN:
            return READ_ERROR
        return self._end_with(self._abort_outcome)

    def _begin(self, now: float) -> Step:
        """Begin the next phase up to our FIN."""
        if self._notifying:
            return SEND_CLOSE_NOTIFY
        gone = self._peer_fin or self._state in (OVER, NEVER_OPEN)
        if self._peer_first_until and not gone and not self._fin_sent:
            return self._wait_for_peer_first(now) if self._deaf else DRAIN
        self._peer_first_until = 0.0
        return self.shut(now) if self._fin_sent else SHUT_WR

    def _wait_for_peer_first(self, now: float) -> Step:
        """All input is read: wait for the peer's FIN before ours, or stop waiting."""
        until = min(self._peer_first_until, self._deadline, self._idle_at)
        if now >= until or self._peer_fin:
            self._peer_first_until = 0.0
            return SHUT_WR
        self.wake_at = until
        if self._deaf:
            return self._watch_state(now)
        return WAIT_READABLE if self._idle_wakes < _HOPELESS else self._poll(now)

    def _confirm_connection(self) -> None:
        """There is a connection, although shutdown() failed: an earlier FIN was ours."""
        waits = self._notifying or self._peer_first_until
        # What arrived before a reset can be read after the reset.
        gone = self._state in (OVER, NEVER_OPEN)
        if not (self._fin_sent or waits or gone):
            self._fin_sent = True
            self._error = None

    def _after_the_peers_fin(self, now: float) -> Step:
        if self._notifying:
            return self._wait_for_room(now)
        if self._peer_first_until:
            self._peer_first_until = 0.0
            return SHUT_WR
        if not self._fin_sent:
            return READ_ERROR  # shutdown() found no connection: what ended it?
        if self._view.acks is None:
            return self._conclude(PEER_CLOSED)
        return self._request_count()

    def _request_count(self) -> Step:
        """Count if the kernel counts: in the handshake of a Fast Open server it returns 0."""
        unseen = not self._first_looked and self._view.state is not None
        if unseen or self._state is ACCEPTING:
            self._recounting = True
            return LOOK
        return COUNT

    def _without_count(self, now: float) -> Step:
        """The handshake is still in progress, and the count is not known."""
        if self._outcome:
            return self._conclude()
        if self._notifying:
            return self._wait_for_room_or_give_up(now)
        return self._end_or_wait(now)

    def _after_count(self, unacked: int | None, now: float) -> Step:
        """Decide what a count proves."""
        if unacked is None:  # not known, against expectation: continue without
            # The state may come to say that all is acknowledged, and of that nothing wakes us.
            self._wants_acks = self._wants_acks and self._view.state is not None
            self._watchable = False
            return self._conclude(PEER_CLOSED) if self._peer_fin else self._end_or_wait(now)
        survives = self._view.count_survives_reset and self._fin_sent
        if unacked == 0 and survives and (self._wants_acks or self._peer_fin):
            return self._conclude(self._success())
        # After the FIN, recv() always returns 0: only SO_ERROR reports a reset. And if a reset empties
        # the queue, 0 proves nothing before SO_ERROR was read.
        if self._peer_fin or (unacked == 0 and self._wants_acks):
            return READ_ERROR
        return self._end_or_wait(now)

    def _without_room(self, now: float) -> Step:
        """All input is read, and there is no room for the close_notify: count, or continue."""
        # Acknowledgements restart the idle time before they make room.
        counts = self._view.acks is not None and self._options.idle_timeout < math.inf
        if counts and (self._unacked is None or now >= self._idle_at):
            return self._request_count()
        return self._wait_for_room_or_give_up(now)

    def _wait_for_room_or_give_up(self, now: float) -> Step:
        return self._wait_for_room(now) if now < self._idle_at else self.notified(False, now)

    def _wait_for_room(self, now: float) -> Step:
        """Wait until there is room for the close_notify."""
        self.wake_at = min(self._deadline, self._idle_at)
        if self._idle_wakes >= _HOPELESS:
            return self._poll(now)
        # After the end of the stream the socket is always readable: a wait for input would spin.
        return WAIT_WRITABLE if self._peer_fin or self._deaf else WAIT_EITHER

    def _follows_acks(self) -> bool:
        """Whether an acknowledgement should end the next wait, too."""
        # Before the peer's FIN, bytes are counted only if their acknowledgement restarts an idle time.
        return self._wants_acks or self._peer_fin or self._deaf or bool(self._unacked)

    def _success(self) -> CloseOutcome:
        return DELIVERED if self._wants_acks else PEER_CLOSED

    def _end_or_wait(self, now: float) -> Step:
        """All input is read and counted: end at a deadline, or wait."""
        if now >= self._deadline:
            return self._conclude(TIMED_OUT)
        if now >= self._idle_at:
            return self._conclude(IDLE_TIMED_OUT)
        return self._wait(now)

    def _wait(self, now: float) -> Step:
        self.wake_at = min(self._deadline, self._idle_at)
        if not self._follows_acks():
            return WAIT_READABLE if self._idle_wakes < _HOPELESS else self._poll(now)
        return self._watch_state(now)

    def _watch_state(self, now: float) -> Step:
        """Wait for the acknowledgement or the peer's FIN, with an edge-triggered wait."""
        if self._watchable:
            return WAIT_ACK
        # After the end of the stream the socket is always readable: a wait for input would spin.
        spins = self._peer_fin or self._deaf or self._idle_wakes >= _HOPELESS
        if not (self._wants_acks or spins):
            return WAIT_READABLE  # an acknowledgement is then noticed at the idle deadline
        step = self._poll(now)
        return step if spins else WAIT_READABLE

    def _poll(self, now: float) -> Step:
        """Poll after a pause, because no event wakes us."""
        self.wake_at = min(self.wake_at, now + self._pause)
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        return PAUSE

    def _outcome_of(self, kind: ErrorKind) -> CloseOutcome:
        """Return the outcome for an error of the connection."""
        if kind is ErrorKind.CLOSED:
            return ALREADY_CLOSED
        if self._state is NEVER_OPEN or (self._abort and kind is not ErrorKind.RESET):
            return NOT_CONNECTED  # there was no connection to close or to abort
        if kind is ErrorKind.NOT_CONNECTED and self._view.disconnects and self._state in _STOOD:
            return PEER_RESET  # by another holder (AF_UNSPEC), and a read of its own took the error
        if kind is ErrorKind.REFUSED:
            # The error of a connect(). An ICMP message reports it for an open connection, too.
            found_none = self._view.state is None and self._error is not None
            return NOT_CONNECTED if found_none and not self._fin_sent else TIMED_OUT
        return _OUTCOMES[kind]

    def _end_with(self, outcome: CloseOutcome) -> Step:
        """Set the outcome, send our FIN if the peer would wait for it, and count once more."""
        self._outcome = outcome
        if self._notifying:
            self._notified = False
        if outcome is ALREADY_CLOSED:
            return self._conclude()
        tried = self._fin_sent or self._fin_tried
        if tried or self._choose_policy() is not LingerPolicy.BACKGROUND:
            return self._count_and_conclude()
        # If there is another holder (a dup, a forked child), close() sends nothing.
        return SHUT_WR

    def _count_and_conclude(self) -> Step:
        """Count the unacknowledged bytes once more if the count is valid."""
        view, outcome = self._view, self._outcome
        if view.acks is not None and (view.count_survives_reset or outcome is not PEER_RESET):
            return self._request_count()
        self._unacked = None
        return self._conclude()

    def _conclude(self, outcome: CloseOutcome | None = None) -> Step:
        if not self._concluded:
            self._outcome = self._outcome or outcome
            if self._unacked is not None and self._may_be_stale():
                if self._state is OVER and not self._view.count_survives_reset:
                    self._unacked = None
                elif not (self._doubted or self._abort):  # an abort has just looked
                    self._doubted = True
                    return LOOK
            self._concluded = True
            if self.linger_policy is None:
                self.linger_policy = self._choose_policy()
        return RELEASE

    def _may_be_stale(self) -> bool:
        """Whether the count has no meaning if the connection is over, because of a reset."""
        if (
            self._view.acks is None
            or self._state in _NO_CONNECTION
            or self._state is NEVER_OPEN
        ):
            return False
        if not self._view.count_survives_reset:
            return self._outcome is not PEER_CLOSED and self._outcome is not DELIVERED
        # Linux changes the count only if another holder disconnects the socket (AF_UNSPEC).
        return bool(self._unacked) and (self._outcome is PEER_RESET or self._peer_fin)

    def _choose_policy(self) -> LingerPolicy | None:
        outcome = self._outcome
        if outcome is PEER_CLOSED:
            return None if self._unacked == 0 else LingerPolicy.BACKGROUND
        if outcome is DELIVERED:
            return LingerPolicy.BACKGROUND
        if outcome is self._abort_outcome and self._abort:
            return LingerPolicy.ABORT
        if outcome is IDLE_TIMED_OUT and self._unacked is None:
            # A peer that acknowledges slowly cannot be distinguished from a silent one.
            return LingerPolicy.BACKGROUND
        if outcome in (TIMED_OUT, IDLE_TIMED_OUT, DRAIN_LIMIT):
            return self._on_timeout
        return None  # the connection is over: there is no data to linger for


_OUTCOMES = {
    ErrorKind.RESET: PEER_RESET,
    ErrorKind.NOT_CONNECTED: NOT_CONNECTED,
    ErrorKind.LOST: TIMED_OUT,
    # Steps do not fail permanently with these.
    ErrorKind.WOULD_BLOCK: TIMED_OUT,
    ErrorKind.INTERRUPTED: TIMED_OUT,
}


def already_closed(seconds: float) -> CloseResult:
    """Return the result of a close without a connection, `seconds` after the call."""
    return CloseResult(ALREADY_CLOSED, seconds, 0, None, None)
