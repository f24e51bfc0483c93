"""The closes of `graceful_close`, for anyio's streams, on asyncio (uvloop, too) and on trio.

A stream's `aclose()` lets go of the descriptor, which resets the connection if there is input
that nobody has read; and over such input a TLS session cannot even say close_notify. So the
descriptor is taken from the stream, or a dup of it where the event loop keeps it, and the close
sequence runs on that. Everything here goes by public interfaces alone.
"""

from __future__ import annotations

import _socket
import os
import socket
import ssl
import sys
from functools import partial
from time import monotonic

import anyio
import anyio.abc
import anyio.lowlevel
from anyio.streams.tls import TLSAttribute, TLSStream

from . import _platform
from ._awaiting import LOOK_EVERY, Closing
from ._checks import is_tcp, require_seconds
from ._farewell import Farewell, close_many, close_one, drop
from ._linger import LingerPolicy, set_linger
from ._platform import meaning
from ._result import CloseOutcome, CloseResult
from ._sync import abort_on
from ._teardown import ALREADY_CLOSED, IDLE_TIMED_OUT, TIMED_OUT, Terms

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping
    from typing import Any, TypeVar

    Stream = anyio.abc.SocketStream | TLSStream
    S = TypeVar("S", bound=Stream)

    # TLS's last records, and `notified` and `peer_notified` of CloseResult.
    Words = tuple[bytes, bool | None, bool | None]

__all__ = ["abortive_close", "close_all", "closing", "graceful_close", "timed_linger_close"]

# In how many turns of the event loop a closed transport lets go of its descriptor. One or two do;
# arbitrary above that, so that nothing waits for ever.
_TURNS_TO_LET_GO = 50

# How long a stream has to say whether it holds something back, whatever the timeout. It takes it
# a turn of the event loop; arbitrary above that, for a loop that is busy.
_TIME_TO_TELL = 0.1


async def graceful_close(
    stream: Stream,
    *,
    timeout: float = 5.0,
    idle_timeout: float | None = None,
    drain_limit: int | None = None,
    until: CloseOutcome = CloseOutcome.PEER_CLOSED,
    on_timeout: LingerPolicy = LingerPolicy.BACKGROUND,
) -> CloseResult:
    """End a connection so that the peer can read all that was written to it.

    Call it instead of `aclose()`. It says close_notify if the stream speaks TLS, sends our FIN,
    reads and throws away what the peer still sends, until its FIN, then lets go. All of that is
    under one deadline.

    When this returns or raises, the stream is closed and the descriptor released: whoever uses
    the stream then, or is waiting on it when this is called, gets `anyio.ClosedResourceError`.
    What a task has not sent by then is not sent, so end your senders first. What the network
    does is in the result. It is a checkpoint. A cancellation closes at once and goes on, as for
    `aclose()`; to close gracefully in a cancelled scope, shield the call.

    Args:
        stream: An `anyio.abc.SocketStream` (a `UNIXSocketStream` is one), or a `TLSStream` over
            one, `standard_compatible` or not.
        timeout: Seconds for all of it, 0 or more; 0 looks once and does not wait.
        idle_timeout: Give up after this many seconds of silence; see
            `graceful_close.graceful_close`.
        drain_limit: Give up when the peer has sent more than this many bytes after our FIN.
        until: PEER_CLOSED, or DELIVERED to end as soon as all is acknowledged.
        on_timeout: What to do with what the kernel holds when giving up.

    Returns:
        How the connection ended. ALREADY_CLOSED is also what asyncio's transport says when it
        closed itself because the peer reset the connection.

    Raises:
        TypeError: `stream` is none of these, or an argument is of the wrong kind.
        ValueError: An argument is out of its range.
        OSError: On asyncio, there was no descriptor left for the dup (EMFILE). The connection is
            reset.

    Notes:
        A send() that was cancelled on asyncio has left its data with the transport. That is
        flushed first; if the time does not suffice, the peer gets a reset and the result is
        TIMED_OUT.
        `notified` is False if anyio knows the session as broken, a send() over it was cancelled or
        goes on, or the peer sent its FIN without close_notify and that was read.
        `peer_notified` is True if the peer's close_notify was there when ours went out.
        With TLS over TLS, each session says its own, and `notified` is for all of them.
    """
    since = monotonic()
    terms = Terms(timeout, idle_timeout, drain_limit, until, on_timeout)
    return await _close(terms, _End(stream), since)


