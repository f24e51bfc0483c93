"""A close that is cancelled before it begins: a part of a message does not look like the whole."""

from __future__ import annotations

import socket

import anyio
import pytest

from every_loop import EVERY, Loop, in_thread, on_every_loop
from streams import connect, ends_in_reset, read_all

# A stream of trio holds nothing: what a cancelled send_all() has not sent is not sent.
HOLDS_BYTES = [name for name, loop in EVERY.items() if loop.backend["backend"] == "asyncio"]


async def close_in_a_cancelled_scope(loop: Loop, stream: object) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await loop.module.graceful_close(stream)
    assert scope.cancelled_caught


@on_every_loop
async def test_a_reply_that_is_in_the_kernel_arrives_whole(loop: Loop) -> None:
    with connect("tcp4") as (ours, peer):
        stream = await loop.open(ours)
        await loop.send(stream, b"reply")
        await close_in_a_cancelled_scope(loop, stream)
        assert await in_thread(read_all, peer) == b"reply"


@pytest.mark.parametrize("name", HOLDS_BYTES)
def test_bytes_that_the_transport_holds_are_lost_with_a_reset(name: str) -> None:
    loop = EVERY[name]

    async def test() -> None:
        with connect("tcp4", peer_buffer=4096) as (ours, peer):
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            stream = await loop.open(ours)

            async def send() -> None:
                await loop.send(stream, bytes(1_000_000))

            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(send)
                    for _ in range(5):
                        await anyio.lowlevel.checkpoint()
                    scope.cancel()
            await close_in_a_cancelled_scope(loop, stream)
            assert await in_thread(ends_in_reset, peer)

    anyio.run(test, **loop.backend)
