"""The other connections of a close_all(), whose peers have closed. Their results are always clean."""

from __future__ import annotations

import socket
from contextlib import ExitStack, suppress
from typing import Any

from graceful_close import CloseResult, LingerPolicy, set_linger
from streams import send_fin

_REPLY = b"reply"
_DEADLINE = 5.0


class Other:
    """A connection whose peer has closed.

    Attributes:
        ours: The socket that will be closed.
        stream: What the closing function gets: the socket, or an object around the socket.
        result: The result of the close.
    """

    def __init__(self, held: ExitStack, ours: socket.socket, peer: socket.socket) -> None:
        self.ours, self._peer = ours, peer
        held.callback(peer.close)
        held.callback(reset, ours)
        ours.sendall(_REPLY)
        send_fin(peer, to=ours)
        self.stream: Any = ours
        self.result: CloseResult | None = None

    def is_well(self) -> bool:
        """Whether the peer received everything, and the result is clean."""
        if self.result is None or self.ours.fileno() != -1:
            return False
        if "MemoryError" in str(self.result.error):
            # asyncio's transport aborts its connection if it gets no 256 KiB for a read.
            return not self.result.clean
        with suppress(OSError):
            whole = self._peer.recv(100) + self._peer.recv(100) == _REPLY
            return whole and self.result.clean
        return False


def new_others(held: ExitStack) -> list[Other]:
    """Return a TCP connection and a pair of UNIX sockets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname(), _DEADLINE)
        ours, _ = listener.accept()
    return [Other(held, ours, peer), Other(held, *socket.socketpair())]


def reset(sock: socket.socket) -> None:
    """Reset the connection, so that the kernel forgets it."""
    if sock.fileno() != -1:
        with suppress(OSError):
            set_linger(sock, LingerPolicy.ABORT)
        socket.socket.close(sock)
