"""TLS: one close_notify, then the close of the connection."""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from time import monotonic
from typing import Any, NamedTuple

import pytest

from certificates import NAME, client_context, server_context
from graceful_close import (
    CloseOutcome,
    CloseResult,
    Reaper,
    UncleanCloseError,
    abortive_close,
    close_all,
    graceful_close,
    timed_linger_close,
)
from graceful_close._blocking import close_on
from graceful_close._close_all import close_all_on, close_at_once
from graceful_close._connection import Connection as ClosingConnection
from graceful_close._options import Options
from graceful_close._step import LET_GO, WAIT_EITHER
from greenlets import before_and_after_the_import, output_under
from signals import Stop, each_moment, on_alarm, stop
from streams import (
    PATIENCE,
    REPLY,
    await_fin,
    await_input,
    await_reset,
    connect,
    fill,
    meanwhile,
    read_all,
    read_and_close,
    reset,
)

UPLOAD = b"upload" * 1000

ALERT, APPLICATION_DATA = 21, 23

MODES: list[Any] = [
    pytest.param(None, id="blocking"),
    pytest.param(0.0, id="non-blocking"),
    pytest.param(30.0, id="timeout"),
]


class Session(NamedTuple):
    """Both ends of one TLS connection."""

    ours: ssl.SSLSocket
    peer: ssl.SSLSocket


@pytest.fixture(params=["server", "client"])
def side(request: pytest.FixtureRequest) -> str:
    """The side that is ours."""
    chosen: str = request.param
    return chosen


@pytest.fixture(params=["tcp4", "unix"])
def family(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@contextmanager
def wrapped(
    version: ssl.TLSVersion,
    family: str = "tcp4",
    side: str = "server",
    *,
    peer_buffer: int | None = None,
    options: int = 0,
) -> Generator[Session, None, None]:
    """A connection between two TLS sockets before the handshake."""
    server, client = server_context(version), client_context(version)
    server.options |= options
    client.options |= options

    def wrap(sock: socket.socket, *, serves: bool) -> ssl.SSLSocket:
        return (server if serves else client).wrap_socket(
            sock,
            server_side=serves,
            server_hostname=None if serves else NAME,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        )

    with connect(family, peer_buffer=peer_buffer) as (raw, raw_peer):
        with wrap(raw, serves=side == "server") as ours:
            with wrap(raw_peer, serves=side == "client") as peer:
                yield Session(ours, peer)


@contextmanager
def session(
    version: ssl.TLSVersion,
    family: str = "tcp4",
    side: str = "server",
    **more: Any,
) -> Generator[Session, None, None]:
    """A connection like that of `wrapped`, after the handshake, without unread session tickets."""
    with wrapped(version, family, side, **more) as both:
        shake_hands(both)
        exchange(both.ours, both.peer)
        exchange(both.peer, both.ours)
        yield both


def shake_hands(both: Session) -> None:
    with meanwhile(both.ours.do_handshake):
        both.peer.do_handshake()


def exchange(sender: ssl.SSLSocket, receiver: ssl.SSLSocket) -> None:
    sender.sendall(b"hello")
    assert receiver.recv(100) == b"hello"


def read_raw(sock: socket.socket) -> bytes:
    """Read the raw bytes to the FIN; raise ConnectionResetError at a reset."""
    sock.settimeout(PATIENCE)
    chunks: list[bytes] = []
    while chunk := socket.socket.recv(sock, 1 << 20):
        chunks.append(chunk)
    return b"".join(chunks)


def read_raw_and_close(sock: socket.socket) -> bytes:
    received = read_raw(sock)
    sock.close()
    return received


def close_while_the_peer_reads(
    ours: socket.socket, peer: socket.socket
) -> tuple[CloseResult, bytes]:
    """Close gracefully. Returns the result, and the raw bytes that the peer has read to the FIN."""
    with meanwhile(read_raw_and_close, peer) as received:
        result = graceful_close(ours, timeout=PATIENCE)
    return result, received[0]


def records(stream: bytes) -> list[tuple[int, int]]:
    """Return the type and the length of each record (RFC 8446, section 5.1)."""
    found: list[tuple[int, int]] = []
    while stream:
        length = int.from_bytes(stream[3:5], "big")
        assert len(stream) >= 5 + length, "the last record is incomplete"
        found.append((stream[0], length))
        stream = stream[5 + length :]
    return found


def is_one_close_notify(stream: bytes, version: ssl.TLSVersion) -> bool:
    """TLS 1.3 encrypts the alert: two bytes, one byte for the type, and a tag of 16 bytes."""
    if version is ssl.TLSVersion.TLSv1_3:
        return records(stream) == [(APPLICATION_DATA, 2 + 1 + 16)]
    return [kind for kind, _ in records(stream)] == [ALERT]


def hold_too(sock: socket.socket) -> socket.socket:
    """Return a plain socket on the same connection."""
    return socket.socket(fileno=os.dup(sock.fileno()))


def fill_raw(sock: socket.socket) -> int:
    """Fill the send buffer completely, with bytes that a TLS peer cannot read."""
    with hold_too(sock) as holder:
        # The kernel enlarges a buffer whose size was not set, and there would be room again.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        return fill(holder)


def send_half_a_record(sock: ssl.SSLSocket) -> None:
    sock.setblocking(False)
    with suppress(ssl.SSLWantWriteError):
        while True:
            sock.send(bytes(60_000))


def send_close_notify(sock: ssl.SSLSocket) -> None:
    """Send close_notify, and do not wait for the peer's."""
    sock.setblocking(False)
    with pytest.raises(ssl.SSLWantReadError):
        sock.unwrap()


def send_fin(sock: socket.socket) -> None:
    """Send a FIN below the TLS session, without close_notify."""
    socket.socket.shutdown(sock, socket.SHUT_WR)


# --- the purpose ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_the_connection_ends_with_one_close_notify_then_fin_and_no_reset(
    version: ssl.TLSVersion, family: str, side: str, mode: float | None
) -> None:
    with session(version, family, side) as (ours, peer):
        ours.settimeout(mode)
        result, received = close_while_the_peer_reads(ours, peer)
        assert is_one_close_notify(received, version)
        assert result.outcome is CloseOutcome.PEER_CLOSED
        assert (result.notified, result.peer_notified) == (True, None)
        assert result.clean
        assert ours.fileno() == -1


