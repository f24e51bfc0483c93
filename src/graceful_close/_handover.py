"""Taking a connection over from an asyncio transport, by public interfaces alone."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import sys
from time import monotonic

from ._checks import is_tcp
from ._connection import Connection
from ._delivery import count_unacked
from ._discard import discard_of
from ._linger import LingerPolicy, set_linger
from ._platform import Meaning, meaning
from ._release import let_go, shut_for_writing
from ._result import CloseOutcome, CloseResult
from ._teardown import TIMED_OUT
from ._terms import Patience, Terms

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from typing import Any

# Turns of the event loop that are free: others run, and nothing is waited for. A transport with
# an empty buffer ends in one or two. Arbitrary above that: they cost microseconds.
FEW_TURNS = 3

# How many turns to give TLS before its time is looked at. Arbitrary: enough for an ordinary reply.
_TURNS_TO_FLUSH = 20

# In how many turns an aborted transport has ended: one for each layer of TLS, and one. Arbitrary
# above that, so that nothing waits for ever.
_TURNS_TO_END = 50

# What a TLS transport may have handed down before close(), not yet in the kernel; see Handover.
_OUT_OF_SIGHT = 64 << 10

# What conclude() leaves to the machine.
_OF_THE_NETWORK = (Meaning.RESET, Meaning.LOST, Meaning.NOT_CONNECTED, Meaning.CLOSED)


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


async def take_over(transport: asyncio.Transport) -> Handover | None:
    """Take the dup; None: the transport has ended.

    Raises:
        OSError: There is no descriptor for it (EMFILE, ENFILE). The connection is reset.
    """
    sock = open_socket_of(transport)
    if sock is None:
        return None
    try:
        return Handover(transport, _dup(sock))
    except OSError:
        reset(transport)
        for _ in range(_TURNS_TO_END):
            if open_socket_of(transport) is None:
                break
            await asyncio.sleep(0)
        raise


def _dup(sock: socket.socket) -> socket.socket:
    """A socket object of our own for a connection that is a transport's."""
    if sys.platform == "win32":
        return sock.dup()
    # Plain, whatever the transport was given: a subclass may have put a meaning on its dup().
    return socket.socket(fileno=os.dup(sock.fileno()))


def reset(transport: asyncio.Transport) -> None:
    """Have a transport reset the connection, with no dup to keep it from lingering."""
    sock = open_socket_of(transport)
    if sock is not None:
        borrowed = socket.socket(sock.family, sock.type, sock.proto, sock.fileno())
        try:
            set_linger(borrowed, LingerPolicy.ABORT)
        except OSError:
            pass  # ENOTCONN, EINVAL (macOS): it is over
        finally:
            borrowed.detach()
        transport.abort()


