"""What places there are, and how each is made."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from . import kernels, packages, room
from .wheels import site

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    # Runs a command, with a folder of Python packages if there is one, and gives its exit code.
    Run = Callable[[Path, list[str], Path | None], int]

_HERE = "amd64"

# What a root has besides a Python: a shell to begin with, the one dependency, and locales.
_BESIDES = ["dash", "coreutils", "libc-bin", "openssl", "iproute2", "python3-typing-extensions"]


@dataclass(frozen=True)
class Place:
    """One of them.

    Attributes:
        what: It is, in a few words.
        python: The command that is Python there.
        run: Runs a command there, and gives its exit code. It is given the folder to work in, the
            command, and a folder of Python packages or None.
        site: Makes the folder of what the contract's tests import; None: this Python has it.
    """

    what: str
    python: str
    run: Run
    site: Callable[[Path], Path] | None = None


def _gvisor(work: Path, command: list[str], site: Path | None) -> int:
    """Runs this very Python, on another kernel: no network but loopback, files as they are."""
    # bookworm's is of 2022, and knows one way to intercept system calls, which is slow.
    runsc = packages.one(work, "trixie", _HERE, "runsc") / "usr/bin/runsc"
    return subprocess.run(
        [
            runsc,
            "--platform=systrap",
            "--network=none",
            "--root",
            work / "runsc",
            "do",
            *command,
        ],
        check=False,
        cwd=room.PROJECT,
        stdin=subprocess.DEVNULL,
    ).returncode


def _python(suite: str, package: str, site: Callable[[Path], Path]) -> Place:
    """A Python of Debian's, on this kernel."""

    def run(work: Path, command: list[str], site: Path | None) -> int:
        root = packages.tree(work, suite, _HERE, [package, *_BESIDES])
        return room.run(root, command, site=site)

    return Place(f"{package} of Debian's {suite}", package, run, site)


def _linux(suite: str, version: str) -> Place:
    """The kernel of a release of Debian's, with a Python of ours."""

    def run(work: Path, command: list[str], site: Path | None) -> int:
        return kernels.run(work, suite, command, site)

    what = f"Linux {version} of Debian's {suite}, booted"
    return Place(what, "python3", run, partial(site, python=None))


@dataclass(frozen=True)
class _Processor:
    """Another processor, emulated by qemu unless this one runs its programs.

    Attributes:
        name: Debian's.
        suite: Of Debian.
        qemu: Which emulator; None: none is needed.
        machine, bits, big: As for `room.Emulator`.
    """

    name: str
    suite: str
    qemu: str | None = None
    machine: int = 0
    bits: int = 64
    big: bool = False

    def run(self, work: Path, command: list[str], site: Path | None) -> int:
        emulator = None
        if self.qemu is not None:
            # Older ones do not translate what SO_ERROR says on MIPS.
            program = packages.one(work, "sid", _HERE, "qemu-user") / "usr/bin" / self.qemu
            emulator = room.Emulator(program, self.machine, self.bits, self.big)
        root = packages.tree(
            work, self.suite, self.name, ["python3", "python3-cryptography", *_BESIDES]
        )
        return room.run(root, command, emulator=emulator, site=site)


_PROCESSORS = {
    "i386": _Processor("i386", "trixie"),
    "armhf": _Processor("armhf", "trixie", "qemu-arm", machine=40, bits=32),
    "arm64": _Processor("arm64", "trixie", "qemu-aarch64", machine=183),
    "riscv64": _Processor("riscv64", "trixie", "qemu-riscv64", machine=243),
    "s390x": _Processor("s390x", "bookworm", "qemu-s390x", machine=22, big=True),
    "ppc64el": _Processor("ppc64el", "bookworm", "qemu-ppc64le", machine=21),
    "mips64el": _Processor("mips64el", "bookworm", "qemu-mips64el", machine=8),
}

PLACES = {
    "gvisor": Place("gVisor's kernel, whose TCP is its own", sys.executable, _gvisor),
    **{
        name: Place(
            f"{name}, a processor", "python3", processor.run, partial(site, python=None)
        )
        for name, processor in _PROCESSORS.items()
    },
    "python-3.14": _python("sid", "python3.14", partial(site, python="3.14")),
    "python-3.15": _python("sid", "python3.15", partial(site, python="3.15")),
    "linux-5.10": _linux("bullseye", "5.10"),
    "linux-6.1": _linux("bookworm", "6.1"),
    "pypy": _python("sid", "pypy3", partial(site, python=None)),
}
