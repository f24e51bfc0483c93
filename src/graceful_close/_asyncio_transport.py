"""Take a connection over from an asyncio transport. `asyncio.py` lists the private names that it reads."""

from __future__ import annotations

import asyncio
import errno
import math
import socket
import ssl
from functools import cached_property

from ._acks import count_acked, count_unacked, count_written, read_state
from ._asyncio_view import (
    can_watch,
    forget_number,
    is_sending_file,
    open_socket_of,
    size_of_buffer,
)
from ._clock import monotonic
from ._close_all import close_at_once
from ._drain import drain_of
from ._linger import LingerPolicy
from ._listener import Accepted
from ._platform import ErrorKind, error_kind, forget_tls_error
from ._release import set_policy_at_close, shut_for_writing
from ._sockets import plain_dup, view_of
from ._step import FLUSH
from ._teardown import PEER_FIN_SEEN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ._connection import Connection
    from ._platform import View
    from ._step import Step
    from ._teardown import Teardown


# Turns of the event loop without a wait: other tasks run, and nothing is waited for. A transport
# with an empty buffer ends in one or two turns. Heuristic: a further turn costs microseconds.
FEW_TURNS = 3

# How many turns a TLS transport gets before its deadline is checked. Heuristic: enough for an
# ordinary reply.
_TURNS_TO_FLUSH = 20

# The most turns in which an aborted transport ends. One turn for each layer of TLS, and one more,
# are enough. Heuristic: a larger number, so that the wait is bounded.
_TURNS_TO_END = 50

# How many bytes a TLS transport may have passed to the transport below before close(), and which are
# not in the kernel yet. See TransportTakeover.
_OUT_OF_SIGHT = 64 << 10

# After this many turns in which the kernel has room and takes nothing, no bytes can be left. In the
# first of these turns the transport below may not have run yet.
_QUIET_TURNS = 3

# The kinds of error that end a connection.
_OF_THE_NETWORK = (
    ErrorKind.RESET,
    ErrorKind.LOST,
    ErrorKind.REFUSED,
    ErrorKind.NOT_CONNECTED,
    ErrorKind.CLOSED,
)


def wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)


async def until_woken(woken: asyncio.Future[None], seconds: float) -> None:
    timer = woken.get_loop().call_later(seconds, wake, woken)
    try:
        await woken
    finally:
        timer.cancel()


async def some_turns(until: Callable[[], bool]) -> None:
    """Run the loop until an aborted transport has ended."""
    for _ in range(_TURNS_TO_END):
        if until():
            return
        await asyncio.sleep(0)


async def take_over(
    transport: asyncio.Transport, *, or_reset: bool = True
) -> TransportTakeover | None:
    """Duplicate the descriptor and take the connection over; None: the transport has ended.

    Raises:
        OSError: No descriptor is available for the dup (EMFILE, ENFILE). The connection is reset
            if `or_reset` is true.
    """
    sock = open_socket_of(transport)
    if sock is None:
        return None
    try:
        return takeover_of(transport, sock)
    except BaseException as error:  # a KeyboardInterrupt, too
        if isinstance(error, OSError) and not or_reset:
            raise
        reset(transport)
        await some_turns(until=lambda: open_socket_of(transport) is None)
        raise


def takeover_of(transport: asyncio.Transport, sock: Any) -> TransportTakeover:
    """Take over with a dup of a transport's descriptor, which the transport then closes plainly."""
    dup = plain_dup(sock)
    try:
        close_plainly(sock)
        return TransportTakeover(transport, dup)
    except BaseException:
        dup.close()  # first, because a dup delays the reset of the connection
        raise


def close_plainly(sock: Any) -> None:
    """Keep a transport from giving a connection to a Reaper: a close of ours has it already.

    The socket of a transport hides the object that a GracefulListener accepted; there is no public
    way to it.
    """
    accepted = getattr(sock, "_sock", None)
    if isinstance(accepted, Accepted):
        accepted.make_plain()


