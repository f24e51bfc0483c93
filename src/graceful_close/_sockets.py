"""The kind of a socket, and taking its descriptor.

The kind is queried from the kernel, not from the object: a socket that an MPTCP listener accepted
has IPPROTO_MPTCP although the client uses plain TCP, and `mptcpize` turns a TCP socket of Python's
into MPTCP.

A close takes the descriptor out of the caller's object before it touches the connection. From then
on only the close uses the number. Another thread's close() finds an object without a descriptor, so
the library never uses a number that may belong to another connection.
"""

from __future__ import annotations

import _socket  # where gevent and eventlet patch nothing
import gc
import socket
from itertools import starmap, tee

from . import _platform

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, MutableSequence
    from typing import Any

    from ._platform import View

# socket.socket creates an enum member whenever its family or type is read; reading the numbers of
# the base class takes a tenth of the time.
_STREAM = int(socket.SOCK_STREAM)
_INTERNET = (int(socket.AF_INET), int(socket.AF_INET6))
_TCP = int(socket.IPPROTO_TCP)
_MPTCP = 262  # include/uapi/linux/in.h
_family = _socket.socket.family.__get__
_type = _socket.socket.type.__get__
_proto = _socket.socket.proto.__get__
_detach = _socket.socket.detach
_native: Any = _socket.socket

# Packages whose sockets wrap one of the interpreter's, and wait cooperatively.
_GREEN = ("gevent", "eventlet")

# Packages whose objects are passed here by mistake, and the module that closes them.
_ELSEWHERE = {
    "asyncio": "graceful_close.asyncio",
    "uvloop": "graceful_close.asyncio",
    "trio": "graceful_close.trio",
    "anyio": "graceful_close.anyio",
}


def require_socket(sock: object) -> None:
    """Raise if `sock` is not a socket.

    Raises:
        TypeError: It is not. The message names the module that closes such an object, if there is
            one.
    """
    if isinstance(sock, (socket.socket, _socket.socket)) or _package(sock) in _GREEN:
        return
    module = _ELSEWHERE.get(_package(sock))
    hint = f"; use {module}" if module else ""
    if type(sock).__name__ == "TransportSocket":  # asyncio's
        hint += " with the stream or the transport that owns it"
    raise TypeError(f"a socket.socket is needed, not {_name(sock)}{hint}")


def require_stream(sock: socket.socket) -> None:
    """Raise if `sock` is not a stream socket.

    Raises:
        TypeError: It is not a socket, or not a stream (SOCK_STREAM).
    """
    if not isinstance(sock, _socket.socket):
        require_socket(sock)
    if not is_stream(sock):
        raise TypeError(f"a stream socket (SOCK_STREAM) is needed, not {sock!r}")


def is_stream(sock: socket.socket) -> bool:
    """Whether a socket is a stream."""
    kind: int = _type(sock) if isinstance(sock, _socket.socket) else sock.type
    return kind == _STREAM


def _name(thing: object) -> str:
    """The name of an object's type, with its module unless that is builtins."""
    kind = type(thing)
    module = kind.__module__
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"


def _package(thing: object) -> str:
    for kind in type(thing).__mro__:
        package = kind.__module__.partition(".")[0]
        if package in _GREEN or package in _ELSEWHERE:
            return package
    return ""


def peer_of(sock: Any) -> object:
    """The address of the peer of a socket, also of an event loop's; None: not known."""
    try:
        return sock.getpeername()
    except (OSError, ValueError):
        # ENOTCONN: never connected, or already reset. EBADF, and uvloop's ValueError: closed
        return None


def view_of(sock: socket.socket) -> View:
    """Return what this system shows of a stream socket."""
    system = _platform.HERE
    if _family(sock) not in _INTERNET:
        return system.other
    protocol = _proto(sock)
    if system.protocol is not None:
        try:
            protocol = sock.getsockopt(*system.protocol)
        except OSError:
            pass  # EBADF: closed, as later calls report. ENOPROTOOPT: gVisor
    if protocol in (0, _TCP):
        return system.tcp
    return system.mptcp if protocol == _MPTCP else system.other


def is_unix(sock: socket.socket) -> bool:
    """Whether this is an AF_UNIX socket."""
    return bool(_family(sock) == getattr(socket, "AF_UNIX", None))


