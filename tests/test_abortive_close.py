"""abortive_close: RST immediately and no FIN, also if others hold the connection."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from graceful_close import (
    CloseOutcome,
    Linger,
    LingerPolicy,
    _platform,
    abortive_close,
    get_linger,
    set_linger,
)
from graceful_close._record import replace
from streams import (
    Connection,
    await_reset,
    connect,
    ends_in_reset,
    fill,
    held_by_a_child,
    reset,
)


@pytest.fixture(params=["tcp4", "tcp6"])
def connection(request: pytest.FixtureRequest) -> Any:
    with connect(request.param, peer_buffer=4096) as connection:
        yield connection


@pytest.mark.parametrize("mode", [None, 0.0, 5.0], ids=["blocking", "non-blocking", "timeout"])
def test_the_peer_reads_a_reset(connection: Connection, mode: float | None) -> None:
    connection.ours.settimeout(mode)
    connection.ours.sendall(b"half a mess")
    result = abortive_close(connection.ours)
    assert result.outcome is CloseOutcome.ABORTED
    assert result.clean
    assert connection.ours.fileno() == -1
    assert ends_in_reset(connection.peer)


def test_the_result_counts_the_discarded_bytes(connection: Connection) -> None:
    written = fill(connection.ours)
    result = abortive_close(connection.ours)
    assert result.unacked is not None
    assert 0 < result.unacked <= written
    assert ends_in_reset(connection.peer)


def test_a_makefile_object_does_not_keep_the_connection_open(connection: Connection) -> None:
    with connection.ours.makefile("rb"):
        abortive_close(connection.ours)
        assert ends_in_reset(connection.peer)


def test_an_earlier_so_linger_does_not_matter(connection: Connection) -> None:
    set_linger(connection.ours, LingerPolicy.TIMED, 20)
    fill(connection.ours)
    assert abortive_close(connection.ours).elapsed < 5
    assert ends_in_reset(connection.peer)


def test_on_other_systems_a_dup_keeps_the_connection_until_it_is_closed(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = _platform.HERE
    monkeypatch.setattr("graceful_close._platform.HERE", replace(here, linux=False))
    with connection.ours.dup() as dup:
        abortive_close(connection.ours)
        dup.sendall(b"still here")
        assert connection.peer.recv(100) == b"still here"
    assert ends_in_reset(connection.peer)


def test_the_connection_ends_while_a_dup_is_open(connection: Connection) -> None:
    with connection.ours.dup() as dup:
        result = abortive_close(connection.ours)
        assert result.outcome is CloseOutcome.ABORTED
        assert ends_in_reset(connection.peer)
        assert get_linger(dup) == Linger(LingerPolicy.BACKGROUND)


def test_the_connection_ends_while_a_child_process_holds_it(connection: Connection) -> None:
    with held_by_a_child(but=connection.peer):
        abortive_close(connection.ours)
        assert ends_in_reset(connection.peer)


def test_a_unix_stream_is_closed_immediately(stack: Any) -> None:
    ours, peer = stack.enter_context(connect("unix"))
    assert abortive_close(ours).outcome is CloseOutcome.ABORTED
    assert peer.recv(1) == b""


def test_a_unix_peer_whose_data_was_not_read_reads_a_reset(stack: Any) -> None:
    ours, peer = stack.enter_context(connect("unix"))
    peer.sendall(b"unread")
    abortive_close(ours)
    assert ends_in_reset(peer)


def test_a_peer_that_was_first_is_reported(connection: Connection) -> None:
    reset(connection.peer)
    await_reset(connection.ours)
    result = abortive_close(connection.ours)
    assert result.outcome is CloseOutcome.PEER_RESET
    assert isinstance(result.error, ConnectionResetError)


def test_a_closed_socket_is_reported_as_already_closed(connection: Connection) -> None:
    connection.ours.close()
    assert abortive_close(connection.ours).outcome is CloseOutcome.ALREADY_CLOSED


def test_a_connection_that_has_ended_is_not_aborted(connection: Connection) -> None:
    connection.peer.close()
    connection.ours.shutdown(socket.SHUT_WR)
    assert connection.ours.recv(1) == b""
    assert abortive_close(connection.ours).outcome is CloseOutcome.NOT_CONNECTED


@pytest.mark.parametrize("thing", [None, 5, object()])
def test_an_object_that_is_not_a_socket_is_rejected(thing: Any) -> None:
    with pytest.raises(TypeError, match="a socket.socket is needed"):
        abortive_close(thing)


def test_a_datagram_socket_is_rejected_before_it_is_touched() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        with pytest.raises(TypeError, match="a stream socket"):
            abortive_close(sock)
        assert sock.fileno() != -1
