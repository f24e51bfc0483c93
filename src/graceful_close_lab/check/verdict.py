"""Many tries, and the verdict."""

from __future__ import annotations

import enum
import socket
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .attempt import ask_without_upload, attempt
from .connecting import speaks_tls
from .outcome import NOT_CONNECTED, Client, Outcome, Try

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator

    from .upload import Endpoint, Upload


class Verdict(enum.Enum):
    """The verdict on tries. The first member that applies is the verdict."""

    LOST = "LOST"
    """At least one reply was lost completely or in part."""

    LOST_FOR_SOME = "LOST FOR SOME"
    """The same, but by no client in its default configuration. For all tries together only."""

    HUNG = "HUNG"
    """At least one try made no progress until its timeout."""

    SURVIVED = "SURVIVED"
    """There were early replies, and all of them arrived complete."""

    NOT_TESTED = "NOT TESTED"
    """There was no early reply."""

    NOT_CONNECTED = "NOT CONNECTED"
    """There was no connection, or the server did not speak HTTP."""


EXIT_CODES = {
    Verdict.SURVIVED: 0,
    Verdict.LOST: 1,
    Verdict.LOST_FOR_SOME: 1,
    Verdict.NOT_TESTED: 3,
    Verdict.NOT_CONNECTED: 4,
    Verdict.HUNG: 5,
}

# The status from a proxy that got no reply from the server behind it (RFC 9110, 15.6.3 to 5).
BY_PROXIES = frozenset({502, 503, 504})

# The number of timeouts after which no more tries of that client are made, because each takes
# the whole timeout. A heuristic: a server that hangs occasionally is still found.
_ENOUGH_HANGS = 2


@dataclass(frozen=True)
class Row:
    """The tries of one kind of client.

    Attributes:
        client: The kind of client.
        tries: Its tries; empty if none was useful.
    """

    client: Client
    tries: tuple[Try, ...]

    @property
    def lost(self) -> int:
        """The number of lost replies."""
        return sum(each.lost for each in self.tries)

    @property
    def whole(self) -> int:
        """The number of early replies that arrived complete."""
        return sum(each.whole for each in self.tries)

    @property
    def hung(self) -> int:
        """The number of tries that hung."""
        return sum(each.hung for each in self.tries)

    @property
    def verdict(self) -> Verdict:
        """The verdict for this kind of client."""
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
    """The findings of all tries.

    Attributes:
        url: The URL of the requests.
        upload: The size of each upload in bytes.
        tries: All tries.
        server: The Server field; empty: none.
        local: Whether client and server were on one machine.
        unix_socket: The path of the UNIX socket; empty: TCP.
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
        """The number of lost replies."""
        return sum(row.lost for row in self.rows)

    @property
    def whole(self) -> int:
        """The number of early replies that arrived complete."""
        return sum(row.whole for row in self.rows)

    @property
    def hung(self) -> int:
        """The number of tries that hung."""
        return sum(row.hung for row in self.rows)

    @property
    def losing_clients(self) -> tuple[Client, ...]:
        """The kinds of client that lost a reply."""
        return tuple(row.client for row in self.rows if row.lost)

    @property
    def longest(self) -> int:
        """The size of the longest complete reply in bytes; 0: none was complete."""
        return max(
            (each.received for each in self.tries if each.whole or each.outcome in _COMPLETE),
            default=0,
        )

    @property
    def outcomes(self) -> frozenset[Outcome]:
        """The outcomes that happened at least once."""
        return frozenset(each.outcome for each in self.tries)

    @property
    def verdict(self) -> Verdict:
        """The verdict on all tries."""
        if any(client.by_default for client in self.losing_clients):
            return Verdict.LOST
        if self.losing_clients:
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

    Useless tries are not made: no more tries after a refused connection, and no more tries of
    the same client after its timeouts.

    Args:
        upload: The request of each try.
        tries: The number of tries for each kind of client.
        expected: The expected status codes; empty: any.
        begin: Called before each try, with its name.
    """
    made = tuple(_tries(upload, tries, begin))
    server = next((each.server for each in made if each.server), "")
    seen = {each.status for each in made if each.outcome in _COMPLETE}
    unnamed = not server and any(each.lost for each in made)
    if unnamed or (seen and seen <= BY_PROXIES):
        reference = ask_without_upload(upload)
        server = server or reference.server
        seen.add(reference.status)
    settled = [_settle(each, made, seen - {0}, expected) for each in made]
    local = all(_is_here(*endpoint) for endpoint in upload.endpoints)
    paths = [endpoint for _, endpoint in upload.endpoints if isinstance(endpoint, str)]
    return Findings(
        str(upload.address), upload.size, tuple(settled), server, local, "".join(paths)
    )


# The outcomes with a reply that arrived to its last byte.
_COMPLETE = (Outcome.WHOLE, Outcome.LATE)


def _tries(upload: Upload, tries: int, begin: Callable[[str], None]) -> Generator[Try]:
    answered = False
    for client in Client:
        hangs = 0
        for number in range(tries):
            begin(f"{client.value}: try {number + 1} of {tries}")
            found = attempt(upload, client)
            if not answered and _may_be_tls(upload, found) and speaks_tls(upload):
                yield replace(found, outcome=Outcome.NOT_HTTP, detail="the port speaks TLS")
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
    """Return whether a TLS server may have answered: with 400, a reset, or an alert."""
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
    """Return a try with its final outcome, which depends on the other tries."""
    early = each.early
    if early is None:  # this client cannot detect it over TLS, but others can
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
    """Return whether an address is one of this machine's: only those can be bound."""
    if isinstance(endpoint, str):
        return True
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        try:
            sock.bind((endpoint[0], 0, *endpoint[2:]))
        except OSError:
            return False  # EADDRNOTAVAIL, or EACCES in a sandbox
    return True
