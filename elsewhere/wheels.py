"""Python packages for a Python that is not this one."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# What the contract's tests import, and all that this needs: pip cannot find that out for a processor
# for which some of it has no wheel. cryptography and cffi are Debian's there.
_PURE = [
    "anyio>=4.16", "attrs", "idna", "iniconfig", "outcome", "packaging", "pluggy", "pygments",
    "pytest>=9", "sniffio", "sortedcontainers", "trio>=0.32", "trustme>=1.2", "typing_extensions",
]  # fmt: skip
_BUILT = ["cffi", "cryptography", "uvloop"]


def site(work: Path, python: str | None) -> Path:
    """A folder with what the contract's tests import.

    Args:
        work: Where it is made, if it is not there yet.
        python: A version of CPython, on this processor: "3.14"; None: any Python, and nothing that
            is compiled.
    """
    folder = work / f"site-{python or 'any'}"
    made = folder.with_name(f"{folder.name}.made")
    if not made.exists():
        wanted = [f"--python-version={python or '3.11'}"]
        names = list(_PURE)
        if python is not None:
            wanted += ["--implementation=cp", *_platforms()]
            names += _BUILT
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        wanted += ["--only-binary=:all:", "--target", str(folder)]
        subprocess.run([*command, *wanted, *names], check=True)
        made.touch()
    return folder


def _platforms() -> list[str]:
    return [f"--platform=manylinux_2_{minor}_x86_64" for minor in (34, 28, 17)] + [
        "--platform=manylinux2014_x86_64"
    ]
