"""Where a server listens, and how it says so to whoever started it."""

from __future__ import annotations

import socket

from graceful_close import GracefulListener

_BACKLOG = 512


def listen(host: str, graceful: bool) -> socket.socket:
    """A listening socket on a free port, of the one kind or the other."""
    if graceful:
        return GracefulListener((host, 0), backlog=_BACKLOG)
    # As asyncio makes it when it is given a host and a port. With the protocol left at 0, as
    # socket.create_server leaves it, asyncio would not set TCP_NODELAY on what it accepts.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, 0))
    listener.listen(_BACKLOG)
    return listener


def announce(listening: socket.socket | int) -> None:
    """Say the port: connections are accepted from here on."""
    port: int = listening if isinstance(listening, int) else listening.getsockname()[1]
    print(port, flush=True)
