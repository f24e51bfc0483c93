"""The event loops of asyncio that a test can run in."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop
}

if sys.platform != "win32" and sys.implementation.name == "cpython":
    import uvloop

    LOOPS["uvloop"] = uvloop.new_event_loop
    # libuv makes a pipe for signals once in a process, and keeps it.
    uvloop.new_event_loop().close()
