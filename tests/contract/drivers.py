"""The drivers: each writes a reply on an accepted socket, and closes it as it is asked."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import pytest

import graceful_close
from every_loop import EVERY
from graceful_close import CloseResult, Reaper

# What is asked of a driver: the name of a call, its arguments, its options.
Ask = tuple[str, tuple[float, ...], dict[str, Any]]

# (our end, the TLS context of a server or None, what to write first, what is asked)
Driver = Callable[[socket.socket, ssl.SSLContext | None, bytes, Ask], CloseResult]

# How an event loop's module is asked: (the module, the stream, what is asked)
Closed = Callable[[Any, Any, Ask], Awaitable[CloseResult]]


class Stop(Exception):  # noqa: N818  (it is no error)
    """What a body raises so that its stream is rolled back."""


def _served(ours: socket.socket, context: ssl.SSLContext | None, reply: bytes) -> socket.socket:
    stream = context.wrap_socket(ours, server_side=True) if context else ours
    stream.sendall(reply)
    return stream


def blocking(
    ours: socket.socket, context: ssl.SSLContext | None, reply: bytes, ask: Ask
) -> CloseResult:
    stream = _served(ours, context, reply)
    call, arguments, options = ask
    if call == "close_all":
        return graceful_close.close_all([stream, stream], **options)[1]
    if call == "refuse":
        with pytest.raises((TypeError, ValueError), match=next(iter(options))):
            graceful_close.graceful_close(stream, **options)
        return graceful_close.abortive_close(stream)
    if call not in {"commit", "roll back"}:
        result: CloseResult = getattr(graceful_close, call)(stream, *arguments, **options)
        return result
    closing = graceful_close.closing(stream, **options)
    with suppress(Stop), closing:
        if call == "roll back":
            raise Stop
    assert closing.result is not None
    return closing.result


def close_all(
    ours: socket.socket, context: ssl.SSLContext | None, reply: bytes, ask: Ask
) -> CloseResult:
    stream = _served(ours, context, reply)
    if ask[0] == "refuse":
        with pytest.raises((TypeError, ValueError), match=next(iter(ask[2]))):
            graceful_close.close_all([stream], **ask[2])
        return graceful_close.abortive_close(stream)
    return graceful_close.close_all([stream, stream], **ask[2])[1]


def reaper(
    ours: socket.socket, context: ssl.SSLContext | None, reply: bytes, ask: Ask
) -> CloseResult:
    stream = _served(ours, context, reply)
    if ask[0] == "refuse":
        with pytest.raises((TypeError, ValueError), match=next(iter(ask[2]))):
            Reaper(**ask[2])
        return graceful_close.abortive_close(stream)
    options: dict[str, Any] = {"idle_timeout": None} | ask[2]
    with Reaper(**options) as owner:
        return owner.submit(stream).result()


async def _asked(module: Any, stream: Any, ask: Ask) -> CloseResult:
    call, arguments, options = ask
    result: CloseResult
    if call == "refuse":
        with pytest.raises((TypeError, ValueError), match=next(iter(options))):
            await module.graceful_close(stream, **options)
        result = await module.abortive_close(stream)
    elif call == "close_all":
        result = (await module.close_all([stream, stream], **options))[1]
    elif call in {"commit", "roll back"}:
        closing = module.closing(stream, **options)
        with suppress(Stop):
            async with closing:
                if call == "roll back":
                    raise Stop
        result = closing.result
    else:
        result = await getattr(module, call)(stream, *arguments, **options)
    return result


async def _submitted(module: Any, stream: Any, ask: Ask) -> CloseResult:
    """By the event loop's own Reaper."""
    call, _, options = ask
    if call == "refuse":
        with pytest.raises((TypeError, ValueError), match=next(iter(options))):
            module.Reaper(**options)
        result: CloseResult = await module.abortive_close(stream)
        return result
    results: list[CloseResult] = []
    async with module.Reaper(
        **{"idle_timeout": None} | options, on_close=results.append
    ) as owner:
        owner.submit(stream)
    return results[0]


def _on(name: str, closed: Closed = _asked) -> Driver:
    """A driver on an event loop of every_loop.py."""
    loop = EVERY[name]

    def driver(
        ours: socket.socket, context: ssl.SSLContext | None, reply: bytes, ask: Ask
    ) -> CloseResult:
        async def write_and_close() -> CloseResult:
            stream = await loop.open(ours, context)
            await loop.send(stream, reply)
            return await closed(loop.module, stream, ask)

        return anyio.run(write_and_close, **loop.backend)

    return driver


DRIVERS: dict[str, Driver] = {
    "blocking": blocking,
    "close_all": close_all,
    "Reaper": reaper,
    **{name: _on(name) for name in EVERY},
    "asyncio.Reaper": _on("asyncio", _submitted),
    "trio.Reaper": _on("trio", _submitted),
    "anyio.Reaper": _on("anyio on asyncio", _submitted),
}

# These close gracefully and nothing else.
ONLY_GRACEFUL = {"close_all", *(name for name in DRIVERS if name.endswith("Reaper"))}
