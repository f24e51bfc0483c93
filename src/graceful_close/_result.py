"""The results of the closing functions: how a connection ended, and what is not known."""

from __future__ import annotations

import enum
import errno

from ._record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self


class CloseOutcome(enum.Enum):
    """How a connection ended, as far as this side could observe.

    The value of each member is its phrase in a log line.

        if result.outcome is CloseOutcome.PEER_RESET:
            log.info("the client reset the connection")

    `graceful_close` accepts two of the members as `until`.
    """

    PEER_CLOSED = "peer closed"
    """Our FIN was sent, the peer's FIN arrived, and everything we sent was acknowledged, where
    the system reports it (`CloseResult.unacked` is 0; it is None where the system does not)."""

    DELIVERED = "delivered"
    """The peer's kernel acknowledged every byte and our FIN. Whether the peer's program read
    them is not known: no close can prove that (RFC 9293, section 3.6)."""

    PEER_RESET = "reset by peer"
    """The connection was reset, and all unacknowledged data is lost. The peer sent RST. After the
    caller's own shutdown(SHUT_RD), our kernel may have sent RST in answer to input instead; the
    two cannot be distinguished afterwards."""

    TIMED_OUT = "timed out"
    """No end was observed in time. The total deadline passed, or the kernel gave the connection up
    (`error` is then ETIMEDOUT, or the number from an ICMP message, from kernel TLS or from an
    administrator: EHOSTUNREACH, EACCES, EIO, ECONNABORTED), or, where acknowledgements are not
    visible, the kernel's linger ended without a report."""

    IDLE_TIMED_OUT = "idle timed out"
    """For `idle_timeout` seconds the peer sent nothing and acknowledged nothing new."""

    DRAIN_LIMIT = "drain limit"
    """The peer sent more than `drain_limit` bytes during the close."""

    ABORTED = "aborted"
    """The connection was discarded immediately, as requested. TCP sends RST to the peer."""

    NOT_CONNECTED = "not connected"
    """There was no connection to close: never connected, listening, or over before the call (a
    reset that the caller has already read, or an orderly end after the caller's own shutdown();
    the two cannot be distinguished afterwards)."""

    ALREADY_CLOSED = "already closed"
    """The socket object was closed before the call, or by another thread during it."""


_CLEAN = frozenset({CloseOutcome.PEER_CLOSED, CloseOutcome.DELIVERED, CloseOutcome.ABORTED})

# The errno of an UncleanCloseError if the system reported none: the customary number for the
# outcome.
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

        result = graceful_close(sock)
        log.info("%s", result)
        result.check()  # raises UncleanCloseError if the result is not clean

    Immutable; compares by value, and compares errors by their type and arguments, so that a copy (pickle,
    deepcopy) is equal to the original.
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
        """How the connection ended."""
        return self._outcome

    @property
    def elapsed(self) -> float:
        """Seconds from the call to the release of the descriptor."""
        return self._elapsed

    @property
    def drained(self) -> int:
        """Bytes read from the peer and discarded."""
        return self._drained

    @property
    def unacked(self) -> int | None:
        """Bytes that the peer had not acknowledged when the socket was closed.

        An unacknowledged FIN counts as one byte, as in TCP's sequence numbers. None: this system,
        or this kind of socket, does not report the number, or a reset has changed it.
        """
        return self._unacked

    @property
    def error(self) -> OSError | None:
        """The operating system's error, if the network caused one."""
        return self._error

    @property
    def notified(self) -> bool | None:
        """TLS: whether our close_notify was written to the kernel completely.

        True also if the caller's own unwrap() had sent it and got no answer. False: it was not
        written, or the connection failed before; the peer must treat the stream as truncated.
        None: there was no TLS session to end (no TLS, no handshake, an abort), or the caller's own
        unwrap() or shutdown() had ended it. Also None if it is not known, because the flush of
        asyncio's transport for an AF_UNIX stream was given up.
        """
        return self._notified

    @property
    def peer_notified(self) -> bool | None:
        """TLS: whether the peer's close_notify had arrived when ours was sent.

        False: the peer's FIN had arrived without a close_notify, so its data may be truncated
        (RFC 8446, section 6.1). None: not known. Nothing had arrived, or other data had arrived
        first, and later input is discarded without decryption.
        """
        return self._peer_notified

    @property
    def peer_first(self) -> bool | None:
        """Whether the peer's FIN arrived before ours was sent.

        The side that sends the first FIN keeps TIME_WAIT. None: not known, because the system does
        not show the state of the connection, or because both FINs had crossed before the first
        query.

        .. versionadded:: 0.2.0
        """
        return self._peer_first

    @property
    def unflushed(self) -> bool:
        """Whether a makefile() object that writes to the socket was open at the close.

        The content of its buffer was not sent. Whether the buffer was empty is not known.

        .. versionadded:: 0.2.0
        """
        return self._unflushed

    @property
    def peer(self) -> object:
        """The peer's address, as accept() returns it; None if not queried or not known.

        A `Reaper` with an `on_close` sets it.

        .. versionadded:: 0.2.0
        """
        return self._peer

    @property
    def clean(self) -> bool:
        """Whether the requested close was confirmed.

        True for PEER_CLOSED, DELIVERED and ABORTED (which only a requested abort returns), and for
        NOT_CONNECTED if no byte was left unacknowledged. False if something is known to be
        unfinished, and also if nothing was observed: ALREADY_CLOSED does not prove that the peer
        received anything. False also if the peer must treat a TLS stream as truncated, and if a
        makefile() object may hold a part of the message (`unflushed`).
        """
        if self.notified is False or self.unflushed:
            return self.outcome is CloseOutcome.ABORTED
        if self.outcome is CloseOutcome.NOT_CONNECTED:
            return self.unacked == 0
        return self.outcome in _CLEAN

    def check(self) -> Self:
        """Return this result if it is clean.

        Raises:
            UncleanCloseError: The result is not clean; the error has it as `result`.
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
        return str(peer) or "unnamed"  # AF_UNIX: a path, which is usually empty
    parts = [str(part) for part in peer]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    host = f"[{parts[0]}]" if ":" in parts[0] else parts[0]
    return f"{host}:{parts[1]}"


def _in_bytes(count: int) -> str:
    return "1 byte" if count == 1 else f"{count} bytes"


class UncleanCloseError(OSError):
    """A close that was not confirmed; only `CloseResult.check` raises it.

        try:
            graceful_close(sock).check()
        except UncleanCloseError as error:
            log.warning("not delivered: %s", error.result)

    It is an OSError.

    Attributes:
        result: The `CloseResult` that was not clean.
        errno: The system's error number if there was one, otherwise the customary number for the
            outcome (ECONNRESET, ETIMEDOUT, ENOTCONN, EBADF; EMSGSIZE for DRAIN_LIMIT).
    """

    result: CloseResult

    def __init__(self, result: CloseResult) -> None:
        number = result.error.errno if result.error is not None else None
        super().__init__(number or _ERRNO.get(result.outcome, errno.EIO), str(result))
        self.result = result

    def __reduce__(self) -> tuple[type[UncleanCloseError], tuple[CloseResult]]:
        # OSError would be rebuilt from (errno, message), without the result.
        return type(self), (self.result,)
