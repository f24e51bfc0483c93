"""Servers of an event loop whose transports close gracefully."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import ssl
import sys
import tempfile
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import descriptors
from certificates import NAME, client_context, server_context
from event_loops import LOOPS
from graceful_close import CloseOutcome, GracefulListener, LingerPolicy, set_linger
from graceful_close.asyncio import graceful_close, graceful_factory, graceful_loop
from signals import each_moment
from streams import DEADLINE, await_fin, await_reset, connect, ends_in_reset, read_all, reset
from test_asyncio import (
    KINDS,
    TLS,
    in_each,
    in_thread,
    read_then_close,
    run_in,
    upload_then_read,
)

REPLY = b"reply" * 13_107
MEGABYTES = b"reply" * 1_700_000


def _new_loop(
    of: Callable[[], asyncio.AbstractEventLoop], timeout: float = DEADLINE, **more: Any
) -> asyncio.AbstractEventLoop:
    plain = of()
    plain.close()
    return graceful_loop(type(plain), timeout=timeout, **more)()


GRACEFUL = {name: partial(_new_loop, factory) for name, factory in LOOPS.items()}

in_each_loop = in_each(GRACEFUL)
each_loop = pytest.mark.parametrize("loop", LOOPS)
of_each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(params=[False, True], ids=["on its descriptor", "on a dup"])
def on_a_dup(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transport that holds nothing is closed like one of asyncio's, or like an unknown one."""
    if request.param:
        monkeypatch.setattr("graceful_close._asyncio_first_look._KNOWN", ())


class Protocol(asyncio.Protocol):
    """A protocol that records its calls."""

    def __init__(self, made: asyncio.Queue[Protocol]) -> None:
        self.calls: list[str] = []
        self.received = asyncio.Event()
        self.lost = asyncio.Event()
        self._made = made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.calls.append("made")
        self._made.put_nowait(self)

    def data_received(self, data: bytes) -> None:
        self.received.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append("lost")
        self.lost.set()


class Served(NamedTuple):
    """A server, its protocols, and a function that connects to it."""

    server: asyncio.AbstractServer
    made: asyncio.Queue[Protocol]
    connect: Callable[[], socket.socket]


@asynccontextmanager
async def served(
    kind: str,
    wrap: Callable[[Any], Any] = lambda made: made,
    protocol: type[Protocol] | None = None,
) -> AsyncGenerator[Served]:
    """Run a server in the running loop."""
    loop = asyncio.get_running_loop()
    made: asyncio.Queue[Protocol] = asyncio.Queue()
    version = {"tls1.2": ssl.TLSVersion.TLSv1_2, "tls1.3": ssl.TLSVersion.TLSv1_3}.get(kind)
    context = None if version is None else server_context(version)
    factory = wrap(lambda: (protocol or Protocol)(made))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = str(Path(folder) / "listener")
        server = (
            await loop.create_unix_server(factory, path)
            if kind == "unix"
            else await loop.create_server(factory, "127.0.0.1", 0, ssl=context)
        )
        address: Any = path if kind == "unix" else server.sockets[0].getsockname()

        def connect() -> socket.socket:
            family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
            peer = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            peer.settimeout(DEADLINE)
            peer.connect(address)
            if version is None:
                return peer
            return stack.enter_context(
                client_context(version).wrap_socket(
                    peer, server_hostname=NAME, suppress_ragged_eofs=False
                )
            )

        try:
            yield Served(server, made, connect)
        finally:
            stack.close()  # close the peers first, because the server waits for their FINs
            server.close()
            await server.wait_closed()


def await_reapers() -> None:
    """Wait for the Reapers of `graceful_factory`. An unreferenced Reaper finishes its closes."""
    gc.collect()
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(DEADLINE)


# --- the purpose --------------------------------------------------------------------------


async def early_reply(made: Any, connect: Any, reply: bytes) -> bytes:
    """Answer an upload at its first bytes, and close; return what the client reads."""
    client: asyncio.Task[bytes] = asyncio.create_task(
        in_thread(lambda: upload_then_read(connect()))
    )
    protocol = await made.get()
    await protocol.received.wait()
    protocol.transport.write(reply)
    protocol.transport.close()
    assert protocol.transport.is_closing()
    received = await client
    await protocol.lost.wait()
    return received


