"""The closes of `graceful_close`, for asyncio's streams, transports and sockets, and for uvloop's.

A transport closes by itself: it flushes its buffer, says TLS's close_notify, and lets go of its
descriptor, which resets the connection if there is input that nobody has read. So a dup of the
descriptor is taken before `transport.close()`. It keeps the connection open past the transport's
own end, and the close sequence runs on it. Everything here goes by public interfaces alone.
"""

from __future__ import annotations

import asyncio
import socket
from time import monotonic
from typing import TypeVar

from ._async import AsyncClosing, TurnFirst, close_all_on, close_on
from ._asyncio_proxy import TransportProxy
from ._asyncio_server import graceful_factory, graceful_loop
from ._asyncio_transport import (
    FEW_TURNS,
    TransportTakeover,
    can_watch,
    info_of,
    reset,
    take_over,
    until_woken,
    wake,
)
from ._blocking import abort_on, drive
from ._close_all import close_all_on as close_all_in_thread
from ._close_all import close_at_once
from ._connection import Connection
from ._linger import LingerPolicy
from ._options import Options, options_of, require_seconds
from ._record import replace
from ._result import CloseOutcome, CloseResult
from ._sockets import require_stream
from ._teardown import FLUSH, already_closed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from typing_extensions import Unpack

    from ._options import CloseOptions, OnTimeout

    Stream = asyncio.StreamWriter | asyncio.Transport | socket.socket

    # What there is to close behind it.
    End = asyncio.Transport | socket.socket

S = TypeVar("S", bound="Stream")

__all__ = [
    "abortive_close",
    "close_all",
    "closing",
    "graceful_close",
    "graceful_factory",
    "graceful_loop",
    "timed_linger_close",
]

# How many transports are closed before they get their turns. Arbitrary: some milliseconds of
# work, and so many descriptors more at a time.
_BATCH = 64


async def graceful_close(
    stream: Stream,
    **options: Unpack[CloseOptions],
) -> CloseResult:
    """End a connection so that the peer can read all that was written to it.

    Call it instead of `writer.close()` and `writer.wait_closed()`. It flushes what the transport
    holds, says close_notify if it speaks TLS, sends our FIN, reads and throws away what the peer
    still sends, until its FIN, then lets go.

    While the transport holds bytes, silence is the bound and not the total: it is given up after
    `timeout` seconds in which fewer than 4 KiB moved, so that n bytes take timeout * (1 + n / 4096)
    seconds at most, and a reader that makes progress gets everything. After that `timeout` counts
    as ever.

    When this returns or raises, the transport is closed, its protocol has had connection_lost(),
    and no descriptor is left. What the network does is in the result. A cancellation closes at
    once and goes on. The loop never waits for a SO_LINGER that somebody set.

    Args:
        stream: An `asyncio.StreamWriter`, a transport of asyncio's or uvloop's (TCP, UNIX or TLS
            over them), or a stream socket that nobody is waiting on. One that is closing already
            is finished off; one that is closed is left alone.
        options: Those of `graceful_close.graceful_close`.

    Returns:
        How the connection ended. ALREADY_CLOSED is also what a transport says that closed itself
        because the peer reset the connection or, under TLS, said close_notify.

    Raises:
        TypeError: `stream` is none of these (a pipe, a subprocess, UDP), or an argument is of
            the wrong kind.
        ValueError: An argument is out of its range.
        NotImplementedError: A TLS transport of a loop without `add_reader()`.
        OSError: There was no descriptor left for the dup (EMFILE). The connection is reset.

    Notes:
        `notified` is True once close_notify was in the kernel; it and the FIN do not wait for the
        peer's, and for no `ssl_shutdown_timeout`. With TLS over TLS only the inner session gets its
        close_notify.
        Under TLS on uvloop, what comes before the transport has ended is read by the transport: it
        is not in `drained` and not under `drain_limit`.
        On a loop without `add_reader()`, Windows' ProactorEventLoop, the waiting is done by the
        blocking `graceful_close` in a thread of the loop's default executor.
    """
    since = monotonic()
    checked = options_of("graceful_close", options)
    return await _close(checked, _require_end(stream), since)