def take_descriptor(sock: socket.socket, into: MutableSequence[socket.socket]) -> bool:
    """Move a socket's descriptor to an object of our own, which is appended to `into`.

    Args:
        sock: Its `fileno()` is -1 afterwards.
        into: Receives the new object, even if a signal's exception interrupts this function.

    Returns:
        False: `sock` had no descriptor.

    Raises:
        BaseException: The new object could not be created. The descriptor is released.
    """
    mode = _platform.mode_to_keep(sock)
    native = isinstance(sock, _socket.socket)
    if not native and not hasattr(type(sock), "detach"):
        return take_descriptor(sock.fd, into)  # type: ignore[attr-defined]  # eventlet's wraps it
    if native:
        family, kind, protocol, detach = _family(sock), _type(sock), _proto(sock), _detach
    else:
        family, kind, protocol = int(sock.family), int(sock.type), sock.proto
        detach = type(sock).detach
    kind |= _platform.KEEPS_MODE
    held = len(into)
    number, again = tee(map(detach, (sock,)))
    try:
        # One call into C: a signal's exception between two would lose the descriptor.
        into.extend(map(_native, (family,), (kind,), (protocol,), number))
    except BaseException as error:
        lost = next(again, -1) if len(into) == held else -1
        try:
            if lost != -1:
                # MemoryError, or an audit hook does not permit the new object (sys.addaudithook).
                _socket.close(lost)
        except OSError:
            lost = -1  # EBADF: os.close() has closed it
        if lost == -1 and isinstance(error, (OSError, ValueError)):
            return False
        raise
    if native:
        sock.detach()  # returns -1, and marks the object as closed
    _platform.keep_mode(into[-1], mode)
    return True


def borrow_descriptor(sock: socket.socket, into: MutableSequence[socket.socket]) -> bool:
    """Append another object for the same descriptor to `into`.

    The caller closes one of the two and detaches the other.

    Returns:
        False: `sock` has no descriptor.
    """
    number = sock.fileno()
    if number == -1:
        return False
    mode = _platform.mode_to_keep(sock)
    kind = int(sock.family), int(sock.type) | _platform.KEEPS_MODE, sock.proto, number
    # One call into C: an object that is lost would close the descriptor.
    into.extend(starmap(_native, (kind,)))
    _platform.keep_mode(into[-1], mode)
    return True


def plain_dup(sock: socket.socket) -> socket.socket:
    """A plain object with a descriptor of its own, whatever `sock` is; it needs a fileno() only."""
    mode = _platform.mode_to_keep(sock)
    made: list[socket.socket] = []
    number, again = tee(map(_socket.dup, (sock.fileno(),)))
    try:
        # One call into C, as in `take_descriptor`.
        made.extend(map(_native, (-1,), (_STREAM | _platform.KEEPS_MODE,), (-1,), number))
        _platform.keep_mode(made[0], mode)
    except BaseException:
        if made:
            made[0].close()
        elif (lost := next(again, -1)) != -1:
            _socket.close(lost)  # ENOTSOCK
        raise
    return made[0]


def has_open_writer(sock: socket.socket) -> bool:
    """Whether a makefile() object is open whose buffer may hold unsent data.

    The socket counts its open makefile() objects but has no references to them, and most of them
    are readers. If the count is not 0, the garbage collector finds the objects that refer to the
    socket: first among its young objects, because a search among all takes 50 ms for each million of
    them. It does not find an object that gc.freeze() has moved out of its sight; such an object may
    be a writer.
    """
    count = getattr(sock, "_io_refs", 0)
    if not count:
        return False
    young: list[Any] = []
    try:
        young = [*gc.get_objects(generation=0), *gc.get_objects(generation=1)]
    except NotImplementedError:
        pass  # PyPy has no generations
    files = [vars(one) for one in young if type(one) is socket.SocketIO]
    writing = _modes_of(files, sock)
    if len(writing) < count:
        # A SocketIO or its __dict__, depending on the version of Python.
        writing = _modes_of(map(_attributes, gc.get_referrers(sock)), sock)
    return any(writing) or len(writing) < count


def _modes_of(files: Iterable[Any], sock: socket.socket) -> list[bool]:
    """Whether they write: those of the SocketIO objects that belong to a socket."""
    return [
        file["_writing"] for file in files if file.get("_sock") is sock and "_writing" in file
    ]


def _attributes(of: object) -> Any:
    found: Any = getattr(of, "__dict__", of)
    return found if hasattr(found, "get") else {}
