"""What can become of a reply, for which kind of client."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Client(enum.Enum):
    """The two kinds of client that matter."""

    READS_WHILE_SENDING = "reads while it sends"
    """Takes the reply as soon as it comes, and keeps on sending until it has all of it. When
    sending fails it still reads. curl, requests and httpx are of this kind, more or less."""

    SENDS_THEN_READS = "sends all, then reads"
    """Reads nothing before all is sent, and gives up when sending fails: http.client."""


class Outcome(enum.Enum):
    """What became of the reply. The value is how it is told."""

    WHOLE = "early reply whole"
    """It came before all was uploaded, and to its last byte."""

    CUT_OFF = "reply cut off"
    """Some of it came, then a reset, or an end too early."""

    RESET = "reset before any byte of the reply"
    """The connection was reset, and nothing of a reply was read."""

    LATE = "no reply before all was uploaded"
    """The reply is whole, but not early: the server had taken the whole upload."""

    CLOSED = "closed without a reply"
    """The server's FIN came, no reply before it, and no reset."""

    REFUSED = "connection refused"
    UNREACHABLE = "could not connect"
    TIMED_OUT = "timed out"
    NOT_HTTP = "no HTTP reply"
    TLS_FAILED = "TLS failed"


@dataclass(frozen=True)
class Try:
    """One try.

    Attributes:
        client: Which kind of client it was.
        outcome: What became of the reply.
        early: Whether the reply, or the reset, came before all was uploaded; None: this client
            cannot see that over TLS.
        status: The reply's status code; 0: none was read.
        server: The reply's Server field.
        sent: Bytes of the upload that the kernel took from us.
        received: Bytes of the reply that were read.
        stuck: Whether the time ran out with a server that had as good as ceased to take the
            upload, so that more time would not have helped.
        seconds: How long it took.
        detail: The system's own word for what went wrong; empty: nothing did.
    """

    client: Client
    outcome: Outcome
    early: bool | None
    status: int
    server: str
    sent: int
    received: int
    stuck: bool
    seconds: float
    detail: str

    @property
    def lost(self) -> bool:
        """Whether a reply was lost, in part or all of it."""
        if self.outcome is Outcome.TIMED_OUT:
            return self.stuck and self.early is True  # it was there, and never to be read
        return self.outcome in (Outcome.CUT_OFF, Outcome.RESET)