async def timed_linger_close(
    stream: Stream, seconds: float, *, on_timeout: LingerPolicy = LingerPolicy.BACKGROUND
) -> CloseResult:
    """Wait for the peer's kernel to acknowledge everything, at most `seconds`, then close.

    It does not wait for the peer's FIN. The promises are those of `graceful_close`.

    Args:
        stream: As for `graceful_close`.
        seconds: How long to wait, 0 or more; not rounded, and not bounded by SO_LINGER's range.
        on_timeout: As for `graceful_close`.

    Returns:
        DELIVERED if everything was acknowledged; see `graceful_close.timed_linger_close`.

    Raises:
        TypeError, ValueError, OSError: As `graceful_close`.
    """
    since = monotonic()
    require_seconds("seconds", seconds)
    terms = Terms(seconds, until=CloseOutcome.DELIVERED, on_timeout=on_timeout)
    return await _close(terms, _End(stream), since)


async def abortive_close(stream: Stream) -> CloseResult:
    """Throw a connection away: drop what is unsent and tell the peer with RST.

    Never waits. When this returns or raises, the stream is closed and the descriptor released,
    and the RST is out unless a dup or a forked child holds the connection, too (on asyncio under
    Linux, even then). A TLS peer gets no close_notify. It is a checkpoint: if it is cancelled
    there, all that is done already.

    Args:
        stream: As for `graceful_close`.

    Returns:
        ABORTED, with the count of what the kernel dropped in `unacked`; or NOT_CONNECTED,
        PEER_RESET, ALREADY_CLOSED.

    Raises:
        TypeError: `stream` is nothing that `graceful_close` takes.
        OSError: There was no descriptor left (EMFILE). The connection is reset all the same.
    """
    result = await _abort(_End(stream))
    await anyio.lowlevel.checkpoint_if_cancelled()
    return result


async def close_all(
    streams: Iterable[Stream],
    *,
    timeout: float = 5.0,
    idle_timeout: float | None = None,
    drain_limit: int | None = None,
    until: CloseOutcome = CloseOutcome.PEER_CLOSED,
    on_timeout: LingerPolicy = LingerPolicy.BACKGROUND,
) -> list[CloseResult]:
    """`graceful_close` for many streams at once, under one deadline.

    Peers that never answer cost the deadline once, not once each. When this returns or raises,
    every stream is closed; only if something was wrong with the arguments, none is touched. A
    cancellation closes all at once and goes on.

    Args:
        streams: As for `graceful_close`, in any mixture. The same one twice, or a TLSStream and the
            stream in it, is closed once, and each place gets its result.
        timeout: Seconds for all of them together, 0 or more.
        idle_timeout: Seconds of silence after which one is given up; see `graceful_close`.
        drain_limit: Bytes from one peer after which it is given up.
        until: PEER_CLOSED or DELIVERED, for each.
        on_timeout: BACKGROUND or ABORT, for each that is given up.

    Returns:
        How each connection ended, in the order of `streams`.

    Raises:
        TypeError: One of `streams` is nothing that can be closed here (the message says which),
            or an argument is of the wrong kind.
        ValueError, OSError: As `graceful_close`.
    """
    since = monotonic()
    terms = Terms(timeout, idle_timeout, drain_limit, until, on_timeout)
    ends: list[_End] = []
    for index, stream in enumerate(streams):
        try:
            ends.append(_End(stream))
        except TypeError as error:
            raise TypeError(f"streams[{index}]: {error}") from None
    return await _close_many(terms, ends, since)


class closing(Closing["S"]):  # noqa: N801 (named for contextlib.closing)
    """Commit and rollback for a stream.

    When the body ends, `graceful_close`: a peer that sees the end of the stream knows that the
    message is whole. When the body raises, and a cancellation counts, `abortive_close`: a peer
    that sees a reset knows that it is not. Either way the stream is closed when the block is left,
    and what the body raised goes on, whatever the closing met.

        async with closing(stream, timeout=10):
            await stream.send(reply)

    Args:
        stream: As for `graceful_close`.
        timeout, idle_timeout, drain_limit, until, on_timeout: For `graceful_close`.

    Attributes:
        result: How the connection ended; None until the block is left.

    Raises:
        TypeError, ValueError: As `graceful_close`, when it is made, not when it is left.
    """

    def __init__(  # noqa: D107 (the class says it)
        self,
        stream: S,
        *,
        timeout: float = 5.0,
        idle_timeout: float | None = None,
        drain_limit: int | None = None,
        until: CloseOutcome = CloseOutcome.PEER_CLOSED,
        on_timeout: LingerPolicy = LingerPolicy.BACKGROUND,
    ) -> None:
        terms = Terms(timeout, idle_timeout, drain_limit, until, on_timeout)
        end = _End(stream)
        super().__init__(stream, lambda: _close(terms, end, monotonic()), lambda: _abort(end))


