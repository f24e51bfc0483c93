"""How a descriptor is released: with which linger setting, and what others see of it."""

from __future__ import annotations

import os
import socket
import sys

import pytest

from graceful_close import LingerPolicy, get_linger, set_linger
from graceful_close._platform import SYSTEMS, View
from graceful_close._release import close_socket, set_policy_at_close, shut_for_writing
from streams import Connection, ends_in_reset, meanwhile, read_all

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the view is Linux's")

TCP = SYSTEMS["linux"].tcp
BACKGROUND, ABORT, TIMED = LingerPolicy.BACKGROUND, LingerPolicy.ABORT, LingerPolicy.TIMED


def holder_of(sock: socket.socket) -> socket.socket:
    """Another holder of the same connection, which sees its settings."""
    return socket.socket(fileno=os.dup(sock.fileno()))


def test_our_fin_leaves_the_connection_open_for_input(tcp: Connection) -> None:
    shut_for_writing(tcp.ours)
    assert tcp.peer.recv(1) == b""
    tcp.peer.sendall(b"late")
    assert tcp.ours.recv(4) == b"late"


@pytest.mark.parametrize("policy", [None, BACKGROUND, ABORT, TIMED])
def test_a_socket_is_closed_with_each_policy(
    policy: LingerPolicy | None, tcp: Connection
) -> None:
    assert close_socket(tcp.ours, policy, TCP, 1) is None
    assert tcp.ours.fileno() == -1


@pytest.mark.parametrize(
    ("policy", "setting"),
    [
        (None, (TIMED, 7)),
        (BACKGROUND, (BACKGROUND, 0)),
        (TIMED, (TIMED, 3)),
    ],
)
def test_the_setting_that_somebody_made_is_replaced_by_the_policys(
    policy: LingerPolicy | None, setting: tuple[LingerPolicy, int], tcp: Connection
) -> None:
    set_linger(tcp.ours, TIMED, 7)
    with holder_of(tcp.ours) as other:
        close_socket(tcp.ours, policy, TCP, 2.1)
        linger = get_linger(other)
        assert (linger.policy, linger.seconds) == setting


def test_a_setting_that_would_reset_is_taken_back(tcp: Connection) -> None:
    set_linger(tcp.ours, ABORT)
    close_socket(tcp.ours, BACKGROUND, TCP)
    assert read_all(tcp.peer) == b""


def test_only_a_timed_close_makes_the_socket_wait(tcp: Connection) -> None:
    tcp.ours.settimeout(0)
    with holder_of(tcp.ours) as other:
        close_socket(tcp.ours, TIMED, TCP, 1)
        assert os.get_blocking(other.fileno())


def test_an_abort_resets_whoever_else_holds_the_connection(tcp: Connection) -> None:
    with holder_of(tcp.ours):
        close_socket(tcp.ours, ABORT, TCP)
        assert ends_in_reset(tcp.peer)


@pytest.mark.parametrize("view", [None, SYSTEMS["macos"].tcp])
def test_where_an_abort_cannot_disconnect_the_last_holder_resets(
    view: View | None, tcp: Connection
) -> None:
    with holder_of(tcp.ours) as other:
        close_socket(tcp.ours, ABORT, view)
        linger = get_linger(other)
        assert (linger.policy, linger.seconds) == (ABORT, 0)
        assert other.recv(1) == b"", "a reader is woken"
    assert ends_in_reset(tcp.peer)


def test_whoever_reads_is_woken_if_asked_for(tcp: Connection) -> None:
    with holder_of(tcp.ours) as other:
        with meanwhile(read_all, other) as read:
            close_socket(tcp.ours, BACKGROUND, TCP, wake_readers=True)
        assert read == [b""]


@pytest.mark.parametrize("policy", [None, BACKGROUND, TIMED])
def test_whoever_reads_goes_on_unless_asked_for(
    policy: LingerPolicy | None, tcp: Connection
) -> None:
    with holder_of(tcp.ours) as other:
        close_socket(tcp.ours, policy, TCP, 1)
        with pytest.raises(BlockingIOError):
            other.recv(1, socket.MSG_DONTWAIT)


def test_a_connection_that_is_over_is_closed_all_the_same() -> None:
    sock = socket.socket()
    assert close_socket(sock, BACKGROUND, TCP, wake_readers=True) is None
    assert sock.fileno() == -1


def test_a_connection_can_be_set_to_be_reset_by_its_owner(tcp: Connection) -> None:
    set_policy_at_close(tcp.ours, LingerPolicy.ABORT)
    linger = get_linger(tcp.ours)
    assert (linger.policy, linger.seconds) == (ABORT, 0)
    tcp.ours.close()
    assert ends_in_reset(tcp.peer)


def test_a_socket_that_is_closed_cannot_be_set_to_anything() -> None:
    sock = socket.socket()
    sock.close()
    set_policy_at_close(sock, LingerPolicy.ABORT)
    assert sock.fileno() == -1