def test_a_plain_shutdown_and_close_truncates_the_stream(version: ssl.TLSVersion) -> None:
    with session(version) as (ours, peer):
        ours.sendall(b"reply")
        ours.shutdown(socket.SHUT_WR)
        ours.close()
        with pytest.raises(ssl.SSLEOFError):
            read_all(peer)


def test_unread_input_does_not_destroy_the_reply(
    version: ssl.TLSVersion, family: str, side: str
) -> None:
    with session(version, family, side) as (ours, peer):
        peer.sendall(UPLOAD)
        await_input(ours)
        ours.sendall(REPLY)

        def upload_more_and_read() -> bytes:
            peer.sendall(UPLOAD)
            return read_and_close(peer)

        with meanwhile(upload_more_and_read) as received:
            result = graceful_close(ours, timeout=PATIENCE)
        assert received == [REPLY]
        assert result.outcome is CloseOutcome.PEER_CLOSED
        # The other data arrived first, so the close did not look for the peer's close_notify.
        assert (result.notified, result.peer_notified) == (True, None)
        assert result.drained > 0


def test_a_close_after_a_partly_read_record_works(version: ssl.TLSVersion) -> None:
    with session(version) as (ours, peer):
        peer.sendall(UPLOAD)
        assert ours.recv(1) == b"u"
        assert ours.pending() > 0
        with meanwhile(read_raw_and_close, peer) as received:
            assert graceful_close(ours, timeout=PATIENCE).check().notified
        assert is_one_close_notify(received[0], version)


def test_a_makefile_object_does_not_keep_the_descriptor_open(version: ssl.TLSVersion) -> None:
    with session(version) as (ours, peer):
        file = ours.makefile("rb")
        with meanwhile(read_and_close, peer):
            assert graceful_close(ours, timeout=PATIENCE).check().notified
        with pytest.raises(OSError, match="Bad file descriptor"):
            file.read(1)
        file.close()


