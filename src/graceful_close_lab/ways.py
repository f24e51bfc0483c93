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
        name: What the command line and the files call it.
        title: What a programmer would write.
        close: The doing.
        promised: What it promises. True: that the peer gets everything; False: that the rest
            is dropped and the peer told so; None: nothing.
        half_closes: Whether it sends our FIN before it closes.
    """

    name: str
    title: str
    close: Callable[[socket.socket], CloseResult | None]
    promised: bool | None = None
    half_closes: bool = False
