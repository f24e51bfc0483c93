"""Many tries, and what follows from them."""

from __future__ import annotations

import enum
import socket
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .attempt import ask, attempt
from .connecting import speaks_tls
from .outcome import NOT_CONNECTED, Client, Outcome, Try

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator

    from .upload import Endpoint, Upload


class Verdict(enum.Enum):
    """What follows from tries. The first of these that is true of them is the verdict."""

    LOST = "LOST"
    """At least one reply was lost, in part or all of it."""

    LOST_FOR_SOME = "LOST FOR SOME"
    """The same, but by no client that is as it is by default. Of all tries only."""

    HUNG = "HUNG"
    """At least one try came to a halt before its end."""

    SURVIVED = "SURVIVED"
    """There were early replies, and all of them arrived whole."""

    NOT_TESTED = "NOT TESTED"
    """There was no early reply to be lost."""

    NOT_CONNECTED = "NOT CONNECTED"
    """There was no connection, or no HTTP on it."""


EXIT_CODES = {
    Verdict.SURVIVED: 0,
    Verdict.LOST: 1,
    Verdict.LOST_FOR_SOME: 1,
    Verdict.NOT_TESTED: 3,
    Verdict.NOT_CONNECTED: 4,
    Verdict.HUNG: 5,
}

# What a proxy answers for a server behind it that it got no answer from (RFC 9110, 15.6.3 to 5).
BY_PROXIES = frozenset({502, 503, 504})

# Tries that ran into their timeout, after which another of that client's is not made: it would
# cost as much time. A heuristic: a server that hangs now and then is still noticed.
_ENOUGH_HANGS = 2


@dataclass(frozen=True)
class Row:
    """What became of the tries of one kind of client.

    Attributes:
        client: Which.
        tries: One by one; none, if this client had no more to find out.
    """

    client: Client
    tries: tuple[Try, ...]

    @property
    def lost(self) -> int:
        """How many replies were lost."""
        return sum(each.lost for each in self.tries)

    @property
    def whole(self) -> int:
        """How many early replies arrived whole."""
        return sum(each.whole for each in self.tries)

    @property
    def hung(self) -> int:
        """How many tries came to a halt."""
        return sum(each.hung for each in self.tries)

    @property
    def verdict(self) -> Verdict:
        """What follows for this kind of client."""
        if self.lost:
            return Verdict.LOST
        if self.hung:
            return Verdict.HUNG
        if self.whole:
            return Verdict.SURVIVED
        if all(each.outcome in NOT_CONNECTED for each in self.tries) and self.tries:
            return Verdict.NOT_CONNECTED
        return Verdict.NOT_TESTED


@dataclass(frozen=True)
class Findings:
    """What became of all tries.

    Attributes:
        url: Where they went to.
        upload: Bytes that each had to upload.
        tries: One by one.
        server: What the server calls itself; empty: nothing.
        local: Whether it all stayed on this machine.
        unix_socket: The UNIX socket that it went through; empty: it was TCP.
        problem: Why nothing was tried; empty: something was.
    """

    url: str
    upload: int
    tries: tuple[Try, ...] = ()
    server: str = ""
    local: bool = False
    unix_socket: str = ""
    problem: str = ""

    @property
    def rows(self) -> tuple[Row, ...]:
        """The tries of each kind of client."""
        return tuple(
            Row(client, tuple(each for each in self.tries if each.client is client))
            for client in Client
        )

    @property
    def lost(self) -> int:
        """How many replies were lost."""
        return sum(row.lost for row in self.rows)

    @property
    def whole(self) -> int:
        """How many early replies arrived whole."""
        return sum(row.whole for row in self.rows)

    @property
    def hung(self) -> int:
        """How many tries came to a halt."""
        return sum(row.hung for row in self.rows)

    @property
    def losers(self) -> tuple[Client, ...]:
        """The kinds of client that lost a reply."""
        return tuple(row.client for row in self.rows if row.lost)

    @property
    def longest(self) -> int:
        """Bytes of the longest reply that arrived whole; 0: none did."""
        return max(
            (each.received for each in self.tries if each.whole or each.outcome in _COMPLETE),
            default=0,
        )

    @property
    def outcomes(self) -> frozenset[Outcome]:
        """What happened at least once."""
        return frozenset(each.outcome for each in self.tries)

    @property
    def verdict(self) -> Verdict:
        """What follows."""
        if any(client.by_default for client in self.losers):
            return Verdict.LOST
        if self.losers:
            return Verdict.LOST_FOR_SOME
        if self.hung:
            return Verdict.HUNG
        if self.whole:
            return Verdict.SURVIVED
        if self.outcomes <= NOT_CONNECTED:
            return Verdict.NOT_CONNECTED
        return Verdict.NOT_TESTED


