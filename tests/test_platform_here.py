"""Calls to the kernel of this system, on real sockets."""

from __future__ import annotations

import errno
import socket
import sys
from typing import Any

import pytest

import descriptors
from graceful_close import LingerPolicy, set_linger, unacked_bytes
from graceful_close._platform import (
    HERE,
    TcpState,
    descriptor_limit,
    disconnect,
)
from graceful_close._platform.acks import Field, Ioctl
from graceful_close._record import replace
from streams import Connection, await_reset, send_fin

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="calls of Linux")


@pytest.mark.parametrize(
    ("policy", "aborts"),
    [
        (LingerPolicy.ABORT, True),
        (LingerPolicy.TIMED, False),
        (LingerPolicy.BACKGROUND, False),
        (None, False),
    ],
)
def test_only_a_lingering_of_0_seconds_aborts(
    policy: LingerPolicy | None, aborts: bool, tcp: Connection
) -> None:
    if policy is not None:
        set_linger(tcp.ours, policy, 1 if policy is LingerPolicy.TIMED else None)
    assert HERE.linger is not None
    assert HERE.linger.aborts(tcp.ours) is aborts


def test_an_int_of_an_ioctl_is_read_as_it_is_on_this_processor(tcp: Connection) -> None:
    import termios

    tcp.peer.sendall(bytes(0x0102))
    send_fin(tcp.peer, to=tcp.ours)
    assert Ioctl(termios.FIONREAD).read(tcp.ours) == 0x0102


def test_a_state_that_is_newer_than_this_library_is_not_known(tcp: Connection) -> None:
    known = HERE.state
    assert known is not None
    assert known.read(tcp.ours) is TcpState.OPEN
    assert replace(known, states=known.states[:1]).read(tcp.ours) is None


def test_a_field_that_this_kernel_does_not_have_is_an_error(tcp: Connection) -> None:
    with pytest.raises(OSError, match="ends before byte 1001"):
        Field(socket.IPPROTO_TCP, socket.TCP_INFO, offset=1000, size=1).read(tcp.ours)


def test_a_kernel_that_does_not_count_shows_by_the_state_that_all_is_acknowledged(
    tcp: Connection,
) -> None:
    assert HERE.acks is not None
    probe = replace(HERE.acks, queue=Ioctl(1))  # ENOTTY
    with pytest.raises(OSError, match="ioctl"):
        probe.read(tcp.ours)
    tcp.ours.shutdown(socket.SHUT_WR)
    while unacked_bytes(tcp.ours):
        pass
    assert probe.read(tcp.ours) == 0


def test_a_connection_is_reset_whoever_else_holds_it(tcp: Connection) -> None:
    with tcp.ours.dup():
        disconnect(tcp.ours)
        await_reset(tcp.peer)


def test_a_reset_that_the_kernel_refuses_has_its_error(tcp: Connection) -> None:
    tcp.ours.close()
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        disconnect(tcp.ours)
    assert caught.value.errno == errno.EBADF


def test_a_reset_without_ctypes_is_refused(
    tcp: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    without: Any = None
    monkeypatch.setitem(sys.modules, "ctypes", without)
    with pytest.raises(OSError, match="ctypes"):
        disconnect(tcp.ours)


def test_the_limit_of_descriptors_is_the_soft_one() -> None:
    with descriptors.limited_to(500):
        assert descriptor_limit() == 500


def test_an_infinite_limit_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    infinite = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)

    def unlimited(_: int) -> tuple[int, int]:
        return infinite

    monkeypatch.setattr(resource, "getrlimit", unlimited)
    assert descriptor_limit() is None
