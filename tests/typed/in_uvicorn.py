"""What type checkers accept of `graceful_close.uvicorn`. Nothing here is run."""

# pyright: reportUnnecessaryTypeIgnoreComment=error

from __future__ import annotations

import asyncio
from typing import assert_type

from graceful_close.uvicorn import new_asyncio_loop, new_loop, new_uvloop


def loops() -> None:
    assert_type(new_loop(), asyncio.AbstractEventLoop)
    assert_type(new_asyncio_loop(), asyncio.AbstractEventLoop)
    assert_type(new_uvloop(), asyncio.AbstractEventLoop)
    new_loop(use_subprocess=True)  # type: ignore[call-arg]
