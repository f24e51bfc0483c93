"""The running system: what the library believes of it, and whether a live connection agrees."""

from __future__ import annotations

import enum
import platform
import select
import socket
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from graceful_close import (
    CloseOutcome,
    Linger,
    LingerPolicy,
    abortive_close,
    get_linger,
    set_linger,
    timed_linger_close,
    unacked_bytes,
)
from graceful_close._platform import HERE
from graceful_close._selector import new_selector
from graceful_close._step import WAIT_ACK

from . import loopback

if TYPE_CHECKING:
    from collections.abc import Callable

# More than the peer's small buffer takes, so that the peer's window closes. Both arbitrary.
_MUCH = 200_000
_RECEIVE_BUFFER = 16 << 10

_SHORTEST = 1  # second: 0 would be an abort

_C_TYPES = {"i": "int", "H": "u_short"}


class Verdict(enum.Enum):
    """What came of trying something."""

    WORKS = "works"
    FAILS = "does not work"
    ABSENT = "not on this system"


@dataclass(frozen=True)
class LingerStruct:
    """How this system is told to linger.

    Attributes:
        layout: The C types of struct linger's two members.
        level: SOL_SOCKET.
        option: The option that counts seconds.
        python_option: The `socket` module's SO_LINGER, which on Apple's systems is another
            and counts ticks; None: it has none.
        unit: Of `shortest` and `longest`.
        shortest: The least that a TIMED linger can last.
        longest: The most.
    """

    layout: tuple[str, ...]
    level: int
    option: int
    python_option: int | None
    unit: str
    shortest: int
    longest: int


@dataclass(frozen=True)
class Trial:
    """One thing that was tried on a live connection.

    Attributes:
        name: What it would be good for.
        verdict: What came of it.
    """

    name: str
    verdict: Verdict


@dataclass(frozen=True)
class ThisPlatform:
    """The running system.

    Attributes:
        name: What the library takes it for.
        system: What it calls itself.
        python: The interpreter and its version.
        linger: How it is told to linger; None: it has no SO_LINGER.
        trials: What was tried, in order.
    """

    name: str
    system: str
    python: str
    linger: LingerStruct | None
    trials: tuple[Trial, ...]


def examine() -> ThisPlatform:
    """Describe the running system, and try on loopback what the library relies on.

    Raises:
        OSError: The loopback does not work.
    """
    return ThisPlatform(
        HERE.name,
        f"{platform.system()} {platform.release()} {platform.machine()}",
        f"{platform.python_implementation()} {platform.python_version()}",
        _linger_struct(),
        (
            _try("linger times read back as set", HERE.linger is not None, _linger_reads_back),
            _try("unacknowledged bytes are counted", HERE.acks is not None, _acks_are_counted),
            _try(
                "a reset leaves that count alone",
                HERE.tcp.count_survives_reset,
                _count_survives_reset,
            ),
            _try("an acknowledgement wakes us", hasattr(select, "epoll"), _ack_wakes),
            _try(
                "delivery is seen without the peer's FIN",
                HERE.acks is not None,
                _delivery_is_seen,
            ),
            _try("input is discarded inside the kernel", HERE.tcp.truncates, _kernel_discards),
            _try("an abort reaches every holder", HERE.tcp.disconnects, _abort_reaches_all),
        ),
    )


def _linger_struct() -> LingerStruct | None:
    option = HERE.linger
    if option is None:
        return None
    return LingerStruct(
        tuple(_C_TYPES.get(letter, letter) for letter in option.layout),
        option.level,
        option.number,
        getattr(socket, "SO_LINGER", None),
        "seconds",
        _SHORTEST,
        option.longest,
    )


def _try(name: str, has: bool, trial: Callable[[], bool]) -> Trial:
    if not has:
        return Trial(name, Verdict.ABSENT)
    try:
        works = trial()
    except (OSError, ValueError):  # refused, by a sandbox or by a kernel unlike its kind
        works = False
    return Trial(name, Verdict.WORKS if works else Verdict.FAILS)


def _linger_reads_back() -> bool:
    option = HERE.linger
    if option is None:
        return False
    with socket.socket() as sock:
        for seconds in (_SHORTEST, option.longest):
            set_linger(sock, LingerPolicy.TIMED, seconds)
            if get_linger(sock) != Linger(LingerPolicy.TIMED, seconds):
                return False
    return True


def _acks_are_counted() -> bool:
    with loopback.connection(_RECEIVE_BUFFER) as (ours, _):
        at_first = unacked_bytes(ours)
        loopback.write(ours, _MUCH)
        later = unacked_bytes(ours)
    return at_first == 0 and later is not None and 0 < later <= _MUCH


def _count_survives_reset() -> bool:
    with loopback.connection(_RECEIVE_BUFFER) as (ours, peer):
        loopback.write(ours, _MUCH)
        abortive_close(peer)
        _, ending = loopback.read_to_the_end(ours)
        count = unacked_bytes(ours)
    return ending is loopback.Ending.RST and count is not None and count > 0


def _ack_wakes() -> bool:
    with loopback.connection(_RECEIVE_BUFFER) as (ours, peer):
        loopback.write(ours, _MUCH)
        ours.shutdown(socket.SHUT_WR)  # the FIN queues up behind what the peer does not take
        watch = new_selector()
        try:
            watch.arm(ours.fileno(), WAIT_ACK, known=False)
            watch.wait(0)  # the edge of being added
            loopback.read_to_the_end(peer)
            # Acknowledgements of data wake nobody now, because a socket that is shut for
            # writing counts as writable: what can wake us is the FIN's alone.
            started = perf_counter()
            watch.wait(loopback.PATIENCE)
            woken = perf_counter() - started < loopback.PATIENCE
        finally:
            watch.close()
        return woken and unacked_bytes(ours) in (0, None)


def _delivery_is_seen() -> bool:
    with loopback.connection() as (ours, _):  # the peer neither reads nor closes
        ours.sendall(b"reply")
        return timed_linger_close(ours, loopback.PATIENCE).outcome is CloseOutcome.DELIVERED


def _kernel_discards() -> bool:
    sent = b"input"
    buffer = bytearray(len(sent))
    with loopback.connection() as (ours, peer):
        peer.sendall(sent)
        count = ours.recv_into(buffer, len(sent), socket.MSG_TRUNC)
    return count == len(sent) and not any(buffer)


def _abort_reaches_all() -> bool:
    with loopback.connection() as (ours, peer), ours.dup():
        abortive_close(ours)
        return loopback.read_to_the_end(peer) == (0, loopback.Ending.RST)
