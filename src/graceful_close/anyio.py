"""The functions of `graceful_close`, for anyio's streams, on asyncio (uvloop, too) and on trio.

A stream's `aclose()` closes the descriptor, which resets the connection if there is unread input.
With unread input a TLS session cannot even send close_notify. So the descriptor is taken from the
stream (a dup, if the event loop keeps the descriptor), and the close sequence runs on that. The module
uses public interfaces only, except to find the event loop of a stream.

It requires anyio 4.16 or newer. Before that, `aclose()` on asyncio sends a FIN of its own, and a TLS
session whose send() was cancelled is not marked as broken.
"""

from __future__ import annotations

from functools import partial
from typing import TypeVar

import anyio
import anyio.abc
import anyio.lowlevel

from ._anyio_stream import End, Taken, clock, multiplexer, new_close, now
from ._async import AsyncClosing
from ._async_reaper import AsyncReaper
from ._blocking import abort_on
from ._linger import LingerPolicy
from ._options import Options, options_of, require_seconds
from ._record import replace
from ._result import CloseOutcome, CloseResult
from ._teardown import already_closed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from anyio.streams.buffered import BufferedByteStream
    from anyio.streams.stapled import StapledByteStream
    from anyio.streams.tls import TLSStream
    from typing_extensions import Unpack

    from ._async import TaskClose
    from ._async_reaper import Close, Start
    from ._options import CloseOptions, OnTimeout

    Stream = anyio.abc.SocketStream | TLSStream | BufferedByteStream | StapledByteStream

S = TypeVar("S", bound="Stream")

__all__ = [
    "Reaper",
    "abortive_close",
    "close_all",
    "closing",
    "graceful_close",
    "timed_linger_close",
]


async def graceful_close(
    stream: Stream,
    **options: Unpack[CloseOptions],
) -> CloseResult:
    """Close a connection so that the peer can read everything that was written to it.

        await stream.send(reply)
        result = await graceful_close(stream, timeout=5)

    Call it instead of `aclose()`. It sends close_notify if the stream uses TLS, sends our FIN,
    reads and discards input until the peer's FIN, then closes. One deadline limits all of this.

    When this returns or raises, the stream is closed and the descriptor released: a task that uses
    the stream then, or waits on it when this is called, gets `anyio.ClosedResourceError`. (On a closed
    TLSStream, send() raises an SSLError, as after `aclose()`.)
    Data that a task has not sent by then is not sent, so stop the sending tasks first. Only an invalid
    argument leaves the stream untouched. Network failures are in the result. The call is a
    checkpoint. On cancellation the stream is closed immediately and the cancellation propagates, as
    for `aclose()`. To close gracefully in a cancelled scope, shield the call.

    Args:
        stream: An `anyio.abc.SocketStream` (a `UNIXSocketStream` is one); a `TLSStream` over one,
            `standard_compatible` or not; a `BufferedByteStream`, or a `StapledByteStream` of one
            stream twice, over either.
        options: Those of `graceful_close.graceful_close`.

    Returns:
        How the connection ended. ALREADY_CLOSED also means that another task is closing the stream,
        or that asyncio's transport had closed itself because the peer reset the connection.

    Raises:
        TypeError: `stream` has another type, or an argument has the wrong type.
        ValueError: An argument is out of range.
        RuntimeError: The stream belongs to another event loop.
        OSError: On asyncio, no descriptor was left for the dup (EMFILE). The stream has then closed
            the connection without draining; what it held is flushed, or the peer read too little in
            `timeout` seconds and got a reset. The first close in a process also loads a module, and
            then needs a descriptor on trio, too.

    Notes:
        The data of a send() that was cancelled on asyncio is still in the transport. It is flushed
        first; if the time does not suffice, the peer receives a reset and the result is TIMED_OUT.
        A task that waits on a UNIX stream under uvloop is notified when the close is complete.
        `notified` is False if anyio considers the session broken, if a send() was cancelled or is
        in progress, or if the peer's FIN without close_notify was read.
        `peer_notified` is True if the peer's close_notify had arrived when ours was sent.
        With TLS over TLS, each session sends its own close_notify, and `notified` covers all.
    """
    since = now()
    checked = options_of("graceful_close", options)
    return await _close(new_close(checked, since), End(stream))


async def timed_linger_close(
    stream: Stream, seconds: float, *, on_timeout: OnTimeout = LingerPolicy.BACKGROUND
) -> CloseResult:
    """Wait for the peer's kernel to acknowledge everything, at most `seconds`, then close.

        result = await timed_linger_close(stream, 2.5)

    It does not wait for the peer's FIN. The guarantees are those of `graceful_close`.

    Args:
        stream: As for `graceful_close`.
        seconds: The deadline, 0 or more; not rounded, and not limited by SO_LINGER's range.
        on_timeout: As for `graceful_close`.

    Returns:
        DELIVERED if everything was acknowledged; see `graceful_close.timed_linger_close`.

    Raises:
        TypeError, ValueError, RuntimeError, OSError: As `graceful_close`.
    """
    since = now()
    require_seconds("seconds", seconds)
    checked = Options(seconds, until=CloseOutcome.DELIVERED, on_timeout=on_timeout)
    return await _close(new_close(checked, since), End(stream))


