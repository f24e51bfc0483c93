"""Take a connection over from an anyio stream."""

from __future__ import annotations

import _socket
import errno
import math
import socket
import ssl
import sys
from functools import partial
from weakref import WeakSet

import anyio
import anyio.abc
import anyio.lowlevel
from anyio.streams.buffered import BufferedByteStream
from anyio.streams.stapled import StapledByteStream
from anyio.streams.tls import TLSAttribute, TLSStream

from ._acks import count_acked, count_unacked
from ._async import Multiplexer, TaskClose
from ._clock import monotonic
from ._close_all import close_at_once
from ._connection import NOT_NOW, READS_IN_A_ROW
from ._drain import Drain, drain_of
from ._linger import LingerPolicy
from ._platform import ErrorKind, error_kind
from ._release import set_policy_at_close
from ._selector import LOOK_EVERY
from ._sockets import peer_of, plain_dup, view_of
from ._tls import MSG_NOSIGNAL, LastRecords

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from typing import Any

    from typing_extensions import TypeIs

    from ._connection import Connection
    from ._options import Options
    from ._result import CloseResult
    from ._step import Step

    # The arguments of LastRecords.
    LastRecordsOf = tuple[bytes, bool | None, bool | None]

# The most turns of the event loop in which a closed transport closes its descriptor. One or two turns
# are enough. Heuristic: a larger number, so that the wait is bounded.
_TURNS_TO_CLOSE = 50

# The most turns in which the stream of a connection that is gone returns the reason. One or two turns
# are enough. Heuristic: one more.
_TURNS_TO_FAIL = 3

# In seconds: how long a stream may take to report whether it holds unsent bytes, whatever the timeout.
# A stream needs one turn of the event loop. Heuristic: longer, for a loop that is busy.
_TIME_TO_CHECK = 0.1


# The streams of which a dup was taken. They are closed later.
_taken: WeakSet[anyio.abc.SocketStream] = WeakSet()


