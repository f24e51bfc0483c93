"""The places, and how each is made."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from . import built, kernels, packages, room
from .wheels import site

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    # Runs a command in a place, and returns its exit code. The arguments are the command, and a
    # folder of Python packages or None.
    Run = Callable[[list[str], Path | None], int]

_HERE = "amd64"

# The packages of a root besides a Python: a shell, locales, the programs that tests run, and the
# dependency of the library.
_BESIDES = [
    "dash", "coreutils", "libc-bin", "openssl", "ca-certificates", "iproute2",
    "python3-markupsafe", "python3-typing-extensions",
]  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A place to run commands in.

    Attributes:
        what: A short description.
        python: The command that is Python in this place.
        make: Makes this place in the folder for everything that is unpacked, unless the place has
            been made there. Raises OSError and subprocess.SubprocessError.
        site: Makes the folder of the packages that the tests of the contract import; None if this
            place uses the packages of the Python that runs this program. Raises the same.
    """

    what: str
    python: str
    make: Callable[[Path], Run]
    site: Callable[[Path], Path] | None = None


def _gvisor(work: Path) -> Run:
    """The Python that runs this program, on another kernel, with loopback as only network."""
    # bookworm's runsc is from 2022, and intercepts system calls in a slow way only.
    runsc = packages.one(work, "trixie", _HERE, "runsc") / "usr/bin/runsc"
    options = ["--platform=systrap", "--network=none", f"--root={work}/runsc"]

    def run(command: list[str], site: Path | None) -> int:
        # Through a pipe: gVisor would write a file from its beginning.
        with subprocess.Popen(
            [runsc, *options, "do", *command],
            cwd=room.PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as gvisor:
            for line in gvisor.stdout or ():
                print(line, end="", flush=True)
        return gvisor.returncode

    return run


def _without_gil(work: Path) -> Run:
    """A CPython that has no GIL. If an imported module requires the GIL, Python warns."""
    return partial(room.run, built.root(work, _BESIDES[:-2]))


def _python(suite: str, package: str, site: Callable[[Path], Path], *more: str) -> Place:
    """One of Debian's packages of Python, on the kernel of this machine."""

    def make(work: Path) -> Run:
        found = packages.tree(work, suite, _HERE, [package, *_BESIDES, *more])
        return partial(room.run, found)

    return Place(f"{package} of Debian's {suite}", package, make, site)


def _linux(suite: str, version: str) -> Place:
    """The kernel of one of Debian's releases, with a Python of trixie."""
    what = f"Linux {version} of Debian's {suite}, emulated"
    return Place(what, "python3", partial(kernels.make, suite), partial(site, python=None))


@dataclass(frozen=True)
class _Processor:
    """Another processor, emulated by qemu unless this processor runs the same programs.

    Attributes:
        name: Debian's name of the processor.
        suite: Debian's name of the suite.
        qemu: The emulator; None if none is necessary.
        machine, bits, big: As in `room.Emulator`.
    """

    name: str
    suite: str
    qemu: str | None = None
    machine: int = 0
    bits: int = 64
    big: bool = False

    def make(self, work: Path) -> Run:
        emulator = None
        if self.qemu is not None:
            # On MIPS, the emulators of bookworm and trixie do not translate the value of SO_ERROR.
            program = packages.one(work, "sid", _HERE, "qemu-user") / "usr/bin" / self.qemu
            emulator = room.Emulator(program, self.machine, self.bits, self.big)
        root = packages.tree(work, self.suite, self.name, ["python3", *_BESIDES])
        return partial(room.run, root, emulator=emulator)


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
    "gvisor": Place(
        "gVisor's kernel, which has a TCP stack of its own", sys.executable, _gvisor
    ),
    **{
        name: Place(
            f"{name}, a processor", "python3", processor.make, partial(site, python=None)
        )
        for name, processor in _PROCESSORS.items()
    },
    "python-3.14": _python("sid", "python3.14", partial(site, python="3.14")),
    "python-3.15": _python("sid", "python3.15", partial(site, python="3.15")),
    "free-threaded": Place(
        f"{built.PYTHON}, which has no GIL",
        built.PYTHON,
        _without_gil,
        partial(site, python=None),
    ),
    "pypy": _python(
        "sid",
        "pypy3",
        partial(site, python=None, suite=True),
        "curl",
    ),
    "linux-5.10": _linux("bullseye", "5.10"),
    "linux-6.1": _linux("bookworm", "6.1"),
    "linux-6.12": _linux("trixie", "6.12"),
    "linux-sid": _linux("sid", "7.2 or newer"),
}
