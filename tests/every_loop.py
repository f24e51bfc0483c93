"""A test on every event loop: asyncio's own, uvloop, trio, and anyio over each.

    @on_every_loop
    async def test_something(loop: Loop) -> None:
        async with pair(loop) as (stream, peer):
            await loop.send(stream, b"reply")
            result = await loop.module.graceful_close(stream)

    @every_tls
    async def test_something_about_tls(loop: Loop, kind: str) -> None:
        async with pair(loop, kind) as (stream, peer):
            ...

anyio waits, cancels and starts tasks in all of them.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import gc
import inspect
import select
import socket
import ssl
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterable
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple

import anyio
import pytest
import trio
from anyio.abc import SocketAttribute, SocketStream, UNIXSocketStream
from anyio.streams.tls import TLSStream

import graceful_close.anyio
import graceful_close.asyncio
import graceful_close.trio
from certificates import NAME, client_context, server_context
from event_loops import LOOPS
from streams import DEADLINE, connect, fill, meanwhile, read_and_close
from tls_sessions import read_raw_and_close

UPLOAD = 5_000_000
REPLY = b"r" * 65536

# HTTPS is TLS 1.3 whose end needs no close_notify; asyncio's streams do not have the choice.
TLS = ("TLS 1.2", "TLS 1.3", "HTTPS")
KINDS = ("tcp", "unix", *TLS)

Test = Callable[..., Coroutine[Any, Any, None]]
Reports = list[dict[str, Any]]


class Loop(ABC):
    """An event loop, the module that closes its streams, and what a test does with a stream.

    Attributes:
        module: `graceful_close.asyncio`, `.trio` or `.anyio`.
        closed: What the use of a closed stream raises; asyncio's streams raise no such error.
        kinds: The kinds of streams that exist.
        backend: For `anyio.run`.
    """

    module: Any
    closed: type[Exception]
    kinds: tuple[str, ...] = KINDS

    def __init__(self, backend: dict[str, Any]) -> None:
        self.backend = backend

    @abstractmethod
    async def open(
        self, ours: socket.socket, context: ssl.SSLContext | None = None, *, https: bool = False
    ) -> Any:
        """A stream over an accepted socket, with TLS if a context is given."""

    async def over_tls(
        self, stream: Any, context: ssl.SSLContext, *, https: bool = False
    ) -> Any:
        """A server's TLS stream over a stream."""
        raise NotImplementedError

    @abstractmethod
    async def send(self, stream: Any, data: bytes) -> None: ...

    @abstractmethod
    async def receive(self, stream: Any, limit: int = 65536) -> bytes: ...

    @abstractmethod
    def raw(self, stream: Any) -> Any:
        """The socket under the stream."""

    @abstractmethod
    async def discard(self, stream: Any) -> None:
        """Close the stream in the loop's own way, without waiting."""

    async def require_closed(self, stream: Any) -> None:
        """Fail unless a use of the stream shows that the stream is closed."""
        with pytest.raises(self.closed):
            await self.receive(stream, 1)


class _Writer(asyncio.StreamWriter):
    def __init__(
        self, transport: asyncio.Transport, protocol: Any, reader: asyncio.StreamReader
    ) -> None:
        super().__init__(transport, protocol, reader, asyncio.get_running_loop())
        self.reader = reader


class _Asyncio(Loop):
    module = graceful_close.asyncio
    kinds = tuple(kind for kind in KINDS if kind != "HTTPS")

    async def open(
        self, ours: socket.socket, context: ssl.SSLContext | None = None, *, https: bool = False
    ) -> _Writer:
        del https
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        ours.setblocking(False)
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
            lambda: protocol, ours, ssl=context
        )
        await asyncio.sleep(0)  # uvloop writes at the end of a turn
        return _Writer(transport, protocol, reader)

    async def send(self, stream: _Writer, data: bytes) -> None:
        stream.write(data)
        await stream.drain()
        await asyncio.sleep(0)  # as above

    async def receive(self, stream: _Writer, limit: int = 65536) -> bytes:
        return await stream.reader.read(limit)

    def raw(self, stream: _Writer) -> Any:
        return stream.get_extra_info("socket")

    async def discard(self, stream: _Writer) -> None:
        stream.transport.abort()
        for _ in range(2):
            await asyncio.sleep(0)

    async def require_closed(self, stream: _Writer) -> None:
        assert stream.is_closing()
        assert await self.receive(stream) == b""


