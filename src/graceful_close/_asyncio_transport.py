"""Taking a connection over from an asyncio transport, by public interfaces alone."""

from __future__ import annotations

import asyncio
import errno
import math
import socket
import ssl
from functools import cached_property
from time import monotonic

from ._acks import count_acked, count_unacked, count_written, read_state
from ._close_all import close_at_once
from ._drain import drain_of
from ._linger import LingerPolicy
from ._platform import ErrorKind, error_kind
from ._release import reset_at_close, shut_for_writing
from ._sockets import plain_dup, view_of
from ._step import FLUSH
from ._teardown import PEER_FIN_SEEN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ._connection import Connection
    from ._platform import View
    from ._step import Step
    from ._teardown import Teardown


# Turns of the event loop that are free: others run, and nothing is waited for. A transport with
# an empty buffer ends in one or two. Arbitrary above that: they cost microseconds.
FEW_TURNS = 3

# How many turns to give TLS before its time is looked at. Arbitrary: enough for an ordinary reply.
_TURNS_TO_FLUSH = 20

# In how many turns an aborted transport has ended: one for each layer of TLS, and one. Arbitrary
# above that, so that nothing waits for ever.
_TURNS_TO_END = 50

# What a TLS transport may have handed down before close(), not yet in the kernel; see TransportTakeover.
_OUT_OF_SIGHT = 64 << 10

# Turns with room in which the kernel takes nothing, after which nothing can be left. The first may
# be one in which the transport below has yet to have its own turn.
_QUIET_TURNS = 3

# What ends a connection.
_OF_THE_NETWORK = (
    ErrorKind.RESET,
    ErrorKind.LOST,
    ErrorKind.REFUSED,
    ErrorKind.NOT_CONNECTED,
    ErrorKind.CLOSED,
)


def info_of(transport: asyncio.Transport, name: str) -> Any:
    try:
        return transport.get_extra_info(name)
    except AttributeError:
        return None  # asyncio's TLS transport forgets everything when it is closed twice


def open_socket_of(transport: asyncio.Transport) -> socket.socket | None:
    """What stands for a transport's socket, as long as it is open."""
    sock: socket.socket | None = info_of(transport, "socket")
    return None if sock is None or sock.fileno() == -1 else sock


def can_watch(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether the loop waits on descriptors of ours; Windows' ProactorEventLoop does not."""
    return type(loop).add_reader is not asyncio.AbstractEventLoop.add_reader


def wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)


async def until_woken(woken: asyncio.Future[None], seconds: float) -> None:
    timer = woken.get_loop().call_later(seconds, wake, woken)
    try:
        await woken
    finally:
        timer.cancel()


async def take_over(
    transport: asyncio.Transport, *, or_reset: bool = True
) -> TransportTakeover | None:
    """Take the dup; None: the transport has ended.

    Raises:
        OSError: There is no descriptor for it (EMFILE, ENFILE). The connection is reset, if
            `or_reset` is true.
    """
    sock = open_socket_of(transport)
    if sock is None:
        return None
    try:
        return TransportTakeover(transport, plain_dup(sock))
    except OSError:
        if not or_reset:
            raise
        reset(transport)
        for _ in range(_TURNS_TO_END):
            if open_socket_of(transport) is None:
                break
            await asyncio.sleep(0)
        raise


def reset(transport: asyncio.Transport) -> None:
    """Have a transport reset the connection, with no dup to keep it from lingering."""
    sock = open_socket_of(transport)
    if sock is not None:
        reset_at_close(sock)
        transport.abort()


