"""Event loops by name, for uvicorn and servers based on it.

    uvicorn app:app --loop graceful_close.uvicorn:new_loop

Connections then close gracefully; see `graceful_close.asyncio.graceful_loop`. Everything else is
unchanged: uvloop, TCP and UNIX sockets, TLS, websockets, `--workers`, `--reload`. When uvicorn stops,
uvicorn waits for the pending closes: at most `--timeout-graceful-shutdown`, or without the option 30
seconds, or until a peer was silent for 5 seconds. Before that uvicorn waits for clients that have not
read their reply, as it does with its own loops, but for at most 6 minutes of silence. The environment
variables GRACEFUL_CLOSE_TIMEOUT and GRACEFUL_CLOSE_IDLE_TIMEOUT change the 30 and the 5 seconds, and
replace the 6 minutes.
"""

from __future__ import annotations

import asyncio

from ._environment import options_from_environment
from .asyncio import graceful_loop

__all__ = ["new_asyncio_loop", "new_loop", "new_uvloop"]


def new_loop() -> asyncio.AbstractEventLoop:
    """Return a graceful loop: uvloop's if it is installed, otherwise asyncio's.

        uvicorn app:app --loop graceful_close.uvicorn:new_loop

    Raises:
        ValueError: A variable of the environment is not a number of seconds, 0 or more.
    """
    try:
        return new_uvloop()
    except ImportError:
        return new_asyncio_loop()


def new_asyncio_loop() -> asyncio.AbstractEventLoop:
    """Return a graceful `asyncio.SelectorEventLoop`.

        uvicorn app:app --loop graceful_close.uvicorn:new_asyncio_loop

    Raises:
        ValueError: A variable of the environment is not a number of seconds, 0 or more.
    """
    return graceful_loop(asyncio.SelectorEventLoop, **options_from_environment())()


def new_uvloop() -> asyncio.AbstractEventLoop:
    """Return a graceful `uvloop.Loop`.

        uvicorn app:app --loop graceful_close.uvicorn:new_uvloop

    Raises:
        ImportError: uvloop is not installed.
        ValueError: A variable of the environment is not a number of seconds, 0 or more.
    """
    import uvloop

    return graceful_loop(uvloop.Loop, **options_from_environment())()
