"""Promises about the close of one connection."""

from __future__ import annotations

import os
import socket
import sys
import time
from time import monotonic

from graceful_close import (
    CloseOutcome,
    CloseResult,
    Linger,
    LingerPolicy,
    abortive_close,
    close_all,
    closing,
    get_linger,
    graceful_close,
    set_linger,
    timed_linger_close,
    unacked_bytes,
)
from graceful_close._platform import HERE, disconnect

from .. import loopback
from ..loopback import TIMEOUT, Ending
from .exchange import at_the_same_time, early_replies, new_listener, tls_contexts
from .trying import NotHereError, promise, require

# More than fits into the peer's small buffer, so that its window closes. Both are heuristics.
_MUCH = 200_000
_SMALL = 16 << 10

# Seconds: a timeout that is expected to expire, and the longest delay after it on a busy or
# emulated machine. Heuristics.
_SHORT = 0.3
_LATE = 1.0

_CLOSED_OR_UNKNOWN = (0, None)  # what `unacked` may be after an orderly end


@promise("a client that is still uploading reads the whole early reply")
def _early_reply() -> str:
    with new_listener() as listener:
        return early_replies(listener, graceful_close)


@promise("a TLS client that is still uploading reads the whole early reply")
def _early_reply_tls() -> str:
    notified: list[bool | None] = []

    def close(sock: socket.socket) -> None:
        notified.append(graceful_close(sock).notified)

    with new_listener() as listener:
        detail = early_replies(listener, close, tls_contexts())
    require(all(notified), f"a close_notify was not sent: {notified}")
    return detail


@promise("a peer that reads everything and closes is reported as PEER_CLOSED")
def _peer_closes() -> str:
    with loopback.connection() as (ours, peer):

        def read_and_close() -> None:
            require(
                loopback.read_to_the_end(peer) == (5, Ending.FIN), "the reply was truncated"
            )
            peer.close()

        with at_the_same_time(read_and_close):
            ours.sendall(b"reply")
            result = graceful_close(ours)
    require(result.outcome is CloseOutcome.PEER_CLOSED, result)
    require(result.unacked in _CLOSED_OR_UNKNOWN, result)
    return str(result)


@promise("every close releases the descriptor")
def _released() -> str:
    with loopback.connection() as (ours, _):
        number = ours.fileno()
        graceful_close(ours, timeout=0)
        require(ours.fileno() == -1, f"the object still has {ours.fileno()}")
        try:
            os.fstat(number)
        except OSError:
            return "also after TIMED_OUT"
        require(False, f"descriptor {number} is still open")
        return ""


@promise("a close does not change whether a dup blocks")
def _blocking_mode() -> str:
    if sys.platform == "win32":
        raise NotHereError("Windows does not report it")
    else:  # noqa: RET506  (type checkers follow this form)
        for blocking in (True, False):
            with loopback.connection() as (ours, _):
                ours.setblocking(blocking)
                with ours.dup() as dup:
                    unacked_bytes(ours)
                    kept = os.get_blocking(dup.fileno()) is blocking
                    require(kept, "unacked_bytes() changed it")
                    graceful_close(ours, timeout=0)
                    kept = os.get_blocking(dup.fileno()) is blocking
                    require(kept, "graceful_close() changed it")
        return "blocking or not"


@promise("timed_linger_close returns in time, with DELIVERED if delivery can be detected")
def _delivered() -> str:
    with loopback.connection() as (ours, _):  # the peer neither reads nor closes
        ours.sendall(b"reply")
        result = timed_linger_close(ours, _LATE)
    require(result.elapsed < 2 * _LATE, result)
    if result.outcome is not CloseOutcome.DELIVERED:
        require(result.outcome is CloseOutcome.TIMED_OUT and result.unacked is None, result)
    return str(result)