async def connected(
    made: asyncio.Queue[Protocol], connect: Callable[[], socket.socket]
) -> tuple[socket.socket, Protocol]:
    """Connect to a server; return the client and the server's protocol."""
    client: socket.socket = await in_thread(connect)
    return client, await made.get()


async def pending_close(made: Any, connect: Any) -> Any:
    """A connection whose server has sent its FIN, and whose client does not answer. Returns the client."""
    client, protocol = await connected(made, connect)
    protocol.transport.close()
    await in_thread(lambda: client.recv(1))  # our FIN
    return client


@each_loop
def test_a_server_whose_wait_is_cancelled_ends_its_closes(loop: str) -> None:
    async def test() -> None:
        async with served("tcp") as (server, made, connect):
            client = await pending_close(made, connect)
            server.close()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(server.wait_closed(), 0.05)
            await in_thread(client.sendall, b"more")  # which is answered with RST
            await in_thread(await_reset, client)

    run_in(partial(GRACEFUL[loop], timeout=1000, idle_timeout=None), test())


@in_each_loop
async def test_a_server_waits_for_pending_closes_although_its_loop_starts_no_threads() -> None:
    """As when the interpreter exits while the loop runs in another thread."""
    async with served("tcp") as (server, made, connect):
        client = await pending_close(made, connect)
        client.close()
        await asyncio.get_running_loop().shutdown_default_executor()
        server.close()
        await server.wait_closed()


@each_loop
def test_sigint_ends_the_wait_for_a_server_and_reaches_its_handler(loop: str) -> None:
    interrupted: list[int] = []

    async def test() -> None:
        async with served("tcp") as (server, made, connect):
            client = await pending_close(made, connect)
            server.close()
            waiting = asyncio.create_task(server.wait_closed())
            while signal.getsignal(signal.SIGINT) is handler:
                await asyncio.sleep(0)
            signal.raise_signal(signal.SIGINT)
            await waiting
            assert interrupted == [signal.SIGINT]
            assert signal.getsignal(signal.SIGINT) is handler
            await in_thread(client.sendall, b"more")  # which is answered with RST
            await in_thread(await_reset, client)

    def handler(number: int, frame: object) -> None:
        interrupted.append(number)

    before = signal.signal(signal.SIGINT, handler)
    try:
        run_in(GRACEFUL[loop], test())
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("family", ["tcp4", "unix"])
@each_loop
def test_an_accepted_connection_closes_gracefully(loop: str, family: str) -> None:
    async def test() -> None:
        made: asyncio.Queue[Protocol] = asyncio.Queue()
        for _ in range(2):
            with connect(family) as (accepted, peer):
                client = asyncio.create_task(in_thread(upload_then_read, peer))
                accepted.setblocking(False)
                running = asyncio.get_running_loop()
                transport, protocol = await running.connect_accepted_socket(
                    lambda: Protocol(made), accepted
                )
                assert protocol is await made.get()
                assert protocol.transport is transport
                await protocol.received.wait()
                transport.write(REPLY)
                transport.close()
                assert await client == REPLY

    run_in(GRACEFUL[loop], test())
    await_reapers()


@of_each_kind
@in_each_loop
async def test_a_protocol_that_only_calls_close_loses_no_early_reply(kind: str) -> None:
    async with served(kind) as (_, made, connect):
        for _ in range(5):
            assert await early_reply(made, connect, REPLY) == REPLY


@pytest.mark.parametrize("nested", [False, True], ids=["", "in a graceful loop"])
@pytest.mark.parametrize("kind", ["tcp", "unix"])
@each_loop
def test_a_server_with_a_graceful_factory_loses_no_early_reply(
    loop: str, kind: str, nested: bool
) -> None:
    async def test() -> None:
        async with served(kind, graceful_factory) as (server, made, connect):
            client = asyncio.create_task(in_thread(lambda: upload_then_read(connect())))
            protocol = await made.get()
            assert repr(protocol.transport).count("graceful") == 1
            await protocol.received.wait()
            protocol.transport.write(REPLY)
            if nested:
                cast(Any, server).close_clients()
            else:
                protocol.transport.close()
            assert await client == REPLY

    run_in((GRACEFUL if nested else LOOPS)[loop], test())
    await_reapers()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@in_each(LOOPS)
async def test_a_server_of_the_unpatched_loop_loses_the_reply(kind: str) -> None:
    """This test shows that the tests above can fail."""
    async with served(kind) as (_, made, connect):
        with pytest.raises((ConnectionError, ssl.SSLError)):
            await early_reply(made, connect, REPLY)