def test_the_blocking_mode_of_a_dup_is_unchanged(version: ssl.TLSVersion) -> None:
    with session(version) as (ours, peer), hold_too(ours) as holder:
        assert os.get_blocking(holder.fileno())
        with meanwhile(read_and_close, peer):
            assert graceful_close(ours, timeout=PATIENCE).check().notified
        assert os.get_blocking(holder.fileno())


def test_a_dup_that_makes_the_connection_blocking_does_not_block_the_close(
    version: ssl.TLSVersion,
) -> None:
    with session(version) as (ours, peer), hold_too(ours) as holder:
        ours.setblocking(False)
        holder.setblocking(True)

        def leave_when_it_takes_too_long() -> None:
            with peer:
                read_raw(peer)

        with meanwhile(leave_when_it_takes_too_long):
            assert graceful_close(ours, timeout=PATIENCE).check().notified


# --- peers that do not close ------------------------------------------------------------------


def test_a_peer_that_never_closes_costs_the_deadline(
    version: ssl.TLSVersion, family: str
) -> None:
    with session(version, family) as (ours, peer):
        result = graceful_close(ours, timeout=0.05)
        assert (result.outcome, result.notified) == (CloseOutcome.TIMED_OUT, True)
        assert is_one_close_notify(read_raw(peer), version)


def test_a_timeout_of_0_still_sends_close_notify(version: ssl.TLSVersion) -> None:
    with session(version) as (ours, peer):
        assert graceful_close(ours, timeout=0).notified
        assert read_all(peer) == b""


@pytest.mark.parametrize("seen", [True, False], ids=["read", "unread"])
def test_a_peer_that_sent_close_notify_first_is_reported(
    version: ssl.TLSVersion, family: str, side: str, seen: bool
) -> None:
    with session(version, family, side) as (ours, peer):
        send_close_notify(peer)
        if seen:
            assert ours.recv(1) == b""
        else:
            await_input(ours)
        result, received = close_while_the_peer_reads(ours, peer)
        assert is_one_close_notify(received, version)
        assert result.outcome is CloseOutcome.PEER_CLOSED
        assert (result.notified, result.peer_notified) == (True, True)


def test_a_close_notify_after_other_data_is_not_read(version: ssl.TLSVersion) -> None:
    with session(version) as (ours, peer):
        peer.sendall(b"more")
        send_close_notify(peer)
        send_fin(peer)
        await_fin(ours)
        result = graceful_close(ours)
        assert result.outcome is CloseOutcome.PEER_CLOSED
        assert (result.notified, result.peer_notified) == (True, None)


def test_a_peer_that_ends_without_close_notify_is_reported_as_not_notified(
    version: ssl.TLSVersion, family: str, side: str
) -> None:
    with session(version, family, side) as (ours, peer):
        send_fin(peer)
        await_fin(ours)
        result = graceful_close(ours)
        assert result.outcome is CloseOutcome.PEER_CLOSED
        assert (result.notified, result.peer_notified) == (True, False)
        assert result.clean, "our own stream is whole"
        assert read_all(peer) == b""


