"""The drivers on other systems, which are simulated with the data of each system.

The object that takes the descriptor is simulated: a real connection, except for what the other
system does differently.
"""

from __future__ import annotations

import _socket
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
    DEADLINE,
    Connection,
    connect,
    ends_in_reset,
    fill,
    meanwhile,
    read_all,
    read_and_close,
    send_fin,
)

EWOULDBLOCK_ON_WINDOWS = 10035


class Simulated:
    """The simulated system: its answers, and the calls that it got.

    Args:
        system: The system whose option numbers are accepted.
        errors: Exceptions that the named methods raise, once each.
        probe: The result of acknowledgement queries by getsockopt().
    """

    def __init__(
        self, system: System, errors: dict[str, OSError] | None = None, probe: bytes = b""
    ) -> None:
        self.system, self.probe = system, probe
        self.errors = errors or {}
        self.linger: tuple[Any, ...] = (0, 0)
        self.mode_at_close: float | None = -1.0
        self.linger_at_close: tuple[Any, ...] = ()

    def fail(self, call: str) -> None:
        if error := self.errors.pop(call, None):
            raise error


def simulated_class(played: Simulated) -> type[_socket.socket]:
    """Return the class of the objects that take a descriptor on the other system."""

    class SimulatedSocket(_socket.socket):
        def setsockopt(self, level: int, number: int, value: Any) -> None:  # type: ignore[override]
            option = played.system.linger
            if option is not None and (level, number) == (option.level, option.number):
                played.fail("setsockopt")
                played.linger = struct.unpack(option.layout, value)
            else:
                super().setsockopt(level, number, value)

        def getsockopt(self, level: int, number: int, *size: int) -> Any:
            option = played.system.linger
            if option is not None and (level, number) == (option.level, option.number):
                return struct.pack(option.layout, *played.linger)
            if size:
                return played.probe[: size[0]]
            return super().getsockopt(level, number)

        def shutdown(self, how: int, /) -> None:
            super().shutdown(how)
            played.fail("shutdown")

        def close(self) -> None:
            if self.fileno() == -1:
                return
            played.mode_at_close, played.linger_at_close = self.gettimeout(), played.linger
            on, seconds = played.linger
            if played.system.name == "windows" and on and seconds and self.gettimeout() == 0:
                raise OSError(EWOULDBLOCK_ON_WINDOWS, "the handle is still valid")
            if on and not seconds:
                super().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            super().close()
            played.fail("close")

    return SimulatedSocket


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Any:
    def play(name: str, **options: Any) -> Simulated:
        played = Simulated(SYSTEMS[name], **options)
        monkeypatch.setattr("graceful_close._platform.HERE", played.system)
        monkeypatch.setattr("graceful_close._sockets._native", simulated_class(played))
        monkeypatch.delattr(select, "epoll", raising=False)
        if name == "windows":
            monkeypatch.delattr(select, "poll", raising=False)
        return played

    return play


SILENT = bytes(512)  # a query result with nothing unacknowledged, in any state


@pytest.mark.parametrize("name", ["macos", "freebsd", "openbsd", "windows", "illumos", "haiku"])
def test_a_peer_that_closes_is_reported_the_same_on_every_system(
    name: str, tcp: Connection, play: Any
) -> None:
    play(name, probe=SILENT)
    with meanwhile(read_and_close, tcp.peer):
        result = graceful_close(tcp.ours, timeout=DEADLINE)
    assert result.outcome is CloseOutcome.PEER_CLOSED
    assert tcp.ours.fileno() == -1


def test_without_an_ack_wake_up_delivery_is_polled(tcp: Connection, play: Any) -> None:
    play("macos", probe=SILENT)
    result = timed_linger_close(tcp.ours, DEADLINE)
    assert (result.outcome, result.unacked) == (CloseOutcome.DELIVERED, 0)


def test_unacknowledged_data_on_macos_times_out(tcp: Connection, play: Any) -> None:
    play("macos", probe=struct.pack("I", 4711) + bytes(508))
    result = timed_linger_close(tcp.ours, 0.05)
    # Two queries share the simulated result; its first byte is not a state with a pending FIN.
    assert (result.outcome, result.unacked) == (CloseOutcome.TIMED_OUT, 4711)


def test_enotconn_at_a_second_shut_wr_on_macos_is_not_the_end(
    tcp: Connection, play: Any
) -> None:
    again = {"shutdown": OSError(errno.ENOTCONN, "Socket is not connected")}
    play("macos", probe=SILENT, errors=again)
    with meanwhile(read_and_close, tcp.peer):
        result = graceful_close(tcp.ours, timeout=DEADLINE)
    assert tcp.ours.fileno() == -1
    assert result.outcome in {CloseOutcome.PEER_CLOSED, CloseOutcome.NOT_CONNECTED}