@of_each_kind
@in_each_loop
async def test_a_reply_larger_than_every_buffer_is_flushed_while_the_peer_uploads(
    kind: str,
) -> None:
    async with served(kind) as (_, made, connect):
        assert await early_reply(made, connect, MEGABYTES) == MEGABYTES


class RepliesInDataReceived(Protocol):
    """Replies and closes in the call in which the transport reads."""

    def data_received(self, data: bytes) -> None:
        if not self.received.is_set():
            self.transport.write(MEGABYTES)
            self.transport.close()
        super().data_received(data)


@of_each_kind
@in_each_loop
async def test_a_long_reply_from_data_received_arrives_complete(kind: str) -> None:
    async with served(kind, protocol=RepliesInDataReceived) as (_, _, connect):
        for _ in range(3):
            assert await in_thread(lambda: upload_then_read(connect())) == MEGABYTES


@pytest.mark.usefixtures("on_a_dup")
@of_each_kind
@in_each_loop
async def test_the_server_waits_for_pending_closes(kind: str) -> None:
    async with served(kind) as (server, made, connect):
        peer, protocol = await connected(made, connect)
        protocol.transport.write(REPLY)
        protocol.transport.close()
        await protocol.lost.wait()
        server.close()
        waiting = asyncio.create_task(server.wait_closed())
        # The close is pending after the peer has read our FIN and continues to send.
        assert await in_thread(read_all, peer) == REPLY
        if kind not in TLS:
            await in_thread(peer.sendall, bytes(4096))
        assert not waiting.done()
        peer.close()
        await waiting


@of_each_kind
@in_each_loop
async def test_close_clients_loses_no_early_reply(kind: str) -> None:
    async with served(kind) as (server, made, connect):
        client = asyncio.create_task(in_thread(lambda: upload_then_read(connect())))
        protocol = await made.get()
        await protocol.received.wait()
        protocol.transport.write(REPLY)
        cast(Any, server).close_clients()
        assert await client == REPLY
        await protocol.lost.wait()


if sys.version_info >= (3, 13):

    @in_each_loop
    async def test_close_clients_ends_a_handshake_for_which_wait_closed_would_wait() -> None:
        loop = asyncio.get_running_loop()
        context = server_context(ssl.TLSVersion.TLSv1_3)
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0, ssl=context)
        with socket.create_connection(server.sockets[0].getsockname()):
            for _ in range(10):
                await asyncio.sleep(0)  # the server accepts
            server.close()
            server.close_clients()
            async with asyncio.timeout(DEADLINE):
                await server.wait_closed()


# --- the rest of the transport is unchanged ---------------------------------------------


@in_each_loop
async def test_a_server_may_set_attributes_of_its_own_on_a_transport() -> None:
    async with served("tcp") as (_, made, connect):
        _, protocol = await connected(made, connect)
        transport: Any = protocol.transport
        transport.request_id = 7
        assert transport.request_id == 7
        transport.close()
        await protocol.lost.wait()


@in_each_loop
async def test_a_new_protocol_gets_the_data_directly() -> None:
    async with served("tcp") as (_, made, connect):
        peer = await in_thread(connect)
        first = await made.get()
        assert isinstance(first.transport, asyncio.Transport)
        assert first.transport.get_protocol() is first
        second = Protocol(made)
        first.transport.set_protocol(second)
        peer.sendall(b"x")
        await second.received.wait()
        assert first.transport.get_protocol() is second
        first.transport.close()
        assert first.transport.get_protocol() is second
        third = Protocol(made)
        first.transport.set_protocol(third)
        await third.lost.wait()
        assert (first.calls, second.calls, third.calls) == (["made"], [], ["lost"])


@in_each_loop
async def test_reading_can_be_paused_and_resumed() -> None:
    async with served("tcp") as (_, made, connect):
        peer, protocol = await connected(made, connect)
        transport = protocol.transport
        transport.pause_reading()
        assert not transport.is_reading()
        transport.resume_reading()
        assert transport.is_reading()
        transport.set_write_buffer_limits(high=5000, low=1000)
        assert transport.get_write_buffer_limits() == (1000, 5000)
        assert transport.get_extra_info("peername")[:2] == peer.getsockname()
        assert transport.get_extra_info("nothing", "default") == "default"
        assert transport.can_write_eof()
        transport.writelines([b"good", b"bye"])
        transport.write_eof()
        assert await in_thread(read_all, peer) == b"goodbye"
        transport.close()
        for call in (transport.pause_reading, transport.resume_reading, transport.close):
            call()
        assert not transport.is_reading()
        await protocol.lost.wait()


