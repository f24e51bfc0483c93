"""What type checkers accept and reject of `graceful_close`. Nothing here is run."""

# pyright: reportUnnecessaryTypeIgnoreComment=error

from __future__ import annotations

import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any, Final, Literal, assert_never, assert_type

from typing_extensions import Unpack

from graceful_close import (
    CloseOptions,
    CloseOutcome,
    CloseResult,
    GracefulListener,
    Linger,
    LingerPolicy,
    Reaper,
    ReaperOptions,
    UncleanCloseError,
    abortive_close,
    close_all,
    closing,
    exit_at_sigterm,
    get_linger,
    graceful_close,
    set_linger,
    timed_linger_close,
    unacked_bytes,
)

exit_at_sigterm()

# --- closing one connection ------------------------------------------------------------------


# The value has a type that no option accepts, because a checker may report either mistake
# first.
ANYTHING: Any = None


def one(sock: socket.socket, session: ssl.SSLSocket) -> None:
    assert_type(graceful_close(sock), CloseResult)
    assert_type(graceful_close(session, timeout=5), CloseResult)
    assert_type(
        graceful_close(
            sock,
            timeout=0.5,
            idle_timeout=None,
            drain_limit=65536,
            until=CloseOutcome.DELIVERED,
            on_timeout=LingerPolicy.ABORT,
            peer_first=2.5,
        ),
        CloseResult,
    )
    assert_type(timed_linger_close(sock, 2.5, on_timeout=LingerPolicy.BACKGROUND), CloseResult)
    assert_type(abortive_close(sock), CloseResult)
    assert_type(unacked_bytes(sock), int | None)


def one_refused(sock: socket.socket) -> None:
    graceful_close(sock.fileno())  # type: ignore[arg-type]
    graceful_close(sock, ANYTHING)  # type: ignore[call-arg]
    graceful_close(sock, timeout=None)  # type: ignore[arg-type]
    graceful_close(sock, timeout="5")  # type: ignore[arg-type]
    graceful_close(sock, drain_limit=1e6)  # type: ignore[arg-type]
    graceful_close(sock, until="delivered")  # type: ignore[arg-type]
    graceful_close(sock, until=CloseOutcome.ABORTED)  # type: ignore[arg-type]
    graceful_close(sock, on_timeout=CloseOutcome.ABORTED)  # type: ignore[arg-type]
    graceful_close(sock, on_timeout=LingerPolicy.TIMED)  # type: ignore[arg-type]
    graceful_close(sock, peer_first=None)  # type: ignore[arg-type]
    graceful_close(sock, linger=5)  # type: ignore[call-arg]
    timed_linger_close(sock)  # type: ignore[call-arg]
    timed_linger_close(sock, 1, on_timeout=LingerPolicy.TIMED)  # type: ignore[arg-type]
    abortive_close(sock, True)  # type: ignore[call-arg]


def arguments_as_variables(
    sock: socket.socket, outcome: CloseOutcome, policy: LingerPolicy, *, abort: bool
) -> None:
    """The member must be known: the type of the enum is not enough."""
    until: Final = CloseOutcome.DELIVERED
    graceful_close(sock, until=until)
    graceful_close(sock, on_timeout=LingerPolicy.ABORT if abort else LingerPolicy.BACKGROUND)
    graceful_close(sock, until=outcome)  # type: ignore[arg-type]
    graceful_close(sock, on_timeout=policy)  # type: ignore[arg-type]


def one_in_a_block(sock: socket.socket) -> int:
    with closing(sock, timeout=10, until=CloseOutcome.DELIVERED) as stream:
        assert_type(stream, socket.socket)
    block = closing(sock)
    assert_type(block.result, CloseResult | None)
    as_any_other: AbstractContextManager[socket.socket, None] = block
    with as_any_other, closing(sock):
        return 1  # a block that suppressed exceptions would need a `return` after it


def one_in_a_block_refused(sock: socket.socket) -> None:
    closing(sock, until=CloseOutcome.ABORTED)  # type: ignore[arg-type]
    closing(sock, on_timeout=LingerPolicy.TIMED)  # type: ignore[arg-type]
    closing(sock, patience=5)  # type: ignore[call-arg]


# --- closing many ----------------------------------------------------------------------------


