"""Python packages for a Python that does not run this program."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# The packages that most tests import, and their dependencies. The dependencies are listed, because
# pip cannot resolve dependencies for a processor for which one has no wheel.
_MOST = [
    "anyio>=4.16", "attrs", "dpkt", "execnet", "hypothesis", "idna", "iniconfig", "outcome", "packaging", "pluggy",
    "pygments", "pytest>=9", "pytest-xdist", "sniffio", "sortedcontainers", "trio>=0.32", "typing_extensions",
]  # fmt: skip
_BUILT = ["uvloop"]

# The same for the other tests, without the packages that have no wheel for any Python. (Debian has
# markupsafe, which flask, jinja2 and werkzeug need.)
_SUITE = [
    "aiohappyeyeballs", "aiohttp>=3.11", "aiosignal", "asgiref", "blinker", "bottle>=0.13", "certifi",
    "cheroot>=10", "click", "django>=5", "flask>=3", "frozenlist", "gunicorn>=27", "h11",
    "h2", "hpack", "httpcore", "httpx>=0.27", "hypercorn>=0.17", "hyperframe",
    "itsdangerous", "jaraco.functools", "jinja2", "markdown-it-py", "mdurl", "more-itertools", "multidict", "paho-mqtt>=2",
    "priority", "prometheus-client", "propcache", "pyasynchat", "pyasyncore",
    "rich>=14", "shtab", "sqlparse", "starlette>=0.40", "uvicorn>=0.36", "uvicorn-worker>=0.3",
    "waitress>=3", "websockets>=13", "werkzeug>=3", "wsproto", "yarl",
]  # fmt: skip


def site(work: Path, python: str | None, *, suite: bool = False) -> Path:
    """Install the packages that tests import into a folder.

    Args:
        work: The folder in which the folder is made, unless it exists.
        python: A version of CPython for this processor, "3.14"; None for any Python, without the
            packages that are compiled.
        suite: Whether to install also the packages that few tests import: servers and clients.

    Returns:
        The folder.
    """
    folder = work / f"site-{python or 'any'}{'-suite' if suite else ''}"
    note = folder.with_name(f"{folder.name}.made")
    names = [*_MOST, *(_SUITE if suite else []), *(_BUILT if python is not None else [])]
    if not note.exists() or note.read_text() != " ".join(names):
        if python is None:
            options = ["--python-version=3.11", "--implementation=py", "--platform=any"]
        else:
            options = [f"--python-version={python}", "--implementation=cp", *_platforms()]
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"]
        options += ["--only-binary=:all:", "--target", str(folder)]
        subprocess.run([*command, *options, *names], check=True, timeout=600)
        note.write_text(" ".join(names))
    return folder


def _platforms() -> list[str]:
    return [f"--platform=manylinux_2_{minor}_x86_64" for minor in (34, 28, 17)] + [
        "--platform=manylinux2014_x86_64"
    ]
