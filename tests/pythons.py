"""What is known of a Python other than CPython, and makes a test meaningless there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from streams import DEADLINE

PYPY = sys.implementation.name == "pypy"

RESET_AS_SSL_ERROR = "PyPy's ssl raises the system's errors as SSLError, without a reason"

# An error stays in OpenSSL's queue, which belongs to the thread: four of twenty connections to
# uvicorn fail, without this library.
MIXED_UP_TLS = "asyncio on PyPy 8.0.1 raises the error of one TLS connection in another"

# So gunicorn, which tries AF_UNIX first, takes the listener of fd://3 for one of AF_UNIX.
FAMILY_OF_FROMFD = (
    "PyPy's getsockname() reads an address as of the family that fromfd() was given"
)


def without_coverage() -> dict[str, str]:
    """The environment of a program that coverage would disturb: it has a lock, and writes to stderr."""
    return {name: os.environ[name] for name in os.environ if "COVERAGE" not in name}


def output_of(program: str) -> tuple[str, str]:
    """Run a program that may import the modules of this folder; return its output and its errors."""
    child = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE,
    )
    return child.stdout, child.stderr
