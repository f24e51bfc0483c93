"""ICMP messages during a close: a number in `error`, and no outcome of the peer."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from typing import NamedTuple

import anyio
import pytest
from anyio.abc import SocketStream

import graceful_close.anyio
import graceful_close.asyncio
from certificates import NAME, client_context, server_context
from drivers import GRACEFUL, Close, parts
from event_loops import LOOPS
from graceful_close import CloseOutcome, CloseResult, Reaper, abortive_close, close_all
from streams import DEADLINE, await_reset, ends_in_reset, meanwhile, read_all, read_and_close

from .icmp import message_about
from .laid import Connection, OurSocket, Passage, Wire
from .link import Journey, Link
from .packets import OURS, Fate
from .rules import DATA, FIN, Which, every, first, of

LONG = bytes(300_000)

IP_RECVERR, IPV6_RECVERR = 11, 25  # include/uapi/linux/in.h, in6.h


class Message(NamedTuple):
    """An ICMP message about a packet, and the error number of Linux for it."""

    version: str
    kind: int
    code: int
    number: int


# net/ipv4/icmp.c, icmp_err_convert; net/ipv6/icmp.c, tab_unreach.
MESSAGES = {
    "network unreachable": Message("IPv4", 3, 0, errno.ENETUNREACH),
    "host unreachable": Message("IPv4", 3, 1, errno.EHOSTUNREACH),
    "protocol unreachable": Message("IPv4", 3, 2, errno.ENOPROTOOPT),
    "port unreachable": Message("IPv4", 3, 3, errno.ECONNREFUSED),
    "host isolated": Message("IPv4", 3, 8, 64),  # ENONET
    "prohibited": Message("IPv4", 3, 13, errno.EHOSTUNREACH),
    "no route (IPv6)": Message("IPv6", 1, 0, errno.ENETUNREACH),
    "prohibited (IPv6)": Message("IPv6", 1, 1, errno.EACCES),
    "port unreachable (IPv6)": Message("IPv6", 1, 4, errno.ECONNREFUSED),
    "policy (IPv6)": Message("IPv6", 1, 5, errno.EACCES),
}
SOME = ("protocol unreachable", "port unreachable", "prohibited (IPv6)")


class Router(Wire):
    """A wire with a router that answers our packets with ICMP."""

    def answer(self, which: Which, message: Message) -> None:
        """Drop the packet, and send the message to its sender."""

        def act(passage: Passage) -> list[Journey]:
            passage.packet.fate = Fate.DROPPED
            about = message_about(passage.raw, self.version, message.kind, message.code)
            return [Journey.of(about, OURS, passage.due)]

        self._add_rule(which, act)


@pytest.fixture(params=SOME)
def some_message(
    link: Link, request: pytest.FixtureRequest
) -> Iterator[tuple[Router, Message]]:
    message = MESSAGES[request.param]
    with Router(link, message.version) as router:
        yield router, message
        router.settle()


def with_recverr(router: Router) -> Connection:
    """Return a connection with IP_RECVERR, which makes ICMP errors end it (RFC 1122).

    Answer every packet: a message that arrives during a system call on the socket does not end the
    connection (tcp_v4_err() in net/ipv4/tcp_ipv4.c, if the socket is owned by the user).
    """
    connection = router.connect()
    if router.version == "IPv4":
        connection.ours.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    else:
        connection.ours.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
    return connection


def with_an_error(router: Router, message: Message) -> OurSocket:
    """Return a socket whose reply was answered with the message, which has arrived."""
    ours, _ = with_recverr(router)
    router.answer(every(DATA, from_=OURS), message)
    ours.sendall(b"reply")
    await_reset(ours)
    return ours


def assert_error(result: CloseResult, message: Message) -> None:
    assert result.outcome is CloseOutcome.TIMED_OUT
    assert result.error is not None
    assert result.error.errno == message.number
    assert result.elapsed < DEADLINE / 2
    assert not result.clean


@pytest.mark.parametrize("some_message", MESSAGES, indirect=True)
@pytest.mark.parametrize("close", parts(GRACEFUL))
def test_the_result_has_the_number_of_the_message(
    some_message: tuple[Router, Message], close: Close
) -> None:
    """Our FIN is answered with ICMP, and the socket has IP_RECVERR."""
    router, message = some_message
    ours, _ = with_recverr(router)
    router.answer(every(FIN, from_=OURS), message)
    assert_error(close(ours, timeout=DEADLINE), message)
    assert ours.fileno() == -1


@pytest.mark.parametrize("close", parts(GRACEFUL))
def test_delivered_is_not_returned_after_icmp(
    some_message: tuple[Router, Message], close: Close
) -> None:
    """Our FIN is answered with ICMP, and the call waits for an acknowledgement."""
    router, message = some_message
    ours, _ = with_recverr(router)
    router.deliver(b"reply", ours)
    router.answer(every(FIN, from_=OURS), message)
    assert_error(close(ours, timeout=DEADLINE, until=CloseOutcome.DELIVERED), message)


def test_an_earlier_error_is_reported(some_message: tuple[Router, Message]) -> None:
    """A part of the reply was answered with ICMP before the call."""
    router, message = some_message
    ours = with_an_error(router, message)
    result = GRACEFUL["graceful_close"](ours, timeout=DEADLINE)
    assert result.outcome is CloseOutcome.TIMED_OUT
    assert (result.error and result.error.errno) == message.number


def test_an_error_of_one_connection_does_not_change_the_results_of_others(
    some_message: tuple[Router, Message],
) -> None:
    """The FIN of the first of three is answered with ICMP; the peers of the others have closed."""
    router, message = some_message
    router_first = with_recverr(router)
    others = [router.connect() for _ in range(2)]
    for _, peer in others:
        peer.shutdown(socket.SHUT_WR)
    router.settle()
    router.answer(every(of(router_first.peer, FIN), from_=OURS), message)
    failed, *results = close_all(
        [router_first.ours, *(ours for ours, _ in others)], timeout=DEADLINE
    )
    assert_error(failed, message)
    assert [(result.outcome, result.unacked) for result in results] == [
        (CloseOutcome.PEER_CLOSED, 0)
    ] * 2


def test_a_reaper_continues_after_an_error(some_message: tuple[Router, Message]) -> None:
    """Two closes after each other: the FIN of the first is answered with ICMP."""
    router, message = some_message
    ours, failing = with_recverr(router)
    router.answer(every(of(failing, FIN), from_=OURS), message)
    with Reaper(timeout=DEADLINE) as reaper:
        assert_error(reaper.submit(ours).result(DEADLINE), message)
        second, peer = router.connect()
        peer.shutdown(socket.SHUT_WR)
        assert reaper.submit(second).result(DEADLINE).clean


def _error_is_reported_once(router: Router, message: Message) -> Connection:
    """The peer has closed, our data is not acknowledged, and a soft error is pending.

    SO_ERROR also returns soft errors (sk_err_soft), until the next acknowledgement arrives.
    """
    connection = router.connect()
    connection.peer.shutdown(socket.SHUT_WR)
    router.settle()
    router.answer(first(DATA, from_=OURS), message)
    router.drop(first(FIN, from_=OURS))
    connection.ours.sendall(b"reply")
    router.settle()
    return connection


@pytest.mark.parametrize("close", parts(GRACEFUL))
def test_a_socket_without_recverr_retransmits(
    some_message: tuple[Router, Message], close: Close
) -> None:
    """The reply is answered with ICMP once, sent again, and acknowledged (RFC 1122, 4.2.3.9)."""
    router, message = some_message
    ours, peer = _error_is_reported_once(router, message)
    with meanwhile(read_all, peer) as received:
        result = close(ours, timeout=DEADLINE)
    assert received == [b"reply"]
    assert (result.outcome, result.unacked) == (CloseOutcome.PEER_CLOSED, 0)


def test_tls_sends_close_notify_after_icmp(some_message: tuple[Router, Message]) -> None:
    """A record is answered with ICMP once, and sent again; close_notify follows it."""
    router, message = some_message
    ours, peer = router.connect()
    version = ssl.TLSVersion.TLSv1_3
    serving, asking = server_context(version), client_context(version)
    with (
        serving.wrap_socket(ours, server_side=True, do_handshake_on_connect=False) as tls,
        asking.wrap_socket(
            peer,
            server_hostname=NAME,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        ) as client,
    ):
        with meanwhile(tls.do_handshake):
            client.do_handshake()
        tls.sendall(b"hello")
        assert client.recv(100) == b"hello"
        router.settle()
        router.answer(first(DATA, from_=OURS), message)
        tls.sendall(b"reply")
        router.settle()
        with meanwhile(read_and_close, client) as received:
            result = GRACEFUL["graceful_close"](tls, timeout=DEADLINE)
        assert received == [b"reply"]
        assert (result.outcome, result.notified) == (CloseOutcome.PEER_CLOSED, True)


def test_an_abort_after_icmp_aborts_or_finds_no_connection(
    some_message: tuple[Router, Message],
) -> None:
    """A part of the reply was answered with ICMP, and then we abort."""
    router, message = some_message
    ours = with_an_error(router, message)
    result = abortive_close(ours)
    assert result.outcome in (CloseOutcome.ABORTED, CloseOutcome.NOT_CONNECTED)
    assert ours.fileno() == -1


async def _by_asyncio(ours: socket.socket, continue_sending: Callable[[], None]) -> CloseResult:
    _, writer = await asyncio.open_connection(sock=ours)
    writer.write(LONG)
    continue_sending()
    return await graceful_close.asyncio.graceful_close(writer, timeout=DEADLINE)


async def _by_anyio(ours: socket.socket, continue_sending: Callable[[], None]) -> CloseResult:
    stream = await SocketStream.from_socket(ours)
    with anyio.move_on_after(0.01):
        await stream.send(LONG)
    continue_sending()
    return await graceful_close.anyio.graceful_close(stream, timeout=DEADLINE)


@pytest.mark.parametrize("close", [_by_asyncio, _by_anyio])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_message_truncated_by_icmp_does_not_look_complete(
    some_message: tuple[Router, Message],
    close: Callable[..., Coroutine[None, None, CloseResult]],
    loop: str,
) -> None:
    """A packet is answered with ICMP while a transport holds more: it drops that."""
    router, message = some_message
    ours, peer = with_recverr(router)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with ExitStack() as stack, asyncio.Runner(loop_factory=LOOPS[loop]) as runner:

        def read_on() -> None:
            router.answer(every(DATA, from_=OURS), message)
            cut.append(stack.enter_context(meanwhile(ends_in_reset, peer)))

        cut: list[list[bool]] = []
        result = runner.run(close(ours, read_on))
    assert cut == [[True]]
    assert_error(result, message)
    assert result.unacked is None or result.unacked > len(LONG) // 2
