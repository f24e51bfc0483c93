"""Taking a connection over from an anyio stream, by public interfaces alone."""

from __future__ import annotations

import _socket
import socket
import ssl
import sys
from functools import partial
from time import monotonic

import anyio
import anyio.abc
import anyio.lowlevel
from anyio.streams.buffered import BufferedByteStream
from anyio.streams.stapled import StapledByteStream
from anyio.streams.tls import TLSAttribute, TLSStream

from ._acks import count_unacked
from ._async import LOOK_EVERY, PendingClose
from ._close_all import close_at_once
from ._connection import NOT_NOW, READS_IN_A_ROW
from ._drain import Drain, drain_of
from ._linger import LingerPolicy
from ._platform import ErrorKind, error_kind
from ._release import reset_at_close
from ._sockets import plain_dup, view_of
from ._tls import MSG_NOSIGNAL, LastRecords

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from typing_extensions import TypeIs

    from ._connection import Connection
    from ._options import Options
    from ._step import Step

    # The arguments of LastRecords.
    LastRecordsOf = tuple[bytes, bool | None, bool | None]

# In how many turns of the event loop a closed transport lets go of its descriptor. One or two do;
# arbitrary above that, so that nothing waits for ever.
_TURNS_TO_LET_GO = 50

# In how many turns the stream of a connection that is gone knows why. One or two; arbitrary above.
_TURNS_TO_SAY_WHY = 3

# How long a stream has to say whether it holds something back, whatever the timeout. It takes it
# a turn of the event loop; arbitrary above that, for a loop that is busy.
_TIME_TO_TELL = 0.1


class End:
    """What there is to close: a stream of a socket's, and the TLS over it, the uppermost first.

    Attributes:
        layers: The TLS sessions.
        stream: What is below them.
        raw: What stands for the stream's socket; None: it has ended.

    Raises:
        TypeError: It is no stream, or one of something else.
    """

    __slots__ = ("_wrappers", "layers", "raw", "stream")

    def __init__(self, stream: object) -> None:
        self.layers: list[TLSStream] = []
        self._wrappers: list[BufferedByteStream | StapledByteStream] = []
        below: object = stream
        while True:
            if isinstance(below, TLSStream):
                self.layers.append(below)
                below = below.transport_stream
            elif isinstance(below, BufferedByteStream) or _is_stapled_of_one(below):
                self._wrappers.append(below)
                below = below.receive_stream
            else:
                break
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

    def take(self, options: Options, since: float) -> Taken | None:
        """Take the descriptor, or a dup where the event loop keeps it. None: it is closed.

        Raises:
            OSError: There is no descriptor for the dup (EMFILE, ENFILE).
        """
        raw = self.raw
        if raw is None or raw.fileno() == -1:
            return None
        # What asyncio and uvloop show of a transport is no socket.
        if not (isinstance(raw, socket.socket) and _may_be_detached()):
            return Taken(self, plain_dup(raw), options, since, shared=True)
        anyio.notify_closing(raw.fileno())
        held: list[Any] = []
        adopt = partial(_socket.socket, raw.family, raw.type, raw.proto)
        # In one call, because a signal's exception between two would lose the descriptor.
        held.extend(map(adopt, map(_socket.socket.detach, (raw,))))
        raw.detach()  # finds nothing, but lets the object know that it is closed
        return Taken(self, held[0], options, since, shared=False)

    async def close(self) -> None:
        """Have the stream let go. Not cancelled by a scope."""
        with anyio.CancelScope(shield=True):
            await self.stream.aclose()
            for wrapper in self._wrappers:
                await wrapper.aclose()
            for _ in range(_TURNS_TO_LET_GO):
                if self.raw is None or self.raw.fileno() == -1:
                    return
                await anyio.lowlevel.cancel_shielded_checkpoint()

    async def reset(self) -> None:
        """Have the stream reset the connection, when there is no descriptor to do it with."""
        raw = self.raw
        if raw is not None and raw.fileno() != -1:
            reset_at_close(raw)
        await self.close()


def _is_stapled_of_one(stream: object) -> TypeIs[StapledByteStream]:
    """Whether a stream sends and receives by one and the same."""
    if not isinstance(stream, StapledByteStream):
        return False
    sends: object = stream.send_stream
    return sends is stream.receive_stream


def _may_be_detached() -> bool:
    """Whether a stream that is waiting on its socket copes with a descriptor that is gone.

    On trio and on asyncio's own loop. uvloop has to find the descriptor when the wait is over.
    """
    asyncio = sys.modules.get("asyncio")  # on trio nobody needs it
    if asyncio is None:
        return True
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return True  # trio
    return isinstance(loop, asyncio.SelectorEventLoop)


