"""The event loops of asyncio that a test can run in."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from importlib.util import find_spec

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop
}

# It has no wheel for some processors, and none for Windows and PyPy.
if sys.platform != "win32" and find_spec("uvloop") is not None:
    import uvloop

    LOOPS["uvloop"] = uvloop.new_event_loop
    # libuv makes a pipe for signals once in a process, and keeps it.
    uvloop.new_event_loop().close()
