"""What a driver does next, and how it reports that to the machine."""

from __future__ import annotations

import enum


class Step(enum.Enum):
    """The next step of the driver, and the report that follows."""

    FLUSH = enum.auto()
    """Write the event loop's buffer to the kernel, and discard input during that time. Wait until
    bytes have moved, or until `wake_at`. Report flushing(), flushed(), cut_short() or failed()."""

    LOOK = enum.auto()
    """Read the state of the connection. Report looked()."""

    SEND_CLOSE_NOTIFY = enum.auto()
    """TLS: send close_notify and do not wait for the peer's (RFC 8446, section 6.1).
    Report notified(), notify_would_block() or failed()."""

    SHUT_WR = enum.auto()
    """shutdown(SHUT_WR). Report shut(), with the error if it failed."""

    DRAIN = enum.auto()
    """Read once without waiting, at most `allowance` bytes, and discard them.
    Report received(), would_block() or failed()."""

    COUNT = enum.auto()
    """Count the unacknowledged bytes. Report counted(); None if the count is not known."""

    READ_ERROR = enum.auto()
    """Take the socket's pending error (SO_ERROR). Report pending_error(), or no_error()."""

    CLEAR_ERRORS = enum.auto()
    """Empty the socket's error queue, which wakes every wait. Report cleared()."""

    WAIT_READABLE = enum.auto()
    """Wait until there is input, or until `wake_at`. Report woke()."""

    WAIT_WRITABLE = enum.auto()
    """Wait until output is possible, or until `wake_at`. Report woke()."""

    WAIT_EITHER = enum.auto()
    """Wait until there is input, or output is possible, or until `wake_at`. Report woke()."""

    WAIT_ACK = enum.auto()
    """Wait until there is input or a new acknowledgement, or until `wake_at`. Report woke(), or
    cannot_watch() if this system or its limits do not permit the wait."""

    PAUSE = enum.auto()
    """Do nothing until `wake_at`. Report woke()."""

    RELEASE = enum.auto()
    """The end: release the descriptor with `linger_policy`. Report released()."""


# Module globals, because looking up a member of an enum takes longer than most of the code below.
FLUSH = Step.FLUSH
LOOK = Step.LOOK
SEND_CLOSE_NOTIFY = Step.SEND_CLOSE_NOTIFY
SHUT_WR = Step.SHUT_WR
DRAIN = Step.DRAIN
COUNT = Step.COUNT
READ_ERROR = Step.READ_ERROR
CLEAR_ERRORS = Step.CLEAR_ERRORS
WAIT_READABLE = Step.WAIT_READABLE
WAIT_WRITABLE = Step.WAIT_WRITABLE
WAIT_EITHER = Step.WAIT_EITHER
WAIT_ACK = Step.WAIT_ACK
PAUSE = Step.PAUSE
RELEASE = Step.RELEASE
