"""How to ask a kernel which of our bytes the peer has not acknowledged yet."""

from __future__ import annotations

import errno
import sys
from typing import TYPE_CHECKING, NamedTuple

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    import socket


class Ioctl(NamedTuple):
    """An int that ioctl() gives."""

    number: int

    def read(self, sock: socket.socket) -> int:
        if sys.platform == "win32":
            raise OSError("ioctl() on sockets is not to be had from Python on Windows")
        else:  # noqa: RET506  (type checkers follow this form)
            return int.from_bytes(fcntl.ioctl(sock, self.number, b"\0\0\0\0"), sys.byteorder)


class Field(NamedTuple):
    """An unsigned number of `size` bytes at `offset` in what getsockopt() gives."""

    level: int
    option: int
    offset: int
    size: int

    def read(self, sock: socket.socket) -> int:
        end = self.offset + self.size
        return int.from_bytes(
            sock.getsockopt(self.level, self.option, end)[self.offset : end], sys.byteorder
        )


class AckProbe(NamedTuple):
    """One system's count of what is not acknowledged.

    Attributes:
        queue: The send queue in bytes.
        state: The TCP state, where the queue does not count the FIN.
        fin_waits_in: The states in which our FIN is sent and not acknowledged.
        survives_reset: The count stays what it was when an RST came. Where it does not, the
            kernel drops the queue and 0 proves nothing after a reset.
    """

    queue: Ioctl | Field
    state: Field | None = None
    fin_waits_in: frozenset[int] = frozenset()
    survives_reset: bool = False

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


class Sight(NamedTuple):
    """What can be seen of a connection's acknowledgements from here.

    Attributes:
        acks: Unacknowledged bytes can be counted.
        survives_reset: The count is still right after a reset.
        kernel_lingers: For want of anything better, close() with {1, n} waits in the kernel.
    """

    acks: bool
    survives_reset: bool
    kernel_lingers: bool


BLIND = Sight(acks=False, survives_reset=False, kernel_lingers=False)