def test_a_fatal_alert_is_not_reported_as_close_notify(version: ssl.TLSVersion) -> None:
    with session(version) as (ours, peer):
        socket.socket.sendall(ours, b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(ssl.SSLError, match="SSL"):
            peer.recv(1)
        send_fin(peer)
        await_fin(ours)
        result = graceful_close(ours, timeout=PATIENCE)
        assert result.outcome is CloseOutcome.PEER_CLOSED
        assert (result.notified, result.peer_notified) == (True, None)


@pytest.mark.skipif(not hasattr(ssl, "OP_IGNORE_UNEXPECTED_EOF"), reason="needs OpenSSL 3")
def test_an_ignored_truncation_is_not_reported_as_close_notify(
    version: ssl.TLSVersion,
) -> None:
    with session(version, options=ssl.OP_IGNORE_UNEXPECTED_EOF) as (ours, peer):
        send_fin(peer)
        await_fin(ours)
        result = graceful_close(ours)
        assert (result.notified, result.peer_notified) == (True, None)
        assert is_one_close_notify(read_raw(peer), version)


def test_a_peer_that_sends_invalid_data_after_our_close_notify_was_notified(
    version: ssl.TLSVersion,
) -> None:
    with session(version) as (ours, peer):
        socket.socket.sendall(peer, b"GET / HTTP/1.1\r\n\r\n")
        await_input(ours)
        with meanwhile(read_and_close, peer) as received:
            result = graceful_close(ours, timeout=PATIENCE)
        assert received == [b""]
        assert (result.notified, result.peer_notified) == (True, None)


def test_unread_tickets_of_our_client_do_not_cause_a_reset() -> None:
    with wrapped(ssl.TLSVersion.TLSv1_3, side="client") as (ours, peer):
        shake_hands(Session(ours, peer))
        await_input(ours)
        with meanwhile(read_and_close, peer) as received:
            result = graceful_close(ours, timeout=PATIENCE)
        assert received == [b""]
        assert result.outcome is CloseOutcome.PEER_CLOSED
        assert result.notified


def test_a_client_that_never_read_its_tickets_resets_when_it_closes() -> None:
    with wrapped(ssl.TLSVersion.TLSv1_3) as (ours, peer):
        shake_hands(Session(ours, peer))

        def close_at_our_fin() -> None:
            await_fin(peer)
            peer.close()

        with meanwhile(close_at_our_fin):
            result = graceful_close(ours, timeout=PATIENCE)
        assert (result.outcome, result.notified) == (CloseOutcome.PEER_RESET, True)


# --- no room for close_notify -----------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
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
        connection = ClosingConnection(Options(PATIENCE), monotonic())
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
        assert connection.carry_out(machine.woke(monotonic())) is LET_GO
        result = connection.let_go()
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
        "Reaper": lambda sock: reaper.submit(sock).result(PATIENCE),
    }
    with session(version, peer_buffer=4096) as (ours, peer), Reaper() as reaper:
        written = fill_raw(ours)
        first = reaper.submit(ours)
        result = seconds[second](ours)
        assert result is None or result.outcome is CloseOutcome.ALREADY_CLOSED
        assert is_one_close_notify(read_raw(peer)[written:], version)
        peer.close()
        assert first.result(PATIENCE).outcome is CloseOutcome.PEER_CLOSED
        assert ours.fileno() == -1


def await_room(sock: socket.socket) -> None:
    poller = select.poll()
    poller.register(sock, select.POLLOUT)
    assert poller.poll(PATIENCE * 1000)


@pytest.mark.parametrize("upload", [0, 20_000_000], ids=["reads", "uploads before it reads"])
def test_a_wait_for_room_ends_when_there_is_room(version: ssl.TLSVersion, upload: int) -> None:
    with session(version, peer_buffer=4096) as (ours, peer):
        written = fill_raw(ours)

        def upload_then_read() -> bytes:
            peer.settimeout(PATIENCE)
            socket.socket.sendall(peer, bytes(upload))
            return read_raw_and_close(peer)

        with meanwhile(upload_then_read) as received:
            result = graceful_close(ours, timeout=PATIENCE)
        assert is_one_close_notify(received[0][written:], version)
        assert result.outcome is CloseOutcome.PEER_CLOSED
        assert result.check().notified
        assert upload or result.elapsed < PATIENCE / 2


def test_a_reset_during_the_wait_for_room_is_reported(version: ssl.TLSVersion) -> None:
    with session(version, peer_buffer=4096) as (ours, peer):
        fill_raw(ours)
        with meanwhile(reset, peer):
            result = graceful_close(ours, timeout=PATIENCE)
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


# --- connections that have ended --------------------------------------------------------------


