"""A second object for a descriptor, without a change of the descriptor's blocking mode.

O_NONBLOCK belongs to the connection, and all holders of the connection share it. But a new object of
CPython gets socket.setdefaulttimeout(), which makes the descriptor nonblocking, and a new object of
PyPy makes the descriptor blocking without a default (settimeout() in rpython/rlib/rsocket.py).
"""

from __future__ import annotations

import os
import socket
import sys

_PYPY = sys.implementation.name == "pypy"

# Added to the type of a new object, this flag gives the object the timeout 0, and CPython does not
# touch the descriptor (init_sockobject() in Modules/socketmodule.c). 0: the flag is not available.
KEEPS_MODE = 0 if _PYPY else int(getattr(socket, "SOCK_NONBLOCK", 0))


def mode_to_keep(sock: socket.socket) -> bool | None:
    """Whether `sock` blocks, if a second object for its descriptor may change that; else None."""
    if KEEPS_MODE or not (_PYPY or socket.getdefaulttimeout() is not None):
        return None
    number = sock.fileno()
    if number == -1:
        return None
    if sys.platform == "win32":
        return sock.gettimeout() is None  # the mode of a socket cannot be read
    else:  # noqa: RET505  (type checkers follow this form)
        try:
            return os.get_blocking(number)
        except OSError:
            return None  # EBADF: another thread has closed it


def keep_mode(second: socket.socket, mode: bool | None) -> None:
    """Set the mode that `mode_to_keep` returned before the second object was created."""
    if mode is not None:
        second.setblocking(mode)