async def timed_linger_close(
    stream: Stream, seconds: float, *, on_timeout: OnTimeout = LingerPolicy.BACKGROUND
) -> CloseResult:
    """Wait for the peer's kernel to acknowledge everything, at most `seconds`, then close.

    It flushes the transport first, in the same time, and does not wait for the peer's FIN. The
    promises are those of `graceful_close`.

    Args:
        stream: As for `graceful_close`.
        seconds: How long to wait, 0 or more; not rounded, and not bounded by SO_LINGER's range.
        on_timeout: As for `graceful_close`.

    Returns:
        DELIVERED if everything was acknowledged; see `graceful_close.timed_linger_close`.

    Raises:
        TypeError, ValueError, NotImplementedError, OSError: As `graceful_close`.
    """
    since = monotonic()
    require_seconds("seconds", seconds)
    checked = Options(seconds, until=CloseOutcome.DELIVERED, on_timeout=on_timeout)
    return await _close(checked, _require_end(stream), since)


async def abortive_close(stream: Stream) -> CloseResult:
    """Throw a connection away: drop what is unsent and tell the peer with RST.

    Never waits for the network; the transport takes a turn or two of the loop to end. When this
    returns or raises, the transport is closed, its protocol has had connection_lost(), and the
    descriptor is released. A TLS peer gets no close_notify.

    Args:
        stream: As for `graceful_close`.

    Returns:
        ABORTED, with the count of what was dropped in `unacked`, the transport's buffer included
        (None under TLS, where that cannot be seen); or NOT_CONNECTED, PEER_RESET, ALREADY_CLOSED.

    Raises:
        TypeError: `stream` is nothing that `graceful_close` takes.
        OSError: There was no descriptor left (EMFILE). The connection is reset all the same.
    """
    since = monotonic()
    end = _require_end(stream, waited_for=False)
    if isinstance(end, socket.socket):
        return abort_on(end)
    takeover = await take_over(end)
    if takeover is None:
        return _closed_before(since)
    try:
        unsent = end.get_write_buffer_size()
        result = abort_on(
            takeover.sock
        )  # the connection itself, or with the transport's descriptor
    finally:
        await takeover.end()
    unacked = None if takeover.tls or result.unacked is None else result.unacked + unsent
    return replace(result, elapsed=monotonic() - since, unacked=unacked)


async def close_all(
    streams: Iterable[Stream],
    **options: Unpack[CloseOptions],
) -> list[CloseResult]:
    """`graceful_close` for many streams at once, under one deadline.

    Peers that never answer cost the deadline once, not once each. When this returns or raises,
    every stream is closed; only if something was wrong with the arguments, none is touched. A
    cancellation closes all at once and goes on.

    Args:
        streams: As for `graceful_close`, in any mixture. The same one twice, or a writer and its
            transport, is closed once, and both places get its result.
        options: Those of `graceful_close.graceful_close`: `timeout` for all together, the others
            for each.

    Returns:
        How each connection ended, in the order of `streams`.

    Raises:
        TypeError: One of `streams` is nothing that can be closed here (the message says which),
            or an argument is of the wrong kind.
        ValueError, NotImplementedError, OSError: As `graceful_close`.
    """
    since = monotonic()
    checked = options_of("close_all", options)
    ends: list[End] = []
    for index, stream in enumerate(streams):
        try:
            ends.append(_require_end(stream))
        except (TypeError, NotImplementedError) as error:
            raise type(error)(f"streams[{index}]: {error}") from None
    results = await _close_many(checked, {id(end): end for end in ends}, since)
    return [results[id(end)] for end in ends]


