"""Reading bytes only to throw them away."""

from __future__ import annotations

import mmap
import socket
import sys
from functools import cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

    from ._platform import View

# One read's most. Arbitrary: more than a receive buffer usually holds, so that a read takes all
# there is; the mapping is never touched and costs nothing but address space.
_IN_KERNEL = 4 << 20

# One read's most where the bytes are copied to us. Arbitrary: larger reads are not cheaper any
# more, and a processor's cache still holds it.
_COPIED = 256 << 10

# Plain numbers, because `|` on the socket module's flags costs more than a system call does. No
# MSG_DONTWAIT on Windows, no MSG_TRUNC that discards but on Linux.
_MSG_TRUNC = int(getattr(socket, "MSG_TRUNC", 0))
_MSG_DONTWAIT = int(getattr(socket, "MSG_DONTWAIT", 0))


class Drain:
    """A way to throw input away, shared by all sockets of a kind."""

    __slots__ = ("_buffer", "_flags", "_size")

    def __init__(self, *, in_kernel: bool) -> None:
        self._flags = _MSG_DONTWAIT
        self._buffer: Buffer
        if in_kernel:
            try:
                # MSG_TRUNC: the kernel drops the bytes and leaves the buffer alone (tcp(7)).
                self._buffer, self._size = _untouched(), _IN_KERNEL
                self._flags |= _MSG_TRUNC
                return
            except OSError:
                pass  # ENOMEM: RLIMIT_AS has no room for it, but has for a small buffer
        self._buffer, self._size = bytearray(_COPIED), _COPIED

    def read(self, sock: socket.socket, allowance: int | None) -> int:
        """Read once without waiting, at most `allowance` bytes, and throw them away.

        Args:
            sock: The interpreter's own socket, of which no dup blocks unless Python knows.
            allowance: None: as many as it likes.

        Returns:
            How many; 0 is the end of the stream.

        Raises:
            OSError: There is nothing to read (EWOULDBLOCK), or the connection failed.
        """
        size = self._size
        if allowance is not None and allowance < size:
            size = allowance
        return sock.recv_into(self._buffer, size, self._flags)


def drain_of(sock: socket.socket, view: View) -> Drain:
    """The way to read `sock`, which from now on never waits."""
    if not _MSG_DONTWAIT and sock.gettimeout() != 0:
        sock.settimeout(0)  # Windows, where no option of a read says so
    return _shared(view.truncates)


# The buffers are shared by every thread: nobody ever looks into them.
@cache
def _shared(in_kernel: bool) -> Drain:
    return Drain(in_kernel=in_kernel)


def _untouched() -> mmap.mmap:
    if sys.platform == "win32":
        return mmap.mmap(-1, _IN_KERNEL)
    else:  # noqa: RET505  (type checkers follow this form)
        return mmap.mmap(-1, _IN_KERNEL, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
