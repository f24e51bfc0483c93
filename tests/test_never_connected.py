"""Sockets that were never connected: the result claims nothing about a peer."""

from __future__ import annotations

import errno
import select
import socket
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from drivers import EVERY, Close, parts
from graceful_close import CloseOutcome, CloseResult, close_all, unacked_bytes
from streams import DEADLINE, connect, listen, meanwhile, read_and_close

LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
NO_LONGER_THAN = 1.0  # seconds; the calls need none
ENOUGH = 3.0
ESTABLISHED, SYN_SENT = b"\1", b"\2"  # include/net/tcp_states.h


every_close = pytest.mark.parametrize("close", parts(EVERY))


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["tcp4", "tcp6"])
def internet(request: pytest.FixtureRequest) -> socket.AddressFamily:
    family: socket.AddressFamily = request.param
    try:
        socket.create_server((LOOPBACK[family], 0), family=family).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    return family


@contextmanager
def unused_address(family: socket.AddressFamily) -> Generator[Any, None, None]:
    """Yield an address without a listener, on which no other process can listen."""
    with socket.socket(family, socket.SOCK_STREAM) as bound:
        bound.bind((LOOPBACK[family], 0))
        yield bound.getsockname()


@contextmanager
def connecting(family: socket.AddressFamily, count: int = 1) -> Generator[list[socket.socket]]:
    """Sockets whose SYN is not answered, because the listener's backlog is full (listen(2))."""
    if sys.platform != "linux":
        pytest.skip("other systems refuse connections if the backlog is full")
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        listener.bind((LOOPBACK[family], 0))
        listener.listen(0)
        address = listener.getsockname()
        stack.enter_context(socket.create_connection(address[:2], DEADLINE))
        socks: list[socket.socket] = []
        while len(socks) < count:
            sock = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            sock.setblocking(False)
            assert sock.connect_ex(address) == errno.EINPROGRESS
            state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
            if state != ESTABLISHED:  # PyPy's listen() makes room for one more
                assert state == SYN_SENT
                socks.append(sock)
        yield socks


def assert_nothing_is_claimed(result: CloseResult, sock: socket.socket) -> None:
    assert result.outcome is CloseOutcome.NOT_CONNECTED
    assert result.unacked in (0, None)
    assert result.drained == 0
    assert result.elapsed < NO_LONGER_THAN
    assert sock.fileno() == -1


@every_close
def test_a_new_socket_is_reported_as_not_connected(any_family: str, close: Close) -> None:
    family = {"tcp4": socket.AF_INET, "tcp6": socket.AF_INET6, "unix": socket.AF_UNIX}
    with socket.socket(family[any_family], socket.SOCK_STREAM) as sock:
        assert_nothing_is_claimed(close(sock, timeout=ENOUGH), sock)


@every_close
def test_a_bound_socket_is_reported_as_not_connected(
    internet: socket.AddressFamily, close: Close
) -> None:
    with socket.socket(internet, socket.SOCK_STREAM) as sock:
        sock.bind((LOOPBACK[internet], 0))
        assert_nothing_is_claimed(close(sock, timeout=ENOUGH), sock)


@every_close
def test_a_listening_socket_is_reported_as_not_connected(
    any_family: str, close: Close, tmp_path: Path
) -> None:
    with listen(any_family, tmp_path) as sock:
        assert_nothing_is_claimed(close(sock, timeout=ENOUGH), sock)


@every_close
def test_a_refused_connect_is_reported_as_not_connected(
    internet: socket.AddressFamily, close: Close
) -> None:
    with unused_address(internet) as address, socket.socket(internet) as sock:
        with pytest.raises(ConnectionRefusedError):
            sock.connect(address)
        assert_nothing_is_claimed(close(sock, timeout=ENOUGH), sock)


@every_close
def test_an_unread_refused_connect_is_reported_as_not_connected(
    internet: socket.AddressFamily, close: Close
) -> None:
    with unused_address(internet) as address, socket.socket(internet) as sock:
        sock.setblocking(False)
        assert sock.connect_ex(address) in (errno.EINPROGRESS, errno.ECONNREFUSED)
        poller = select.poll()
        poller.register(sock, 0)
        assert poller.poll(DEADLINE * 1000), "POLLERR or POLLHUP: the connect has failed"
        assert_nothing_is_claimed(close(sock, timeout=ENOUGH), sock)


@every_close
def test_a_pending_connect_times_out(internet: socket.AddressFamily, close: Close) -> None:
    with connecting(internet) as [sock]:
        result = close(sock, timeout=ENOUGH)
        assert_nothing_is_claimed(result, sock)
        assert result.error is None


@every_close
def test_a_pending_connect_with_a_timeout_of_0_times_out(close: Close) -> None:
    with connecting(socket.AF_INET) as [sock]:
        assert_nothing_is_claimed(close(sock, timeout=0), sock)


def test_a_pending_connect_has_no_count_of_bytes(internet: socket.AddressFamily) -> None:
    with connecting(internet) as [sock]:
        assert unacked_bytes(sock) == 0


@pytest.fixture
def mixed_sockets() -> Iterator[list[socket.socket]]:
    """Yield a new socket, a listener, a refused one, and two that are connecting."""
    with ExitStack() as stack:
        fresh = stack.enter_context(socket.socket())
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        refused = stack.enter_context(socket.socket())
        with unused_address(socket.AF_INET) as address:
            assert refused.connect_ex(address) == errno.ECONNREFUSED
        yield [fresh, listening, refused, *stack.enter_context(connecting(socket.AF_INET, 2))]


def test_sockets_without_a_connection_do_not_change_the_results_of_others(
    mixed_sockets: list[socket.socket],
) -> None:
    with connect("tcp4") as (ours, peer):
        ours.sendall(b"reply")
        socks = [*mixed_sockets[:2], ours, *mixed_sockets[2:]]
        with meanwhile(read_and_close, peer) as received:
            results = close_all(socks, timeout=DEADLINE)
    assert received == [b"reply"]
    connected = results.pop(2)
    assert (connected.outcome, connected.unacked) == (CloseOutcome.PEER_CLOSED, 0)
    for result, sock in zip(results, mixed_sockets, strict=True):
        assert_nothing_is_claimed(result, sock)
