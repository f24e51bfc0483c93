"""The close of a transport without a dup, because no descriptor is left (EMFILE, ENFILE).

The transport closes itself: it flushes, and closes its descriptor. The connection is not drained, and
its end is not observed. But the peer gets what the transport's own `close()` delivers. The state
machine limits the silence of the flush.
"""

from __future__ import annotations

import asyncio

from . import _platform
from ._acks import count_acked, count_unacked
from ._asyncio_transport import Taker, close_plainly, reset, some_turns, until_woken, wake
from ._asyncio_view import info_of, open_socket_of, size_of_buffer
from ._clock import monotonic
from ._linger import LingerPolicy
from ._release import set_policy_at_close
from ._sockets import borrow_descriptor, view_of
from ._step import FLUSH
from ._teardown import Teardown

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from ._async import TaskClose


class WithoutDup(Taker):
    """Replaces a transport's protocol while the transport closes itself.

    Args:
        transport: A transport that is open, or is closing.
        close: The close of the connection, for its options.
    """

    def __init__(self, transport: asyncio.Transport, close: TaskClose) -> None:
        self._transport = transport
        self._close = close
        self._woken: asyncio.Future[None] | None = None
        self.owner = transport.get_protocol()
        transport.set_protocol(self)

    async def end(self) -> None:
        """Close the transport, and wait until it has flushed and has closed its descriptor.

        If it does not flush in time, or if the wait is cancelled, the connection is reset, because the
        peer has only a part of the data.
        """
        # Wakes us if a Reaper makes room.
        self._close.flushed_by = self  # type: ignore[assignment]  # only `wake` is called
        try:
            await asyncio.sleep(0)  # not inside the read of a TLS transport, as `begin_later`
            await self._flush()
            await some_turns(until=self._has_ended)
        except BaseException as error:
            reset(self._transport)
            if not isinstance(error, GeneratorExit):  # after which nothing may be awaited
                await some_turns(until=self._has_ended)
            raise
        finally:
            self._close.flushed_by = None

    async def _flush(self) -> None:
        transport, close = self._transport, self._close
        sock = open_socket_of(transport)
        if sock is None:
            return
        close_plainly(sock)
        set_policy_at_close(sock, LingerPolicy.BACKGROUND)
        machine = Teardown(close.options, close.since, _platform.HERE.other, flush=True)
        machine.start()
        at_first, _ = self._count()
        if not transport.is_closing():
            transport.close()
        while not self._has_ended():
            if close.on_expiry is not None:
                machine.expire(monotonic(), close.on_expiry)
            self._woken = asyncio.get_running_loop().create_future()
            await until_woken(self._woken, max(0.0, machine.wake_at - monotonic()))
            if self._has_ended():
                break
            flushed, unacked = self._count()
            if machine.flushing(flushed - at_first, 0, None, monotonic()) is not FLUSH:
                self._give_up(unacked)
                break

    def _give_up(self, unacked: int | None) -> None:
        if info_of(self._transport, "ssl_object") is not None and unacked == 0:
            self._transport.abort()  # it has flushed, and waits for the peer's close_notify
        else:
            reset(self._transport)

    def _count(self) -> tuple[int, int | None]:
        """The number of flushed bytes, plus a constant, and the bytes that are not acknowledged."""
        sock = open_socket_of(self._transport)
        held: list[socket.socket] = []
        try:
            if sock is None or not borrow_descriptor(sock, held):
                return 0, None
            view = view_of(held[0])
            acked, unacked = count_acked(held[0], view), count_unacked(held[0], view)
        finally:
            if held:  # as in `unacked_bytes`
                held[0].detach()
        buffered = size_of_buffer(self._transport)
        flushed = acked if acked is not None else -buffered - (unacked or 0)
        return flushed, None if unacked is None else unacked + buffered

    def _has_ended(self) -> bool:
        # After connection_lost() the transport closes its descriptor. If the owner has set another
        # protocol, that one got the connection_lost().
        return open_socket_of(self._transport) is None

    def wake(self) -> None:
        """Make `end` look at `on_expiry` now."""
        if self._woken is not None:
            wake(self._woken)

    # --- what the transport calls ---

    def pause_writing(self) -> None:
        self.owner.pause_writing()

    def resume_writing(self) -> None:
        self.owner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        owner, self.owner = self.owner, None
        self.wake()
        owner.connection_lost(exc)