def test_an_unread_reset_is_reported(version: ssl.TLSVersion, side: str) -> None:
    with session(version, side=side) as (ours, peer):
        reset(peer)
        await_reset(ours)
        result = graceful_close(ours)
        assert (result.outcome, result.notified) == (CloseOutcome.PEER_RESET, False)
        assert result.error is not None
        assert result.error.errno == errno.ECONNRESET


def test_a_reset_after_the_peers_close_notify_is_reported(version: ssl.TLSVersion) -> None:
    """Linux reports EPIPE then, and OpenSSL reports no error."""
    with session(version, peer_buffer=4096) as (ours, peer):
        send_close_notify(peer)
        send_fin(peer)
        await_fin(ours)
        assert ours.recv(1) == b""
        fill_raw(ours)
        reset(peer)
        await_reset(ours)
        result = graceful_close(ours)
        assert (result.outcome, result.notified) == (CloseOutcome.PEER_RESET, False)
        assert result.unacked


def test_after_a_reset_that_the_caller_has_read_there_is_no_connection(
    version: ssl.TLSVersion,
) -> None:
    with session(version) as (ours, peer):
        reset(peer)
        await_reset(ours)
        with pytest.raises(
            OSError, match="EOF|reset"
        ):  # some versions report it as a truncation
            ours.recv(1)
        result = graceful_close(ours)
        assert (result.outcome, result.notified) == (CloseOutcome.NOT_CONNECTED, False)
        assert not result.clean


def test_a_unix_peer_that_has_closed_after_close_notify_is_not_notified(
    version: ssl.TLSVersion,
) -> None:
    with session(version, "unix") as (ours, peer):
        send_close_notify(peer)
        peer.close()
        assert ours.recv(1) == b""
        result = graceful_close(ours)
        assert result.outcome is CloseOutcome.PEER_CLOSED
        assert result.notified is False
        assert (
            result.peer_notified is not False
        )  # from OpenSSL 3.5 on, EPIPE is the only report


@pytest.mark.parametrize(
    ("unread", "outcome"),
    [(b"", CloseOutcome.PEER_CLOSED), (b"never read", CloseOutcome.PEER_RESET)],
    ids=["all read", "unread"],
)
def test_a_unix_peer_that_has_closed_is_not_notified(
    version: ssl.TLSVersion, unread: bytes, outcome: CloseOutcome
) -> None:
    with session(version, "unix") as (ours, peer):
        if unread:
            ours.sendall(unread)
        peer.close()
        result = graceful_close(ours)
        assert (result.outcome, result.notified) == (outcome, False)
        assert unread or result.error is None


def test_a_close_after_another_holders_shutdown_waits_for_the_peer(
    version: ssl.TLSVersion,
) -> None:
    with session(version) as (ours, peer):
        with hold_too(ours) as holder:
            holder.shutdown(socket.SHUT_WR)
        result, _ = close_while_the_peer_reads(ours, peer)
        # NOT_CONNECTED if the peer is faster than the call.
        assert result.outcome in (CloseOutcome.PEER_CLOSED, CloseOutcome.NOT_CONNECTED)
        assert result.notified is False


# --- the states of a TLS socket --------------------------------------------------------------


def test_without_a_handshake_there_is_no_session_to_end(
    version: ssl.TLSVersion, family: str, side: str
) -> None:
    with wrapped(version, family, side) as (ours, peer):
        result, received = close_while_the_peer_reads(ours, peer)
        assert received == b""
        assert (result.outcome, result.notified) == (CloseOutcome.PEER_CLOSED, None)
        assert result.clean


def test_after_an_incomplete_handshake_there_is_no_session(
    version: ssl.TLSVersion, family: str
) -> None:
    with wrapped(version, family, "client") as (ours, peer):
        ours.setblocking(False)
        with pytest.raises(ssl.SSLWantReadError):
            ours.do_handshake()
        result, received = close_while_the_peer_reads(ours, peer)
        assert [kind for kind, _ in records(received)] == [22], "the hello, and nothing else"
        assert (result.outcome, result.notified) == (CloseOutcome.PEER_CLOSED, None)


