"""Tests struct linger of Windows under Wine: layout, length check and round trip.

    python tests/headers/under_wine.py

This check is run by hand, and is not part of the suite: Debian's wine64 and
gcc-mingw-w64-x86-64-win32 take 1 GB. Without the latter the `ziglang` wheel compiles the probe,
in a minute or two. The exit code is 0 if the library's data is right, 1 if not, and 77 if Wine
or a compiler is missing. Wine's options behave like those of Windows. Its close() does not, so
no check depends on closing a connection.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from graceful_close._platform import SYSTEMS

PROBE = Path(__file__).parent / "winsock_linger.c"
MISSING = 77  # the exit code of skipped tests in automake
WSAEFAULT = 10014

# The last is Debian's, without recommended packages.
WINES = ("wine64", "wine", "/usr/lib/wine/wine64")


class Trial(NamedTuple):
    """One setsockopt().

    Attributes:
        name: The trial.
        given: The bytes of the option.
        error: The expected error; 0: none.
        linger: The expected option afterwards.
    """

    name: str
    given: bytes
    error: int
    linger: tuple[bool, int]


def main() -> int:
    option = SYSTEMS["windows"].linger
    assert option is not None
    trials = [
        Trial("linger off", option.pack(False, 0), 0, (False, 0)),
        Trial("abort", option.pack(True, 0), 0, (True, 0)),
        Trial("5 seconds", option.pack(True, 5), 0, (True, 5)),
        Trial("the longest", option.pack(True, option.longest), 0, (True, option.longest)),
        Trial("a byte too few", option.pack(True, 5)[:-1], WSAEFAULT, (False, 0)),
        Trial("two ints: an abort", struct.pack("<ii", 1, 5), 0, (True, 0)),
    ]
    wine = next(filter(None, map(shutil.which, WINES)), None)
    if wine is None:
        print("Wine is not installed: nothing was tried.")
        return MISSING
    compiler = _compiler()
    if compiler is None:
        print("No compiler for Windows is installed: nothing was tried.")
        return MISSING
    size = struct.calcsize(option.layout)
    numbers = [str(number) for number in (option.level, option.number, size)]
    with TemporaryDirectory() as folder:
        program = Path(folder) / "winsock_linger.exe"
        caches = {"ZIG_LOCAL_CACHE_DIR": folder, "ZIG_GLOBAL_CACHE_DIR": folder}
        subprocess.run(
            [*compiler, str(PROBE), "-o", str(program), "-lws2_32"],
            env=os.environ | caches,
            check=True,
        )
        given = [trial.given.hex() for trial in trials]
        answers = _run([wine, str(program), *numbers, *given], Path(folder) / "prefix")
    well = True
    for trial, answer in zip(trials, answers, strict=True):
        error, _, got = answer.partition(" ")
        agrees = (
            int(error) == trial.error
            and len(bytes.fromhex(got)) == size
            and option.unpack(bytes.fromhex(got)) == trial.linger
        )
        print(f"{'as expected' if agrees else 'NOT as expected'}: {trial.name}: {answer}")
        well = well and agrees
    return 0 if well else 1


def _compiler() -> list[str] | None:
    if mingw := shutil.which("x86_64-w64-mingw32-gcc"):
        return [mingw]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-windows-gnu"]
    return None


def _run(command: list[str], prefix: Path) -> list[str]:
    """Run a program in a temporary Wine prefix."""
    environment_with = os.environ | {
        "WINEPREFIX": str(prefix),
        "WINEDEBUG": "-all",
        "WINEDLLOVERRIDES": "mscoree,mshtml=",  # otherwise Wine offers to download them
    }
    try:
        done = subprocess.run(
            command,
            env=environment_with,
            stdout=subprocess.PIPE,
            text=True,
            timeout=300,  # seconds: a heuristic, because the first start makes the prefix
            check=True,
        )
    finally:
        # The server outlives the program, and would write to the removed folder.
        if server := shutil.which("wineserver") or shutil.which("/usr/lib/wine/wineserver64"):
            subprocess.run([server, "--kill"], env=environment_with, timeout=60, check=False)
            subprocess.run([server, "--wait"], env=environment_with, timeout=60, check=False)
    return done.stdout.splitlines()


if __name__ == "__main__":
    sys.exit(main())
