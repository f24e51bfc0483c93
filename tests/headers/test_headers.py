"""The data of every system, compared with the C headers of the system.

The `ziglang` wheel is a C compiler with the headers of many systems. `probe.c` is compiled for
each target in `targets.toml`, and its values are read from the object file: nothing is linked,
and nothing is run.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import socket
import struct
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

import pytest

from graceful_close._platform import SYSTEMS, ErrorKind, System, error_kind, identify
from graceful_close._platform.acks import Field, Ioctl

FOLDER = Path(__file__).parent

Facts = Mapping[str, int]  # the values of names and expressions in the headers

# The wheel has no headers of these systems.
UNVERIFIED = {"aix", "android", "cygwin", "dragonfly", "haiku", "illumos", "msys", "unknown"}

# A record of the probe's array: a name, and a long long in the target's byte order.
_NAME = 56
_VALUE = 8
_BEGIN = b"graceful-close\0"  # the first name
_LITTLE_ENDIAN = 0x08  # the first byte of the first value, 0x0102030405060708

# The struct module's letters, by size and sign.
_LETTERS = {(2, 0): "H", (4, 1): "i"}


class Target(NamedTuple):
    """A target of the compiler.

    Attributes:
        triple: Zig's name of the target.
        platform: The value of `sys.platform`.
        machine: The output of `uname -m`.
    """

    triple: str
    platform: str
    machine: str

    @property
    def system(self) -> System:
        return SYSTEMS[identify(self.platform, self.machine)]


def _targets() -> list[Target]:
    platforms: dict[str, dict[str, str]] = tomllib.loads(
        (FOLDER / "targets.toml").read_text(encoding="utf-8")
    )
    return [
        Target(triple, platform, machine)
        for platform, triples in platforms.items()
        for triple, machine in triples.items()
    ]


TARGETS = _targets()


def targets(where: Callable[[System], bool] = lambda _: True) -> pytest.MarkDecorator:
    """Run a test for each target whose system matches."""
    chosen = [target for target in TARGETS if where(target.system)]
    return pytest.mark.parametrize("target", chosen, ids=lambda target: target.triple)


class Refusal(NamedTuple):
    """The compiler failed; the message is its error."""

    message: str


@pytest.fixture(scope="session")
def compiled() -> Mapping[Target, Facts | Refusal]:
    """The values in the headers of every target; all targets are compiled on first use."""
    wheel = importlib.util.find_spec("ziglang")
    if wheel is None or wheel.origin is None:
        reason = "the ziglang wheel, which has the headers, is not installed"
        if os.environ.get("CI", "").lower() in ("", "0", "false"):
            pytest.skip(reason)
        pytest.fail(reason)
    headers = Path(wheel.origin).parent / "lib" / "libc" / "include"
    with TemporaryDirectory() as folder, ThreadPoolExecutor(2) as workers:
        compile_one = partial(_compile, headers, Path(folder))
        return dict(zip(TARGETS, workers.map(compile_one, TARGETS), strict=True))


def _compile(headers: Path, folder: Path, target: Target) -> Facts | Refusal:
    command = [sys.executable, "-m", "ziglang", "cc", "-target", target.triple]
    if target.platform in ("ios", "tvos", "watchos"):
        # Apple's systems share these headers; Zig uses them only for macOS.
        command += ["-isystem", str(headers / "any-darwin-any")]
    made = folder / f"{target.triple}.o"
    command += ["-c", str(FOLDER / "probe.c"), "-o", str(made)]
    caches = {"ZIG_LOCAL_CACHE_DIR": str(folder), "ZIG_GLOBAL_CACHE_DIR": str(folder)}
    done = subprocess.run(
        command,
        env=os.environ | caches,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,  # seconds: a heuristic, so that a hanging compiler is an error
        check=False,
    )
    return Refusal(done.stderr) if done.returncode else _read(made.read_bytes())


def _read(made: bytes) -> Facts:
    """Find the probe's array in an object file of any format."""
    facts: dict[str, int] = {}
    at = made.index(_BEGIN)
    order: Literal["little", "big"] = "little" if made[at + _NAME] == _LITTLE_ENDIAN else "big"
    while name := made[at : at + _NAME].rstrip(b"\0"):
        value = made[at + _NAME : at + _NAME + _VALUE]
        facts[name.decode()] = int.from_bytes(value, order, signed=True)
        at += _NAME + _VALUE
    return facts


@pytest.fixture
def facts(target: Target, compiled: Mapping[Target, Facts | Refusal]) -> Facts:
    found = compiled[target]
    if isinstance(found, Refusal):
        pytest.fail(f"{target.triple} does not compile:\n{found.message}")
    return found