# --- what can be closed ----------------------------------------------------------------------


class _End:
    """What there is to close: a stream of a socket's, and the TLS over it, the uppermost first.

    Attributes:
        layers: The TLS sessions.
        stream: What is below them.
        raw: What stands for the stream's socket; None: it has ended.

    Raises:
        TypeError: It is no stream, or one of something else.
    """

    __slots__ = ("layers", "raw", "stream")

    def __init__(self, stream: object) -> None:
        self.layers: list[TLSStream] = []
        below: object = stream
        while isinstance(below, TLSStream):
            self.layers.append(below)
            below = below.transport_stream
        if not isinstance(below, anyio.abc.SocketStream):
            over = f"a TLSStream over a SocketStream is needed, not over {below!r}"
            alone = f"a SocketStream or a TLSStream is needed, not {stream!r}"
            raise TypeError(over if self.layers else alone)
        self.stream = below
        self.raw: socket.socket | None = None
        try:
            self.raw = below.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610 (no SQL)
        except AttributeError:
            pass  # uvloop's transport has no socket when it has ended, and anyio asks that

    def take(self, terms: Terms, since: float) -> _Taken | None:
        """Take the descriptor, or a dup where the event loop keeps it. None: it is closed.

        Raises:
            OSError: There is no descriptor for the dup (EMFILE, ENFILE).
        """
        raw = self.raw
        if raw is None or raw.fileno() == -1:
            return None
        # What asyncio and uvloop show of a transport is no socket.
        if not (isinstance(raw, socket.socket) and _may_be_detached()):
            return _Taken(self, _dup(raw), terms, since, shared=True)
        anyio.notify_closing(raw.fileno())
        held: list[Any] = []
        adopt = partial(_socket.socket, raw.family, raw.type, raw.proto)
        # In one call, because a signal's exception between two would lose the descriptor.
        held.extend(map(adopt, map(_socket.socket.detach, (raw,))))
        raw.detach()  # finds nothing, but lets the object know that it is closed
        return _Taken(self, held[0], terms, since, shared=False)

    async def close(self) -> None:
        """Have the stream let go. Not cancelled by a scope."""
        with anyio.CancelScope(shield=True):
            await self.stream.aclose()
            for _ in range(_TURNS_TO_LET_GO):
                if self.raw is None or self.raw.fileno() == -1:
                    return
                await anyio.lowlevel.cancel_shielded_checkpoint()

    async def reset(self) -> None:
        """Have the stream reset the connection, when there is no descriptor to do it with."""
        raw = self.raw
        if raw is not None and raw.fileno() != -1:
            borrowed = socket.socket(raw.family, raw.type, raw.proto, raw.fileno())
            try:
                set_linger(borrowed, LingerPolicy.ABORT)
            except OSError:
                pass  # ENOTCONN, EINVAL (macOS): it is over
            finally:
                borrowed.detach()
        await self.close()


def _may_be_detached() -> bool:
    """Whether a stream that waits on its socket copes with a descriptor that is gone.

    On asyncio's own loop it must be gone: what is closed while it is waited on stays in the epoll
    for as long as a dup lives, and wakes it for ever. uvloop does without: it keeps a descriptor
    open for as long as somebody waits on it, and has to find it then.
    """
    asyncio = sys.modules.get("asyncio")  # on trio nobody needs it
    if asyncio is None:
        return True
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return True  # trio
    return isinstance(loop, asyncio.SelectorEventLoop)


def _dup(sock: socket.socket) -> socket.socket:
    """A socket object of our own for a connection that is an event loop's."""
    if sys.platform == "win32":
        return sock.dup()
    else:  # noqa: RET505  (type checkers follow this form)
        return socket.socket(sock.family, sock.type, sock.proto, os.dup(sock.fileno()))


