"""Many tries, and what follows from them."""

from __future__ import annotations

import enum
import socket
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .attempt import ask_for_server, attempt
from .outcome import Client, Outcome, Try
from .remedy import remedy

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from .attempt import Endpoint, Upload


class Verdict(enum.Enum):
    """What follows. The value is the program's exit code."""

    SURVIVED = 0
    """There were early replies, and all of them arrived whole."""

    LOST = 1
    """At least one was lost, in part or all of it."""

    NOT_TESTED = 3
    """There was no early reply to be lost."""


# After these another try would find no more.
_HOPELESS = (Outcome.REFUSED, Outcome.UNREACHABLE, Outcome.NOT_HTTP, Outcome.TLS_FAILED)


@dataclass(frozen=True)
class Findings:
    """What became of all tries.

    Attributes:
        url: Where they went to.
        upload: Bytes that each had to upload.
        tries: One by one.
        server: What the server calls itself; empty: nothing.
        local: Whether it all stayed on this machine.
    """

    url: str
    upload: int
    tries: tuple[Try, ...]
    server: str
    local: bool

    @property
    def lost(self) -> int:
        """How many replies were lost."""
        return sum(each.lost for each in self.tries)

    @property
    def whole(self) -> int:
        """How many early replies arrived whole."""
        return sum(each.outcome is Outcome.WHOLE for each in self.tries)

    @property
    def verdict(self) -> Verdict:
        """What follows."""
        if self.lost:
            return Verdict.LOST
        return Verdict.SURVIVED if self.whole else Verdict.NOT_TESTED

    @property
    def remedy(self) -> str:
        """What to do, in one line; empty: nothing is wrong that we know of."""
        if self.verdict is Verdict.LOST:
            return remedy(self.server)
        if self.verdict is Verdict.NOT_TESTED:
            return _to_be_tested(frozenset(each.outcome for each in self.tries))
        return ""


def examine(upload: Upload, tries: int, begin: Callable[[str], None]) -> Findings:
    """Try with each kind of client.

    It ends before its time where nothing more is to be learned: nobody listens, or a try ran
    into its timeout, as the next of that client's would.

    Args:
        upload: What each try does.
        tries: How many for each kind of client.
        begin: Is told of each, before.
    """
    settled = _settled(tuple(_tries(upload, tries, begin)))
    server = next((each.server for each in settled if each.server), "")
    if not server and any(each.lost for each in settled):
        server = ask_for_server(upload)
    local = all(_is_here(*endpoint) for endpoint in upload.endpoints)
    return Findings(str(upload.address), upload.size, settled, server, local)


def _tries(upload: Upload, tries: int, begin: Callable[[str], None]) -> Generator[Try]:
    answered = False
    for client in Client:
        for number in range(tries):
            begin(f"{client.value}: try {number + 1} of {tries}")
            found = attempt(upload, client)
            yield found
            if found.outcome in _HOPELESS:
                return
            if found.outcome is Outcome.TIMED_OUT:
                break
            answered = True
        if not answered:
            return


def _settled(tries: tuple[Try, ...]) -> tuple[Try, ...]:
    """Where a client could not see whether the reply was early, the other one's word counts."""
    early = any(each.early for each in tries)
    return tuple(
        each
        if each.early is not None
        else replace(
            each,
            early=early,
            outcome=Outcome.LATE
            if each.outcome is Outcome.WHOLE and not early
            else each.outcome,
        )
        for each in tries
    )


def _is_here(family: int, endpoint: Endpoint) -> bool:
    """Whether an address is one of this machine's: then, and only then, it can be bound."""
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        try:
            sock.bind((endpoint[0], 0, *endpoint[2:]))
        except OSError:
            return False  # EADDRNOTAVAIL, or EACCES in a sandbox
    return True


def _to_be_tested(outcomes: frozenset[Outcome]) -> str:
    """How to get an early reply, after tries that saw none."""
    return next(words for outcome, words in _ADVICE.items() if outcome in outcomes)


_ADVICE = {  # what says most, first
    Outcome.LATE: "the server took the whole upload before it answered: name a --path that it "
    "refuses at once (404, 405, 413), or an --upload larger than its limit",
    Outcome.REFUSED: "nobody listens there: start the server, or look at the port",
    Outcome.UNREACHABLE: "look at the address",
    Outcome.TLS_FAILED: "--insecure takes any certificate; without TLS write http://",
    Outcome.NOT_HTTP: "look at the port; if it speaks TLS, write https://",
    Outcome.TIMED_OUT: "look at the port; --timeout gives the server longer",
    Outcome.CLOSED: "the server closes without an answer: its log may say why",
}