@promise("data that a peer does not read is never DELIVERED, and still arrives")
def _not_delivered() -> str:
    with loopback.connection(_SMALL) as (ours, peer):
        loopback.write(ours, _MUCH)
        result = timed_linger_close(ours, _SHORT)
        received = loopback.read_to_the_end(peer)
    require(result.outcome is CloseOutcome.TIMED_OUT and result.unacked != 0, result)
    require(received == (_MUCH, Ending.FIN), f"the peer read {received} of {_MUCH}")
    return str(result)


@promise("a peer that resets is reported as PEER_RESET, not DELIVERED")
def _reset() -> str:
    with loopback.connection(_SMALL) as (ours, peer):
        loopback.write(ours, _MUCH)
        abortive_close(peer)
        result = graceful_close(ours, timeout=TIMEOUT, until=CloseOutcome.DELIVERED)
    require(result.outcome is CloseOutcome.PEER_RESET, result)
    return str(result)


@promise("a peer that sent its FIN first is not PEER_CLOSED while data is unacknowledged")
def _fin_before_data() -> str:
    with loopback.connection(_SMALL) as (ours, peer):
        loopback.write(ours, _MUCH)
        peer.shutdown(socket.SHUT_WR)
        require(ours.recv(1) == b"", "the FIN did not arrive")
        result = graceful_close(ours, timeout=_SHORT)
        received = loopback.read_to_the_end(peer)
    require(received == (_MUCH, Ending.FIN), f"the peer read {received} of {_MUCH}")
    if result.unacked is not None:
        require(result.outcome is CloseOutcome.TIMED_OUT, result)
    return str(result)


@promise("every call returns in time if the peer is silent")
def _deadlines() -> str:
    def by_timeout(sock: socket.socket) -> CloseResult:
        return graceful_close(sock, timeout=_SHORT)

    def by_idle_timeout(sock: socket.socket) -> CloseResult:
        return graceful_close(sock, idle_timeout=_SHORT)

    def of_close_all(sock: socket.socket) -> CloseResult:
        return close_all([sock], timeout=_SHORT)[0]

    def of_timed_linger_close(sock: socket.socket) -> CloseResult:
        return timed_linger_close(sock, _SHORT)

    silent = (CloseOutcome.TIMED_OUT, CloseOutcome.IDLE_TIMED_OUT)
    outcomes: list[str] = []
    for end in (by_timeout, by_idle_timeout, of_close_all, of_timed_linger_close):
        with loopback.connection(_SMALL) as (ours, _):
            loopback.write(ours, _MUCH)
            started = monotonic()
            result = end(ours)
            took = monotonic() - started
        require(result.outcome in silent, f"{end.__name__}: {result}")
        require(took < _SHORT + _LATE, f"{end.__name__}: returned after {took:.2f} s")
        outcomes.append(result.outcome.name)
    return ", ".join(outcomes)


@promise("drain_limit ends the close of a peer that sends forever")
def _drain_limit() -> str:
    with loopback.connection() as (ours, peer):

        def send_forever() -> None:
            try:
                for _ in range(_MUCH):
                    peer.sendall(bytes(65536))
            except OSError:
                pass  # ECONNRESET, EPIPE: the close has ended

        with at_the_same_time(send_forever):
            result = graceful_close(ours, drain_limit=_MUCH)
    require(result.outcome is CloseOutcome.DRAIN_LIMIT, result)
    return str(result)


@promise("peer_first lets the peer send the first FIN")
def _peer_first() -> str:
    with loopback.connection() as (ours, peer):

        def read_and_close() -> None:
            peer.recv(5)
            peer.close()

        with at_the_same_time(read_and_close):
            ours.sendall(b"reply")
            result = graceful_close(ours, peer_first=TIMEOUT, timeout=TIMEOUT)
    require(result.outcome is CloseOutcome.PEER_CLOSED, result)
    require(result.peer_first is not False, "ours was first")
    return str(result)


@promise("an abort is read as a reset")
def _abort() -> str:
    with loopback.connection(_SMALL) as (ours, peer):
        loopback.write(ours, _MUCH)
        result = abortive_close(ours)
        _, ending = loopback.read_to_the_end(peer)
    require(result.outcome is CloseOutcome.ABORTED, result)
    require(ending is Ending.RST, f"the peer read {ending.value}")
    return str(result)


