"""A transport that holds nothing is closed on its own descriptor: what may happen in that turn."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from event_loops import LOOPS
from graceful_close import CloseOutcome, _platform
from graceful_close._asyncio_view import open_socket_of
from graceful_close.asyncio import graceful_close
from streams import DEADLINE, connect, read_all

every_loop = pytest.mark.parametrize("name", LOOPS)


def run(name: str, test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    complaints: list[dict[str, Any]] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: complaints.append(context)
        )
        async with asyncio.timeout(DEADLINE):
            await test()

    with asyncio.Runner(loop_factory=LOOPS[name]) as runner:
        runner.run(watched())
    assert complaints == []


async def transport_of(
    ours: socket.socket, protocol: type[asyncio.Protocol] = asyncio.Protocol
) -> asyncio.Transport:
    ours.setblocking(False)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_accepted_socket(protocol, ours)
    return transport


@every_loop
def test_a_transport_has_its_descriptor_while_connection_lost_is_called(name: str) -> None:
    """The close depends on this promise of the loops."""
    inodes: list[int] = []

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.number = transport.get_extra_info("socket").fileno()
            inodes.append(os.fstat(self.number).st_ino)

        def connection_lost(self, exc: Exception | None) -> None:
            inodes.append(os.fstat(self.number).st_ino)

    async def test() -> None:
        with connect("tcp4") as (ours, _):
            transport = await transport_of(ours, Protocol)
            transport.close()
            while len(inodes) < 2:
                await asyncio.sleep(0)

    run(name, test)
    assert inodes[0] == inodes[1]


@pytest.mark.parametrize("how", ["the task is cancelled", "the coroutine is closed"])
@every_loop
def test_an_interrupt_in_that_turn_closes_the_transport_and_keeps_the_reply(
    name: str, how: str
) -> None:
    async def test() -> None:
        with connect("tcp4") as (ours, peer):
            transport = await transport_of(ours)
            transport.write(b"reply")
            closing = graceful_close(transport, timeout=DEADLINE)
            if how == "the coroutine is closed":
                closing.send(None)
                assert transport.is_closing()
                closing.close()
            else:
                task = asyncio.create_task(closing)
                await asyncio.sleep(0)
                assert transport.is_closing()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert open_socket_of(transport) is None
            assert await asyncio.to_thread(read_all, peer) == b"reply"

    run(name, test)


@pytest.mark.parametrize("what", ["abort", "close", "write"])
@every_loop
def test_another_task_that_uses_the_transport_in_that_turn_changes_nothing(
    name: str, what: str
) -> None:
    async def test() -> None:
        with connect("tcp4") as (ours, peer):
            transport = await transport_of(ours)
            transport.write(b"reply")
            task = asyncio.create_task(graceful_close(transport, timeout=DEADLINE))
            await asyncio.sleep(0)
            use: Callable[[], object] = {
                "abort": transport.abort,
                "close": transport.close,
                "write": lambda: transport.write(b"more"),
            }[what]
            use()
            peer.shutdown(socket.SHUT_WR)
            assert (await task).outcome is CloseOutcome.PEER_CLOSED
            assert read_all(peer) == b"reply"

    run(name, test)


@every_loop
def test_a_second_close_in_that_turn_ends_too_and_closes_no_other_descriptor(
    name: str,
) -> None:
    async def test() -> None:
        with connect("tcp4") as (ours, peer):
            transport = await transport_of(ours)
            transport.write(b"reply")
            closes = [
                asyncio.create_task(graceful_close(transport, timeout=DEADLINE)) for _ in "12"
            ]
            await asyncio.sleep(0)
            bystanders = socket.socketpair()
            peer.shutdown(socket.SHUT_WR)
            results = await asyncio.gather(*closes)
            assert read_all(peer) == b"reply"
            for sock in bystanders:
                assert os.fstat(sock.fileno())
                sock.close()
            assert [result.outcome for result in results] == [
                CloseOutcome.PEER_CLOSED,
                CloseOutcome.ALREADY_CLOSED,
            ]

    run(name, test)


@every_loop
def test_the_owner_of_the_protocol_hears_of_the_end_once(name: str) -> None:
    told: list[Exception | None] = []

    class Protocol(asyncio.Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            told.append(exc)

    async def test() -> None:
        with connect("tcp4") as (ours, peer):
            transport = await transport_of(ours, Protocol)
            peer.close()
            await graceful_close(transport, timeout=DEADLINE)

    run(name, test)
    assert told == [None]


@every_loop
def test_an_interrupt_leaves_no_second_owner_of_the_descriptor(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second owner would close the descriptor later, which another connection may have by then."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    async def test() -> None:
        with connect("tcp4") as (ours, _):
            transport = await transport_of(ours)
            number = transport.get_extra_info("socket").fileno()
            with monkeypatch.context() as patched:
                patched.setattr(_platform, "keep_mode", interrupt)
                with pytest.raises(KeyboardInterrupt) as raised:
                    await graceful_close(transport)
            assert transport.is_closing()
            other = os.open(os.devnull, os.O_RDONLY)
            os.dup2(other, number)
            raised.value.__traceback__ = None
            del raised
            gc.collect()
            os.fstat(number)  # raises if it was closed
            for owned in {other, number}:
                os.close(owned)

    run(name, test)
