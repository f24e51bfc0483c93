"""asyncio's loops that cannot wait on descriptors."""

from __future__ import annotations

import asyncio

import pytest

from graceful_close import CloseOutcome
from graceful_close.asyncio import abortive_close, close_all, closing, graceful_close
from streams import read_all, read_and_close
from test_asyncio import MEGABYTES, in_each, in_thread, is_closed, pair


class Proactor(asyncio.SelectorEventLoop):
    """As Windows' ProactorEventLoop, it has no add_reader()."""

    add_reader = asyncio.AbstractEventLoop.add_reader
    remove_reader = asyncio.AbstractEventLoop.remove_reader
    add_writer = asyncio.AbstractEventLoop.add_writer
    remove_writer = asyncio.AbstractEventLoop.remove_writer


without_add_reader = in_each({"asyncio": Proactor})


@without_add_reader
async def test_without_add_reader_a_thread_does_the_waiting() -> None:
    async with pair("tcp") as one, pair("tcp") as two, pair("tcp") as three:
        clients = [
            asyncio.create_task(asyncio.to_thread(read_and_close, end.peer))
            for end in (one, two, three)
        ]
        for end in (one, two, three):
            end.writer.write(MEGABYTES)
        result = await graceful_close(one.writer)
        results = await close_all([two.writer, three.writer])
        assert [await client for client in clients] == [MEGABYTES] * 3
        for each in (result, *results):
            assert each.outcome is CloseOutcome.PEER_CLOSED


@without_add_reader
async def test_without_add_reader_and_threads_the_loop_waits() -> None:
    """As when the interpreter exits while the loop runs in another thread."""
    async with pair("tcp") as one, pair("tcp") as two:
        for end in (one, two):
            end.peer.close()
        await asyncio.get_running_loop().shutdown_default_executor()
        results = [await graceful_close(one.writer), *(await close_all([two.writer]))]
        assert [result.outcome for result in results] == [CloseOutcome.PEER_CLOSED] * 2


@without_add_reader
async def test_without_add_reader_a_cancellation_closes_the_connection() -> None:
    async with pair("tcp") as (_, writer, peer):
        closed = asyncio.create_task(graceful_close(writer, timeout=0.5))
        assert await in_thread(read_all, peer) == b""
        closed.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closed
        assert is_closed(writer)


@without_add_reader
async def test_without_add_reader_tls_is_refused_and_not_touched() -> None:
    async with pair("tls1.3") as (_, writer, _peer):
        with pytest.raises(NotImplementedError, match="add_reader"):
            await graceful_close(writer)
        with pytest.raises(NotImplementedError, match="add_reader"):
            closing(writer)
        with pytest.raises(NotImplementedError, match=r"streams\[0\]"):
            await close_all([writer])
        assert not writer.is_closing()
        await abortive_close(writer)
