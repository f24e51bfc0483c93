"""The ways to close that the lab compares."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from graceful_close import CloseResult


class Way(NamedTuple):
    """One way to close a socket.

    Attributes:
        name: The name on the command line and in file names.
        title: The code that a programmer writes.
        close: Closes the socket in this way.
        promised: The guarantee. True: the peer receives everything. False: unsent data is
            discarded and the peer is reset. None: there is no guarantee.
        half_closes: Whether our FIN is sent before the close.
    """

    name: str
    title: str
    close: Callable[[socket.socket], CloseResult | None]
    promised: bool | None = None
    half_closes: bool = False
