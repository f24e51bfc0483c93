"""The possible outcomes of a try, and the kinds of client."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Self


class Client(enum.Enum):
    """The kinds of client that lose replies differently. The value is the displayed name.

    Attributes:
        like: Examples of programs of this kind.
        a_loss: What the users of such a program see after a loss.
        by_default: Whether these programs behave so in their default configuration.
    """

    like: str
    a_loss: str
    by_default: bool

    KEEP_ALIVE = (
        "keep-alive",
        "http.client",
        (
            "http.client, and libraries built on it, raise ConnectionResetError or "
            "BrokenPipeError."
        ),
    )
    """Sends everything, then reads; gives up when sending fails. Keeps the connection open."""

    CLOSE = (
        "Connection: close",
        "urllib, nginx",
        (
            "urllib.request raises URLError; nginx, which sends such requests to the servers "
            "behind it unless it is configured otherwise, returns 502 Bad Gateway for a lost "
            "reply."
        ),
        False,
    )
    """The same, but requests a close: urllib.request, and nginx's proxy_pass unless it is
    configured to keep connections (proxy_http_version, proxy_set_header Connection)."""

    EXPECT = (
        "Expect: 100-continue",
        "curl",
        (
            "curl exits with (55) or (56), 'Connection reset by peer', for uploads of 1 MB and "
            "more."
        ),
    )
    """Sends the head and waits at most a second for 100 Continue or a reply. Then sends and
    reads, and stops sending at a status of 400 and above."""

    SENDS_FIRST = (
        "sends all, then reads",
        "Chrome, requests",
        (
            "Chrome shows ERR_CONNECTION_RESET instead of your page; requests raises "
            "ConnectionError, httpx ReadError."
        ),
    )
    """Sends everything, then reads. When sending fails, it still reads what has arrived."""

    READS = (
        "reads while it sends",
        "Go, Node",
        "Go's net/http and Node's fetch fail with 'connection reset by peer' (ECONNRESET).",
    )
    """Reads the reply as soon as it arrives, and sends until the reply is complete. When
    sending fails, it still reads."""

    def __new__(cls, value: str, like: str, a_loss: str, by_default: bool = True) -> Self:
        """Make a member with its attributes (see enum's HOWTO)."""
        member = object.__new__(cls)
        member._value_ = value
        member.like, member.a_loss, member.by_default = like, a_loss, by_default
        return member

    @property
    def reads_after_failure(self) -> bool:
        """Whether it still reads after sending has failed."""
        return self not in (Client.KEEP_ALIVE, Client.CLOSE)

    @property
    def reads_while_sending(self) -> bool:
        """Whether it reads before everything is sent."""
        return self in (Client.EXPECT, Client.READS)


class Outcome(enum.Enum):
    """The outcome of a try. The value is the reported text."""

    WHOLE = "early reply complete"
    """The reply arrived before the upload was complete, to its last byte."""

    CUT_OFF = "reply truncated"
    """A part of the reply arrived, then a reset or an early end of the stream."""

    RESET = "reset before any byte of the reply"
    """The connection was reset, and no byte of a reply was read."""

    MISSING = "closed without the reply that other clients got"
    """The server's FIN arrived without a reply, and other tries got one."""

    BY_PROXY = "a proxy's error instead of the reply"
    """502, 503 or 504, and other tries got the server's own reply."""

    TIMED_OUT = "hung"
    """Nothing more was received or accepted until the timeout."""

    LATE = "complete, but after the whole upload"
    """The reply is complete, but not early: the server had received the whole upload."""

    TOO_SLOW = "upload not complete in time"
    """The server read the upload all the time, but not fast enough for the timeout."""

    OTHER_STATUS = "another status than expected"
    """The reply is complete, but its status is not the expected one."""

    CLOSED = "closed without a reply"
    """The server's FIN arrived without a reply and without a reset; no try got a reply."""

    REFUSED = "connection refused"
    UNREACHABLE = "could not connect"
    NOT_HTTP = "no HTTP reply"
    TLS_FAILED = "TLS failed"


LOST = frozenset({Outcome.CUT_OFF, Outcome.RESET, Outcome.MISSING, Outcome.BY_PROXY})

# After these outcomes another try is not useful.
NOT_CONNECTED = frozenset(
    {Outcome.REFUSED, Outcome.UNREACHABLE, Outcome.NOT_HTTP, Outcome.TLS_FAILED}
)


@dataclass(frozen=True)
class Try:
    """One try.

    Attributes:
        client: The kind of client.
        outcome: The outcome.
        early: Whether the reply, or the reset, arrived before the upload was complete; None:
            this client cannot detect it over TLS.
        status: The status code of the reply; 0: none was read.
        server: The reply's Server field.
        sent: Bytes of the upload that our kernel accepted.
        received: Bytes of the reply that were read.
        seconds: The duration.
        detail: The system's name of the error; empty: no error.
    """

    client: Client
    outcome: Outcome
    early: bool | None
    status: int
    server: str
    sent: int
    received: int
    seconds: float
    detail: str

    @property
    def lost(self) -> bool:
        """Whether a reply was lost completely or in part."""
        return self.outcome in LOST

    @property
    def whole(self) -> bool:
        """Whether an early reply arrived to its last byte."""
        return self.outcome is Outcome.WHOLE

    @property
    def hung(self) -> bool:
        """Whether neither side made progress."""
        return self.outcome is Outcome.TIMED_OUT


class Stop(Exception):  # noqa: N818 - not an error: the end of a try
    """A try has ended.

    Attributes:
        outcome: The outcome.
        detail: See `Try`.
    """

    def __init__(self, outcome: Outcome, detail: str = "") -> None:
        super().__init__(outcome, detail)
        self.outcome = outcome
        self.detail = detail
