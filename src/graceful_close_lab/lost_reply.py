"""The lost reply: a server answers early, closes, and the client may never see the answer."""

from __future__ import annotations

import contextlib
import errno
import http.client
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from graceful_close import CloseOutcome, LingerPolicy, graceful_close, set_linger

from . import kernel_view, wire_view
from .loopback import HOST, PATIENCE
from .story import Kind, Side, Story
from .ways import Way

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graceful_close import CloseResult

    from .story import Exchange

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
        name: What the command line calls it.
        way: What a programmer would write.
        promised: What it promises; see `Way`.
        tries: Replies sent.
        whole: Replies that the client received to their last byte.
        lost: What the client got instead, by the name of its error, and how often.
        exchange: Who did what when, in the first try.
    """

    name: str
    way: str
    promised: bool | None
    tries: int
    whole: int
    lost: Mapping[str, int]
    exchange: Exchange

    @property
    def lost_nothing(self) -> bool:
        """Whether every reply arrived whole."""
        return self.whole == self.tries

    @property
    def as_promised(self) -> bool:
        """Whether it went as the way to close promises."""
        return self.lost_nothing or not self.promised


def run(way: Way, story: Story | None = None, tries: int = TRIES) -> Replies:
    """Upload to a server that answers at once and closes as `way` does.

    The client is the standard library's, used as its documentation shows: it sends all, then
    reads. One try after the other; the story is the first one's.

    Raises:
        OSError: The loopback does not work.
    """
    story = story or Story()
    lost: Counter[str | None] = Counter()  # None: nothing was
    story.waits_for = f"try 1 of {tries}"
    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(PATIENCE)
        server = listener.getsockname()[1]
        with wire_view.watched(server) as wire:
            lost[_upload(listener, way, story)] += 1
        for number in range(1, tries):
            story.waits_for = f"try {number + 1} of {tries}"
            lost[_upload(listener, way, Story())] += 1
    whole = lost.pop(None, 0)
    story.waits_for = ""
    return Replies(
        way.name,
        way.title,
        way.promised,
        tries,
        whole,
        {problem: count for problem, count in lost.most_common() if problem is not None},
        wire_view.as_it_arrived(story.so_far(), wire, story.began, server),
    )


def _upload(listener: socket.socket, way: Way, story: Story) -> str | None:
    """One try: what the client got instead of the reply; None: it got the reply."""
    client = http.client.HTTPConnection(HOST, listener.getsockname()[1], timeout=PATIENCE)
    problem, fin_at = None, None
    # The client is closed first, whatever happened: then the server has nothing to wait for.
    with ThreadPoolExecutor(1) as server, contextlib.closing(client):
        client.connect()
        accepted, _ = listener.accept()
        ports = client.sock.getsockname()[1], listener.getsockname()[1]
        posted_at = story.does(Side.CLIENT, f"POST, {UPLOAD:,} bytes")
        served = server.submit(_answer, accepted, way, story)
        try:
            client.request("POST", "/", body=bytes(UPLOAD))
            with client.getresponse() as response:
                if way.half_closes:
                    fin_at = _when_fin_was_there(story, ports)
                body = response.read()
            problem = (
                None if (response.status, body) == (413, _BODY) else f"HTTP {response.status}"
            )
            story.does(Side.CLIENT, f"{response.status}, {len(body):,} bytes")
        except (OSError, http.client.HTTPException) as error:
            number = error.errno if isinstance(error, OSError) else None
            problem = errno.errorcode.get(number or 0, type(error).__name__)
            story.does(Side.CLIENT, problem)
        finally:
            ended_at = story.now()
            client.close()
            service = served.result()
    if service is not None:
        _tell(story, way, service, posted_at, ended_at, problem, fin_at)
    return problem


def _when_fin_was_there(story: Story, ports: tuple[int, int]) -> float | None:
    seen = kernel_view.standing(*ports)
    return story.now() if seen is not None and seen.state == "CLOSE_WAIT" else None


class _Service(NamedTuple):
    """What the server did: when, and how its close said it went."""

    read: int
    head_at: float
    replied_at: float
    closing_at: float
    closed_at: float
    result: CloseResult | None


def _answer(sock: socket.socket, way: Way, story: Story) -> _Service | None:
    """The server: read the request's head and no more, answer, close."""
    result = None
    with sock:
        sock.settimeout(PATIENCE)
        head = b""
        while b"\r\n\r\n" not in head:
            chunk = sock.recv(4096)
            if not chunk:
                return None
            head += chunk
        head_at = story.now()
        replied_at = story.does(Side.SERVER, "send(reply)")
        sock.sendall(_ANSWER)
        closing_at = story.does(Side.SERVER, way.title)
        # Whatever the client does to the server's end, it is the client's end that counts.
        with contextlib.suppress(OSError):
            result = way.close(sock)
    closed_at = story.now()
    if result is not None:
        story.does(Side.SERVER, f"{result.outcome.value}, {result.drained:,} drained")
    return _Service(len(head), head_at, replied_at, closing_at, closed_at, result)


def _tell(
    story: Story,
    way: Way,
    service: _Service,
    posted_at: float,
    ended_at: float,
    problem: str | None,
    fin_at: float | None,
) -> None:
    """What was sent, as it follows from what both were told."""
    result = service.result
    # The client closes when it has read all, which is before it can tell us: at the latest when
    # the server sees the end.
    peer_closed = result is not None and result.outcome is CloseOutcome.PEER_CLOSED
    read_at = min(ended_at, service.closed_at) if peer_closed else ended_at
    story.sends(Side.CLIENT, Kind.DATA, "the head", posted_at, service.head_at, service.read)
    story.sends(
        Side.CLIENT,
        Kind.DATA,
        f"{result.drained:,} bytes" if result else "the rest",
        service.head_at,
        service.closed_at if result else None,
        service.read + result.drained if result else 0,
    )
    story.sends(
        Side.SERVER,
        Kind.DATA,
        f"reply, {len(_ANSWER):,} bytes",
        service.replied_at,
        None if problem else read_at,
        len(_ANSWER),
    )
    if way.half_closes:
        if fin_at is None and result is not None and result.unacked == 0:
            fin_at = service.closed_at
        story.sends(Side.SERVER, Kind.FIN, "FIN", service.closing_at, fin_at)
    if problem in _SIGNS_OF_A_RESET:
        story.sends(Side.SERVER, Kind.RST, "RST", service.closing_at, ended_at)
    if peer_closed:
        story.sends(Side.CLIENT, Kind.FIN, "FIN", read_at, service.closed_at)


_SIGNS_OF_A_RESET = frozenset({"ECONNRESET", "EPIPE", "ECONNABORTED"})


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


GRACEFUL = Way(
    "reply-graceful-close", "graceful_close", graceful_close, promised=True, half_closes=True
)

WAYS = (
    Way("reply-close", "close()", _close),
    Way("reply-shut-rdwr", "shutdown(SHUT_RDWR), close()", _shut_both, half_closes=True),
    Way("reply-shut-wr", "shutdown(SHUT_WR), close()", _shut_writing, half_closes=True),
    Way("reply-linger", f"SO_LINGER {{1, {_LINGER_SECONDS}}}, close()", _linger),
    Way("reply-drain", "SHUT_WR, drain 64 KiB, close()", _drain_a_little, half_closes=True),
    GRACEFUL,
)