class _Taken(Farewell):
    """A connection that was taken from its stream.

    Attributes:
        shared: The stream has a descriptor of its own: an event loop's transport does.
        flushed: All that the stream held is in the kernel; False: not yet; None: not asked yet.
    """

    __slots__ = ("_cut_short", "_end", "_parted", "flushed", "shared")

    def __init__(
        self, end: _End, sock: socket.socket, terms: Terms, since: float, *, shared: bool
    ) -> None:
        super().__init__(sock, terms, since)
        self.flushed: bool | None = None
        self._end = end
        self.shared = shared
        self._parted = False
        self._cut_short = False  # a send() goes on, and its record will be cut

    async def part(self) -> None:
        if not self._parted:
            self._parted = True
            await self._end.close()

    async def tells(self, seconds: float) -> bool:
        """Whether the stream, asked for so long, holds nothing back."""
        self.flushed = False
        try:
            with anyio.move_on_after(seconds):
                # Waits until the transport's buffer is empty, if there is one.
                await self._end.stream.send(b"")
                self.flushed = True
        except anyio.BusyResourceError:
            self.flushed = self._cut_short = True
        except anyio.ClosedResourceError:
            self.flushed = True
        except anyio.BrokenResourceError as error:
            self.flushed = True
            if isinstance(error.__cause__, OSError) and meaning(error.__cause__) is not None:
                self.failed(error.__cause__)
        return self.flushed

    async def flush(self) -> None:
        """Wait until the stream holds nothing back. If that takes too long, it has a result."""
        while not self.flushed:
            try:
                self.drain()
            except OSError as error:
                if meaning(error) is None:
                    raise
                self.failed(error)
                return
            now = monotonic()
            if self.is_late(now):
                # The end of the stream would tell the peer that the message is whole.
                given_up = TIMED_OUT if now >= self.deadline else IDLE_TIMED_OUT
                aborted = self.abort()
                outcome = (
                    given_up if aborted.outcome is CloseOutcome.ABORTED else aborted.outcome
                )
                notified = False if self._end.layers else None
                self.told(
                    CloseResult(outcome, now - self.last_sign, 0, None, aborted.error, notified)
                )
                return
            await self.tells(LOOK_EVERY)

    async def begin_to_end(self) -> None:
        """Have the TLS sessions say what they have to say, and whoever waits leave."""
        if not self.shared:
            await self.part()
        if self._end.layers and not self.has_failed:
            cut = (b"", False, None)
            self.say(*(cut if self._cut_short else await _last_words(self._end.layers)))

    def abort(self) -> CloseResult:
        """Reset the connection."""
        # Before anyio 4.16, aclose() on asyncio sends a FIN first, and with a dup the RST comes
        # after that. Linux can have it at once.
        at_once = self.shared and _platform.HERE.disconnects and is_tcp(self.sock)
        return abort_on(self.sock, at_once)


def _closed_before(since: float) -> CloseResult:
    return CloseResult(ALREADY_CLOSED, monotonic() - since, 0, None, None)


# --- closing ---------------------------------------------------------------------------------


async def _close(terms: Terms, end: _End, since: float) -> CloseResult:
    """`graceful_close` with everything checked."""
    taken = await _take(end, terms, since)
    if taken is None:
        await anyio.lowlevel.checkpoint()
        return _closed_before(since)
    try:
        await anyio.lowlevel.checkpoint()
        await taken.tells(_TIME_TO_TELL)
        return await _finish(taken)
    except BaseException as error:
        await _drop([taken], error)
        raise


async def _finish(taken: _Taken) -> CloseResult:
    await taken.flush()
    if taken.result is not None:
        await taken.part()
        return taken.result
    await taken.begin_to_end()
    return await close_one(taken, _WAIT)


async def _close_many(terms: Terms, ends: list[_End], since: float) -> list[CloseResult]:
    """`close_all` with everything checked."""
    # One connection may be there as a stream and as the TLS over that.
    uppermost: dict[int, _End] = {}
    for end in ends:
        rival = uppermost.setdefault(id(end.stream), end)
        if len(end.layers) > len(rival.layers):
            uppermost[id(end.stream)] = end
    all_taken: dict[int, _Taken] = {}
    try:
        for name, end in uppermost.items():
            taken = end.take(terms, since)
            if taken is not None:
                all_taken[name] = taken
        await anyio.lowlevel.checkpoint()
        await _finish_all(list(all_taken.values()))
    except BaseException as error:
        await _drop(list(all_taken.values()), error)
        if not isinstance(error, GeneratorExit):
            for end in uppermost.values():
                await end.reset()
        raise
    closed = _closed_before(since)
    return [
        taken.result or closed if (taken := all_taken.get(id(end.stream))) else closed
        for end in ends
    ]


