"""Two tasks that close one stream: the first closes it, and the second says so."""

from __future__ import annotations

import socket

import anyio
import anyio.lowlevel
import pytest

from every_loop import EVERY, Loop, on, on_every_loop, pair
from graceful_close import CloseOutcome, CloseResult
from streams import DEADLINE, connect, meanwhile, read_all
from tls_sessions import read_raw_and_close


@pytest.mark.parametrize("turns", range(4))
@on_every_loop
async def test_the_second_close_reports_that_the_stream_is_closed_already(
    loop: Loop, turns: int
) -> None:
    results: list[CloseResult] = []
    with connect("tcp4") as (ours, peer):
        stream = await loop.open(ours)
        await loop.send(stream, b"reply")

        async def close() -> None:
            results.append(await loop.module.graceful_close(stream, timeout=DEADLINE))

        async with anyio.create_task_group() as group:
            group.start_soon(close)
            group.start_soon(close)
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            peer.shutdown(socket.SHUT_WR)
        assert read_all(peer) == b"reply"
    assert {result.outcome for result in results} == {
        CloseOutcome.PEER_CLOSED,
        CloseOutcome.ALREADY_CLOSED,
    }


@pytest.mark.parametrize("turns", range(8))
@on(EVERY, ["TLS 1.3"])
async def test_it_does_so_while_the_first_ends_the_session_of_tls(
    loop: Loop, kind: str, turns: int
) -> None:
    async with pair(loop, kind) as (stream, peer):
        results: list[CloseResult] = []

        async def close() -> None:
            results.append(await loop.module.graceful_close(stream, timeout=DEADLINE))

        with meanwhile(read_raw_and_close, peer):
            async with anyio.create_task_group() as group:
                group.start_soon(close)
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                await close()
        assert {result.outcome for result in results} == {
            CloseOutcome.PEER_CLOSED,
            CloseOutcome.ALREADY_CLOSED,
        }


@on_every_loop
async def test_a_close_among_many_reports_it_too(loop: Loop) -> None:
    with connect("tcp4") as (ours, peer):
        stream = await loop.open(ours)
        results: list[CloseResult] = []

        async def close() -> None:
            results.append(await loop.module.graceful_close(stream, timeout=DEADLINE))

        async with anyio.create_task_group() as group:
            group.start_soon(close)
            while not ours_is_taken(peer):
                await anyio.lowlevel.checkpoint()
            results += await loop.module.close_all([stream])
            peer.close()
    assert [result.outcome for result in results] == [
        CloseOutcome.ALREADY_CLOSED,
        CloseOutcome.PEER_CLOSED,
    ]


def ours_is_taken(peer: socket.socket) -> bool:
    """Whether our FIN has arrived."""
    peer.setblocking(False)
    try:
        return peer.recv(1) == b""
    except BlockingIOError:
        return False
