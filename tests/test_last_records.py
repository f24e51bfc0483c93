"""The final records of a TLS session in memory, which are sent on the plain socket."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator

import pytest

from graceful_close._tls import LastRecords
from streams import Connection, await_reset, connect, read_all, reset


@pytest.fixture
def small() -> Iterator[Connection]:
    with connect("tcp4", peer_buffer=4096) as connection:
        connection.ours.setblocking(False)
        yield connection


@pytest.mark.parametrize("notified", [True, False, None])
@pytest.mark.parametrize("peer_notified", [True, False, None])
def test_what_is_sent_is_sent_once_and_its_meaning_is_returned(
    notified: bool | None, peer_notified: bool | None, tcp: Connection
) -> None:
    records = LastRecords(b"records", notified, peer_notified)
    assert records.peer_notified is peer_notified
    assert records.send(tcp.ours) == (notified, peer_notified)
    assert records.send(tcp.ours) == (notified, peer_notified)
    tcp.ours.close()
    assert read_all(tcp.peer) == b"records"


def test_records_are_sent_in_parts_as_there_is_room(small: Connection) -> None:
    records = LastRecords(bytes(5_000_000), True, None)
    received = 0
    while True:
        try:
            told = records.send(small.ours)
        except BlockingIOError:
            received += len(small.peer.recv(1 << 20))
        else:
            break
    small.ours.close()
    assert told == (True, None)
    assert received + len(read_all(small.peer)) == 5_000_000


def test_after_a_shutdown_they_cannot_be_sent_and_no_signal_kills(tcp: Connection) -> None:
    tcp.ours.shutdown(socket.SHUT_WR)
    action = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        assert LastRecords(b"records", True, True).send(tcp.ours) == (False, True)
    finally:
        signal.signal(signal.SIGPIPE, action)


def test_a_reset_is_raised(tcp: Connection) -> None:
    reset(tcp.peer)
    await_reset(tcp.ours)
    with pytest.raises(ConnectionResetError):
        LastRecords(b"records", True, None).send(tcp.ours)
