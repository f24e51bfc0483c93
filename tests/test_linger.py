"""SO_LINGER: three policies, seconds on every system, and no change by a rejected value."""

from __future__ import annotations

import errno
import math
import socket
import struct
from typing import Any

import pytest

from graceful_close import Linger, LingerPolicy, get_linger, set_linger
from graceful_close._platform import SYSTEMS
from graceful_close._platform.linger import LingerOption

BACKGROUND, ABORT, TIMED = LingerPolicy.BACKGROUND, LingerPolicy.ABORT, LingerPolicy.TIMED


@pytest.fixture
def sock() -> Any:
    with socket.socket() as sock:
        yield sock


def test_a_new_socket_lingers_in_the_background(sock: socket.socket) -> None:
    assert get_linger(sock) == Linger(BACKGROUND)


@pytest.mark.parametrize(
    ("policy", "seconds", "linger"),
    [
        (BACKGROUND, None, Linger(BACKGROUND)),
        (ABORT, None, Linger(ABORT)),
        (TIMED, 1, Linger(TIMED, 1)),
        (TIMED, 7.0, Linger(TIMED, 7)),
        (TIMED, 32767, Linger(TIMED, 32767)),
    ],
)
def test_get_linger_returns_what_set_linger_set(
    sock: socket.socket, policy: LingerPolicy, seconds: float | None, linger: Linger
) -> None:
    set_linger(sock, policy, seconds)
    assert get_linger(sock) == linger
    set_linger(sock, linger.policy, linger.seconds)
    assert get_linger(sock) == linger, "an earlier setting can be restored"


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
def test_the_option_works_for_every_family(family: socket.AddressFamily) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        set_linger(sock, TIMED, 3)
        assert get_linger(sock) == Linger(TIMED, 3)


@pytest.mark.parametrize(
    ("seconds", "whole"),
    [(0.001, 1), (0.5, 1), (1 - 1e-12, 1), (math.nextafter(0, 1), 1), (2.0001, 3)],
)
def test_fractions_are_rounded_up_and_never_become_an_abort(
    sock: socket.socket, seconds: float, whole: int
) -> None:
    set_linger(sock, TIMED, seconds)
    assert get_linger(sock) == Linger(TIMED, whole)


def test_background_after_timed_is_read_as_background_although_linux_keeps_the_seconds(
    sock: socket.socket,
) -> None:
    set_linger(sock, TIMED, 9)
    set_linger(sock, BACKGROUND)
    assert get_linger(sock) == Linger(BACKGROUND)


def test_a_negative_time_set_by_others_is_read_as_a_very_long_time(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, -1))
    linger = get_linger(sock)
    assert linger.policy is TIMED
    assert linger.seconds > 10**9


WRONG_VALUES = [0, -1, -0.5, 32767.1, 32768, 10**400, math.inf, -math.inf, math.nan]
WRONG_KINDS = [True, False, "5", b"5", None, [5], 5j]


@pytest.mark.parametrize("seconds", WRONG_VALUES, ids=str)
def test_a_time_out_of_range_is_rejected_and_the_message_names_the_range(
    sock: socket.socket, seconds: float
) -> None:
    set_linger(sock, TIMED, 4)
    with pytest.raises(ValueError, match=r"more than 0 and at most 32767") as caught:
        set_linger(sock, TIMED, seconds)
    assert repr(seconds) in str(caught.value)
    assert get_linger(sock) == Linger(TIMED, 4)


@pytest.mark.parametrize("seconds", WRONG_KINDS, ids=repr)
@pytest.mark.parametrize("policy", [TIMED, ABORT])
def test_a_time_of_the_wrong_type_is_rejected_and_the_message_names_the_range(
    sock: socket.socket, policy: LingerPolicy, seconds: Any
) -> None:
    set_linger(sock, TIMED, 4)
    if policy is ABORT and seconds is None:
        return  # the default
    with pytest.raises(TypeError, match=r"more than 0 and at most 32767"):
        set_linger(sock, policy, seconds)
    assert get_linger(sock) == Linger(TIMED, 4)


@pytest.mark.parametrize("policy", [BACKGROUND, ABORT])
def test_only_timed_accepts_seconds(sock: socket.socket, policy: LingerPolicy) -> None:
    set_linger(sock, TIMED, 4)
    with pytest.raises(ValueError, match="must be 0 with (BACKGROUND|ABORT), not 5"):
        set_linger(sock, policy, 5)
    assert get_linger(sock) == Linger(TIMED, 4)


@pytest.mark.parametrize("policy", ["abort", 0, None, (1, 0)])
def test_a_policy_must_be_a_linger_policy(sock: socket.socket, policy: Any) -> None:
    with pytest.raises(TypeError, match="must be a LingerPolicy"):
        set_linger(sock, policy)
    with pytest.raises(TypeError, match="must be a LingerPolicy"):
        Linger(policy, 5)


@pytest.mark.parametrize("seconds", [1.5, "1", True, None])
@pytest.mark.parametrize("policy", [TIMED, ABORT])
def test_a_linger_has_whole_seconds(policy: LingerPolicy, seconds: Any) -> None:
    with pytest.raises(TypeError, match="seconds must be a whole number, not"):
        Linger(policy, seconds)


@pytest.mark.parametrize("thing", [None, 3, "socket", object()])
def test_an_object_that_is_not_a_socket_is_rejected(thing: Any) -> None:
    with pytest.raises(TypeError, match="a socket.socket is needed"):
        get_linger(thing)
    with pytest.raises(TypeError, match="a socket.socket is needed"):
        set_linger(thing, ABORT)


