"""The request, which is the same for every try of a kind of client."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .outcome import Client

if TYPE_CHECKING:
    import ssl

    from .address import Address

Endpoint = tuple[str | int | bytes, ...] | str
"""The address to connect to, as an argument of `socket.connect()`."""


class Upload(NamedTuple):
    """The request of every try.

    Attributes:
        address: The address of the server.
        endpoints: The family and address of each endpoint of the host.
        size: The number of bytes to upload.
        timeout: Seconds for a whole try.
        context: The TLS context; None: plain TCP.
        method: The method of the request.
        fields: Header fields, which replace ours of the same name.
    """

    address: Address
    endpoints: tuple[tuple[int, Endpoint], ...]
    size: int
    timeout: float
    context: ssl.SSLContext | None
    method: str = "POST"
    fields: tuple[tuple[str, str], ...] = ()

    def head(self, client: Client) -> bytes:
        """Return the head of the request of a kind of client."""
        fields = {
            "host": ("Host", self.address.authority),
            "user-agent": ("User-Agent", "graceful-close-check"),
            "accept": ("Accept", "*/*"),
            "content-type": ("Content-Type", "application/octet-stream"),
        }
        fields |= {name.lower(): (name, value) for name, value in self.fields}
        lines = [f"{self.method} {self.address.path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in fields.values()]
        lines.append(f"Content-Length: {self.size}")
        if client is Client.CLOSE:
            lines.append("Connection: close")
        if client is Client.EXPECT:
            lines.append("Expect: 100-continue")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


OWN_FIELDS = frozenset({"connection", "content-length", "expect", "transfer-encoding"})
"""Fields that a user cannot set, because the kinds of client differ in them."""
