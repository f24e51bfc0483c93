"""The functions of `graceful_close`, for trio's streams and sockets.

A stream's `aclose()` closes the descriptor, which resets the connection if there is unread input.
With unread input a TLS session cannot even send close_notify. So the descriptor is taken from the
stream (`detach()`), and the close sequence runs on it. The module uses public interfaces only.
"""

from __future__ import annotations

import socket
import ssl
from functools import partial
from typing import TypeVar

import trio

from ._async import AsyncClosing, TaskClose
from ._async_reaper import AsyncReaper
from ._blocking import abort_on
from ._close_all import close_at_once
from ._linger import LingerPolicy
from ._options import Options, options_of, require_seconds
from ._result import CloseOutcome, CloseResult
from ._sockets import peer_of
from ._teardown import already_closed
from ._tls import LastRecords
from ._trio_multiplexer import multiplexer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractAsyncContextManager
    from typing import Any, TypeGuard

    from typing_extensions import TypeIs, Unpack

    from ._async_reaper import Close, Start
    from ._options import CloseOptions, OnTimeout

    Stream = (
        trio.SocketStream
        | trio.SSLStream[Any]
        | trio.StapledStream[Any, Any]
        | trio.socket.SocketType
    )

    # What is closed, its close, and its socket.
    _Taken = tuple["_End", TaskClose, socket.socket]

    # The arguments of LastRecords.
    LastRecordsOf = tuple[bytes, bool | None, bool | None]

S = TypeVar("S", bound="Stream")

__all__ = [
    "Reaper",
    "abortive_close",
    "close_all",
    "closing",
    "graceful_close",
    "timed_linger_close",
]

# How many turns a task gets to leave a stream whose descriptor was taken. Heuristic: the task is
# notified once, and needs one turn of trio's scheduler.
_TURNS_TO_LEAVE = 3


