"""How to ask a kernel which of our bytes the peer has not acknowledged yet."""

from __future__ import annotations

import errno
import sys

from .._value import Value

if sys.platform != "win32":
    import fcntl

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Final


class Ioctl(Value):
    """An int that ioctl() gives."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number: Final = number

    def read(self, sock: socket.socket) -> int:
        if sys.platform == "win32":
            raise OSError("ioctl() on sockets is not to be had from Python on Windows")
        else:  # noqa: RET506  (type checkers follow this form)
            # A buffer to write to: for an immutable one fcntl makes a copy and another object.
            answer = bytearray(4)
            fcntl.ioctl(sock, self.number, answer)
            return int.from_bytes(answer, sys.byteorder)


class Field(Value):
    """An unsigned number of `size` bytes at `offset` in what getsockopt() gives."""

    __slots__ = ("level", "option", "offset", "size")

    def __init__(self, level: int, option: int, offset: int, size: int) -> None:
        self.level: Final = level
        self.option: Final = option
        self.offset: Final = offset
        self.size: Final = size

    def read(self, sock: socket.socket) -> int:
        end = self.offset + self.size
        return int.from_bytes(
            sock.getsockopt(self.level, self.option, end)[self.offset : end], sys.byteorder
        )


class AckProbe(Value):
    """One system's count of what is not acknowledged.

    Attributes:
        queue: The send queue in bytes.
        state: The TCP state, where the queue does not count the FIN.
        fin_waits_in: The states in which our FIN is sent and not acknowledged.
        survives_reset: The count stays what it was when an RST came. Where it does not, the
            kernel drops the queue and 0 proves nothing after a reset.
    """

    __slots__ = ("queue", "state", "fin_waits_in", "survives_reset")

    def __init__(
        self,
        queue: Ioctl | Field,
        state: Field | None = None,
        fin_waits_in: frozenset[int] = frozenset(),
        survives_reset: bool = False,
    ) -> None:
        self.queue: Final = queue
        self.state: Final = state
        self.fin_waits_in: Final = fin_waits_in
        self.survives_reset: Final = survives_reset

    def read(self, sock: socket.socket) -> int:
        """Bytes not acknowledged, an unacknowledged FIN counted as one.

        Raises:
            OSError: The kernel does not say.
            ValueError: The socket object is closed.
        """
        try:
            count = self.queue.read(sock)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return 0  # listening (tcp(7)): nothing was ever written to it
            raise
        if self.state is not None and self.state.read(sock) in self.fin_waits_in:
            count += 1
        return count

    def counter(self) -> Callable[[socket.socket], int]:
        """`read`, for connections alone: without what they have no need of on this system."""
        return self.queue.read if self.state is None else self.read


class Sight(Value):
    """What can be seen of a connection's acknowledgements from here.

    Attributes:
        acks: Unacknowledged bytes can be counted.
        survives_reset: The count is still right after a reset.
        kernel_lingers: For want of anything better, close() with {1, n} waits in the kernel.
    """

    __slots__ = ("acks", "survives_reset", "kernel_lingers")

    def __init__(self, *, acks: bool, survives_reset: bool, kernel_lingers: bool) -> None:
        self.acks: Final = acks
        self.survives_reset: Final = survives_reset
        self.kernel_lingers: Final = kernel_lingers


ACKS = Sight(acks=True, survives_reset=True, kernel_lingers=False)
ACKS_UNTIL_RESET = Sight(acks=True, survives_reset=False, kernel_lingers=False)
KERNEL_LINGERS = Sight(acks=False, survives_reset=False, kernel_lingers=True)
BLIND = Sight(acks=False, survives_reset=False, kernel_lingers=False)
