"""What a socket is, and taking its descriptor.

The kernel is asked what a socket is, not the object: a socket that an MPTCP listener accepted says
IPPROTO_MPTCP although the client spoke plain TCP, and `mptcpize` makes MPTCP of what Python
believes to be TCP.

A close takes the descriptor out of the caller's object before it touches the connection. From then
on the number belongs to the close alone: another thread's close() finds an object without one,
and no number is ever used that may be a stranger's by now.
"""

from __future__ import annotations

import _socket  # where gevent and eventlet patch nothing
import gc
import os
import socket
import sys
from itertools import starmap

from . import _platform

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import MutableSequence
    from typing import Any

    from ._platform import View

# socket.socket makes an enum of its family and its type at every look; the interpreter's own
# numbers cost a tenth of that.
_STREAM = int(socket.SOCK_STREAM)
_INTERNET = (int(socket.AF_INET), int(socket.AF_INET6))
_TCP = int(socket.IPPROTO_TCP)
_MPTCP = 262  # include/uapi/linux/in.h
_family = _socket.socket.family.__get__
_type = _socket.socket.type.__get__
_proto = _socket.socket.proto.__get__
_detach = _socket.socket.detach
_native: Any = _socket.socket

# Sockets that are not the interpreter's: they wrap one, and wait for other greenlets.
_GREEN = ("gevent", "eventlet")

# Where the objects come from that are sent here by mistake, and who closes them.
_ELSEWHERE = {
    "asyncio": "graceful_close.asyncio",
    "uvloop": "graceful_close.asyncio",
    "trio": "graceful_close.trio",
    "anyio": "graceful_close.anyio",
}


def require_socket(sock: object) -> None:
    """Refuse what is not a socket.

    Raises:
        TypeError: It is not; the message names the module that closes such an object, if one does.
    """
    if isinstance(sock, (socket.socket, _socket.socket)) or _package(sock) in _GREEN:
        return
    module = _ELSEWHERE.get(_package(sock))
    hint = f" (use {module} for it)" if module else ""
    raise TypeError(f"a socket is needed, not {sock!r}{hint}")


def require_stream(sock: socket.socket) -> None:
    """Refuse what is not a stream.

    Raises:
        TypeError: It is not a socket, or not a stream (SOCK_STREAM).
    """
    if not isinstance(sock, _socket.socket):
        require_socket(sock)
    if not is_stream(sock):
        raise TypeError(f"a stream socket is needed (SOCK_STREAM), not {sock!r}")


def is_stream(sock: socket.socket) -> bool:
    """Whether a socket is a stream."""
    kind: int = _type(sock) if isinstance(sock, _socket.socket) else sock.type
    return kind == _STREAM


def _package(thing: object) -> str:
    for kind in type(thing).__mro__:
        package = kind.__module__.partition(".")[0]
        if package in _GREEN or package in _ELSEWHERE:
            return package
    return ""


def view_of(sock: socket.socket) -> View:
    """What this system shows of a stream socket."""
    system = _platform.HERE
    if _family(sock) not in _INTERNET:
        return system.other
    protocol = _proto(sock)
    if system.protocol is not None:
        try:
            protocol = sock.getsockopt(*system.protocol)
        except OSError:
            pass  # EBADF: it is closed, as every later call finds out. ENOPROTOOPT: gVisor
    if protocol in (0, _TCP):
        return system.tcp
    return system.mptcp if protocol == _MPTCP else system.other


def take_descriptor(sock: socket.socket, into: MutableSequence[socket.socket]) -> bool:
    """Move a socket's descriptor to an object of our own, which is appended to `into`.

    Args:
        sock: Its `fileno()` is -1 afterwards.
        into: Where the new object is found, whatever a signal's exception interrupts.

    Returns:
        False: `sock` had no descriptor any more.
    """
    nonblocking = _platform.forgotten_mode(sock)
    native = isinstance(sock, _socket.socket)
    if not native and not hasattr(type(sock), "detach"):
        return take_descriptor(sock.fd, into)  # type: ignore[attr-defined]  # eventlet's wraps it
    if native:
        family, kind, protocol, detach = _family(sock), _type(sock), _proto(sock), _detach
    else:
        family, kind, protocol = int(sock.family), int(sock.type), sock.proto
        detach = type(sock).detach
    try:
        # One call into C: a signal's exception between two would lose the descriptor.
        into.extend(map(_native, (family,), (kind,), (protocol,), map(detach, (sock,))))
    except (OSError, ValueError):
        return False  # the number is -1
    if native:
        sock.detach()  # has no number to give, but lets the object know that it is closed
    _never_wait(into[-1], nonblocking)
    return True


def borrow_descriptor(sock: socket.socket, into: MutableSequence[socket.socket]) -> bool:
    """Append another object for the same descriptor to `into`.

    Whoever has both closes one and detaches the other.

    Returns:
        False: `sock` has no descriptor any more.
    """
    kind = int(sock.family), int(sock.type), sock.proto, sock.fileno()
    if kind[-1] == -1:
        return False
    nonblocking = _platform.forgotten_mode(sock)
    # One call into C: an object that is lost would close the descriptor.
    into.extend(starmap(_native, (kind,)))
    _never_wait(into[-1], nonblocking)
    return True


def plain_dup(sock: socket.socket) -> socket.socket:
    """A plain socket object with a descriptor of its own, for a connection of an event loop's."""
    if sys.platform == "win32":
        return sock.dup()
    else:  # noqa: RET505  (type checkers follow this form)
        # Plain, whatever the loop was given: a subclass may have put a meaning on its dup().
        nonblocking = _platform.forgotten_mode(sock)
        dup = socket.socket(fileno=os.dup(sock.fileno()))
        if nonblocking:
            _platform.restore_mode(dup)
        return dup


def _never_wait(sock: socket.socket, nonblocking: bool) -> None:
    if nonblocking:
        _platform.restore_mode(sock)
    # A new object takes on socket.setdefaulttimeout(), and Python itself would wait for input.
    if sock.gettimeout() is not None:
        sock.settimeout(0)


def has_open_writer(sock: socket.socket) -> bool:
    """Whether a makefile() object is open whose buffer may hold what has yet to be sent.

    The socket counts its open makefile() objects but does not know them, and most of them are
    readers. The garbage collector finds those that refer to it: milliseconds, and only where
    the count is not 0.
    """
    if not getattr(sock, "_io_refs", 0):
        return False
    for one in gc.get_referrers(sock):
        # A SocketIO, or its __dict__, whichever this version of Python shows.
        held = _attributes(one)
        if held.get("_sock") is sock and held.get("_writing"):
            return True
    return False


def _attributes(of: object) -> Any:
    found: Any = getattr(of, "__dict__", of)
    return found if hasattr(found, "get") else {}