def test_a_handshake_that_failed_left_no_session(version: ssl.TLSVersion) -> None:
    with wrapped(version) as (ours, peer):
        socket.socket.sendall(peer, b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(ssl.SSLError, match="HTTP_REQUEST|WRONG_VERSION"):
            ours.do_handshake()
        result, _ = close_while_the_peer_reads(ours, peer)
        assert (result.outcome, result.notified) == (CloseOutcome.PEER_CLOSED, None)


def test_a_session_that_an_error_has_ended_sends_no_close_notify(
    version: ssl.TLSVersion, family: str, side: str
) -> None:
    with session(version, family, side) as (ours, peer):
        socket.socket.sendall(peer, bytes([APPLICATION_DATA, 3, 3, 0, 32]) + bytes(32))
        # The second is OpenSSL's name for it from 3.5 on.
        with pytest.raises(ssl.SSLError, match="(?i)BAD.RECORD.MAC|RECORD.LAYER.FAILURE"):
            ours.recv(1)
        result, _ = close_while_the_peer_reads(ours, peer)
        assert (result.outcome, result.notified) == (CloseOutcome.PEER_CLOSED, False)
        assert not result.clean


def test_a_truncation_that_the_caller_has_read_has_ended_the_session(
    version: ssl.TLSVersion, side: str
) -> None:
    with session(version, side=side) as (ours, peer):
        send_fin(peer)
        with pytest.raises(ssl.SSLEOFError):
            ours.recv(1)
        result = graceful_close(ours)
        assert (result.outcome, result.notified) == (CloseOutcome.PEER_CLOSED, False)


def test_a_session_that_the_caller_has_ended_sends_no_close_notify(
    version: ssl.TLSVersion,
) -> None:
    with session(version) as (ours, peer):
        send_close_notify(peer)
        await_input(ours)
        ours.unwrap()
        result, received = close_while_the_peer_reads(ours, peer)
        assert is_one_close_notify(received, version)
        assert (result.outcome, result.notified) == (CloseOutcome.PEER_CLOSED, None)


def test_a_close_notify_that_the_caller_has_sent_is_not_sent_again(
    version: ssl.TLSVersion, family: str, side: str
) -> None:
    with session(version, family, side) as (ours, peer):
        send_close_notify(ours)
        result, received = close_while_the_peer_reads(ours, peer)
        assert is_one_close_notify(received, version)
        assert (result.outcome, result.notified) == (CloseOutcome.PEER_CLOSED, True)


def test_an_unwrap_that_failed_at_late_data_has_sent_its_close_notify(
    version: ssl.TLSVersion,
) -> None:
    with session(version) as (ours, peer):
        peer.sendall(b"late")
        await_input(ours)
        with pytest.raises(ssl.SSLError, match="APPLICATION_DATA_AFTER_CLOSE_NOTIFY"):
            ours.unwrap()
        result, received = close_while_the_peer_reads(ours, peer)
        assert is_one_close_notify(received, version)
        assert (result.outcome, result.notified) == (CloseOutcome.PEER_CLOSED, True)


def test_an_unwrap_that_failed_at_an_incomplete_record_has_sent_nothing(
    version: ssl.TLSVersion,
) -> None:
    with session(version, peer_buffer=4096) as (ours, peer):
        send_half_a_record(ours)
        with pytest.raises(ssl.SSLWantWriteError):
            ours.unwrap()
        result, _ = close_while_the_peer_reads(ours, peer)
        assert (result.outcome, result.notified) == (CloseOutcome.PEER_CLOSED, False)


def test_a_session_that_shutdown_has_dropped_sends_no_close_notify(
    version: ssl.TLSVersion,
) -> None:
    with session(version) as (ours, peer):
        ours.shutdown(socket.SHUT_WR)
        result, _ = close_while_the_peer_reads(ours, peer)
        assert result.outcome in (CloseOutcome.PEER_CLOSED, CloseOutcome.NOT_CONNECTED)
        assert result.notified is None


def test_a_closed_tls_socket_is_reported_as_already_closed(version: ssl.TLSVersion) -> None:
    with session(version) as (ours, _):
        ours.close()
        assert graceful_close(ours).outcome is CloseOutcome.ALREADY_CLOSED


def test_a_tls_socket_that_never_connected_is_closed(version: ssl.TLSVersion) -> None:
    ours = client_context(version).wrap_socket(socket.socket(), server_hostname=NAME)
    result = graceful_close(ours)
    assert (result.outcome, result.notified) == (CloseOutcome.NOT_CONNECTED, None)
    assert ours.fileno() == -1


def test_a_listening_tls_socket_is_closed(
    version: ssl.TLSVersion, listener: socket.socket
) -> None:
    ours = server_context(version).wrap_socket(listener, server_side=True)
    result = graceful_close(ours)
    assert (result.outcome, result.notified) == (CloseOutcome.NOT_CONNECTED, None)
    assert ours.fileno() == -1


def test_a_tls_socket_made_from_another_has_the_connection(version: ssl.TLSVersion) -> None:
    """The ssl module has no TLS within TLS: the new socket takes the connection."""
    with session(version) as (outer, peer):
        inner = server_context(version).wrap_socket(
            outer, server_side=True, do_handshake_on_connect=False
        )
        assert graceful_close(outer).outcome is CloseOutcome.ALREADY_CLOSED
        with meanwhile(read_raw_and_close, peer) as received:
            result = graceful_close(inner, timeout=PATIENCE)
        assert received[0] == b""
        assert (result.outcome, result.notified) == (CloseOutcome.PEER_CLOSED, None)


def test_an_overridden_unwrap_is_not_called(version: ssl.TLSVersion) -> None:
    class Own(ssl.SSLSocket):
        def unwrap(self) -> socket.socket:
            raise NotImplementedError

    context = server_context(version)
    context.sslsocket_class = Own
    with connect("tcp4") as (raw, raw_peer):
        ours = context.wrap_socket(raw, server_side=True, do_handshake_on_connect=False)
        peer = client_context(version).wrap_socket(
            raw_peer, server_hostname=NAME, do_handshake_on_connect=False
        )
        with ours, peer:
            assert isinstance(ours, Own)
            shake_hands(Session(ours, peer))
            with meanwhile(read_and_close, peer) as received:
                assert graceful_close(ours, timeout=PATIENCE).notified
            assert received == [b""]


# --- the other functions ----------------------------------------------------------------------


def test_a_timed_linger_ends_when_the_close_notify_is_acknowledged(
    version: ssl.TLSVersion, side: str
) -> None:
    with session(version, side=side) as (ours, peer):
        ours.sendall(b"reply")
        result = timed_linger_close(ours, PATIENCE)
        assert (result.outcome, result.unacked) == (CloseOutcome.DELIVERED, 0)
        assert result.notified
        assert read_all(peer) == b"reply"


def test_an_abort_sends_nothing_before_the_reset(
    version: ssl.TLSVersion, family: str, side: str
) -> None:
    with session(version, family, side) as (ours, peer):
        result = abortive_close(ours)
        assert (result.outcome, result.notified) == (CloseOutcome.ABORTED, None)
        assert ours.fileno() == -1
        if family == "unix":  # AF_UNIX has no reset, but would keep data sent before
            assert read_raw(peer) == b""
        else:
            with pytest.raises(ConnectionResetError):
                read_raw(peer)


# --- after the close ---------------------------------------------------------------------


def close_gracefully(sock: socket.socket) -> CloseResult:
    return graceful_close(sock, timeout=0)


@pytest.mark.parametrize("close", [close_gracefully, abortive_close])
def test_a_closed_tls_socket_does_not_touch_a_reused_descriptor_number(
    version: ssl.TLSVersion, close: Callable[[socket.socket], CloseResult]
) -> None:
    """OpenSSL keeps the descriptor's number."""
    unrelated, other_end = socket.socketpair()
    with unrelated, other_end, session(version) as (ours, _):
        number = ours.fileno()
        file = ours.makefile("rb")
        close(ours)
        os.dup2(unrelated.fileno(), number)
        try:
            other_end.sendall(b"private")
            for use in (lambda: ours.send(b"x"), lambda: ours.recv(1), lambda: file.read(1)):
                with pytest.raises((OSError, ValueError)):
                    use()
        finally:
            os.close(number)
        file.close()
        assert unrelated.recv(100) == b"private"
        unrelated.close()
        assert other_end.recv(100) == b""


# --- signals ----------------------------------------------------------------------------


def test_an_exception_from_a_signal_handler_closes_immediately_and_propagates(
    version: ssl.TLSVersion,
) -> None:
    with session(version, peer_buffer=4096) as (ours, peer):
        written = fill_raw(ours)
        with on_alarm(stop, 0.05), pytest.raises(Stop):
            graceful_close(ours, timeout=PATIENCE)
        assert ours.fileno() == -1
        assert len(read_raw(peer)) == written, "the close was still waiting for room"


AT_ONCE = Options(0)


def close_one_of_many(sock: socket.socket) -> object:
    return close_all_on(AT_ONCE, [sock])


@pytest.mark.parametrize(
    "close",
    [partial(close_on, AT_ONCE), partial(close_on, Options(), abort=True), close_one_of_many],
    ids=["graceful", "abort", "close_all"],
)
def test_a_signal_at_any_call_leaves_the_socket_closed(
    close: Callable[[socket.socket], object],
) -> None:
    for stopped in each_moment():
        with session(ssl.TLSVersion.TLSv1_3) as (ours, _):
            with stopped():
                close(ours)
            assert ours.fileno() == -1


# --- other TLS objects -----------------------------------------------------------------


def test_tls_without_a_socket_is_rejected(version: ssl.TLSVersion) -> None:
    held: Any = client_context(version).wrap_bio(
        ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=NAME
    )
    with pytest.raises(TypeError, match="expected a socket.socket"):
        graceful_close(held)


GEVENT = """
{library}
{patch}
import socket, ssl
from certificates import NAME, client_context, server_context
from graceful_close import CloseOutcome, abortive_close, graceful_close
{patch_late}
import gevent.ssl
V = ssl.TLSVersion.VERSION
assert ssl.SSLSocket is gevent.ssl.SSLSocket

def session():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        ours = listener.accept()[0]
    ours = server_context(V).wrap_socket(ours, server_side=True, do_handshake_on_connect=False)
    shaking = gevent.spawn(ours.do_handshake)
    peer = client_context(V).wrap_socket(peer, server_hostname=NAME, suppress_ragged_eofs=False)
    shaking.get()
    peer.sendall(b"hello")
    assert ours.recv(100) == b"hello"
    ours.sendall(b"hello")
    assert peer.recv(100) == b"hello"
    return ours, peer

turns = 0
def others():
    global turns
    while True:
        turns += 1
        gevent.sleep(0.01)
gevent.spawn(others)

ours, peer = session()
ours.sendall(b"reply")
peer.sendall(b"unread")
def read():
    assert peer.recv(100) == b"reply" and peer.recv(1) == b""
    peer.close()
reader = gevent.spawn(read)
result = graceful_close(ours, timeout=10)
assert (result.outcome, result.notified) == (CloseOutcome.PEER_CLOSED, True), result
assert ours.fileno() == -1
reader.get()

ours, peer = session()
before = turns
result = graceful_close(ours, timeout=0.2)
assert (result.outcome, result.notified) == (CloseOutcome.TIMED_OUT, True), result
assert turns > before + 3, "the wait must let other greenlets run"
peer.close()

ours, peer = session()
socket.socket.shutdown(peer, socket.SHUT_WR)  # a cut
gevent.sleep(0)
result = graceful_close(ours, timeout=10)
assert result.peer_notified in (None, False), "gevent takes it for a close_notify"
peer.close()

ours, peer = session()
abortive_close(ours)
try:
    socket.socket.recv(peer, 1)
except ConnectionResetError:
    print("all well")
peer.close()
"""


@before_and_after_the_import
def test_a_close_over_tls_works_under_gevent(version: ssl.TLSVersion, when: str) -> None:
    program = GEVENT.replace("VERSION", version.name)
    assert output_under("gevent", program, when) == "all well\n"