async def graceful_close(
    stream: Stream,
    **options: Unpack[CloseOptions],
) -> CloseResult:
    """Close a connection so that the peer can read everything that was written to it.

        await stream.send_all(reply)
        result = await graceful_close(stream, timeout=5)

    Call it instead of `aclose()`. It sends close_notify if the stream uses TLS, sends our FIN,
    reads and discards input until the peer's FIN, then closes. One deadline, on the clock of the run
    (`trio.current_time()`), limits all of this.

    When this returns or raises, the stream is closed and the descriptor released: a task that uses
    the stream then, or waits on it when this is called, gets `trio.ClosedResourceError`.
    Data that a task has not sent by then is not sent, so stop the sending tasks first. Only an invalid
    argument leaves the stream untouched. Network failures are in the result. The call is a
    checkpoint. On cancellation the stream is closed immediately and the cancellation propagates, as
    for `aclose()`. To close gracefully in a cancelled scope, shield the call. A
    KeyboardInterrupt has the same effect as a cancellation.

    Args:
        stream: A `trio.SocketStream`; a `trio.SSLStream` over one, `https_compatible` or not; a
            `trio.StapledStream` of one stream twice; or one of `trio.socket`'s stream sockets.
        options: Those of `graceful_close.graceful_close`.

    Returns:
        How the connection ended.

    Raises:
        TypeError: `stream` has another type, or an argument has the wrong type.
        ValueError: An argument is out of range.

    Notes:
        `notified` is None before the handshake. It is False if trio considers the session broken: a
        send_all() was cancelled, or the peer sent its FIN without close_notify.
        `peer_notified` is True if the peer's close_notify had arrived when ours was sent, else None.
        With TLS over TLS, each session sends its own close_notify, and `notified` covers all.
    """
    checked = options_of("graceful_close", options)
    since = trio.current_time()
    return await _close(_new_close(checked, since), _End(stream))


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
        TypeError, ValueError: As `graceful_close`.
    """
    require_seconds("seconds", seconds)
    checked = Options(seconds, until=CloseOutcome.DELIVERED, on_timeout=on_timeout)
    since = trio.current_time()
    return await _close(_new_close(checked, since), _End(stream))


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
        ABORTED, with the number of dropped bytes in `unacked`; or NOT_CONNECTED, PEER_RESET,
        ALREADY_CLOSED.

    Raises:
        TypeError: `stream` has a type that `graceful_close` does not support.
    """
    result = await _abort(_End(stream))
    await trio.lowlevel.checkpoint_if_cancelled()
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
        streams: As for `graceful_close`, in any mixture. The same one twice, or a stream and the
            socket or the transport in it, is closed once, and each place gets its result.
        options: Those of `graceful_close.graceful_close`: `timeout` applies to all streams
            together, the others to each stream.

    Returns:
        How each connection ended, in the order of `streams`.

    Raises:
        TypeError: An item of `streams` has an unsupported type (the message has its index), or an
            argument has the wrong type.
        ValueError: As `graceful_close`.
    """
    checked = options_of("close_all", options)
    since = trio.current_time()
    ends: list[_End] = []
    for index, stream in enumerate(streams):
        try:
            ends.append(_End(stream))
        except TypeError as error:
            raise TypeError(f"streams[{index}]: {error}") from None
    return await _close_many(checked, ends, since)


class closing(AsyncClosing[S]):  # noqa: N801 (named for contextlib.closing)
    """A context manager that commits or rolls back a stream.

    When the block ends normally, it calls `graceful_close`: a peer that reads the end of the stream
    knows that the message is complete. When the block raises or is cancelled, it calls
    `abortive_close`: a peer that reads a reset knows that the message is not complete. In both cases
    the stream is closed afterwards. An exception of the block propagates, even if the close fails.

        async with closing(stream, timeout=10):
            await stream.send_all(reply)

    Args:
        stream: As for `graceful_close`.
        options: Those of `graceful_close`.

    Attributes:
        result: How the connection ended; None inside the block.

    Raises:
        TypeError, ValueError: As for `graceful_close`, raised by the constructor.
    """

    def __init__(  # noqa: D107 (the docstring is that of the class)
        self,
        stream: S,
        **options: Unpack[CloseOptions],
    ) -> None:
        checked = options_of("closing", options)
        end = _End(stream)
        super().__init__(
            stream,
            lambda: _close(_new_close(checked, trio.current_time()), end),
            lambda: _abort(end),
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
        end = _End(stream)
        return partial(_close, end=end), end.peer

    def _clock(self) -> Callable[[], float]:
        return trio.current_time

    def _new_group(self) -> AbstractAsyncContextManager[trio.Nursery]:
        return trio.open_nursery()

    def _start_in(self, group: trio.Nursery) -> Start:
        return group.start_soon

    def _expire(self, close: TaskClose, on_timeout: OnTimeout) -> None:
        multiplexer().expire(close, on_timeout)


# --- what can be closed ----------------------------------------------------------------------


class _End:
    """The object to close: a socket, and the TLS sessions over it, the uppermost first.

    Raises:
        TypeError: It is not a stream, or not over a socket.
    """

    __slots__ = ("layers", "raw")

    def __init__(self, stream: object) -> None:
        self.layers: list[trio.SSLStream[Any]] = []
        self.raw: trio.socket.SocketType | None = None
        below: Any = stream
        while True:
            if _is_session(below):
                self.layers.append(below)
                below = below.transport_stream
                if isinstance(below, _Tap):  # another close collects the last records
                    below = below.connection
            elif _is_stapled_of_one(below):
                below = below.send_stream
            else:
                break
        if below is None and self.layers:
            return  # after unwrap(): the connection belongs to the caller
        if isinstance(below, trio.SocketStream):
            below = below.socket
        elif self.layers:
            raise TypeError(f"an SSLStream over a SocketStream is needed, not over {below!r}")
        if not isinstance(below, trio.socket.SocketType):
            raise TypeError(
                "a SocketStream, an SSLStream, a StapledStream of one stream twice or a socket of "
                f"trio's is needed, not {stream!r}"
            )
        if below.type != socket.SOCK_STREAM:
            raise TypeError(f"a stream socket (SOCK_STREAM) is needed, not {below!r}")
        self.raw = below

    def take(self) -> socket.socket | None:
        """Take the descriptor, and wake the tasks that wait on it. None: it is closed."""
        raw = self.raw
        if raw is None or raw.fileno() == -1:
            return None
        adopt = partial(socket.socket, raw.family, raw.type, raw.proto)
        trio.lowlevel.notify_closing(raw.fileno())
        sock = adopt(raw.detach())
        sock.settimeout(0)  # as trio's object; the new object has the default
        return sock

    def peer(self) -> object:
        """The peer's address, if it is known."""
        return None if self.raw is None else peer_of(self.raw)

    async def shut(self) -> None:
        """Mark the TLS streams as closed."""
        with trio.CancelScope(shield=True):
            for layer in self.layers:
                await trio.aclose_forcefully(layer)


def _is_stapled_of_one(stream: Any) -> TypeGuard[trio.StapledStream[Any, Any]]:
    """Whether a stream sends and receives by one and the same."""
    stapled: Any = stream
    return (
        isinstance(stream, trio.StapledStream) and stapled.send_stream is stapled.receive_stream
    )


def _is_session(stream: object) -> TypeIs[trio.SSLStream[Any]]:
    return isinstance(stream, trio.SSLStream)


def _new_close(options: Options, since: float) -> TaskClose:
    return TaskClose(options, since, clock=trio.current_time)


def _closed_before(since: float) -> CloseResult:
    return already_closed(trio.current_time() - since)


# --- closing ---------------------------------------------------------------------------------

# Protected, so that a KeyboardInterrupt arrives at a checkpoint only, where the descriptor can be
# closed.


