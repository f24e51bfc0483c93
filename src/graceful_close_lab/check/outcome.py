"""What can become of a reply, for which kind of client."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Self


class Client(enum.Enum):
    """The kinds of client that lose replies differently. The value is what each is called.

    Attributes:
        like: Programs that are of this kind, in a few letters.
        a_loss: What a loss means to the users of such a program.
        by_default: Whether they do so without being configured to.
    """

    like: str
    a_loss: str
    by_default: bool

    KEEP_ALIVE = (
        "keep-alive",
        "http.client",
        "http.client, and what is built on it, raises ConnectionResetError or BrokenPipeError.",
    )
    """Sends all, then reads, and gives up when sending fails. It keeps the connection open."""

    CLOSE = (
        "Connection: close",
        "urllib, nginx",
        (
            "urllib.request raises URLError; nginx, which asks the servers behind it in this way "
            "unless it is configured otherwise, gives 502 Bad Gateway for a reply that it lost."
        ),
        False,
    )
    """The same, but it asks the server to close: urllib.request, and nginx's proxy_pass unless
    it is configured to keep connections (proxy_http_version, proxy_set_header Connection)."""

    EXPECT = (
        "Expect: 100-continue",
        "curl",
        "curl ends with (55) or (56), 'Connection reset by peer', for uploads of 1 MB and more.",
    )
    """Sends the head and waits, a second at most, for 100 Continue or for a reply; then sends
    while it reads, and stops sending at a status of 400 and above."""

    SENDS_FIRST = (
        "sends all, then reads",
        "Chrome, requests",
        (
            "Chrome shows ERR_CONNECTION_RESET in the place of your page; requests raises "
            "ConnectionError, httpx ReadError."
        ),
    )
    """Sends all, then reads; when sending fails it still reads what has come until then."""

    READS = (
        "reads while it sends",
        "Go, Node",
        "Go's net/http and Node's fetch end with 'connection reset by peer' (ECONNRESET).",
    )
    """Takes the reply as soon as it comes, and sends on until it has all of it; when sending
    fails it still reads."""

    def __new__(cls, value: str, like: str, a_loss: str, by_default: bool = True) -> Self:
        """A member with its attributes (see enum's HOWTO)."""
        member = object.__new__(cls)
        member._value_ = value
        member.like, member.a_loss, member.by_default = like, a_loss, by_default
        return member

    @property
    def reads_after_failure(self) -> bool:
        """Whether it still reads when sending has failed."""
        return self not in (Client.KEEP_ALIVE, Client.CLOSE)

    @property
    def reads_while_sending(self) -> bool:
        """Whether it reads before all is sent."""
        return self in (Client.EXPECT, Client.READS)


class Outcome(enum.Enum):
    """What became of the reply. The value is how it is reported."""

    WHOLE = "early reply whole"
    """It came before all was uploaded, and to its last byte."""

    CUT_OFF = "reply cut off"
    """Some of it came, then a reset, or an end too early."""

    RESET = "reset before any byte of the reply"
    """The connection was reset, and nothing of a reply was read."""

    MISSING = "closed without the reply that others got"
    """The server's FIN came and no reply, and other tries had one."""

    BY_PROXY = "a proxy's error in place of the reply"
    """502, 503 or 504, where others got the server's own answer."""

    TIMED_OUT = "hung"
    """Nothing more came or was taken, until the time was up."""

    LATE = "whole, but after all was uploaded"
    """The reply is whole, but not early: the server had taken the whole upload."""

    TOO_SLOW = "upload not done in time"
    """The server took it all along, but not fast enough for the timeout."""

    OTHER_STATUS = "another status than expected"
    """The reply is whole, and is not what was to be tested."""

    CLOSED = "closed without a reply"
    """The server's FIN came, no reply before it, and no reset; no try got a reply."""

    REFUSED = "connection refused"
    UNREACHABLE = "could not connect"
    NOT_HTTP = "no HTTP reply"
    TLS_FAILED = "TLS failed"


LOST = frozenset({Outcome.CUT_OFF, Outcome.RESET, Outcome.MISSING, Outcome.BY_PROXY})

# After these another try would find no more.
NOT_CONNECTED = frozenset(
    {Outcome.REFUSED, Outcome.UNREACHABLE, Outcome.NOT_HTTP, Outcome.TLS_FAILED}
)


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
    seconds: float
    detail: str

    @property
    def lost(self) -> bool:
        """Whether a reply was lost, in part or all of it."""
        return self.outcome in LOST

    @property
    def whole(self) -> bool:
        """Whether an early reply arrived, to its last byte."""
        return self.outcome is Outcome.WHOLE

    @property
    def hung(self) -> bool:
        """Whether neither side would have moved again."""
        return self.outcome is Outcome.TIMED_OUT


class Stop(Exception):  # noqa: N818 - not an error: the end of a try
    """A try has ended.

    Attributes:
        outcome: How.
        detail: See `Try`.
    """

    def __init__(self, outcome: Outcome, detail: str = "") -> None:
        super().__init__(outcome, detail)
        self.outcome = outcome
        self.detail = detail
