"""close_all: graceful closes of many sockets at the same time, with one common deadline."""

from __future__ import annotations

import os
import select
import selectors
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

import descriptors
from graceful_close import (
    CloseOutcome,
    CloseResult,
    Linger,
    LingerPolicy,
    close_all,
    get_linger,
    set_linger,
)
from graceful_close._close_all import close_all_on
from graceful_close._options import Options
from graceful_close._release import shut_for_writing
from signals import Stop, each_moment
from streams import (
    PATIENCE,
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
from test_tls import session

REPLY = b"reply" * 13_000


@pytest.fixture(params=["epoll", "poll"], autouse=True)
def selector(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run each test with every kind of selector."""
    name: str = request.param
    if name != "epoll":
        monkeypatch.delattr(select, "epoll", raising=False)
    if name == "poll":
        monkeypatch.setattr(selectors, "DefaultSelector", selectors.PollSelector)
    if name == "select":
        monkeypatch.setattr(selectors, "DefaultSelector", selectors.SelectSelector)
        monkeypatch.setattr("graceful_close._selector._SELECTABLE", 3)
    return name


with_select_too = pytest.mark.parametrize(
    "selector", ["epoll", "poll", "select"], indirect=True
)


@pytest.fixture
def crowd() -> Iterator[list[Connection]]:
    with connect_many(10) as connections:
        yield connections


def ours(connections: list[Connection]) -> list[socket.socket]:
    return [connection.ours for connection in connections]


def outcomes(results: list[CloseResult]) -> list[CloseOutcome]:
    return [result.outcome for result in results]


def note(reports: list[tuple[int, int]], done: int, total: int) -> None:
    """Add a progress report to a list."""
    reports.append((done, total))


def when_done(count: int, action: Callable[[], object]) -> Callable[[int, int], None]:
    """Return a function for `progress` that acts when this many sockets are closed."""

    def progress(done: int, _: int) -> None:
        if done == count:
            action()

    return progress


def reply_early(connections: list[Connection], upload: bytes) -> None:
    """Reply to uploads that are not read."""
    for sock, peer in connections:
        peer.sendall(upload)
        await_input(sock)
        sock.sendall(REPLY)


def fill_against_fin(connections: list[Connection]) -> None:
    """Fill the buffers to peers that have half-closed."""
    for sock, peer in connections:
        fill(sock)
        peer.shutdown(socket.SHUT_WR)
        await_fin(sock)


def read_and_close_all(*peers: socket.socket) -> list[bytes]:
    return [read_and_close(peer) for peer in peers]


def peers(connections: list[Connection]) -> list[socket.socket]:
    return [connection.peer for connection in connections]


def all_closed(connections: list[Connection]) -> bool:
    return all(sock.fileno() == -1 for sock in ours(connections))


def flood(enough: threading.Event, *peers: socket.socket) -> None:
    """Write until the other side accepts no more, then read to the end and close."""
    block = bytes(1 << 20)
    for peer in peers:
        peer.setblocking(False)
    flooding = True
    while flooding:
        flooding = not enough.is_set()
        for peer in peers:
            with suppress(BlockingIOError):
                peer.send(block)
    read_and_close_all(*peers)


@contextmanager
def on_alarm(handler: Callable[..., object], *times: float) -> Generator[None, None, None]:
    """Send a signal after some seconds, and repeat it if there is a second number."""
    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, *times)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- the purpose -----------------------------------------------------------------------


@with_select_too
def test_unread_input_destroys_no_reply(any_family: str) -> None:
    with connect_many(10, any_family) as crowd:
        reply_early(crowd, b"upload" * 1000)
        with meanwhile(read_and_close_all, *peers(crowd)) as replies:
            results = close_all(ours(crowd), timeout=PATIENCE)
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
        results = close_all(ours(crowd), timeout=PATIENCE)
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
            ours(crowd), timeout=PATIENCE, idle_timeout=0.2, progress=when_done(9, talked.set)
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
            results = close_all(ours(crowd), timeout=PATIENCE)
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
            results = close_all(ours(silent + eager), timeout=PATIENCE, peer_first=0.3)
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


def test_peer_first_is_limited_by_the_deadline(crowd: list[Connection]) -> None:
    results = close_all(ours(crowd), timeout=0.1, peer_first=PATIENCE)
    assert outcomes(results) == [CloseOutcome.TIMED_OUT] * 10
    assert [peer.recv(1) for peer in peers(crowd)] == [b""] * 10
    assert all(0.1 <= result.elapsed < 2 for result in results)


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


# --- the arguments -----------------------------------------------------------------------


def test_an_empty_list_returns_immediately() -> None:
    assert close_all([]) == []


def test_an_object_given_twice_is_closed_once_and_has_one_result(
    crowd: list[Connection],
) -> None:
    (a, peer_a), (b, peer_b) = crowd[:2]
    reports: list[tuple[int, int]] = []
    with meanwhile(read_and_close_all, peer_a, peer_b):
        results = close_all([a, b, a], timeout=PATIENCE, progress=partial(note, reports))
    assert outcomes(results) == [CloseOutcome.PEER_CLOSED] * 3
    assert results[0] is results[2]
    assert reports[-1] == (2, 2)


def test_two_holders_of_one_connection_are_both_closed(tcp: Connection) -> None:
    with tcp.ours.dup() as dup, meanwhile(read_and_close, tcp.peer):
        results = close_all([tcp.ours, dup], timeout=PATIENCE)
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
    with pytest.raises(TypeError, match=r"socks\[10\]: expected a socket"):
        close_all([*ours(crowd), thing, thing])
    assert_untouched(crowd)


def test_a_datagram_socket_is_named_by_its_index_and_no_socket_is_touched(
    crowd: list[Connection],
) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as datagram:
        with pytest.raises(TypeError, match=r"socks\[0\]: expected a stream socket"):
            close_all([datagram, *ours(crowd)])
        assert datagram.fileno() != -1
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


def assert_untouched(crowd: list[Connection]) -> None:
    """Both directions still work."""
    for sock, peer in crowd:
        sock.sendall(b"to the peer")
        peer.sendall(b"from the peer")
        assert (peer.recv(100), sock.recv(100)) == (b"to the peer", b"from the peer")


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
        results = close_all(ours(crowd), timeout=PATIENCE)
    assert replies == [[REPLY] * 9]
    assert outcomes(results) == [CloseOutcome.PEER_CLOSED] * 9
    assert [result.drained for result in results] == [6] * 9


def test_an_open_makefile_object_releases_the_descriptor_and_makes_the_result_unclean(
    crowd: list[Connection],
) -> None:
    files = [sock.makefile("rwb") for sock in ours(crowd[:9])]
    with meanwhile(read_and_close_all, *peers(crowd)):
        with pytest.warns(ResourceWarning, match="makefile") as warned:
            results = close_all(ours(crowd), timeout=PATIENCE)
    assert [warning.filename for warning in warned] == [__file__], "it names the caller, once"
    assert all_closed(crowd)
    assert outcomes(results) == [CloseOutcome.PEER_CLOSED] * 10
    assert [result.unflushed for result in results] == [True] * 9 + [False]
    assert [result.clean for result in results] == [False] * 9 + [True]
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
            results = close_all(high, timeout=PATIENCE)
    assert outcomes(results) == [CloseOutcome.PEER_CLOSED] * 10


def test_close_all_works_without_a_free_descriptor() -> None:
    with connect_many(5) as crowd, connect_many(2, peer_buffer=4096) as slow:
        fill_against_fin(slow)  # so that the close has to wait for an acknowledgement
        both = crowd + slow
        with descriptors.none_left(), meanwhile(read_and_close_all, *peers(both)):
            results = close_all(ours(both), timeout=PATIENCE)
    assert outcomes(results) == [CloseOutcome.PEER_CLOSED] * 7


def test_close_all_uses_at_most_one_descriptor(crowd: list[Connection]) -> None:
    held: list[int] = []
    before = len(os.listdir("/proc/self/fd"))
    crowd[0].peer.close()

    def count(_: int, __: int) -> None:
        held.append(len(os.listdir("/proc/self/fd")))

    close_all(ours(crowd), timeout=0.05, progress=count)
    assert held[0] <= before  # one closed, and one opened


# --- the peers --------------------------------------------------------------------------------


@with_select_too
def test_a_flood_does_not_delay_other_closes_and_ends_too(crowd: list[Connection]) -> None:
    floods, polite = crowd[:3], crowd[3:]
    enough = threading.Event()
    with (
        meanwhile(partial(flood, enough), *peers(floods)),
        meanwhile(read_and_close_all, *peers(polite)),
    ):
        results = close_all(
            ours(crowd), timeout=PATIENCE, progress=when_done(len(polite), enough.set)
        )
    assert outcomes(results) == [CloseOutcome.PEER_CLOSED] * 10
    assert all(result.drained > 0 for result in results[:3])


def test_a_flood_from_peers_that_do_not_read_does_not_delay_other_closes() -> None:
    """The close then waits for an acknowledgement, and has to read all input before it."""
    with connect_many(3, peer_buffer=4096) as floods, connect_many(5) as polite:
        for sock, _ in floods:
            fill(sock)
        enough = threading.Event()
        with meanwhile(partial(flood, enough), *peers(floods)):
            results = close_all(
                ours(floods + polite),
                timeout=PATIENCE,
                until=CloseOutcome.DELIVERED,
                progress=when_done(len(polite), enough.set),
            )
    assert outcomes(results) == [CloseOutcome.DELIVERED] * 8
    assert all(result.drained > 0 for result in results[:3])


def test_peers_that_drip_end_at_the_deadline(crowd: list[Connection]) -> None:
    done = threading.Event()

    def drip(*peers: socket.socket) -> None:
        while not done.wait(0.005):
            for peer in peers:
                with suppress(OSError):
                    peer.send(b"x")

    with meanwhile(drip, *peers(crowd)):
        results = close_all(ours(crowd), timeout=0.2)
        done.set()
    assert outcomes(results) == [CloseOutcome.TIMED_OUT] * 10
    assert all(result.drained > 0 for result in results)
    assert max(result.elapsed for result in results) < 2


def test_resets_by_peers_during_the_close_are_results(crowd: list[Connection]) -> None:
    def reset_all(*peers: socket.socket) -> None:
        for peer in peers:
            assert peer.recv(1) == b""
            reset(peer)

    with meanwhile(reset_all, *peers(crowd)):
        results = close_all(ours(crowd), timeout=PATIENCE)
    assert outcomes(results) == [CloseOutcome.PEER_RESET] * 10
    assert all(isinstance(result.error, ConnectionResetError) for result in results)


def test_half_closed_peers_still_get_our_data(crowd: list[Connection]) -> None:
    for sock, peer in crowd:
        peer.shutdown(socket.SHUT_WR)
        await_fin(sock)
        sock.sendall(REPLY)
    with meanwhile(read_and_close_all, *peers(crowd)) as replies:
        results = close_all(ours(crowd), timeout=PATIENCE)
    assert replies == [[REPLY] * 10]
    assert outcomes(results) == [CloseOutcome.PEER_CLOSED] * 10


# --- other threads ----------------------------------------------------------------------------


@with_select_too
def test_a_close_by_another_thread_has_no_effect(crowd: list[Connection]) -> None:
    """The caller's object no longer has the descriptor."""
    victim = crowd[2]

    def close_detached(*peers: socket.socket) -> list[bytes]:
        assert victim.peer.recv(1) == b""  # the close has begun
        assert victim.ours.fileno() == -1
        victim.ours.close()
        return read_and_close_all(*peers)

    for sock, peer in crowd:
        peer.sendall(b"upload")
        await_input(sock)
    others = crowd[:2] + crowd[3:]
    with meanwhile(close_detached, *peers(others), victim.peer):
        results = close_all(ours(crowd), timeout=PATIENCE)
    assert outcomes(results) == [CloseOutcome.PEER_CLOSED] * 10
    assert [result.drained for result in results] == [6] * 10


@with_select_too
def test_a_reused_descriptor_number_is_not_touched(crowd: list[Connection]) -> None:
    """A new socket with the number of an ended one is untouched until all closes end."""
    first, unrelated, *others = crowd
    number = first.ours.fileno()
    taken: list[socket.socket] = []

    def reuse_number(done: int, _: int) -> None:
        if done == 1:
            os.dup2(unrelated.ours.fileno(), number)
            taken.append(socket.socket(fileno=number))
            for peer in peers(others):
                peer.close()

    first.peer.close()
    await_fin(first.ours)
    results = close_all(ours([first, *others]), timeout=PATIENCE, progress=reuse_number)
    with taken[0] as tenant:
        assert outcomes(results) == [CloseOutcome.PEER_CLOSED] * 9
        assert_untouched([unrelated, Connection(tenant, unrelated.peer)])


@with_select_too
def test_a_descriptor_closed_by_os_close_is_reported_as_already_closed(
    crowd: list[Connection],
) -> None:
    """Only os.close() can close it."""
    victim, *others = crowd
    number = victim.ours.fileno()

    def steal(*peers: socket.socket) -> None:
        assert victim.peer.recv(1) == b""  # the close has begun
        os.close(number)
        read_and_close_all(*peers)

    with meanwhile(steal, *peers(others)):
        results = close_all(ours(crowd), timeout=0.5)
    assert outcomes(results) == [
        CloseOutcome.ALREADY_CLOSED,
        *[CloseOutcome.PEER_CLOSED] * 9,
    ]


# --- progress ---------------------------------------------------------------------------------


def test_progress_is_reported_during_the_closes_and_ends_with_all(
    crowd: list[Connection],
) -> None:
    reports: list[tuple[int, int]] = []
    crowd[9].ours.close()
    with meanwhile(read_and_close_all, *peers(crowd)):
        close_all(ours(crowd), timeout=PATIENCE, progress=partial(note, reports))
    assert reports[-1] == (10, 10)
    assert {total for _, total in reports} == {10}
    done = [figure for figure, _ in reports]
    assert done == sorted(set(done)), "each report has more than the report before"


def test_progress_is_not_reported_before_a_socket_is_closed(tcp: Connection) -> None:
    reports: list[tuple[int, int]] = []
    with meanwhile(read_and_close, tcp.peer):
        close_all([tcp.ours], timeout=PATIENCE, progress=partial(note, reports))
    assert reports == [(1, 1)]


def test_the_deadlines_count_from_the_time_that_is_given(crowd: list[Connection]) -> None:
    results = close_all_on(Options(PATIENCE), ours(crowd), monotonic() - 2 * PATIENCE)
    assert outcomes(results) == [CloseOutcome.TIMED_OUT] * 10
    assert all(result.elapsed >= 2 * PATIENCE for result in results)


def test_an_exception_of_progress_is_raised_after_all_sockets_are_closed(
    crowd: list[Connection],
) -> None:
    crowd[0].peer.close()

    def give_up(_: int, __: int) -> None:
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        close_all(ours(crowd), timeout=PATIENCE, progress=give_up)
    assert all_closed(crowd)


# --- signals and bugs -------------------------------------------------------------------------


@with_select_too
def test_an_exception_from_a_signal_handler_closes_all_sockets_immediately_and_propagates(
    crowd: list[Connection],
) -> None:
    def stop(*_: object) -> None:
        raise Stop

    set_linger(crowd[0].ours, LingerPolicy.TIMED, 20)
    with on_alarm(stop, 0.05), pytest.raises(Stop):
        close_all(ours(crowd), timeout=PATIENCE)
    assert all_closed(crowd)


def test_a_signal_handler_that_returns_does_not_shorten_the_wait(
    crowd: list[Connection],
) -> None:
    with on_alarm(lambda *_: None, 0.01, 0.01):
        results = close_all(ours(crowd), timeout=0.1)
    assert outcomes(results) == [CloseOutcome.TIMED_OUT] * 10
    assert all(result.elapsed >= 0.1 for result in results)


@pytest.mark.parametrize("selector", ["epoll", "poll"], indirect=True)
@pytest.mark.parametrize(
    "close",
    [
        partial(close_all_on, Options(0.003, until=CloseOutcome.DELIVERED)),
        partial(close_all_on, Options(0.003), progress=partial(note, [])),
    ],
    ids=["delivery", "drain"],
)
def test_a_signal_at_any_call_leaves_all_sockets_closed(
    close: Callable[[list[socket.socket]], object],
) -> None:
    for stopped in each_moment():
        with connect_many(3) as crowd:
            crowd[0].peer.sendall(b"x")
            crowd[1].peer.close()
            await_input(crowd[0].ours)
            await_fin(crowd[1].ours)
            with stopped():
                close(ours(crowd))
            assert all_closed(crowd)


def test_a_bug_in_one_close_does_not_shorten_the_others(
    crowd: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    victims_peer = crowd[0].ours.getpeername()
    bug = MemoryError("a bug")

    def fail_for_one(sock: socket.socket) -> None:
        if sock.getpeername() == victims_peer:
            raise bug
        shut_for_writing(sock)

    monkeypatch.setattr("graceful_close._connection.shut_for_writing", fail_for_one)
    reports: list[tuple[int, int]] = []
    reply_early(crowd, b"unread")
    with meanwhile(read_and_close_all, *peers(crowd[1:])) as replies:
        with pytest.raises(MemoryError) as raised:
            close_all(ours(crowd), timeout=PATIENCE, progress=partial(note, reports))
    assert raised.value is bug
    assert all_closed(crowd)
    assert replies == [[REPLY] * 9]
    assert reports[-1] == (10, 10)


class Broken(socket.socket):
    """A socket whose detach() fails."""

    def detach(self) -> int:
        super().detach()
        raise RuntimeError("a bug")


def test_a_socket_that_fails_before_its_close_begins_does_not_shorten_the_others(
    crowd: list[Connection],
) -> None:
    broken = Broken(fileno=crowd[4].ours.detach())
    others = crowd[:4] + crowd[5:]
    socks = [*ours(crowd[:4]), broken, *ours(crowd[5:])]
    reply_early(others, b"unread")
    with meanwhile(read_and_close_all, *peers(others)) as replies:
        with pytest.raises(RuntimeError, match="a bug"):
            close_all(socks, timeout=PATIENCE)
    assert crowd[4].peer.recv(1) == b""
    assert all_closed(crowd)
    assert replies == [[REPLY] * 9]


# --- TLS --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_says_goodbye_and_the_session_is_forgotten(version: ssl.TLSVersion) -> None:
    with session(version) as (tls, tls_peer), connect("tcp4") as (plain, plain_peer):
        tls.sendall(b"reply")
        with meanwhile(read_and_close_all, plain_peer, tls_peer) as replies:
            results = close_all([tls, plain], timeout=PATIENCE)
        assert replies == [[b"", b"reply"]], "an end without close_notify would be an error"
        assert outcomes(results) == [CloseOutcome.PEER_CLOSED] * 2
        assert [result.notified for result in results] == [True, None]
        assert tls.version() is None, "OpenSSL would continue to use the number"


# --- other systems -----------------------------------------------------------------------

ELSEWHERE = """
{patch}
import socket, threading
from graceful_close import CloseOutcome, close_all
from streams import PATIENCE, connect_many, meanwhile, read_and_close
with connect_many(50) as crowd, connect_many(2, "unix") as silent:
    for ours, peer in crowd:
        ours.sendall(b"reply")
        peer.sendall(b"unread")
    def read(*peers):
        return [read_and_close(peer) for peer in peers]
    turns = 0
    def count():
        global turns
        import time
        while turns < 1000:
            turns += 1
            time.sleep(0.01)
    counter = threading.Thread(target=count, daemon=True)
    counter.start()
    with meanwhile(read, *(peer for _, peer in crowd)) as replies:
        results = close_all([ours for ours, _ in crowd], timeout=PATIENCE)
    assert replies == [[b"reply"] * 50], replies
    assert {result.outcome for result in results} == {CloseOutcome.PEER_CLOSED}, results
    results = close_all([ours for ours, _ in silent], timeout=0.2)
    assert {result.outcome for result in results} == {CloseOutcome.TIMED_OUT}, results
    assert turns > 3, "the wait must let others run"
print("all well")
"""

NO_EPOLL = "import select; del select.epoll"
NO_EPOLL_NO_POLL = NO_EPOLL + ", select.poll"
GEVENT = "import gevent.monkey; gevent.monkey.patch_all()"
GEVENT_LATE = "import graceful_close; " + GEVENT


@pytest.mark.parametrize(
    "patch",
    [NO_EPOLL, NO_EPOLL_NO_POLL, GEVENT, GEVENT_LATE],
    ids=["no epoll", "only select", "gevent", "gevent after the import"],
)
@pytest.mark.parametrize(
    "selector", ["epoll"], indirect=True
)  # the coverage of this process, not of the child
def test_close_all_works_with_other_selectors(patch: str) -> None:
    if "gevent" in patch:
        pytest.importorskip("gevent", reason="needs gevent", exc_type=ImportError)
    ran = subprocess.run(
        [sys.executable, "-c", ELSEWHERE.replace("{patch}", patch)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.stdout == "all well\n", ran.stderr
