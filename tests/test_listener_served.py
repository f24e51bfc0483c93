"""GracefulListener: servers that fork, use TLS, or run on an event loop."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from certificates import NAME, client_context, server_context
from graceful_close import CloseOutcome, GracefulListener, graceful_close
from greenlets import before_and_after_the_import, output_under
from listening import (
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
from streams import DEADLINE, await_input, ends_in_reset, meanwhile, read_all, read_and_close


@pytest.fixture
def listener() -> Iterator[GracefulListener]:
    with closing_reaper(GracefulListener(("127.0.0.1", 0))) as listener:
        yield listener


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
        assert graceful_close(accepted, timeout=DEADLINE).outcome is CloseOutcome.PEER_CLOSED

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


def test_tls_of_anything_but_a_context_is_rejected(listener: GracefulListener) -> None:
    with pytest.raises(TypeError, match="context must be an ssl.SSLContext, not 443"):
        listener.tls(443)  # type: ignore[arg-type]


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
{library}
{patch}
import ssl
import gevent.pywsgi, socket
from graceful_close import CloseOutcome, GracefulListener, graceful_close
{patch_late}
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


@before_and_after_the_import
def test_gevent_can_serve_the_listener(when: str) -> None:
    assert output_under("gevent", GEVENT, when) == "all well\n"
