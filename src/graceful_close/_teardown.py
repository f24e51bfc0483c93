"""The close sequence, decided without touching a socket.

`Teardown` is told what happened and answers with the next `Step`. A driver (blocking, many
sockets at once, asyncio, trio) carries steps out and reports; it decides nothing. One close of
a TCP connection whose peer answers reads like this:

    driver                            machine
    ------                            -------
    start()                       ->  SHUT_WR         our FIN goes out
    shut(now)                     ->  DRAIN           read and throw away
    would_block(now)              ->  WAIT_READABLE   until `wake_at` at the latest
    woke(now)                     ->  DRAIN
    received(5_000, now)          ->  WAIT_READABLE
    woke(now)                     ->  DRAIN
    received(0, now)              ->  PROBE           the peer's FIN; has it all of ours?
    probed(0, now)                ->  LET_GO          as `parting` says
    released(now)                     the CloseResult

RFC 9112, section 9.6 is why a server does this; RFC 9293, section 3.6 is why it works.
"""

from __future__ import annotations

import enum
import math

from ._linger import LingerPolicy
from ._platform import Meaning, Sight, meaning
from ._result import CloseOutcome, CloseResult

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._terms import Terms


class Step(enum.Enum):
    """What the driver does next, and how it reports."""

    SEND_CLOSE_NOTIFY = enum.auto()
    """TLS: send close_notify and do not wait for the peer's (RFC 8446, section 6.1).
    Report notified(), notify_would_block() or failed()."""

    SHUT_WR = enum.auto()
    """shutdown(SHUT_WR). Report shut(), with the error if it failed."""

    DRAIN = enum.auto()
    """Read once without waiting, at most `allowance` bytes, and throw it away.
    Report received(), would_block() or failed()."""

    PROBE = enum.auto()
    """Count the unacknowledged bytes. Report probed(); None where nobody can know."""

    READ_ERROR = enum.auto()
    """Take the socket's pending error (SO_ERROR). Report failed(), or no_error()."""

    WAIT_READABLE = enum.auto()
    """Wait until there is input, or until `wake_at`. Report woke()."""

    WAIT_WRITABLE = enum.auto()
    """Wait until output is possible, or until `wake_at`. Report woke()."""

    WAIT_EITHER = enum.auto()
    """Wait until there is input, or output is possible, or until `wake_at`. Report woke()."""

    WAIT_ACK = enum.auto()
    """Wait until anything at all changes, input or acknowledgement, or until `wake_at`.
    Report woke(), or cannot_watch() if the system has no such watch to spare."""

    PAUSE = enum.auto()
    """Do nothing until `wake_at`. Report woke()."""

    LET_GO = enum.auto()
    """The end: release the descriptor as `parting` says. Report released()."""


# By their own names, because an enum's member costs more to look up than most of what follows.
SEND_CLOSE_NOTIFY = Step.SEND_CLOSE_NOTIFY
SHUT_WR = Step.SHUT_WR
DRAIN = Step.DRAIN
PROBE = Step.PROBE
READ_ERROR = Step.READ_ERROR
WAIT_READABLE = Step.WAIT_READABLE
WAIT_WRITABLE = Step.WAIT_WRITABLE
WAIT_EITHER = Step.WAIT_EITHER
WAIT_ACK = Step.WAIT_ACK
PAUSE = Step.PAUSE
LET_GO = Step.LET_GO

PEER_CLOSED = CloseOutcome.PEER_CLOSED
DELIVERED = CloseOutcome.DELIVERED
PEER_RESET = CloseOutcome.PEER_RESET
TIMED_OUT = CloseOutcome.TIMED_OUT
IDLE_TIMED_OUT = CloseOutcome.IDLE_TIMED_OUT
DRAIN_LIMIT = CloseOutcome.DRAIN_LIMIT
NOT_CONNECTED = CloseOutcome.NOT_CONNECTED
ALREADY_CLOSED = CloseOutcome.ALREADY_CLOSED

# How long to pause between two looks at the acknowledgements where nothing wakes us. Arbitrary:
# the first is about a fast network's round trip, and the last keeps a wait of seconds at some
# dozens of looks while costing it at most a twentieth of a second.
_FIRST_PAUSE = 0.001
_LONGEST_PAUSE = 0.05


