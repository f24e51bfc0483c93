"""The time that `import graceful_close` adds to `import socket`, in new interpreters."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import graceful_close

from .figures import Figure, Target, take_turns

_ROUNDS = 31

# Modules that users of the blocking functions should not load.
_UNWANTED = ("anyio", "asyncio", "concurrent.futures", "rich", "ssl", "trio")

_SOURCES = str(Path(graceful_close.__file__).parents[1])

_PROGRAM = """\
import sys
from time import perf_counter
sys.path.insert(0, sys.argv[1])
started = perf_counter()
import socket
if sys.argv[2] == "ours":
    import graceful_close
milliseconds = (perf_counter() - started) * 1e3
modules = sorted(sys.modules)
import json
print(json.dumps({"milliseconds": milliseconds, "modules": modules}))
"""


def measure() -> list[Figure]:
    """Return two figures: milliseconds, and the number of loaded modules."""
    added = sorted(set(_run("ours")["modules"]) - set(_run("theirs")["modules"]))
    unwanted = [
        name for name in added for root in _UNWANTED if f"{name}.".startswith(f"{root}.")
    ]
    if unwanted:
        print(f"import graceful_close loads {', '.join(unwanted)}", file=sys.stderr)
    ours, theirs = take_turns(
        _ROUNDS, lambda: _run("ours")["milliseconds"], lambda: _run("theirs")["milliseconds"]
    )
    return [
        Figure(
            "import graceful_close",
            "ms",
            statistics.median(ours),
            statistics.median(theirs),
            "import socket",
            Target("excess", 10.0),
            {"least_ours": min(ours), "least_theirs": min(theirs), "modules": added},
        ),
        Figure(
            "modules loaded that are unwanted",
            "",
            len(unwanted),
            target=Target("ours", 0),
            details={"modules": unwanted},
        ),
    ]


def _run(side: str) -> dict[str, Any]:
    """Import in a new, isolated interpreter (-I)."""
    output = subprocess.run(
        [sys.executable, "-I", "-c", _PROGRAM, _SOURCES, side],
        check=True,
        capture_output=True,
        timeout=60,
    ).stdout
    answer: dict[str, Any] = json.loads(output)
    return answer
