"""What a closing call tells its caller: how the connection ended, and what is not known."""

from __future__ import annotations

import enum
import errno

from ._record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self


class CloseOutcome(enum.Enum):
    """How a connection ended, as far as this side could observe it.

    The value of each member is the phrase that a log line uses.
    """

    PEER_CLOSED = "peer closed"
    """Our FIN went out, the peer's FIN came, and everything we sent was acknowledged where
    the system lets us see it (`CloseResult.unacked` is then 0, and None where it does not)."""

    DELIVERED = "delivered"
    """The peer's kernel acknowledged every byte and our FIN. That the peer's program read
    them is not known: no close can prove that (RFC 9293, section 3.6)."""

    PEER_RESET = "reset by peer"
    """The connection was reset, and what the peer had not acknowledged by then is lost. The peer
    sent RST; after a shutdown(SHUT_RD) of the caller's, the kernel may have sent it instead, in
    answer to input, and the two look alike afterwards."""

    TIMED_OUT = "timed out"
    """The time ran out with no proof of the end: the total deadline passed, or the kernel gave
    the connection up (`error` is then ETIMEDOUT, or whatever number it took from an ICMP message,
    from kernel TLS or from an administrator: EHOSTUNREACH, EACCES, EIO, ECONNABORTED), or, where
    acknowledgements cannot be seen, its own linger ended without reporting how."""

    IDLE_TIMED_OUT = "idle timed out"
    """For `idle_timeout` seconds the peer sent nothing and acknowledged nothing new."""

    DRAIN_LIMIT = "drain limit"
    """The peer sent more than `drain_limit` bytes after our FIN."""

    ABORTED = "aborted"
    """The connection was thrown away at once, as asked. TCP tells the peer with RST."""

    NOT_CONNECTED = "not connected"
    """There was no connection to end: never connected, listening, or over before the call (a
    reset that the caller has seen already, or an orderly end after the caller's own
    shutdown(); the two cannot be told apart afterwards)."""

    ALREADY_CLOSED = "already closed"
    """The socket object was closed before the call, or by another thread during it."""


_CLEAN = frozenset({CloseOutcome.PEER_CLOSED, CloseOutcome.DELIVERED, CloseOutcome.ABORTED})

# The errno of an UncleanCloseError when the system gave none of its own: the one that a
# programmer who knows sockets would expect for that outcome.
_ERRNO = {
    CloseOutcome.PEER_RESET: errno.ECONNRESET,
    CloseOutcome.TIMED_OUT: errno.ETIMEDOUT,
    CloseOutcome.IDLE_TIMED_OUT: errno.ETIMEDOUT,
    CloseOutcome.DRAIN_LIMIT: errno.EMSGSIZE,
    CloseOutcome.NOT_CONNECTED: errno.ENOTCONN,
    CloseOutcome.ALREADY_CLOSED: errno.EBADF,
}


