"""Reading bytes only to throw them away."""

from __future__ import annotations

import _socket
import mmap
import socket
import sys
from functools import cache, partial

from . import _platform
from ._checks import is_native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

# One read's most. Arbitrary: more than a receive buffer usually holds, so that a read takes all
# there is; the mapping is never touched and costs nothing but address space.
_IN_KERNEL = 4 << 20

# One read's most where the bytes are copied to us. Arbitrary: larger reads are not cheaper any
# more, and a processor's cache still holds it.
_COPIED = 256 << 10

# A read this large means a peer in full flow; from then on, wait for as much before waking.
# Arbitrary within a factor of four: at 512 KiB a gigabyte takes a third of the wake-ups, and the
# receive buffer that Linux makes for it (tcp_set_rcvlowat()) is still an ordinary one.
_FLOOD = 64 << 10
_WAKE_FOR = 512 << 10

# Plain numbers, because `|` on the socket module's flags costs more than a system call does. No
# MSG_DONTWAIT on Windows, no MSG_TRUNC that discards but on Linux.
_MSG_TRUNC = int(getattr(socket, "MSG_TRUNC", 0))
_MSG_DONTWAIT = int(getattr(socket, "MSG_DONTWAIT", 0))


class Discard:
    """Throws a socket's input away, a read at a time, without ever waiting."""

    __slots__ = (
        "_buffer",
        "_flags",
        "_in_kernel",
        "_low_water",
        "_recv_into",
        "_size",
        "_sock",
        "_would_wait",
    )

    def __init__(self, sock: socket.socket, *, tcp: bool) -> None:
        self._sock = sock
        native = is_native(sock)
        self._recv_into = partial(_socket.socket.recv_into, sock) if native else sock.recv_into
        self._in_kernel = tcp and _platform.HERE.truncates
        self._low_water = 0  # what to restore; 0: it was not changed
        self._buffer: Buffer
        self._flags: int
        if self._in_kernel:
            # MSG_TRUNC: the kernel drops the bytes and leaves the buffer alone (tcp(7)).
            self._buffer, self._size, self._flags = _untouched(), _IN_KERNEL, _MSG_TRUNC
        else:
            self._buffer, self._size, self._flags = _scribbled(), _COPIED, 0
        timeout = sock.gettimeout()
        self._would_wait = timeout != 0
        if timeout is None and native and _MSG_DONTWAIT:
            self._flags |= _MSG_DONTWAIT  # a dup shares the blocking mode: leave it
            self._would_wait = False

    def read(self, allowance: int | None) -> int:
        """Read once, at most `allowance` bytes, and throw them away.

        Returns:
            How many; 0 is the peer's FIN.

        Raises:
            OSError: There is nothing to read (EWOULDBLOCK), or the connection failed.
        """
        if self._would_wait:
            # Where a timeout is set the descriptor is non-blocking already, and this only
            # stops Python from waiting. Windows has no MSG_DONTWAIT: there the mode changes.
            self._sock.settimeout(0)
            self._would_wait = False
        size = self._size if allowance is None else min(allowance, self._size)
        count = self._recv_into(self._buffer, size, self._flags)
        if count >= _FLOOD and self._in_kernel and allowance is None and not self._low_water:
            # Wake for much at a time (socket(7)); the FIN and a reset wake us all the same. Not
            # under a limit, which is to be noticed when it is exceeded.
            option = (socket.SOL_SOCKET, socket.SO_RCVLOWAT)
            self._low_water = self._sock.getsockopt(*option)
            self._sock.setsockopt(*option, _WAKE_FOR)
        return count

    def restore(self) -> None:
        """Undo what a dup could notice."""
        if self._low_water:
            try:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, self._low_water)
            except OSError:
                pass  # EBADF: another thread closed the socket, and nothing is left to undo


# Both are shared by every thread: nobody ever looks into them.


@cache
def _untouched() -> mmap.mmap:
    if sys.platform == "win32":
        return mmap.mmap(-1, _IN_KERNEL)
    else:  # noqa: RET505  (type checkers follow this form)
        return mmap.mmap(-1, _IN_KERNEL, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


@cache
def _scribbled() -> bytearray:
    return bytearray(_COPIED)
