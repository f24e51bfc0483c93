"""A test on every event loop: asyncio's own, uvloop, trio, and anyio over each.

    @on_every_loop
    async def test_something(loop: Loop) -> None:
        with connect("tcp4") as (ours, peer):
            stream = await loop.open(ours)
            await loop.send(stream, b"reply")
            result = await loop.module.graceful_close(stream)

anyio waits, cancels and starts tasks in all of them.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import inspect
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NamedTuple

import anyio
import pytest
import trio
from anyio.abc import SocketStream
from anyio.streams.tls import TLSStream

import graceful_close.anyio
import graceful_close.asyncio
import graceful_close.trio
from event_loops import LOOPS
from streams import PATIENCE


class Loop(NamedTuple):
    """An event loop, and the module that closes its streams.

    Attributes:
        module: `graceful_close.asyncio`, `.trio` or `.anyio`.
        open: Returns a stream over an accepted socket, with TLS if a context is given.
        send: Sends bytes on the stream.
        backend: For `anyio.run`.
    """

    module: Any
    open: Callable[..., Awaitable[Any]]
    send: Callable[[Any, bytes], Awaitable[None]]
    backend: dict[str, Any]


async def _open_asyncio(
    ours: socket.socket, context: ssl.SSLContext | None = None
) -> asyncio.StreamWriter:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    ours.setblocking(False)
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, ours, ssl=context)
    return asyncio.StreamWriter(transport, protocol, reader, loop)


async def _send_asyncio(stream: asyncio.StreamWriter, data: bytes) -> None:
    stream.write(data)
    await stream.drain()


async def _open_trio(ours: socket.socket, context: ssl.SSLContext | None = None) -> Any:
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    return trio.SSLStream(stream, context, server_side=True) if context else stream


async def _send_trio(stream: trio.SocketStream, data: bytes) -> None:
    await stream.send_all(data)


async def _open_anyio(ours: socket.socket, context: ssl.SSLContext | None = None) -> Any:
    stream = await SocketStream.from_socket(ours)
    if context is None:
        return stream
    return await TLSStream.wrap(stream, server_side=True, ssl_context=context)


async def _send_anyio(stream: SocketStream, data: bytes) -> None:
    await stream.send(data)


_ASYNCIO = graceful_close.asyncio, _open_asyncio, _send_asyncio
_TRIO = graceful_close.trio, _open_trio, _send_trio
_ANYIO = graceful_close.anyio, _open_anyio, _send_anyio
_ON_ASYNCIO: dict[str, Any] = {"backend": "asyncio", "backend_options": {"debug": True}}
_ON_UVLOOP: dict[str, Any] = {"backend": "asyncio", "backend_options": {"use_uvloop": True}}
_ON_TRIO: dict[str, Any] = {"backend": "trio"}

_ALL: dict[str, Loop] = {
    "asyncio": Loop(*_ASYNCIO, _ON_ASYNCIO),
    "uvloop": Loop(*_ASYNCIO, _ON_UVLOOP),
    "trio": Loop(*_TRIO, _ON_TRIO),
    "anyio on asyncio": Loop(*_ANYIO, _ON_ASYNCIO),
    "anyio on uvloop": Loop(*_ANYIO, _ON_UVLOOP),
    "anyio on trio": Loop(*_ANYIO, _ON_TRIO),
}
EVERY = {name: loop for name, loop in _ALL.items() if "uvloop" in LOOPS or "uvloop" not in name}


async def in_thread(action: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a thread of its own; trio would keep a thread for the next call."""
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        future = threads.submit(action, *args)
        while not future.done():
            await anyio.sleep(0.001)
    return future.result()


def on_every_loop(
    test: Callable[..., Coroutine[Any, Any, None]],
) -> Callable[..., None]:
    """Run an async test, whose first parameter is `loop`, once on each event loop."""

    @functools.wraps(test)
    def run(loop: str, **given: Any) -> None:
        chosen = EVERY[loop]

        async def bounded() -> None:
            with anyio.fail_after(2 * PATIENCE):
                await test(loop=chosen, **given)

        anyio.run(bounded, **chosen.backend)

    vars(run)["__signature__"] = inspect.signature(test)
    mark: Callable[..., None] = pytest.mark.parametrize("loop", EVERY)(run)
    return mark