async def _finish_all(all_taken: list[_Taken]) -> None:
    # Task groups wrap exceptions in groups, so there is none where none is needed: on trio.
    shared = [taken for taken in all_taken if taken.shared]
    for taken in all_taken:
        if not taken.shared:
            await taken.tells(_TIME_TO_TELL)
    if shared:
        async with anyio.create_task_group() as group:
            for taken in shared:
                group.start_soon(taken.tells, _TIME_TO_TELL)
    crowd = [taken for taken in all_taken if taken.flushed]
    slow = [taken for taken in shared if not taken.flushed]
    if not slow:
        await _finish_together(crowd)
        return
    failures: list[Exception] = []

    async def tell_later(finish: Awaitable[object]) -> None:
        try:
            await finish
        except Exception as error:  # noqa: BLE001 (whatever it is, others are not to blame)
            failures.append(error)

    async with anyio.create_task_group() as group:
        for taken in slow:
            group.start_soon(tell_later, _finish(taken))
        await tell_later(_finish_together(crowd))
    if failures:
        raise failures[0]


async def _finish_together(crowd: list[_Taken]) -> None:
    for taken in crowd:
        await taken.begin_to_end()
    await close_many(crowd, _WAIT)


async def _take(end: _End, terms: Terms, since: float) -> _Taken | None:
    try:
        return end.take(terms, since)
    except OSError:
        await end.reset()
        raise


async def _drop(dropped: list[_Taken], error: BaseException) -> None:
    """Close all at once. A stream that is cut short by that ends in a reset."""
    for taken in dropped:
        if taken.flushed is False:
            taken.abort()
    await drop(dropped, error)


async def _abort(end: _End) -> CloseResult:
    """`abortive_close` with everything checked. Not cancelled by a scope."""
    since = monotonic()
    taken = await _take(end, Terms(0), since)
    if taken is None:
        result = _closed_before(since)
    else:
        result = taken.abort()
        await taken.part()
    await anyio.lowlevel.cancel_shielded_checkpoint()
    return result


class _AnyioWait:
    """How anyio waits; see `Wait`."""

    __slots__ = ()

    async def readable(self, descriptor: int, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await anyio.wait_readable(descriptor)

    async def writable(self, descriptor: int, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await anyio.wait_writable(descriptor)

    async def pause(self, seconds: float) -> None:
        await anyio.sleep(seconds)


_WAIT = _AnyioWait()


# --- TLS -------------------------------------------------------------------------------------


class _NothingMore(anyio.ClosedResourceError):
    """Nothing more has come in; and to a task that should not be there, what it is to read."""


class _Tap(anyio.abc.ByteStream):
    """Stands below a TLS session in the place of its connection, and only listens.

    A session over the connection itself would wait for it, and could be waiting when the time is
    up; and it would read on, although all that it reads stands in the way of its close_notify.
    """

    def __init__(self) -> None:
        self.heard = bytearray()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {}

    async def send(self, item: bytes) -> None:
        self.heard += item

    async def receive(self, max_bytes: int = 65536) -> bytes:
        raise _NothingMore

    async def send_eof(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


async def _last_words(layers: list[TLSStream]) -> Words:
    """What sessions over each other have to say, in the records of the lowest."""
    words = b""
    notified: bool | None = None
    peers: bool | None = None
    for layer in layers:
        words, said, heard = await _ask(layer, words)
        if layer is layers[0]:
            peers = heard
        notified = said and notified is not False
    return words, notified, peers


async def _ask(session: TLSStream, above: bytes) -> Words:
    """What one session has to say, after what the one above it has."""
    connection, tap = session.transport_stream, _Tap()
    session.transport_stream = tap
    try:
        # What was read from the connection and not yet from the session stands in the way of its
        # close_notify (APPLICATION_DATA_AFTER_CLOSE_NOTIFY): unwrap() and aclose() fail over it,
        # and send nothing.
        await _read_out(session)
        if above:
            await session.send(above)
        peers = await _unwrap(session)
    except anyio.EndOfStream:
        return b"", False, False
    except anyio.BrokenResourceError as error:
        cut = isinstance(error.__cause__, ssl.SSLEOFError)
        return b"", False, False if cut else None
    except (anyio.ClosedResourceError, ssl.SSLError):
        return b"", False, None
    finally:
        session.transport_stream = connection
    session_object = session.extra(TLSAttribute.ssl_object)  # noqa: S610 (no SQL)
    options = session_object.context.options
    if options & getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0):
        peers = None  # the bare end of the stream counts for one
    return bytes(tap.heard), True, peers


async def _read_out(session: TLSStream) -> None:
    """Read what was received."""
    try:
        while True:
            await session.receive()
    except (_NothingMore, anyio.EndOfStream):
        pass  # unwrap() knows better which end that is


async def _unwrap(session: TLSStream) -> bool | None:
    """Say close_notify. Whether the peer's was there; None: nobody looked that far."""
    try:
        await session.unwrap()
    except _NothingMore:
        return None
    return True