class _Trio(Loop):
    module = graceful_close.trio
    closed = trio.ClosedResourceError

    async def open(
        self, ours: socket.socket, context: ssl.SSLContext | None = None, *, https: bool = False
    ) -> Any:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        return await self.over_tls(stream, context, https=https) if context else stream

    async def over_tls(
        self, stream: Any, context: ssl.SSLContext, *, https: bool = False
    ) -> Any:
        stream = trio.SSLStream(stream, context, server_side=True, https_compatible=https)
        await stream.do_handshake()
        return stream

    async def send(self, stream: Any, data: bytes) -> None:
        await stream.send_all(data)

    async def receive(self, stream: Any, limit: int = 65536) -> bytes:
        received: bytes = await stream.receive_some(limit)
        return received

    def raw(self, stream: Any) -> Any:
        while not isinstance(stream, trio.SocketStream):
            stream = stream.transport_stream
        return stream.socket

    async def discard(self, stream: Any) -> None:
        await trio.aclose_forcefully(stream)

    async def require_closed(self, stream: Any) -> None:
        await super().require_closed(stream)
        with pytest.raises(
            self.closed
        ):  # anyio's TLS streams raise SSLError, even after aclose()
            await self.send(stream, b"x")


class _Anyio(Loop):
    module = graceful_close.anyio
    closed = anyio.ClosedResourceError

    async def open(
        self, ours: socket.socket, context: ssl.SSLContext | None = None, *, https: bool = False
    ) -> Any:
        kind = UNIXSocketStream if ours.family == socket.AF_UNIX else SocketStream
        stream = await kind.from_socket(ours)
        return await self.over_tls(stream, context, https=https) if context else stream

    async def over_tls(
        self, stream: Any, context: ssl.SSLContext, *, https: bool = False
    ) -> Any:
        return await TLSStream.wrap(
            stream, server_side=True, ssl_context=context, standard_compatible=not https
        )

    async def send(self, stream: Any, data: bytes) -> None:
        await stream.send(data)

    async def receive(self, stream: Any, limit: int = 65536) -> bytes:
        try:
            received: bytes = await stream.receive(limit)
        except anyio.EndOfStream:
            return b""
        return received

    def raw(self, stream: Any) -> Any:
        return stream.extra(SocketAttribute.raw_socket)

    async def discard(self, stream: Any) -> None:
        await anyio.aclose_forcefully(stream)


_ON_ASYNCIO: dict[str, Any] = {"backend": "asyncio", "backend_options": {"debug": True}}
_ON_UVLOOP: dict[str, Any] = {
    "backend": "asyncio",
    "backend_options": {"debug": True, "use_uvloop": True},
}
_ON_TRIO: dict[str, Any] = {"backend": "trio"}

_ALL: dict[str, Loop] = {
    "asyncio": _Asyncio(_ON_ASYNCIO),
    "uvloop": _Asyncio(_ON_UVLOOP),
    "trio": _Trio(_ON_TRIO),
    "anyio on asyncio": _Anyio(_ON_ASYNCIO),
    "anyio on uvloop": _Anyio(_ON_UVLOOP),
    "anyio on trio": _Anyio(_ON_TRIO),
}
EVERY = {name: loop for name, loop in _ALL.items() if "uvloop" in LOOPS or "uvloop" not in name}

