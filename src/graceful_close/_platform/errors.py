"""What an error number means for a connection that is being closed."""

from __future__ import annotations

import enum
import errno
import os


class ErrorKind(enum.Enum):
    """What the network, the kernel or a racing thread can do to a close."""

    WOULD_BLOCK = enum.auto()  # the call would have to wait
    INTERRUPTED = enum.auto()  # a signal arrived
    NOT_CONNECTED = enum.auto()  # was never connected, or is no longer connected
    REFUSED = enum.auto()  # a connect() was refused; on a connection, an ICMP message
    RESET = enum.auto()  # the peer sent RST
    LOST = enum.auto()  # the kernel or an administrator ended the connection
    CLOSED = enum.auto()  # the descriptor is closed
    OURS = enum.auto()  # a bug of this library


_POSIX = {
    "EAGAIN": ErrorKind.WOULD_BLOCK,
    "EWOULDBLOCK": ErrorKind.WOULD_BLOCK,
    "EINTR": ErrorKind.INTERRUPTED,
    "ENOTCONN": ErrorKind.NOT_CONNECTED,
    # recv() on an AF_UNIX stream that is not connected (Linux); any call on a connection that is shut
    # down in both directions (macOS, illumos).
    "EINVAL": ErrorKind.NOT_CONNECTED,
    # Emscripten has no shutdown(), and no socket there is ever connected.
    "ENOSYS": ErrorKind.NOT_CONNECTED,
    "ECONNREFUSED": ErrorKind.REFUSED,
    "ECONNRESET": ErrorKind.RESET,
    # Linux stores EPIPE for an RST that arrives after the peer's FIN (tcp_reset(), CLOSE_WAIT).
    "EPIPE": ErrorKind.RESET,
    "EBADF": ErrorKind.CLOSED,
    "ENOTSOCK": ErrorKind.CLOSED,  # the number has become another file's
    "EFAULT": ErrorKind.OURS,
}

# Winsock's numbers, because the errno module has these names on Windows only. No POSIX system uses
# numbers of 10000 or more, so all systems share one table (winerror.h).
_WINSOCK = {
    10035: ErrorKind.WOULD_BLOCK,  # WSAEWOULDBLOCK
    10004: ErrorKind.INTERRUPTED,  # WSAEINTR
    10057: ErrorKind.NOT_CONNECTED,  # WSAENOTCONN
    10061: ErrorKind.REFUSED,  # WSAECONNREFUSED
    10054: ErrorKind.RESET,  # WSAECONNRESET
    10038: ErrorKind.CLOSED,  # WSAENOTSOCK: on Windows also for a handle that was closed
}

_KINDS: dict[int, ErrorKind] = _WINSOCK | {
    getattr(errno, name): kind for name, kind in _POSIX.items() if hasattr(errno, name)
}


def error_kind(error: OSError) -> ErrorKind:
    """What `error` means for an open stream socket.

    Every number that is not in the table is LOST, because such numbers come from the network. recv()
    returns ICMP messages of both versions as about a dozen numbers (icmp_err_convert in Linux's
    net/ipv4/icmp.c, tab_unreach in net/ipv6/icmp.c), an administrator's `ss -K` as ECONNABORTED
    (tcp_abort()), and errors of kernel TLS as EIO or EBADMSG. A driver may add numbers of its own.
    """
    return _KINDS.get(error.errno or 0, ErrorKind.LOST)


def reset_error() -> OSError:
    """The error of a reset that another reader of the connection has taken from the kernel."""
    return OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
