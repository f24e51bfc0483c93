"""The Reapers of the event loops: closes that no task awaits."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

import anyio
import pytest

from every_loop import ASYNCIO, Loop, in_thread, on, on_every_loop
from graceful_close import CloseOutcome, CloseResult, LingerPolicy
from streams import DEADLINE, connect, connect_many, ends_in_reset, read_all

REPLY = b"r" * 65536


@on_every_loop
async def test_submit_returns_before_the_peer_answers_and_the_block_ends_after(
    loop: Loop,
) -> None:
    results: list[CloseResult] = []
    with connect("tcp4") as (ours, peer):
        stream = await loop.open(ours)
        await loop.send(stream, REPLY)
        async with loop.module.Reaper(timeout=DEADLINE, on_close=results.append) as reaper:
            reaper.submit(stream)
            assert (len(reaper), results) == (1, [])
            assert await in_thread(read_all, peer) == REPLY
            assert results == []
            peer.close()
        assert len(reaper) == 0
    assert [(result.outcome, result.clean) for result in results] == [
        (CloseOutcome.PEER_CLOSED, True)
    ]


@on_every_loop
async def test_the_results_have_the_peers_address(loop: Loop) -> None:
    results: list[CloseResult] = []
    with connect("tcp4") as (ours, peer):
        address = peer.getsockname()
        stream = await loop.open(ours)
        async with loop.module.Reaper(on_close=results.append) as reaper:
            peer.close()
            reaper.submit(stream)
    assert [result.peer for result in results] == [address]


@on_every_loop
async def test_silent_peers_cost_the_deadline_once(loop: Loop) -> None:
    began = anyio.current_time()
    with connect_many(20) as pairs:
        async with loop.module.Reaper(timeout=0.2, idle_timeout=None) as reaper:
            for ours, _ in pairs:
                reaper.submit(await loop.open(ours))
    assert 0.2 <= anyio.current_time() - began < 2
    assert reaper.stats()[CloseOutcome.TIMED_OUT] == 20


@on_every_loop
async def test_the_oldest_makes_room_for_the_newest(loop: Loop) -> None:
    with connect_many(5) as pairs:
        async with loop.module.Reaper(
            timeout=DEADLINE, max_sockets=2, on_overflow=LingerPolicy.ABORT
        ) as reaper:
            for ours, _ in pairs:
                reaper.submit(await loop.open(ours))
                await anyio.sleep(0.01)  # its first turns
                assert len(reaper) <= 2
            for _, peer in pairs[:3]:
                with pytest.raises(ConnectionError):  # it has read the FIN; so EPIPE
                    peer.send(b"more")
            for _, peer in pairs[3:]:
                peer.close()
    assert reaper.overflowed == 3
    assert reaper.stats()[CloseOutcome.PEER_CLOSED] == 2


@on_every_loop
async def test_one_that_is_expired_in_its_first_turns_ends_when_it_would_wait(
    loop: Loop,
) -> None:
    with connect("tcp4") as (ours, _peer), connect("tcp4") as (other, other_peer):
        streams = [await loop.open(ours), await loop.open(other)]
        results: list[CloseResult] = []
        async with loop.module.Reaper(
            timeout=DEADLINE, max_sockets=1, on_close=results.append
        ) as reaper:
            for stream in streams:
                reaper.submit(stream)
            other_peer.close()
    assert {result.outcome for result in results} == {
        CloseOutcome.TIMED_OUT,
        CloseOutcome.PEER_CLOSED,
    }


@pytest.mark.parametrize("turns", [0, 20])
@on(ASYNCIO)
async def test_one_that_is_expired_before_or_while_it_flushes_ends_in_a_reset(
    loop: Loop, turns: int
) -> None:
    accept = asyncio.get_running_loop().connect_accepted_socket
    with (
        connect("tcp4", peer_buffer=4096) as (ours, peer),
        connect("tcp4") as (other, other_peer),
    ):
        ours.setblocking(False)
        full, _ = await accept(asyncio.Protocol, ours)
        full.write(bytes(10_000_000))
        empty, _ = await accept(asyncio.Protocol, other)
        results: list[CloseResult] = []
        async with loop.module.Reaper(
            timeout=DEADLINE, max_sockets=1, on_close=results.append
        ) as reaper:
            reaper.submit(full)
            for _ in range(turns):
                await asyncio.sleep(0)
            reaper.submit(empty)
            other_peer.close()
        assert await in_thread(ends_in_reset, peer)
        assert {result.outcome for result in results} == {
            CloseOutcome.TIMED_OUT,
            CloseOutcome.PEER_CLOSED,
        }


@on_every_loop
async def test_a_cancelled_block_closes_everything_at_once(loop: Loop) -> None:
    with connect("tcp4") as (ours, peer):
        stream = await loop.open(ours)
        await loop.send(stream, b"reply")
        reaper = loop.module.Reaper(timeout=DEADLINE)
        with anyio.CancelScope() as scope:
            async with reaper:
                reaper.submit(stream)
                scope.cancel()
                await anyio.sleep(DEADLINE)
        assert len(reaper) == 0
        assert await in_thread(read_all, peer) == b"reply"


@on(ASYNCIO)
async def test_a_cancelled_task_closes_everything_at_once(loop: Loop) -> None:
    """asyncio cancels a task once, and not again at each of its waits."""
    with connect("tcp4") as (ours, peer):
        _, writer = await asyncio.open_connection(sock=ours)
        entered = asyncio.Event()

        async def block() -> None:
            async with loop.module.Reaper(timeout=1000, idle_timeout=None) as reaper:
                reaper.submit(writer)
                entered.set()
                await asyncio.sleep(DEADLINE)

        task = asyncio.create_task(block())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, DEADLINE)
        assert await in_thread(read_all, peer) == b""


@on_every_loop
async def test_an_exception_of_the_block_lets_the_closes_finish(loop: Loop) -> None:
    with connect("tcp4") as (ours, peer):
        stream = await loop.open(ours)
        reaper = loop.module.Reaper(timeout=DEADLINE)
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            async with reaper:
                reaper.submit(stream)
                peer.close()
                raise ZeroDivisionError
        assert reaper.stats()[CloseOutcome.PEER_CLOSED] == 1


@on_every_loop
async def test_outside_its_block_nothing_is_accepted(loop: Loop) -> None:
    with connect("tcp4") as (ours, _peer):
        stream = await loop.open(ours)
        reaper = loop.module.Reaper()
        with pytest.raises(RuntimeError, match="async with"):
            reaper.submit(stream)
        async with reaper:
            assert reaper
        with pytest.raises(RuntimeError, match="async with"):
            reaper.submit(stream)
        await loop.module.abortive_close(stream)


@on_every_loop
async def test_what_is_no_stream_is_refused_by_submit(loop: Loop) -> None:
    async with loop.module.Reaper() as reaper:
        with pytest.raises(TypeError):
            reaper.submit(object())
        assert len(reaper) == 0


@on_every_loop
async def test_an_on_close_that_raises_is_logged_and_the_others_continue(
    loop: Loop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: CloseResult) -> None:
        raise ZeroDivisionError

    class Failing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name == "graceful_close":
                raise ValueError("I/O operation on closed file.")

    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [*root.handlers, Failing()])
    with connect("tcp4") as (ours, peer), connect("tcp4") as (other, other_peer):
        streams = [await loop.open(ours), await loop.open(other)]
        with caplog.at_level(logging.ERROR, "graceful_close"):
            async with loop.module.Reaper(on_close=fail) as reaper:
                for stream in streams:
                    reaper.submit(stream)
                peer.close()
                other_peer.close()
    assert reaper.stats()[CloseOutcome.PEER_CLOSED] == 2
    # On a busy machine the debug mode of asyncio's loop also logs, that a turn was slow.
    logged = [record for record in caplog.records if record.name == "graceful_close"]
    assert ["on_close" in record.getMessage() for record in logged] == [True] * 2
    assert all("ZeroDiv" in str(record.exc_info) for record in logged)


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"timeout": -1}, ValueError, "timeout"),
        ({"max_sockets": 0}, ValueError, "max_sockets"),
        ({"on_overflow": LingerPolicy.TIMED}, ValueError, "on_overflow"),
        ({"on_close": 3}, TypeError, "on_close"),
        ({"timeut": 3}, TypeError, r"^Reaper\(\).*timeut"),
    ],
)
@on_every_loop
async def test_a_wrong_option_is_named(
    loop: Loop, options: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        loop.module.Reaper(**options)


@on(ASYNCIO)
async def test_a_protocol_refuses_an_upload_without_waiting(loop: Loop) -> None:
    """data_received() cannot await: it answers, and submits its transport."""
    async with loop.module.Reaper(timeout=DEADLINE) as reaper:

        class Refuse(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                self.transport: Any = transport

            def data_received(self, data: bytes) -> None:
                if not self.transport.is_closing():
                    self.transport.write(REPLY)
                    reaper.submit(self.transport)

        server = await asyncio.get_running_loop().create_server(Refuse, "127.0.0.1", 0)
        async with server:
            address = server.sockets[0].getsockname()

            def upload() -> bytes:
                with socket.create_connection(address) as client:
                    client.settimeout(DEADLINE)
                    client.sendall(bytes(3_000_000))
                    return read_all(client)

            replies = await asyncio.gather(*(in_thread(upload) for _ in range(8)))
            assert replies == [REPLY] * 8
    assert reaper.stats()[CloseOutcome.PEER_CLOSED] == 8
