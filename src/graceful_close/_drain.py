"""Draining: reading input and discarding it."""

from __future__ import annotations

import mmap
import socket
import sys
from functools import cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

    from ._platform import View

# The size of one read. Heuristic: more than a receive buffer usually holds, so that one read takes
# everything. The mapping is never touched and costs only address space.
_IN_KERNEL = 4 << 20

# The size of one read that copies the bytes. Heuristic: larger reads are not cheaper, and a
# processor's cache holds this much.
_COPIED = 256 << 10

# The size of one read if memory is exhausted: what the allocator often has left.
_LEAST = 4 << 10

# Plain numbers, because `|` on the socket module's flags takes longer than a system call. Windows
# has no MSG_DONTWAIT, and only on Linux does MSG_TRUNC discard.
_MSG_TRUNC = int(getattr(socket, "MSG_TRUNC", 0))
_MSG_DONTWAIT = int(getattr(socket, "MSG_DONTWAIT", 0))


class Drain:
    """A method of discarding input, shared by all sockets of one kind."""

    __slots__ = ("_buffer", "_flags", "_size")

    def __init__(self, *, in_kernel: bool) -> None:
        self._flags = _MSG_DONTWAIT
        self._buffer: Buffer
        if in_kernel:
            try:
                # MSG_TRUNC: the kernel drops the bytes and does not write the buffer (tcp(7)).
                self._buffer, self._size = _untouched(), _IN_KERNEL
                self._flags |= _MSG_TRUNC
                return
            except OSError:
                pass  # ENOMEM: RLIMIT_AS has no room for this size; use a small buffer
        try:
            self._buffer, self._size = bytearray(_COPIED), _COPIED
        except MemoryError:
            self._buffer, self._size = bytearray(_LEAST), _LEAST

    def read(self, sock: socket.socket, allowance: int | None) -> int:
        """Read once without waiting, at most `allowance` bytes, and discard them.

        Args:
            sock: The interpreter's own socket. If it blocks, Python must know that.
            allowance: The largest number of bytes; None: no limit.

        Returns:
            The number of bytes; 0 at the end of the stream.

        Raises:
            OSError: There is no input (EWOULDBLOCK), or the connection failed.
        """
        size = self._size
        if allowance is not None and allowance < size:
            size = allowance
        return sock.recv_into(self._buffer, size, self._flags)


def drain_of(sock: socket.socket, view: View) -> Drain:
    """Return the method for draining `sock`, which never waits from now on."""
    if not _MSG_DONTWAIT and sock.gettimeout() != 0:
        sock.settimeout(0)  # Windows has no such flag for one read
    if view.loses_resets and sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) > 1:
        # Changed only in this case, because every dup shares the setting.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    return _shared(view.truncates)


# All threads share the buffers, because their content is never read.
@cache
def _shared(in_kernel: bool) -> Drain:
    return Drain(in_kernel=in_kernel)


def _untouched() -> mmap.mmap:
    if sys.platform == "win32":
        return mmap.mmap(-1, _IN_KERNEL)
    else:  # noqa: RET505  (type checkers follow this form)
        return mmap.mmap(-1, _IN_KERNEL, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
