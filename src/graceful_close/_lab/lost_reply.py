"""The lost reply: a server answers early, closes, and the client may never see the answer."""

from __future__ import annotations

import contextlib
import errno
import http.client
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graceful_close import LingerPolicy, graceful_close, set_linger

from .loopback import HOST, PATIENCE
from .ways import Way

if TYPE_CHECKING:
    from collections.abc import Mapping

UPLOAD = 5_000_000
REPLY = 64 << 10
TRIES = 20

_LINGER_SECONDS = 5
_DRAIN = 64 << 10

_BODY = b"x" * REPLY
_ANSWER = (
    b"HTTP/1.1 413 Content Too Large\r\n"
    b"Connection: close\r\n"
    b"Content-Type: text/plain\r\n"
    b"Content-Length: %d\r\n\r\n" % REPLY
) + _BODY


@dataclass(frozen=True)
class Replies:
    """What became of the replies with one way to close.

    Attributes:
        way: Its name.
        tries: Replies sent.
        whole: Replies that the client received to their last byte.
        lost: What the client got instead, by the name of its error, and how often.
    """

    way: str
    tries: int
    whole: int
    lost: Mapping[str, int]

    @property
    def lost_nothing(self) -> bool:
        """Whether every reply arrived whole."""
        return self.whole == self.tries


def run(way: Way, tries: int = TRIES) -> Replies:
    """Upload to a server that answers at once and closes as `way` does.

    The client is the standard library's, used as its documentation shows: it sends all, then
    reads. One try after the other.

    Raises:
        OSError: The loopback does not work.
    """
    lost: Counter[str] = Counter()
    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(PATIENCE)
        for _ in range(tries):
            problem = _upload(listener, way)
            if problem is not None:
                lost[problem] += 1
    return Replies(way.name, tries, tries - lost.total(), dict(lost.most_common()))


def _upload(listener: socket.socket, way: Way) -> str | None:
    """One try: what the client got instead of the reply; None: it got the reply."""
    client = http.client.HTTPConnection(HOST, listener.getsockname()[1], timeout=PATIENCE)
    # The client is closed first, whatever happened: then the server has nothing to wait for.
    with ThreadPoolExecutor(1) as server, contextlib.closing(client):
        client.connect()
        accepted, _ = listener.accept()
        served = server.submit(_answer, accepted, way)
        try:
            client.request("POST", "/", body=bytes(UPLOAD))
            with client.getresponse() as response:
                body = response.read()
        except (OSError, http.client.HTTPException) as error:
            number = error.errno if isinstance(error, OSError) else None
            return errno.errorcode.get(number or 0, type(error).__name__)
        finally:
            client.close()
            served.result()
    return None if (response.status, body) == (413, _BODY) else f"HTTP {response.status}"


def _answer(sock: socket.socket, way: Way) -> None:
    """The server: read the request's head and no more, answer, close."""
    with sock:
        sock.settimeout(PATIENCE)
        head = b""
        while b"\r\n\r\n" not in head:
            chunk = sock.recv(4096)
            if not chunk:
                return
            head += chunk
        sock.sendall(_ANSWER)
        # Whatever the client does to the server's end, it is the client's end that counts.
        with contextlib.suppress(OSError):
            way.close(sock)


def _close(sock: socket.socket) -> None:
    sock.close()


def _shut_both(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_RDWR)
    sock.close()


def _shut_writing(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)
    sock.close()


def _linger(sock: socket.socket) -> None:
    sock.setblocking(True)  # a non-blocking close() lingers on Linux alone
    set_linger(sock, LingerPolicy.TIMED, _LINGER_SECONDS)
    sock.close()


def _drain_a_little(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)
    left = _DRAIN
    while left and (chunk := sock.recv(left)):
        left -= len(chunk)
    sock.close()


GRACEFUL = Way("graceful_close", graceful_close)

WAYS = (
    Way("close()", _close),
    Way("shutdown(SHUT_RDWR), close()", _shut_both),
    Way("shutdown(SHUT_WR), close()", _shut_writing),
    Way(f"SO_LINGER {{1, {_LINGER_SECONDS}}}, close()", _linger),
    Way("SHUT_WR, drain 64 KiB, close()", _drain_a_little),
    GRACEFUL,
)
