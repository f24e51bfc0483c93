"""The platform data: the numbers of the running system, and its recognition."""

from __future__ import annotations

import errno
import socket
import struct
import sys
from typing import Any

import pytest

from graceful_close._platform import (
    HERE,
    SYSTEMS,
    ErrorKind,
    descriptor_limit,
    error_kind,
    identify,
)
from graceful_close._platform.acks import AckProbe, Field, Ioctl
from graceful_close._record import fields, replace


@pytest.mark.parametrize(
    ("platform", "machine", "name"),
    [
        ("linux", "x86_64", "linux"),
        ("linux", "aarch64", "linux"),
        ("linux", "riscv64", "linux"),
        ("linux", "s390x", "linux"),
        ("linux", "loongarch64", "linux"),
        ("linux", "ppc64le", "linux-ppc"),
        ("linux", "mips64", "linux-mips"),
        ("linux", "sparc64", "linux-sparc"),
        ("linux", "alpha", "unknown"),
        ("linux", "sh4", "unknown"),
        ("android", "aarch64", "android"),
        ("darwin", "arm64", "macos"),
        ("ios", "arm64", "ios"),
        ("tvos", "arm64", "tvos"),
        ("watchos", "arm64", "watchos"),
        ("freebsd14", "amd64", "freebsd"),
        ("netbsd10", "amd64", "netbsd"),
        ("openbsd7", "amd64", "openbsd"),
        ("dragonfly6", "x86_64", "dragonfly"),
        ("sunos5", "i86pc", "illumos"),
        ("haiku1", "x86_64", "haiku"),
        ("aix", "00F84C0C4C00", "aix"),
        ("win32", "", "windows"),
        ("cygwin", "x86_64", "cygwin"),
        ("msys", "x86_64", "msys"),
        ("wasi", "", "wasi"),
        ("emscripten", "", "wasi"),
        ("plan9", "", "unknown"),
    ],
)
def test_every_system_is_recognised(platform: str, machine: str, name: str) -> None:
    assert identify(platform, machine) == name
    assert SYSTEMS[name].name == name


def test_the_data_of_this_system_agrees_with_its_headers() -> None:
    assert HERE.linger is not None
    assert HERE.linger.level == socket.SOL_SOCKET
    if sys.platform != "darwin":  # Python does not define SO_LINGER_SEC there
        assert HERE.linger.number == socket.SO_LINGER
    if sys.platform == "linux":
        import termios

        assert HERE.acks is not None
        assert HERE.acks.queue == Ioctl(termios.TIOCOUTQ)


def test_what_is_computed_from_the_facts_is_not_one_of_them() -> None:
    linux = SYSTEMS["linux"]
    assert linux.tcp is linux.tcp, "it is computed once"
    assert fields(linux).keys() == {"name", "linger", "acks", "state", "protocol", "linux"}
    assert replace(linux) == linux


def test_an_unknown_system_gets_the_numbers_of_the_socket_module() -> None:
    option = SYSTEMS["unknown"].linger
    assert option is not None
    assert (option.level, option.number) == (socket.SOL_SOCKET, socket.SO_LINGER)
    assert SYSTEMS["unknown"].acks is None


@pytest.mark.parametrize(
    ("name", "counts", "survives_reset", "kernel_lingers"),
    [
        ("linux", True, True, False),
        ("macos", True, False, False),
        ("windows", False, False, True),
        ("wasi", False, False, False),
    ],
)
def test_the_state_of_a_tcp_connection_is_read_on_each_system(
    name: str, counts: bool, survives_reset: bool, kernel_lingers: bool
) -> None:
    view = SYSTEMS[name].tcp
    assert (view.acks is not None) is counts
    assert view.count_survives_reset is survives_reset
    assert view.kernel_lingers is kernel_lingers


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("EAGAIN", ErrorKind.WOULD_BLOCK),
        ("EWOULDBLOCK", ErrorKind.WOULD_BLOCK),
        ("EINTR", ErrorKind.INTERRUPTED),
        ("ENOTCONN", ErrorKind.NOT_CONNECTED),
        ("ECONNRESET", ErrorKind.RESET),
        ("ECONNABORTED", ErrorKind.LOST),
        ("EPIPE", ErrorKind.RESET),
        ("ETIMEDOUT", ErrorKind.LOST),
        ("EHOSTUNREACH", ErrorKind.LOST),
        ("EBADF", ErrorKind.CLOSED),
        ("EFAULT", ErrorKind.OURS),
        ("ECONNREFUSED", ErrorKind.REFUSED),
        ("EACCES", ErrorKind.LOST),
        ("ENOPROTOOPT", ErrorKind.LOST),
        ("EIO", ErrorKind.LOST),
        ("ENOSYS", ErrorKind.NOT_CONNECTED),
    ],
)
def test_an_error_number_has_one_meaning(name: str, means: ErrorKind) -> None:
    assert error_kind(OSError(getattr(errno, name), name)) is means


@pytest.mark.parametrize(
    ("number", "means"),
    [
        (10035, ErrorKind.WOULD_BLOCK),
        (10038, ErrorKind.CLOSED),
        (10053, ErrorKind.LOST),
        (10054, ErrorKind.RESET),
        (10057, ErrorKind.NOT_CONNECTED),
        (10060, ErrorKind.LOST),
        (10065, ErrorKind.LOST),
    ],
)
def test_winsock_error_numbers_have_the_same_meaning_on_every_system(
    number: int, means: ErrorKind
) -> None:
    assert error_kind(OSError(number, "winsock")) is means


def test_without_the_resource_module_the_limit_of_descriptors_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert descriptor_limit() is None


def test_an_error_without_a_number_is_a_network_error() -> None:
    assert error_kind(OSError("no number")) is ErrorKind.LOST


class Kernel:
    """Simulates a socket on a system whose queries use getsockopt()."""

    def __init__(self, **answers: bytes) -> None:
        self.answers = answers

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        answer = self.answers[f"_{level:x}_{option:x}"]
        assert size <= len(answer)
        return answer[:size]


@pytest.mark.parametrize("state", range(11))
def test_the_count_on_macos_has_the_queue_and_an_unacknowledged_fin(state: int) -> None:
    probe = SYSTEMS["macos"].acks
    assert probe is not None
    kernel: Any = Kernel(_ffff_1024=struct.pack("I", 700), _6_106=bytes([state]) + bytes(60))
    fin_waits = state in {6, 7, 8}  # FIN_WAIT_1, CLOSING, LAST_ACK
    assert probe.read(kernel) == 700 + fin_waits


def test_openbsd_has_no_count_because_only_root_may_read_it() -> None:
    assert SYSTEMS["openbsd"].acks is None


@pytest.mark.parametrize(("name", "number"), [("freebsd", 0x40046677), ("netbsd", 0x40046679)])
def test_the_count_on_freebsd_and_netbsd_is_fionwrite_with_the_state_of_tcp_info(
    name: str, number: int
) -> None:
    probe = SYSTEMS[name].acks
    assert isinstance(probe, AckProbe)
    assert probe.queue == Ioctl(number)
    assert isinstance(probe.state, Field)
    assert probe.state.offset == 0