class closing(AsyncClosing[S]):  # noqa: N801 (named for contextlib.closing)
    """Commit and rollback for a stream.

    When the body ends, `graceful_close`: a peer that sees the end of the stream knows that the
    message is whole. When the body raises, and a cancellation counts, `abortive_close`: a peer
    that sees a reset knows that it is not. Either way the stream is closed when the block is left,
    and what the body raised goes on, whatever the closing met.

        async with closing(writer, timeout=10) as writer:
            writer.write(reply)

    Args:
        stream: As for `graceful_close`.
        options: Those of `graceful_close`.

    Attributes:
        result: How the connection ended; None until the block is left.

    Raises:
        TypeError, ValueError, NotImplementedError: As `graceful_close`, when it is made, not when it is left.
    """

    def __init__(  # noqa: D107 (the class says it)
        self,
        stream: S,
        **options: Unpack[CloseOptions],
    ) -> None:
        checked = options_of("closing", options)
        _require_end(stream)  # and again at the end: start_tls() replaces a writer's transport
        super().__init__(
            stream,
            lambda: _close(checked, _require_end(stream), monotonic()),
            lambda: abortive_close(stream),
        )


# --- what can be closed ----------------------------------------------------------------------


def _require_end(stream: object, *, waited_for: bool = True) -> End:
    """What there is to close: a transport, or a socket.

    Raises:
        TypeError: It is neither, or no stream.
        NotImplementedError: It is to be waited for, and this loop cannot.
    """
    end: Any = stream.transport if isinstance(stream, asyncio.StreamWriter) else stream
    if isinstance(end, TransportProxy):
        end = end.plain
    if isinstance(end, socket.socket):
        require_stream(end)
        return end
    # By what they can do: uvloop's are no subclasses of asyncio.Transport.
    if not (hasattr(end, "get_protocol") and hasattr(end, "write_eof")):
        raise TypeError(
            f"a StreamWriter, a transport or a stream socket is needed, not {end!r}"
        )
    transport: asyncio.Transport = end
    sock = info_of(transport, "socket")
    # One of TLS that has ended has no socket any more. A pipe never had.
    ended = sock is None and transport.is_closing() and info_of(transport, "pipe") is None
    if not ended and (sock is None or sock.type != socket.SOCK_STREAM):
        raise TypeError(f"a transport over a stream socket is needed, not {end!r}")
    tls = info_of(transport, "ssl_object") is not None
    if tls and waited_for and not can_watch(asyncio.get_running_loop()):
        raise NotImplementedError("TLS needs an event loop that has add_reader()")
    return transport


def _closed_before(since: float) -> CloseResult:
    return already_closed(monotonic() - since)


# --- closing one, and many -------------------------------------------------------------------


async def _close(options: Options, end: End, since: float) -> CloseResult:
    """`graceful_close` with everything checked."""
    if isinstance(end, socket.socket):
        return await _drive(options, end, since)
    takeover = await take_over(end)
    if takeover is None:
        return _closed_before(since)
    return await _finish(takeover, options, since)


async def _finish(takeover: TransportTakeover, options: Options, since: float) -> CloseResult:
    """Wait for the transport's end and close the dup, whatever happens."""
    try:
        takeover.begin()
        flush = None if takeover.is_empty else takeover
        result = await _drive(options, takeover.sock, since, flush)
        await takeover.end()
        return result
    except BaseException as error:
        takeover.drop()
        if not isinstance(error, GeneratorExit):  # after which nothing may be awaited
            await takeover.end()
        raise


