"""Event loops by name, for uvicorn and what is built on it.

    uvicorn app:app --loop graceful_close.uvicorn:new_loop

Connections close gracefully then; see `graceful_close.asyncio.graceful_loop`. All else is as it was:
uvloop, TCP and UNIX sockets, TLS, websockets, `--workers`, `--reload`. When it stops, uvicorn waits
for the closes in flight: at most for `--timeout-graceful-shutdown`, and for 30 seconds without that,
or until the peer has been silent for 5. Where that is too long, GRACEFUL_CLOSE_TIMEOUT and
GRACEFUL_CLOSE_IDLE_TIMEOUT in the environment say other numbers of seconds.
"""

from __future__ import annotations

import asyncio

from ._environment import options_from_environment
from .asyncio import graceful_loop

__all__ = ["new_asyncio_loop", "new_loop", "new_uvloop"]


def new_loop() -> asyncio.AbstractEventLoop:
    """A graceful loop: uvloop's if it is installed, asyncio's if not.

    Raises:
        ValueError: A variable of the environment is not a number of seconds, 0 or more.
    """
    try:
        return new_uvloop()
    except ImportError:
        return new_asyncio_loop()


def new_asyncio_loop() -> asyncio.AbstractEventLoop:
    """A graceful `asyncio.SelectorEventLoop`.

    Raises:
        ValueError: A variable of the environment is not a number of seconds, 0 or more.
    """
    return graceful_loop(asyncio.SelectorEventLoop, **options_from_environment())()


def new_uvloop() -> asyncio.AbstractEventLoop:
    """A graceful `uvloop.Loop`.

    Raises:
        ImportError: uvloop is not installed.
        ValueError: A variable of the environment is not a number of seconds, 0 or more.
    """
    import uvloop

    return graceful_loop(uvloop.Loop, **options_from_environment())()