def many(socks: Iterator[socket.socket], sessions: list[ssl.SSLSocket]) -> None:
    assert_type(close_all(socks), list[CloseResult])
    assert_type(close_all(sessions, timeout=10, progress=print), list[CloseResult])
    note: Callable[[int, int], None] = lambda done, total: None
    close_all({*sessions}, progress=note)


def many_refused(sock: socket.socket, result_read: Callable[[str], None]) -> None:
    close_all(sock)  # type: ignore[arg-type]
    close_all([sock.fileno()])  # type: ignore[list-item]
    close_all([sock], progress=result_read)  # type: ignore[arg-type]
    close_all([sock], until=CloseOutcome.ABORTED)  # type: ignore[arg-type]
    close_all([sock], on_timeout=LingerPolicy.TIMED)  # type: ignore[arg-type]
    close_all([sock], patience=5)  # type: ignore[call-arg]


def left_to_a_reaper(sock: socket.socket) -> None:
    reported: list[CloseResult] = []
    Reaper(on_close=None)
    Reaper(on_close=print)
    Reaper(on_close=reported.append, peer_first=1)
    reaper = Reaper(max_sockets=None, on_overflow=LingerPolicy.BACKGROUND, idle_timeout=None)
    with reaper as same:
        assert_type(same, Reaper)
        future = reaper.submit(sock)
        assert_type(future, Future[CloseResult])
        assert_type(future.result(), CloseResult)
    assert_type(reaper.stats(), dict[CloseOutcome, int])
    assert_type(reaper.overflowed, int)
    assert_type(len(reaper), int)
    assert_type(bool(reaper), bool)
    assert_type(reaper.close(2.5), None)
    reaper.close()


def reaper_refused(
    reaper: Reaper, future: Future[CloseResult], result_read: Callable[[str], None]
) -> None:
    Reaper(30)  # type: ignore[call-arg]
    Reaper(max_sockets=1.5)  # type: ignore[arg-type]
    Reaper(until=CloseOutcome.ABORTED)  # type: ignore[arg-type]
    Reaper(on_timeout=LingerPolicy.TIMED)  # type: ignore[arg-type]
    Reaper(on_overflow=LingerPolicy.TIMED)  # type: ignore[arg-type]
    Reaper(on_close=result_read)  # type: ignore[arg-type]
    reaper.submit(future)  # type: ignore[arg-type]
    reaper.overflowed = 0  # type: ignore[misc]


# --- results ----------------------------------------------------------------------------


def result_read(result: CloseResult) -> str:
    assert_type(result.outcome, CloseOutcome)
    assert_type(result.elapsed, float)
    assert_type(result.drained, int)
    assert_type(result.unacked, int | None)
    assert_type(result.error, OSError | None)
    assert_type(result.notified, bool | None)
    assert_type(result.peer_notified, bool | None)
    assert_type(result.peer_first, bool | None)
    assert_type(result.unflushed, bool)
    assert_type(result.peer, object)
    assert_type(result.clean, bool)
    assert_type(result.check(), CloseResult)
    assert_type(CloseResult(CloseOutcome.ABORTED, 0.0, 0, None, None), CloseResult)
    assert_type({result: 1}, dict[CloseResult, int])
    match result:
        case CloseResult(CloseOutcome.PEER_RESET, elapsed, drained, unacked):
            assert_type(elapsed, float)
            assert_type(drained, int)
            assert_type(unacked, int | None)
        case _:
            pass
    return str(result)


def result_refused(result: CloseResult) -> None:
    result.outcome = CloseOutcome.DELIVERED  # type: ignore[misc]
    count: int = result.unacked  # type: ignore[assignment]
    result.peer[0]  # type: ignore[index]
    CloseResult(CloseOutcome.DELIVERED, 0.0, count)  # type: ignore[call-arg]
    result.outcome is CloseOutcome.LOST  # type: ignore[attr-defined]  # noqa: B015


def every_outcome(outcome: CloseOutcome) -> bool:
    """Adding or removing an outcome is a breaking change, which is an error here."""
    match outcome:
        case CloseOutcome.PEER_CLOSED | CloseOutcome.DELIVERED | CloseOutcome.ABORTED:
            return True
        case CloseOutcome.PEER_RESET | CloseOutcome.TIMED_OUT | CloseOutcome.IDLE_TIMED_OUT:
            return False
        case CloseOutcome.DRAIN_LIMIT | CloseOutcome.NOT_CONNECTED:
            return False
        case CloseOutcome.ALREADY_CLOSED:
            return False
        case _:
            assert_never(outcome)