def test_a_closed_socket_raises_the_systems_error(sock: socket.socket) -> None:
    sock.close()
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        get_linger(sock)
    assert caught.value.errno == errno.EBADF
    with pytest.raises(OSError, match="Bad file descriptor"):
        set_linger(sock, ABORT)


@pytest.mark.parametrize(
    ("policy", "seconds"), [(TIMED, 0), (TIMED, -1), (ABORT, 1), (BACKGROUND, 1)]
)
def test_an_invalid_linger_cannot_be_made(policy: LingerPolicy, seconds: int) -> None:
    with pytest.raises(ValueError, match=str(seconds)):
        Linger(policy, seconds)


# --- other systems, simulated with their data -------------------------------------------------


class Kernel:
    """Simulates a socket of another system: it stores one option, or rejects it."""

    def __init__(self, answer: bytes = b"", refusal: int = 0) -> None:
        self.answer, self.refusal = answer, refusal
        self.calls: list[tuple[int, int, bytes]] = []

    def getsockopt(self, level: int, number: int, size: int) -> bytes:
        assert len(self.answer) == size
        return self.answer

    def setsockopt(self, level: int, number: int, value: bytes) -> None:
        if self.refusal:
            raise OSError(self.refusal, "refused")
        self.calls.append((level, number, value))


def option_of(name: str) -> LingerOption:
    option = SYSTEMS[name].linger
    assert option is not None
    return option


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("linux", (1, 13, struct.pack("ii", 1, 5))),
        ("linux-mips", (0xFFFF, 0x80, struct.pack("ii", 1, 5))),
        ("linux-sparc", (0xFFFF, 0x80, struct.pack("ii", 1, 5))),
        ("macos", (0xFFFF, 0x1080, struct.pack("ii", 1, 5))),
        ("ios", (0xFFFF, 0x1080, struct.pack("ii", 1, 5))),
        ("freebsd", (0xFFFF, 0x80, struct.pack("ii", 1, 5))),
        ("netbsd", (0xFFFF, 0x80, struct.pack("ii", 1, 5))),
        ("openbsd", (0xFFFF, 0x80, struct.pack("ii", 1, 5))),
        ("illumos", (0xFFFF, 0x80, struct.pack("ii", 1, 5))),
        ("haiku", (-1, 0x200, struct.pack("ii", 1, 5))),
        ("windows", (0xFFFF, 0x80, struct.pack("HH", 1, 5))),
        ("cygwin", (0xFFFF, 0x80, struct.pack("HH", 1, 5))),
        ("msys", (0xFFFF, 0x80, struct.pack("HH", 1, 5))),
    ],
)
def test_each_system_gets_the_option_in_its_own_layout(
    name: str, call: tuple[int, int, bytes]
) -> None:
    kernel: Any = Kernel()
    option_of(name).set(kernel, True, 5)
    assert kernel.calls == [call]


@pytest.mark.parametrize(
    ("name", "longest"), [("macos", 327), ("windows", 65535), ("linux", 32767)]
)
def test_the_range_is_that_of_the_running_system(
    name: str, longest: int, sock: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graceful_close._platform.HERE", SYSTEMS[name])
    with pytest.raises(ValueError, match=f"at most {longest} on this system"):
        set_linger(sock, TIMED, longest + 1)


def test_an_l_onoff_of_128_is_read_as_on() -> None:
    freebsd: Any = Kernel(answer=struct.pack("ii", 128, 5))
    assert option_of("freebsd").get(freebsd) == (True, 5)


@pytest.mark.parametrize(
    ("name", "refusal"),
    [
        ("freebsd", errno.EDOM),
        ("netbsd", errno.EDOM),
        ("macos", errno.EDOM),
        ("openbsd", errno.EINVAL),
    ],
)
def test_a_time_that_the_kernel_rejects_raises_value_error(name: str, refusal: int) -> None:
    kernel: Any = Kernel(refusal=refusal)
    with pytest.raises(ValueError, match="refused to linger 5 s") as caught:
        option_of(name).set(kernel, True, 5)
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("name", ["macos", "illumos"])
def test_einval_after_both_directions_are_shut_is_read_as_not_connected(name: str) -> None:
    kernel: Any = Kernel(refusal=errno.EINVAL)
    with pytest.raises(OSError, match="already ended") as caught:
        option_of(name).set(kernel, True, 5)
    assert caught.value.errno == errno.ENOTCONN


def test_any_other_error_propagates() -> None:
    kernel: Any = Kernel(refusal=errno.ENOBUFS)
    with pytest.raises(OSError, match="refused") as caught:
        option_of("linux").set(kernel, True, 5)
    assert caught.value.errno == errno.ENOBUFS


def test_a_system_without_the_option_raises_on_use(
    sock: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graceful_close._platform.HERE", SYSTEMS["wasi"])
    for call in (lambda: get_linger(sock), lambda: set_linger(sock, ABORT)):
        with pytest.raises(OSError, match="wasi has no SO_LINGER") as caught:
            call()
        assert caught.value.errno == errno.ENOPROTOOPT


def test_a_wait_that_is_too_long_for_the_option_is_limited() -> None:
    assert option_of("macos").whole_seconds(1000.5) == 327
    assert option_of("macos").whole_seconds(0.2) == 1
