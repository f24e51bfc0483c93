"""What an error number says about a connection that is being closed."""

from __future__ import annotations

import enum
import errno


class Meaning(enum.Enum):
    """The few things that the network, or a racing thread, can do to a close."""

    WOULD_BLOCK = enum.auto()  # not now
    INTERRUPTED = enum.auto()  # a signal came
    NOT_CONNECTED = enum.auto()  # never was, or not any more
    RESET = enum.auto()  # the peer sent RST
    LOST = enum.auto()  # the kernel gave up: no answer, no route
    CLOSED = enum.auto()  # the descriptor is gone


_POSIX = {
    "EAGAIN": Meaning.WOULD_BLOCK,
    "EWOULDBLOCK": Meaning.WOULD_BLOCK,
    "EINTR": Meaning.INTERRUPTED,
    "ENOTCONN": Meaning.NOT_CONNECTED,
    # recv() on an AF_UNIX stream that is not connected (Linux); anything at all on a connection
    # that is shut in both directions (macOS, illumos).
    "EINVAL": Meaning.NOT_CONNECTED,
    # Waits in a socket whose non-blocking connect() was refused: it never was connected.
    "ECONNREFUSED": Meaning.NOT_CONNECTED,
    "ECONNRESET": Meaning.RESET,
    "ECONNABORTED": Meaning.RESET,
    "ENETRESET": Meaning.RESET,
    # What Linux stores for an RST that comes after the peer's FIN (tcp_reset(), CLOSE_WAIT).
    "EPIPE": Meaning.RESET,
    "ETIMEDOUT": Meaning.LOST,
    "EHOSTUNREACH": Meaning.LOST,
    "ENETUNREACH": Meaning.LOST,
    "EHOSTDOWN": Meaning.LOST,
    "ENETDOWN": Meaning.LOST,
    "EBADF": Meaning.CLOSED,
}

# Winsock's numbers, written out: the errno module has these names on Windows alone, and no
# POSIX system counts as far as 10000, so one table serves all (winerror.h).
_WINSOCK = {
    10035: Meaning.WOULD_BLOCK,  # WSAEWOULDBLOCK
    10004: Meaning.INTERRUPTED,  # WSAEINTR
    10057: Meaning.NOT_CONNECTED,  # WSAENOTCONN
    10061: Meaning.NOT_CONNECTED,  # WSAECONNREFUSED
    10052: Meaning.RESET,  # WSAENETRESET
    10053: Meaning.RESET,  # WSAECONNABORTED
    10054: Meaning.RESET,  # WSAECONNRESET
    10060: Meaning.LOST,  # WSAETIMEDOUT
    10065: Meaning.LOST,  # WSAEHOSTUNREACH
    10051: Meaning.LOST,  # WSAENETUNREACH
    10064: Meaning.LOST,  # WSAEHOSTDOWN
    10050: Meaning.LOST,  # WSAENETDOWN
    10038: Meaning.CLOSED,  # WSAENOTSOCK: Windows' answer for a handle that was closed
}

_MEANINGS = _WINSOCK | {
    getattr(errno, name): means for name, means in _POSIX.items() if hasattr(errno, name)
}


def meaning(error: OSError) -> Meaning | None:
    """What `error` says about the connection; None: nothing that a network does."""
    return _MEANINGS.get(error.errno or 0)
