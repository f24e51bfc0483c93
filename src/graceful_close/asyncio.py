"""The functions of `graceful_close`, for asyncio's and uvloop's streams, transports and sockets.

A transport closes by itself: it flushes its buffer, sends TLS's close_notify, and closes its
descriptor, which resets the connection if there is unread input. So a dup of the descriptor is taken
before `transport.close()`. The dup keeps the connection open after the end of the transport, and the
close sequence runs on the dup.

The module uses public interfaces of asyncio and uvloop, except to find the socket that a GracefulListener
accepted, the state of a TLS transport that another task has closed, the loop of a transport, and a
sendfile() in progress. If a private name is missing, the module works without this knowledge.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from functools import partial
from typing import TypeVar

from ._async import AsyncClosing, TaskClose
from ._async_reaper import AsyncReaper
from ._asyncio_first_look import FirstLook, holds_nothing
from ._asyncio_multiplexer import multiplexer
from ._asyncio_proxy import TransportProxy
from ._asyncio_server import graceful_factory, graceful_loop
from ._asyncio_transport import (
    FEW_TURNS,
    Taker,
    TransportTakeover,
    reset,
    some_turns,
    take_over,
)
from ._asyncio_view import can_watch, in_a_thread, info_of, is_elsewhere, open_socket_of
from ._blocking import abort_on, drive
from ._clock import monotonic
from ._close_all import close_all_on as close_all_in_thread
from ._close_all import close_at_once
from ._linger import LingerPolicy
from ._options import Options, options_of, require_seconds
from ._record import replace
from ._result import CloseOutcome, CloseResult
from ._sockets import peer_of, require_stream
from ._step import FLUSH
from ._teardown import already_closed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from typing_extensions import Unpack

    from ._async_reaper import Close, Start
    from ._options import CloseOptions, OnTimeout

    Stream = asyncio.StreamWriter | asyncio.Transport | socket.socket

    # The object behind a Stream that is closed.
    End = asyncio.Transport | socket.socket

S = TypeVar("S", bound="Stream")

__all__ = [
    "Reaper",
    "abortive_close",
    "close_all",
    "closing",
    "graceful_close",
    "graceful_factory",
    "graceful_loop",
    "timed_linger_close",
]

# How many transports are closed before the event loop gets its turns. Heuristic: some milliseconds
# of work, and this many additional descriptors at a time.
_BATCH = 64


async def graceful_close(
    stream: Stream,
    **options: Unpack[CloseOptions],
) -> CloseResult:
    """Close a connection so that the peer can read everything that was written to it.

        writer.write(reply)
        result = await graceful_close(writer, timeout=5)

    Call it instead of `writer.close()` and `writer.wait_closed()`. It flushes the buffer of
    the transport, sends close_notify if the transport uses TLS, sends our FIN, reads and discards
    input until the peer's FIN, then closes.

    While the transport holds bytes, `timeout` limits the silence and not the total time: the close
    gives up after `timeout` seconds in which fewer than 4 KiB were sent. So n bytes take at most
    timeout * (1 + n / 4096) seconds, and a peer that keeps reading gets everything. Input counts,
    too, up to 1 GiB (or `drain_limit`), because a peer may send its whole request before it reads.
    After the flush `timeout` is the total deadline.

    When this returns or raises, the transport is closed, connection_lost() of its protocol was
    called, and the descriptor is released. Only an invalid argument leaves the stream untouched.
    Network failures are in the result. On cancellation the connection is closed immediately and the
    cancellation propagates. The loop never blocks in a SO_LINGER that was set on the socket.

    Args:
        stream: An `asyncio.StreamWriter`, a transport of asyncio or uvloop (TCP, UNIX or TLS over
            them), or a stream socket that no task waits on. The close of a stream that is already
            closing is completed; a closed stream is not touched.
        options: Those of `graceful_close.graceful_close`.

    Returns:
        How the connection ended. ALREADY_CLOSED also means that another task is closing the stream,
        or that the transport had closed itself because the peer reset the connection or, with TLS,
        sent close_notify.

    Raises:
        TypeError: `stream` has another type (a pipe, a subprocess, UDP), or an argument has the
            wrong type.
        ValueError: An argument is out of range.
        RuntimeError: The transport belongs to another event loop.
        NotImplementedError: A TLS transport of a loop without `add_reader()`.
        OSError: No descriptor was left for the dup (EMFILE). A connection that needed it is reset if
            the transport held bytes, and otherwise closed without waiting.

    Notes:
        `notified` is True when close_notify was written to the kernel. Neither close_notify nor the
        FIN waits for the peer's, or for `ssl_shutdown_timeout`. With TLS over TLS only the inner
        session sends its close_notify.
        With TLS on uvloop, the transport reads the input that arrives before its end: these bytes
        are not in `drained` and not limited by `drain_limit`.
        A transport that was aborted before this call looks like one that was closed with an empty
        buffer. The result then describes only the bytes that the transport had written to the kernel.
        On a loop without `add_reader()` (Windows' ProactorEventLoop), the blocking `graceful_close`
        waits in a thread of the loop's default executor.
    """
    since = monotonic()
    checked = options_of("graceful_close", options)
    return await _close(TaskClose(checked, since), _require_end(stream))


async def timed_linger_close(
    stream: Stream, seconds: float, *, on_timeout: OnTimeout = LingerPolicy.BACKGROUND
) -> CloseResult:
    """Wait for the peer's kernel to acknowledge everything, at most `seconds`, then close.

        result = await timed_linger_close(writer, 2.5)

    It flushes the transport first, with the same deadline, and does not wait for the peer's FIN. The
    guarantees are those of `graceful_close`.

    Args:
        stream: As for `graceful_close`.
        seconds: The deadline, 0 or more; not rounded, and not limited by SO_LINGER's range.
        on_timeout: As for `graceful_close`.

    Returns:
        DELIVERED if everything was acknowledged; see `graceful_close.timed_linger_close`.

    Raises:
        TypeError, ValueError, RuntimeError, NotImplementedError, OSError: As `graceful_close`.
    """
    since = monotonic()
    require_seconds("seconds", seconds)
    checked = Options(seconds, until=CloseOutcome.DELIVERED, on_timeout=on_timeout)
    return await _close(TaskClose(checked, since), _require_end(stream))


async def abortive_close(stream: Stream) -> CloseResult:
    """Discard a connection: drop unsent data and send RST to the peer.

        await abortive_close(writer)

    Never waits for the network; the transport needs one or two turns of the loop to end. When this
    returns or raises, the transport is closed, connection_lost() of its protocol was called, and
    the descriptor is released. A TLS peer receives no close_notify.

    Args:
        stream: As for `graceful_close`.

    Returns:
        ABORTED, with the number of dropped bytes in `unacked`, including the transport's buffer
        (None with TLS, where it is not visible); or NOT_CONNECTED, PEER_RESET, ALREADY_CLOSED.

    Raises:
        TypeError, RuntimeError: As for `graceful_close`.
        OSError: No descriptor was left (EMFILE). The connection is reset nevertheless.
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
        # It resets the connection itself, or else the release of the transport's descriptor does.
        result = abort_on(takeover.sock)
    finally:
        takeover.sock.close()  # after an interrupt
        await takeover.end()
    unacked = None if takeover.tls or result.unacked is None else result.unacked + unsent
    return replace(result, elapsed=monotonic() - since, unacked=unacked)


async def close_all(
    streams: Iterable[Stream],
    **options: Unpack[CloseOptions],
) -> list[CloseResult]:
    """`graceful_close` for many streams at the same time, with one deadline.

        results = await close_all(connections, timeout=10)

    Silent peers cost the deadline once, not once each. When this returns or raises, every stream is
    closed. Only if an argument is invalid, no stream is touched. On cancellation all streams are
    closed immediately and the cancellation propagates.

    Args:
        streams: As for `graceful_close`, in any mixture. The same one twice, or a writer and its
            transport, is closed once, and both places get its result.
        options: Those of `graceful_close.graceful_close`: `timeout` applies to all streams
            together, the others to each stream.

    Returns:
        How each connection ended, in the order of `streams`.

    Raises:
        TypeError: An item of `streams` has an unsupported type (the message has its index), or an
            argument has the wrong type.
        ValueError, RuntimeError, NotImplementedError, OSError: As `graceful_close`.
    """
    since = monotonic()
    checked = options_of("close_all", options)
    ends: list[End] = []
    for index, stream in enumerate(streams):
        try:
            ends.append(_require_end(stream))
        except (TypeError, RuntimeError) as error:  # NotImplementedError is a RuntimeError
            raise type(error)(f"streams[{index}]: {error}") from None
    results = await _close_many(checked, {id(end): end for end in ends}, since)
    return [results[id(end)] for end in ends]


class closing(AsyncClosing[S]):  # noqa: N801 (named for contextlib.closing)
    """A context manager that commits or rolls back a stream.

    When the block ends normally, it calls `graceful_close`: a peer that reads the end of the stream
    knows that the message is complete. When the block raises or is cancelled, it calls
    `abortive_close`: a peer that reads a reset knows that the message is not complete. In both cases
    the stream is closed afterwards. An exception of the block propagates, even if the close fails.

        async with closing(writer, timeout=10) as writer:
            writer.write(reply)

    Args:
        stream: As for `graceful_close`.
        options: Those of `graceful_close`.

    Attributes:
        result: How the connection ended; None inside the block.

    Raises:
        TypeError, ValueError, RuntimeError, NotImplementedError: As for `graceful_close`, raised by
            the constructor.
    """

    def __init__(  # noqa: D107 (the docstring is that of the class)
        self,
        stream: S,
        **options: Unpack[CloseOptions],
    ) -> None:
        checked = options_of("closing", options)
        _require_end(stream)  # and again at the end: start_tls() replaces a writer's transport
        super().__init__(
            stream,
            lambda: _close(TaskClose(checked, monotonic()), _require_end(stream)),
            lambda: abortive_close(stream),
        )


class Reaper(AsyncReaper["Stream"]):
    """Closes streams gracefully in the background, for code that cannot wait.

        async with Reaper(timeout=10) as reaper:
            ...
            reaper.submit(transport)  # returns at once

    It serves protocols, which the loop calls and which cannot await. At the end of the block no stream
    is accepted any more, and the pending closes are finished, each within its own deadline. When the
    block is cancelled, they are closed immediately. `len(reaper)` is their number, `stats()` counts the
    closed ones by outcome, and `overflowed` those that made room for others.

    Args:
        options: Those of `graceful_close.Reaper`: each connection's `timeout` (30 seconds by default),
            `idle_timeout` (5) and so on; `max_sockets`, the largest number of pending closes, and
            `on_overflow`, with which the oldest makes room; `on_close`, called with each result.

    Raises:
        TypeError, ValueError: An option is unknown, has the wrong type, or is out of range.

    Notes:
        Exceptions of `on_close`, and closes that raise (EMFILE), are logged to `graceful_close`.

    .. versionadded:: 0.2.0
    """

    def _prepare(self, stream: Stream) -> tuple[Close, Callable[[], object]]:
        end = _require_end(stream)
        return partial(_close, end=end), partial(_peer_of, end)

    def _clock(self) -> Callable[[], float]:
        return monotonic

    def _new_group(self) -> asyncio.TaskGroup:
        return asyncio.TaskGroup()

    def _start_in(self, group: asyncio.TaskGroup) -> Start:
        return lambda run: group.create_task(run())

    def _expire(self, close: TaskClose, on_timeout: OnTimeout) -> None:
        if can_watch(asyncio.get_running_loop()):  # otherwise a thread waits until its deadline
            multiplexer().expire(close, on_timeout)


# --- what can be closed ----------------------------------------------------------------------


def _require_end(stream: object, *, waited_for: bool = True) -> End:
    """Return the object to close: a transport or a socket.

    Raises:
        TypeError: It is neither of them, or not a stream.
        RuntimeError: Another event loop runs it.
        NotImplementedError: The caller waits for it, and this loop cannot.
    """
    end: Any = stream.transport if isinstance(stream, asyncio.StreamWriter) else stream
    if isinstance(end, TransportProxy):
        end = end.plain
    if isinstance(end, socket.socket):
        require_stream(end)
        return end
    # By their methods, because uvloop's transports do not derive from asyncio.Transport.
    stream_like = hasattr(end, "get_protocol") and hasattr(end, "write_eof")
    if not stream_like or hasattr(end, "sendto"):  # the latter is UDP's
        raise TypeError(
            f"a StreamWriter, a transport or a stream socket is needed, not {end!r}"
        )
    transport: asyncio.Transport = end
    sock = info_of(transport, "socket")
    # A TLS transport that has ended has no socket. A pipe never has one.
    ended = sock is None and transport.is_closing() and info_of(transport, "pipe") is None
    if not ended and (sock is None or _is_of_a_pipe(sock)):
        raise TypeError(f"a transport over a stream socket is needed, not {end!r}")
    if is_elsewhere(transport):
        raise RuntimeError(f"{transport!r} belongs to another event loop")
    tls = info_of(transport, "ssl_object") is not None
    if tls and waited_for and not can_watch(asyncio.get_running_loop()):
        raise NotImplementedError("TLS needs an event loop that has add_reader()")
    return transport


def _is_of_a_pipe(sock: Any) -> bool:
    """Whether this is no socket: uvloop's pipes have an object that claims to be one."""
    if not type(sock).__module__.startswith("uvloop") or sock.fileno() == -1:
        return False
    return not stat.S_ISSOCK(os.fstat(sock.fileno()).st_mode)


def _peer_of(end: End) -> object:
    return peer_of(end) if isinstance(end, socket.socket) else info_of(end, "peername")


def _closed_before(since: float) -> CloseResult:
    return already_closed(monotonic() - since)


# --- closing one, and many -------------------------------------------------------------------


async def _close(close: TaskClose, end: End) -> CloseResult:
    """`graceful_close` with validated arguments."""
    if isinstance(end, socket.socket):
        return await _drive(close, end)
    if _is_taken(end):
        await some_turns(until=lambda: open_socket_of(end) is None)
        return _closed_before(close.since)
    if holds_nothing(end):
        return await _close_empty(close, end)
    takeover = await take_over(end)
    if takeover is None:
        return _closed_before(close.since)
    return await _finish(takeover, close)


def _is_taken(transport: asyncio.Transport) -> bool:
    """Whether another task is closing a transport gracefully."""
    try:
        return isinstance(transport.get_protocol(), Taker)
    except AttributeError:
        return False  # asyncio's TLS transport has no state left when it is closed twice


async def _close_empty(close: TaskClose, transport: asyncio.Transport) -> CloseResult:
    mux = multiplexer()
    first = FirstLook(transport, close)
    await first.look()
    if first.result is not None:
        return first.result
    try:
        mux.add(close, first.step)
    except BaseException:
        mux.drop(close)
        raise
    return await mux.end_of(close)


async def _finish(takeover: TransportTakeover, close: TaskClose) -> CloseResult:
    """Wait for the transport's end, and close the dup on every path."""
    try:
        await takeover.begin_later()
        if takeover.tls:
            close.close_notify = (False, None)  # until it is flushed
        flush = None if takeover.is_empty else takeover
        result = await _drive(close, takeover.sock, flush)
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
    """`close_all` with validated arguments."""
    results: dict[int, CloseResult] = {}
    together: dict[int, socket.socket] = {}  # closed together, with one epoll
    alone: dict[int, asyncio.Task[CloseResult]] = {}  # TLS, and transports with unsent data
    takeovers: dict[int, TransportTakeover] = {}

    async def sort(batch: list[int]) -> None:
        for _ in range(FEW_TURNS):
            await asyncio.sleep(0)
        for name in batch:
            takeover = takeovers[name]
            if takeover.has_ended_well:
                together[name] = takeover.sock
            else:
                alone[name] = asyncio.create_task(_finish(takeover, TaskClose(options, since)))

    async def begin(left: dict[int, End]) -> None:
        """Begin to close all of them, or as many as the free descriptors permit."""
        batch: list[int] = []
        for name, end in list(left.items()):
            if isinstance(end, socket.socket):
                together[name] = end
                del left[name]
                continue
            if _is_taken(end):
                results[name] = _closed_before(since)
                del left[name]
                continue
            try:
                takeover = await take_over(end, or_reset=not (batch or together or alone))
            except OSError:
                if not (batch or together or alone):
                    raise
                break  # EMFILE: the others wait until these have released theirs
            del left[name]
            if takeover is None:
                results[name] = _closed_before(since)
                continue
            takeovers[name] = takeover
            await takeover.begin_later()
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
    """Close immediately, without lingering; `over`: awaiting is not possible."""
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
        # These tasks close their descriptors themselves, after the loop has stopped watching them:
        # libuv aborts the process if a descriptor that it watches is closed.
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
    close: TaskClose, sock: socket.socket, flush: TransportTakeover | None = None
) -> CloseResult:
    """Close a socket: the dup of a transport, or one that the caller has."""
    if can_watch(asyncio.get_running_loop()):
        return await multiplexer().close(close, sock, flush)
    close.flush = flush is not None
    try:
        step = close.begin(sock)
        while flush is not None and step is FLUSH:
            step = await flush.go_on(close)
        await in_a_thread(drive, close, step)
        return close.release()
    except BaseException:
        close.abandon(sock)  # the thread notices at its deadline
        raise


async def _drive_all(
    options: Options, socks: list[socket.socket], since: float
) -> list[CloseResult]:
    if not socks:
        return []
    if can_watch(asyncio.get_running_loop()):
        return await multiplexer().close_each(
            [(TaskClose(options, since), sock) for sock in socks]
        )
    return await in_a_thread(close_all_in_thread, options, socks, since)