class End:
    """The objects to close: the stream of a socket, and the TLS sessions over the stream.

    Attributes:
        layers: The TLS sessions, the uppermost first.
        stream: The stream below the sessions.
        raw: The object that represents the stream's socket; None: the stream has ended.

    Raises:
        TypeError: The argument is not a stream, or not the stream of a socket.
        RuntimeError: The stream belongs to another event loop.
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
                if isinstance(below, _Tap):  # another close collects the last records
                    below = below.connection
            elif isinstance(below, BufferedByteStream) or _is_stapled_of_one(below):
                self._wrappers.append(below)
                below = below.receive_stream
            else:
                break
        if not isinstance(below, anyio.abc.SocketStream):
            over = f"a TLSStream over a SocketStream is needed, not over {below!r}"
            alone = (
                "a SocketStream, a TLSStream, a BufferedByteStream or a StapledByteStream of one "
                f"stream twice is needed, not {stream!r}"
            )
            raise TypeError(over if self.layers else alone)
        if _is_elsewhere(below):
            raise RuntimeError(f"{below!r} belongs to another event loop")
        self.stream = below
        self.raw: socket.socket | None = None
        try:
            self.raw = below.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610 (no SQL)
        except (AttributeError, ValueError):
            pass  # uvloop's transport has no socket when it has ended, and anyio reads the socket

    def take(self, close: TaskClose) -> Taken | None:
        """Take the descriptor, or a dup if the event loop keeps the descriptor.

        None: the stream is closed, or another task is closing it. (An abort does not mind that.)

        Raises:
            OSError: No descriptor is available for the dup (EMFILE, ENFILE).
        """
        raw = self.raw
        if raw is None or raw.fileno() == -1:
            return None
        if self.stream in _taken and not close.abort:
            return None
        # The object that asyncio and uvloop return for a transport is not a socket.
        if not (isinstance(raw, socket.socket) and _may_be_detached()):
            taken = Taken(self, plain_dup(raw), close, shared=True)
            _wake_earlier_waiters(taken.sock.fileno())
            _taken.add(self.stream)
            return taken
        anyio.notify_closing(raw.fileno())
        held: list[Any] = []
        adopt = partial(_socket.socket, raw.family, raw.type, raw.proto)
        # In one call, because an exception of a signal handler between two calls would leak the
        # descriptor.
        held.extend(map(adopt, map(_socket.socket.detach, (raw,))))
        raw.detach()  # there is no descriptor to detach, but the object is now marked as closed
        return Taken(self, held[0], close, shared=False)

    @property
    def is_open(self) -> bool:
        """Whether the stream's own descriptor is open."""
        return self.raw is not None and self.raw.fileno() != -1

    def peer(self) -> object:
        """The peer's address, if it is known."""
        return None if self.raw is None else peer_of(self.raw)

    async def close(self) -> None:
        """Close the stream and wait until its descriptor is closed. No scope cancels this."""
        with anyio.CancelScope(shield=True):
            await self.stream.aclose()
            for wrapper in self._wrappers:
                await wrapper.aclose()
            for _ in range(_TURNS_TO_CLOSE):
                if not self.is_open:
                    return
                await anyio.lowlevel.cancel_shielded_checkpoint()

    async def close_without_dup(self, close: TaskClose) -> None:
        """Close as the stream itself does, if no descriptor is available for a dup.

        The connection is not drained, but what the stream holds is flushed. If the flush takes longer
        than a peer may be silent, or is cancelled, the connection is reset.
        """
        whole = False
        try:
            if not close.abort:
                self._set_policy(LingerPolicy.BACKGROUND)
                with anyio.move_on_after(close.options.longest_silence):
                    whole = await self._flush()
        except BaseException as error:
            if isinstance(error, GeneratorExit):  # after which await is not allowed
                self._set_policy(LingerPolicy.ABORT)
                raise
            await self.reset()
            raise
        await (self.close() if whole else self.reset())

    async def _flush(self) -> bool:
        """Send what the stream holds. False: another task's send() is in progress, and is cut."""
        try:
            # Waits until the transport's buffer is empty, if the stream has a transport.
            await self.stream.send(b"")
            if self.layers:
                records = await _last_records(self.layers)
                await self.stream.send(records.left)
        except anyio.BusyResourceError:
            return False
        except (RuntimeError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # nothing more can be sent; RuntimeError: after write_eof()
        return True

    def _set_policy(self, policy: LingerPolicy) -> None:
        if self.raw is not None and self.is_open:
            set_policy_at_close(self.raw, policy)

    async def reset(self) -> None:
        """Make the stream reset the connection."""
        self._set_policy(LingerPolicy.ABORT)
        await self.close()


def _is_stapled_of_one(stream: object) -> TypeIs[StapledByteStream]:
    """Whether a stapled stream sends and receives through one stream."""
    if not isinstance(stream, StapledByteStream):
        return False
    sends: object = stream.send_stream
    return sends is stream.receive_stream


def _is_elsewhere(stream: object) -> bool:
    """Whether another event loop runs the transport of a stream, as far as that is visible."""
    transport = getattr(stream, "_transport", None)
    if transport is None:
        return False  # a stream of trio, or a UNIX stream
    if _asyncio_loop() is None:
        return True
    try:
        from ._asyncio_view import is_elsewhere
    except (ImportError, OSError):
        return False  # EMFILE: no descriptor to load the module, so it is not visible

    return is_elsewhere(transport)


def _may_be_detached() -> bool:
    """Whether the descriptor may be detached while a stream waits for its socket.

    True on trio and on asyncio's own loop. uvloop needs the descriptor when the wait is over.
    """
    loop = _asyncio_loop()
    return loop is None or isinstance(loop, sys.modules["asyncio"].SelectorEventLoop)


def _asyncio_loop() -> Any:
    """Asyncio's running loop; None: trio runs."""
    asyncio = sys.modules.get("asyncio")  # trio does not import asyncio
    try:
        return None if asyncio is None else asyncio.get_running_loop()
    except RuntimeError:
        return None


def multiplexer() -> Multiplexer:
    """Return the multiplexer of the running event loop."""
    if _asyncio_loop() is not None:
        from ._asyncio_multiplexer import multiplexer as of_loop

        return of_loop()
    from ._trio_multiplexer import multiplexer as of_run

    return of_run()


def clock() -> Callable[[], float]:
    """The clock of the running event loop's waits."""
    try:
        return multiplexer().clock
    except (ImportError, OSError):
        # EMFILE: no descriptor to load the module of the multiplexer. A close fails later for this
        # reason, when it has the stream and can close it.
        return monotonic if _asyncio_loop() is not None else sys.modules["trio"].current_time


def now() -> float:
    """Read the clock of the running event loop's waits."""
    return clock()()


def new_close(options: Options, since: float, **more: Any) -> TaskClose:
    return TaskClose(options, since, clock=clock(), **more)


def _wake_earlier_waiters(number: int) -> None:
    """Wake the tasks that wait for an earlier descriptor with this number, which was closed."""
    for _ in range(2):
        try:
            anyio.notify_closing(number)
        except OSError:
            pass  # a reader and a writer: asyncio's selector forgets both before it raises


class Taken:
    """A connection that was taken from its stream.

    The stream's own unsent bytes are flushed before the close sequence begins. During the flush the
    peer's input is read and discarded, because a peer that sends everything before it reads accepts
    nothing until its data is read.

    Attributes:
        sock: The descriptor, or the dup.
        close: The close of the connection.
        result: How the connection ended; None before the end.
        shared: The stream keeps a descriptor of its own.
        tls: The stream has a TLS session.
        closes_late: The stream itself waits for its descriptor, and is closed after the dup.
        flushed: All bytes that the stream held are in the kernel. False: not yet, or never. None: not
            checked yet.
        failure: Why the kernel never gets them: the network's error, or one that names what cut the
            flush short.
    """

    __slots__ = (
        "_acked_at_first",
        "_drain_way",
        "_drained",
        "_end",
        "_flushed",
        "_has_counter",
        "_has_transport",
        "_is_sending",
        "_peer_ended",
        "_stream_is_closed",
        "_unacked",
        "_moving",
        "_waited",
        "_was_cut",
        "close",
        "closes_late",
        "failure",
        "flushed",
        "result",
        "shared",
        "sock",
        "tls",
    )

    def __init__(
        self, end: End, sock: socket.socket, close: TaskClose, *, shared: bool
    ) -> None:
        sock.settimeout(0)  # as the framework had set it; a new object has another value
        self.sock = sock
        self.close = close
        self.result: CloseResult | None = None
        self._moving: anyio.CancelScope | None = None
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
        self._acked_at_first: int | None = None
        self._has_counter = True
        # A descriptor that is closed during a wait stays in the event loop's epoll as long as a dup
        # exists, and wakes the loop forever. A closed transport no longer waits. A stream that itself
        # waits for the socket (UNIX) could still wait, on uvloop.
        self.closes_late = shared and isinstance(end.raw, socket.socket)
        # Its reader is woken by the stream: two wake-ups would end the same future (InvalidStateError).
        close.wakes_readers = not self.closes_late
        self._stream_is_closed = False
        # All other streams hold nothing above the kernel.
        self._has_transport = shared and not self.closes_late
        self._was_cut = False
        self._is_sending = False  # a send() is in progress, and its record will be cut
        close.stood = shared and self._stands()

    def _stands(self) -> bool:
        """Whether the connection exists, and our FIN was not sent."""
        try:
            # Sends nothing, but fails like a real send (tcp_sendmsg_locked()).
            self.sock.send(b"", MSG_NOSIGNAL)
        except OSError as error:
            # EPIPE: our FIN was sent, or the connection is over. The kernel reports a reset once, so
            # the reset is kept here.
            if not isinstance(error, BrokenPipeError) and error_kind(error) is ErrorKind.RESET:
                self._failed(error)
            return False
        return True

    def _failed(self, error: OSError) -> None:
        self.failure = error.with_traceback(None)

    async def ask(self, seconds: float = _TIME_TO_CHECK) -> None:
        """Check whether the stream holds unsent bytes; wait for at most `seconds`."""
        if not (self.shared or self.tls):
            self.flushed = True  # a stream of trio holds nothing
            return
        scope = anyio.move_on_after(seconds)
        try:
            with scope:
                # Waits until the transport's buffer is empty, if the stream has a transport.
                await self._end.stream.send(b"")
                if not self._end.is_open:
                    await self._end.stream.send(b"")  # reports why the transport has ended
        except anyio.BusyResourceError:
            self._is_sending = True  # what that task sends is cut, as on trio
        except anyio.ClosedResourceError:
            self._cut("another task closed the stream")
        except RuntimeError:
            pass  # asyncio's transport after write_eof(); it flushes before its FIN
        except anyio.BrokenResourceError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and error_kind(cause) is not ErrorKind.OURS:
                self._failed(cause)
            elif not isinstance(cause, RuntimeError):
                # The transport has failed (MemoryError), and has discarded its bytes.
                self._cut(f"the stream has failed: {cause!r}")
        if scope.cancelled_caught:
            self.flushed = False
            return
        # A transport also ends the wait when it is aborted, and has then closed its socket.
        if not self._end.is_open:
            self._cut("another task aborted the transport")
        self.flushed = self.failure is None

    def _cut(self, reason: str) -> None:
        """The kernel never gets the bytes that the transport may have held."""
        if self._has_transport and self.failure is None:
            self._was_cut = True
            self._failed(OSError(errno.ECONNABORTED, reason))

    async def find_failure(self) -> None:
        """If the connection is gone, get the error that ended it from the stream."""
        for _ in range(_TURNS_TO_FAIL):
            if not self.shared or self.close.stood or self.failure is not None:
                break
            await anyio.lowlevel.checkpoint()
            await self.ask()

    async def begin_to_end(self) -> None:
        """After the flush: close the stream, and create the final records of TLS."""
        if not self.closes_late:
            await self._end.close()
            self._stream_is_closed = True
        if self.tls and self.close.close_notify is None:
            cut = self._is_sending
            self.close.close_notify = (
                (False, None) if cut else await _last_records(self._end.layers)
            )

    async def go_on(self, connection: Connection) -> Step:
        """One step of the flush; see `Flush`."""
        sock, machine = connection.sock, connection.machine
        if not self.flushed and self._waited:
            await self._until_something_moves(
                sock, max(0.0, machine.wake_at - connection.clock())
            )
        if self.failure is not None:
            # A transport that has failed has discarded its bytes, and does not report how many.
            held = None if self.shared else 0
            if self._was_cut:
                return machine.cut_short(held, self.failure, connection.clock())
            return machine.failed(self.failure, connection.clock(), held)
        if not self.flushed:
            self._waited = True
            try:
                self._drain(sock, machine.allowance)
            except OSError as error:
                return machine.failed(error, connection.clock(), None)
            # The number of bytes that the stream holds is unknown.
            return machine.flushing(
                self._count_flushed(sock), self._drained, None, connection.clock()
            )
        connection.close_notify = None
        await self.begin_to_end()
        return machine.flushed(self._drained, connection.clock(), waited=self._waited)

    def stop(self) -> None:
        """End the flush early: nothing is watched between two calls of `go_on`."""

    def wake(self) -> None:
        """Make `go_on` return now."""
        if self._moving is not None:
            self._moving.cancel()

    def _drain(self, sock: socket.socket, allowance: int | None) -> None:
        """Read and discard the input that has arrived."""
        if self._drain_way is None:
            self._drain_way = drain_of(sock, view_of(sock))
        for _ in range(READS_IN_A_ROW):
            most = None if allowance is None else allowance - self._drained
            if self._peer_ended or most == 0:
                break  # the machine meets the end, or the limit, again
            try:
                count = self._drain_way.read(sock, most)
            except OSError as error:
                if error_kind(error) in NOT_NOW:
                    break
                raise
            self._peer_ended = count == 0
            self._drained += count

    def _count_flushed(self, sock: socket.socket) -> int:
        """How many bytes were acknowledged since the first call."""
        view = view_of(sock)
        acked = count_acked(sock, view)
        if acked is not None:
            if self._acked_at_first is None:
                self._acked_at_first = acked
            return acked - self._acked_at_first
        # Only what is seen from one look to the next.
        self._has_counter = False
        before, self._unacked = self._unacked, count_unacked(sock, view)
        if before is not None and self._unacked is not None:
            self._flushed += max(0, before - self._unacked)
        return self._flushed

    async def _until_something_moves(self, sock: socket.socket, seconds: float) -> None:
        """Wait until the stream has flushed, until there is input, or until the time is over."""
        if not self._has_counter:
            seconds = min(seconds, LOOK_EVERY)
        with anyio.move_on_after(seconds) as self._moving:
            async with anyio.create_task_group() as group:

                async def wake_after(wait: Callable[[], Awaitable[object]]) -> None:
                    await wait()
                    group.cancel_scope.cancel()

                if not self._peer_ended:
                    group.start_soon(wake_after, partial(anyio.wait_readable, sock))
                await wake_after(partial(self.ask, math.inf))

    async def end(self) -> None:
        """Close the stream if it is not closed yet. The dup is already closed."""
        if not self._stream_is_closed:
            await self._end.close()

    async def drop(self, error: BaseException) -> None:
        """Close immediately. If bytes are lost, or may be lost, the stream ends with a reset."""
        may_wait = not isinstance(error, GeneratorExit)  # after which await is not allowed
        if self.flushed is None and may_wait:
            await self._ask_without_waiting()
        policy = LingerPolicy.BACKGROUND if self.flushed else LingerPolicy.ABORT
        close_at_once([self.sock], policy)
        if may_wait:
            await self._end.close()

    async def _ask_without_waiting(self) -> None:
        """`ask` after a cancellation, for as many turns as a stream that holds nothing needs."""
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as group:
                group.start_soon(self.ask, math.inf)
                for _ in range(_TURNS_TO_FAIL):
                    await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()


# --- TLS -------------------------------------------------------------------------------------


class _NothingMore(anyio.ClosedResourceError):
    """No more input was received. A task that should not be reading gets this as a closed stream."""


class _Tap(anyio.abc.ByteStream):
    """Replaces the connection below a TLS session, and collects the records that the session sends.

    A session over the connection itself would wait for the connection, possibly past the deadline. The
    session would also read more input, and input prevents close_notify.
    """

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.records = bytearray()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {}

    async def send(self, item: bytes) -> None:
        self.records += item

    async def receive(self, max_bytes: int = 65536) -> bytes:
        raise _NothingMore

    async def send_eof(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


async def _last_records(layers: list[TLSStream]) -> LastRecords:
    """The final records of all sessions, encrypted by each session below."""
    records = b""
    notified: bool | None = None
    peers: bool | None = None
    for layer in layers:
        records, sent, received = await _ask(layer, records)
        if layer is layers[0]:
            peers = received
        notified = sent and notified is not False
    return LastRecords(records, notified, peers)


async def _ask(session: TLSStream, above: bytes) -> LastRecordsOf:
    """The final records of one session, after the records of the session above."""
    connection = session.transport_stream
    session.transport_stream = tap = _Tap(connection)
    try:
        # Input that was read from the connection and not yet from the session prevents close_notify:
        # unwrap() and aclose() fail (APPLICATION_DATA_AFTER_CLOSE_NOTIFY), and send nothing.
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
        peers = None  # an end of the stream without close_notify counts as one
    return bytes(tap.records), True, peers


async def _read_out(session: TLSStream) -> None:
    """Read the input that the session has received."""
    try:
        while True:
            await session.receive()
    except (_NothingMore, anyio.EndOfStream):
        pass  # unwrap() distinguishes the kinds of end


async def _unwrap(session: TLSStream) -> bool | None:
    """Send close_notify. Returns whether the peer's was read; None: not read that far."""
    try:
        await session.unwrap()
    except _NothingMore:
        return None
    return True
