"""Whether a descriptor blocks, on an interpreter that forgets it."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

# PyPy's socket(fileno=...) makes the descriptor blocking, for every dup of it (settimeout() in
# rpython/rlib/rsocket.py's RSocket.__init__). CPython leaves it as it is.
_FORGETS = sys.implementation.name == "pypy"


def forgotten_mode(sock: socket.socket) -> bool:
    """Whether another object for this descriptor would make it blocking, which it is not."""
    if not _FORGETS or sys.platform == "win32":
        return False
    else:  # noqa: RET505  (type checkers follow this form)
        number = sock.fileno()
        return number != -1 and not os.get_blocking(number)


def restore_mode(sock: socket.socket) -> None:
    """Make the descriptor nonblocking again, and leave the object as it is."""
    if sys.platform != "win32":
        os.set_blocking(sock.fileno(), False)