def examine(
    upload: Upload,
    tries: int,
    expected: Collection[int],
    begin: Callable[[str], None],
) -> Findings:
    """Try with each kind of client.

    It ends before its time where nothing more can be learned: the connection is refused, or a try ran
    into its timeout, as the next of that client's would.

    Args:
        upload: What each try does.
        tries: How many for each kind of client.
        expected: The status codes that count; none: any.
        begin: Called before each, with its name.
    """
    made = tuple(_tries(upload, tries, begin))
    server = next((each.server for each in made if each.server), "")
    seen = {each.status for each in made if each.outcome in _COMPLETE}
    unnamed = not server and any(each.lost for each in made)
    if unnamed or (seen and seen <= BY_PROXIES):
        calm = ask(upload)
        server = server or calm.server
        seen.add(calm.status)
    settled = [_settle(each, made, seen - {0}, expected) for each in made]
    local = all(_is_here(*endpoint) for endpoint in upload.endpoints)
    paths = [endpoint for _, endpoint in upload.endpoints if isinstance(endpoint, str)]
    return Findings(
        str(upload.address), upload.size, tuple(settled), server, local, "".join(paths)
    )


# A reply that arrived to its last byte.
_COMPLETE = (Outcome.WHOLE, Outcome.LATE)


def _tries(upload: Upload, tries: int, begin: Callable[[str], None]) -> Generator[Try]:
    answered = False
    for client in Client:
        hangs = 0
        for number in range(tries):
            begin(f"{client.value}: try {number + 1} of {tries}")
            found = attempt(upload, client)
            if not answered and _may_be_tls(upload, found) and speaks_tls(upload):
                yield replace(found, outcome=Outcome.NOT_HTTP, detail="it speaks TLS")
                return
            yield found
            if found.outcome in NOT_CONNECTED:
                return
            if found.outcome in (Outcome.TIMED_OUT, Outcome.TOO_SLOW):
                hangs += 1
                if number == 0 or hangs == _ENOUGH_HANGS:
                    break
            else:
                answered = True
        if not answered:
            return


def _may_be_tls(upload: Upload, found: Try) -> bool:
    """Whether this is what a TLS server may do to a plain request: 400, a reset, an alert."""
    return (
        upload.context is None
        and found.status in (0, 400)
        and found.outcome
        not in (
            Outcome.REFUSED,
            Outcome.UNREACHABLE,
        )
    )


def _settle(each: Try, made: tuple[Try, ...], seen: set[int], expected: Collection[int]) -> Try:
    """What a try comes to in the light of all of them."""
    early = each.early
    if early is None:  # this client could not see it over TLS: the others' word counts
        early = any(other.early for other in made)
    outcome = each.outcome
    if outcome is Outcome.CLOSED and seen:
        outcome = Outcome.MISSING
    elif outcome in _COMPLETE:
        if (
            each.status in BY_PROXIES
            and each.status not in expected
            and (expected or not seen <= BY_PROXIES)
        ):
            outcome = Outcome.BY_PROXY
        elif expected and each.status not in expected:
            outcome = Outcome.OTHER_STATUS
        elif not early:
            outcome = Outcome.LATE
    return replace(
        each,
        early=early,
        outcome=outcome,
        detail=f"HTTP {each.status}"
        if outcome in (Outcome.BY_PROXY, Outcome.OTHER_STATUS)
        else each.detail,
    )


def _is_here(family: int, endpoint: Endpoint) -> bool:
    """Whether an address is one of this machine's: then, and only then, it can be bound."""
    if isinstance(endpoint, str):
        return True
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        try:
            sock.bind((endpoint[0], 0, *endpoint[2:]))
        except OSError:
            return False  # EADDRNOTAVAIL, or EACCES in a sandbox
    return True