class CloseResult(Record):
    """How one connection ended. `str(result)` is one line for a log.

    It cannot be changed, and compares equal to one that says the same.
    """

    __slots__ = (
        "_outcome",
        "_elapsed",
        "_drained",
        "_unacked",
        "_error",
        "_notified",
        "_peer_notified",
        "_peer_first",
        "_unflushed",
        "_peer",
    )
    __match_args__ = (
        "outcome",
        "elapsed",
        "drained",
        "unacked",
        "error",
        "notified",
        "peer_notified",
        "peer_first",
        "unflushed",
        "peer",
    )

    def __init__(
        self,
        outcome: CloseOutcome,
        elapsed: float,
        drained: int,
        unacked: int | None,
        error: OSError | None,
        notified: bool | None = None,
        peer_notified: bool | None = None,
        peer_first: bool | None = None,
        unflushed: bool = False,
        peer: object = None,
    ) -> None:
        self._outcome = outcome
        self._elapsed = elapsed
        self._drained = drained
        self._unacked = unacked
        self._error = error
        self._notified = notified
        self._peer_notified = peer_notified
        self._peer_first = peer_first
        self._unflushed = unflushed
        self._peer = peer

    @property
    def outcome(self) -> CloseOutcome:
        """How it ended."""
        return self._outcome

    @property
    def elapsed(self) -> float:
        """Seconds from the call to the release of the descriptor."""
        return self._elapsed

    @property
    def drained(self) -> int:
        """Bytes read from the peer and thrown away."""
        return self._drained

    @property
    def unacked(self) -> int | None:
        """Bytes that the peer had not acknowledged when we let go.

        A FIN that is not acknowledged counts as one byte, as it does in TCP's sequence
        numbers. None: this system, or this kind of socket, does not say.
        """
        return self._unacked

    @property
    def error(self) -> OSError | None:
        """The operating system's own error, if the network gave one."""
        return self._error

    @property
    def notified(self) -> bool | None:
        """TLS: whether our close_notify was handed to the kernel whole.

        True also if the caller's own unwrap() had sent it and was not answered. False: it was
        not, or the connection failed meanwhile; the peer must take the stream for cut. None:
        there was no TLS session to end: no TLS, no handshake, an abort, or the caller's own
        unwrap() or shutdown() had ended it. Or it cannot be known: asyncio's transport of an
        AF_UNIX stream was given up while it flushed.
        """
        return self._notified

    @property
    def peer_notified(self) -> bool | None:
        """TLS: whether the peer's close_notify was there when ours went out.

        False: its FIN was, without one: what it sent may be cut (RFC 8446, section 6.1). None:
        nobody knows: there was nothing yet, or other data first, and what comes later is thrown
        away undecrypted.
        """
        return self._peer_notified

    @property
    def peer_first(self) -> bool | None:
        """Whether the peer's FIN came before ours went out: who sends the first keeps TIME_WAIT.

        None: nobody can know. That is so where the system does not show a connection's state, and
        where both FINs had crossed before anybody looked.
        """
        return self._peer_first

    @property
    def unflushed(self) -> bool:
        """Whether a makefile() object that writes to the socket was open when it was closed.

        What its buffer held was not sent, and nobody can see whether it held anything.
        """
        return self._unflushed

    @property
    def peer(self) -> object:
        """The peer's address, as accept() returns it; None where it was not asked for or known.

        A `Reaper` with an `on_close`, and whatever hands connections to one, fills it in.
        """
        return self._peer

    @property
    def clean(self) -> bool:
        """Whether the end was seen to be the one asked for.

        True for PEER_CLOSED, DELIVERED and ABORTED (which only comes when it was asked for),
        and for NOT_CONNECTED if no byte was left unacknowledged. False when something is known
        to be unfinished, and also when nothing was observed: ALREADY_CLOSED is no proof that
        the peer got anything. False also if the peer must take a TLS stream for cut, and if a
        makefile() object may have held a part of the message back (`unflushed`).
        """
        if self.notified is False or self.unflushed:
            return self.outcome is CloseOutcome.ABORTED
        if self.outcome is CloseOutcome.NOT_CONNECTED:
            return self.unacked == 0
        return self.outcome in _CLEAN

    def check(self) -> Self:
        """Return this result if it is clean.

        Raises:
            UncleanCloseError: It is not; the error carries this result.
        """
        if not self.clean:
            raise UncleanCloseError(self)
        return self

    def __str__(self) -> str:
        acks = "unknown" if self.unacked is None else _in_bytes(self.unacked)
        line = (
            f"{self.outcome.value} after {self.elapsed:.3f} s, "
            f"{_in_bytes(self.drained)} drained, unacknowledged: {acks}"
        )
        if self.notified is False:
            line += ", close_notify not sent"
        if self.unflushed:
            line += ", a makefile() object was not closed"
        if self.peer is not None:
            line = f"{_address(self.peer)}: {line}"
        return line if self.error is None else f"{line} ({self.error})"


def _address(peer: object) -> str:
    if not isinstance(peer, tuple):
        return str(peer) or "unnamed"  # AF_UNIX: a path, which is nearly always empty
    parts = [str(part) for part in peer]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    host = f"[{parts[0]}]" if ":" in parts[0] else parts[0]
    return f"{host}:{parts[1]}"


def _in_bytes(count: int) -> str:
    return "1 byte" if count == 1 else f"{count} bytes"


class UncleanCloseError(OSError):
    """A close that did not end as asked, raised only by `CloseResult.check`.

    Attributes:
        result: The `CloseResult` that was not clean.
        errno: The system's own error number if it gave one, else the customary one for the
            outcome (ECONNRESET, ETIMEDOUT, ENOTCONN, EBADF; EMSGSIZE for DRAIN_LIMIT).
    """

    result: CloseResult

    def __init__(self, result: CloseResult) -> None:
        number = result.error.errno if result.error is not None else None
        super().__init__(number or _ERRNO.get(result.outcome, errno.EIO), str(result))
        self.result = result

    def __reduce__(self) -> tuple[type[UncleanCloseError], tuple[CloseResult]]:
        # OSError would rebuild itself from (errno, message) and lose the result.
        return type(self), (self.result,)
