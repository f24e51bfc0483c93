"""TLS: sessions and connections that have ended before the close, or have not begun."""

from __future__ import annotations

import errno
import socket
import ssl

import pytest

from certificates import NAME, client_context, server_context
from drivers import THREADED, Close, parts
from graceful_close import CloseOutcome, graceful_close
from streams import (
    DEADLINE,
    await_fin,
    await_input,
    await_reset,
    connect,
    meanwhile,
    read_and_close,
    reset,
)
from tls_sessions import (
    APPLICATION_DATA,
    Session,
    close_while_the_peer_reads,
    fill_raw,
    hold_too,
    is_one_close_notify,
    read_raw_and_close,
    records,
    send_close_notify,
    send_half_a_record,
    send_raw_fin,
    session,
    shake_hands,
    wrapped,
)

# --- connections that have ended --------------------------------------------------------------


@pytest.mark.parametrize("close", parts(THREADED))
def test_an_unread_reset_is_reported(version: ssl.TLSVersion, side: str, close: Close) -> None:
    with session(version, side=side) as (ours, peer):
        reset(peer)
        await_reset(ours)
        result = close(ours)
        assert (result.outcome, result.notified) == (CloseOutcome.PEER_RESET, False)
        assert result.error is not None
        assert result.error.errno == errno.ECONNRESET
        assert ours.fileno() == -1


def test_a_reset_after_the_peers_close_notify_is_reported(version: ssl.TLSVersion) -> None:
    """Linux reports EPIPE then, and OpenSSL reports no error."""
    with session(version, peer_buffer=4096) as (ours, peer):
        send_close_notify(peer)
        send_raw_fin(peer)
        await_fin(ours)
        assert ours.recv(1) == b""
        fill_raw(ours)
        reset(peer)
        await_reset(ours)
        result = graceful_close(ours)
        assert (result.outcome, result.notified) == (CloseOutcome.PEER_RESET, False)
        assert result.unacked


def test_after_a_reset_that_the_caller_has_read_there_is_no_connection(tls: Session) -> None:
    reset(tls.peer)
    await_reset(tls.ours)
    with pytest.raises(OSError, match="EOF|reset"):  # some versions report it as a truncation
        tls.ours.recv(1)
    result = graceful_close(tls.ours)
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


def test_a_close_after_another_holders_shutdown_waits_for_the_peer(tls: Session) -> None:
    with hold_too(tls.ours) as holder:
        holder.shutdown(socket.SHUT_WR)
    result, _ = close_while_the_peer_reads(tls.ours, tls.peer)
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


def test_a_session_that_an_error_has_ended_sends_no_close_notify(any_tls: Session) -> None:
    socket.socket.sendall(any_tls.peer, bytes([APPLICATION_DATA, 3, 3, 0, 32]) + bytes(32))
    # The second is OpenSSL's name for it from 3.5 on.
    with pytest.raises(ssl.SSLError, match="(?i)BAD.RECORD.MAC|RECORD.LAYER.FAILURE"):
        any_tls.ours.recv(1)
    result, _ = close_while_the_peer_reads(any_tls.ours, any_tls.peer)
    assert (result.outcome, result.notified) == (CloseOutcome.PEER_CLOSED, False)
    assert not result.clean


def test_a_truncation_that_the_caller_has_read_has_ended_the_session(
    version: ssl.TLSVersion, side: str
) -> None:
    with session(version, side=side) as (ours, peer):
        send_raw_fin(peer)
        with pytest.raises(ssl.SSLEOFError):
            ours.recv(1)
        result = graceful_close(ours)
        assert (result.outcome, result.notified) == (CloseOutcome.PEER_CLOSED, False)


def test_a_session_that_the_caller_has_ended_sends_no_close_notify(
    tls: Session, version: ssl.TLSVersion
) -> None:
    send_close_notify(tls.peer)
    await_input(tls.ours)
    tls.ours.unwrap()
    result, received = close_while_the_peer_reads(tls.ours, tls.peer)
    assert is_one_close_notify(received, version)
    assert (result.outcome, result.notified) == (CloseOutcome.PEER_CLOSED, None)


def test_a_close_notify_that_the_caller_has_sent_is_not_sent_again(
    any_tls: Session, version: ssl.TLSVersion
) -> None:
    send_close_notify(any_tls.ours)
    result, received = close_while_the_peer_reads(any_tls.ours, any_tls.peer)
    assert is_one_close_notify(received, version)
    assert (result.outcome, result.notified) == (CloseOutcome.PEER_CLOSED, True)


def test_an_unwrap_that_failed_at_late_data_has_sent_its_close_notify(
    tls: Session, version: ssl.TLSVersion
) -> None:
    tls.peer.sendall(b"late")
    await_input(tls.ours)
    with pytest.raises(ssl.SSLError, match="APPLICATION_DATA_AFTER_CLOSE_NOTIFY"):
        tls.ours.unwrap()
    result, received = close_while_the_peer_reads(tls.ours, tls.peer)
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


def test_a_session_that_shutdown_has_dropped_sends_no_close_notify(tls: Session) -> None:
    tls.ours.shutdown(socket.SHUT_WR)
    result, _ = close_while_the_peer_reads(tls.ours, tls.peer)
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
            result = graceful_close(inner, timeout=DEADLINE)
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
                assert graceful_close(ours, timeout=DEADLINE).notified
            assert received == [b""]