class TransportTakeover(asyncio.Protocol):
    """Stands in the place of a transport's protocol while the transport ends; holds the dup.

    What their owner still needs is passed on to the old protocol: connection_lost(), which ends
    StreamWriter.wait_closed() and whoever reads, and resume_writing(), which ends drain().

    A plain transport says by connection_lost() that the kernel has all that it held. One of TLS
    does not: before that it waits for the peer's close_notify or for `ssl_shutdown_timeout`, and
    input meanwhile (the rest of an upload) makes asyncio's fail and drop what it holds. So that is
    kept from reading. Each is watched until the kernel has all, and then aborted:

    - After close(), close_notify stands last in the TLS transport's own buffer. All of that goes
      to the transport below as soon as that holds less than a low-water mark. So once
      get_write_buffer_size() is 0, what is out of sight is in the transport below.
    - In every turn of the loop in which there is room, the transport below writes. So when two
      turns with room have passed in which the kernel took nothing, nothing is left. Where the
      kernel does not count, as many turns must pass as that buffer can take.
    - Should that be wrong, the transport below finds our FIN in its way, and fails with EPIPE.
      Then the peer was not notified, and the result reports it.

    A transport that was aborted meanwhile, by whomever, says connection_lost() like one that has
    flushed. A plain one has only flushed if the kernel took as many bytes as it held. One of TLS
    ends by itself when the peer's close_notify or its FIN has come, and else was cut.

    Attributes:
        owner: The old protocol, until it has had its connection_lost().
        sock: The dup. O_NONBLOCK, SO_LINGER and the FIN are the connection's, not the dup's.
        tls: Whether the transport speaks it.
        is_empty: The kernel had all before the transport was closed: it just lets go.
    """

    def __init__(self, transport: asyncio.Transport, sock: socket.socket) -> None:
        self.sock = self._sock = sock
        self._drained = 0
        self._fin_sent = False
        self._waited = False  # something was above the kernel when the close began
        self._notified: tuple[bool, bool | None] | None = None
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._session: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        self.tls = self._session is not None
        # uvloop's throws away what comes after close(), and would not stay paused.
        self._fails_over_input = self.tls and isinstance(transport, asyncio.Transport)
        self.is_empty = False
        self._at_first: int | None = None  # what was flushed when the flush began
        self._limit = math.inf  # of what may be drained
        self._begun = False
        self._watching = False
        self._turns_left = 0  # with room, until everything must be in the kernel
        self._written: int | None = None  # to the kernel, when it was last looked at
        self._owed: int | None = None  # what that must be when a plain transport has flushed
        self._cut = False  # a sendfile() is going on, whose bytes nobody knows
        self._woken: asyncio.Future[None] | None = None
        self._lost = False  # the transport has said connection_lost()
        self._error: Exception | None = None
        self.owner: Any = transport.get_protocol()
        transport.set_protocol(self)

    @cached_property
    def _view(self) -> View:
        return view_of(self._sock)  # asked once: the flush counts in every turn of the loop

    # --- what the transport tells ---

    def data_received(self, data: bytes) -> None:
        pass

    def pause_writing(self) -> None:
        self.owner.pause_writing()

    def resume_writing(self) -> None:
        self.owner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._error = self._error or exc
        self._wake()
        owner, self.owner = self.owner, None
        owner.connection_lost(exc)

    # --- flushing ---

    def begin(self) -> None:
        """Have the transport flush, say its goodbye, and read no more."""
        if self._begun:
            return
        self._begun = True
        transport = self._transport
        self._cut = _sends_file(transport, self.owner)
        if not self.tls:
            # One that is closing may have met a reset, and have yet to say so.
            ends_well = not transport.is_closing() and not self._cut
            self.is_empty = ends_well and transport.get_write_buffer_size() == 0
            if not self.is_empty:
                self._count_owed()
            transport.close()
            return
        self._written = count_written(self._sock, self._view)
        # A reader at its limit has paused it, and input lies undecrypted. That would make the
        # unwrap() in close() fail (APPLICATION_DATA_AFTER_CLOSE_NOTIFY) and send nothing.
        transport.resume_reading()
        if not transport.is_closing():  # because asyncio's forgets all in a second close()
            transport.close()
        if self._fails_over_input:
            # Pauses the transport below, before it can read more. TLS transports alone have it.
            tls: Any = transport
            tls.set_read_buffer_limits(high=0)
        out_of_sight = _OUT_OF_SIGHT + transport.get_write_buffer_size()
        self._turns_left = 2 + out_of_sight // _piece_of(self._sock)
        self._watch()

    def _count_owed(self) -> None:
        written = count_written(self._sock, self._view)
        if written is not None:
            self._owed = written + self._transport.get_write_buffer_size()

    @property
    def has_ended_well(self) -> bool:
        """A plain transport that is through, and the kernel has all."""
        return self._lost and self._error is None and not self.tls and not self.was_cut

    @property
    def was_cut(self) -> bool:
        """The transport has dropped what it held, or does so when it ends."""
        if self._cut or not self._lost:
            return self._cut
        if self._session is not None:
            return not (
                self._turns_left == 0
                or _has_heard_goodbye(self._session)
                or self._peer_has_ended()
            )
        written = count_written(self._sock, self._view)
        if written is None or self._owed is None:
            return False  # nobody knows
        return written < self._owed

    def _peer_has_ended(self) -> bool:
        """Whether the peer's end of the stream is there, over which the transport ends by itself."""
        state = read_state(self._sock, self._view)
        if state is not None:
            return state in PEER_FIN_SEEN
        try:
            return not self._sock.recv(1, socket.MSG_PEEK)
        except OSError:
            return False  # EWOULDBLOCK

    def _is_through(self) -> bool:
        """There is nothing to wait for: the kernel has all, or will never have it."""
        if self._lost or self._error is not None or self._cut:
            return True
        return self.tls and self._turns_left == 0

    async def go_on(self, connection: Connection) -> Step:
        """The flush of `close_on`; see `Flush`."""
        self._sock = connection.sock  # whose descriptor is the dup's
        try:
            return await self._go_on(connection.machine, connection.options.limit)
        except BaseException:
            self._unwatch()  # before the descriptor is closed
            raise

    async def _go_on(self, machine: Teardown, limit: float) -> Step:
        if self._at_first is None:
            await self._some_turns()
            if not self._is_through():
                self._watch()
            self._limit = limit
            self._at_first = self._flushed()
        else:
            self._waited = True
            self._woken = self._loop.create_future()
            await until_woken(self._woken, max(0.0, machine.wake_at - monotonic()))
            await self._some_turns()
        if self._is_through():
            return await self._conclude(machine)
        flushed = max(0, self._flushed() - self._at_first)
        step = machine.flushing(flushed, self._drained, self._held(), monotonic())
        if step is not FLUSH:
            self._unwatch()
        return step

    def _held(self) -> int | None:
        """How many bytes are above the kernel; None: nobody knows."""
        if self.tls:
            return 0 if self._turns_left == 0 else None
        written = count_written(self._sock, self._view)
        if self._cut or written is None or self._owed is None:
            # One that has ended has forgotten how many it held.
            forgotten = self._lost or self._cut
            return None if forgotten else self._transport.get_write_buffer_size()
        return max(0, self._owed - written)

    async def _some_turns(self) -> None:
        """Let the transport do what it need not wait for."""
        for _ in range(FEW_TURNS + min(self._turns_left, _TURNS_TO_FLUSH)):
            if self._is_through():
                return
            await asyncio.sleep(0)

    def _flushed(self) -> int:
        """Bytes that were flushed, give or take a constant."""
        acked = count_acked(self._sock, self._view)
        if acked is not None:
            return acked
        # What is in neither the transport's buffer nor the kernel's any more.
        return -self._transport.get_write_buffer_size() - (self._count_unacked() or 0)

    def _count_unacked(self) -> int | None:
        return count_unacked(self._sock, self._view)

    def _watch(self) -> None:
        if self._watching or not can_watch(self._loop):
            return
        self._watching = True
        if not self.tls or self._fails_over_input:
            # A peer that sends all before it reads takes nothing while nobody reads. Never two
            # of us: half of what is encrypted is an error.
            self._drain_way = drain_of(self._sock, self._view)
            self._loop.add_reader(self._sock.fileno(), self._read)
        if self.tls:
            self._loop.add_writer(self._sock.fileno(), self._count_turn)

    def _unwatch(self) -> None:
        if self._watching:
            self._watching = False
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())

    def _read(self) -> None:
        try:
            count = self._drain_way.read(self._sock, None)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            # The kernel says it once. All that the transport hears now is EPIPE.
            self._error = self._error or error.with_traceback(None)
            self._wake()
            count = 0
        self._drained += count
        if self._drained > self._limit:
            self._wake()
        if count == 0 or self._drained > self._limit:
            self._loop.remove_reader(self._sock.fileno())

    def _count_turn(self) -> None:
        """There is room in this turn of the loop."""
        if self._transport.get_write_buffer_size() == 0:
            before, self._written = self._written, count_written(self._sock, self._view)
            if self._written is None:
                self._turns_left = max(0, self._turns_left - 1)
            elif self._written == before:
                self._turns_left = max(0, min(self._turns_left, _QUIET_TURNS) - 1)
            else:
                self._turns_left = max(self._turns_left, _QUIET_TURNS)
        if self._is_through():
            self._loop.remove_writer(self._sock.fileno())
            self._wake()

    def _wake(self) -> None:
        if self._woken is not None:
            wake(self._woken)

    # --- the transport's end ---

    async def _conclude(self, machine: Teardown) -> Step:
        """There is nothing to wait for: tell the machine why."""
        self._unwatch()
        if self._failure() is None:
            await self._part()
        # It may have met a reset in the last moment.
        error = self._failure()
        now = monotonic()
        if error is None:
            return machine.flushed(
                self._drained,
                now,
                waited=self._waited,
                fin_sent=self._fin_sent,
                notified=self._notified,
            )
        if error is self._error:
            return machine.failed(error, now, self._held())
        return machine.cut_short(self._held(), error, now)

    def _failure(self) -> OSError | None:
        """What the flush failed by: `_error`, or that it was cut short."""
        error = self._error
        # An error of TLS's own (what the peer sends is no TLS) is no end of the connection, and our
        # FIN in the transport's way (EPIPE) is our own doing.
        ours = self._fin_sent and isinstance(error, BrokenPipeError)
        goes_on = error is None or ours or (self.tls and not _is_of_the_network(error))
        if goes_on and not self.was_cut:
            return None
        if isinstance(error, OSError) and _is_of_the_network(error):
            return error
        return OSError(errno.ECONNABORTED, "the transport was aborted, or sends a file")

    async def _part(self) -> None:
        """Have the transport end without a reset, after it has flushed."""
        if self._session is None:
            await self.end()
            return
        said = _has_said_goodbye(self._session)
        if not self._lost:
            try:
                shut_for_writing(self._sock)
                self._fin_sent = True
            except OSError:
                pass  # ENOTCONN: whoever does it again gets it, too
            for _ in range(FEW_TURNS):  # in which the transport would fail
                await asyncio.sleep(0)
        await self.end()
        self._notified = said and self._error is None, _has_heard_goodbye(self._session)

    async def end(self) -> None:
        """Have the transport let go of its descriptor, and tell its owner."""
        self._unwatch()
        if not self._lost:  # asyncio's transport stumbles over an abort() after its end
            self._transport.abort()
        for _ in range(_TURNS_TO_END):
            if self._lost:
                return
            await asyncio.sleep(0)

    def drop(self) -> None:
        """Close at once. A stream that is cut short by that ends in a reset."""
        self._unwatch()
        whole = self._lost and self._error is None and not self.was_cut
        close_at_once([self.sock], LingerPolicy.BACKGROUND if whole else LingerPolicy.ABORT)
        if not self._lost:
            self._transport.abort()