def unclean(result: CloseResult) -> None:
    try:
        result.check()
    except UncleanCloseError as error:
        assert_type(error.result, CloseResult)
        assert_type(error.errno, int | None)
        as_any_other: OSError = error
        raise as_any_other from None


# --- SO_LINGER -------------------------------------------------------------------------------


def linger(sock: socket.socket) -> None:
    assert_type(get_linger(sock), Linger)
    assert_type(get_linger(sock).policy, LingerPolicy)
    assert_type(get_linger(sock).seconds, int)
    assert_type(set_linger(sock, LingerPolicy.TIMED, 0.5), None)
    set_linger(sock, LingerPolicy.BACKGROUND)
    match get_linger(sock):
        case Linger(LingerPolicy.TIMED, seconds):
            assert_type(seconds, int)
        case Linger(policy=policy):
            assert_type(policy, LingerPolicy)


def linger_refused(sock: socket.socket, setting: Linger) -> None:
    set_linger(sock, 1, 5)  # type: ignore[arg-type]
    set_linger(sock, setting)  # type: ignore[arg-type]
    set_linger(sock)  # type: ignore[call-arg]
    Linger(LingerPolicy.TIMED, 0.5)  # type: ignore[arg-type]
    setting.seconds = 5  # type: ignore[misc]


def every_policy(policy: LingerPolicy) -> Literal[0, 1]:
    match policy:
        case LingerPolicy.BACKGROUND:
            return 0
        case LingerPolicy.ABORT | LingerPolicy.TIMED:
            return 1
        case _:
            assert_never(policy)


def passed_on(sock: socket.socket, **options: Unpack[CloseOptions]) -> CloseResult:
    return graceful_close(sock, **options)  # pyrefly: ignore[open-unpacking]


def made_with(**options: Unpack[ReaperOptions]) -> Reaper:
    return Reaper(**options)  # pyrefly: ignore[open-unpacking]


def passing_on(sock: socket.socket) -> None:
    assert_type(passed_on(sock, timeout=5, until=CloseOutcome.DELIVERED), CloseResult)
    assert_type(made_with(max_sockets=10, peer_first=1), Reaper)
    passed_on(sock, patience=5)  # type: ignore[call-arg]


# --- servers ---------------------------------------------------------------


class OwnListener(GracefulListener):
    """Methods of a subclass return the subclass."""


def listener(plain: socket.socket, context: ssl.SSLContext, reaper: Reaper) -> None:
    with GracefulListener(("127.0.0.1", 0), backlog=128, idle_timeout=None) as server:
        assert_type(server, GracefulListener)
        assert_type(server.reaper, Reaper)
        accepted, address = server.accept()
        assert_type(accepted, socket.socket)
        assert_type(address, Any)
        assert_type(server.dup(), GracefulListener)
        assert_type(server.tls(context), None)
        assert_type(server.refuse_backlog(), list[CloseResult])
        assert_type(server.refuse_backlog(b"HTTP/1.1 503 ", timeout=0.5), list[CloseResult])
        assert_type(server.setblocking(False), None)
        as_any_other: socket.socket = server
        as_any_other.close()
    assert_type(OwnListener.adopt(plain, reaper=reaper), OwnListener)
    GracefulListener(
        ("::", 0), family=socket.AF_INET6, reuse_port=True, dualstack_ipv6=True, reaper=reaper
    )
    if sys.platform != "win32":
        GracefulListener("/run/server.sock", family=socket.AF_UNIX, drain_limit=None)


def listener_refused(plain: socket.socket) -> None:
    GracefulListener()  # type: ignore[call-arg]
    GracefulListener(8080)  # type: ignore[arg-type]
    GracefulListener(("", 0), timeout="5")  # type: ignore[arg-type]
    GracefulListener(("", 0), patience=5)  # type: ignore[call-arg]
    GracefulListener(("", 0), on_overflow=LingerPolicy.TIMED)  # type: ignore[arg-type]
    GracefulListener(("", 0)).refuse_backlog("503")  # type: ignore[arg-type]
    GracefulListener.adopt(plain.fileno())  # type: ignore[arg-type]
    GracefulListener.adopt(plain, reaper=30)  # type: ignore[arg-type]
