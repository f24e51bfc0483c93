"""The drivers on systems that are not this one: played at the one seam, by that system's data.

The played socket wraps a real connection, as gevent's class does, and changes only what
the other system does differently.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
from typing import Any

import pytest

from graceful_close import (
    CloseOutcome,
    LingerPolicy,
    abortive_close,
    graceful_close,
    timed_linger_close,
)
from graceful_close._platform import SYSTEMS, System
from streams import (
    PATIENCE,
    Connection,
    await_fin,
    connect,
    ends_in_reset,
    fill,
    meanwhile,
    read_all,
    read_and_close,
)

EWOULDBLOCK_ON_WINDOWS = 10035


class PlayedSocket:
    """A connection of this system that behaves as if it were on another.

    Args:
        real: What carries the bytes.
        system: Whose option numbers are understood.
        errors: Raised by the named method, once each.
        probe: Acknowledgement probes by getsockopt() answer this.
    """

    def __init__(
        self,
        real: socket.socket,
        system: System,
        errors: dict[str, OSError] | None = None,
        probe: bytes = b"",
    ) -> None:
        self.real, self.system, self.probe = real, system, probe
        self.errors = errors or {}
        self.linger: tuple[Any, ...] = (0, 0)
        self.mode_at_close: float | None = -1.0
        self.linger_at_close: tuple[Any, ...] = ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def setsockopt(self, level: int, number: int, value: Any) -> None:
        option = self.system.linger
        if option is not None and (level, number) == (option.level, option.number):
            self.fail("setsockopt")
            self.linger = struct.unpack(option.layout, value)
        else:
            self.real.setsockopt(level, number, value)

    def getsockopt(self, level: int, number: int, *size: int) -> Any:
        option = self.system.linger
        if option is not None and (level, number) == (option.level, option.number):
            return struct.pack(option.layout, *self.linger)
        if size:
            return self.probe[: size[0]]
        return self.real.getsockopt(level, number)

    def shutdown(self, how: int) -> None:
        self.real.shutdown(how)
        self.fail("shutdown")

    def close(self) -> None:
        self.mode_at_close, self.linger_at_close = self.real.gettimeout(), self.linger
        on, seconds = self.linger
        if self.system.name == "windows" and on and seconds and self.real.gettimeout() == 0:
            raise OSError(EWOULDBLOCK_ON_WINDOWS, "the handle is still valid")
        if on and not seconds:
            self.real.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.real.close()
        self.fail("close")

    def fail(self, call: str) -> None:
        if error := self.errors.pop(call, None):
            raise error


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Any:
    def play(name: str, real: socket.socket, **options: Any) -> Any:
        system = SYSTEMS[name]
        monkeypatch.setattr("graceful_close._platform.HERE", system)
        monkeypatch.setattr(socket, "socket", PlayedSocket)
        monkeypatch.delattr(select, "epoll", raising=False)
        if name == "windows":
            monkeypatch.delattr(select, "poll", raising=False)
        return PlayedSocket(real, system, **options)

    return play


SILENT = bytes(512)  # a probe that finds nothing unacknowledged, in no particular state


@pytest.mark.parametrize("name", ["macos", "freebsd", "openbsd", "windows", "illumos", "haiku"])
def test_a_polite_peer_is_the_same_everywhere(name: str, tcp: Connection, play: Any) -> None:
    ours = play(name, tcp.ours, probe=SILENT)
    with meanwhile(read_and_close, tcp.peer):
        result = graceful_close(ours, timeout=PATIENCE)
    assert result.outcome is CloseOutcome.PEER_CLOSED
    assert tcp.ours.fileno() == -1


def test_where_nothing_wakes_us_delivery_is_looked_for(tcp: Connection, play: Any) -> None:
    ours = play("macos", tcp.ours, probe=SILENT)
    result = timed_linger_close(ours, PATIENCE)
    assert (result.outcome, result.unacked) == (CloseOutcome.DELIVERED, 0)


def test_what_is_never_acknowledged_on_macos_times_out(tcp: Connection, play: Any) -> None:
    ours = play("macos", tcp.ours, probe=struct.pack("I", 4711) + bytes(508))
    result = timed_linger_close(ours, 0.05)
    # Two probes share the played answer; its first byte is no state in which a FIN waits.
    assert (result.outcome, result.unacked) == (CloseOutcome.TIMED_OUT, 4711)


def test_macos_saying_enotconn_to_a_second_shut_wr_is_no_end(
    tcp: Connection, play: Any
) -> None:
    again = {"shutdown": OSError(errno.ENOTCONN, "Socket is not connected")}
    ours = play("macos", tcp.ours, probe=SILENT, errors=again)
    with meanwhile(read_and_close, tcp.peer):
        result = graceful_close(ours, timeout=PATIENCE)
    assert tcp.ours.fileno() == -1
    assert result.outcome in {CloseOutcome.PEER_CLOSED, CloseOutcome.NOT_CONNECTED}


def test_macos_refusing_an_option_once_both_directions_are_shut_is_no_error(
    tcp: Connection, play: Any
) -> None:
    gone = {"setsockopt": OSError(errno.EINVAL, "Invalid argument")}
    ours = play("macos", tcp.ours, probe=SILENT, errors=gone)
    result = graceful_close(ours, timeout=0, on_timeout=LingerPolicy.ABORT)
    assert result.outcome is CloseOutcome.TIMED_OUT
    assert tcp.ours.fileno() == -1


def test_an_abort_is_an_abort_on_windows(tcp: Connection, play: Any) -> None:
    ours = play("windows", tcp.ours)
    assert abortive_close(ours).outcome is CloseOutcome.ABORTED
    assert ours.linger_at_close == (1, 0)
    assert ends_in_reset(tcp.peer)


def test_windows_lingers_in_the_kernel_on_a_blocking_descriptor(
    tcp: Connection, play: Any
) -> None:
    tcp.ours.setblocking(False)
    ours = play("windows", tcp.ours)
    result = timed_linger_close(ours, 2.5)
    assert ours.mode_at_close is None, "a non-blocking close would leak the handle"
    assert ours.linger_at_close == (1, 3), "rounded up"
    assert (result.outcome, result.unacked) == (CloseOutcome.TIMED_OUT, None)
    assert not result.clean


def test_a_timed_linger_set_by_the_caller_does_not_leak_the_handle_on_windows(
    tcp: Connection, play: Any
) -> None:
    tcp.ours.setblocking(False)
    ours = play("windows", tcp.ours)
    ours.linger = (1, 5)
    assert graceful_close(ours, timeout=0).outcome is CloseOutcome.TIMED_OUT
    assert ours.linger_at_close == (0, 0)
    assert tcp.ours.fileno() == -1


@pytest.mark.parametrize("number", [errno.EDOM, errno.EINVAL, errno.ENOTCONN, errno.EBADF])
@pytest.mark.parametrize("name", ["macos", "freebsd", "netbsd", "openbsd", "windows"])
def test_whatever_setsockopt_says_the_socket_ends_closed(
    name: str, number: int, tcp: Connection, play: Any
) -> None:
    # No probe is answered here: FreeBSD and NetBSD are asked by an ioctl that is not Linux's.
    ours = play(name, tcp.ours, probe=SILENT, errors={"setsockopt": OSError(number, "no")})
    result = graceful_close(ours, timeout=0, on_timeout=LingerPolicy.ABORT)
    assert result.outcome is CloseOutcome.TIMED_OUT
    assert tcp.ours.fileno() == -1


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EINTR, EWOULDBLOCK_ON_WINDOWS])
def test_a_close_that_complains_has_closed_and_delivery_is_unknown(
    number: int, tcp: Connection, play: Any
) -> None:
    complaint = OSError(number, "at close")
    ours = play("illumos", tcp.ours, errors={"close": complaint})
    result = timed_linger_close(ours, 1)
    assert (result.outcome, result.unacked) == (CloseOutcome.TIMED_OUT, None)
    assert result.error is complaint
    assert tcp.ours.fileno() == -1


def test_freebsds_ewouldblock_at_close_does_not_spoil_a_good_end(
    tcp: Connection, play: Any
) -> None:
    complaint = OSError(errno.EWOULDBLOCK, "at close")
    ours = play("openbsd", tcp.ours, probe=SILENT, errors={"close": complaint})
    with meanwhile(read_and_close, tcp.peer):
        result = graceful_close(ours, timeout=PATIENCE)
    assert (result.outcome, result.error) == (CloseOutcome.PEER_CLOSED, complaint)


def test_a_system_without_so_linger_closes_in_the_background(
    tcp: Connection, play: Any
) -> None:
    ours = play("wasi", tcp.ours)
    assert graceful_close(ours, timeout=0).outcome is CloseOutcome.TIMED_OUT
    assert tcp.ours.fileno() == -1
    assert read_all(tcp.peer) == b""


def test_without_msg_dontwait_nothing_blocks(
    tcp: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(socket, "MSG_DONTWAIT")
    result = graceful_close(tcp.ours, timeout=0.05)
    assert result.outcome is CloseOutcome.TIMED_OUT


def test_without_poll_a_selector_waits(
    tcp: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(select, "poll")
    with meanwhile(read_and_close, tcp.peer):
        assert graceful_close(tcp.ours, timeout=PATIENCE).outcome is CloseOutcome.PEER_CLOSED


def test_without_epoll_the_peers_fin_before_the_acknowledgement_does_not_spin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(select, "epoll")
    with connect("tcp4", peer_buffer=4096) as (ours, peer):
        fill(ours)
        peer.shutdown(socket.SHUT_WR)
        await_fin(ours)
        result = graceful_close(ours, timeout=0.05)
        assert result.outcome is CloseOutcome.TIMED_OUT
        assert result.unacked
