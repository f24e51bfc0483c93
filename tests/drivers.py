"""The same close by each of the drivers, for what all of them are to do alike."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio

import graceful_close.asyncio as graceful_asyncio
import graceful_close.trio as graceful_trio
from graceful_close import (
    CloseOutcome,
    CloseResult,
    Reaper,
    abortive_close,
    close_all,
    closing,
    graceful_close,
    timed_linger_close,
)
from streams import DEADLINE

Close = Callable[..., CloseResult]


def _with_others(sock: socket.socket, **options: Any) -> CloseResult:
    return close_all([sock], **options)[0]


def _in_a_reaper(sock: socket.socket, **options: Any) -> CloseResult:
    chosen: dict[str, Any] = {"idle_timeout": None, **options}
    with Reaper(**chosen) as reaper:
        return reaper.submit(sock).result(DEADLINE * 2)


def _in_asyncio(sock: socket.socket, **options: Any) -> CloseResult:
    sock.setblocking(False)
    return asyncio.run(graceful_asyncio.graceful_close(sock, **options))


def _in_trio(sock: socket.socket, **options: Any) -> CloseResult:
    if type(sock) is not socket.socket:  # trio takes no other
        sock = socket.socket(fileno=sock.detach())

    async def close() -> CloseResult:
        return await graceful_trio.graceful_close(
            trio.socket.from_stdlib_socket(sock), **options
        )

    return trio.run(close)


def _lingering(sock: socket.socket, *, timeout: float, **options: Any) -> CloseResult:
    return timed_linger_close(sock, timeout, **options)


def _aborting(sock: socket.socket, **_: Any) -> CloseResult:
    return abortive_close(sock)


def leave_a_block(sock: socket.socket, **options: Any) -> CloseResult:
    """Close at the end of a block of `closing`."""
    block = closing(sock, **options)
    with block:
        pass
    assert block.result is not None
    return block.result


THREADED: dict[str, Close] = {
    "graceful_close": graceful_close,
    "close_all": _with_others,
    "Reaper": _in_a_reaper,
}
GRACEFUL: dict[str, Close] = {**THREADED, "asyncio": _in_asyncio, "trio": _in_trio}
WAITING: dict[str, Close] = {**GRACEFUL, "timed_linger_close": _lingering}
EVERY: dict[str, Close] = {**WAITING, "abortive_close": _aborting}
DELIVERING: dict[str, Close] = {
    **{name: partial(close, until=CloseOutcome.DELIVERED) for name, close in GRACEFUL.items()},
    "timed_linger_close": _lingering,
}


def parts(closes: dict[str, Close]) -> list[Any]:
    """For pytest's parametrize."""
    return [pytest.param(close, id=name) for name, close in closes.items()]
