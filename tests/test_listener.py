"""GracefulListener: connections close gracefully although their server only calls close()."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import socket
import socketserver
import ssl
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing.reduction import ForkingPickler
from operator import methodcaller
from pathlib import Path
from queue import SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest

import descriptors
from certificates import server_context
from graceful_close import CloseOutcome, GracefulListener, LingerPolicy, Reaper, set_linger
from graceful_close.asyncio import graceful_close as close_stream
from graceful_close.socketserver import GracefulMixIn
from listening import (
    FOREVER,
    UPLOAD,
    assert_graceful,
    client_of,
    closing_reaper,
    connection,
    listen,
    outcomes,
)
from soak_listener import soak
from streams import (
    DEADLINE,
    await_fin,
    await_input,
    await_reset,
    default_timeout,
    ends_in_reset,
    fill,
    meanwhile,
    read_all,
    read_and_close,
    wait_until,
)

if TYPE_CHECKING:
    from graceful_close import CloseResult, ReaperOptions


@pytest.fixture
def listener() -> Iterator[GracefulListener]:
    with closing_reaper(GracefulListener(("127.0.0.1", 0))) as listener:
        yield listener


@pytest.fixture
def listener_of_any_family(any_family: str, tmp_path: Path) -> Iterator[GracefulListener]:
    with closing_reaper(listen(any_family, tmp_path)) as listener:
        yield listener


# --- every way to close is graceful -----------------------------------------------------------


def end_of_the_last_file(sock: socket.socket) -> None:
    reader, writer = sock.makefile("rb"), sock.makefile("wb")
    sock.close()
    reader.close()
    assert sock.fileno() != -1
    writer.close()


def end_of_a_block(sock: socket.socket) -> None:
    with sock:
        pass


def shutdown(how: int) -> Callable[[socket.socket], None]:
    def shut_and_end(sock: socket.socket) -> None:
        sock.shutdown(how)
        sock.close()

    return shut_and_end


WAYS: dict[str, Callable[[socket.socket], None]] = {
    "close()": methodcaller("close"),
    "the last makefile() object": end_of_the_last_file,
    "with": end_of_a_block,
    "SHUT_WR first": shutdown(socket.SHUT_WR),
    "SHUT_RDWR first": shutdown(socket.SHUT_RDWR),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_unread_input_does_not_destroy_the_reply(
    listener_of_any_family: GracefulListener, way: Callable[[socket.socket], None]
) -> None:
    with connection(listener_of_any_family) as (accepted, client):
        client.sendall(b"unread")
        await_input(accepted)
        accepted.sendall(b"reply")
        way(accepted)
        assert accepted.fileno() == -1
        client.sendall(b"more")  # a plain close would answer it with RST
        assert read_all(client) == b"reply"
    assert outcomes(listener_of_any_family.reaper) == {CloseOutcome.PEER_CLOSED: 1}


def test_close_returns_immediately(listener: GracefulListener) -> None:
    with connection(listener) as (accepted, client):
        accepted.close()
        await_fin(client)
        assert len(listener.reaper) == 1  # the client has not closed
    assert outcomes(listener.reaper) == {CloseOutcome.PEER_CLOSED: 1}


def test_a_second_close_has_no_effect(listener: GracefulListener) -> None:
    with connection(listener) as (accepted, _):
        accepted.close()
        with socket.socket() as newcomer:  # reuses the number
            accepted.close()
            accepted.__exit__()
            assert newcomer.getsockname()
    assert outcomes(listener.reaper) == {CloseOutcome.PEER_CLOSED: 1}


def test_so_linger_set_to_abort_resets(listener: GracefulListener) -> None:
    with connection(listener) as (accepted, client):
        set_linger(accepted, LingerPolicy.ABORT)
        accepted.close()
        assert ends_in_reset(client)
    assert outcomes(listener.reaper) == {}


def test_so_linger_of_the_listener_is_inherited(listener: GracefulListener) -> None:
    set_linger(listener, LingerPolicy.ABORT)
    with connection(listener) as (accepted, client):
        accepted.close()
        assert ends_in_reset(client)


def test_so_linger_set_to_timed_does_not_block_close(listener: GracefulListener) -> None:
    with connection(listener) as (accepted, client):
        set_linger(accepted, LingerPolicy.TIMED, 5)
        written = fill(accepted)
        accepted.setblocking(True)
        started = monotonic()
        accepted.close()
        assert monotonic() - started < 2.5
        assert len(read_all(client)) == written
    assert outcomes(listener.reaper) == {CloseOutcome.PEER_CLOSED: 1}


def test_a_peer_that_resets_is_a_result(listener: GracefulListener) -> None:
    with connection(listener) as (accepted, client):
        set_linger(client, LingerPolicy.ABORT)
        client.close()
        await_input(accepted)
        accepted.close()
    assert outcomes(listener.reaper) == {CloseOutcome.PEER_RESET: 1}


def test_pending_closes_are_limited_and_counted() -> None:
    with closing_reaper(
        GracefulListener(("127.0.0.1", 0), max_sockets=2, on_overflow=LingerPolicy.ABORT)
    ) as listener:
        clients = [client_of(listener) for _ in range(5)]
        for _ in clients:
            accepted, _ = listener.accept()
            accepted.close()
        for client in clients[:3]:
            await_reset(client)
        assert len(listener.reaper) >= 2
        for client in clients:
            client.close()
        ended = outcomes(listener.reaper)
    assert ended == {CloseOutcome.TIMED_OUT: 3, CloseOutcome.PEER_CLOSED: 2}
    assert listener.reaper.overflowed == 3


def test_the_reply_of_a_connection_that_is_closed_to_make_room_arrives_whole() -> None:
    ended: SimpleQueue[CloseResult] = SimpleQueue()
    one: ReaperOptions = {"max_sockets": 1, "on_close": ended.put}
    with closing_reaper(GracefulListener(("127.0.0.1", 0), **one)) as listener:
        clients = [client_of(listener, buffer=4096) for _ in range(4)]
        for _ in clients:
            accepted, _ = listener.accept()
            accepted.sendall(b"r" * 100_000)
            accepted.close()
        for _ in range(3):
            assert ended.get(timeout=DEADLINE).outcome is CloseOutcome.TIMED_OUT
        for client in clients:
            assert len(read_and_close(client)) == 100_000


def test_the_close_of_an_idle_peer_times_out() -> None:
    with closing_reaper(GracefulListener(("127.0.0.1", 0), idle_timeout=0.05)) as listener:
        with connection(listener) as (accepted, _):
            accepted.close()
            assert outcomes(listener.reaper) == {CloseOutcome.IDLE_TIMED_OUT: 1}


def test_a_reader_in_another_thread_ends_with_the_peers_stream(
    listener: GracefulListener,
) -> None:
    with connection(listener) as (accepted, client):
        with meanwhile(read_all, accepted) as read:
            accepted.shutdown(socket.SHUT_RDWR)
            await_fin(client)
            client.close()
        assert read == [b""]


def test_a_reader_in_another_thread_ends_when_the_reaper_gives_up() -> None:
    with closing_reaper(GracefulListener(("127.0.0.1", 0), idle_timeout=0.05)) as listener:
        with connection(listener) as (accepted, client):
            with meanwhile(read_all, accepted) as read:
                accepted.shutdown(socket.SHUT_RDWR)
                await_fin(client)
            assert read == [b""]


@pytest.mark.parametrize("before", [None, socket.SHUT_RDWR])
def test_a_reader_in_another_thread_is_woken_by_shut_rd(
    listener: GracefulListener, before: int | None
) -> None:
    with connection(listener) as (accepted, client):
        with meanwhile(read_all, accepted) as read:
            if before is not None:
                accepted.shutdown(before)
                await_fin(client)
            accepted.shutdown(socket.SHUT_RD)
        assert read == [b""], "and the client has not closed"
        client.close()


@pytest.mark.parametrize("size", [0, 5, 8_000_000], ids="{} bytes".format)
def test_a_stream_of_asyncio_that_is_closed_gracefully_is_not_closed_again(size: int) -> None:
    async def test() -> None:
        results: list[CloseResult] = []

        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(bytes(size))
            results.append(await close_stream(writer, timeout=0.05))

        with GracefulListener(("127.0.0.1", 0), **FOREVER) as listener:
            listener.setblocking(False)
            async with await asyncio.start_server(serve, sock=listener) as server:
                with client_of(server.sockets[0]):
                    while not results:
                        await asyncio.sleep(0.001)
                    assert len(listener.reaper) == 0
        assert results[0].outcome is CloseOutcome.TIMED_OUT

    asyncio.run(test())


class Served(GracefulMixIn, socketserver.TCPServer):
    reaper_options = FOREVER


@pytest.mark.parametrize("kind", ["GracefulListener", "GracefulMixIn"])
def test_an_accept_without_a_descriptor_ends_the_older_half_of_the_pending_closes(
    kind: str,
) -> None:
    handler = socketserver.BaseRequestHandler
    with (
        GracefulListener(("127.0.0.1", 0), **FOREVER) as listener,
        Served(("127.0.0.1", 0), handler) as server,
        ExitStack() as stack,
    ):
        reaper = listener.reaper if kind == "GracefulListener" else server.reaper
        accept = listener.accept if kind == "GracefulListener" else server.get_request
        listening = listener if kind == "GracefulListener" else server.socket
        for _ in range(4):
            stack.enter_context(client_of(listening))
            reaper.submit(accept()[0])
        stack.enter_context(client_of(listening))
        with descriptors.none_left(), pytest.raises(OSError, match="open files"):
            accept()
        wait_until(lambda: len(reaper) <= 2)
        reaper.close(0)
        assert reaper.overflowed == 2


# --- after the Reaper was closed --------------------------------------------------------------


def test_a_blocking_socket_then_closes_in_the_callers_thread(
    listener: GracefulListener,
) -> None:
    def read_and_go_on(client: socket.socket) -> bytes:
        reply = read_all(client)
        client.sendall(b"is answered with RST")
        client.sendall(b"which would show here")
        client.close()
        return reply

    listener.reaper.close()
    with connection(listener) as (accepted, client):
        accepted.sendall(b"reply")
        with meanwhile(read_and_go_on, client) as read:
            accepted.close()
        assert read == [b"reply"]


def test_a_non_blocking_socket_then_does_not_wait(listener: GracefulListener) -> None:
    listener.reaper.close()
    with connection(listener) as (accepted, client):
        accepted.setblocking(False)
        started = monotonic()
        accepted.close()
        assert monotonic() - started < 2.5
        assert read_all(client) == b""


# --- the rest of the socket's behaviour -------------------------------------------------------


def looks_of(sock: socket.socket) -> tuple[object, ...]:
    return (
        *(sock.family, sock.type, type(sock).__mro__[-3:]),
        *(sock.gettimeout(), os.get_blocking(sock.fileno()), sock.get_inheritable()),
    )


def test_an_accepted_socket_has_the_attributes_of_a_plain_one(
    listener: GracefulListener,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain:
        with connection(plain) as (theirs, _), connection(listener) as (ours, client):
            assert isinstance(ours, socket.socket)
            assert looks_of(ours) == looks_of(theirs)
            assert repr(client.getsockname()) in repr(ours)
            assert "[closed]" not in repr(ours)
            ours.close()
            assert "[closed]" in repr(ours)


@pytest.mark.parametrize("default", [None, 0.0, 3.0])
@pytest.mark.parametrize("timeout", [None, 0.0, 5.0])
def test_an_accepted_socket_has_the_usual_blocking_mode(
    listener: GracefulListener, timeout: float | None, default: float | None
) -> None:
    seen: list[tuple[float | None, bool]] = []
    with socket.create_server(("127.0.0.1", 0)) as plain:
        for listening in (plain, listener):
            client = client_of(listening)
            await_input(listening)
            listening.settimeout(timeout)
            with default_timeout(default):
                accepted, _ = listening.accept()
            seen.append((accepted.gettimeout(), os.get_blocking(accepted.fileno())))
            accepted.close()
            client.close()
    assert seen[0] == seen[1]


@pytest.mark.parametrize("save", [copy.copy, pickle.dumps, ForkingPickler.dumps])
def test_an_accepted_socket_cannot_be_copied_or_pickled(
    listener: GracefulListener, save: Callable[[object], object]
) -> None:
    """A pickled copy would be a second owner, and could end the connection of the first."""
    with connection(listener) as (accepted, _), pytest.raises(TypeError, match="cannot pickle"):
        save(accepted)


def test_sending_and_receiving_work_as_usual(listener: GracefulListener) -> None:
    with connection(listener) as (accepted, client), tempfile.TemporaryFile() as file:
        file.write(UPLOAD)
        with meanwhile(read_all, client) as read:
            accepted.sendfile(file)
            accepted.shutdown(socket.SHUT_WR)
        assert read == [UPLOAD]
        client.sendall(b"request")
        buffer = bytearray(7)
        assert accepted.recv_into(buffer) == 7
        assert buffer == b"request"


def test_an_invalid_shutdown_raises_as_usual(listener: GracefulListener) -> None:
    with connection(listener) as (accepted, _), pytest.raises(OSError, match="Invalid"):
        accepted.shutdown(99)


def test_after_dup_both_sockets_are_plain(listener: GracefulListener) -> None:
    with connection(listener) as (accepted, client):
        accepted.settimeout(3)
        dup = accepted.dup()
        assert type(dup) is socket.socket
        assert dup.gettimeout() == 3
        accepted.close()
        dup.sendall(b"still here")  # the FIN was not sent
        dup.close()
        assert read_all(client) == b"still here"
    assert outcomes(listener.reaper) == {}


@pytest.mark.parametrize("of_its_class", [False, True])
def test_after_detach_the_descriptor_is_the_callers(
    of_its_class: bool, listener: GracefulListener
) -> None:
    with connection(listener) as (accepted, client):
        new = type(accepted) if of_its_class else socket.socket
        with new(fileno=accepted.detach()) as plain:
            accepted.close()
            plain.sendall(b"still here")
        assert read_all(client) == b"still here"
    assert outcomes(listener.reaper) == {}


def _forget(things: list[Any]) -> None:
    things.clear()
    gc.collect()  # PyPy counts no references


def test_an_unclosed_socket_causes_a_resource_warning(listener: GracefulListener) -> None:
    with client_of(listener) as client:
        accepted = [listener.accept()]
        with pytest.warns(ResourceWarning, match="unclosed"):
            _forget(accepted)
        assert read_all(client) == b""
    assert outcomes(listener.reaper) == {}


def test_accept_raises_as_usual(listener: GracefulListener) -> None:
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()
    listener.settimeout(0.01)
    with pytest.raises(TimeoutError):
        listener.accept()
    listener.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        listener.accept()


def test_closing_the_listener_does_not_close_its_connections(
    listener: GracefulListener,
) -> None:
    with connection(listener) as (accepted, client):
        listener.close()
        client.sendall(b"unread")
        await_input(accepted)
        accepted.sendall(b"reply")
        accepted.close()
        assert read_all(client) == b"reply"


# --- where listeners come from ----------------------------------------------------------------


def test_a_listener_can_listen_for_both_families() -> None:
    with closing_reaper(
        GracefulListener(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    ) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), DEADLINE) as client:
            accepted, _ = listener.accept()
            assert_graceful(accepted, client)


@pytest.mark.parametrize("timeout", [None, 0.0, 5.0])
def test_a_listening_socket_can_be_adopted(
    any_family: str, tmp_path: Path, timeout: float | None
) -> None:
    with listen(any_family, tmp_path) as made:
        made.reaper.close()
        inherited = socket.socket(fileno=os.dup(made.fileno()))  # like one from a supervisor
        inherited.settimeout(timeout)
        with closing_reaper(GracefulListener.adopt(inherited, timeout=3)) as listener:
            assert inherited.fileno() == -1
            assert listener.gettimeout() == timeout
            with client_of(listener) as client:
                await_input(listener)
                accepted, _ = listener.accept()
                assert_graceful(accepted, client)


def test_only_listening_sockets_are_adopted() -> None:
    with socket.socket() as idle, pytest.raises(ValueError, match="listening socket is needed"):
        GracefulListener.adopt(idle)
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        with pytest.raises(TypeError, match="SOCK_STREAM"):
            GracefulListener.adopt(datagrams)
    with pytest.raises(TypeError, match="a socket.socket is needed"):
        GracefulListener.adopt(3)  # type: ignore[arg-type]


def test_a_rejected_socket_is_not_touched() -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain:
        with pytest.raises(ValueError, match="timeout"):
            GracefulListener.adopt(plain, timeout=-1)
        with server_context(ssl.TLSVersion.TLSv1_3).wrap_socket(plain, server_side=True) as tls:
            with pytest.raises(TypeError, match="without TLS"):
                GracefulListener.adopt(tls)
            assert tls.fileno() != -1


def test_a_reaper_can_be_shared() -> None:
    with Reaper() as reaper:
        for _ in range(2):
            with GracefulListener(("127.0.0.1", 0), reaper=reaper) as listener:
                with connection(listener) as (accepted, _):
                    accepted.close()
    assert outcomes(reaper) == {CloseOutcome.PEER_CLOSED: 2}


def test_a_reaper_and_its_options_cannot_be_combined() -> None:
    with Reaper() as reaper:
        with pytest.raises(TypeError, match="not both: timeout, until$"):
            GracefulListener(
                ("127.0.0.1", 0), reaper=reaper, timeout=3, until=CloseOutcome.DELIVERED
            )
    with pytest.raises(TypeError, match="must be a Reaper"):
        GracefulListener(("127.0.0.1", 0), reaper=3)  # type: ignore[arg-type]


def test_a_dup_of_a_listener_is_a_listener(listener: GracefulListener) -> None:
    with listener.dup() as twin:
        assert twin.reaper is listener.reaper
        with connection(twin) as (accepted, client):
            assert_graceful(accepted, client)
    assert outcomes(listener.reaper) == {CloseOutcome.PEER_CLOSED: 1}


@pytest.mark.parametrize("timeout", [None, 0, 3])
def test_a_dup_of_a_listener_waits_as_long_as_the_listener(
    listener: GracefulListener, timeout: float | None
) -> None:
    listener.settimeout(timeout)
    with listener.dup() as twin:
        assert twin.gettimeout() == timeout
        assert os.get_blocking(listener.fileno()) is (timeout is None)


# --- many -------------------------------------------------------------------------------------


@pytest.mark.skipif(
    sys.platform != "linux", reason="it counts descriptors, and needs 127.0.1.1"
)
def test_clients_of_every_kind_leak_nothing() -> None:
    """`python tests/soak_listener.py 100000` runs more clients."""
    report = soak(2000)
    assert sum(report.outcomes.values()) == 2000
    assert set(report.outcomes) == {
        CloseOutcome.PEER_CLOSED,
        CloseOutcome.PEER_RESET,
        CloseOutcome.TIMED_OUT,
        CloseOutcome.IDLE_TIMED_OUT,
        CloseOutcome.NOT_CONNECTED,  # the server's own send() met the reset
    }
    for kind in ("polite", "uploads", "closes first", "holds", "drips"):
        assert report.whole[kind] == report.kinds[kind] > 0
    assert (report.descriptors, report.threads) == (0, 0)
