"""Sending our FIN, and releasing the descriptor."""

from __future__ import annotations

import socket

from . import _platform
from ._linger import LingerPolicy
from ._sockets import borrow_descriptor, is_unix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._platform import View


def shut_for_writing(sock: socket.socket) -> None:
    """Send our FIN. Never SHUT_RDWR: the kernel would answer further input with RST."""
    sock.shutdown(socket.SHUT_WR)


def close_socket(
    sock: socket.socket,
    policy: LingerPolicy | None,
    view: View | None = None,
    seconds: float = 0,
    *,
    wake_readers: bool | None = None,
) -> OSError | None:
    """Close, and never wait unless the policy is TIMED.

    Args:
        sock: The interpreter's own socket. Afterwards `sock.fileno()` is -1.
        policy: The linger policy to close with; None: the setting is unchanged.
        view: What the system shows of the socket; None: not needed.
        seconds: With TIMED, how long close() may wait, rounded up.
        wake_readers: Whether threads that wait for input on this connection read its end. None: only
            after an abort.

    Returns:
        The error of close(), if any. The descriptor is released anyway.
    """
    try:
        if policy is LingerPolicy.ABORT and view is not None and view.disconnects:
            _reset(sock)
        elif policy is not None:
            _set_policy(sock, policy, seconds)
            # Only the last reference resets: a thread in recv() must release its own.
            if wake_readers is None:
                wake_readers = policy is LingerPolicy.ABORT
        if wake_readers:
            _shut_for_reading(sock)
    finally:
        # Even if a signal's exception interrupts the calls above.
        error = _close(sock)
    return error


def _reset(sock: socket.socket) -> None:
    """Reset the connection for all its holders."""
    try:
        _platform.disconnect(sock)
    except OSError:
        # EBUSY: a thread sleeps on the connection, and this kernel then refuses to disconnect
        # (Debian's 5.10). The reader is woken, and the release of the last reference resets.
        _set_policy(sock, LingerPolicy.ABORT)
        _shut_for_reading(sock)


def set_policy_at_close(sock: socket.socket, policy: LingerPolicy) -> None:
    """Set what happens when the owner of the descriptor closes it: BACKGROUND or ABORT."""
    held: list[socket.socket] = []
    try:
        if borrow_descriptor(sock, held):
            _set_policy(held[0], policy)
    finally:
        if held:  # as in `unacked_bytes`
            held[0].detach()


def _shut_for_reading(sock: socket.socket) -> None:
    # A thread that waits for room in an AF_UNIX stream keeps the connection, because AF_UNIX has no
    # RST. And without RST, the end for the peer is the same.
    how = socket.SHUT_RDWR if is_unix(sock) else socket.SHUT_RD
    try:
        sock.shutdown(how)
    except OSError:
        pass  # ENOTCONN: the connection is over, and its end has woken every reader


def _set_policy(sock: socket.socket, policy: LingerPolicy, seconds: float = 0) -> None:
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
            # The caller, or the listener, had set {1, n}: close() would reset or wait. Changed
            # only in this case, because every dup shares the setting.
            option.set(sock, False, 0)
    except (OSError, ValueError):
        # ENOTCONN: the connection is over (EINVAL on macOS and illumos). ENOPROTOOPT: AF_VSOCK does
        # not have the option. ValueError: EINVAL or EDOM, on a system where they have another
        # meaning. In all cases the socket is closed next.
        pass


def _close(sock: socket.socket) -> OSError | None:
    """Release the descriptor.

    The interpreter's own close takes the descriptor out of the object and closes it in one step, so
    that a signal cannot lose it.

    Returns:
        The error of close(). CPython does not report ECONNRESET. It reports EINTR, and EWOULDBLOCK
        for a linger time that ran out (BSD); the descriptor is released then, too (close(2)).
    """
    try:
        sock.close()
    except OSError as error:
        return error
    return None