ASYNCIO = tuple(name for name, loop in EVERY.items() if isinstance(loop, _Asyncio))
TRIO_AND_ANYIO = tuple(name for name, loop in EVERY.items() if not isinstance(loop, _Asyncio))
ANYIO = tuple(name for name, loop in EVERY.items() if isinstance(loop, _Anyio))
ON_TRIO = ("trio", "anyio on trio")
WITH_TRANSPORTS = tuple(name for name in ANYIO if name not in ON_TRIO)


def on(
    names: Iterable[str], kinds: Iterable[str] = ()
) -> Callable[[Test], Callable[..., None]]:
    """Run an async test on some event loops, with its parameters `loop` and `kind` if it has them.

    A test fails that lets the loop report an error or leaves a task behind.
    """
    both = [(name, kind) for name in names for kind in kinds if kind in EVERY[name].kinds]

    def decorate(test: Test) -> Callable[..., None]:
        own = inspect.signature(test)

        @functools.wraps(test)
        def run(loop: str, **given: Any) -> None:
            chosen = EVERY[loop]
            if "loop" in own.parameters:
                given["loop"] = chosen
            with no_complaints() as complaints:
                bound = functools.partial(test, **given)
                anyio.run(watched, bound, complaints, **chosen.backend)

        vars(run)["__signature__"] = with_loop(own)
        mark: Callable[..., None] = (
            pytest.mark.parametrize(("loop", "kind"), both, ids=map("-".join, both))(run)
            if both
            else pytest.mark.parametrize("loop", names)(run)
        )
        return mark

    return decorate


def with_loop(own: inspect.Signature) -> inspect.Signature:
    """The signature of a test that also has the parameter `loop`, for pytest."""
    parameters = list(own.parameters.values())
    if "loop" not in own.parameters:
        parameters.append(inspect.Parameter("loop", inspect.Parameter.KEYWORD_ONLY))
    return own.replace(parameters=parameters)


@contextmanager
def no_complaints() -> Generator[Reports, None, None]:
    """Fail a test if its event loop reports an error in the block. A loop may do so when it is closed."""
    complaints: Reports = []
    yield complaints
    assert complaints == []


async def watched(test: Callable[[], Coroutine[Any, Any, None]], complaints: Reports) -> None:
    """Run a test, which may not last forever and may not leave a task behind."""
    on_trio = anyio.get_cancelled_exc_class() is trio.Cancelled
    if not on_trio:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: complaints.append(context)
        )
    with anyio.fail_after(2 * DEADLINE):
        await test()
    if not on_trio:
        assert asyncio.all_tasks() == {asyncio.current_task()}
        gc.collect()  # the finalizer of a task reports an exception that was never retrieved


on_every_loop = on(EVERY)
every_kind = on(EVERY, KINDS)
every_tls = on(EVERY, TLS)


# --- connections ---------------------------------------------------------------------------------


class Pair(NamedTuple):
    """A stream of an event loop's, and the peer's socket, which blocks."""

    stream: Any
    peer: Any


def version_of(kind: str) -> ssl.TLSVersion:
    return ssl.TLSVersion.TLSv1_2 if kind == "TLS 1.2" else ssl.TLSVersion.TLSv1_3


def tls_peer(peer: socket.socket, version: ssl.TLSVersion) -> ssl.SSLSocket:
    """A strict TLS client, before its handshake."""
    return client_context(version).wrap_socket(
        peer, server_hostname=NAME, do_handshake_on_connect=False, suppress_ragged_eofs=False
    )


@asynccontextmanager
async def pair(
    loop: Loop, kind: str = "tcp", *, family: str = "tcp4", peer_buffer: int | None = None
) -> AsyncGenerator[Pair, None]:
    """A connection of a kind that has carried a message in both directions.

    A stream that the test leaves open is discarded.
    """
    family = "unix" if kind == "unix" else family
    with connect(family, peer_buffer=peer_buffer) as (ours, raw_peer):
        peer: socket.socket = raw_peer
        if kind in TLS:
            peer = tls = tls_peer(raw_peer, version_of(kind))
            with meanwhile(tls.do_handshake):
                context = server_context(version_of(kind))
                stream = await loop.open(ours, context, https=kind == "HTTPS")
        else:
            stream = await loop.open(ours)
        with peer:
            await loop.send(stream, b"hello")
            assert peer.recv(5) == b"hello"
            peer.sendall(b"hello")
            assert await loop.receive(stream, 5) == b"hello"
            raw = loop.raw(stream)
            yield Pair(stream, peer)
            if raw.fileno() != -1:
                await loop.discard(stream)


