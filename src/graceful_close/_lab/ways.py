"""The ways to close that the lab compares."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from graceful_close import CloseResult


class Way(NamedTuple):
    """One way to close a socket: its name, and the doing."""

    name: str
    close: Callable[[socket.socket], CloseResult | None]
