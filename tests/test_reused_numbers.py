"""A close creates a descriptor whose number the event loop still watches for an earlier descriptor.

Programs close sockets that their loop watches, and asyncio itself leaves the writer of a sendfile()
that is interrupted. The kernel forgets such a number, and the loop does not. In asyncio add_reader()
then changes nothing, or raises FileNotFoundError; trio raises BusyResourceError.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

import anyio
import pytest
import trio
import trio.testing

import graceful_close.anyio
import graceful_close.trio
from every_loop import in_thread
from graceful_close import CloseOutcome
from graceful_close.asyncio import graceful_close as close_in_asyncio
from streams import DEADLINE, Connection, read_all, read_and_close
from test_asyncio import pair, run_in
from test_asyncio_server import MEGABYTES


def never_readable() -> list[socket.socket]:
    """Sockets with the lowest free numbers, more than a close needs."""
    return [socket.socket(type=socket.SOCK_DGRAM) for _ in range(8)]


def watch_and_close(watched: tuple[str, ...]) -> None:
    loop, socks = asyncio.get_running_loop(), never_readable()
    for sock in socks:
        for event in watched:
            getattr(loop, f"add_{event}")(sock.fileno(), pytest.fail, "of another descriptor")
    for sock in socks:
        sock.close()


@pytest.mark.parametrize(
    "watched", [("reader",), ("writer",), ("reader", "writer")], ids=" and ".join
)
@pytest.mark.parametrize("kind", ["tcp", "tls1.3"])
def test_a_close_in_asyncio_waits_for_its_own_descriptors(
    kind: str, watched: tuple[str, ...]
) -> None:
    async def test() -> None:
        async with pair(kind) as one:
            one.writer.write(MEGABYTES)
            watch_and_close(watched)
            closing = asyncio.create_task(close_in_asyncio(one.writer, timeout=DEADLINE))
            await asyncio.sleep(0)
            assert await in_thread(read_all, one.peer) == MEGABYTES
            for _ in range(20):
                await asyncio.sleep(0)  # the close waits for the peer's FIN
            one.peer.close()
            result = await closing
            assert result.outcome is CloseOutcome.PEER_CLOSED
            assert result.clean

    run_in(asyncio.SelectorEventLoop, test())


def test_a_close_in_trio_waits_for_its_own_descriptors(tcp: Connection) -> None:
    ended: list[int] = []

    async def wait_in_vain(sock: socket.socket) -> None:
        number = sock.fileno()
        try:
            await trio.lowlevel.wait_readable(number)
        except trio.ClosedResourceError:
            ended.append(number)

    async def close_when_one_has_ended() -> None:
        while not ended:
            await trio.lowlevel.checkpoint()
        await in_thread(read_and_close, tcp.peer)

    async def test() -> None:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(tcp.ours))
        socks = never_readable()
        async with trio.open_nursery() as nursery:
            for sock in socks:
                nursery.start_soon(wait_in_vain, sock)
            await trio.testing.wait_all_tasks_blocked()
            for sock in socks:
                sock.close()
            nursery.start_soon(close_when_one_has_ended)
            result = await graceful_close.trio.graceful_close(stream, timeout=DEADLINE)
            assert result.outcome is CloseOutcome.PEER_CLOSED
            assert len(ended) == 1, "the number of another was not used again"
            nursery.cancel_scope.cancel()

    trio.run(test)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_close_in_anyio_waits_for_its_own_descriptors(backend: str, tcp: Connection) -> None:
    async def wait_in_vain(number: int) -> None:
        with suppress(anyio.ClosedResourceError):
            await anyio.wait_readable(number)

    async def test() -> None:
        stream = await anyio.abc.SocketStream.from_socket(tcp.ours)
        socks = never_readable()
        async with anyio.create_task_group() as group:
            for sock in socks:
                group.start_soon(wait_in_vain, sock.fileno())
            await anyio.wait_all_tasks_blocked()
            for sock in socks:
                sock.close()
            with anyio.move_on_after(0.1):
                await stream.send(bytes(8_000_000))
            result = await graceful_close.anyio.graceful_close(stream, timeout=0.3)
            assert result.outcome is CloseOutcome.TIMED_OUT
            group.cancel_scope.cancel()

    anyio.run(test, backend=backend)
