"""CPython without the GIL, built from a source package: Debian has no package of the program."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

from . import packages, room

if TYPE_CHECKING:
    from pathlib import Path

PYTHON = "python3.13t"

_SUITE, _SOURCE = "trixie", "python3.13"
_COMPILER = [
    "gcc", "make", "libc6-dev", "libffi-dev", "libssl-dev", "zlib1g-dev", "pkgconf", "mawk",
    "diffutils", "findutils", "grep", "sed",
]  # fmt: skip

# A build without the optimizations that need a run of CPython's tests: minutes, not an hour.
_BUILD = """
ln -sf mawk /usr/bin/awk  # a script of the package would make this link
cd /usr/src/cpython
./configure -q --disable-gil --disable-test-modules --without-ensurepip CC=gcc
make -j "$(nproc)" > make.log 2>&1 || { tail -n 100 make.log; exit 1; }
make -s altinstall > make.log 2>&1 || { tail -n 100 make.log; exit 1; }
printf '/project/src\\n/site\\n' > /usr/local/lib/python3.13t/site-packages/elsewhere.pth
touch /usr/src/built
"""


def root(work: Path, besides: list[str]) -> Path:
    """Build CPython without the GIL, unless it has been built: 10 minutes with two processors.

    Args:
        work: The folder for everything that is unpacked.
        besides: Other packages that programs in this root need.

    Returns:
        A root to run programs in. Its PATH has the program PYTHON.
    """
    made = packages.tree(work, _SUITE, "amd64", [*_COMPILER, *besides])
    if not (made / "usr/src/built").exists():
        sources = made / "usr/src/cpython"
        shutil.rmtree(sources, ignore_errors=True)
        sources.mkdir(parents=True)
        archive = packages.source(work, _SUITE, _SOURCE)
        command = ["tar", "-x", "--strip-components=1", "-C", str(sources), "-f", str(archive)]
        subprocess.run(command, check=True)
        code = room.run(made, ["sh", "-ec", _BUILD])
        if code:
            raise subprocess.CalledProcessError(code, "make")
        shutil.rmtree(sources)
    return made
