"""Keep a descriptor nonblocking on an interpreter that makes it blocking."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

# PyPy's socket(fileno=...) makes the descriptor blocking, and so every dup of the descriptor
# (settimeout() in rpython/rlib/rsocket.py's RSocket.__init__). CPython does not change the mode.
_FORGETS = sys.implementation.name == "pypy"


def forgotten_mode(sock: socket.socket) -> bool:
    """Whether another object for this nonblocking descriptor would make the descriptor blocking."""
    if not _FORGETS or sys.platform == "win32":
        return False
    else:  # noqa: RET505  (type checkers follow this form)
        number = sock.fileno()
        return number != -1 and not os.get_blocking(number)


def restore_mode(sock: socket.socket) -> None:
    """Make the descriptor nonblocking again; the object does not change."""
    if sys.platform != "win32":
        os.set_blocking(sock.fileno(), False)
