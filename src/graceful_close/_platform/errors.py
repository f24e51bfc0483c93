"""What an error number says about a connection that is being closed."""

from __future__ import annotations

import enum
import errno


class ErrorKind(enum.Enum):
    """What the network, the kernel or a racing thread can do to a close."""

    WOULD_BLOCK = enum.auto()  # not now
    INTERRUPTED = enum.auto()  # a signal came
    NOT_CONNECTED = enum.auto()  # never was, or not any more
    REFUSED = enum.auto()  # a connect() was refused; on a connection, an ICMP message
    RESET = enum.auto()  # the peer sent RST
    LOST = enum.auto()  # the kernel or an administrator gave the connection up
    CLOSED = enum.auto()  # the descriptor is gone
    OURS = enum.auto()  # a bug of this library


_POSIX = {
    "EAGAIN": ErrorKind.WOULD_BLOCK,
    "EWOULDBLOCK": ErrorKind.WOULD_BLOCK,
    "EINTR": ErrorKind.INTERRUPTED,
    "ENOTCONN": ErrorKind.NOT_CONNECTED,
    # recv() on an AF_UNIX stream that is not connected (Linux); anything at all on a connection
    # that is shut in both directions (macOS, illumos).
    "EINVAL": ErrorKind.NOT_CONNECTED,
    # Emscripten has no shutdown(), and nothing there is ever connected.
    "ENOSYS": ErrorKind.NOT_CONNECTED,
    "ECONNREFUSED": ErrorKind.REFUSED,
    "ECONNRESET": ErrorKind.RESET,
    # What Linux stores for an RST that comes after the peer's FIN (tcp_reset(), CLOSE_WAIT).
    "EPIPE": ErrorKind.RESET,
    "EBADF": ErrorKind.CLOSED,
    "ENOTSOCK": ErrorKind.CLOSED,  # and the number is another file's by now
    "EFAULT": ErrorKind.OURS,
}

# Winsock's numbers, written out: the errno module has these names on Windows alone, and no
# POSIX system counts as far as 10000, so one table serves all (winerror.h).
_WINSOCK = {
    10035: ErrorKind.WOULD_BLOCK,  # WSAEWOULDBLOCK
    10004: ErrorKind.INTERRUPTED,  # WSAEINTR
    10057: ErrorKind.NOT_CONNECTED,  # WSAENOTCONN
    10061: ErrorKind.REFUSED,  # WSAECONNREFUSED
    10054: ErrorKind.RESET,  # WSAECONNRESET
    10038: ErrorKind.CLOSED,  # WSAENOTSOCK: Windows' answer for a handle that was closed
}

_KINDS: dict[int, ErrorKind] = _WINSOCK | {
    getattr(errno, name): kind for name, kind in _POSIX.items() if hasattr(errno, name)
}


def error_kind(error: OSError) -> ErrorKind:
    """What `error` says about an open stream socket.

    Every number that is not in the table is LOST, because the network chooses it: ICMP messages
    of both versions come out of recv() as a dozen of numbers (icmp_err_convert in Linux's
    net/ipv4/icmp.c, tab_unreach in net/ipv6/icmp.c), an administrator's `ss -K` as ECONNABORTED
    (tcp_abort()), kernel TLS as EIO or EBADMSG, and a driver may add its own.
    """
    return _KINDS.get(error.errno or 0, ErrorKind.LOST)
