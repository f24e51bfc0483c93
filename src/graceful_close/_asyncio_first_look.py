"""The close of a transport that holds nothing: no dup if the peer ends within a turn of the loop.

A plain transport of asyncio or uvloop calls connection_lost() one turn after its close() if its buffer
is empty, and closes its descriptor after that. Until then the close sequence runs on the transport's
own descriptor:

1. `begin()`: the first steps of the sequence, with our FIN; then `transport.close()`.
2. `connection_lost()`: the first look. If it finds the peer's FIN, and everything is acknowledged,
   the transport closes the last descriptor. Otherwise the sequence takes a dup, and continues on it.
"""

from __future__ import annotations

import asyncio

from ._asyncio_transport import Taker, close_plainly, some_turns
from ._asyncio_view import can_watch, info_of, is_sending_file
from ._linger import LingerPolicy
from ._release import set_policy_at_close
from ._sockets import plain_dup
from ._step import RELEASE, WAIT_READABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ._loop import Pending
    from ._result import CloseResult
    from ._step import Step


# Whose transports close their descriptor after connection_lost(). Another loop might close it before,
# and the number might then belong to another connection.
_KNOWN = ("asyncio", "uvloop")


def holds_nothing(transport: asyncio.Transport) -> bool:
    """Whether a known transport is open and plain, and everything written to it is in the kernel."""
    return (
        type(transport).__module__.partition(".")[0] in _KNOWN
        and not transport.is_closing()  # it may have met a reset that it has not reported yet
        and transport.get_write_buffer_size() == 0
        and info_of(transport, "ssl_object") is None
        and not is_sending_file(transport, transport.get_protocol())
        and can_watch(asyncio.get_running_loop())
    )


class FirstLook(Taker):
    """Replaces a transport's protocol between its close() and its connection_lost().

    Args:
        transport: A transport that holds nothing.
        close: The close of the connection. It has a dup if `result` is None.

    Attributes:
        close: As above.
        owner: The old protocol, until its connection_lost() was called.
        result: How the connection ended; None: not at its first look.
        step: The next step if `result` is None.
        error: The first look, or the dup, failed with this.
    """

    step: Step

    def __init__(self, transport: asyncio.Transport, close: Pending) -> None:
        self.owner = transport.get_protocol()
        self.result: CloseResult | None = None
        self.error: BaseException | None = None
        self.close = close
        self._transport = transport
        self._then: Callable[[FirstLook], object] | None = None
        self._given_up = False

    def begin(self, then: Callable[[FirstLook], object] | None = None) -> None:
        """Close the transport; `then` is called after the first look, unless this raises."""
        transport, close = self._transport, self.close
        self._then = then
        try:
            transport.set_protocol(self)
            sock = transport.get_extra_info("socket")
            close_plainly(sock)
            self.step = close.begin_borrowed(sock)
            # Runs before the connection_lost().
            asyncio.get_running_loop().call_soon(self._hold)
            transport.close()
        except BaseException:
            self._give_up()
            raise

    def _hold(self) -> None:
        if self.owner is not None:
            self.hold(self._transport)

    async def look(self) -> None:
        """Close the transport, and wait until it has closed its descriptor.

        Raises:
            OSError: No descriptor is available for the dup (EMFILE, ENFILE). The transport closes
                the connection without waiting; it had nothing to lose.
        """
        try:
            self.begin()
            await some_turns(until=self._has_ended)
            if self.error is not None:
                raise self.error
        except BaseException as error:
            self._give_up()
            if not isinstance(error, GeneratorExit):  # after which nothing may be awaited
                await some_turns(until=self._has_ended)
            raise

    def _give_up(self) -> None:
        """Close immediately, without lingering."""
        self._given_up, self._then = True, None
        self.close.abandon()
        self._transport.abort()

    def _has_ended(self) -> bool:
        return self.owner is None

    # --- what the transport calls ---

    def pause_writing(self) -> None:
        self.owner.pause_writing()

    def resume_writing(self) -> None:
        self.owner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        owner, self.owner = self.owner, None
        try:
            if not self._given_up:
                self._look()
        except BaseException as error:  # noqa: BLE001 (whoever began the close gets it)
            self.error = error
            self.close.abandon()  # before the transport closes the descriptor
        finally:
            if self._then is not None:
                self._then(self)
            owner.connection_lost(exc)

    def _look(self) -> None:
        close, step = self.close, self.step
        if step is WAIT_READABLE:
            step = close.waited(step)
        self.step = close.carry_out(step)
        if self.step is RELEASE and not close.has_machine:
            self.result = close.release()
            return
        try:
            dup = plain_dup(close.sock)
        except OSError:
            set_policy_at_close(close.sock, LingerPolicy.BACKGROUND)
            raise
        try:
            close.adopt(dup)
        except BaseException:
            dup.close()
            raise
