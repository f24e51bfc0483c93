"""TLS: one close_notify, then the close of the connection."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from certificates import NAME, client_context
from graceful_close import (
    CloseOutcome,
    CloseResult,
    abortive_close,
    graceful_close,
    timed_linger_close,
)
from graceful_close._blocking import close_on
from graceful_close._close_all import close_all_on
from graceful_close._options import Options
from greenlets import before_and_after_the_import, output_under
from signals import Stop, each_moment, on_alarm, stop
from streams import (
    DEADLINE,
    MODES,
    REPLY,
    await_fin,
    await_input,
    meanwhile,
    read_all,
    read_and_close,
)
from tls_sessions import (
    Session,
    close_while_the_peer_reads,
    fill_raw,
    hold_too,
    is_one_close_notify,
    read_raw,
    read_raw_and_close,
    send_close_notify,
    send_raw_fin,
    session,
    shake_hands,
    wrapped,
)

UPLOAD = b"upload" * 1000


# --- the purpose ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_the_connection_ends_with_one_close_notify_then_fin_and_no_reset(
    any_tls: Session, version: ssl.TLSVersion, mode: float | None
) -> None:
    any_tls.ours.settimeout(mode)
    result, received = close_while_the_peer_reads(any_tls.ours, any_tls.peer)
    assert is_one_close_notify(received, version)
    assert result.outcome is CloseOutcome.PEER_CLOSED
    assert (result.notified, result.peer_notified) == (True, None)
    assert result.clean
    assert any_tls.ours.fileno() == -1


def test_a_plain_shutdown_and_close_truncates_the_stream(tls: Session) -> None:
    tls.ours.sendall(b"reply")
    tls.ours.shutdown(socket.SHUT_WR)
    tls.ours.close()
    with pytest.raises(ssl.SSLEOFError):
        read_all(tls.peer)


def test_unread_input_does_not_destroy_the_reply(any_tls: Session) -> None:
    any_tls.peer.sendall(UPLOAD)
    await_input(any_tls.ours)
    any_tls.ours.sendall(REPLY)

    def upload_more_and_read() -> bytes:
        any_tls.peer.sendall(UPLOAD)
        return read_and_close(any_tls.peer)

    with meanwhile(upload_more_and_read) as received:
        result = graceful_close(any_tls.ours, timeout=DEADLINE)
    assert received == [REPLY]
    assert result.outcome is CloseOutcome.PEER_CLOSED
    # The other data arrived first, so the close did not look for the peer's close_notify.
    assert (result.notified, result.peer_notified) == (True, None)
    assert result.drained > 0


def test_a_close_after_a_partly_read_record_works(
    tls: Session, version: ssl.TLSVersion
) -> None:
    tls.peer.sendall(UPLOAD)
    assert tls.ours.recv(1) == b"u"
    assert tls.ours.pending() > 0
    with meanwhile(read_raw_and_close, tls.peer) as received:
        assert graceful_close(tls.ours, timeout=DEADLINE).check().notified
    assert is_one_close_notify(received[0], version)


def test_a_makefile_object_does_not_keep_the_descriptor_open(tls: Session) -> None:
    file = tls.ours.makefile("rb")
    with meanwhile(read_and_close, tls.peer):
        assert graceful_close(tls.ours, timeout=DEADLINE).check().notified
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.read(1)
    file.close()


def test_the_blocking_mode_of_a_dup_is_unchanged(version: ssl.TLSVersion) -> None:
    with session(version) as (ours, peer), hold_too(ours) as holder:
        assert os.get_blocking(holder.fileno())
        with meanwhile(read_and_close, peer):
            assert graceful_close(ours, timeout=DEADLINE).check().notified
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
            assert graceful_close(ours, timeout=DEADLINE).check().notified


# --- peers that do not close ------------------------------------------------------------------


def test_a_peer_that_never_closes_costs_the_deadline(
    version: ssl.TLSVersion, family: str
) -> None:
    with session(version, family) as (ours, peer):
        result = graceful_close(ours, timeout=0.05)
        assert (result.outcome, result.notified) == (CloseOutcome.TIMED_OUT, True)
        assert is_one_close_notify(read_raw(peer), version)


def test_a_timeout_of_0_still_sends_close_notify(tls: Session) -> None:
    assert graceful_close(tls.ours, timeout=0).notified
    assert read_all(tls.peer) == b""


@pytest.mark.parametrize("seen", [True, False], ids=["read", "unread"])
def test_a_peer_that_sent_close_notify_first_is_reported(
    any_tls: Session, version: ssl.TLSVersion, seen: bool
) -> None:
    send_close_notify(any_tls.peer)
    if seen:
        assert any_tls.ours.recv(1) == b""
    else:
        await_input(any_tls.ours)
    result, received = close_while_the_peer_reads(any_tls.ours, any_tls.peer)
    assert is_one_close_notify(received, version)
    assert result.outcome is CloseOutcome.PEER_CLOSED
    assert (result.notified, result.peer_notified) == (True, True)


def test_a_close_notify_after_other_data_is_not_read(tls: Session) -> None:
    tls.peer.sendall(b"more")
    send_close_notify(tls.peer)
    send_raw_fin(tls.peer)
    await_fin(tls.ours)
    result = graceful_close(tls.ours)
    assert result.outcome is CloseOutcome.PEER_CLOSED
    assert (result.notified, result.peer_notified) == (True, None)


def test_a_peer_that_ends_without_close_notify_is_reported_as_not_notified(
    any_tls: Session,
) -> None:
    send_raw_fin(any_tls.peer)
    await_fin(any_tls.ours)
    result = graceful_close(any_tls.ours)
    assert result.outcome is CloseOutcome.PEER_CLOSED
    assert (result.notified, result.peer_notified) == (True, False)
    assert result.clean, "our own stream is whole"
    assert read_all(any_tls.peer) == b""


def test_a_fatal_alert_is_not_reported_as_close_notify(tls: Session) -> None:
    socket.socket.sendall(tls.ours, b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(ssl.SSLError, match="SSL"):
        tls.peer.recv(1)
    send_raw_fin(tls.peer)
    await_fin(tls.ours)
    result = graceful_close(tls.ours, timeout=DEADLINE)
    assert result.outcome is CloseOutcome.PEER_CLOSED
    assert (result.notified, result.peer_notified) == (True, None)


@pytest.mark.skipif(not hasattr(ssl, "OP_IGNORE_UNEXPECTED_EOF"), reason="needs OpenSSL 3")
def test_an_ignored_truncation_is_not_reported_as_close_notify(
    version: ssl.TLSVersion,
) -> None:
    with session(version, options=ssl.OP_IGNORE_UNEXPECTED_EOF) as (ours, peer):
        send_raw_fin(peer)
        await_fin(ours)
        result = graceful_close(ours)
        assert (result.notified, result.peer_notified) == (True, None)
        assert is_one_close_notify(read_raw(peer), version)


def test_a_peer_that_sends_invalid_data_after_our_close_notify_was_notified(
    tls: Session,
) -> None:
    socket.socket.sendall(tls.peer, b"GET / HTTP/1.1\r\n\r\n")
    await_input(tls.ours)
    with meanwhile(read_and_close, tls.peer) as received:
        result = graceful_close(tls.ours, timeout=DEADLINE)
    assert received == [b""]
    assert (result.notified, result.peer_notified) == (True, None)


def test_unread_tickets_of_our_client_do_not_cause_a_reset() -> None:
    with wrapped(ssl.TLSVersion.TLSv1_3, side="client") as (ours, peer):
        shake_hands(Session(ours, peer))
        await_input(ours)
        with meanwhile(read_and_close, peer) as received:
            result = graceful_close(ours, timeout=DEADLINE)
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
            result = graceful_close(ours, timeout=DEADLINE)
        assert (result.outcome, result.notified) == (CloseOutcome.PEER_RESET, True)


# --- the other functions ----------------------------------------------------------------------


def test_a_timed_linger_ends_when_the_close_notify_is_acknowledged(
    version: ssl.TLSVersion, side: str
) -> None:
    with session(version, side=side) as (ours, peer):
        ours.sendall(b"reply")
        result = timed_linger_close(ours, DEADLINE)
        assert (result.outcome, result.unacked) == (CloseOutcome.DELIVERED, 0)
        assert result.notified
        assert read_all(peer) == b"reply"


def test_an_abort_sends_nothing_before_the_reset(any_tls: Session, family: str) -> None:
    result = abortive_close(any_tls.ours)
    assert (result.outcome, result.notified) == (CloseOutcome.ABORTED, None)
    assert any_tls.ours.fileno() == -1
    if family == "unix":  # AF_UNIX has no reset, but would keep data sent before
        assert read_raw(any_tls.peer) == b""
    else:
        with pytest.raises(ConnectionResetError):
            read_raw(any_tls.peer)


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
            graceful_close(ours, timeout=DEADLINE)
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
    with pytest.raises(TypeError, match="a socket.socket is needed"):
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