@each_loop
def test_a_transport_can_be_closed_while_the_loop_does_not_run(loop: str) -> None:
    async def begin() -> tuple[Protocol, socket.socket]:
        made: asyncio.Queue[Protocol] = asyncio.Queue()
        running = asyncio.get_running_loop()
        server = await running.create_server(lambda: Protocol(made), "127.0.0.1", 0)
        peer = socket.create_connection(server.sockets[0].getsockname(), DEADLINE)
        protocol = await made.get()
        server.close()
        return protocol, peer

    with asyncio.Runner(loop_factory=GRACEFUL[loop]) as runner:
        protocol, peer = runner.run(begin())
        protocol.transport.close()
        runner.run(protocol.lost.wait())
        assert read_then_close(peer) == b""


@pytest.mark.parametrize("when", ["before close()", "after close()"])
@in_each_loop
async def test_abort_resets(when: str) -> None:
    async with served("tcp") as (_, made, connect):
        peer, protocol = await connected(made, connect)
        peer.sendall(b"unread")
        await protocol.received.wait()
        protocol.transport.write(MEGABYTES)
        if when == "after close()":
            protocol.transport.close()
        else:
            # The kernel delivers the data that it has, unless there is unread input.
            protocol.transport.pause_reading()
            peer.sendall(b"unread")
        protocol.transport.abort()
        await protocol.lost.wait()
        assert await in_thread(ends_in_reset, peer)
        assert protocol.calls == ["made", "lost"]


@in_each_loop
async def test_an_interrupt_at_any_call_of_close_ends_the_transport() -> None:
    async with served("tcp") as (_, made, connect):
        for interrupted in each_moment():
            _, protocol = await connected(made, connect)
            with interrupted():
                protocol.transport.close()
            closing = protocol.transport.is_closing()
            assert closing or protocol.transport.get_protocol() is protocol
            protocol.transport.close()
            await protocol.lost.wait()
            assert protocol.calls == ["made", "lost"]


@pytest.mark.usefixtures("on_a_dup")
@in_each_loop
async def test_a_server_that_sets_so_linger_to_abort_resets() -> None:
    async with served("tcp") as (_, made, connect):
        peer, protocol = await connected(made, connect)
        number = os.dup(protocol.transport.get_extra_info("socket").fileno())
        with socket.socket(fileno=number) as dup:
            set_linger(dup, LingerPolicy.ABORT)
        protocol.transport.close()
        assert await in_thread(ends_in_reset, peer)


@in_each_loop
async def test_without_a_free_descriptor_the_transport_closes_as_usual() -> None:
    async with served("tcp") as (_, made, connect):
        peer, protocol = await connected(made, connect)
        protocol.transport.write(b"goodbye")
        with descriptors.none_left():
            protocol.transport.close()
            await protocol.lost.wait()
        assert await in_thread(read_all, peer) == b"goodbye"


@in_each_loop
async def test_an_explicit_graceful_close_of_such_a_stream_returns_a_result() -> None:
    writers: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()

    async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await writers.put(writer)

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        peer = socket.create_connection(server.sockets[0].getsockname(), DEADLINE)
        writer = await writers.get()
        writer.write(REPLY)
        client = asyncio.create_task(in_thread(read_then_close, peer))
        result = await graceful_close(writer, timeout=DEADLINE)
        assert result.outcome is CloseOutcome.PEER_CLOSED
        assert await client == REPLY
        writer.close()
        await writer.wait_closed()


@in_each_loop
async def test_a_stream_after_start_tls_closes_gracefully() -> None:
    theirs, ours = (
        client_context(ssl.TLSVersion.TLSv1_3),
        server_context(ssl.TLSVersion.TLSv1_3),
    )

    def client(address: tuple[str, int]) -> bytes:
        with socket.create_connection(address, DEADLINE) as plain:
            assert plain.recv(2) == b"go"
            with theirs.wrap_socket(plain, server_hostname=NAME) as peer:
                return upload_then_read(peer)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        cast(
            asyncio.Transport, writer.transport
        ).pause_reading()  # after "go" the client begins TLS
        writer.write(b"go")
        await writer.start_tls(ours)
        await reader.read(1)
        writer.write(REPLY)
        closes[-1](writer)
        await writer.wait_closed()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        closes: list[Callable[[Any], object]] = [
            asyncio.StreamWriter.close,
            lambda _: cast(Any, server).close_clients(),
        ]
        while closes:
            assert await in_thread(client, server.sockets[0].getsockname()) == REPLY
            closes.pop()