async def _close_many(
    options: Options, ends: dict[int, End], since: float
) -> dict[int, CloseResult]:
    """`close_all` with everything checked."""
    results: dict[int, CloseResult] = {}
    together: dict[int, socket.socket] = {}  # closed together, by one epoll
    alone: dict[int, asyncio.Task[CloseResult]] = {}  # TLS, and whatever has yet to be flushed
    takeovers: dict[int, TransportTakeover] = {}

    async def sort(batch: list[int]) -> None:
        for _ in range(FEW_TURNS):
            await asyncio.sleep(0)
        for name in batch:
            takeover = takeovers[name]
            if takeover.has_ended_well:
                together[name] = takeover.sock
            else:
                alone[name] = asyncio.create_task(_finish(takeover, options, since))

    async def begin(left: dict[int, End]) -> None:
        """Begin to close all of them, or as many as there are descriptors for."""
        batch: list[int] = []
        for name, end in list(left.items()):
            if isinstance(end, socket.socket):
                together[name] = end
                del left[name]
                continue
            try:
                takeover = await take_over(end, or_reset=not (batch or together or alone))
            except OSError:
                if not (batch or together or alone):
                    raise
                break  # EMFILE: the others wait until these have given theirs back
            del left[name]
            if takeover is None:
                results[name] = _closed_before(since)
                continue
            takeovers[name] = takeover
            takeover.begin()
            batch.append(name)
            if len(batch) == _BATCH:
                await sort(batch)
                batch = []
        await sort(batch)

    async def finish() -> None:
        closed = await _drive_all(options, list(together.values()), since)
        results.update(zip(together, closed, strict=True))
        if alone:
            await asyncio.wait(alone.values())
        for name, task in alone.items():
            results[name] = task.result()
        together.clear()
        alone.clear()

    try:
        left = dict(ends)
        while left:
            await begin(left)
            await finish()
    except BaseException as error:
        await _drop_many(ends, takeovers, alone, over=isinstance(error, GeneratorExit))
        raise
    return results


async def _drop_many(
    ends: dict[int, End],
    takeovers: dict[int, TransportTakeover],
    alone: dict[int, asyncio.Task[CloseResult]],
    *,
    over: bool,
) -> None:
    """Close at once, without lingering; `over`: nothing may be awaited any more."""
    for task in alone.values():
        task.cancel()
    for name, end in ends.items():
        if isinstance(end, socket.socket):
            close_at_once([end])
        elif name not in takeovers:
            reset(end)
        elif name not in alone:
            takeovers[name].drop()
    try:
        # These let go themselves, once nobody watches the descriptor any more: libuv aborts the
        # process over one that it is to watch and that is gone.
        if alone and not over:
            await asyncio.wait(alone.values())
    finally:
        for name in alone:
            takeovers[name].drop()  # a task that never began has not
    if not over:
        for takeover in takeovers.values():
            await takeover.end()


# --- waiting ---------------------------------------------------------------------------------


async def _drive(
    options: Options,
    sock: socket.socket,
    since: float,
    flush: TransportTakeover | None = None,
) -> CloseResult:
    loop = asyncio.get_running_loop()
    notified = (False, None) if flush is not None and flush.tls else None
    if can_watch(loop):
        wait = TurnFirst(_LoopWait(loop))
        return await close_on(options, sock, wait, since, notified, flush=flush)
    connection = Connection(options, since, flush=flush is not None)
    try:
        step = connection.begin(sock)
        while flush is not None and step is FLUSH:
            step = await flush.go_on(connection)
        await loop.run_in_executor(None, drive, connection, step)
        return connection.let_go()
    except BaseException:
        connection.abandon(sock)  # the thread finds out by its deadline
        raise


async def _drive_all(
    options: Options, socks: list[socket.socket], since: float
) -> list[CloseResult]:
    loop = asyncio.get_running_loop()
    if not socks:
        return []
    if can_watch(loop):
        return await close_all_on(options, socks, _LoopWait(loop), since)
    return await loop.run_in_executor(None, close_all_in_thread, options, socks, since)


class _LoopWait:
    """How asyncio waits; see `Wait`."""

    __slots__ = ("_loop",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    async def readable(self, descriptor: int, seconds: float) -> None:
        woken = self._loop.create_future()
        self._loop.add_reader(descriptor, wake, woken)
        try:
            await until_woken(woken, seconds)
        finally:
            self._loop.remove_reader(descriptor)

    async def writable(self, descriptor: int, seconds: float) -> None:
        woken = self._loop.create_future()
        self._loop.add_writer(descriptor, wake, woken)
        try:
            await until_woken(woken, seconds)
        finally:
            self._loop.remove_writer(descriptor)

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