class Taken(PendingClose):
    """A connection that was taken from its stream.

    What the stream still holds of its own is flushed before the close sequence begins. The peer's
    input is thrown away meanwhile: one that sends all before it reads takes nothing while nobody
    reads.

    Attributes:
        shared: The stream keeps a descriptor of its own.
        tls: The stream speaks it.
        closes_late: The stream waits on its descriptor itself, and is closed after the dup.
        flushed: All that the stream held is in the kernel; False: not yet; None: not asked yet.
        failure: What the network told the stream alone.
    """

    __slots__ = (
        "_cut_short",
        "_drain_way",
        "_drained",
        "_end",
        "_flushed",
        "_peer_ended",
        "_stream_is_closed",
        "_unacked",
        "_waited",
        "closes_late",
        "failure",
        "flushed",
        "shared",
        "tls",
    )

    def __init__(
        self, end: End, sock: socket.socket, options: Options, since: float, *, shared: bool
    ) -> None:
        sock.settimeout(0)  # as its framework had it; a new object does not know
        super().__init__(options, sock, since)
        self.shared = shared
        self.tls = bool(end.layers)
        self.flushed: bool | None = None
        self.failure: OSError | None = None
        self._end = end
        self._drain_way: Drain | None = None
        self._peer_ended = False
        self._drained = 0
        self._flushed = 0
        self._waited = False
        self._unacked: int | None = None
        # What is closed while it is waited on stays in the event loop's epoll for as long as a dup
        # lives, and wakes it for ever. A transport waits no more when it is closed; a stream that
        # waits on the socket itself (UNIX) could, on uvloop.
        self.closes_late = shared and isinstance(end.raw, socket.socket)
        self._stream_is_closed = False
        self._cut_short = False  # a send() goes on, and its record will be cut
        self.stood = shared and self._stands()

    def _stands(self) -> bool:
        """Whether there is a connection, and our FIN is not out."""
        try:
            self.sock.send(
                b"", MSG_NOSIGNAL
            )  # sends nothing, and fails all the same (tcp_sendmsg_locked())
        except OSError as error:
            # EPIPE: not any more. A reset is told once, so this is ours to remember.
            if not isinstance(error, BrokenPipeError) and error_kind(error) is ErrorKind.RESET:
                self._failed(error)
            return False
        return True

    def _failed(self, error: OSError) -> None:
        self.failure = error.with_traceback(None)

    async def ask(self, seconds: float = _TIME_TO_TELL) -> None:
        """Ask the stream for so long whether it holds something back."""
        scope = anyio.move_on_after(seconds)
        try:
            with scope:
                # Waits until the transport's buffer is empty, if there is one.
                await self._end.stream.send(b"")
        except anyio.BusyResourceError:
            self._cut_short = True
        except anyio.ClosedResourceError:
            pass
        except RuntimeError:
            pass  # asyncio's transport after write_eof(), which has flushed before its FIN
        except anyio.BrokenResourceError as error:
            if (
                isinstance(error.__cause__, OSError)
                and error_kind(error.__cause__) is not ErrorKind.OURS
            ):
                self._failed(error.__cause__)
        self.flushed = not scope.cancelled_caught

    async def find_out_why(self) -> None:
        """If the connection is gone, have the stream say what ended it."""
        for _ in range(_TURNS_TO_SAY_WHY):
            if not self.shared or self.stood or self.failure is not None:
                break
            await anyio.lowlevel.checkpoint()
            await self.ask()

    @property
    def is_through(self) -> bool:
        """There is nothing to flush, and nothing that it failed by."""
        return bool(self.flushed) and self.failure is None

    async def begin_to_end(self) -> None:
        """All is flushed: close the stream, and have TLS say what it has to say."""
        if not self.closes_late:
            await self._end.close()
            self._stream_is_closed = True
        if self.tls and self.close_notify is None:
            cut = self._cut_short
            self.close_notify = (False, None) if cut else await _last_records(self._end.layers)

    async def go_on(self, connection: Connection) -> Step:
        """The flush of `close_on`; see `Flush`."""
        sock, machine = connection.sock, connection.machine
        if not self.flushed and self._waited:
            await self.ask(LOOK_EVERY)
        if self.failure is not None:
            # A transport that has failed has thrown away what it held, and does not say how much.
            held = None if self.shared else 0
            return machine.failed(self.failure, monotonic(), held)
        if not self.flushed:
            self._waited = True
            try:
                self._drain(sock, machine.allowance)
            except OSError as error:
                return machine.failed(error, monotonic(), None)
            self._flushed += self._acknowledged(sock)
            # What the stream holds is not known.
            return machine.flushing(self._flushed, self._drained, None, monotonic())
        self.close_notify = None
        await self.begin_to_end()
        connection.close_notify = self.close_notify
        waited = bool(self._flushed or self._drained)
        return machine.flushed(self._drained, monotonic(), waited=waited)

    def _drain(self, sock: socket.socket, allowance: int | None) -> None:
        """Throw away what has come in."""
        if self._drain_way is None:
            self._drain_way = drain_of(sock, view_of(sock))
        for _ in range(READS_IN_A_ROW):
            most = None if allowance is None else allowance - self._drained
            if self._peer_ended or most == 0:
                break  # the machine is to meet it again
            try:
                count = self._drain_way.read(sock, most)
            except OSError as error:
                if error_kind(error) in NOT_NOW:
                    break
                raise
            self._peer_ended = count == 0
            self._drained += count

    def _acknowledged(self, sock: socket.socket) -> int:
        """How much less is unacknowledged than when it was asked last."""
        before = self._unacked
        self._unacked = now = count_unacked(sock, view_of(sock))
        return max(0, before - now) if before is not None and now is not None else 0

    async def end(self) -> None:
        """Close the stream if that is not done yet. The dup is closed."""
        if not self._stream_is_closed:
            await self._end.close()

    async def drop(self, error: BaseException) -> None:
        """Close at once. A stream that is cut short by that ends in a reset."""
        pending = LingerPolicy.ABORT if self.flushed is False else LingerPolicy.BACKGROUND
        close_at_once([self.sock], pending)
        if not isinstance(error, GeneratorExit):  # after which nothing may be awaited
            await self._end.close()


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


async def _last_records(layers: list[TLSStream]) -> LastRecords:
    """What sessions over each other have to say, in the records of the lowest."""
    words = b""
    notified: bool | None = None
    peers: bool | None = None
    for layer in layers:
        words, said, heard = await _ask(layer, words)
        if layer is layers[0]:
            peers = heard
        notified = said and notified is not False
    return LastRecords(words, notified, peers)


async def _ask(session: TLSStream, above: bytes) -> LastRecordsOf:
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
