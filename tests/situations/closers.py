"""The call in each driver: the library's, or the plain close that the library replaces."""

from __future__ import annotations

import asyncio
import os
import socket
import socketserver
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from time import monotonic
from typing import Any, BinaryIO, cast

import anyio
import anyio.lowlevel
import trio
from anyio.abc import SocketStream, UNIXSocketStream
from anyio.streams.tls import TLSStream

import graceful_close
import graceful_close.anyio
import graceful_close.asyncio
import graceful_close.trio
from certificates import NAME
from event_loops import LOOPS as EVENT_LOOPS
from graceful_close import CloseOptions, CloseResult, _asyncio_server
from graceful_close.socketserver import GracefulMixIn

from .build import Arrangement
from .options import options_of
from .probe import STOPS_AFTER, Probe

# The limit for a plain close, for a send, and for the Reaper of a listener, in seconds.
_DEADLINE = 3.0
_ENDS_WITHIN = 1.0


class RollBack(Exception):  # noqa: N818
    """The exception of a body of `closing`."""


def run(arrangement: Arrangement, probe: Probe, *, plain: bool = False) -> None:
    """Close the connection as the situation requires, or plainly."""
    driver = arrangement.situation.driver
    match driver:
        case "blocking" | "Reaper" | "listener" | "socketserver":
            _by_threads(arrangement, probe, plain)
        case "asyncio" | "uvloop":
            factory = EVENT_LOOPS[driver]
            if arrangement.situation.call == "transport":
                (usual := factory()).close()
                factory = graceful_close.asyncio.graceful_loop(type(usual))
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(_by_asyncio(arrangement, probe, plain))
        case "trio":
            trio.run(_by_trio, arrangement, probe, plain)
        case "anyio on trio":
            anyio.run(_by_anyio, arrangement, probe, plain, backend="trio")
        case _:
            on_uvloop = {"use_uvloop": arrangement.situation.on_uvloop}
            anyio.run(_by_anyio, arrangement, probe, plain, backend_options=on_uvloop)


# --- threads -------------------------------------------------------------------------------------


def _by_threads(arrangement: Arrangement, probe: Probe, plain: bool) -> None:
    situation = arrangement.situation
    stream: socket.socket = arrangement.ours
    context = arrangement.context()
    if context is not None:
        arrangement.secure()
        stream.settimeout(_DEADLINE)
        secured = context.wrap_socket(
            stream, do_handshake_on_connect=False, **arrangement.tls_side()
        )
        stream = arrangement.ours = secured
        if situation.tls != "half":
            secured.do_handshake()
            arrangement.secured()
    arrangement.hold(stream)
    if stream.fileno() != -1:
        stream.setblocking(False)
        arrangement.write_now(stream.send)
        stream.settimeout(
            {"blocking": None, "timeout": _DEADLINE, "non-blocking": 0}[situation.mode]
        )
    arrangement.shut(stream)
    arrangement.prepare_peer()
    if arrangement.peer is not None:
        arrangement.peer.start()
    arrangement.share(stream)
    with probe.watch(signals=True):
        if plain and situation.driver == "listener":
            os.close(stream.detach())  # the library replaces its close()
        elif plain:
            stream.close()
        else:
            probe.result = _call_once_or_twice(arrangement, stream)


def _call_once_or_twice(arrangement: Arrangement, stream: socket.socket) -> CloseResult | None:
    if arrangement.situation.holder != "second close":
        return _call(arrangement, stream)

    def close() -> None:
        options = options_of(arrangement.situation)
        arrangement.second = graceful_close.graceful_close(stream, **options)

    second = threading.Thread(target=close)
    second.start()
    try:
        return _call(arrangement, stream)
    finally:
        second.join()


def _call(arrangement: Arrangement, stream: socket.socket) -> CloseResult | None:
    situation, reaper = arrangement.situation, arrangement.reaper
    options = options_of(situation)
    if situation.driver == "listener":
        stream.close()
        plainly = situation.holder == "child" or situation.option == "linger 0"
        return None if plainly else _await_result(arrangement)
    if situation.driver == "socketserver":
        assert reaper is not None
        server = _Server(reaper)
        server.shutdown_request(stream)
        return None if situation.option == "linger 0" else _await_result(arrangement)
    if reaper is not None:
        return reaper.submit(stream).result(_DEADLINE)
    match situation.call:
        case "graceful_close":
            return graceful_close.graceful_close(stream, **options)
        case "timed_linger_close":
            return graceful_close.timed_linger_close(stream, **_lingering(options))
        case "abortive_close":
            return graceful_close.abortive_close(stream)
        case "close_all":
            before, after = arrangement.others
            streams = [before.ours, stream, after.ours]
            before.result, result, after.result = graceful_close.close_all(streams, **options)
            return result
        case call:
            closing = graceful_close.closing(stream, **options)
            with suppress(RollBack), closing:
                if call == "roll back":
                    raise RollBack
            return closing.result


class _Server(GracefulMixIn, socketserver.TCPServer):
    """A server that does not listen."""

    def __init__(self, reaper: graceful_close.Reaper) -> None:
        self._reaper = reaper  # which the arrangement closes


