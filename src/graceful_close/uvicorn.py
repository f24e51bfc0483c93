"""Event loops by name, for uvicorn and what is built on it.

    uvicorn app:app --loop graceful_close.uvicorn:new_loop

Connections close gracefully then; see `graceful_close.asyncio.graceful_loop`. All else is as it was:
uvloop, TCP and UNIX sockets, TLS, websockets, `--workers`, `--reload`. When it stops, uvicorn waits
for the closes in flight: at most for `--timeout-graceful-shutdown`, and for 30 seconds without that.
"""

from __future__ import annotations

import asyncio

from .asyncio import graceful_loop

__all__ = ["new_asyncio_loop", "new_loop", "new_uvloop"]


def new_loop() -> asyncio.AbstractEventLoop:
    """A graceful loop: uvloop's if it is installed, asyncio's if not."""
    try:
        return new_uvloop()
    except ImportError:
        return new_asyncio_loop()


def new_asyncio_loop() -> asyncio.AbstractEventLoop:
    """A graceful `asyncio.SelectorEventLoop`."""
    return graceful_loop(asyncio.SelectorEventLoop)()


def new_uvloop() -> asyncio.AbstractEventLoop:
    """A graceful `uvloop.Loop`.

    Raises:
        ImportError: uvloop is not installed.
    """
    import uvloop

    return graceful_loop(uvloop.Loop)()
