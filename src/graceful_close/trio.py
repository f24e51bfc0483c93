"""The closes of `graceful_close`, for trio's streams and sockets.

A stream's `aclose()` lets go of the descriptor, which resets the connection if there is input
that nobody has read; and over such input a TLS session cannot even say close_notify. So the
descriptor is taken from the stream (`detach()`), and the close sequence runs on it. Everything
here goes by public interfaces alone.
"""

from __future__ import annotations

import socket
import ssl
from functools import partial
from time import monotonic
from typing import TypeVar

import trio

from ._async import AsyncClosing, PendingClose, TurnFirst, close_each_on, close_on
from ._blocking import abort_on
from ._close_all import close_at_once
from ._linger import LingerPolicy
from ._options import Options, options_of, require_seconds
from ._result import CloseOutcome, CloseResult
from ._teardown import already_closed
from ._tls import LastRecords

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from typing_extensions import TypeIs, Unpack

    from ._options import CloseOptions, OnTimeout

    Stream = trio.SocketStream | trio.SSLStream[Any] | trio.socket.SocketType

    # The arguments of LastRecords.
    LastRecordsOf = tuple[bytes, bool | None, bool | None]

S = TypeVar("S", bound="Stream")

__all__ = ["abortive_close", "close_all", "closing", "graceful_close", "timed_linger_close"]

# How often a task is given the time to leave a stream that was taken from under it. Arbitrary:
# it is told once, and needs one turn of trio's scheduler.
_TURNS_TO_LEAVE = 3


async def graceful_close(
    stream: Stream,
    **options: Unpack[CloseOptions],
) -> CloseResult:
    """End a connection so that the peer can read all that was written to it.

    Call it instead of `aclose()`. It says close_notify if the stream speaks TLS, sends our FIN,
    reads and throws away what the peer still sends, until its FIN, then lets go. All of that is
    under one deadline.

    When this returns or raises, the stream is closed and the descriptor released: whoever uses
    the stream then, or is waiting on it when this is called, gets `trio.ClosedResourceError`.
    What a task has not sent by then is not sent, so end your senders first. What the network
    does is in the result. It is a checkpoint. A cancellation closes at once and goes on, as for
    `aclose()`; to close gracefully in a cancelled scope, shield the call. So does a
    KeyboardInterrupt.

    Args:
        stream: A `trio.SocketStream`; a `trio.SSLStream` over one, `https_compatible` or not; or
            one of `trio.socket`'s stream sockets.
        options: Those of `graceful_close.graceful_close`.

    Returns:
        How the connection ended.

    Raises:
        TypeError: `stream` is none of these, or an argument is of the wrong kind.
        ValueError: An argument is out of its range.

    Notes:
        `notified` is None before the handshake, and False if trio knows the session as broken:
        a send_all() was cancelled, or the peer sent its FIN without close_notify.
        `peer_notified` is True if the peer's close_notify was there when ours went out, else None.
        With TLS over TLS, each session says its own, and `notified` is for all of them.
    """
    since = monotonic()
    checked = options_of("graceful_close", options)
    return await _close(checked, _End(stream), since)