class StandIn(socket.socket):
    """A socket object that does not own its descriptor, which belongs to a loop."""

    def __init__(self, number: int) -> None:
        super().__init__(fileno=number)
        self.setblocking(False)  # PyPy's constructor makes the descriptor blocking

    def __del__(self) -> None:
        self.detach()


def leave_no_room(raw: Any) -> int:
    """Fill the connection with bytes that no TLS peer could read, until it takes no more."""
    poller = select.poll()
    ours = StandIn(raw.fileno())
    poller.register(ours, select.POLLOUT)
    written = full = 0
    while full < 3:  # times in a row, because the bytes in flight make room when they arrive
        if full and ours.family != socket.AF_UNIX:
            poller.poll(10)
        more = fill(ours)
        written += more
        full = 0 if more else full + 1
    return written


# --- in a thread, and in a task ------------------------------------------------------------------


async def in_thread(action: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a thread of its own; trio would keep a thread for the next call."""
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        future = threads.submit(action, *args)
        while not future.done():
            await anyio.sleep(0.001)
    return future.result()


def upload_then_read(peer: socket.socket) -> bytes:
    """A client that reads nothing before it has sent all, as http.client does."""
    peer.settimeout(DEADLINE)
    peer.sendall(b"u" * UPLOAD)
    return read_and_close(peer)


def send_then_read_raw(peer: ssl.SSLSocket) -> bytes:
    """A client below TLS, because what filled the connection is not TLS."""
    peer.settimeout(DEADLINE)
    socket.socket.sendall(peer, bytes(1_000_000))
    return read_raw_and_close(peer)


def ends_in_raw_reset(peer: socket.socket) -> bool:
    """Whether the connection, TLS or not, ends in RST rather than FIN."""
    try:
        read_raw_and_close(peer)
    except ConnectionResetError:
        return True
    return False


async def uses(action: Callable[[], Awaitable[object]], met: list[type[Exception]]) -> None:
    """Use a stream until the stream is over, and record the error, or EOFError for its end."""
    try:
        while await action() != b"":
            pass
        met.append(EOFError)
    except (
        trio.ClosedResourceError,
        trio.BrokenResourceError,
        anyio.ClosedResourceError,
        anyio.BrokenResourceError,
    ) as error:
        met.append(type(error))


# --- the calls -----------------------------------------------------------------------------------

CLOSES = ("graceful_close", "timed_linger_close", "close_all")

every_close = pytest.mark.parametrize("close", CLOSES)


async def call(loop: Loop, name: str, stream: Any) -> Any:
    """Close a stream with a function of the module, with a timeout that no test reaches."""
    close = getattr(loop.module, name)
    if name == "abortive_close":
        return await close(stream)
    if name == "timed_linger_close":
        return await close(stream, DEADLINE)
    return await close([stream] if name == "close_all" else stream, timeout=DEADLINE)


async def require_refusal(module: Any, wrong: Any, stream: Any) -> None:
    """Fail unless every function of a module refuses an object, and close_all names its index."""
    for close in (
        module.graceful_close,
        module.abortive_close,
        functools.partial(module.timed_linger_close, seconds=1),
    ):
        with pytest.raises(TypeError, match="needed|expected a"):
            await close(wrong)
    with pytest.raises(TypeError, match="needed|expected a"):
        module.closing(wrong)
    with pytest.raises(TypeError, match=r"streams\[1\]"):
        await module.close_all([stream, wrong])