def _sends_file(transport: asyncio.Transport, protocol: object) -> bool:
    """Whether loop.sendfile() is at work on a transport: it refuses to write even nothing then."""
    if (
        type(protocol).__name__ == "_SendfileFallbackProtocol"
    ):  # TLS, and what has no sendfile()
        return True
    try:
        transport.write(b"")
    except RuntimeError as error:
        return "sendfile" in str(error)  # not so after write_eof()
    return False


def _piece_of(sock: socket.socket) -> int:
    """How many bytes fit in at least when a socket that was full becomes writable."""
    # BSD, macOS: SO_SNDLOWAT, which says 1 on Linux and means nothing there (socket(7)). Linux: a
    # third of the buffer (sk_stream_is_writeable(); unix_writable() wants more), of which its
    # own overhead takes as much again. Arbitrary: an eighth.
    try:
        low_water = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDLOWAT)
    except OSError:
        low_water = 0  # ENOPROTOOPT: gVisor
    if low_water > 1:
        return low_water
    return max(1, sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 8)


def _is_of_the_network(error: Exception) -> bool:
    # OpenSSL's errors are OSErrors with numbers of their own.
    return (
        isinstance(error, OSError)
        and not isinstance(error, ssl.SSLError)
        and error_kind(error) in _OF_THE_NETWORK
    )


def _has_said_goodbye(session: ssl.SSLObject) -> bool:
    """Whether close_notify was made. OpenSSL then refuses to write even nothing."""
    try:
        session.write(b"")
    except OSError as error:
        return getattr(error, "reason", None) == "PROTOCOL_IS_SHUTDOWN"
    return False


def _has_heard_goodbye(session: ssl.SSLObject) -> bool | None:
    """Whether the peer's close_notify was read; None: nobody looked that far."""
    try:
        session.unwrap()
    except OSError:
        return None
    return True
