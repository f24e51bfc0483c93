"""A parser of an HTTP reply that arrives in parts."""

from __future__ import annotations

import http.client
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

_BEGINNING = b"HTTP/1."

# The longest head, in bytes. http.client allows a line of this length.
_LONGEST_HEAD = 65536

_LONGEST_STATUS = 3  # digits (RFC 9112, section 4)

_EMPTY_LINES = (b"\r\n", b"\n")

_HEXADECIMAL = frozenset(b"0123456789abcdefABCDEF")


class NotHTTPError(Exception):
    """The received bytes are not an HTTP/1 reply."""


class Reply:
    """One reply. The head is kept, the body is only counted.

    Attributes:
        received: Bytes received, with those of 1xx replies.
        status: The status code; 0: not known yet.
        server: The Server field; empty: the reply has none, or it has not arrived yet.
        continues: Whether 100 Continue has arrived.
        whole: Whether the last byte has arrived (RFC 9112, section 6.3).
    """

    def __init__(self) -> None:
        self.received = 0
        self.status = 0
        self.server = ""
        self.whole = False
        self.continues = False
        self._buffer = bytearray()
        self._ended = False
        self._parser = self._parse()
        next(self._parser)

    def feed(self, data: bytes) -> None:
        """Add received bytes; b"" is the end of the stream, by FIN.

        Raises:
            NotHTTPError: The bytes are not HTTP/1.
        """
        self.received += len(data)
        self._buffer += data
        self._ended = not data
        if not self.whole:
            self.whole = next(self._parser, True)

    def _parse(self) -> Generator[bool]:
        """Yield False for each wait for more bytes, until the reply is complete."""
        fields = yield from self._head()
        while self.status < 200:  # 100 Continue, and other interim replies
            self.continues = self.continues or self.status == 100
            fields = yield from self._head()
        if self.status in (204, 304):
            return
        if "chunked" in fields.get("Transfer-Encoding", "").lower():
            yield from self._chunks()
        elif (length := fields.get("Content-Length")) is not None:
            yield from self._count(_number(length.split(",")[0].strip(), 10))
        else:
            while not self._ended:
                self._buffer.clear()
                yield False

    def _head(self) -> Generator[bool, None, http.client.HTTPMessage]:
        while len(self._buffer) < len(_BEGINNING) and _BEGINNING.startswith(self._buffer):
            yield False
        if not self._buffer.startswith(_BEGINNING):
            raise NotHTTPError(f"the answer is not HTTP/1: {bytes(self._buffer[:40])!r}")
        first = yield from self._line()
        status = first.split()[1:2]
        if not status or not status[0].isdigit() or len(status[0]) > _LONGEST_STATUS:
            raise NotHTTPError(f"the answer has no status: {first[:40]!r}")
        rest = line = yield from self._line()
        while line not in _EMPTY_LINES:
            line = yield from self._line(len(rest))
            rest += line
        self.status = int(status[0])
        try:
            fields = http.client.parse_headers(io.BytesIO(rest))
        except http.client.HTTPException as error:
            raise NotHTTPError(str(error)) from None
        self.server = fields.get("Server", "")
        return fields

    def _line(self, before: int = 0) -> Generator[bool, None, bytes]:
        """Read a line, which may end with LF alone (RFC 9112, section 2.2)."""
        left = _LONGEST_HEAD - before
        while (end := self._buffer.find(b"\n") + 1) == 0 and len(self._buffer) <= left:
            yield False
        if not 0 < end <= left:
            raise NotHTTPError(f"the answer's head is longer than {_LONGEST_HEAD} bytes")
        found = bytes(self._buffer[:end])
        del self._buffer[:end]
        return found

    def _count(self, length: int) -> Generator[bool]:
        while length > len(self._buffer):
            length -= len(self._buffer)
            self._buffer.clear()
            yield False
        del self._buffer[:length]

    def _chunks(self) -> Generator[bool]:
        """Read a chunked body (RFC 9112, section 7.1)."""
        while True:
            line = yield from self._line()
            size = _number(line.partition(b";")[0].strip().decode("latin-1"), 16)
            if size == 0:
                break
            yield from self._count(size + 2)
        while (yield from self._line()) not in _EMPTY_LINES:
            pass  # a trailer field


def _number(text: str, base: int) -> int:
    digits = text.encode("latin-1", "replace")
    if not digits or not _HEXADECIMAL.issuperset(digits):
        raise NotHTTPError(f"the answer's length is {text[:40]!r}")
    try:
        return int(text, base)
    except ValueError:
        raise NotHTTPError(f"the answer's length is {text[:40]!r}") from None
