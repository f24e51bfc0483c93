"""TCP connections on loopback, on which every wait has a deadline."""

from __future__ import annotations

import contextlib
import enum
import socket
from typing import TYPE_CHECKING

from graceful_close._platform import ErrorKind, error_kind

if TYPE_CHECKING:
    from collections.abc import Generator

HOST = "127.0.0.1"

# The longest wait of the lab, in seconds. A heuristic: a loopback that is silent for this long
# is broken, and a longer wait does not help.
TIMEOUT = 5.0


class Ending(enum.Enum):
    """How a stream ends for its reader."""

    FIN = "FIN"
    """recv() returned b"": everything that was written has been read."""

    RST = "RST"
    """recv() failed with a reset: data may be missing."""

    NOTHING = "nothing"
    """Neither arrived."""


@contextlib.contextmanager
def connection(
    receive_buffer: int | None = None,
) -> Generator[tuple[socket.socket, socket.socket]]:
    """Open a TCP connection on loopback; both ends are closed when the block is left.

    Args:
        receive_buffer: The peer's SO_RCVBUF in bytes; None: the system's choice.

    Yields:
        Our end, which is the server's, and the peer's. Each wait is at most `TIMEOUT`.
    """
    with socket.create_server((HOST, 0)) as listener, socket.socket() as peer:
        if receive_buffer is not None:
            # Before connect(), because the handshake fixes the window scale (tcp(7)).
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        listener.settimeout(TIMEOUT)
        peer.settimeout(TIMEOUT)
        peer.connect(listener.getsockname())
        ours, _ = listener.accept()
        with ours:
            ours.settimeout(TIMEOUT)
            yield ours, peer


def write(sock: socket.socket, count: int) -> None:
    """Write `count` bytes, with a send buffer that has room for all of them."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * count)
    sock.sendall(bytes(count))


def read_to_the_end(sock: socket.socket) -> tuple[int, Ending]:
    """Read until the stream ends.

    Returns:
        The number of bytes received, and how the stream ended.
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
