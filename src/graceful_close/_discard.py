"""Reading bytes only to throw them away."""

from __future__ import annotations

import _socket
import mmap
import socket
import sys
from functools import cache

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
FLOOD = 64 << 10
_WAKE_FOR = 512 << 10

# Plain numbers, because `|` on the socket module's flags costs more than a system call does. No
# MSG_DONTWAIT on Windows, no MSG_TRUNC that discards but on Linux.
_MSG_TRUNC = int(getattr(socket, "MSG_TRUNC", 0))
_MSG_DONTWAIT = int(getattr(socket, "MSG_DONTWAIT", 0))


class Discard:
    """A way to throw input away, shared by all sockets of a kind."""

    __slots__ = ("_buffer", "_flags", "_recv_into", "_size", "in_kernel")

    in_kernel: bool
    """The bytes are never copied to us."""

    def __init__(self, *, native: bool, in_kernel: bool) -> None:
        self._recv_into = _socket.socket.recv_into if native else _wrapped_recv_into
        self._flags = _MSG_DONTWAIT if native else 0
        self.in_kernel = in_kernel
        self._buffer: Buffer
        if in_kernel:
            # MSG_TRUNC: the kernel drops the bytes and leaves the buffer alone (tcp(7)).
            self._buffer, self._size = _untouched(), _IN_KERNEL
            self._flags |= _MSG_TRUNC
        else:
            self._buffer, self._size = bytearray(_COPIED), _COPIED

    def read(self, sock: socket.socket, allowance: int | None) -> int:
        """Read once, at most `allowance` bytes, and throw them away.

        Returns:
            How many; 0 is the peer's FIN.

        Raises:
            OSError: There is nothing to read (EWOULDBLOCK), or the connection failed.
        """
        size = self._size
        if allowance is not None and allowance < size:
            size = allowance
        return self._recv_into(sock, self._buffer, size, self._flags)


def discard_of(sock: socket.socket, *, tcp: bool) -> Discard:
    """The way to read `sock`, which from now on never waits."""
    native = is_native(sock)
    timeout = sock.gettimeout()
    if timeout != 0 and not (timeout is None and native and _MSG_DONTWAIT):
        # A blocking socket is left alone if it can be, because a dup shares the mode; reads
        # then say MSG_DONTWAIT. With a timeout the descriptor is non-blocking already, and
        # this only stops Python from waiting.
        sock.settimeout(0)
    return _shared(native, tcp and _platform.HERE.truncates)


def wake_for_much(sock: socket.socket) -> int:
    """Have the kernel wake us for much input at a time; the FIN and a reset wake all the same.

    Returns:
        What it was before, for `wake_for`.
    """
    option = (socket.SOL_SOCKET, socket.SO_RCVLOWAT)
    before = sock.getsockopt(*option)
    sock.setsockopt(*option, _WAKE_FOR)
    return before


def wake_for(sock: socket.socket, size: int) -> None:
    """Undo `wake_for_much`, which a dup could notice."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
    except OSError:
        pass  # EBADF: another thread closed the socket, and nothing is left to undo


# The buffers are shared by every thread: nobody ever looks into them.
@cache
def _shared(native: bool, in_kernel: bool) -> Discard:
    return Discard(native=native, in_kernel=in_kernel)


def _wrapped_recv_into(sock: socket.socket, buffer: Buffer, size: int, flags: int) -> int:
    return sock.recv_into(buffer, size, flags)


def _untouched() -> mmap.mmap:
    if sys.platform == "win32":
        return mmap.mmap(-1, _IN_KERNEL)
    else:  # noqa: RET505  (type checkers follow this form)
        return mmap.mmap(-1, _IN_KERNEL, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