class Handover(asyncio.Protocol):
    """Stands in the place of a transport's protocol while the transport ends; holds the dup.

    What their owner still needs is passed on to the old protocol: connection_lost(), which ends
    StreamWriter.wait_closed() and whoever reads, and resume_writing(), which ends drain().

    A plain transport says by connection_lost() that the kernel has all that it held. One of TLS
    does not: before that it waits for the peer's close_notify or for `ssl_shutdown_timeout`, and
    input meanwhile (the rest of an upload) makes asyncio's fail and drop what it holds. So that is
    kept from reading. Each is watched until the kernel has all, and then aborted:

    - After close(), close_notify stands last in the TLS transport's own buffer. All of that goes
      to the transport below as soon as that holds less than a low-water mark. So once
      get_write_buffer_size() is 0, what is out of sight is what it was after close(), and what
      the transport below held: its high-water mark, 64 KiB, at most.
    - In every turn of the loop in which there is room, the transport below writes; and a socket
      that it fills becomes writable again only when it can take a good piece. After as many
      turns with room as there are such pieces, nothing is left.
    - Should that be wrong (somebody raised that mark before start_tls()), the transport below
      finds our FIN in its way, and fails with EPIPE. Then the peer was not notified, and the
      result says so.

    Attributes:
        sock: The dup. O_NONBLOCK, SO_LINGER and the FIN are the connection's, not the dup's.
        tls: Whether the transport speaks it.
        is_empty: The kernel had all before the transport was closed: it just lets go.
        drained: Bytes read and thrown away so far.
        fin_sent: The dup is shut for writing.
        notified, peer_notified: As in `CloseResult`.
    """

    def __init__(self, transport: asyncio.Transport, sock: socket.socket) -> None:
        self.sock = sock
        self.drained = 0
        self.fin_sent = False
        self.notified: bool | None = None
        self.peer_notified: bool | None = None
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._session: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        self.tls = self._session is not None
        # uvloop's throws away what comes after close(), and would not stay paused.
        self._fails_over_input = self.tls and isinstance(transport, asyncio.Transport)
        self.is_empty = False
        self._limit = math.inf  # of what may be drained
        self._begun = False
        self._watching = False
        self._turns_left = 0  # with room, until everything must be in the kernel
        self._woken: asyncio.Future[None] | None = None
        self._lost = False  # the transport has said connection_lost()
        self._error: Exception | None = None
        self._owner: Any = transport.get_protocol()
        transport.set_protocol(self)

    # --- what the transport tells ---

    def data_received(self, data: bytes) -> None:
        pass

    def pause_writing(self) -> None:
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        self._owner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._error = self._error or exc
        self._wake()
        owner, self._owner = self._owner, None
        owner.connection_lost(exc)

    # --- flushing ---

    def begin(self) -> None:
        """Have the transport flush, say its goodbye, and read no more."""
        if self._begun:
            return
        self._begun = True
        transport = self._transport
        if not self.tls:
            # One that is closing may have met a reset, and have yet to say so.
            ends_well = not transport.is_closing()
            self.is_empty = ends_well and transport.get_write_buffer_size() == 0
            transport.close()
            return
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
        self._turns_left = 2 + out_of_sight // _piece_of(self.sock)
        self._watch()

    @property
    def has_ended_well(self) -> bool:
        """A plain transport that is through, and the kernel has all."""
        return self._lost and self._error is None and not self.tls

    def _is_through(self) -> bool:
        """There is nothing to wait for: the kernel has all, or will never have it."""
        if self._lost or self._error is not None:
            return True
        return self.tls and self._turns_left == 0

    async def flush(self, terms: Terms, since: float) -> CloseOutcome | None:
        """Wait until the kernel has all that the transport held.

        Returns:
            Why we gave up; None if there is nothing to wait for any more.
        """
        await self._some_turns()
        if not self._is_through():
            self._watch()
        self._limit = terms.limit
        patience = Patience(terms, since, monotonic())
        seen = self._signs_of_life()
        while not self._is_through():
            self._woken = self._loop.create_future()
            await until_woken(self._woken, max(0.0, patience.wake_at - monotonic()))
            await self._some_turns()
            now = monotonic()
            if self._is_through():
                break
            if now >= patience.idle_at:
                before, seen = seen, self._signs_of_life()
                if seen != before:
                    patience.sign_of_life(now)
            gave_up = patience.gives_up(now, self.drained)
            if gave_up is not None:
                return gave_up
        return None

    async def _some_turns(self) -> None:
        """Let the transport do what it need not wait for."""
        for _ in range(FEW_TURNS + min(self._turns_left, _TURNS_TO_FLUSH)):
            if self._is_through():
                return
            await asyncio.sleep(0)

    def _signs_of_life(self) -> tuple[int, int | None, int]:
        return self._transport.get_write_buffer_size(), self._count_unacked(), self.drained

    def _count_unacked(self) -> int | None:
        return count_unacked(self.sock, tcp=is_tcp(self.sock))

    def _watch(self) -> None:
        if self._watching or not can_watch(self._loop):
            return
        self._watching = True
        if not self.tls or self._fails_over_input:
            # A peer that sends all before it reads takes nothing while nobody reads. Never two
            # of us: half of what is encrypted is an error.
            self._discard = discard_of(self.sock, tcp=is_tcp(self.sock))
            self._loop.add_reader(self.sock.fileno(), self._read)
        if self.tls:
            self._loop.add_writer(self.sock.fileno(), self._count_turn)

    def _unwatch(self) -> None:
        if self._watching:
            self._watching = False
            self._loop.remove_reader(self.sock.fileno())
            self._loop.remove_writer(self.sock.fileno())

    def _read(self) -> None:
        try:
            count = self._discard.read(self.sock, None)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            # The kernel says it once. All that the transport hears now is EPIPE.
            self._error = self._error or error.with_traceback(None)
            self._wake()
            count = 0
        self.drained += count
        if self.drained > self._limit:
            self._wake()
        if count == 0 or self.drained > self._limit:
            self._loop.remove_reader(self.sock.fileno())

    def _count_turn(self) -> None:
        """There is room in this turn of the loop."""
        if self._transport.get_write_buffer_size() == 0:
            self._turns_left = max(0, self._turns_left - 1)
        if self._is_through():
            self._loop.remove_writer(self.sock.fileno())
            self._wake()

    def _wake(self) -> None:
        if self._woken is not None:
            wake(self._woken)

    # --- the transport's end ---

    def conclude(
        self, terms: Terms, since: float, gave_up: CloseOutcome | None = None
    ) -> CloseResult | None:
        """Close the dup if the connection, or our patience, has ended; None: go on with it."""
        self._unwatch()
        error = self._error
        # An error of TLS's own (what the peer sends is no TLS) is no end of the connection, and our
        # FIN in the transport's way (EPIPE) is our own doing.
        ours = self.fin_sent and isinstance(error, BrokenPipeError)
        goes_on = error is None or ours or (self.tls and not _is_of_the_network(error))
        if gave_up is None and goes_on:
            return None
        if self.tls:
            self.notified = False
        if gave_up is None and isinstance(error, OSError) and _is_of_the_network(error):
            connection = Connection(self.sock, terms, since, one_of_many=True)
            connection.carry_out(connection.machine.failed(error, monotonic()))
            return told(connection.let_go(), 0.0, self)
        # What the transport still holds is lost. The peer is to know that.
        unacked = self._count_unacked()
        if unacked is not None:
            unacked = None if self.tls else unacked + self._transport.get_write_buffer_size()
        complaint = let_go(self.sock, LingerPolicy.ABORT)
        result = CloseResult(gave_up or TIMED_OUT, monotonic() - since, 0, unacked, complaint)
        return told(result, 0.0, self)

    async def part(self) -> None:
        """Have the transport end without a reset, after it has flushed."""
        if self._session is None:
            await self.end()
            return
        said = _has_said_goodbye(self._session)
        if not self._lost:
            try:
                shut_for_writing(self.sock)
                self.fin_sent = True
            except OSError:
                pass  # ENOTCONN: whoever does it again is told, too
            for _ in range(FEW_TURNS):  # in which the transport would fail
                await asyncio.sleep(0)
        await self.end()
        self.notified = said and self._error is None
        self.peer_notified = _has_heard_goodbye(self._session)

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
        whole = self._lost and self._error is None
        let_go(self.sock, LingerPolicy.BACKGROUND if whole else LingerPolicy.ABORT)
        if not self._lost:
            self._transport.abort()


def _piece_of(sock: socket.socket) -> int:
    """How many bytes fit in at least when a socket that was full becomes writable."""
    # BSD, macOS: SO_SNDLOWAT, which says 1 on Linux and means nothing there (socket(7)). Linux: a
    # third of the buffer (sk_stream_is_writeable(); unix_writable() wants more), of which its
    # own overhead takes as much again. Arbitrary: an eighth.
    low_water = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDLOWAT)
    if low_water > 1:
        return low_water
    return max(1, sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 8)


def _is_of_the_network(error: Exception) -> bool:
    return isinstance(error, OSError) and meaning(error) in _OF_THE_NETWORK


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


def told(result: CloseResult, before: float, handover: Handover | None) -> CloseResult:
    """What became of a connection, with what happened before it was ours."""
    tls = handover is not None and handover.tls
    return CloseResult(
        result.outcome,
        before + result.elapsed,
        result.drained + (0 if handover is None else handover.drained),
        result.unacked,
        result.error,
        handover.notified if handover is not None and tls else result.notified,
        handover.peer_notified if handover is not None and tls else result.peer_notified,
    )
