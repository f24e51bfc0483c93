"""TCP connections to ourselves, on which nothing waits for ever."""

from __future__ import annotations

import contextlib
import enum
import socket
from typing import TYPE_CHECKING

from graceful_close._platform import ErrorKind, error_kind

if TYPE_CHECKING:
    from collections.abc import Generator

HOST = "127.0.0.1"

# The most seconds that any wait of the lab takes. Arbitrary: a loopback that is silent for
# so long is broken, and waiting more would not mend it.
PATIENCE = 5.0


class Ending(enum.Enum):
    """How a stream ends for the one who reads it."""

    FIN = "FIN"
    """recv() gave b"": all that was written has been read."""

    RST = "RST"
    """recv() failed with a reset: something may be missing."""

    NOTHING = "nothing"
    """Neither came."""


@contextlib.contextmanager
def connection(
    receive_buffer: int | None = None,
) -> Generator[tuple[socket.socket, socket.socket]]:
    """A TCP connection on loopback; both ends are closed when the block is left.

    Args:
        receive_buffer: The peer's SO_RCVBUF in bytes; None: the system's choice.

    Yields:
        Our end, which is a server's, and the peer's. Both wait at most `PATIENCE`.
    """
    with socket.create_server((HOST, 0)) as listener, socket.socket() as peer:
        if receive_buffer is not None:
            # Before connect(): the handshake settles how far the window can open (tcp(7)).
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        listener.settimeout(PATIENCE)
        peer.settimeout(PATIENCE)
        peer.connect(listener.getsockname())
        ours, _ = listener.accept()
        with ours:
            ours.settimeout(PATIENCE)
            yield ours, peer


def write(sock: socket.socket, count: int) -> None:
    """Write `count` bytes, with room in the send buffer for all that the peer does not take."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * count)
    sock.sendall(bytes(count))


def read_to_the_end(sock: socket.socket) -> tuple[int, Ending]:
    """Read until the stream ends.

    Returns:
        How many bytes came, and how it ended.
    """
    received = 0
    try:
        while chunk := sock.recv(64 << 10):
            received += len(chunk)
    except TimeoutError:
        return received, Ending.NOTHING
    except OSError as error:
        if error_kind(error) is ErrorKind.RESET:
            return received, Ending.RST
        raise
    return received, Ending.FIN
