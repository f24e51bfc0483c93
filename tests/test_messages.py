"""The message of a mistake in a call names what to do instead."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import ModuleType
from typing import Any

import anyio
import anyio.abc
import pytest
import trio

import graceful_close.anyio
import graceful_close.asyncio
import graceful_close.trio
from graceful_close import GracefulListener, Reaper, close_all, closing
from graceful_close.asyncio import graceful_factory, graceful_loop


def message_for(thing: object) -> str:
    untyped: Any = thing
    with pytest.raises(TypeError) as caught:
        graceful_close.graceful_close(untyped)
    return str(caught.value)


def test_an_object_of_a_wrong_type_is_named_by_its_type() -> None:
    assert message_for("x") == "a socket.socket is needed, not str"


def test_for_asyncio_streams_the_message_names_the_asyncio_module() -> None:
    async def messages() -> list[str]:
        ours, peer = socket.socketpair()
        _, writer = await asyncio.open_connection(sock=ours)
        found = [
            message_for(thing)
            for thing in (writer, writer.transport, writer.get_extra_info("socket"))
        ]
        peer.close()
        await graceful_close.asyncio.graceful_close(writer)
        return found

    by_writer, by_transport, by_socket = asyncio.run(messages())
    assert by_writer == (
        "a socket.socket is needed, not asyncio.streams.StreamWriter; use graceful_close.asyncio"
    )
    assert by_transport.endswith("; use graceful_close.asyncio")
    assert by_socket == (
        "a socket.socket is needed, not asyncio.trsock.TransportSocket; "
        "use graceful_close.asyncio with the stream or the transport that owns it"
    )


def test_for_trio_streams_the_message_names_the_trio_module() -> None:
    async def messages() -> list[str]:
        ours, peer = trio.socket.socketpair()
        stream = trio.SocketStream(ours)
        with peer, ours:
            return [message_for(stream), message_for(ours)]

    assert trio.run(messages) == [
        "a socket.socket is needed, not trio.SocketStream; use graceful_close.trio",
        "a socket.socket is needed, not trio._socket._SocketType; use graceful_close.trio",
    ]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_for_anyio_streams_the_message_names_the_anyio_module(backend: str) -> None:
    async def message() -> str:
        ours, peer = socket.socketpair()
        with peer:
            stream = await anyio.abc.UNIXSocketStream.from_socket(ours)
            async with stream:
                return message_for(stream)

    assert anyio.run(message, backend=backend).endswith("; use graceful_close.anyio")


# Calls that type checkers reject.
WRONG: dict[str, Any] = {"timout": 3}


CALLS: list[tuple[str, Callable[[socket.socket], object]]] = [
    ("graceful_close", lambda sock: graceful_close.graceful_close(sock, **WRONG)),
    ("closing", lambda sock: closing(sock, **WRONG)),
    ("close_all", lambda sock: close_all([sock], **WRONG)),
    ("GracefulListener", lambda _: GracefulListener(("127.0.0.1", 0), **WRONG)),
    ("Reaper.__init__", lambda _: Reaper(**WRONG)),
    ("graceful_factory", lambda _: graceful_factory(asyncio.Protocol, **WRONG)),
    ("graceful_loop", lambda _: graceful_loop(asyncio.SelectorEventLoop, **WRONG)),
]


@pytest.mark.parametrize(("name", "call"), CALLS)
def test_an_unknown_option_is_reported_with_the_name_of_the_called_function(
    name: str, call: Callable[[socket.socket], object]
) -> None:
    with socket.socket() as sock:
        with pytest.raises(TypeError) as caught:
            call(sock)
        assert sock.fileno() != -1
    assert str(caught.value).startswith(f"{name}() got an unexpected keyword argument 'timout'")


MODULES: dict[str, ModuleType] = {
    "asyncio": graceful_close.asyncio,
    "trio": graceful_close.trio,
    "anyio": graceful_close.anyio,
}


@pytest.mark.parametrize("name", ["graceful_close", "closing", "close_all"])
@pytest.mark.parametrize("module", MODULES)
def test_the_functions_for_event_loops_report_an_unknown_option_too(
    module: str, name: str
) -> None:
    call: Any = getattr(MODULES[module], name)

    async def wrong() -> None:
        made = call([] if name == "close_all" else None, **WRONG)
        if name != "closing":
            await made

    with pytest.raises(TypeError) as caught:
        asyncio.run(wrong())
    assert str(caught.value) == f"{name}() got an unexpected keyword argument 'timout'"
