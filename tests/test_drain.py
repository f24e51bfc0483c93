"""One read of a drain: as much as there is, never a wait, and nothing of it kept."""

from __future__ import annotations

import select
import socket
import sys
import threading

import pytest

from graceful_close import _drain
from graceful_close._drain import Drain, drain_of
from graceful_close._platform import SYSTEMS
from streams import DEADLINE, Connection, meanwhile

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere nothing is discarded in the kernel"
)

WAYS = [True, False]  # in the kernel, and by a copy


def await_input(sock: socket.socket, count: int) -> None:
    """Wait until `count` bytes can be read (SO_RCVLOWAT, socket(7))."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
    assert select.select([sock], [], [], DEADLINE)[0]


@pytest.mark.parametrize("in_kernel", WAYS)
def test_a_read_takes_what_is_there_up_to_the_allowance(
    in_kernel: bool, tcp: Connection
) -> None:
    drain = Drain(in_kernel=in_kernel)
    tcp.peer.sendall(bytes(1000))
    await_input(tcp.ours, 1000)
    assert drain.read(tcp.ours, 10) == 10
    assert drain.read(tcp.ours, 5000) == 990
    tcp.peer.close()
    assert select.select([tcp.ours], [], [], DEADLINE)[0]
    assert drain.read(tcp.ours, None) == 0


@pytest.mark.parametrize("in_kernel", WAYS)
def test_a_read_does_not_wait_on_a_socket_that_blocks(in_kernel: bool, tcp: Connection) -> None:
    tcp.ours.settimeout(None)
    has_returned = threading.Event()

    def end_the_wait() -> None:
        if not has_returned.wait(2):
            tcp.peer.sendall(b"x")

    with meanwhile(end_the_wait):
        with pytest.raises(BlockingIOError):
            Drain(in_kernel=in_kernel).read(tcp.ours, None)
        has_returned.set()


def test_a_read_in_the_kernel_takes_more_than_a_copy_does(tcp: Connection) -> None:
    size = 500_000
    tcp.ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * size)
    with meanwhile(lambda: tcp.peer.sendall(bytes(size))):
        await_input(tcp.ours, size)
        assert Drain(in_kernel=True).read(tcp.ours, None) == size


@pytest.mark.parametrize("timeout", [None, 0.0, 1.0])
def test_a_system_without_a_flag_for_one_read_gets_a_socket_that_never_waits(
    timeout: float | None, tcp: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def anew(in_kernel: bool) -> Drain:
        return Drain(in_kernel=in_kernel)

    monkeypatch.setattr(_drain, "_MSG_DONTWAIT", 0)
    monkeypatch.setattr(_drain, "_shared", anew)  # what is made here is not kept for others
    tcp.ours.settimeout(timeout)
    drain_of(tcp.ours, SYSTEMS["windows"].tcp)
    assert tcp.ours.gettimeout() == 0


def test_the_mode_of_the_connection_does_not_change_because_others_may_share_it(
    tcp: Connection,
) -> None:
    tcp.ours.settimeout(None)
    drain_of(tcp.ours, SYSTEMS["linux"].tcp)
    assert tcp.ours.getblocking()


def test_the_sockets_of_one_kind_share_a_buffer(tcp: Connection) -> None:
    system = SYSTEMS["linux"]
    assert drain_of(tcp.ours, system.tcp) is drain_of(tcp.peer, system.tcp)
    assert drain_of(tcp.ours, system.tcp) is not drain_of(tcp.ours, system.other)