def _lingering(options: dict[str, Any]) -> dict[str, Any]:
    chosen = {"seconds": options["timeout"]}
    if "on_timeout" in options:
        chosen["on_timeout"] = options["on_timeout"]
    return chosen


def _await_result(arrangement: Arrangement) -> CloseResult | None:
    until = monotonic() + _DEADLINE
    while not arrangement.results and monotonic() < until:
        time.sleep(0.002)
    return arrangement.results[0] if arrangement.results else None


# --- event loops ---------------------------------------------------------------------------------


def _prepare(arrangement: Arrangement) -> None:
    """Do what precedes the call, after the stream was made and written to."""
    arrangement.hold(None)
    if arrangement.situation.shut != "none":
        with arrangement.ours_dup() as dup:
            arrangement.shut(dup)
    arrangement.prepare_peer()
    if arrangement.peer is not None:
        arrangement.peer.start()


async def _secured(arrangement: Arrangement) -> None:
    """Wait for the peer's handshake; the loop may not have sent our last record yet."""
    while arrangement.shakes_hands:
        await anyio.sleep(0.001)
    arrangement.secured()


def _write_beneath(arrangement: Arrangement) -> None:
    """Write directly to the kernel."""
    with arrangement.ours_dup() as dup:
        dup.setblocking(False)
        arrangement.write_now(dup.send)


@asynccontextmanager
async def _beside_a_task(
    arrangement: Arrangement,
    receive: Callable[[], Awaitable[bytes]],
    send_file: Callable[[BinaryIO], Awaitable[object]] | None = None,
) -> AsyncGenerator[None, None]:
    """Run the block beside a task that reads or sends a file, if the situation has one."""
    match arrangement.situation.holder:
        case "task":
            act = partial(arrangement.read_on, receive)
        case "sendfile":
            assert send_file is not None
            act = partial(arrangement.send_file, send_file)
        case _:
            yield
            return
    async with anyio.create_task_group() as group:
        group.start_soon(act)
        await anyio.lowlevel.checkpoint()
        if arrangement.task_ended:  # the task failed before the call
            arrangement.unsent = 0
        yield
        with anyio.move_on_after(_ENDS_WITHIN):
            while not arrangement.task_ended:
                await anyio.sleep(0.002)
        group.cancel_scope.cancel()


async def _ask(module: Any, stream: Any, arrangement: Arrangement) -> CloseResult | None:
    if arrangement.situation.holder != "second close":
        return await _ask_once(module, stream, arrangement)

    async def close() -> None:
        options = options_of(arrangement.situation)
        arrangement.second = await module.graceful_close(stream, **options)

    result: CloseResult | None = None
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(close)
            result = await _ask_once(module, stream, arrangement)
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    return result


async def _ask_once(module: Any, stream: Any, arrangement: Arrangement) -> CloseResult | None:
    situation = arrangement.situation
    options = options_of(situation)
    result: CloseResult | None
    match situation.call:
        case "graceful_close":
            result = await module.graceful_close(stream, **options)
        case "timed_linger_close":
            result = await module.timed_linger_close(stream, **_lingering(options))
        case "abortive_close":
            result = await module.abortive_close(stream)
        case "close_all":
            before, after = arrangement.others
            streams = [before.stream, stream, after.stream]
            before.result, result, after.result = await module.close_all(streams, **options)
        case "submit":
            results = arrangement.results
            async with module.Reaper(on_close=results.append, **options) as reaper:
                reaper.submit(stream)
            result = results[0] if results else None
        case call:
            closing = module.closing(stream, **options)
            with suppress(RollBack):
                async with closing:
                    if call == "roll back":
                        raise RollBack
            result = closing.result
    return result


class _Protocol(asyncio.StreamReaderProtocol):
    """The usual protocol, which keeps the transport that it gets."""

    transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        super().connection_made(transport)

    def eof_received(self) -> bool:
        # TLS has no half-close.
        return not self.transport.get_extra_info("ssl_object") and bool(super().eof_received())


async def _asyncio_stream(
    arrangement: Arrangement, reader: asyncio.StreamReader, closes: Any
) -> asyncio.StreamWriter:
    """Make a stream; `closes` makes its transport that of a graceful server."""
    situation, loop = arrangement.situation, asyncio.get_running_loop()
    protocol = _Protocol(reader)
    context, side = arrangement.context(), arrangement.tls_side()
    later = context if situation.tls == "upgraded" else None
    first = None if later is not None else context

    def factory() -> asyncio.BaseProtocol:
        return protocol

    if later is None:
        arrangement.secure()
    if side["server_side"]:
        made = factory if closes is None else closes.wrap(factory)
        await loop.connect_accepted_socket(made, arrangement.ours, ssl=first)
    else:
        name = NAME if first is not None else None
        await loop.create_connection(
            factory, sock=arrangement.ours, ssl=first, server_hostname=name
        )
    if later is not None:
        arrangement.secure()
        protocol.transport = await loop.start_tls(protocol.transport, protocol, later, **side)
    await _secured(arrangement)
    return asyncio.StreamWriter(protocol.transport, protocol, reader, loop)