@trio.lowlevel.enable_ki_protection
async def _close(close: TaskClose, end: _End) -> CloseResult:
    """`graceful_close` with validated arguments."""
    sock = end.take()
    if sock is None:
        await trio.lowlevel.checkpoint()
        return _closed_before(close.since)
    if end.layers:
        await _begin([(end, close, sock)])
    return await multiplexer().close(close, sock)


@trio.lowlevel.enable_ki_protection
async def _close_many(options: Options, ends: list[_End], since: float) -> list[CloseResult]:
    """`close_all` with validated arguments."""
    # One connection may be given as a socket, as its stream, and as the TLS stream over that.
    uppermost: dict[int, _End] = {}
    for end in ends:
        rival = uppermost.setdefault(id(end.raw), end)
        if len(end.layers) > len(rival.layers):
            uppermost[id(end.raw)] = end
    taken: list[_Taken] = []
    for end in uppermost.values():
        sock = end.take()
        if sock is not None:
            taken.append((end, _new_close(options, since), sock))
    await _begin(taken)
    results = await multiplexer().close_each([(close, sock) for _, close, sock in taken])
    of = {id(end.raw): result for (end, _, _), result in zip(taken, results, strict=True)}
    closed = _closed_before(since)
    return [of.get(id(end.raw), closed) for end in ends]


async def _begin(taken: list[_Taken]) -> None:
    """Make other tasks leave the streams, and collect the final records of the TLS sessions."""
    try:
        await trio.lowlevel.checkpoint()
        for end, close, _ in taken:
            if end.layers:
                close.close_notify = await _last_records(end.layers)
                await end.shut()
    except BaseException as error:
        close_at_once([sock for _, _, sock in taken])
        if not isinstance(error, GeneratorExit):
            for end, _, _ in taken:
                await end.shut()
        raise


@trio.lowlevel.enable_ki_protection
async def _abort(end: _End) -> CloseResult:
    """`abortive_close` with validated arguments. Not cancelled."""
    since = trio.current_time()
    sock = end.take()
    result = _closed_before(since) if sock is None else abort_on(sock)
    await end.shut()
    await trio.lowlevel.cancel_shielded_checkpoint()
    return result


# --- TLS -------------------------------------------------------------------------------------


class _NothingMore(trio.ClosedResourceError):
    """There is no more input. It is a ClosedResourceError for tasks that still use the stream."""


class _Tap(trio.abc.Stream):
    """Replaces the connection below a TLS session, and records what the session sends.

    A session over the connection itself could wait for the connection beyond the deadline. It would
    also continue to read, although unread data prevents its close_notify.
    """

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.records = bytearray()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.records += data

    async def wait_send_all_might_not_block(self) -> None:
        pass

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        raise _NothingMore

    async def aclose(self) -> None:
        pass


async def _last_records(layers: list[trio.SSLStream[Any]]) -> LastRecords:
    """Return the final records of nested sessions, as records of the lowest session."""
    records = b""
    notified: bool | None = None
    peers: bool | None = None
    for layer in layers:
        records, sent, received = await _ask(layer, records)
        if layer is layers[0]:
            peers = received
        if sent is not None:
            notified = sent and notified is not False
    return LastRecords(records, notified, peers)


async def _ask(session: trio.SSLStream[Any], above: bytes) -> LastRecordsOf:
    """Return the final records of one session, which follow those of the session above."""
    try:
        session.version()
    except trio.NeedHandshakeError:
        return b"", None, None
    connection = session.transport_stream
    session.transport_stream = tap = _Tap(connection)
    peers: bool | None = None
    try:
        for _ in range(_TURNS_TO_LEAVE):
            try:
                # Data that was read from the connection and not yet from the session prevents the
                # close_notify (APPLICATION_DATA_AFTER_CLOSE_NOTIFY): unwrap() and aclose() fail,
                # and send nothing.
                peers = await _read_out(session) or peers
                if above:
                    await session.send_all(above)
                    above = b""
                peers = await _unwrap(session) or peers
            except trio.BusyResourceError:
                await trio.lowlevel.checkpoint()  # another task has yet to leave
            else:
                if session.context.options & getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0):
                    peers = None  # a FIN without close_notify looks the same
                return bytes(tap.records), True, peers
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    finally:
        session.transport_stream = connection
    return b"", False, None


async def _read_out(session: trio.SSLStream[Any]) -> bool | None:
    """Read all received data. True: the peer's close_notify followed; None: it did not."""
    try:
        while await session.receive_some():
            pass
    except _NothingMore:
        return None
    return True


async def _unwrap(session: trio.SSLStream[Any]) -> bool | None:
    """Send close_notify. True: the peer's had arrived; None: not known."""
    try:
        await session.unwrap()
    except _NothingMore:
        return None
    return True
