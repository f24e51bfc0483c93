"""Promises about connections in event loops."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

from graceful_close import CloseOutcome
from graceful_close import asyncio as graceful_asyncio

from .. import loopback
from ..loopback import HOST, TIMEOUT
from .exchange import REPLY, UPLOADS, require_whole, tls_contexts, upload
from .trying import NotHereError, promise, require

if TYPE_CHECKING:
    import ssl

_COUNT = 20


@promise("asyncio: a client that is still uploading reads the whole early reply")
def _asyncio() -> str:
    return asyncio.run(_serve_by_asyncio(None))


@promise("asyncio with TLS: a client that is still uploading reads the whole early reply")
def _asyncio_tls() -> str:
    return asyncio.run(_serve_by_asyncio(tls_contexts()))


async def _serve_by_asyncio(tls: tuple[ssl.SSLContext, ssl.SSLContext] | None) -> str:
    outcomes: list[CloseOutcome | BaseException] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(REPLY)
        try:
            result = await graceful_asyncio.graceful_close(writer, timeout=TIMEOUT)
        except BaseException as error:  # noqa: BLE001 (asyncio would only log it)
            outcomes.append(error)
        else:
            outcomes.append(result.outcome)

    server = await asyncio.start_server(handle, HOST, 0, ssl=tls and tls[0])
    async with server:
        address: tuple[str, int] = server.sockets[0].getsockname()
        replies = [
            await asyncio.to_thread(upload, address, tls and tls[1]) for _ in range(UPLOADS)
        ]
    detail = require_whole(replies)
    raised = [one for one in outcomes if isinstance(one, BaseException)]
    require(not raised, raised)
    return detail


@promise("asyncio: close_all closes many connections whose peers close")
def _asyncio_close_all() -> str:
    async def close_them(ours: list[Any]) -> set[CloseOutcome]:
        results = await graceful_asyncio.close_all(ours, timeout=TIMEOUT)
        return {result.outcome for result in results}

    with contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(loopback.connection()) for _ in range(_COUNT)]
        for ours, peer in pairs:
            ours.setblocking(False)
            peer.close()
        outcomes = asyncio.run(close_them([ours for ours, _ in pairs]))
    require(outcomes == {CloseOutcome.PEER_CLOSED}, outcomes)
    return f"{_COUNT} PEER_CLOSED"


@promise("trio: a client that is still uploading reads the whole early reply")
def _trio() -> str:
    try:
        import trio

        from graceful_close import trio as graceful_trio
    except ImportError as error:
        raise NotHereError(str(error)) from None

    async def handle(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        await stream.send_all(REPLY)
        await graceful_trio.graceful_close(stream, timeout=TIMEOUT)

    async def serve() -> list[str]:
        async with trio.open_nursery() as nursery:
            serving = partial(trio.serve_tcp, handle, 0, host=HOST)
            listeners: Any = await nursery.start(serving)
            address = listeners[0].socket.getsockname()
            replies = [await trio.to_thread.run_sync(upload, address) for _ in range(UPLOADS)]
            nursery.cancel_scope.cancel()
        return replies

    return require_whole(trio.run(serve))


@promise("anyio: a client that is still uploading reads the whole early reply")
def _anyio() -> str:
    try:
        import anyio

        from graceful_close import anyio as graceful_anyio
    except ImportError as error:
        raise NotHereError(str(error)) from None

    async def handle(stream: anyio.abc.SocketStream) -> None:
        await stream.receive(65536)
        await stream.send(REPLY)
        await graceful_anyio.graceful_close(stream, timeout=TIMEOUT)

    async def serve() -> list[str]:
        listener = await anyio.create_tcp_listener(local_host=HOST)
        local_port = anyio.abc.SocketAttribute.local_port
        port = listener.listeners[0].extra(local_port)  # noqa: S610 (no query of Django's)
        replies: list[str] = []
        async with listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, handle)
            replies += [
                await anyio.to_thread.run_sync(upload, (HOST, port)) for _ in range(UPLOADS)
            ]
            group.cancel_scope.cancel()
        return replies

    return require_whole(anyio.run(serve))