def test_a_rejected_option_after_both_directions_are_shut_on_macos_is_not_an_error(
    tcp: Connection, play: Any
) -> None:
    gone = {"setsockopt": OSError(errno.EINVAL, "Invalid argument")}
    play("macos", probe=SILENT, errors=gone)
    result = graceful_close(tcp.ours, timeout=0, on_timeout=LingerPolicy.ABORT)
    assert result.outcome is CloseOutcome.TIMED_OUT
    assert tcp.ours.fileno() == -1


def test_an_abort_works_on_windows(tcp: Connection, play: Any) -> None:
    played = play("windows")
    assert abortive_close(tcp.ours).outcome is CloseOutcome.ABORTED
    assert played.linger_at_close == (1, 0)
    assert ends_in_reset(tcp.peer)


def test_windows_lingers_in_the_kernel_on_a_blocking_descriptor(
    tcp: Connection, play: Any
) -> None:
    tcp.ours.setblocking(False)
    played = play("windows")
    result = timed_linger_close(tcp.ours, 2.5)
    assert played.mode_at_close is None, "a non-blocking close would leak the handle"
    assert played.linger_at_close == (1, 3), "rounded up"
    assert (result.outcome, result.unacked) == (CloseOutcome.TIMED_OUT, None)
    assert not result.clean


def test_a_timed_linger_set_by_the_caller_does_not_leak_the_handle_on_windows(
    tcp: Connection, play: Any
) -> None:
    tcp.ours.setblocking(False)
    played = play("windows")
    played.linger = (1, 5)
    assert graceful_close(tcp.ours, timeout=0).outcome is CloseOutcome.TIMED_OUT
    assert played.linger_at_close == (0, 0)
    assert tcp.ours.fileno() == -1


@pytest.mark.parametrize("number", [errno.EDOM, errno.EINVAL, errno.ENOTCONN, errno.EBADF])
@pytest.mark.parametrize("name", ["macos", "freebsd", "netbsd", "openbsd", "windows"])
def test_the_socket_is_closed_even_if_setsockopt_fails(
    name: str, number: int, tcp: Connection, play: Any
) -> None:
    # No query succeeds here: FreeBSD and NetBSD have an ioctl that Linux does not have.
    play(name, probe=SILENT, errors={"setsockopt": OSError(number, "no")})
    result = graceful_close(tcp.ours, timeout=0, on_timeout=LingerPolicy.ABORT)
    assert result.outcome is CloseOutcome.TIMED_OUT
    assert tcp.ours.fileno() == -1


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EINTR, EWOULDBLOCK_ON_WINDOWS])
def test_a_close_that_raises_has_closed_and_delivery_is_unknown(
    number: int, tcp: Connection, play: Any
) -> None:
    failure = OSError(number, "at close")
    play("illumos", errors={"close": failure})
    result = timed_linger_close(tcp.ours, 1)
    assert (result.outcome, result.unacked) == (CloseOutcome.TIMED_OUT, None)
    assert result.error is failure
    assert tcp.ours.fileno() == -1


def test_ewouldblock_at_close_on_freebsd_does_not_change_a_clean_result(
    tcp: Connection, play: Any
) -> None:
    failure = OSError(errno.EWOULDBLOCK, "at close")
    play("openbsd", probe=SILENT, errors={"close": failure})
    with meanwhile(read_and_close, tcp.peer):
        result = graceful_close(tcp.ours, timeout=DEADLINE)
    assert (result.outcome, result.error) == (CloseOutcome.PEER_CLOSED, failure)


def test_a_system_without_so_linger_closes_in_the_background(
    tcp: Connection, play: Any
) -> None:
    play("wasi")
    assert graceful_close(tcp.ours, timeout=0).outcome is CloseOutcome.TIMED_OUT
    assert tcp.ours.fileno() == -1
    assert read_all(tcp.peer) == b""


def test_without_msg_dontwait_no_call_blocks(
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
        assert graceful_close(tcp.ours, timeout=DEADLINE).outcome is CloseOutcome.PEER_CLOSED


def test_without_epoll_the_peers_fin_before_the_acknowledgement_does_not_spin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(select, "epoll")
    with connect("tcp4", peer_buffer=4096) as (ours, peer):
        fill(ours)
        send_fin(peer, to=ours)
        result = graceful_close(ours, timeout=0.05)
        assert result.outcome is CloseOutcome.TIMED_OUT
        assert result.unacked
