"""The lost reply: a server replies early and closes, and the client may not get the reply."""

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
from .loopback import HOST, TIMEOUT
from .timeline import Kind, Side, Timeline
from .ways import Way

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graceful_close import CloseResult

    from .timeline import Exchange

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
    """The replies with one way to close.

    Attributes:
        name: The name on the command line.
        way: The code that a programmer writes.
        promised: The guarantee; see `Way`.
        tries: The number of replies sent.
        whole: The number of replies that the client received to their last byte.
        lost: How often each error replaced the reply, by the name of the error.
        exchange: The timeline of the first try.
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
        """Whether every reply arrived complete."""
        return self.whole == self.tries

    @property
    def as_promised(self) -> bool:
        """Whether the guarantee was kept."""
        return self.lost_nothing or not self.promised


def run(way: Way, timeline: Timeline | None = None, tries: int = TRIES) -> Replies:
    """Upload to a server that replies immediately and closes with `way`.

    The client is the standard library's, used as its documentation shows: it sends everything,
    then reads. The tries run one after the other; the timeline is that of the first try.

    Raises:
        OSError: The loopback does not work.
    """
    timeline = timeline or Timeline()
    lost: Counter[str | None] = Counter()  # None: not lost
    timeline.waiting_for = f"try 1 of {tries}"
    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(TIMEOUT)
        server = listener.getsockname()[1]
        with wire_view.watched(server) as wire:
            lost[_upload(listener, way, timeline)] += 1
        for number in range(1, tries):
            timeline.waiting_for = f"try {number + 1} of {tries}"
            lost[_upload(listener, way, Timeline())] += 1
    whole = lost.pop(None, 0)
    timeline.waiting_for = ""
    return Replies(
        way.name,
        way.title,
        way.promised,
        tries,
        whole,
        {problem: count for problem, count in lost.most_common() if problem is not None},
        wire_view.as_it_arrived(timeline.exchange(), wire, timeline.began, server),
    )


def _upload(listener: socket.socket, way: Way, timeline: Timeline) -> str | None:
    """Try once, and return the error that replaced the reply; None: the reply arrived."""
    client = http.client.HTTPConnection(HOST, listener.getsockname()[1], timeout=TIMEOUT)
    problem, fin_at = None, None
    # The client is always closed first, so that the server does not wait for it.
    with ThreadPoolExecutor(1) as server, contextlib.closing(client):
        client.connect()
        accepted, _ = listener.accept()
        ports = client.sock.getsockname()[1], listener.getsockname()[1]
        posted_at = timeline.add_event(Side.CLIENT, f"POST, {UPLOAD:,} bytes")
        served = server.submit(_answer, accepted, way, timeline)
        try:
            client.request("POST", "/", body=bytes(UPLOAD))
            with client.getresponse() as response:
                if way.half_closes:
                    fin_at = _when_fin_had_arrived(timeline, ports)
                body = response.read()
            problem = (
                None if (response.status, body) == (413, _BODY) else f"HTTP {response.status}"
            )
            timeline.add_event(Side.CLIENT, f"{response.status}, {len(body):,} bytes")
        except (OSError, http.client.HTTPException) as error:
            number = error.errno if isinstance(error, OSError) else None
            problem = errno.errorcode.get(number or 0, type(error).__name__)
            timeline.add_event(Side.CLIENT, problem)
        finally:
            ended_at = timeline.now()
            client.close()
            service = served.result()
    if service is not None:
        _record_packets(timeline, way, service, posted_at, ended_at, problem, fin_at)
    return problem


def _when_fin_had_arrived(timeline: Timeline, ports: tuple[int, int]) -> float | None:
    seen = kernel_view.kernel_state(*ports)
    return timeline.now() if seen is not None and seen.state == "CLOSE_WAIT" else None


class _Service(NamedTuple):
    """What the server did: the times, and the result of its close."""

    read: int
    head_at: float
    replied_at: float
    closing_at: float
    closed_at: float
    result: CloseResult | None


def _answer(sock: socket.socket, way: Way, timeline: Timeline) -> _Service | None:
    """Serve one request: read only its head, reply, close."""
    result = None
    with sock:
        sock.settimeout(TIMEOUT)
        head = b""
        while b"\r\n\r\n" not in head:
            chunk = sock.recv(4096)
            if not chunk:
                return None
            head += chunk
        head_at = timeline.now()
        replied_at = timeline.add_event(Side.SERVER, "send(reply)")
        sock.sendall(_ANSWER)
        closing_at = timeline.add_event(Side.SERVER, way.title)
        # Errors of the server's close do not matter: the result is what the client reads.
        with contextlib.suppress(OSError):
            result = way.close(sock)
    closed_at = timeline.now()
    if result is not None:
        timeline.add_event(Side.SERVER, f"{result.outcome.value}, {result.drained:,} drained")
    return _Service(len(head), head_at, replied_at, closing_at, closed_at, result)


def _record_packets(
    timeline: Timeline,
    way: Way,
    service: _Service,
    posted_at: float,
    ended_at: float,
    problem: str | None,
    fin_at: float | None,
) -> None:
    """Record the packets that the results of both programs prove."""
    result = service.result
    # The client closes after it has read everything, which is before its call returns here: at
    # the latest when the server sees the end.
    peer_closed = result is not None and result.outcome is CloseOutcome.PEER_CLOSED
    read_at = min(ended_at, service.closed_at) if peer_closed else ended_at
    timeline.add_packet(
        Side.CLIENT, Kind.DATA, "the head", posted_at, service.head_at, service.read
    )
    timeline.add_packet(
        Side.CLIENT,
        Kind.DATA,
        f"{result.drained:,} bytes" if result else "the rest",
        service.head_at,
        service.closed_at if result else None,
        service.read + result.drained if result else 0,
    )
    timeline.add_packet(
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
        timeline.add_packet(Side.SERVER, Kind.FIN, "FIN", service.closing_at, fin_at)
    if problem in _SIGNS_OF_A_RESET:
        timeline.add_packet(Side.SERVER, Kind.RST, "RST", service.closing_at, ended_at)
    if peer_closed:
        timeline.add_packet(Side.CLIENT, Kind.FIN, "FIN", read_at, service.closed_at)


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
    sock.setblocking(True)  # a non-blocking close() lingers only on Linux
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