async def abortive_close(stream: Stream) -> CloseResult:
    """Discard a connection: drop unsent data and send RST to the peer.

        await abortive_close(stream)

    Never waits. When this returns or raises, the stream is closed, the descriptor is released, and
    the RST is sent. (On systems other than Linux the RST is sent when no dup and no forked child holds
    the connection any more.) A TLS peer receives no close_notify. The call is a checkpoint; if it is
    cancelled there, the abort has already happened.

    Args:
        stream: As for `graceful_close`.

    Returns:
        ABORTED, with the number of bytes that the kernel dropped in `unacked` (None on asyncio, whose
        transport does not say what it held); or NOT_CONNECTED, PEER_RESET, ALREADY_CLOSED.

    Raises:
        TypeError, RuntimeError: As for `graceful_close`.
        OSError: No descriptor was left (EMFILE). The connection is reset nevertheless.
    """
    result = await _abort(End(stream))
    await anyio.lowlevel.checkpoint_if_cancelled()
    return result


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
        streams: As for `graceful_close`, in any mixture. The same one twice, or a TLSStream and the
            stream in it, is closed once, and each place gets its result.
        options: Those of `graceful_close.graceful_close`: `timeout` applies to all streams
            together, the others to each stream.

    Returns:
        How each connection ended, in the order of `streams`.

    Raises:
        TypeError: An item of `streams` has an unsupported type (the message has its index), or an
            argument has the wrong type.
        ValueError, RuntimeError, OSError: As `graceful_close`.
    """
    since = now()
    checked = options_of("close_all", options)
    ends: list[End] = []
    for index, stream in enumerate(streams):
        try:
            ends.append(End(stream))
        except (TypeError, RuntimeError) as error:
            raise type(error)(f"streams[{index}]: {error}") from None
    return await _close_many(checked, ends, since)


class closing(AsyncClosing[S]):  # noqa: N801 (named for contextlib.closing)
    """A context manager that commits or rolls back a stream.

    When the block ends normally, it calls `graceful_close`: a peer that reads the end of the stream
    knows that the message is complete. When the block raises or is cancelled, it calls
    `abortive_close`: a peer that reads a reset knows that the message is not complete. In both cases
    the stream is closed afterwards. An exception of the block propagates, even if the close fails.

        async with closing(stream, timeout=10):
            await stream.send(reply)

    Args:
        stream: As for `graceful_close`.
        options: Those of `graceful_close`.

    Attributes:
        result: How the connection ended; None inside the block.

    Raises:
        TypeError, ValueError, RuntimeError: As for `graceful_close`, raised by the constructor.
    """

    def __init__(  # noqa: D107 (the docstring is that of the class)
        self,
        stream: S,
        **options: Unpack[CloseOptions],
    ) -> None:
        checked = options_of("closing", options)
        end = End(stream)
        super().__init__(
            stream, lambda: _close(new_close(checked, now()), end), lambda: _abort(end)
        )


class Reaper(AsyncReaper["Stream"]):
    """Closes streams gracefully in the background, for code that cannot wait.

        async with Reaper(timeout=10) as reaper:
            ...
            reaper.submit(stream)  # returns at once

    It serves code that must not wait, such as a loop that accepts connections. At the end of the
    block no stream is accepted any more, and the pending closes are finished, each within its own
    deadline. When the block is cancelled, they are closed immediately. `len(reaper)` is their
    number, `stats()` counts the closed ones by outcome, and `overflowed` those that made room for
    others.

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
        end = End(stream)
        return partial(_close, end=end), end.peer

    def _clock(self) -> Callable[[], float]:
        return clock()

    def _new_group(self) -> anyio.abc.TaskGroup:
        return anyio.create_task_group()

    def _start_in(self, group: anyio.abc.TaskGroup) -> Start:
        return group.start_soon

    def _expire(self, close: TaskClose, on_timeout: OnTimeout) -> None:
        multiplexer().expire(close, on_timeout)


# --- closing ---------------------------------------------------------------------------------


async def _close(close: TaskClose, end: End) -> CloseResult:
    """`graceful_close` with validated arguments."""
    taken = await _take(end, close)
    if taken is None:
        await anyio.lowlevel.checkpoint()
        return _closed_before(close.since)
    try:
        await taken.ask()
        await taken.find_failure()
        result = await _finish_alone(taken)
        await taken.end()
    except BaseException as error:
        await taken.drop(error)
        raise
    return result


