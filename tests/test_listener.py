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
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing import get_context
from multiprocessing.reduction import ForkingPickler
from operator import methodcaller
from pathlib import Path
from queue import SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest

import descriptors
from certificates import NAME, client_context, server_context
from graceful_close import (
    CloseOutcome,
    GracefulListener,
    LingerPolicy,
    Reaper,
    graceful_close,
    set_linger,
)
from graceful_close.asyncio import graceful_close as close_stream
from graceful_close.socketserver import GracefulMixIn
from listening import (
    FOREVER,
    UPLOAD,
    ask,
    ask_by_tls,
    assert_graceful,
    child,
    client_of,
    closing_reaper,
    connection,
    listen,
    outcomes,
    serve_one,
    serve_one_to_its_end,
)
from soak_listener import soak
from streams import (
    PATIENCE,
    await_fin,
    await_input,
    await_reset,
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


# --- every way to close is graceful ------------------------------------------------------


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
            assert ended.get(timeout=PATIENCE).outcome is CloseOutcome.TIMED_OUT
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


@pytest.mark.parametrize("reply", [b"", b"reply"])
def test_a_stream_of_asyncio_that_is_closed_gracefully_is_not_closed_again(
    reply: bytes,
) -> None:
    async def test() -> None:
        results: list[CloseResult] = []

        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(reply)
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


# --- after the Reaper was closed ------------------------------------------------------------


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
            socket.setdefaulttimeout(default)
            try:
                accepted, _ = listening.accept()
            finally:
                socket.setdefaulttimeout(None)
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
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
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
    with pytest.raises(TypeError, match="expected a socket.socket"):
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


# --- with a fork ------------------------------------------------------------------------------


def test_each_child_of_a_prefork_server_closes_gracefully(listener: GracefulListener) -> None:
    for _ in range(2):
        with child(lambda: serve_one_to_its_end(listener)):
            ask(listener)
    with connection(listener):  # in the parent, which accepts as well
        pass
    assert outcomes(listener.reaper) == {CloseOutcome.PEER_CLOSED: 1}


def test_each_process_of_multiprocessing_closes_gracefully(listener: GracefulListener) -> None:
    process = get_context("fork").Process(target=serve_one_to_its_end, args=(listener,))
    process.start()
    ask(listener)
    process.join()
    assert process.exitcode == 0
    process.close()


@pytest.mark.parametrize("who_serves", ["the parent", "the child"])
def test_close_of_one_process_after_a_fork_only_drops_its_reference(
    who_serves: str, listener: GracefulListener
) -> None:
    def serve() -> None:
        await_input(accepted)
        accepted.sendall(b"reply")
        assert graceful_close(accepted, timeout=PATIENCE).outcome is CloseOutcome.PEER_CLOSED

    def serve_in_child() -> None:
        client.close()  # the child's copy
        serve()

    with connection(listener) as (accepted, client):
        if who_serves == "the child":
            with child(serve_in_child):
                accepted.close()
                client.sendall(b"unread")
                assert read_and_close(client) == b"reply"
        else:
            with child(accepted.close), meanwhile(serve):
                client.sendall(b"unread")
                assert read_and_close(client) == b"reply"
    assert outcomes(listener.reaper) == {}


# --- with TLS ---------------------------------------------------------------------------------

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture(params=VERSIONS, ids=lambda version: version.name)
def version(request: pytest.FixtureRequest) -> ssl.TLSVersion:
    version: ssl.TLSVersion = request.param
    return version


def serve_one_by_tls(listener: socket.socket, context: ssl.SSLContext, how: int | None) -> None:
    accepted, _ = listener.accept()
    with context.wrap_socket(accepted, server_side=True) as tls:
        assert tls.recv(1) != b""
        tls.sendall(b"reply")
        if how is not None:
            tls.shutdown(how)


@pytest.mark.parametrize("how", [None, socket.SHUT_WR, socket.SHUT_RDWR], ids=str)
def test_a_server_may_wrap_an_accepted_socket(
    listener: GracefulListener, version: ssl.TLSVersion, how: int | None
) -> None:
    context = server_context(version)
    listener.tls(context)
    with meanwhile(lambda: serve_one_by_tls(listener, context, how)):
        assert ask_by_tls(listener, version) == b"reply"
    assert outcomes(listener.reaper) == {CloseOutcome.PEER_CLOSED: 1}


def test_a_server_may_wrap_the_listener(version: ssl.TLSVersion) -> None:
    context = server_context(version)
    plain = GracefulListener(("127.0.0.1", 0))
    plain.tls(context)
    address = plain.getsockname()
    with plain.reaper, context.wrap_socket(plain, server_side=True) as listener:
        with meanwhile(serve_one, listener):
            assert ask_by_tls(listener, version) == b"reply"
        listener.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
    assert outcomes(plain.reaper) == {CloseOutcome.PEER_CLOSED: 1}


def test_a_failed_handshake_closes_gracefully(
    listener: GracefulListener, version: ssl.TLSVersion
) -> None:
    context = server_context(version)
    listener.tls(context)
    with connection(listener) as (accepted, client):
        client.sendall(b"this is no handshake" * 1000)
        await_input(accepted)
        with pytest.raises(ssl.SSLError):
            context.wrap_socket(accepted, server_side=True)
        assert not ends_in_reset(client)
    assert outcomes(listener.reaper) == {CloseOutcome.PEER_CLOSED: 1}


def test_each_child_closes_tls_gracefully(listener: GracefulListener) -> None:
    version = ssl.TLSVersion.TLSv1_3
    context = server_context(version)
    listener.tls(context)

    def serve() -> None:
        serve_one_by_tls(listener, context, None)
        assert outcomes(listener.reaper) == {CloseOutcome.PEER_CLOSED: 1}

    with child(serve):
        assert ask_by_tls(listener, version) == b"reply"


def test_a_client_socket_of_the_same_context_closes_without_the_reaper(
    listener: GracefulListener,
) -> None:
    context = client_context(ssl.TLSVersion.TLSv1_3)
    listener.tls(context)
    with client_of(listener) as client:
        with context.wrap_socket(
            client, server_hostname=NAME, do_handshake_on_connect=False
        ) as tls:
            assert tls.server_side is False
    assert outcomes(listener.reaper) == {}


def test_a_context_with_its_own_socket_class_is_rejected(listener: GracefulListener) -> None:
    context = server_context(ssl.TLSVersion.TLSv1_3)
    listener.tls(context)
    with pytest.raises(TypeError, match="GracefulSSLSocket"):
        listener.tls(context)


# --- with event loops -------------------------------------------------------------------------


@pytest.mark.parametrize("version", [None, *VERSIONS], ids=str)
def test_asyncio_can_serve_the_listener(
    listener: GracefulListener, version: ssl.TLSVersion | None
) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.write(b"reply")
        writer.close()

    async def main() -> bytes:
        context = None if version is None else server_context(version)
        async with await asyncio.start_server(refuse, sock=listener, ssl=context):
            if version is not None:
                return await asyncio.to_thread(ask_by_tls, listener, version)
            return await asyncio.to_thread(upload, listener)

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        assert runner.run(main()) == b"reply"
    assert outcomes(listener.reaper) == {CloseOutcome.PEER_CLOSED: 1}


def test_asyncio_sets_tcp_nodelay_on_accepted_sockets(listener: GracefulListener) -> None:
    """asyncio sets the option only if the socket's protocol is TCP, and not 0."""

    async def look(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        writer.write(b"%d" % sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async def main() -> bytes:
        async with await asyncio.start_server(look, sock=listener):
            with client_of(listener) as client:
                return await asyncio.to_thread(read_all, client)

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        assert runner.run(main()) != b"0"


def upload(listener: socket.socket) -> bytes:
    with client_of(listener) as client:
        client.sendall(UPLOAD)
        return read_all(client)


@pytest.fixture(scope="module")
def uvloop() -> Any:
    """The uvloop module, whose first loop opens a pipe for the process."""
    uvloop = pytest.importorskip("uvloop")
    uvloop.new_event_loop().close()
    return uvloop


SAYS = (
    r" takes .* GracefulListener\. Run .*, or give it a plain socket .*DrainMiddleware around .*, or "
    r"graceful_close\.asyncio in the handler\. \(For loop\.sock_accept\(\), .* the loop runs\.\)$"
)


def test_uvloop_is_rejected(listener: GracefulListener, uvloop: Any, tmp_path: Path) -> None:

    async def main(listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        unix = listener.family == socket.AF_UNIX
        create: Any = loop.create_unix_server if unix else loop.create_server
        with pytest.raises(TypeError, match=SAYS):
            await create(asyncio.Protocol, sock=listener)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(listener))
        with closing_reaper(listen("unix", tmp_path)) as unix:
            runner.run(main(unix))
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(accept_in_a_loop(listener, set_mode=True))


def test_a_loop_is_recognised_by_its_behaviour(listener: GracefulListener, uvloop: Any) -> None:
    class Loop(uvloop.Loop):  # type: ignore[misc]
        """A loop that takes the descriptor, under another name."""

    async def main() -> None:
        with pytest.raises(TypeError, match=r"asgi\.DrainMiddleware"):
            await asyncio.get_running_loop().create_server(asyncio.Protocol, sock=listener)

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(main())


def test_uvloop_may_accept_through_it(listener: GracefulListener, uvloop: Any) -> None:
    listener.setblocking(False)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(accept_in_a_loop(listener, set_mode=False))


async def accept_in_a_loop(listener: GracefulListener, *, set_mode: bool) -> None:
    loop = asyncio.get_running_loop()
    if set_mode:
        listener.setblocking(False)
    with client_of(listener) as client:
        accepted, _ = await loop.sock_accept(listener)
        assert_graceful(accepted, client)


def test_trio_rejects_the_listener(listener: GracefulListener) -> None:
    trio = pytest.importorskip("trio")
    with pytest.raises(TypeError, match="GracefulListener"):
        trio.socket.from_stdlib_socket(listener)


GEVENT = """
import gevent.monkey
{patch}
import ssl, sys
import gevent, gevent.pywsgi, socket
from graceful_close import CloseOutcome, GracefulListener, graceful_close
{patch_late}
sys.path.insert(0, {tests!r})
from certificates import NAME, client_context, server_context

turns = 0
def others():
    global turns
    while True:
        turns += 1
        gevent.sleep(0.001)
other = gevent.spawn(others)

def upload(address, context=None):
    client = socket.create_connection(address, 20)
    if context:
        client = context.wrap_socket(client, server_hostname=NAME)
    client.sendall(bytes(300_000))
    reply = b""
    while chunk := client.recv(65536):
        reply += chunk
    client.close()
    return reply

def serve(listener, context=None):
    while True:
        accepted, _ = listener.accept()
        gevent.spawn(refuse, accepted, context)

def refuse(accepted, context):
    with accepted if context is None else context.wrap_socket(accepted, server_side=True) as sock:
        with sock.makefile("rb") as file:
            file.read(1)
        sock.sendall(b"reply")

for version in None, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3:
    listener = GracefulListener(("127.0.0.1", 0))
    ours = theirs = None
    if version:
        ours, theirs = server_context(version), client_context(version)
        listener.tls(ours)
    listener.settimeout(20)
    server = gevent.spawn(serve, listener, ours)
    clients = [gevent.spawn(upload, listener.getsockname(), theirs) for _ in range(5)]
    assert [client.get() for client in clients] == [b"reply"] * 5
    server.kill()
    listener.settimeout(0.01)
    try:
        listener.accept()
    except TimeoutError:
        pass
    listener.setblocking(False)
    try:
        listener.accept()
    except BlockingIOError:
        pass
    listener.close()
    listener.reaper.close()
    assert listener.reaper.stats()[CloseOutcome.PEER_CLOSED] == 5, listener.reaper.stats()
assert turns > 3, "the waits must let other greenlets run"
print("all well")
"""


@pytest.mark.parametrize("when", ["before the import", "after it"])
def test_gevent_can_serve_the_listener(when: str) -> None:
    pytest.importorskip("gevent", exc_type=ImportError)
    patch = "gevent.monkey.patch_all()"
    early = when == "before the import"
    program = GEVENT.replace("{patch}", patch if early else "")
    program = program.replace("{patch_late}", "" if early else patch)
    program = program.replace("{tests!r}", repr(str(Path(__file__).parent)))
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.stdout == "all well\n", ran.stderr


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