async def timed_linger_close(
    stream: Stream, seconds: float, *, on_timeout: OnTimeout = LingerPolicy.BACKGROUND
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
        TypeError, ValueError: As `graceful_close`.
    """
    since = monotonic()
    require_seconds("seconds", seconds)
    checked = Options(seconds, until=CloseOutcome.DELIVERED, on_timeout=on_timeout)
    return await _close(checked, _End(stream), since)


async def abortive_close(stream: Stream) -> CloseResult:
    """Throw a connection away: drop what is unsent and tell the peer with RST.

    Never waits. When this returns or raises, the stream is closed and the descriptor released,
    and the RST is out unless a dup or a forked child holds the connection, too. A TLS peer gets
    no close_notify. It is a checkpoint: if it is cancelled there, all that is done already.

    Args:
        stream: As for `graceful_close`.

    Returns:
        ABORTED, with the count of what was dropped in `unacked`; or NOT_CONNECTED, PEER_RESET,
        ALREADY_CLOSED.

    Raises:
        TypeError: `stream` is nothing that `graceful_close` takes.
    """
    result = await _abort(_End(stream))
    await trio.lowlevel.checkpoint_if_cancelled()
    return result


async def close_all(
    streams: Iterable[Stream],
    **options: Unpack[CloseOptions],
) -> list[CloseResult]:
    """`graceful_close` for many streams at once, under one deadline.

    Peers that never answer cost the deadline once, not once each. When this returns or raises,
    every stream is closed; only if something was wrong with the arguments, none is touched. A
    cancellation closes all at once and goes on.

    Args:
        streams: As for `graceful_close`, in any mixture. The same one twice, or a stream and the
            socket or the transport in it, is closed once, and each place gets its result.
        options: Those of `graceful_close.graceful_close`: `timeout` for all together, the others
            for each.

    Returns:
        How each connection ended, in the order of `streams`.

    Raises:
        TypeError: One of `streams` is nothing that can be closed here (the message says which),
            or an argument is of the wrong kind.
        ValueError: As `graceful_close`.
    """
    since = monotonic()
    checked = options_of("close_all", options)
    ends: list[_End] = []
    for index, stream in enumerate(streams):
        try:
            ends.append(_End(stream))
        except TypeError as error:
            raise TypeError(f"streams[{index}]: {error}") from None
    return await _close_many(checked, ends, since)


class closing(AsyncClosing[S]):  # noqa: N801 (named for contextlib.closing)
    """Commit and rollback for a stream.

    When the body ends, `graceful_close`: a peer that sees the end of the stream knows that the
    message is whole. When the body raises, and a cancellation counts, `abortive_close`: a peer
    that sees a reset knows that it is not. Either way the stream is closed when the block is left,
    and what the body raised goes on, whatever the closing met.

        async with closing(stream, timeout=10):
            await stream.send_all(reply)

    Args:
        stream: As for `graceful_close`.
        options: Those of `graceful_close`.

    Attributes:
        result: How the connection ended; None until the block is left.

    Raises:
        TypeError, ValueError: As `graceful_close`, when it is made, not when it is left.
    """

    def __init__(  # noqa: D107 (the class says it)
        self,
        stream: S,
        **options: Unpack[CloseOptions],
    ) -> None:
        checked = options_of("closing", options)
        end = _End(stream)
        super().__init__(stream, lambda: _close(checked, end, monotonic()), lambda: _abort(end))


# --- what can be closed ----------------------------------------------------------------------


class _End:
    """What there is to close: a socket, and the TLS sessions over it, the uppermost first.

    Raises:
        TypeError: It is no stream, or one of something else.
    """

    __slots__ = ("layers", "raw")

    def __init__(self, stream: object) -> None:
        self.layers: list[trio.SSLStream[Any]] = []
        self.raw: trio.socket.SocketType | None = None
        below: Any = stream
        while _is_session(below):
            self.layers.append(below)
            below = below.transport_stream
        if below is None and self.layers:
            return  # after unwrap(): its connection is somebody else's
        if isinstance(below, trio.SocketStream):
            below = below.socket
        elif self.layers:
            raise TypeError(f"an SSLStream over a SocketStream is needed, not over {below!r}")
        if not isinstance(below, trio.socket.SocketType):
            raise TypeError(
                f"a SocketStream, an SSLStream or a socket of trio's is needed, not {stream!r}"
            )
        if below.type != socket.SOCK_STREAM:
            raise TypeError(f"a stream socket is needed (SOCK_STREAM), not {below!r}")
        self.raw = below

    def take(self) -> socket.socket | None:
        """Take the descriptor, and wake whoever waits on it. None: it is closed."""
        raw = self.raw
        if raw is None or raw.fileno() == -1:
            return None
        adopt = partial(socket.socket, raw.family, raw.type, raw.proto)
        trio.lowlevel.notify_closing(raw.fileno())
        sock = adopt(raw.detach())
        sock.settimeout(0)  # as trio had it; a new object does not know
        return sock

    async def shut(self) -> None:
        """Let the TLS streams know that they are closed."""
        with trio.CancelScope(shield=True):
            for layer in self.layers:
                await trio.aclose_forcefully(layer)


def _is_session(stream: object) -> TypeIs[trio.SSLStream[Any]]:
    return isinstance(stream, trio.SSLStream)


def _closed_before(since: float) -> CloseResult:
    return already_closed(monotonic() - since)


# --- closing ---------------------------------------------------------------------------------

# Protected, so that a KeyboardInterrupt comes at a checkpoint, and finds the descriptor in a
# place from which it can be closed.


@trio.lowlevel.enable_ki_protection
async def _close(options: Options, end: _End, since: float) -> CloseResult:
    """`graceful_close` with everything checked."""
    sock = end.take()
    if sock is None:
        await trio.lowlevel.checkpoint()
        return _closed_before(since)
    if end.layers:
        pending = PendingClose(options, sock, since)
        await _begin([(end, pending)])
        return await close_on(options, sock, _WAIT, since, pending.close_notify)
    wait = TurnFirst(_WAIT)
    result = await close_on(options, sock, wait, since)
    if not wait.had_a_turn:
        await trio.lowlevel.checkpoint()
    return result


@trio.lowlevel.enable_ki_protection
async def _close_many(options: Options, ends: list[_End], since: float) -> list[CloseResult]:
    """`close_all` with everything checked."""
    # One connection may be there as a socket, as its stream, and as the TLS over that.
    uppermost: dict[int, _End] = {}
    for end in ends:
        rival = uppermost.setdefault(id(end.raw), end)
        if len(end.layers) > len(rival.layers):
            uppermost[id(end.raw)] = end
    pendings: dict[int, PendingClose] = {}
    for name, end in uppermost.items():
        sock = end.take()
        if sock is not None:
            pendings[name] = PendingClose(options, sock, since)
    await _begin([(uppermost[name], pending) for name, pending in pendings.items()])
    await close_each_on(list(pendings.values()), _WAIT)
    closed = _closed_before(since)
    return [
        pending.result or closed if (pending := pendings.get(id(end.raw))) else closed
        for end in ends
    ]


async def _begin(taken: list[tuple[_End, PendingClose]]) -> None:
    """Have whoever used the streams leave, and ask the TLS sessions what they have to say."""
    try:
        await trio.lowlevel.checkpoint()
        for end, pending in taken:
            if end.layers:
                pending.close_notify = await _last_records(end.layers)
                await end.shut()
    except BaseException as error:
        for _, pending in taken:
            close_at_once([pending.sock])
        if not isinstance(error, GeneratorExit):
            for end, _ in taken:
                await end.shut()
        raise


@trio.lowlevel.enable_ki_protection
async def _abort(end: _End) -> CloseResult:
    """`abortive_close` with everything checked. Not cancelled."""
    since = monotonic()
    sock = end.take()
    result = _closed_before(since) if sock is None else abort_on(sock)
    await end.shut()
    await trio.lowlevel.cancel_shielded_checkpoint()
    return result


class _TrioWait:
    """How trio waits; see `Wait`."""

    __slots__ = ()

    async def readable(self, descriptor: int, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await trio.lowlevel.wait_readable(descriptor)

    async def writable(self, descriptor: int, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await trio.lowlevel.wait_writable(descriptor)

    async def pause(self, seconds: float) -> None:
        await trio.sleep(seconds)


_WAIT = _TrioWait()


# --- TLS -------------------------------------------------------------------------------------


class _NothingMore(trio.ClosedResourceError):
    """Nothing more has come in; and to a task that should not be there, what it is to read."""


class _Tap(trio.abc.Stream):
    """Stands below a TLS session in the place of its connection, and only listens.

    A session over the connection itself would wait for it, and could be waiting when the time is
    up; and it would read on, although all that it reads stands in the way of its close_notify.
    """

    def __init__(self) -> None:
        self.heard = bytearray()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.heard += data

    async def wait_send_all_might_not_block(self) -> None:
        pass

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        raise _NothingMore

    async def aclose(self) -> None:
        pass


async def _last_records(layers: list[trio.SSLStream[Any]]) -> LastRecords:
    """What sessions over each other have to say, in the records of the lowest."""
    words = b""
    notified: bool | None = None
    peers: bool | None = None
    for layer in layers:
        words, said, heard = await _ask(layer, words)
        if layer is layers[0]:
            peers = heard
        if said is not None:
            notified = said and notified is not False
    return LastRecords(words, notified, peers)


async def _ask(session: trio.SSLStream[Any], above: bytes) -> LastRecordsOf:
    """What one session has to say, after what the one above it has."""
    try:
        session.version()
    except trio.NeedHandshakeError:
        return b"", None, None
    connection, tap = session.transport_stream, _Tap()
    session.transport_stream = tap
    peers: bool | None = None
    try:
        for _ in range(_TURNS_TO_LEAVE):
            try:
                # What was read from the connection and not yet from the session stands in the
                # way of its close_notify (APPLICATION_DATA_AFTER_CLOSE_NOTIFY): unwrap() and
                # aclose() fail over it, and send nothing.
                peers = await _read_out(session) or peers
                if above:
                    await session.send_all(above)
                    above = b""
                peers = await _unwrap(session) or peers
            except trio.BusyResourceError:
                await trio.lowlevel.checkpoint()  # somebody has yet to leave
            else:
                if session.context.options & getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0):
                    peers = None  # the bare end of the stream counts for one
                return bytes(tap.heard), True, peers
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    finally:
        session.transport_stream = connection
    return b"", False, None


async def _read_out(session: trio.SSLStream[Any]) -> bool | None:
    """Read what was received. Whether that ended in the peer's close_notify; None: it did not."""
    try:
        while await session.receive_some():
            pass
    except _NothingMore:
        return None
    return True


async def _unwrap(session: trio.SSLStream[Any]) -> bool | None:
    """Say close_notify. Whether the peer's was there; None: nobody looked that far."""
    try:
        await session.unwrap()
    except _NothingMore:
        return None
    return True
