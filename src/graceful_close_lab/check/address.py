"""The address of the server, as a user writes it."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple
from urllib.parse import urlsplit

_PORTS = {"http": 80, "https": 443}


class Address(NamedTuple):
    """One server, and a path on it.

    Attributes:
        host: A name or an IP address, without brackets.
        port: The TCP port.
        tls: Whether to use TLS.
        path: The path of the request: ASCII, beginning with a slash.
    """

    host: str
    port: int
    tls: bool
    path: str

    @property
    def authority(self) -> str:
        """The value of the Host field (RFC 9110, section 7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.path}"


def connect_to(text: str) -> tuple[str, int]:
    """Read `HOST:PORT` or `[::1]:8000`: the address to connect to, if it is not the URL's.

    Raises:
        ValueError: The text is neither.
    """
    address = parse(text)
    if "://" in text or address.path != "/":
        raise ValueError(f"{text!r} is not HOST:PORT or [IPV6]:PORT")
    return address.host, address.port


def parse(text: str, path: str | None = None) -> Address:
    """Read `HOST:PORT`, `[::1]:8000` or a whole URL.

    Args:
        text: The user's text.
        path: The path, if it was given separately.

    Raises:
        ValueError: The text is not an address; the message says what is wrong.
    """
    url = urlsplit(text if "://" in text else f"http://{text}")
    if url.scheme not in _PORTS:
        raise ValueError(
            f"{text!r}: unsupported scheme {url.scheme}:// (use http:// or https://)"
        )
    if url.username is not None or url.password is not None:
        raise ValueError("credentials in the URL are not supported (use --header)")
    not_an_address = f"{text!r} is not HOST:PORT, [IPV6]:PORT or a URL"
    if ":" in url.netloc.partition(":")[2] and "[" not in url.netloc:
        raise ValueError(not_an_address)
    try:
        port = url.port
    except ValueError:
        raise ValueError(f"{text!r}: the port must be a number from 1 to 65535") from None
    if port is None and "://" in text:
        port = _PORTS[url.scheme]
    if not url.hostname or not port:
        raise ValueError(not_an_address)
    named = url.path + (f"?{url.query}" if url.query else "")
    if path is not None and named not in ("", path):
        raise ValueError(f"the path is {path!r} in --path and {named!r} in the address")
    return Address(
        _host(url.hostname), port, url.scheme == "https", _path(path or named or "/")
    )


def _host(name: str) -> str:
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        pass  # a name
    try:
        return name.encode("idna").decode("ascii")
    except UnicodeError:
        raise ValueError(f"{name!r} is not a host name") from None


def _path(path: str) -> str:
    path = path if path.startswith(("/", "?")) else f"/{path}"
    path = path if path.startswith("/") else f"/{path}"
    # The path must not contain what ends a request line (RFC 9112, section 3).
    if not (path.isascii() and path.isprintable()) or " " in path:
        raise ValueError(f"the path {path!r} must be percent-encoded ASCII without spaces")
    return path