def test_all_other_systems_have_headers_in_the_wheel() -> None:
    assert len(TARGETS) >= 35
    assert SYSTEMS.keys() - {target.system.name for target in TARGETS} == UNVERIFIED


@targets()
def test_the_linger_option_agrees_with_the_headers(target: Target, facts: Facts) -> None:
    option = target.system.linger
    if option is None:
        assert "SO_LINGER" not in facts
        return
    assert option.level == facts["SOL_SOCKET"]
    # If there is a SO_LINGER_SEC, SO_LINGER does not count seconds.
    assert option.number == facts.get("SO_LINGER_SEC", facts["SO_LINGER"])
    on, seconds = (
        _LETTERS[facts[f"size of {member}"], facts[f"signed {member}"]]
        for member in ("l_onoff", "l_linger")
    )
    assert option.layout == on + seconds
    assert facts["offset of l_onoff"] == 0
    assert facts["offset of l_linger"] == struct.calcsize(on)
    assert facts["sizeof(struct linger)"] == struct.calcsize(option.layout)


@targets()
def test_the_query_of_the_send_queue_agrees_with_the_headers(
    target: Target, facts: Facts
) -> None:
    ioctls = [facts[name] for name in ("SIOCOUTQ", "FIONWRITE") if name in facts]
    acks = target.system.acks
    if acks is None:
        assert ioctls == []  # every case was checked
        assert "SO_NWRITE" not in facts
    elif isinstance(acks.queue, Ioctl):
        assert [acks.queue.number] == ioctls
        assert facts["sizeof(int)"] == 4  # what Ioctl reads
    elif "SO_NWRITE" in facts:
        assert acks.queue == Field(
            facts["SOL_SOCKET"], facts["SO_NWRITE"], offset=0, size=facts["sizeof(int)"]
        )
    else:
        assert acks.queue == _tcp_field(facts, "TCP_INFO", "tcpi_so_snd_sb_cc")


@targets(lambda system: system.acks is not None and system.acks.state is not None)
def test_the_query_of_the_tcp_state_agrees_with_the_headers(
    target: Target, facts: Facts
) -> None:
    acks = target.system.acks
    assert acks is not None
    if "TCP_CONNECTION_INFO" in facts:
        # Apple's headers have the struct but not the states, which are compared with the BSDs'.
        assert acks.state == _tcp_field(facts, "TCP_CONNECTION_INFO", "tcpi_state")
        return
    assert acks.state == _tcp_field(facts, "TCP_INFO", "tcpi_state")
    if target.system.linux:  # systems whose count includes the FIN
        assert acks.fin_waits_in == frozenset()
        assert acks.all_acked_in == {facts["TCP_FIN_WAIT2"], facts["TCP_TIME_WAIT"]}
        return
    assert acks.fin_waits_in == {
        facts["TCPS_FIN_WAIT_1"],
        facts["TCPS_CLOSING"],
        facts["TCPS_LAST_ACK"],
    }


def _tcp_field(facts: Facts, option: str, member: str) -> Field:
    """Return a member of the struct of a TCP option."""
    return Field(
        facts["IPPROTO_TCP"],
        facts[option],
        facts[f"offset of {member}"],
        facts[f"size of {member}"],
    )


@targets(lambda system: system.linux)
def test_the_address_without_a_family_agrees_with_the_headers(
    target: Target, facts: Facts
) -> None:
    assert facts["AF_UNSPEC"] == socket.AF_UNSPEC
    assert facts["offset of sa_family"] == 0
    assert facts["size of sa_family"] == struct.calcsize("H")
    assert facts["sizeof(struct sockaddr)"] == struct.calcsize("H14x")


@targets(lambda system: system.name == "windows")
def test_winsock_errors_have_the_meaning_of_the_posix_errors_of_the_same_name(
    target: Target, facts: Facts
) -> None:
    winsocks = {name: number for name, number in facts.items() if name.startswith("WSAE")}
    # Windows returns WSAENOTSOCK for a closed handle, because handles are not only for sockets.
    namesakes = {name: name.removeprefix("WSA") for name in winsocks} | {"WSAENOTSOCK": "EBADF"}
    for name, number in winsocks.items():
        namesake = OSError(getattr(errno, namesakes[name]), name)
        assert error_kind(OSError(number, name)) is error_kind(namesake), name
    known = {n for n in range(10000, 12000) if error_kind(OSError(n, "")) is not ErrorKind.LOST}
    assert known <= set(winsocks.values())
