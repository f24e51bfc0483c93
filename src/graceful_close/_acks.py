"""Queries to the kernel about a connection: unacknowledged bytes, state, errors."""

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

        sock.sendall(reply)
        print(unacked_bytes(sock))  # len(reply) at first, and 0 after a round trip

    The socket does not change. An unacknowledged FIN counts as one byte, as in TCP's sequence
    numbers. After a reset of a TCP connection Linux keeps the count of the lost bytes.

    Args:
        sock: A stream socket.

    Returns:
        The number of bytes. None if it cannot be known: a system that does not report it
        (Windows, OpenBSD, illumos), a socket that is not TCP or is closed, a connection whose handshake
        is incomplete (TCP Fast Open), for which the kernel does not count, or a connection that is
        over, if a reset changes the count (MPTCP, other systems than Linux).

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
        if state is TcpState.ACCEPTING:
            return None
        count = count_unacked(borrowed, view)
        valid = view.count_survives_reset or standing(borrowed, view) is not TcpState.OVER
        return count if valid else None
    finally:
        if held:  # not a loop, which needs memory: a lost object would close the descriptor
            held[0].detach()


def count_unacked(sock: socket.socket, view: View) -> int | None:
    """Return the kernel's count, which is valid only in states in which the kernel counts."""
    if view.acks is None:
        return None
    try:
        return view.acks.read(sock)
    except (OSError, ValueError):
        # ENOPROTOOPT: this kernel does not count (gVisor). EINVAL: a listening socket (tcp(7)).
        # EBADF, or the object's descriptor is -1: closed.
        return None


# How often two counts are read until no acknowledgement has arrived between them. Heuristic: at
# most one arrives every few microseconds.
_SNAPSHOTS = 16


def count_acked(sock: socket.socket, view: View) -> int | None:
    """Count all bytes ever acknowledged on this connection, plus a constant."""
    try:
        return None if view.acked is None else view.acked.read(sock)
    except OSError:
        return None  # an older kernel, which does not have the counter


def count_written(sock: socket.socket, view: View) -> int | None:
    """Count all bytes ever written to this connection, plus a constant.

    The difference of two counts is the number of bytes that the kernel has accepted between them,
    acknowledged or not. None: this kind of stream, or this kernel, does not report it.
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
            return TcpState.LISTENING  # every kind of stream reports this
    except OSError:
        pass  # ENOPROTOOPT: macOS does not report it. EBADF: closed
    return None


def standing(sock: socket.socket, view: View) -> TcpState | None:
    """Return the TCP state, or OPEN or OVER for other kinds of stream."""
    state = read_state(sock, view)
    if state is not None:
        return state
    try:
        sock.getpeername()
    except OSError:
        # ENOTCONN, and on macOS EINVAL after the end (getpeername(2)).
        return TcpState.OVER
    return TcpState.OPEN


def pending_error(sock: socket.socket) -> OSError | None:
    """Take the pending error of the socket, if any (SO_ERROR, socket(7))."""
    number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return OSError(number, os.strerror(number)) if number else None


# Entries read from an error queue in a row. Heuristic: a socket buffer holds some hundreds, and the
# rest is read after the next wake-up.
_ENTRIES = 256


def clear_error_queue(sock: socket.socket) -> None:
    """Discard the entries of MSG_ZEROCOPY and SO_TIMESTAMPING, which cause POLLERR until read."""
    if sys.platform == "linux":
        try:
            for _ in range(_ENTRIES):
                sock.recvmsg(0, 0, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
        except OSError:
            pass  # EAGAIN: the queue is empty. Any other error is reported by a read