def test_a_client_of_such_a_loop_uses_start_tls_and_sendfile_as_usual(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(REPLY)

    async def test() -> None:
        context = client_context(ssl.TLSVersion.TLSv1_3)
        async with served("tls1.3") as (server, made, _):
            address: Any = cast(Any, server).sockets[0].getsockname()
            reader, writer = await asyncio.open_connection(*address)
            await writer.start_tls(context, server_hostname=NAME)
            protocol = await made.get()
            with (tmp_path / "file").open("rb") as file:
                send: Any = asyncio.get_running_loop().sendfile
                assert await send(writer.transport, file, count=5) == 5
            await protocol.received.wait()
            protocol.transport.write(REPLY)
            protocol.transport.close()
            assert await reader.read() == REPLY
            writer.close()
            await writer.wait_closed()

    run_in(GRACEFUL["asyncio"], test())


# With TLS asyncio's own loop rejects the transport.
@pytest.mark.parametrize(
    ("kind", "own"),
    [*((kind, False) for kind in KINDS), *((kind, True) for kind in KINDS if kind not in TLS)],
)
def test_a_file_is_sent_by_sendfile(kind: str, own: bool, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(REPLY)

    async def test() -> None:
        async with served(kind, graceful_factory if own else lambda made: made) as (
            _,
            made,
            connect,
        ):
            peer, protocol = await connected(made, connect)
            reading = asyncio.create_task(in_thread(read_all, peer))
            with (tmp_path / "file").open("rb") as file:
                await asyncio.get_running_loop().sendfile(protocol.transport, file)
            protocol.transport.close()
            assert await reading == REPLY

    run_in(LOOPS["asyncio"] if own else GRACEFUL["asyncio"], test())
    await_reapers()


@each_loop
def test_a_graceful_listener_works_on_every_such_loop(loop: str) -> None:
    """uvloop's plain loop takes the listener's descriptor, and is rejected."""

    async def test() -> None:
        made: asyncio.Queue[Protocol] = asyncio.Queue()
        listener = GracefulListener(("127.0.0.1", 0))
        server = await asyncio.get_running_loop().create_server(
            lambda: Protocol(made), sock=listener
        )
        peer = socket.create_connection(listener.getsockname(), DEADLINE)
        client = asyncio.create_task(in_thread(upload_then_read, peer))
        protocol = await made.get()
        await protocol.received.wait()
        protocol.transport.write(REPLY)
        protocol.transport.close()
        assert await client == REPLY
        server.close()
        await server.wait_closed()
        listener.reaper.close()  # on asyncio's loop the transport has the socket of accept()

    run_in(GRACEFUL[loop], test())


@in_each_loop
async def test_the_rest_of_the_server_is_unchanged() -> None:
    running = asyncio.get_running_loop()
    server = await running.create_server(asyncio.Protocol, "127.0.0.1", 0, start_serving=False)
    assert not server.is_serving()
    await server.start_serving()
    assert server.is_serving()
    assert server.get_loop() is running
    assert type(running).__name__ in {"GracefulLoop", "Graceful_UnixSelectorEventLoop"}
    (sock,) = server.sockets
    assert sock.getsockname()[1]
    serving = asyncio.create_task(server.serve_forever())
    await asyncio.sleep(0)
    serving.cancel()
    await asyncio.wait([serving])
    assert not server.is_serving()


def test_the_options_of_a_class_that_is_already_graceful_are_replaced() -> None:
    once = graceful_loop(asyncio.SelectorEventLoop, timeout=1)
    made: Any = graceful_loop(once, timeout=DEADLINE)
    assert made._options == {"timeout": DEADLINE}
    assert issubclass(made, once)


def test_what_is_neither_a_factory_nor_a_class_of_loops_is_rejected_immediately() -> None:
    wrong: Any = asyncio.Protocol()
    with pytest.raises(TypeError, match="^protocol_factory must be callable, not <"):
        graceful_factory(wrong)
    with pytest.raises(TypeError, match="^loop_class must be a class of event loops, not <"):
        graceful_loop(wrong)


@pytest.mark.parametrize("options", [{"timeout": -1}, {"drain_limit": 0.5}])
def test_wrong_options_are_rejected_immediately(options: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        graceful_factory(asyncio.Protocol, **options)
    with pytest.raises((TypeError, ValueError)):
        graceful_loop(asyncio.SelectorEventLoop, **options)


# --- connection_lost is called exactly once, and nothing is leaked ----------------------------

STEPS = st.sampled_from(
    ["write", "write much", "close", "abort", "turn", "peer sends", "peer reads", "peer ends",
     "peer resets", "pause", "resume", "write_eof"]
)  # fmt: skip


@of_each_kind
@each_loop
def test_connection_lost_is_called_exactly_once(loop: str, kind: str) -> None:
    async def play(steps: list[str]) -> None:
        async with asyncio.timeout(DEADLINE), served(kind) as (_, made, connect):
            peer, protocol = await connected(made, connect)
            transport = protocol.transport
            peer.settimeout(0)
            for step in [*steps, "close"]:
                await act(step, transport, peer)
            if peer.fileno() != -1:
                reset(peer)
            await protocol.lost.wait()
            assert transport.is_closing()
        assert protocol.calls == ["made", "lost"]

    async def act(step: str, transport: asyncio.Transport, peer: socket.socket) -> None:
        try:
            match step:
                case "turn":
                    await asyncio.sleep(0)
                case "write" | "write much":
                    if not transport.is_closing():
                        transport.write(MEGABYTES if step == "write much" else REPLY)
                case "write_eof":
                    if not transport.is_closing() and transport.can_write_eof():
                        transport.write_eof()
                case "close":
                    transport.close()
                case "abort":
                    transport.abort()
                case "pause":
                    transport.pause_reading()
                case "resume":
                    transport.resume_reading()
                case "peer sends":
                    peer.send(bytes(100_000))
                case "peer reads":
                    peer.recv(1 << 20)
                case "peer ends":
                    peer.shutdown(socket.SHUT_WR)
                case _:
                    reset(peer)
        except (OSError, RuntimeError):
            pass  # no room, no data, reset or closed before, or a write after write_eof()

    @settings(
        max_examples=40,
        deadline=None,
        derandomize=True,
    )
    @given(st.lists(STEPS, max_size=7))
    def each(steps: list[str]) -> None:
        with asyncio.Runner(loop_factory=GRACEFUL[loop]) as runner:
            runner.run(play(steps))

    each()


@pytest.mark.parametrize("turns", [0, 1, 10])
@of_each_kind
@each_loop
def test_the_end_of_the_loop_during_a_flush_resets_and_leaks_nothing(
    loop: str, kind: str, turns: int
) -> None:
    """asyncio.Runner cancels all tasks, including ours."""
    protocols: list[Protocol] = []

    async def test() -> None:
        async with asyncio.timeout(DEADLINE), served(kind) as (_, made, connect):
            peer, protocol = await connected(made, connect)
            protocols.append(protocol)
            protocol.transport.write(MEGABYTES * 2)
            protocol.transport.close()
            for _ in range(turns):
                await asyncio.sleep(0)
            flushing = asyncio.all_tasks() - {asyncio.current_task()}
            assert flushing
            for task in flushing:
                task.cancel()
            await protocol.lost.wait()
            if kind in TLS:
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    await in_thread(read_all, peer)
            elif kind == "tcp":
                assert await in_thread(ends_in_reset, peer)

    with asyncio.Runner(loop_factory=GRACEFUL[loop]) as runner:
        runner.run(test())
    assert protocols[0].calls == ["made", "lost"]


@in_each_loop
async def test_hundreds_of_connections_leak_nothing() -> None:
    async with served("tcp") as (server, made, connect):
        gc.collect()
        before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        for _ in range(20):
            peers = [await in_thread(connect) for _ in range(25)]
            for peer in peers:
                peer.sendall(b"request")
            for _ in peers:
                protocol = await made.get()
                await protocol.received.wait()
                protocol.transport.write(b"reply")
                protocol.transport.close()
            for peer in peers:
                await_fin(peer)
                peer.close()
        server.close()
        await server.wait_closed()
        if before:
            assert len(os.listdir("/proc/self/fd")) <= before + 3  # the Reaper's own