class Teardown:
    """The close of one connection.

    Reports other than the one that the last step asked for are the driver's mistake; whatever
    comes, the machine never waits past its deadline, and after LET_GO asks for nothing else.

    Args:
        terms: What the caller asked for.
        now: Seconds on a clock that never goes back; every report brings a newer reading.
        sight: What can be seen of this connection.
        tls: Begin with close_notify.
        one_of_many: The driver serves others too. It learns of input without a system call for
            each socket, so that a wait costs it less than a read that finds nothing; and it
            cannot let the kernel's linger hold it up.

    Attributes:
        wake_at: The latest reading of the clock at which a wait must end.
        allowance: The most bytes that the next DRAIN may read; None: as many as it likes.
        parting: At LET_GO, the linger policy to close with; None: the connection is over on
            both sides and no policy can matter.
        linger_seconds: With a parting of TIMED, for how long.
    """

    __slots__ = (
        "_deadline",
        "_drained",
        "_error",
        "_fin_sent",
        "_idle_at",
        "_notified",
        "_notifying",
        "_on_timeout",
        "_one_of_many",
        "_outcome",
        "_over",
        "_pause",
        "_peer_fin",
        "_peer_notified",
        "_sight",
        "_started",
        "_terms",
        "_unacked",
        "_wants_acks",
        "_watchable",
        "allowance",
        "linger_seconds",
        "parting",
        "wake_at",
    )

    def __init__(
        self,
        terms: Terms,
        now: float,
        sight: Sight,
        *,
        tls: bool = False,
        one_of_many: bool = False,
    ) -> None:
        self._terms = terms
        self._sight = sight
        self._one_of_many = one_of_many
        # Is it the acknowledgement that we were asked to see, and can we?
        self._wants_acks = sight.acks and terms.until is DELIVERED

        self._started = now
        self._deadline = now + terms.timeout
        self._idle_at = now + terms.idle_timeout
        self.wake_at = min(self._deadline, self._idle_at)
        self._pause = _FIRST_PAUSE
        self._watchable = True

        self._notifying = tls
        self._notified: bool | None = None
        self._peer_notified: bool | None = None
        self._fin_sent = False
        self._peer_fin = False
        self._over = False

        limit = terms.drain_limit
        self.allowance = None if limit is None else limit + 1
        self._drained = 0
        self._unacked: int | None = None
        self._error: OSError | None = None
        self._outcome: CloseOutcome | None = None
        self._on_timeout = terms.on_timeout
        self.parting: LingerPolicy | None = None
        self.linger_seconds = 0.0

    # --- reports: what happened --------------------------------------------------------------

    def start(self) -> Step:
        """Nothing yet."""
        return SEND_CLOSE_NOTIFY if self._notifying else SHUT_WR

    def heard(self, peers: bool | None) -> None:
        """What is known of the peer's close_notify before ours is out."""
        self._peer_notified = peers

    def notified(self, sent: bool | None, peers: bool | None = None) -> Step:
        """The close_notify is out, or can never go out.

        Args:
            sent: It is out; None: there was no TLS session to end.
            peers: The peer's has come; False: its stream was cut; None: nobody looked.
        """
        if self._outcome:
            return self._conclude()
        self._notifying = False
        self._notified = sent
        if peers is not None:
            self._peer_notified = peers
        return SHUT_WR

    def notify_would_block(self, now: float) -> Step:
        """There was no room for the close_notify."""
        # When the time is up our FIN goes out all the same: it needs no room, and a peer that
        # sees it without a close_notify knows that the stream was cut (RFC 8446, section 6.1).
        if self._outcome or now >= self._deadline:
            return self.notified(False)
        # A peer that sends all before it reads makes no room as long as nobody reads.
        return self._without_room(now) if self._peer_fin else DRAIN

    def shut(self, now: float, error: OSError | None = None) -> Step:
        """shutdown(SHUT_WR) was called."""
        if self._outcome:
            return self._conclude()
        if error is None:
            self._fin_sent = True
        elif meaning(error) is Meaning.NOT_CONNECTED:
            # Not the end of the story: after a reset the error proper is still to be read, and
            # macOS says this of a second SHUT_WR on a connection that lives.
            self._error = error.with_traceback(None)
        else:
            return self.failed(error, now)
        if self._peer_fin:
            return self._after_the_peers_fin()
        # An idle time begins with a count, and that comes after a first read.
        counts = self._sight.acks and self._terms.idle_timeout < math.inf
        patient = self._one_of_many and now < self.wake_at
        if patient and error is None and not (counts or self._wants_acks):
            return self._sleep(now)
        return DRAIN

    def received(self, count: int, now: float) -> Step:
        """DRAIN threw `count` bytes away; 0 is the peer's FIN."""
        if self._outcome:
            return self._conclude()
        if count == 0:
            self._peer_fin = True
            return self._wait_for_room() if self._notifying else self._after_the_peers_fin()
        self._it_lives()
        self._drained += count
        self._idle_at = now + self._terms.idle_timeout
        limit = self._terms.drain_limit
        if limit is not None:
            if self._drained > limit:
                return self._look_and_conclude(DRAIN_LIMIT)
            self.allowance = limit - self._drained + 1
        if self._notifying:
            return self._wait_for_room()
        if now >= self._deadline:
            return self._look_and_conclude(TIMED_OUT)
        # WAIT_ACK sleeps on an edge: nothing may be left unread before it.
        return DRAIN if self._follows_acks() else self._sleep(now)

    def would_block(self, now: float) -> Step:
        """DRAIN found nothing to read for now."""
        if self._outcome:
            return self._conclude()
        if self._notifying:
            return self._without_room(now)
        self._it_lives()
        sight, terms = self._sight, self._terms
        if sight.acks:
            # Acknowledgements are signs of life too, so an idle time begins with a count; and
            # whatever the end, a fresh count goes into the result.
            baseline = self._unacked is None and terms.idle_timeout < math.inf
            late = now >= min(self._deadline, self._idle_at)
            if baseline or late or self._follows_acks():
                return PROBE
        elif sight.kernel_lingers and terms.until is DELIVERED and not self._one_of_many:
            self.linger_seconds = self._deadline - now
            if self.linger_seconds > 0:
                self.parting = LingerPolicy.TIMED
                return self._conclude(TIMED_OUT)  # unless released() knows better
        return self._rest(now)

    def failed(self, error: OSError, now: float) -> Step:
        """A step or a wait failed, or READ_ERROR found `error`.

        Raises:
            OSError: `error`, if it is nothing that a network does.
        """
        if self._outcome:
            return self._conclude()
        what = meaning(error)
        if what not in _OUTCOMES:
            raise error
        self._error = error.with_traceback(None)  # a traceback would keep the socket alive
        if self._notifying:
            self._notifying, self._notified = False, False
        return self._look_and_conclude(_OUTCOMES[what])

    def probed(self, unacked: int | None, now: float) -> Step:
        """PROBE counted the unacknowledged bytes, an unacknowledged FIN among them."""
        if self._over:
            return LET_GO
        before, self._unacked = self._unacked, unacked if self._sight.acks else None
        if self._outcome:
            return self._conclude()
        if before is not None and unacked is not None and unacked < before:
            self._idle_at = now + self._terms.idle_timeout
            self._pause = _FIRST_PAUSE
        return (
            self._wait_for_room_or_give_up(now)
            if self._notifying
            else self._judge(unacked, now)
        )

    def no_error(self, now: float) -> Step:
        """READ_ERROR found nothing."""
        if self._outcome:
            return self._conclude()
        if not self._fin_sent:
            # It was over before we came, and how is not to be known any more.
            return self._look_and_conclude(NOT_CONNECTED)
        return self._conclude(self._success()) if self._unacked == 0 else self._rest(now)

    def woke(self, now: float, *, readable: bool = True) -> Step:
        """A wait is over; `readable`: for all the driver knows, there is input or an error."""
        if self._outcome:
            return self._conclude()
        if self._notifying:
            return SEND_CLOSE_NOTIFY if now < self._deadline else self.notified(False)
        return DRAIN if readable and not self._peer_fin else PROBE

    def time_is_up(self, now: float, on_timeout: LingerPolicy) -> Step:
        """The driver can wait no longer, and wants `on_timeout` done. No step waits any more."""
        self._deadline = self.wake_at = min(self._deadline, now)
        self._on_timeout = on_timeout
        return self.woke(now)

    def cannot_watch(self, now: float) -> Step:
        """WAIT_ACK is not to be had: no epoll on this system, or no descriptor left for it."""
        self._watchable = False
        return self._conclude() if self._outcome else self._rest(now)

    def released(self, now: float, error: OSError | None = None) -> CloseResult:
        """The descriptor is gone; `error` is what close() said of it.

        Whatever close() says the descriptor is gone (close(2)): its errors are information.
        """
        outcome = self._outcome or ALREADY_CLOSED
        if error is not None:
            if self.parting is LingerPolicy.TIMED and meaning(error) is Meaning.RESET:
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
        )

    # --- decisions ---------------------------------------------------------------------------

    def _it_lives(self) -> None:
        """There is a connection, whatever shutdown() said: an earlier FIN is ours."""
        if not (self._fin_sent or self._notifying):
            self._fin_sent = True
            self._error = None

    def _after_the_peers_fin(self) -> Step:
        if not self._fin_sent:
            return READ_ERROR  # shutdown() found no connection: what ended it?
        return PROBE if self._sight.acks else self._conclude(PEER_CLOSED)

    def _judge(self, unacked: int | None, now: float) -> Step:
        """What a count proves."""
        if unacked is None:  # it should have known, but does not: do without
            self._wants_acks = False
            return self._conclude(PEER_CLOSED) if self._peer_fin else self._rest(now)
        if unacked == 0 and self._sight.survives_reset and (self._wants_acks or self._peer_fin):
            return self._conclude(self._success())
        # Once the FIN is read, recv() says no more than that: a reset shows in SO_ERROR alone.
        # And where a reset empties the queue, 0 proves nothing before SO_ERROR was asked.
        if self._peer_fin or (unacked == 0 and self._wants_acks):
            return READ_ERROR
        return self._rest(now)

    def _without_room(self, now: float) -> Step:
        """All is read, and there is no room for the close_notify: count, or do without."""
        # Acknowledgements are signs of life before they make room.
        counts = self._sight.acks and self._terms.idle_timeout < math.inf
        if counts and (self._unacked is None or now >= self._idle_at):
            return PROBE
        return self._wait_for_room_or_give_up(now)

    def _wait_for_room_or_give_up(self, now: float) -> Step:
        return self._wait_for_room() if now < self._idle_at else self.notified(False)

    def _wait_for_room(self) -> Step:
        """Wait until the close_notify can go out."""
        self.wake_at = min(self._deadline, self._idle_at)
        # After the peer's FIN the socket is readable for good: waiting for input would spin.
        return WAIT_WRITABLE if self._peer_fin else WAIT_EITHER

    def _follows_acks(self) -> bool:
        """Whether the next wait is to end with an acknowledgement, too."""
        if self._wants_acks or self._peer_fin:
            return True
        return bool(self._unacked) and self._terms.idle_timeout < math.inf

    def _success(self) -> CloseOutcome:
        return DELIVERED if self._wants_acks else PEER_CLOSED

    def _rest(self, now: float) -> Step:
        """All is read and counted for now: give up, or wait."""
        if now >= self._deadline:
            return self._conclude(TIMED_OUT)
        if now >= self._idle_at:
            return self._conclude(IDLE_TIMED_OUT)
        return self._sleep(now)

    def _sleep(self, now: float) -> Step:
        self.wake_at = min(self._deadline, self._idle_at)
        if not self._follows_acks():
            return WAIT_READABLE
        if self._watchable:
            return WAIT_ACK
        if not (self._wants_acks or self._peer_fin):
            return WAIT_READABLE  # then an acknowledgement is noticed when the idle time is up
        self.wake_at = min(self.wake_at, now + self._pause)
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        # After the peer's FIN the socket is readable for good: waiting for input would spin.
        return PAUSE if self._peer_fin else WAIT_READABLE

    def _look_and_conclude(self, outcome: CloseOutcome) -> Step:
        """The end is decided; count once more what we leave behind, if the count is true."""
        self._outcome = outcome
        if outcome is ALREADY_CLOSED:
            return self._conclude()
        if self._sight.acks and (self._sight.survives_reset or outcome is not PEER_RESET):
            return PROBE
        self._unacked = None
        return self._conclude()

    def _conclude(self, outcome: CloseOutcome | None = None) -> Step:
        self._over = True
        self._outcome = outcome or self._outcome
        if self.parting is None:
            self.parting = self._choose_parting()
        return LET_GO

    def _choose_parting(self) -> LingerPolicy | None:
        outcome = self._outcome
        if outcome is PEER_CLOSED:
            return None if self._unacked == 0 else LingerPolicy.BACKGROUND
        if outcome is DELIVERED:
            return LingerPolicy.BACKGROUND
        if outcome in (TIMED_OUT, IDLE_TIMED_OUT, DRAIN_LIMIT) and self._error is None:
            return self._on_timeout
        return None  # the connection is gone: nothing is left to linger for


_OUTCOMES = {
    Meaning.RESET: PEER_RESET,
    Meaning.NOT_CONNECTED: NOT_CONNECTED,
    Meaning.LOST: TIMED_OUT,
    Meaning.CLOSED: ALREADY_CLOSED,
}