@promise("on Linux an abort reaches the peer while a dup is open")
def _abort_with_dup() -> str:
    if not HERE.tcp.disconnects:
        raise NotHereError("the kernel sends RST only with the last reference")
    with loopback.connection() as (ours, peer):
        try:
            disconnect(ours)
        except OSError as error:
            raise NotHereError(f"this kernel does not disconnect: {error}") from None
    with loopback.connection() as (ours, peer), ours.dup():
        abortive_close(ours)
        _, ending = loopback.read_to_the_end(peer)
    require(ending is Ending.RST, f"the peer read {ending.value}")
    return "the peer read RST"


@promise("on Linux an abort reaches the peer while a thread is blocked in recv()")
def _abort_during_recv() -> str:
    if not HERE.tcp.disconnects:
        raise NotHereError("the kernel sends RST only with the last reference")
    with loopback.connection() as (ours, peer):
        ours.settimeout(None)

        def receive() -> None:
            try:
                ours.recv(1)
            except OSError:
                pass  # ECONNRESET, ECONNABORTED, EBADF: by the abort, or called late

        with at_the_same_time(receive):
            time.sleep(_SHORT)  # the system does not report that the thread is blocked
            abortive_close(ours)
            _, ending = loopback.read_to_the_end(peer)
    require(ending is Ending.RST, f"the peer read {ending.value}")
    return "the peer read RST"


@promise("closing() aborts only if its body raises")
def _closing() -> str:
    endings: list[Ending] = []
    for fails in (True, False):
        with loopback.connection() as (ours, peer):
            try:
                with closing(ours, timeout=0):
                    ours.sendall(b"half")
                    if fails:
                        raise LookupError
            except LookupError:
                pass
            endings.append(loopback.read_to_the_end(peer)[1])
    require(endings == [Ending.RST, Ending.FIN], f"the peers read {endings}")
    return "the peers read RST and FIN"


@promise("get_linger() returns what set_linger() set")
def _linger() -> str:
    if HERE.linger is None:
        raise NotHereError("no SO_LINGER")
    settings = (
        Linger(LingerPolicy.TIMED, 7),
        Linger(LingerPolicy.ABORT),
        Linger(LingerPolicy.BACKGROUND),
    )
    with socket.socket() as sock:
        for setting in settings:
            set_linger(sock, setting.policy, setting.seconds or None)
            require(get_linger(sock) == setting, f"{get_linger(sock)}, not {setting}")
    return ", ".join(setting.policy.name for setting in settings)


@promise("unacked_bytes counts what the peer has not acknowledged, or returns None")
def _unacked() -> str:
    with loopback.connection(_SMALL) as (ours, peer):
        at_first = unacked_bytes(ours)
        loopback.write(ours, _MUCH)
        full = unacked_bytes(ours)
        ours.shutdown(socket.SHUT_WR)
        loopback.read_to_the_end(peer)
        until = monotonic() + TIMEOUT
        while (at_last := unacked_bytes(ours)) and monotonic() < until:
            pass  # the last acknowledgement has not arrived yet
    counts = (at_first, full, at_last)
    require(at_first in _CLOSED_OR_UNKNOWN and at_last in _CLOSED_OR_UNKNOWN, counts)
    require(full is None or 0 < full <= _MUCH, counts)
    return f"{at_first}, then {full}, then {at_last}"


@promise("an AF_UNIX stream is closed like TCP")
def _unix() -> str:
    if not hasattr(socket, "AF_UNIX"):
        raise NotHereError("no AF_UNIX")
    ours, peer = socket.socketpair()
    with ours, peer:
        ours.sendall(b"reply")
        peer.shutdown(socket.SHUT_WR)
        result = graceful_close(ours)
        received = loopback.read_to_the_end(peer)
    require(result.outcome is CloseOutcome.PEER_CLOSED, result)
    require(received == (5, Ending.FIN), f"the peer read {received}")
    return str(result)