def reset(transport: asyncio.Transport) -> None:
    """Make a transport reset the connection. No dup exists, which would delay the reset."""
    sock = open_socket_of(transport)
    if sock is not None:
        set_policy_at_close(sock, LingerPolicy.ABORT)
        transport.abort()


class Taker(asyncio.Protocol):
    """Replaces a transport's protocol during a close.

    Attributes:
        owner: The old protocol, until its connection_lost() was called.
    """

    owner: Any

    def hold(self, transport: asyncio.Transport) -> None:
        """Replace the protocol again if its owner has set another one since.

        Another close of the transport has replaced this object, and calls it: that one stays.
        """
        its_own = transport.get_protocol()
        if not isinstance(its_own, Taker):
            self.owner = its_own
            transport.set_protocol(self)


class TransportTakeover(Taker):
    """Replaces a transport's protocol while the transport ends, and owns the dup.

    The takeover forwards to the old protocol the calls that the protocol's owner still needs:
    connection_lost(), which ends StreamWriter.wait_closed() and pending reads, and
    resume_writing(), which ends drain().

    A plain transport calls connection_lost() when the kernel has all bytes that the transport held.
    A TLS transport first waits for the peer's close_notify or for `ssl_shutdown_timeout`. If input
    arrives during that wait (the rest of an upload), asyncio's TLS transport fails and drops the
    bytes that it holds. Therefore asyncio's TLS transport is prevented from reading. A TLS transport
    is watched until the kernel has all bytes, and is then aborted:

    - After close(), close_notify is the last record in the TLS transport's own buffer. The TLS
      transport passes the whole buffer to the transport below as soon as the transport below holds
      less than a low-water mark. So when get_write_buffer_size() returns 0, all bytes that are not
      in the kernel are in the transport below.
    - The transport below writes in every turn of the loop in which the kernel has room. So when two
      turns with room have passed in which the kernel took nothing, no bytes are left. If the kernel
      does not count written bytes, as many turns must pass as a full buffer of the transport below
      needs.
    - If this reasoning is wrong in some case, the transport below writes after our FIN and fails
      with EPIPE. Then the peer was not notified, and the result reports it. With `peer_first` our
      FIN is not sent yet, and nothing checks the reasoning.

    A transport that another caller aborts during the flush calls connection_lost() like a transport
    that has flushed. A plain transport has flushed only if the kernel took as many bytes as the
    transport held. A TLS transport ends by itself when the peer's close_notify or FIN has arrived;
    otherwise it was cut.

    If the owner sets another protocol during the flush, that one becomes the old protocol.

    Attributes:
        sock: The dup. O_NONBLOCK, SO_LINGER and the FIN belong to the connection, not to the dup.
        tls: Whether the transport is a TLS transport.
        is_empty: The kernel had all bytes before the transport was closed. The transport then only
            closes its descriptor.
    """

    def __init__(self, transport: asyncio.Transport, sock: socket.socket) -> None:
        self.sock = self._sock = sock
        self._drained = 0
        self._fin_sent = False
        self._waited = False  # some bytes were not in the kernel when the close began
        self._notified: tuple[bool, bool | None] | None = None
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._session: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        self.tls = self._session is not None
        # A second close() takes its state from asyncio's TLS transport, which then cannot be aborted.
        self._state: Any = getattr(transport, "_ssl_protocol", None)
        # uvloop's TLS transport discards input after close(), and would not stay paused.
        self._fails_over_input = self.tls and isinstance(transport, asyncio.Transport)
        self.is_empty = False
        self._at_first: int | None = None  # the value of _flushed() when the flush began
        self._limit = math.inf  # of the bytes that may be drained
        self._begun = False
        self._watched: int | None = None  # the number of the descriptor
        # With room, after which all bytes must be in the kernel.
        self._turns_left = 1 if self.tls else 0
        self._written: int | None = None  # bytes in the kernel, when last counted
        self._expected: int | None = None  # in the kernel, when a plain transport has flushed
        self._cut = False  # a sendfile() is in progress, and its bytes are not counted
        # What a plain transport holds cannot be counted: it must report that it is empty.
        self._must_be_emptied = False
        self._is_emptied = False
        self._woken: asyncio.Future[None] | None = None
        self._lost = False  # the transport has called connection_lost()
        self._error: Exception | None = None
        self.owner = transport.get_protocol()
        transport.set_protocol(self)

    @cached_property
    def _view(self) -> View:
        return view_of(self._sock)  # determined once, because the flush counts in every turn

    # --- what the transport calls ---

    def data_received(self, data: bytes) -> None:
        pass

    def pause_writing(self) -> None:
        self.owner.pause_writing()

    def resume_writing(self) -> None:
        self._is_emptied = True
        self.owner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._error = self._error or exc
        self.wake()
        owner, self.owner = self.owner, None
        owner.connection_lost(exc)

    # --- flushing ---

    async def begin_later(self) -> None:
        """`begin`, but never inside the read of a TLS transport.

        The first step of an eager task may run in data_received().
        """
        if self.tls and not self._begun:
            await asyncio.sleep(0)
        self.begin()

    def begin(self) -> None:
        """Make the transport flush, send close_notify, and stop reading."""
        if self._begun or self._lost:
            return
        self._begun = True
        transport = self._transport
        self._cut = is_sending_file(transport, self.owner)
        if not self.tls:
            # A transport that is closing may have met a reset that it has not reported yet.
            ends_well = not transport.is_closing() and not self._cut
            self.is_empty = ends_well and transport.get_write_buffer_size() == 0
            if not self.is_empty:
                self._count_expected()
            transport.close()
            return
        self._written = count_written(self._sock, self._view)
        try:
            self._close_tls()
        except AttributeError:
            pass  # asyncio's TLS transport has no state left when it is closed twice
        out_of_sight = _OUT_OF_SIGHT + size_of_buffer(transport)
        self._turns_left = 2 + out_of_sight // _piece_of(self._sock)
        self._watch()

    def _close_tls(self) -> None:
        # A StreamReader at its limit has paused the transport, and input is not decrypted yet. Such
        # input would make the unwrap() in close() fail (APPLICATION_DATA_AFTER_CLOSE_NOTIFY), and
        # close_notify would not be sent.
        transport: Any = self._transport
        transport.resume_reading()
        if not transport.is_closing():
            transport.close()
            forget_tls_error()  # of the unwrap() in close(), which asyncio passes to the transport
        if self._fails_over_input:
            # Pauses the transport below, before it can read more. Only TLS transports have this method.
            transport.set_read_buffer_limits(high=0)

    def _count_expected(self) -> None:
        held = self._transport.get_write_buffer_size()
        if held == 0:
            return  # a transport that is closing may have failed, and forgotten what it held
        written = count_written(self._sock, self._view)
        if written is not None:
            self._expected = written + held
        else:
            self._must_be_emptied = True
            # The transport then calls resume_writing() at 0 bytes, and not if it is aborted.
            self._transport.set_write_buffer_limits(high=0)

    @property
    def has_ended_well(self) -> bool:
        """A plain transport has ended, and the kernel has all bytes that the transport held."""
        return self._lost and self._error is None and not self.tls and not self.was_cut

    @property
    def was_cut(self) -> bool:
        """The transport has dropped the bytes that it held, or drops them when it ends."""
        if self._cut or not self._lost:
            return self._cut
        if self._session is not None:
            if isinstance(self._error, ssl.SSLError) and self._turns_left:
                return True  # the transport dropped what it held
            return not (
                self._turns_left == 0
                or self._has_received_close_notify
                or self._peer_has_ended()
            )
        written = count_written(self._sock, self._view)
        if written is None or self._expected is None:
            return self._must_be_emptied and not self._is_emptied
        return written < self._expected

    @cached_property
    def _has_sent_close_notify(self) -> bool:
        """Whether close_notify was created. OpenSSL then rejects even an empty write."""
        if self._session is None:
            return False
        try:
            self._session.write(b"")
        except OSError as error:
            forget_tls_error()
            return getattr(error, "reason", None) == "PROTOCOL_IS_SHUTDOWN"
        return False

    @cached_property
    def _has_received_close_notify(self) -> bool | None:
        """After the transport's end: whether the peer's close_notify was read; None: not known.

        OpenSSL creates a close_notify when it is asked for the peer's, so ours is asked for first.
        """
        _ = self._has_sent_close_notify
        if self._session is None:
            return None
        try:
            self._session.unwrap()
        except OSError:
            forget_tls_error()
            return None  # the input was not read that far
        return True

    def _peer_has_ended(self) -> bool:
        """Whether the peer's FIN has arrived, which makes the transport end by itself."""
        state = read_state(self._sock, self._view)
        if state is not None:
            return state in PEER_FIN_SEEN
        try:
            return not self._sock.recv(1, socket.MSG_PEEK)
        except OSError:
            return False  # EWOULDBLOCK

    def _has_ended(self) -> bool:
        """Whether the transport has ended. Its protocol is this object again."""
        if not (self._lost or self.tls):
            if open_socket_of(self._transport) is None:
                self._lost = True  # another protocol got the connection_lost()
            else:
                self.hold(self._transport)
        return self._lost

    def _is_through(self) -> bool:
        """The wait is over: the kernel has all bytes, or never gets them."""
        if self._has_ended() or self._error is not None or self._cut:
            return True
        return self.tls and self._turns_left == 0

    async def go_on(self, connection: Connection) -> Step:
        """One step of the flush; see `Flush`."""
        self._sock = connection.sock  # this object has the dup's descriptor
        return await self._go_on(connection.machine, connection.options.limit)

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
        """How many bytes are not in the kernel yet; None: unknown."""
        if self.tls:
            return 0 if self._turns_left == 0 else None
        written = count_written(self._sock, self._view)
        if self._cut or written is None or self._expected is None:
            # A transport that has ended no longer reports how many bytes it held.
            forgotten = self._lost or self._cut
            return None if forgotten else size_of_buffer(self._transport)
        return max(0, self._expected - written)

    async def _some_turns(self) -> None:
        """Run the loop for a few turns, in which the transport does the work that needs no wait."""
        for _ in range(FEW_TURNS + min(self._turns_left, _TURNS_TO_FLUSH)):
            if self._is_through():
                return
            await asyncio.sleep(0)

    def _flushed(self) -> int:
        """The number of flushed bytes, plus a constant."""
        acked = count_acked(self._sock, self._view)
        if acked is not None:
            return acked
        # The bytes that have left both the transport's buffer and the kernel's.
        return -size_of_buffer(self._transport) - (self._count_unacked() or 0)

    def _count_unacked(self) -> int | None:
        return count_unacked(self._sock, self._view)

    def _watch(self) -> None:
        if self._watched is not None or not can_watch(self._loop):
            return
        self._watched = number = self._sock.fileno()
        forget_number(self._loop, number)
        if not self.tls or self._fails_over_input:
            # A peer that sends everything before it reads accepts nothing until its data is read.
            # There is never a second reader: a TLS transport that gets only a part of the input fails.
            self._drain_way = drain_of(self._sock, self._view)
            self._loop.add_reader(number, self._read)
        self._loop.add_writer(number, self._count_turn)

    def _unwatch(self) -> None:
        if self._watched is not None:
            self._loop.remove_reader(self._watched)
            self._loop.remove_writer(self._watched)
            self._watched = None  # last: an interrupt makes the caller call this again

    def stop(self) -> None:
        """End the flush early; called before the descriptor is closed."""
        self._unwatch()

    def _read(self) -> None:
        try:
            count = self._drain_way.read(self._sock, None)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            # The kernel returns an error once. From now on the transport gets only EPIPE.
            self._error = self._error or error.with_traceback(None)
            self.wake()
            count = 0
        self._drained += count
        if self._drained > self._limit:
            self.wake()
        if count == 0 or self._drained > self._limit:
            self._loop.remove_reader(self._sock.fileno())

    def _count_turn(self) -> None:
        """The kernel has room in this turn of the loop."""
        if self.tls and size_of_buffer(self._transport) == 0:
            before, self._written = self._written, count_written(self._sock, self._view)
            if self._written is None:
                self._turns_left = max(0, self._turns_left - 1)
            elif self._written == before:
                self._turns_left = max(0, min(self._turns_left, _QUIET_TURNS) - 1)
            else:
                self._turns_left = max(self._turns_left, _QUIET_TURNS)
        if self._is_through():
            self._loop.remove_writer(self._sock.fileno())
            self.wake()

    def wake(self) -> None:
        """Make `go_on` return now."""
        if self._woken is not None:
            wake(self._woken)

    # --- the transport's end ---

    async def _conclude(self, machine: Teardown) -> Step:
        """The wait is over: report the reason to the machine."""
        self._unwatch()
        if self._failure() is None:
            await self._part(may_send_fin=machine.may_send_fin)
        # The transport may have met a reset in its last turns.
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
        """The error that the flush failed with: `_error`, or one that reports the cut."""
        error = self._error
        # An error of TLS itself (the peer's bytes are not TLS) does not end the connection. An EPIPE
        # after our FIN is caused by our FIN.
        ours = self._fin_sent and isinstance(error, BrokenPipeError)
        goes_on = error is None or ours or (self.tls and not _is_of_the_network(error))
        if goes_on and not self.was_cut:
            return None
        if isinstance(error, OSError) and _is_of_the_network(error):
            return error
        return OSError(errno.ECONNABORTED, "the transport was aborted, or sends a file")

    async def _part(self, *, may_send_fin: bool) -> None:
        """End the transport without a reset, after it has flushed."""
        if self._session is None:
            await self.end()
            return
        sent = self._has_sent_close_notify
        if may_send_fin and not self._lost:
            try:
                shut_for_writing(self._sock)
                self._fin_sent = True
            except OSError:
                pass  # ENOTCONN: the close sequence calls shutdown() again, and gets ENOTCONN, too
            for _ in range(FEW_TURNS):  # the transport would fail in these turns
                await asyncio.sleep(0)
        await self.end()
        self._notified = sent and self._error is None, self._has_received_close_notify

    async def end(self) -> None:
        """Make the transport close its descriptor and call connection_lost() of the owner."""
        self._unwatch()
        # asyncio's transport fails later, in a callback, if abort() is called after its end.
        if not self._has_ended():
            self._abort()
        await some_turns(until=self._has_ended)

    def _abort(self) -> None:
        self._transport.abort()
        below = getattr(self._state, "_transport", None)
        if below is not None:
            below.abort()

    def drop(self) -> None:
        """Close immediately. If bytes are lost, the stream ends with a reset."""
        self._unwatch()
        whole = self._has_ended() and self._error is None and not self.was_cut
        close_at_once([self.sock], LingerPolicy.BACKGROUND if whole else LingerPolicy.ABORT)
        if not self._lost:
            self._abort()


def _piece_of(sock: socket.socket) -> int:
    """The least number of bytes that fit in when a socket that was full becomes writable."""
    # BSD, macOS: SO_SNDLOWAT. On Linux SO_SNDLOWAT is 1 and has no effect (socket(7)). Linux: a
    # third of the buffer (sk_stream_is_writeable(); unix_writable() requires more), of which the
    # kernel's overhead takes as much again. Heuristic: an eighth.
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