async def _by_asyncio(arrangement: Arrangement, probe: Probe, plain: bool) -> None:
    situation, sock = arrangement.situation, arrangement.ours
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, told: arrangement.reported.append(repr(told)))
    stream: Any = sock
    reader = asyncio.StreamReader()
    closes: Any = None
    if situation.call == "transport":
        options = cast("CloseOptions", options_of(situation))
        closes = _asyncio_server._Closes(options)  # pyright: ignore[reportPrivateUsage]
    for other in arrangement.others:
        other.ours.setblocking(False)
    if sock.fileno() != -1:
        sock.setblocking(False)
    if not situation.bare:
        stream = await _asyncio_stream(arrangement, reader, closes)
        data = arrangement.write()
        if data:
            stream.write(data)
            arrangement.written += len(data)
            await asyncio.sleep(0)
    _prepare(arrangement)
    task = asyncio.current_task()
    assert task is not None
    timer: asyncio.TimerHandle | None = None

    def send_file(file: BinaryIO) -> Awaitable[object]:
        return loop.sendfile(stream.transport, file)

    async with _beside_a_task(arrangement, lambda: reader.read(65536), send_file):
        if situation.interrupt == "stopped":
            timer = loop.call_later(STOPS_AFTER, task.cancel)
        try:
            with probe.watch():
                if closes is None and not plain:
                    probe.result = await _ask(graceful_close.asyncio, stream, arrangement)
                else:
                    stream.close()
                    if not situation.bare:
                        with suppress(OSError, TimeoutError):
                            await asyncio.wait_for(stream.wait_closed(), _DEADLINE)
                    if closes is not None and not plain:
                        await closes.wait()
        except asyncio.CancelledError:
            probe.report.stopped = True
            task.uncancel()
        if timer is not None:
            timer.cancel()


async def _by_trio(arrangement: Arrangement, probe: Probe, plain: bool) -> None:
    situation = arrangement.situation
    raw = trio.socket.from_stdlib_socket(arrangement.ours)
    stream: Any = raw
    if not situation.bare:
        stream = trio.SocketStream(raw)
        context = arrangement.context()
        if context is None:
            _write_beneath(arrangement)
        else:
            arrangement.secure()
            stream = trio.SSLStream(stream, context, **arrangement.tls_side())
            if situation.tls != "half":
                await stream.do_handshake()
                await _secured(arrangement)
                await stream.send_all(arrangement.write())
                arrangement.written += len(arrangement.write())
    await anyio.lowlevel.checkpoint()  # loads anyio's backend while descriptors are left
    for other in arrangement.others:
        other.stream = trio.socket.from_stdlib_socket(other.ours)
    _prepare(arrangement)
    async with _beside_a_task(arrangement, lambda: stream.receive_some(65536)):
        with trio.CancelScope() as scope:
            if situation.interrupt == "stopped":
                scope.deadline = trio.current_time() + STOPS_AFTER
            with probe.watch():
                if not plain:
                    probe.result = await _ask(graceful_close.trio, stream, arrangement)
                elif situation.bare:
                    stream.close()
                else:
                    with trio.move_on_after(_DEADLINE), suppress(trio.BrokenResourceError):
                        await stream.aclose()
        probe.report.stopped = scope.cancelled_caught


async def _anyio_stream(sock: socket.socket) -> SocketStream:
    unix = sock.family == socket.AF_UNIX
    return await (UNIXSocketStream if unix else SocketStream).from_socket(sock)


async def _by_anyio(arrangement: Arrangement, probe: Probe, plain: bool) -> None:
    situation, sock = arrangement.situation, arrangement.ours
    unix = sock.family == socket.AF_UNIX
    raw = await _anyio_stream(sock)
    stream: Any = raw
    context = arrangement.context()
    if context is not None:
        arrangement.secure()
        server = situation.origin != "connect"
        stream = await TLSStream.wrap(
            raw,
            server_side=server,
            ssl_context=context,
            hostname=None if server else NAME,
        )
        await _secured(arrangement)
    for other in arrangement.others:
        other.stream = await _anyio_stream(other.ours)
    data = arrangement.write()
    if situation.wrote == "more" and (unix or situation.driver == "anyio on trio"):
        _write_beneath(arrangement)
    elif data:
        # asyncio's transport accepts everything immediately, and then waits for the peer to read.
        seconds = 0.1 if situation.transport else _DEADLINE
        with anyio.move_on_after(seconds), suppress(anyio.BrokenResourceError):
            await stream.send(data)
        arrangement.written += len(data)
    _prepare(arrangement)
    async with _beside_a_task(arrangement, stream.receive):
        deadline = STOPS_AFTER if situation.interrupt == "stopped" else 60
        with anyio.move_on_after(deadline) as scope:
            with probe.watch():
                if not plain:
                    probe.result = await _ask(graceful_close.anyio, stream, arrangement)
                else:
                    with anyio.move_on_after(_DEADLINE), suppress(anyio.BrokenResourceError):
                        await stream.aclose()
        probe.report.stopped = scope.cancelled_caught
