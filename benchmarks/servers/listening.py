"""The listener of a server, and the report of its port."""

from __future__ import annotations

import socket

from graceful_close import GracefulListener

_BACKLOG = 512


def listen(host: str, graceful: bool) -> socket.socket:
    """Return a listening socket on a free port, graceful or plain."""
    if graceful:
        return GracefulListener((host, 0), backlog=_BACKLOG)
    # As asyncio makes it for a host and a port. With the protocol 0, as in
    # socket.create_server, asyncio would not set TCP_NODELAY on accepted sockets.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, 0))
    listener.listen(_BACKLOG)
    return listener


def announce(listening: socket.socket | int) -> None:
    """Print the port: connections are accepted from now on."""
    port: int = listening if isinstance(listening, int) else listening.getsockname()[1]
    print(port, flush=True)
