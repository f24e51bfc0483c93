"""What a caller may hand in, checked before any socket is touched."""

from __future__ import annotations

import _socket  # where gevent patches nothing
import math
import operator
import socket


def require_socket(sock: object) -> None:
    """Refuse what is no socket.

    Raises:
        TypeError: It is none.
    """
    if not isinstance(sock, (socket.socket, _socket.socket)):
        raise TypeError(f"a socket is needed, not {sock!r}")


def require_stream(sock: socket.socket) -> None:
    """Refuse what is no stream.

    Raises:
        TypeError: It is no socket, or no stream (SOCK_STREAM).
    """
    if not is_native(sock):
        require_socket(sock)
    if not is_stream(sock):
        raise TypeError(f"a stream socket is needed (SOCK_STREAM), not {sock!r}")


def is_stream(sock: socket.socket) -> bool:
    """Whether a socket is a stream."""
    return (native_type(sock) if is_native(sock) else sock.type) == _SOCK_STREAM


def is_native(sock: socket.socket) -> bool:
    """Whether this is the interpreter's own socket, or a subclass of it.

    Then its methods can be called past what a subclass made of them. gevent's and eventlet's
    classes, which stand in socket.socket's place, wrap a socket: their methods are all there
    is, and they wait for other greenlets.
    """
    return isinstance(sock, _socket.socket)


def is_tcp(sock: socket.socket) -> bool:
    """Whether a stream socket is TCP (and not MPTCP or SMC, which share its families)."""
    return kind_of(sock) in TCP_KINDS


# socket.socket makes an enum of its family and its type at every look, and compares enums; the
# interpreter's own numbers, compared as numbers, cost a tenth of that.
_SOCK_STREAM = int(socket.SOCK_STREAM)
native_family = _socket.socket.family.__get__
native_type = _socket.socket.type.__get__


def kind_of(sock: socket.socket) -> tuple[int, int, int]:
    """Its family, type and protocol, as `socket.socket` takes them."""
    if isinstance(sock, _socket.socket):
        return native_family(sock), native_type(sock), sock.proto
    return int(sock.family), int(sock.type), sock.proto


# Protocol 0 is "the family's own"; Python repeats what the socket was made with.
TCP_KINDS = frozenset(
    (int(family), _SOCK_STREAM, protocol)
    for family in (socket.AF_INET, socket.AF_INET6)
    for protocol in (0, int(socket.IPPROTO_TCP))
)


def require_seconds(name: str, value: float) -> float:
    """Give a wait back that is a finite number of seconds, 0 or more.

    Raises:
        TypeError, ValueError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a finite number of seconds, 0 or more, not {value!r}")
    try:
        seconds = float(value)
    except OverflowError:  # an int with more digits than a float can have
        seconds = math.inf
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{name} must be a finite number of seconds, 0 or more, not {value!r}")
    return seconds


def require_count(name: str, value: int, of: str = "bytes", least: int = 0) -> int:
    """Give a whole number back that is `least` or more.

    Raises:
        TypeError, ValueError: It is not.
    """
    try:
        count = operator.index(value)
        if isinstance(value, bool):
            raise TypeError
    except TypeError:
        raise TypeError(
            f"{name} must be a whole number of {of}, {least} or more, not {value!r}"
        ) from None
    if count < least:
        raise ValueError(f"{name} must be {least} or more {of}, not {value!r}")
    return count
