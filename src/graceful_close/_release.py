"""Our FIN; giving the descriptor back."""

from __future__ import annotations

import socket

from . import _platform
from ._linger import LingerPolicy
from ._sockets import borrow_descriptor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._platform import View


def shut_for_writing(sock: socket.socket) -> None:
    """Send our FIN. Never SHUT_RDWR: what the peer still sends would be answered with RST."""
    sock.shutdown(socket.SHUT_WR)


def close_socket(
    sock: socket.socket,
    policy: LingerPolicy | None,
    view: View | None = None,
    seconds: float = 0,
    *,
    wake_readers: bool = False,
) -> OSError | None:
    """Close, and never wait unless the policy is TIMED.

    Args:
        sock: The interpreter's own socket. Afterwards `sock.fileno()` is -1.
        policy: The linger policy to close with; None leaves the setting alone.
        view: What the system shows of it; None: it does not matter.
        seconds: With TIMED, how long close() may wait, rounded up.
        wake_readers: Whoever waits for input on this connection is to read its end. After an
            abort they do in any case.

    Returns:
        What close() failed by, if it did. The descriptor is released all the same.
    """
    try:
        if policy is LingerPolicy.ABORT and view is not None and view.disconnects:
            _reset(sock)
        elif policy is not None:
            _set_policy(sock, policy, seconds)
            # Only the last reference resets: who sleeps in recv() must let go of its own.
            wake_readers = wake_readers or policy is LingerPolicy.ABORT
        if wake_readers:
            _shut_for_reading(sock)
    finally:
        # Even if a signal's exception comes out of the above.
        error = _close(sock)
    return error


def _reset(sock: socket.socket) -> None:
    """End the connection itself, whoever else holds it."""
    try:
        _platform.disconnect(sock)
    except OSError:
        # EBUSY: a thread sleeps on it, and this kernel will not disconnect then (Debian's 5.10).
        # The reader is woken, and the last reference resets.
        _set_policy(sock, LingerPolicy.ABORT, 0)
        _shut_for_reading(sock)


def reset_at_close(sock: socket.socket) -> None:
    """Have whoever owns a descriptor reset the connection by closing it."""
    held: list[socket.socket] = []
    try:
        if borrow_descriptor(sock, held):
            _set_policy(held[0], LingerPolicy.ABORT, 0)
    finally:
        for borrowed in held:
            borrowed.detach()


def _shut_for_reading(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RD)
    except OSError:
        pass  # ENOTCONN: the connection is over, and that has woken every reader


def _set_policy(sock: socket.socket, policy: LingerPolicy, seconds: float) -> None:
    option = _platform.HERE.linger
    if option is None:
        return  # no SO_LINGER: every close() is in the background
    try:
        if policy is LingerPolicy.ABORT:
            option.set(sock, True, 0)
        elif policy is LingerPolicy.TIMED:
            # A non-blocking close() does not wait (BSD, macOS), or leaks the handle (Windows).
            sock.setblocking(True)
            option.set(sock, True, option.whole_seconds(seconds))
        elif option.get(sock)[0]:
            # The caller, or the listener it came from, had set {1, n}: close() would reset or
            # wait. Touched only then, because every dup shares the setting.
            option.set(sock, False, 0)
    except (OSError, ValueError):
        # ENOTCONN: the connection is over (macOS and illumos say EINVAL). ENOPROTOOPT: AF_VSOCK
        # has no such option. ValueError: EINVAL or EDOM, on a system that means something else
        # by them. Whichever it is, there is nothing left to do but close.
        pass


def _close(sock: socket.socket) -> OSError | None:
    """Release the descriptor.

    The interpreter's own close takes the descriptor out of the object and closes it in one
    step, with no moment between where a signal could lose it.

    Returns:
        What close() failed by. ECONNRESET is not reported (CPython); EINTR, and EWOULDBLOCK for
        a linger time that ran out (BSD), are, and the descriptor is gone (close(2)).
    """
    try:
        sock.close()
    except OSError as error:
        return error
    return None
