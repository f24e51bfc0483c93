"""Letting go: of one direction, then of the descriptor, whatever holds the object."""

from __future__ import annotations

import _socket
import socket

from . import _platform
from ._checks import is_native
from ._linger import LingerPolicy
from ._tls import forget_session


def shut_for_writing(sock: socket.socket) -> None:
    """Send our FIN, past what a subclass made of shutdown().

    Never SHUT_RDWR: what the peer still sends would be answered with RST.
    """
    if is_native(sock):
        _socket.socket.shutdown(sock, socket.SHUT_WR)
    else:
        sock.shutdown(socket.SHUT_WR)


def let_go(
    sock: socket.socket, parting: LingerPolicy | None, seconds: float = 0
) -> OSError | None:
    """Close as `parting` says, and never wait unless it is TIMED.

    Args:
        sock: What to close. Afterwards `sock.fileno()` is -1.
        parting: The linger policy to close with; None leaves the setting alone.
        seconds: With TIMED, how long close() may wait, rounded up.

    Returns:
        What close() complained of, if it did. The descriptor is gone all the same.
    """
    try:
        if parting is not None:
            _set_parting(sock, parting, seconds)
    finally:
        # Even if a signal's exception comes out of the above.
        error = release(sock)
    return error


def _set_parting(sock: socket.socket, parting: LingerPolicy, seconds: float) -> None:
    option = _platform.HERE.linger
    if option is None:
        return  # no SO_LINGER: every close() is in the background
    try:
        if parting is LingerPolicy.ABORT:
            option.set(sock, True, 0)
        elif parting is LingerPolicy.TIMED:
            # A non-blocking close() does not wait (BSD, macOS), or leaks the handle (Windows).
            sock.setblocking(True)
            option.set(sock, True, option.whole_seconds(seconds))
        elif option.get(sock)[0]:
            # The caller, or the listener it came from, had set {1, n}: close() would reset or
            # wait. Touched only then, because every dup shares the setting.
            option.set(sock, False, 0)
    except (OSError, ValueError):
        # ENOTCONN: the connection is over (macOS and illumos say EINVAL). EBADF: another thread
        # was faster. ValueError: EINVAL or EDOM, on a system that means something else by them.
        # Whichever it is, there is nothing left to do but close.
        pass


def release(sock: socket.socket) -> OSError | None:
    """Give the descriptor back, at once unless a linger option makes the kernel wait.

    socket.close() would wait for the last makefile() object, and a subclass may have put a
    meaning of its own on it. The interpreter's own close takes the descriptor out of the
    object and closes it in one step, with no moment between where a signal could lose it.

    Returns:
        What close() complained of. ECONNRESET is not reported (CPython); EINTR, and EWOULDBLOCK
        for a linger time that ran out (BSD), are, and the descriptor is gone (close(2)).
    """
    try:
        if is_native(sock):
            _socket.socket.close(sock)
            sock.detach()  # finds nothing, but lets the object know that it is closed
        else:  # gevent, eventlet
            sock.close()
            if sock.fileno() != -1:
                socket.close(sock.detach())
    except OSError as error:
        return error
    finally:
        forget_session(sock)  # or OpenSSL would go on using the number, whoever has it then
    return None
