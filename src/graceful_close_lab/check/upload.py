"""What is uploaded where: the same for every try but for the kind of client."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .outcome import Client

if TYPE_CHECKING:
    import ssl

    from .address import Address

Endpoint = tuple[str | int | bytes, ...] | str
"""Where to connect to, as `socket.connect()` takes it."""


class Upload(NamedTuple):
    """What every try does.

    Attributes:
        address: Where to.
        endpoints: What its host stands for: of each, the family and where to connect to.
        size: Bytes to upload.
        timeout: Seconds for a whole try.
        context: What speaks TLS; None: plain.
        method: Of the request.
        fields: Header fields, instead of ours if those have the same name.
    """

    address: Address
    endpoints: tuple[tuple[int, Endpoint], ...]
    size: int
    timeout: float
    context: ssl.SSLContext | None
    method: str = "POST"
    fields: tuple[tuple[str, str], ...] = ()

    def head(self, client: Client) -> bytes:
        """The head of the request that such a client sends."""
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
"""Fields that a user cannot set: what is tried depends on them."""
