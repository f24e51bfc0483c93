"""Readers that pause, and servers whose code has no limit for them."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import pytest

from event_loops import LOOPS
from graceful_close import Reaper
from graceful_close._asyncio_server import flush_timeout_of
from graceful_close._options import ReaperSettings
from graceful_close.asyncio import graceful_loop
from streams import await_reset, ends_in_reset, read_all
from test_asyncio import KINDS, in_thread, run_in
from test_asyncio_server import served

MEGABYTES = b"reply" * 1_700_000

# In seconds: a short limit, and a pause that is certainly longer.
SHORT = 0.05
PAUSE = 0.5

in_each_loop = pytest.mark.parametrize("loop", LOOPS)
of_each_kind = pytest.mark.parametrize("kind", KINDS)


def _loop(name: str, **options: float) -> type[asyncio.AbstractEventLoop]:
    made = LOOPS[name]()
    made.close()
    return graceful_loop(type(made), **options)  # type: ignore[arg-type]


def pause_then_read(peer: socket.socket) -> bytes:
    time.sleep(PAUSE)
    return read_all(peer)


@pytest.fixture
def short_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the flush a silent peer has almost no time."""
    for init in (Reaper.__init__, ReaperSettings.__init__):
        defaults: Any = init.__kwdefaults__
        monkeypatch.setitem(defaults, "timeout", SHORT)
        monkeypatch.setitem(defaults, "idle_timeout", SHORT)


async def replied(made: Any, connect: Any) -> tuple[Any, Any]:
    """Return a client and its server's protocol, which has written a long reply and closes."""
    peer = await in_thread(connect)
    protocol = await made.get()
    protocol.transport.write(MEGABYTES)
    protocol.transport.close()
    return peer, protocol


@pytest.mark.usefixtures("short_defaults")
@of_each_kind
@in_each_loop
def test_a_reader_that_pauses_gets_the_whole_reply(loop: str, kind: str) -> None:
    async def test() -> None:
        async with served(kind) as (_, made, connect):
            peer, _ = await replied(made, connect)
            assert await in_thread(pause_then_read, peer) == MEGABYTES

    run_in(_loop(loop), test())


@pytest.mark.usefixtures("short_defaults")
@of_each_kind
@in_each_loop
def test_a_server_that_stops_does_not_wait_for_a_reader_that_pauses(
    loop: str, kind: str
) -> None:
    async def test() -> None:
        async with served(kind) as (server, made, connect):
            peer, protocol = await replied(made, connect)
            await asyncio.sleep(SHORT)  # the flush waits, before the server stops
            server.close()
            await server.wait_closed()
            assert protocol.lost.is_set()
            if kind == "tcp":
                assert await in_thread(ends_in_reset, peer)

    run_in(_loop(loop), test())


@pytest.mark.parametrize("option", ["timeout", "idle_timeout"])
@in_each_loop
def test_a_given_option_limits_the_silence_of_a_flush(loop: str, option: str) -> None:
    async def test() -> None:
        async with served("tcp") as (_, made, connect):
            peer, _ = await replied(made, connect)
            await in_thread(await_reset, peer)

    run_in(_loop(loop, **{option: SHORT}), test())


def test_the_default_is_as_long_as_linux_waits_after_close() -> None:
    assert flush_timeout_of({}) > 340
    assert flush_timeout_of({"idle_timeout": None, "drain_limit": 1}) > 340
    assert flush_timeout_of({"timeout": 7, "idle_timeout": 3}) == 3
