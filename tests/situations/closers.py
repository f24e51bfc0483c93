"""The call in each driver: the library's, or the plain close that the library replaces."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from time import monotonic
from typing import Any, BinaryIO

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
from graceful_close import CloseResult

from .build import Arrangement
from .options import options_of
from .probe import STOPS_AFTER, Probe

# The limit for a plain close, for a send, and for the Reaper of a listener, in seconds.
_PATIENCE = 3.0
_ENDS_WITHIN = 1.0


class RollBack(Exception):  # noqa: N818
    """The exception of a body of `closing`."""


def run(arrangement: Arrangement, probe: Probe, *, plain: bool = False) -> None:
    """Close the connection as the situation requires, or plainly."""
    driver = arrangement.situation.driver
    match driver:
        case "blocking" | "Reaper" | "listener":
            _by_threads(arrangement, probe, plain)
        case "asyncio" | "uvloop":
            with asyncio.Runner(loop_factory=EVENT_LOOPS[driver]) as runner:
                runner.run(_by_asyncio(arrangement, probe, plain))
        case "trio":
            trio.run(_by_trio, arrangement, probe, plain)
        case _:
            backend = driver.removeprefix("anyio on ")
            anyio.run(_by_anyio, arrangement, probe, plain, backend=backend)


# --- threads -------------------------------------------------------------------------------------


def _by_threads(arrangement: Arrangement, probe: Probe, plain: bool) -> None:
    situation = arrangement.situation
    stream: socket.socket = arrangement.ours
    context = arrangement.context()
    if context is not None:
        server = situation.origin != "connect"
        arrangement.secure()
        stream.settimeout(_PATIENCE)
        secured = context.wrap_socket(
            stream,
            server_side=server,
            server_hostname=None if server else NAME,
            do_handshake_on_connect=False,
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
            {"blocking": None, "timeout": _PATIENCE, "non-blocking": 0}[situation.mode]
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
            probe.result = _call(arrangement, stream)


def _call(arrangement: Arrangement, stream: socket.socket) -> CloseResult | None:
    situation, reaper = arrangement.situation, arrangement.reaper
    options = options_of(situation)
    if situation.driver == "listener":
        stream.close()
        plainly = situation.holder == "child" or situation.option == "linger 0"
        return None if plainly else _await_result(arrangement)
    if reaper is not None:
        return reaper.submit(stream).result(_PATIENCE)
    match situation.call:
        case "graceful_close":
            return graceful_close.graceful_close(stream, **options)
        case "timed_linger_close":
            return graceful_close.timed_linger_close(stream, **_lingering(options))
        case "abortive_close":
            return graceful_close.abortive_close(stream)
        case "close_all":
            other = arrangement.other
            assert other is not None
            result, other.result = graceful_close.close_all([stream, other.ours], **options)
            return result
        case call:
            closing = graceful_close.closing(stream, **options)
            with suppress(RollBack), closing:
                if call == "roll back":
                    raise RollBack
            return closing.result


def _lingering(options: dict[str, Any]) -> dict[str, Any]:
    chosen = {"seconds": options["timeout"]}
    if "on_timeout" in options:
        chosen["on_timeout"] = options["on_timeout"]
    return chosen


def _await_result(arrangement: Arrangement) -> CloseResult | None:
    until = monotonic() + _PATIENCE
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
    situation, other = arrangement.situation, arrangement.other
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
            assert other is not None
            result, other.result = await module.close_all([stream, other.stream], **options)
        case call:
            closing = module.closing(stream, **options)
            with suppress(RollBack):
                async with closing:
                    if call == "roll back":
                        raise RollBack
            result = closing.result
    return result


async def _by_asyncio(arrangement: Arrangement, probe: Probe, plain: bool) -> None:
    situation, sock = arrangement.situation, arrangement.ours
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, told: arrangement.reported.append(repr(told)))
    stream: Any = sock
    reader = asyncio.StreamReader()
    if arrangement.other is not None:
        arrangement.other.ours.setblocking(False)
    if sock.fileno() != -1:
        sock.setblocking(False)
    if not situation.bare:
        protocol = asyncio.StreamReaderProtocol(reader)
        context = arrangement.context()
        arrangement.secure()
        if situation.origin == "connect":
            transport, _ = await loop.create_connection(
                lambda: protocol,
                sock=sock,
                ssl=context,
                server_hostname=NAME if context is not None else None,
            )
        else:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, sock, ssl=context
            )
        await _secured(arrangement)
        stream = asyncio.StreamWriter(transport, protocol, reader, loop)
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
                if not plain:
                    probe.result = await _ask(graceful_close.asyncio, stream, arrangement)
                else:
                    stream.close()
                    if not situation.bare:
                        with suppress(OSError, TimeoutError):
                            await asyncio.wait_for(stream.wait_closed(), _PATIENCE)
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
            server = situation.origin != "connect"
            arrangement.secure()
            stream = trio.SSLStream(
                stream, context, server_side=server, server_hostname=None if server else NAME
            )
            if situation.tls != "half":
                await stream.do_handshake()
                await _secured(arrangement)
                await stream.send_all(arrangement.write())
                arrangement.written += len(arrangement.write())
    if arrangement.other is not None:
        arrangement.other.stream = trio.socket.from_stdlib_socket(arrangement.other.ours)
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
                    with trio.move_on_after(_PATIENCE), suppress(trio.BrokenResourceError):
                        await stream.aclose()
        probe.report.stopped = scope.cancelled_caught


async def _by_anyio(arrangement: Arrangement, probe: Probe, plain: bool) -> None:
    situation, sock = arrangement.situation, arrangement.ours
    unix = sock.family == socket.AF_UNIX
    wrap = UNIXSocketStream.from_socket if unix else SocketStream.from_socket
    raw = await wrap(sock)
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
    if arrangement.other is not None:
        arrangement.other.stream = await SocketStream.from_socket(arrangement.other.ours)
    data = arrangement.write()
    if situation.wrote == "more" and (unix or situation.driver == "anyio on trio"):
        _write_beneath(arrangement)
    elif data:
        # asyncio's transport accepts everything immediately, and then waits for the peer to read.
        patience = 0.1 if situation.transport else _PATIENCE
        with anyio.move_on_after(patience), suppress(anyio.BrokenResourceError):
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
                    with anyio.move_on_after(_PATIENCE), suppress(anyio.BrokenResourceError):
                        await stream.aclose()
        probe.report.stopped = scope.cancelled_caught
