"""What tests of close_all do with many connections."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

import streams
from graceful_close import CloseOutcome, CloseResult
from streams import Connection, fill, read_and_close, send_fin

with_select_too = pytest.mark.parametrize(
    "selector", ["epoll", "poll", "select"], indirect=True
)


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
    for connection in connections:
        streams.reply_early(connection, upload)


def fill_against_fin(connections: list[Connection]) -> None:
    """Fill the buffers to peers that have half-closed."""
    for sock, peer in connections:
        fill(sock)
        send_fin(peer, to=sock)


def read_and_close_all(*peers: socket.socket) -> list[bytes]:
    return [read_and_close(peer) for peer in peers]


def peers(connections: list[Connection]) -> list[socket.socket]:
    return [connection.peer for connection in connections]


def all_closed(connections: list[Connection]) -> bool:
    return all(sock.fileno() == -1 for sock in ours(connections))


def assert_untouched(crowd: list[Connection]) -> None:
    """Both directions still work."""
    for sock, peer in crowd:
        sock.sendall(b"to the peer")
        peer.sendall(b"from the peer")
        assert (peer.recv(100), sock.recv(100)) == (b"to the peer", b"from the peer")
