"""What the peer's kernel has acknowledged, and being woken when it does."""

from __future__ import annotations

import errno
import os
import select
import socket
import sys

from . import _platform
from ._checks import is_tcp, require_stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def unacked_bytes(sock: socket.socket) -> int | None:
    """Count the bytes written to `sock` that the peer's kernel has not acknowledged.

    Nothing on the socket changes. A FIN that is sent and not acknowledged counts as one byte,
    as it does in TCP's sequence numbers. After a reset Linux keeps the count of what was lost.

    Args:
        sock: A stream socket.

    Returns:
        The number of bytes; None where it cannot be known: a system that does not say
        (Windows, illumos), a socket that is not TCP or is closed.

    Raises:
        TypeError: `sock` is not a stream socket.

    Source: SIOCOUTQ in tcp(7); SO_NWRITE on macOS; FIONWRITE and TCP_INFO on the BSDs.
    """
    require_stream(sock)
    return count_unacked(sock, tcp=is_tcp(sock))


def count_unacked(sock: socket.socket, *, tcp: bool) -> int | None:
    """`unacked_bytes` for a stream socket that was looked at already."""
    acks = _platform.HERE.acks
    if acks is None or not tcp:
        return None
    try:
        return acks.read(sock)
    except (OSError, ValueError):  # EBADF, or the object's descriptor is -1: closed
        return None


def pending_error(sock: socket.socket) -> OSError | None:
    """Take the error that the network left on the socket, if any (SO_ERROR, socket(7))."""
    number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return OSError(number, os.strerror(number)) if number else None


def open_descriptor(sock: socket.socket) -> int:
    """The number to wait on.

    Raises:
        OSError: There is none any more (EBADF). poll() and epoll would say ValueError.
    """
    number = sock.fileno()
    if number == -1:
        raise OSError(errno.EBADF, "another thread closed the socket")
    return number


class AckWatch:
    """Sleep until a TCP connection changes in any way, its acknowledgements included.

    Linux wakes every sleeper on the socket when the FIN is acknowledged (FIN_WAIT1 to
    FIN_WAIT2, tcp_rcv_state_process()), but to a poll() nothing has changed then: a socket that
    is shut for writing counts as writable all the time. An edge-triggered epoll reports the
    wake-up itself (epoll(7)). Its first wait returns at once, with the edge of being added.

    Raises:
        OSError: There is no epoll here (only Linux has it, and gevent takes it away), no
            descriptor left for one (EMFILE, ENFILE), no memory (ENOMEM, ENOSPC), or the
            socket is closed (EBADF).
    """

    _poll: Callable[[float, int], list[tuple[int, int]]]
    _fileno: Callable[[], int]
    _close: Callable[[], None]
    _no_input: int

    def __init__(self, sock: socket.socket) -> None:
        number = open_descriptor(sock)
        if sys.platform == "linux" and hasattr(select, "epoll"):
            epoll = select.epoll(1)
            epoll.register(number, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
            self._poll, self._fileno, self._close = epoll.poll, epoll.fileno, epoll.close
            self._no_input = select.EPOLLOUT
        else:
            raise OSError("no epoll on this system")

    def fileno(self) -> int:
        """What an event loop can wait on instead; `wait(0)` must follow."""
        return self._fileno()

    def wait(self, seconds: float) -> bool:
        """Sleep, at most so long; whether there is input or an error to be read."""
        return any(events != self._no_input for _, events in self._poll(seconds, 1))

    def close(self) -> None:
        self._close()
