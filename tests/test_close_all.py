"""close_all: graceful closes of many sockets at the same time, with one common deadline."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Generator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest

import descriptors
from crowds import (
    all_closed,
    assert_untouched,
    fill_against_fin,
    note,
    ours,
    outcomes,
    peers,
    read_and_close_all,
    reply_early,
    when_done,
    with_select_too,
)
from graceful_close import CloseOutcome, Linger, LingerPolicy, close_all, get_linger, set_linger
from streams import (
    DEADLINE,
    REPLY,
    Connection,
    await_fin,
    await_input,
    await_reset,
    connect,
    connect_many,
    ends_in_reset,
    fill,
    meanwhile,
    read_and_close,
    reset,
)
from tls_sessions import Session

pytestmark = pytest.mark.usefixtures("selector")


# --- the purpose ------------------------------------------------------------------------------


@with_select_too
def test_unread_input_destroys_no_reply(any_family: str) -> None:
    with connect_many(10, any_family) as crowd:
        reply_early(crowd, b"upload" * 1000)
        with meanwhile(read_and_close_all, *peers(crowd)) as replies:
            results = close_all(ours(crowd), timeout=DEADLINE)
        assert replies == [[REPLY] * 10]
    assert outcomes(results) == [CloseOutcome.PEER_CLOSED] * 10
    assert [result.drained for result in results] == [6000] * 10
    assert {result.unacked for result in results} <= {0, None}


@with_select_too
def test_the_results_have_the_order_of_the_sockets(
    crowd: list[Connection], stack: ExitStack
) -> None:
    limited, silent, closed, resets, listening, unconnected, answers = crowd[:7]
    limited.peer.sendall(bytes(2000))
    await_input(limited.ours)
    closed.peer.close()
    await_fin(closed.ours)
    reset(resets.peer)
    await_reset(resets.ours)
    listening.ours.close()
    socks = ours(crowd[:7])
    socks[4] = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    socks[5] = stack.enter_context(socket.socket(socket.AF_INET6))
    with meanwhile(read_and_close, answers.peer):
        results = close_all([*socks, listening.ours], timeout=0.3, drain_limit=1000)
    assert outcomes(results) == [
        CloseOutcome.DRAIN_LIMIT,
        CloseOutcome.TIMED_OUT,
        CloseOutcome.PEER_CLOSED,
        CloseOutcome.PEER_RESET,
        CloseOutcome.NOT_CONNECTED,
        CloseOutcome.NOT_CONNECTED,
        CloseOutcome.PEER_CLOSED,
        CloseOutcome.ALREADY_CLOSED,
    ]
    assert [sock.fileno() for sock in socks] == [-1] * 7
    assert silent.peer.recv(1) == b""
    assert unconnected.ours.fileno() != -1, "it was not in the list"


@with_select_too
def test_peers_that_never_close_cost_the_deadline_once(any_family: str) -> None:
    with connect_many(20, any_family) as crowd:
        results = close_all(ours(crowd), timeout=0.2)
    assert outcomes(results) == [CloseOutcome.TIMED_OUT] * 20
    assert all(0.2 <= result.elapsed < 2 for result in results)


@with_select_too
def test_more_sockets_than_one_batch_are_all_closed() -> None:
    with connect_many(150) as crowd:
        with meanwhile(read_and_close_all, *peers(crowd[140:])):
            results = close_all(ours(crowd), timeout=0.2)
    assert outcomes(results[:140]) == [CloseOutcome.TIMED_OUT] * 140
    assert outcomes(results[140:]) == [CloseOutcome.PEER_CLOSED] * 10
    assert all(0.2 <= result.elapsed < 2 for result in results[:140])


def test_a_fin_that_arrives_before_the_socket_times_out_is_seen(stack: ExitStack) -> None:
    """Not all sockets time out in one batch."""
    with connect_many(150) as crowd:
        last = max(crowd, key=lambda connection: connection.ours.fileno())
        dup = stack.enter_context(last.ours.dup())

        def progress(done: int, _: int) -> None:
            if done < 150 and last.peer.fileno() != -1:
                last.peer.close()
                await_fin(dup)

        results = close_all(ours(crowd), timeout=0.05, progress=progress)
    expected = [CloseOutcome.TIMED_OUT] * 150
    expected[crowd.index(last)] = CloseOutcome.PEER_CLOSED
    assert outcomes(results) == expected


def test_a_timeout_of_0_polls_each_socket_once(crowd: list[Connection]) -> None:
    crowd[3].peer.close()
    await_fin(crowd[3].ours)
    results = close_all(ours(crowd), timeout=0)
    expected = [CloseOutcome.TIMED_OUT] * 10
    expected[3] = CloseOutcome.PEER_CLOSED
    assert outcomes(results) == expected


def test_every_fin_is_sent_before_the_first_wait(crowd: list[Connection]) -> None:
    with meanwhile(read_and_close_all, *reversed(peers(crowd))):
        results = close_all(ours(crowd), timeout=DEADLINE)
    assert outcomes(results) == [CloseOutcome.PEER_CLOSED] * 10


def test_each_socket_has_its_own_idle_deadline(crowd: list[Connection]) -> None:
    talker = crowd[4]
    talked = threading.Event()

    def talk(peer: socket.socket) -> None:
        while not talked.wait(0.02):
            peer.sendall(b"x")
        peer.close()

    with meanwhile(talk, talker.peer):
        results = close_all(
            ours(crowd), timeout=DEADLINE, idle_timeout=0.2, progress=when_done(9, talked.set)
        )
    expected = [CloseOutcome.IDLE_TIMED_OUT] * 10
    expected[4] = CloseOutcome.PEER_CLOSED
    assert outcomes(results) == expected


def test_until_delivered_does_not_wait_for_a_peer_that_has_acknowledged() -> None:
    with connect_many(5) as read, connect_many(1, peer_buffer=4096) as unread:
        fill(unread[0].ours)
        results = close_all(ours(read + unread), timeout=0.3, until=CloseOutcome.DELIVERED)
    assert outcomes(results) == [*[CloseOutcome.DELIVERED] * 5, CloseOutcome.TIMED_OUT]
    assert results[5].unacked
    assert all(result.elapsed < 0.3 for result in results[:5])


@with_select_too
def test_the_close_waits_for_acknowledgements_after_the_peers_fin() -> None:
    with connect_many(3, peer_buffer=4096) as crowd:
        fill_against_fin(crowd)
        with meanwhile(read_and_close_all, *peers(crowd)):
            results = close_all(ours(crowd), timeout=DEADLINE)
    assert outcomes(results) == [CloseOutcome.PEER_CLOSED] * 3
    assert [result.unacked for result in results] == [0] * 3


@with_select_too
def test_a_peers_fin_does_not_acknowledge_our_data() -> None:
    with connect_many(3, peer_buffer=4096) as crowd:
        fill_against_fin(crowd)
        results = close_all(ours(crowd), timeout=0.1)
    assert outcomes(results) == [CloseOutcome.TIMED_OUT] * 3
    assert all(result.unacked for result in results)


@pytest.mark.parametrize("on_timeout", [LingerPolicy.BACKGROUND, LingerPolicy.ABORT])
def test_on_timeout_leaves_the_rest_to_the_kernel_or_resets(on_timeout: Any) -> None:
    with connect_many(3, peer_buffer=4096) as crowd:
        for sock, _ in crowd:
            fill(sock)
            set_linger(sock, LingerPolicy.TIMED, 20)
        results = close_all(ours(crowd), timeout=0.05, on_timeout=on_timeout)
        resets = [ends_in_reset(peer) for _, peer in crowd]
    assert outcomes(results) == [CloseOutcome.TIMED_OUT] * 3
    assert resets == [on_timeout is LingerPolicy.ABORT] * 3


# --- the peer first ---------------------------------------------------------------------------


@with_select_too
def test_peer_first_lets_peers_close_first(stack: ExitStack) -> None:
    """The side that sends the first FIN keeps TIME_WAIT. Silent peers cost the time once."""
    eager, silent = stack.enter_context(connect_many(5)), stack.enter_context(connect_many(5))
    for sock, peer in eager:
        sock.sendall(REPLY)
        peer.sendall(b"upload")

    def close_first(*peers: socket.socket) -> list[int]:
        received = [receive(peer, len(REPLY)) for peer in peers]
        for peer in peers:
            peer.close()
        return received

    with meanwhile(close_first, *peers(eager)) as received:
        with meanwhile(read_and_close_all, *peers(silent)) as replies:
            results = close_all(ours(silent + eager), timeout=DEADLINE, peer_first=0.3)
    assert (received, replies) == ([[len(REPLY)] * 5], [[b""] * 5])
    assert outcomes(results) == [CloseOutcome.PEER_CLOSED] * 10
    assert {result.peer_first for result in results[:5]} <= {False, None}, "None: both crossed"
    assert [result.peer_first for result in results[5:]] == [True] * 5
    assert [result.drained for result in results] == [0] * 5 + [6] * 5
    assert all(0.3 <= result.elapsed < 1.5 for result in results[:5])


def receive(peer: socket.socket, count: int) -> int:
    """Read a number of bytes, and not the end of the stream."""
    received = 0
    while received < count:
        received += len(peer.recv(count - received))
    return received


@with_select_too
@pytest.mark.parametrize("seconds", [1e9, 1e300])
def test_a_timeout_that_is_too_long_for_a_system_call_is_accepted(
    crowd: list[Connection], seconds: float
) -> None:
    options: Any = {"timeout": seconds, "idle_timeout": seconds, "peer_first": seconds}
    for sock in ours(crowd):
        sock.sendall(b"reply")

    def close_first(*peers: socket.socket) -> None:
        for peer in peers:
            assert peer.recv(5) == b"reply"
            peer.close()

    with meanwhile(close_first, *peers(crowd)):
        results = close_all(ours(crowd), **options)
    assert outcomes(results) == [CloseOutcome.PEER_CLOSED] * 10


# --- the arguments ----------------------------------------------------------------------------


def test_an_empty_list_returns_immediately() -> None:
    assert close_all([]) == []


def test_an_object_given_twice_is_closed_once_and_has_one_result(
    crowd: list[Connection],
) -> None:
    (a, peer_a), (b, peer_b) = crowd[:2]
    reports: list[tuple[int, int]] = []
    with meanwhile(read_and_close_all, peer_a, peer_b):
        results = close_all([a, b, a], timeout=DEADLINE, progress=partial(note, reports))
    assert outcomes(results) == [CloseOutcome.PEER_CLOSED] * 3
    assert results[0] is results[2]
    assert reports[-1] == (2, 2)


def test_two_holders_of_one_connection_are_both_closed(tcp: Connection) -> None:
    with tcp.ours.dup() as dup, meanwhile(read_and_close, tcp.peer):
        results = close_all([tcp.ours, dup], timeout=DEADLINE)
        assert dup.fileno() == -1
    # The first reader of the end has the whole result; for the other the connection had ended
    # before.
    assert CloseOutcome.PEER_CLOSED in outcomes(results)
    assert set(outcomes(results)) <= {CloseOutcome.PEER_CLOSED, CloseOutcome.NOT_CONNECTED}


def test_a_dup_keeps_its_mode_and_its_options(
    crowd: list[Connection], stack: ExitStack
) -> None:
    dups = [stack.enter_context(sock.dup()) for sock in ours(crowd)]
    before = [options_of(dup) for dup in dups]
    results = close_all(ours(crowd), timeout=0.05)
    assert outcomes(results) == [CloseOutcome.TIMED_OUT] * 10
    assert [options_of(dup) for dup in dups] == before


def options_of(sock: socket.socket) -> tuple[bool, Linger]:
    return os.get_blocking(sock.fileno()), get_linger(sock)


@pytest.mark.parametrize("thing", [7, None, "socket"])
def test_an_object_that_is_not_a_socket_is_named_by_its_index_and_no_socket_is_touched(
    crowd: list[Connection], thing: Any
) -> None:
    with pytest.raises(TypeError, match=r"socks\[10\]: a socket.socket is needed"):
        close_all([*ours(crowd), thing, thing])
    assert_untouched(crowd)


def test_a_datagram_socket_is_named_by_its_index_and_no_socket_is_touched(
    crowd: list[Connection],
) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as datagram:
        with pytest.raises(TypeError, match=r"socks\[0\]: a stream socket"):
            close_all([datagram, *ours(crowd)])
        assert datagram.fileno() != -1
    assert_untouched(crowd)


def test_a_progress_that_cannot_be_called_touches_no_socket(crowd: list[Connection]) -> None:
    with pytest.raises(TypeError, match="progress must be callable or None, not 5"):
        close_all(ours(crowd), progress=5)  # type: ignore[arg-type]
    assert_untouched(crowd)


def test_a_generator_is_accepted(crowd: list[Connection]) -> None:
    results = close_all((sock for sock in ours(crowd)), timeout=0)
    assert outcomes(results) == [CloseOutcome.TIMED_OUT] * 10


def test_a_generator_that_raises_leaves_all_sockets_untouched(
    crowd: list[Connection],
) -> None:
    def half() -> Generator[socket.socket, None, None]:
        yield from ours(crowd)[:5]
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        close_all(half())
    assert_untouched(crowd)


def test_sockets_of_every_mode_and_family_close_the_same_way(stack: ExitStack) -> None:
    crowd: list[Connection] = []
    for family in ("tcp4", "tcp6", "unix"):
        modes: list[float | None] = [None, 0.0, 30.0]
        for mode in modes:
            connection = stack.enter_context(connect(family))
            connection.ours.settimeout(mode)
            crowd.append(connection)
    reply_early(crowd, b"unread")
    with meanwhile(read_and_close_all, *peers(crowd)) as replies:
        results = close_all(ours(crowd), timeout=DEADLINE)
    assert replies == [[REPLY] * 9]
    assert outcomes(results) == [CloseOutcome.PEER_CLOSED] * 9
    assert [result.drained for result in results] == [6] * 9


def test_an_open_makefile_object_releases_the_descriptor_and_makes_the_result_unclean(
    crowd: list[Connection],
) -> None:
    files = [sock.makefile("rwb") for sock in ours(crowd[:2])]
    with meanwhile(read_and_close_all, *peers(crowd)):
        with pytest.warns(ResourceWarning, match="makefile") as warned:
            results = close_all(ours(crowd), timeout=DEADLINE)
    assert [warning.filename for warning in warned] == [__file__], "it names the caller, once"
    assert all_closed(crowd)
    assert outcomes(results) == [CloseOutcome.PEER_CLOSED] * 10
    assert [result.unflushed for result in results] == [True] * 2 + [False] * 8
    assert [result.clean for result in results] == [False] * 2 + [True] * 8
    for file in files:
        file.close()


# select() has this limit. On Windows, which has no other call, the limit is a number of
# sockets.
@pytest.mark.parametrize("selector", ["epoll", "poll"], indirect=True)
def test_descriptors_above_1023_are_supported(crowd: list[Connection]) -> None:
    fcntl = pytest.importorskip("fcntl")
    high: list[socket.socket] = []
    with descriptors.limited_to(3000), ExitStack() as stack:
        for sock in ours(crowd):
            number = fcntl.fcntl(sock, fcntl.F_DUPFD, 2500)
            high.append(stack.enter_context(socket.socket(fileno=number)))
            sock.close()
        with meanwhile(read_and_close_all, *peers(crowd)):
            results = close_all(high, timeout=DEADLINE)
    assert outcomes(results) == [CloseOutcome.PEER_CLOSED] * 10


def test_close_all_works_without_a_free_descriptor() -> None:
    with connect_many(5) as crowd, connect_many(2, peer_buffer=4096) as slow:
        fill_against_fin(slow)  # so that the close has to wait for an acknowledgement
        both = crowd + slow
        with descriptors.none_left(), meanwhile(read_and_close_all, *peers(both)):
            results = close_all(ours(both), timeout=DEADLINE)
    assert outcomes(results) == [CloseOutcome.PEER_CLOSED] * 7


def test_close_all_uses_at_most_one_descriptor(crowd: list[Connection]) -> None:
    held: list[int] = []
    before = len(os.listdir("/proc/self/fd"))
    crowd[0].peer.close()

    def count(_: int, __: int) -> None:
        held.append(len(os.listdir("/proc/self/fd")))

    close_all(ours(crowd), timeout=0.05, progress=count)
    assert held[0] <= before  # one closed, and one opened


# --- TLS --------------------------------------------------------------------------------------


def test_tls_says_goodbye_and_the_session_is_forgotten(tls: Session, tcp: Connection) -> None:
    tls.ours.sendall(b"reply")
    with meanwhile(read_and_close_all, tcp.peer, tls.peer) as replies:
        results = close_all([tls.ours, tcp.ours], timeout=DEADLINE)
    assert replies == [[b"", b"reply"]], "an end without close_notify would be an error"
    assert outcomes(results) == [CloseOutcome.PEER_CLOSED] * 2
    assert [result.notified for result in results] == [True, None]
    assert tls.ours.version() is None, "OpenSSL would continue to use the number"
