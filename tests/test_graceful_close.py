"""graceful_close on real connections: the peer gets all data, and the result is true."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import descriptors
from drivers import THREADED, Close, parts
from graceful_close import (
    CloseOutcome,
    Linger,
    LingerPolicy,
    get_linger,
    graceful_close,
    set_linger,
)
from graceful_close._blocking import close_on
from graceful_close._options import Options
from signals import Stop, each_moment, on_alarm, stop
from streams import (
    DEADLINE,
    MODES,
    REPLY,
    Connection,
    Full,
    await_fin,
    await_input,
    await_reset,
    connect,
    ends_in_reset,
    meanwhile,
    read_all,
    read_and_close,
    reset,
    send_fin,
)

every_close = pytest.mark.parametrize("close", parts(THREADED))


# --- the purpose -----------------------------------------------------------------------


def test_unread_input_does_not_destroy_the_reply(stream: Connection) -> None:
    stream.peer.sendall(b"upload" * 1000)
    await_input(stream.ours)
    stream.ours.sendall(REPLY)
    with meanwhile(read_and_close, stream.peer) as received:
        result = graceful_close(stream.ours)
    assert received == [REPLY]
    assert result.outcome is CloseOutcome.PEER_CLOSED
    assert result.drained == 6000


def test_a_plain_close_with_unread_input_destroys_the_reply(tcp: Connection) -> None:
    tcp.peer.sendall(b"upload" * 1000)
    await_input(tcp.ours)
    tcp.ours.sendall(REPLY)
    tcp.ours.close()
    assert ends_in_reset(tcp.peer)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_a_peer_that_closes_after_us_is_reported_as_closed(
    stream: Connection, mode: float | None
) -> None:
    stream.ours.settimeout(mode)
    with meanwhile(read_and_close, stream.peer):
        result = graceful_close(stream.ours)
    assert result.outcome is CloseOutcome.PEER_CLOSED
    assert result.clean
    assert result.error is None
    assert result.unacked == (0 if stream.ours.family != socket.AF_UNIX else None)
    assert stream.ours.fileno() == -1


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_a_peer_that_closed_before_us_is_reported_as_closed(
    stream: Connection, mode: float | None
) -> None:
    stream.ours.settimeout(mode)
    stream.peer.close()
    await_fin(stream.ours)
    assert graceful_close(stream.ours).outcome is CloseOutcome.PEER_CLOSED


def test_a_peer_that_half_closed_still_gets_our_data(stream: Connection) -> None:
    send_fin(stream.peer, to=stream.ours)
    stream.ours.sendall(REPLY)
    with meanwhile(read_all, stream.peer) as received:
        result = graceful_close(stream.ours)
    assert result.outcome is CloseOutcome.PEER_CLOSED
    assert received == [REPLY]


def test_the_close_waits_for_acknowledgements_after_the_peers_fin(full: Full) -> None:
    send_fin(full.peer, to=full.ours)
    with meanwhile(read_all, full.peer) as received:
        result = graceful_close(full.ours, timeout=DEADLINE)
    assert (result.outcome, result.unacked) == (CloseOutcome.PEER_CLOSED, 0)
    assert len(received[0]) == full.written


def test_peer_closed_is_not_returned_while_our_data_is_unacknowledged(full: Full) -> None:
    send_fin(full.peer, to=full.ours)
    result = graceful_close(full.ours, timeout=0.05)
    assert result.outcome is CloseOutcome.TIMED_OUT
    assert (result.unacked or 0) > 1


def test_a_reset_after_the_peers_fin_is_reported(full: Full) -> None:
    send_fin(full.peer, to=full.ours)
    reset(full.peer)
    await_reset(full.ours)
    result = graceful_close(full.ours)
    assert result.outcome is CloseOutcome.PEER_RESET
    assert (result.unacked or 0) > 0


# --- peers that do not close ------------------------------------------------------------------


def test_a_timeout_of_0_polls_once(stream: Connection) -> None:
    assert graceful_close(stream.ours, timeout=0).outcome is CloseOutcome.TIMED_OUT


def test_a_timeout_of_0_sees_a_fin_that_has_arrived(stream: Connection) -> None:
    stream.peer.close()
    await_fin(stream.ours)
    assert graceful_close(stream.ours, timeout=0).outcome is CloseOutcome.PEER_CLOSED


def test_a_reset_during_the_drain_is_reported(tcp: Connection) -> None:
    def peer() -> None:
        assert tcp.peer.recv(1) == b""
        tcp.peer.sendall(b"more")
        reset(tcp.peer)

    with meanwhile(peer):
        result = graceful_close(tcp.ours)
    assert result.outcome is CloseOutcome.PEER_RESET
    assert result.error is not None
    assert result.error.errno == errno.ECONNRESET
    assert not result.clean


def test_an_unread_reset_is_reported(tcp: Connection) -> None:
    reset(tcp.peer)
    await_reset(tcp.ours)
    result = graceful_close(tcp.ours)
    assert result.outcome is CloseOutcome.PEER_RESET
    assert result.error is not None
    assert result.error.errno == errno.ECONNRESET


def test_after_a_reset_that_the_caller_has_read_there_is_no_connection(tcp: Connection) -> None:
    reset(tcp.peer)
    await_reset(tcp.ours)
    with pytest.raises(ConnectionResetError):
        tcp.ours.recv(1)
    result = graceful_close(tcp.ours)
    assert result.outcome is CloseOutcome.NOT_CONNECTED


def test_after_a_reset_that_the_callers_send_met_unread_input_proves_nothing(
    tcp: Connection,
) -> None:
    tcp.peer.sendall(b"request")
    await_input(tcp.ours)
    reset(tcp.peer)
    await_reset(tcp.ours)
    with pytest.raises(ConnectionResetError):
        tcp.ours.send(b"reply")
    result = graceful_close(tcp.ours)
    assert result.outcome is CloseOutcome.NOT_CONNECTED
    assert result.drained == len(b"request")


def test_data_unacknowledged_at_a_reset_is_not_clean_even_if_the_caller_read_the_reset(
    full: Full,
) -> None:
    reset(full.peer)
    await_reset(full.ours)
    with pytest.raises(ConnectionResetError):
        full.ours.recv(1)
    result = graceful_close(full.ours)
    assert result.outcome is CloseOutcome.NOT_CONNECTED
    assert result.unacked
    assert not result.clean


def test_after_an_end_by_the_caller_there_is_no_connection(
    tcp: Connection,
) -> None:
    tcp.ours.shutdown(socket.SHUT_WR)
    tcp.peer.close()
    assert tcp.ours.recv(1) == b""
    result = graceful_close(tcp.ours)
    assert (result.outcome, result.unacked) == (CloseOutcome.NOT_CONNECTED, 0)
    assert result.clean


def test_a_close_after_the_callers_shutdown_works(stream: Connection) -> None:
    stream.ours.shutdown(socket.SHUT_WR)
    with meanwhile(read_and_close, stream.peer):
        # PEER_CLOSED; or NOT_CONNECTED if the peer was faster, and the connection ended before
        # the call.
        assert graceful_close(stream.ours).clean


def test_a_unix_peer_that_leaves_our_data_unread_is_reported_as_reset(stack: Any) -> None:
    ours, peer = stack.enter_context(connect("unix"))
    ours.sendall(b"never read")
    peer.close()
    await_reset(ours)
    assert graceful_close(ours).outcome is CloseOutcome.PEER_RESET


def test_a_flood_is_drained_to_its_end(stream: Connection) -> None:
    def flood() -> None:
        for _ in range(64):
            stream.peer.sendall(bytes(1 << 20))
        stream.peer.close()

    with meanwhile(flood):
        result = graceful_close(stream.ours, timeout=DEADLINE)
    assert (result.outcome, result.drained) == (CloseOutcome.PEER_CLOSED, 64 << 20)


def test_a_drain_limit_ends_the_close(stream: Connection) -> None:
    stream.peer.sendall(bytes(1000))
    await_input(stream.ours)
    result = graceful_close(stream.ours, drain_limit=999)
    assert (result.outcome, result.drained) == (CloseOutcome.DRAIN_LIMIT, 1000)


def test_a_drain_limit_ends_the_close_during_a_flood(tcp: Connection) -> None:
    tcp.peer.sendall(bytes(200_000))  # then nothing more: the peer does not close
    result = graceful_close(tcp.ours, timeout=DEADLINE, drain_limit=150_000)
    assert (result.outcome, result.drained) == (CloseOutcome.DRAIN_LIMIT, 150_001)
    assert result.elapsed < DEADLINE / 2


def test_a_drain_limit_that_is_met_exactly_is_not_exceeded(stream: Connection) -> None:
    stream.peer.sendall(bytes(1000))
    stream.peer.close()
    await_fin(stream.ours)
    result = graceful_close(stream.ours, drain_limit=1000)
    assert (result.outcome, result.drained) == (CloseOutcome.PEER_CLOSED, 1000)


# --- on_timeout -------------------------------------------------------------------------------


def test_on_timeout_abort_resets_the_peer(full: Full) -> None:
    result = graceful_close(full.ours, timeout=0.05, on_timeout=LingerPolicy.ABORT)
    assert result.outcome is CloseOutcome.TIMED_OUT
    assert ends_in_reset(full.peer)


@pytest.mark.parametrize(
    "earlier",
    [
        Linger(LingerPolicy.BACKGROUND),
        Linger(LingerPolicy.ABORT),
        Linger(LingerPolicy.TIMED, 10),
    ],
    ids=str,
)
def test_at_the_deadline_the_kernel_sends_the_rest_whatever_so_linger_was(
    earlier: Linger, full: Full
) -> None:
    set_linger(full.ours, earlier.policy, earlier.seconds)
    result = graceful_close(full.ours, timeout=0.05)
    assert result.outcome is CloseOutcome.TIMED_OUT
    assert result.elapsed < 5
    assert len(read_all(full.peer)) == full.written


# --- the states of a socket -----------------------------------------------------------------


def test_after_a_refused_connect_there_is_no_connection(listener: socket.socket) -> None:
    address = listener.getsockname()
    listener.close()
    with socket.socket() as sock:
        sock.setblocking(False)
        assert sock.connect_ex(address) == errno.EINPROGRESS
        await_reset(sock)
        result = graceful_close(sock)
    assert result.outcome is CloseOutcome.NOT_CONNECTED
    assert result.error is not None
    assert result.error.errno == errno.ECONNREFUSED


def test_a_closed_socket_is_reported_as_already_closed(stream: Connection) -> None:
    stream.ours.close()
    result = graceful_close(stream.ours)
    assert result.outcome is CloseOutcome.ALREADY_CLOSED
    assert not result.clean


def test_a_makefile_object_does_not_keep_the_descriptor_open(stream: Connection) -> None:
    file = stream.ours.makefile("rwb")
    stream.peer.close()
    with pytest.warns(ResourceWarning, match="the content of its buffer was not sent"):
        result = graceful_close(stream.ours)
    assert (result.outcome, result.unflushed) == (CloseOutcome.PEER_CLOSED, True)
    assert not result.clean, "the contents of its buffer are not known"
    assert stream.ours.fileno() == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.read(1)
    file.close()


def test_a_dup_sees_the_end_and_keeps_its_mode_and_its_linger_option(tcp: Connection) -> None:
    with tcp.ours.dup() as dup:
        tcp.peer.close()
        assert graceful_close(tcp.ours).outcome is CloseOutcome.PEER_CLOSED
        assert os.get_blocking(dup.fileno())
        assert get_linger(dup) == Linger(LingerPolicy.BACKGROUND)
        assert dup.recv(1) == b""


def test_descriptors_above_1023_are_ordinary(tcp: Connection) -> None:
    with descriptors.limited_to(3000):
        high = os.dup2(tcp.ours.fileno(), 2500)
        tcp.ours.close()
        sock = socket.socket(fileno=high)
        with meanwhile(read_and_close, tcp.peer):
            assert graceful_close(sock).outcome is CloseOutcome.PEER_CLOSED


@every_close
@pytest.mark.parametrize(
    "thing",
    [None, 7, "socket", object(), socket.socket],
    ids=["None", "descriptor", "text", "object", "class"],
)
def test_an_object_that_is_not_a_socket_is_rejected(thing: Any, close: Close) -> None:
    with pytest.raises(TypeError, match="a socket.socket is needed"):
        close(thing)


@every_close
def test_a_datagram_socket_is_rejected_before_it_is_touched(close: Close) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        message = r"^(socks\[0\]: )?a stream socket \(SOCK_STREAM\) is needed, not <"
        with pytest.raises(TypeError, match=message):
            close(sock)
        assert sock.fileno() != -1


# --- signals and threads ----------------------------------------------------------------------


def test_an_exception_from_a_signal_handler_closes_immediately_and_propagates(
    stream: Connection,
) -> None:
    set_linger(stream.ours, LingerPolicy.TIMED, 20)
    with on_alarm(stop, 0.05), pytest.raises(Stop):
        graceful_close(stream.ours, timeout=DEADLINE)
    assert stream.ours.fileno() == -1


def test_a_signal_handler_that_returns_does_not_shorten_the_wait(stream: Connection) -> None:
    with on_alarm(lambda *_: None, 0.01, 0.01):
        result = graceful_close(stream.ours, timeout=0.1)
    assert result.outcome is CloseOutcome.TIMED_OUT
    assert result.elapsed >= 0.1


def test_threads_that_close_the_same_socket_all_get_a_result(stream: Connection) -> None:
    outcomes: list[CloseOutcome] = []
    barrier = threading.Barrier(4)

    def close() -> None:
        barrier.wait(DEADLINE)
        outcomes.append(graceful_close(stream.ours, timeout=DEADLINE).outcome)

    threads = [threading.Thread(target=close) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert stream.peer.recv(1) == b""
    stream.peer.close()
    for thread in threads:
        thread.join()
    # The thread that closed it saw the end, or called after the end; the others found it
    # closed.
    assert len(outcomes) == 4
    assert set(outcomes) <= {
        CloseOutcome.PEER_CLOSED,
        CloseOutcome.NOT_CONNECTED,
        CloseOutcome.ALREADY_CLOSED,
    }


@pytest.mark.parametrize(
    "close",
    [
        partial(close_on, Options(0.01, until=CloseOutcome.DELIVERED)),
        partial(close_on, Options(0.01, on_timeout=LingerPolicy.ABORT)),
        partial(close_on, Options(), abort=True),
    ],
    ids=["delivery", "drain", "abort"],
)
def test_a_signal_at_any_call_leaves_the_socket_closed(
    close: Callable[[socket.socket], object],
) -> None:
    for stopped in each_moment():
        with connect("tcp4") as (ours, peer):
            peer.sendall(b"x")
            await_input(ours)
            with stopped():
                close(ours)
            assert ours.fileno() == -1
