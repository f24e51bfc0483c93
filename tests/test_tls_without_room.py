"""TLS: close_notify waits for room, and is not sent after an incomplete record."""

from __future__ import annotations

import errno
import select
import socket
import ssl
from collections.abc import Callable
from time import monotonic

import pytest

from graceful_close import (
    CloseOutcome,
    CloseResult,
    Reaper,
    UncleanCloseError,
    abortive_close,
    close_all,
    graceful_close,
)
from graceful_close._close_all import close_at_once
from graceful_close._connection import Connection as ClosingConnection
from graceful_close._options import Options
from graceful_close._step import RELEASE, WAIT_EITHER
from streams import DEADLINE, MODES, await_fin, await_input, meanwhile, reset
from tls_sessions import (
    close_while_the_peer_reads,
    fill_raw,
    is_one_close_notify,
    read_raw,
    read_raw_and_close,
    records,
    send_half_a_record,
    session,
)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_without_room_for_close_notify_the_fin_is_sent_at_the_deadline(
    version: ssl.TLSVersion, mode: float | None
) -> None:
    with session(version, peer_buffer=4096) as (ours, peer):
        ours.settimeout(mode)
        written = fill_raw(ours)
        result = graceful_close(ours, timeout=0.05)
        assert (result.outcome, result.notified) == (CloseOutcome.TIMED_OUT, False)
        assert result.elapsed >= 0.05
        assert len(read_raw(peer)) == written, "and then the FIN"
        with pytest.raises(UncleanCloseError, match="close_notify not sent"):
            result.check()


def test_close_notify_is_sent_once_when_there_is_room(
    version: ssl.TLSVersion, family: str
) -> None:
    with session(version, family, peer_buffer=4096) as (ours, peer):
        written = fill_raw(ours)
        connection = ClosingConnection(Options(DEADLINE), monotonic())
        first = connection.begin(ours)
        machine = connection.machine
        assert connection.carry_out(first) is WAIT_EITHER
        with meanwhile(read_raw, peer) as received:
            step = WAIT_EITHER
            while step is WAIT_EITHER:
                await_room(connection.sock)
                step = connection.carry_out(machine.woke(monotonic()))
        assert is_one_close_notify(received[0][written:], version)
        peer.close()
        await_fin(connection.sock)
        assert connection.carry_out(machine.woke(monotonic())) is RELEASE
        result = connection.release()
        assert (result.outcome, result.notified) == (CloseOutcome.PEER_CLOSED, True)


@pytest.mark.parametrize(
    "second",
    ["graceful_close", "abortive_close", "close_all", "interrupted close_all", "Reaper"],
)
def test_a_second_close_during_the_wait_for_room_leaves_the_first_alone(
    version: ssl.TLSVersion, second: str
) -> None:
    seconds: dict[str, Callable[[ssl.SSLSocket], CloseResult | None]] = {
        "graceful_close": graceful_close,
        "abortive_close": abortive_close,
        "close_all": lambda sock: close_all([sock])[0],
        "interrupted close_all": lambda sock: close_at_once([sock]),
        "Reaper": lambda sock: reaper.submit(sock).result(DEADLINE),
    }
    with session(version, peer_buffer=4096) as (ours, peer), Reaper() as reaper:
        written = fill_raw(ours)
        first = reaper.submit(ours)
        result = seconds[second](ours)
        assert result is None or result.outcome is CloseOutcome.ALREADY_CLOSED
        assert is_one_close_notify(read_raw(peer)[written:], version)
        peer.close()
        assert first.result(DEADLINE).outcome is CloseOutcome.PEER_CLOSED
        assert ours.fileno() == -1


def await_room(sock: socket.socket) -> None:
    poller = select.poll()
    poller.register(sock, select.POLLOUT)
    assert poller.poll(DEADLINE * 1000)


@pytest.mark.parametrize("upload", [0, 20_000_000], ids=["reads", "uploads before it reads"])
def test_a_wait_for_room_ends_when_there_is_room(version: ssl.TLSVersion, upload: int) -> None:
    with session(version, peer_buffer=4096) as (ours, peer):
        written = fill_raw(ours)

        def upload_then_read() -> bytes:
            peer.settimeout(DEADLINE)
            socket.socket.sendall(peer, bytes(upload))
            return read_raw_and_close(peer)

        with meanwhile(upload_then_read) as received:
            result = graceful_close(ours, timeout=DEADLINE)
        assert is_one_close_notify(received[0][written:], version)
        assert result.outcome is CloseOutcome.PEER_CLOSED
        assert result.check().notified
        assert upload or result.elapsed < DEADLINE / 2


def test_a_reset_during_the_wait_for_room_is_reported(version: ssl.TLSVersion) -> None:
    with session(version, peer_buffer=4096) as (ours, peer):
        fill_raw(ours)
        with meanwhile(reset, peer):
            result = graceful_close(ours, timeout=DEADLINE)
        assert (result.outcome, result.notified) == (CloseOutcome.PEER_RESET, False)
        assert result.error is not None
        assert result.error.errno == errno.ECONNRESET


@pytest.mark.parametrize("then", ["nothing", "a read that finds nothing", "a read"])
def test_after_an_incomplete_record_no_close_notify_is_sent(
    version: ssl.TLSVersion, family: str, side: str, then: str
) -> None:
    """OpenSSL would wait for the rest of the record, or report an alert that was not sent."""
    with session(version, family, side, peer_buffer=4096) as (ours, peer):
        send_half_a_record(ours)
        if then == "a read":
            peer.sendall(b"more")
            await_input(ours)
            assert ours.recv(100) == b"more"
        elif then == "a read that finds nothing":
            with pytest.raises(ssl.SSLWantReadError):
                ours.recv(1)
        result, received = close_while_the_peer_reads(ours, peer)
        assert (result.outcome, result.notified) == (CloseOutcome.PEER_CLOSED, False)
        assert not result.clean
        # TCP has accepted a part of the record; AF_UNIX accepts all of it or nothing.
        if family != "unix":
            with pytest.raises(AssertionError, match="the last record is incomplete"):
                records(received)
        else:
            assert records(received)[-1] == records(received)[0]
