"""What the kernel knows of a connection: unacknowledged bytes, its state, its errors."""

from __future__ import annotations

import os
import socket
import sys

from ._platform import TcpState
from ._sockets import borrow_descriptor, require_stream, view_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._platform import View


def unacked_bytes(sock: socket.socket) -> int | None:
    """Count the bytes written to `sock` that the peer's kernel has not acknowledged.

    Nothing on the socket changes. A FIN that is sent and not acknowledged counts as one byte,
    as it does in TCP's sequence numbers. After a reset Linux keeps the count of what was lost.

    Args:
        sock: A stream socket.

    Returns:
        The number of bytes; None where it cannot be known: a system that does not report it
        (Windows, illumos), a socket that is not TCP or is closed, a connection whose handshake
        is not finished (TCP Fast Open), in which the kernel does not count.

    Raises:
        TypeError: `sock` is not a stream socket.

    Source: SIOCOUTQ in tcp(7); SO_NWRITE on macOS; FIONWRITE and TCP_INFO on the BSDs.
    """
    require_stream(sock)
    held: list[socket.socket] = []
    try:
        if not borrow_descriptor(sock, held):
            return None
        borrowed = held[0]
        view = view_of(borrowed)
        state = read_state(borrowed, view)
        if state in (TcpState.LISTENING, TcpState.CONNECTING, TcpState.NEVER_OPEN):
            return 0
        return None if state is TcpState.ACCEPTING else count_unacked(borrowed, view)
    finally:
        for borrowed in held:
            borrowed.detach()


def count_unacked(sock: socket.socket, view: View) -> int | None:
    """The kernel's count, which is true only in states in which it counts."""
    if view.acks is None:
        return None
    try:
        return view.acks.read(sock)
    except (OSError, ValueError):
        # ENOPROTOOPT: this kernel does not count (gVisor). EINVAL: it listens (tcp(7)). EBADF, or
        # the object's descriptor is -1: closed.
        return None


# How often two counts are taken until no acknowledgement has come between them. Arbitrary: one comes
# every few microseconds at the very most.
_SNAPSHOTS = 16


def count_acked(sock: socket.socket, view: View) -> int | None:
    """Count what was ever acknowledged of this connection, give or take a constant."""
    try:
        return None if view.acked is None else view.acked.read(sock)
    except OSError:
        return None  # a kernel that is older than the count


def count_written(sock: socket.socket, view: View) -> int | None:
    """Count what was ever written to this connection, give or take a constant.

    The difference of two counts is what the kernel has taken between them: all that was
    acknowledged, and what is not yet. None: this kind of stream, or this kernel, does not say.
    """
    acked = count_acked(sock, view)
    for _ in range(_SNAPSHOTS):
        before, unacked, acked = acked, count_unacked(sock, view), count_acked(sock, view)
        if before is None or unacked is None:
            return None
        if before == acked:
            return before + unacked
    return None


def read_state(sock: socket.socket, view: View, *, was_open: bool = False) -> TcpState | None:
    """The TCP state; None: this kind of stream, or this kernel, does not show it."""
    if view.state is not None:
        return view.state.read(sock, was_open=was_open)
    try:
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return TcpState.LISTENING  # which every kind of stream can say
    except OSError:
        pass  # ENOPROTOOPT: macOS does not say. EBADF: closed
    return None


def standing(sock: socket.socket, view: View) -> TcpState | None:
    """The TCP state, or whether there is a peer, which every kind of stream can say."""
    state = read_state(sock, view)
    if state is not None:
        return state
    try:
        sock.getpeername()
    except OSError:
        # ENOTCONN, and on macOS EINVAL once it is over (getpeername(2)).
        return TcpState.OVER
    return TcpState.OPEN


def pending_error(sock: socket.socket) -> OSError | None:
    """Take the error that the network left on the socket, if any (SO_ERROR, socket(7))."""
    number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return OSError(number, os.strerror(number)) if number else None


# Entries taken from an error queue in a row. Arbitrary: a socket buffer holds some hundreds, and
# what is left is taken after the next wake-up.
_ENTRIES = 256


def clear_error_queue(sock: socket.socket) -> None:
    """Throw away what MSG_ZEROCOPY and SO_TIMESTAMPING left: it is POLLERR until it is read."""
    if sys.platform == "linux":
        try:
            for _ in range(_ENTRIES):
                sock.recvmsg(0, 0, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
        except OSError:
            pass  # EAGAIN: it is empty; or the connection's own error, which a read reports