async def _close_many(options: Options, ends: list[End], since: float) -> list[CloseResult]:
    """`close_all` with validated arguments."""
    # One connection may be given as a stream and as the TLS stream over it.
    uppermost: dict[int, End] = {}
    for end in ends:
        rival = uppermost.setdefault(id(end.stream), end)
        if len(end.layers) > len(rival.layers):
            uppermost[id(end.stream)] = end
    all_taken: dict[int, Taken] = {}
    left = dict(uppermost)
    try:
        while left:
            before = len(all_taken)
            _take_some(left, all_taken, options, since)
            newly_taken = list(all_taken.values())[before:]
            await _finish_all(newly_taken)
            for one in newly_taken:
                await one.end()
    except BaseException as error:
        for one in all_taken.values():
            await one.drop(error)
        if isinstance(error, Exception):  # EMFILE, ENFILE: for the first that is left
            await _close_without_dups(list(left.values()), options, since)
        elif not isinstance(error, GeneratorExit):
            for end in uppermost.values():
                await end.reset()
        raise
    closed = _closed_before(since)
    return [
        taken.result or closed if (taken := all_taken.get(id(end.stream))) else closed
        for end in ends
    ]


def _take_some(
    left: dict[int, End], into: dict[int, Taken], options: Options, since: float
) -> None:
    """Move all that are left, or as many as the free descriptors permit.

    Raises:
        OSError: No descriptor is available (EMFILE, ENFILE), and none of ours can be released for it.
    """
    before = len(into)
    for name, end in list(left.items()):
        try:
            taken = end.take(new_close(options, since))
        except OSError:
            if len(into) == before:
                raise
            break  # the others wait until these have released theirs
        if taken is not None:
            into[name] = taken
        del left[name]


async def _close_without_dups(ends: list[End], options: Options, since: float) -> None:
    try:
        async with anyio.create_task_group() as group:
            for end in ends:
                group.start_soon(end.close_without_dup, new_close(options, since))
    except BaseException as error:
        if not isinstance(error, GeneratorExit):
            for end in ends:
                await end.reset()  # a task that never began has not
        raise


async def _finish_all(all_taken: list[Taken]) -> None:
    # Task groups wrap exceptions in groups, so a task group is used only where needed: not on trio.
    shared = [taken for taken in all_taken if taken.shared]
    for taken in all_taken:
        if not taken.shared:
            await taken.ask()
    if shared:
        async with anyio.create_task_group() as group:
            for taken in shared:
                group.start_soon(taken.ask)
    await anyio.lowlevel.checkpoint()
    for taken in all_taken:
        await taken.find_failure()
    flushed = [taken for taken in all_taken if taken.flushed]
    slow = [taken for taken in all_taken if not taken.flushed]
    if not slow:
        await _finish_together(flushed)
        return
    failures: list[Exception] = []

    async def tell_later(finish: Callable[[], Awaitable[object]]) -> None:
        try:
            await finish()
        except Exception as error:  # noqa: BLE001 (any failure; the other connections continue)
            failures.append(error)

    async with anyio.create_task_group() as group:
        for taken in slow:
            group.start_soon(tell_later, partial(_finish_alone, taken))
        await tell_later(partial(_finish_together, flushed))
    if failures:
        raise failures[0]


async def _finish_together(flushed: list[Taken]) -> None:
    for taken in flushed:
        await taken.begin_to_end()
    results = await multiplexer().close_each([(taken.close, taken.sock) for taken in flushed])
    for taken, result in zip(flushed, results, strict=True):
        taken.result = result


async def _finish_alone(taken: Taken) -> CloseResult:
    flush = None if taken.flushed else taken
    if flush is None:
        await taken.begin_to_end()
    elif taken.tls:
        taken.close.close_notify = (False, None)  # until it is flushed
    taken.result = result = await multiplexer().close(taken.close, taken.sock, flush)
    return result


async def _take(end: End, close: TaskClose) -> Taken | None:
    try:
        return end.take(close)
    except OSError:  # EMFILE, ENFILE
        await end.close_without_dup(close)
        raise
    except BaseException:  # a KeyboardInterrupt
        await end.reset()
        raise


async def _abort(end: End) -> CloseResult:
    """`abortive_close` with validated arguments. Not cancelled by a scope."""
    since = now()
    taken = await _take(end, new_close(Options(0), since, abort=True))
    if taken is None:
        result = _closed_before(since)
    else:
        if taken.closes_late:
            await end.close()  # or its reader would find the end of the stream first
        result = abort_on(taken.sock)
        if taken.shared:
            # What the transport held is dropped too, and it does not say how much that was.
            result = replace(result, unacked=None)
        await end.close()
    await anyio.lowlevel.cancel_shielded_checkpoint()
    return result


def _closed_before(since: float) -> CloseResult:
    return already_closed(now() - since)
