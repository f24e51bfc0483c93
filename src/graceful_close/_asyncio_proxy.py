"""A proxy for a transport that replaces close()."""

from __future__ import annotations

import asyncio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any
    from weakref import WeakSet

    from ._asyncio_first_look import FirstLook
    from ._asyncio_transport import TransportTakeover

    # What has replaced the server's protocol, and keeps it.
    Taker = TransportTakeover | FirstLook

    Data = bytes | bytearray | memoryview[Any]


class TransportProxy(asyncio.Transport):
    """The object that a server's protocol gets instead of its transport.

    Reading and writing cost one additional call. Input does not pass through the proxy: the
    transport below calls the server's protocol itself.

    Args:
        plain: The transport below.
        close: A function that closes the transport and returns the object that has replaced the
            protocol; None: the protocol was not replaced.
        clients: The proxies of a server, to which this proxy is added.

    Attributes:
        plain: The transport below.
    """

    # No __slots__: servers set attributes of their own on asyncio's transports.

    def __init__(
        self,
        plain: asyncio.Transport,
        close: Callable[[asyncio.Transport], Taker | None],
        clients: WeakSet[TransportProxy],
    ) -> None:
        self.plain = plain
        self._close = close
        self._clients = clients
        clients.add(self)
        self._taken_by: Taker | None = None

    def close(self) -> None:
        # A transport that is closing was already closed, or closes because the peer has sent FIN.
        if not self.is_closing():
            self._taken_by = self._close(self.plain)

    def is_closing(self) -> bool:
        return self._taken_by is not None or self.plain.is_closing()

    def abort(self) -> None:
        self.plain.abort()

    def over(self, plain: asyncio.Transport) -> TransportProxy:
        """Return a proxy for another transport, for example a TLS transport over this one."""
        self._clients.discard(self)
        return type(self)(plain, self._close, self._clients)

    # --- the protocol, which is replaced after close() ---

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.plain.get_protocol() if self._taken_by is None else self._taken_by.owner

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        if self._taken_by is None:
            self.plain.set_protocol(protocol)
        else:
            self._taken_by.owner = protocol

    # --- reading, which only the takeover controls after close() ---

    def is_reading(self) -> bool:
        return self._taken_by is None and self.plain.is_reading()

    def pause_reading(self) -> None:
        if self._taken_by is None:
            self.plain.pause_reading()

    def resume_reading(self) -> None:
        if self._taken_by is None:
            self.plain.resume_reading()

    # --- writing ---

    def write(self, data: Data) -> None:
        self.plain.write(data)

    def writelines(self, list_of_data: Iterable[Data]) -> None:
        self.plain.writelines(list_of_data)

    def write_eof(self) -> None:
        self.plain.write_eof()

    def can_write_eof(self) -> bool:
        return self.plain.can_write_eof()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.plain.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self.plain.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self.plain.get_write_buffer_limits()

    # --- the rest ---

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.plain.get_extra_info(name, default)

    def __getattr__(self, name: str) -> Any:
        # Loops read private attributes of their transports. asyncio so checks whether start_tls() and
        # sendfile() are supported.
        return getattr(self.plain, name)

    def __repr__(self) -> str:
        return f"<graceful {self.plain!r}>"
