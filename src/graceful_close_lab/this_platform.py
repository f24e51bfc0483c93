"""The running system: the library's data about it, and trials on live connections."""

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

# More than fits into the peer's small buffer, so that the peer's window closes. Both are
# heuristics.
_MUCH = 200_000
_RECEIVE_BUFFER = 16 << 10

_SHORTEST = 1  # second: 0 would be an abort

_C_TYPES = {"i": "int", "H": "u_short"}


class Verdict(enum.Enum):
    """The result of a trial."""

    WORKS = "works"
    FAILS = "does not work"
    ABSENT = "not on this system"


@dataclass(frozen=True)
class LingerStruct:
    """The system's interface to SO_LINGER.

    Attributes:
        layout: The C types of struct linger's two members.
        level: SOL_SOCKET.
        option: The number of the option that counts seconds.
        python_option: The `socket` module's SO_LINGER, which on Apple's systems is a different
            option that counts ticks; None: the module has none.
        unit: The unit of `shortest` and `longest`.
        shortest: The shortest TIMED linger.
        longest: The longest TIMED linger.
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
    """The trial of one feature on a live connection.

    Attributes:
        name: The feature.
        verdict: The result.
    """

    name: str
    verdict: Verdict


@dataclass(frozen=True)
class ThisPlatform:
    """The running system.

    Attributes:
        name: The library's name of the system.
        system: The system's own name and version.
        python: The interpreter and its version.
        linger: Its interface to SO_LINGER; None: it has no SO_LINGER.
        trials: The trials, in order.
    """

    name: str
    system: str
    python: str
    linger: LingerStruct | None
    trials: tuple[Trial, ...]


def examine() -> ThisPlatform:
    """Describe the running system, and try the features that the library relies on.

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
                "a reset does not change that count",
                HERE.tcp.count_survives_reset,
                _count_survives_reset,
            ),
            _try("ACK wake-up (epoll)", hasattr(select, "epoll"), _ack_wakes),
            _try(
                "delivery is detected without the peer's FIN",
                HERE.acks is not None,
                _delivery_is_seen,
            ),
            _try("input is discarded inside the kernel", HERE.tcp.truncates, _kernel_discards),
            _try("abort with duplicated descriptors", HERE.tcp.disconnects, _abort_reaches_all),
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
    except (OSError, ValueError):  # refused by a sandbox or an unusual kernel
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
        ours.shutdown(socket.SHUT_WR)  # the FIN is queued behind the unsent data
        watch = new_selector()
        try:
            watch.arm(ours.fileno(), WAIT_ACK, known=False)
            watch.wait(0)  # the event of the registration itself
            loopback.read_to_the_end(peer)
            # Acknowledgements of data cause no event now, because a socket that is shut for
            # writing counts as writable. Only the acknowledgement of the FIN causes one.
            started = perf_counter()
            watch.wait(loopback.TIMEOUT)
            woken = perf_counter() - started < loopback.TIMEOUT
        finally:
            watch.close()
        return woken and unacked_bytes(ours) in (0, None)


def _delivery_is_seen() -> bool:
    with loopback.connection() as (ours, _):  # the peer neither reads nor closes
        ours.sendall(b"reply")
        return timed_linger_close(ours, loopback.TIMEOUT).outcome is CloseOutcome.DELIVERED


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
