"""Servers on an event loop whose protocols close their connections gracefully."""

from __future__ import annotations

import asyncio
from typing import TypeVar, cast
from weakref import WeakSet

from ._asyncio_first_look import FirstLook, holds_nothing
from ._asyncio_proxy import TransportProxy
from ._asyncio_transport import TransportTakeover, some_turns, takeover_of
from ._asyncio_view import can_watch, in_a_thread, info_of, open_socket_of
from ._clock import monotonic
from ._loop import Pending
from ._options import ReaperSettings, options_of, require_callable
from ._reaper import Reaper, hand_over, leave_to, set_to_abort, stop
from ._signals import calling_at_sigint, uvicorn_must_exit
from ._step import FLUSH

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any

    from typing_extensions import Unpack

    from ._options import CloseOptions

    Factory = Callable[[], asyncio.BaseProtocol]


L = TypeVar("L", bound=asyncio.AbstractEventLoop)

# The default for the silence that ends a flush, in seconds. A transport's own close() waits without a
# limit for a reader that pauses. Heuristic: Linux gives such a reader about 340 seconds after close(),
# until its probes of the closed window end (measured on 6.18); nginx (send_timeout) gives it 60.
_FLUSH_TIMEOUT = 360.0


def graceful_factory(
    protocol_factory: Factory, **options: Unpack[CloseOptions]
) -> Callable[[], asyncio.Protocol]:
    """Return a protocol factory whose protocols get transports that close gracefully.

    Pass the returned factory to `create_server()` or `create_unix_server()` of any loop of asyncio or
    uvloop:

        server = await loop.create_server(graceful_factory(Protocol), host, port)

    Only the transport's close() changes. close() still returns immediately, and the transport still
    calls `connection_lost()` when it has flushed. Then a Reaper takes the connection, sends our FIN,
    and reads and discards input until the peer's FIN. The buffer of the transport, including the
    close_notify of TLS, is flushed as by `graceful_close.asyncio.graceful_close`. abort() is
    unchanged.

    A transport's own close() waits without a limit for a peer that does not read. With the defaults,
    this close() waits until fewer than 4 KiB were sent in 6 minutes, and then resets the connection.

    Args:
        protocol_factory: The server's own factory.
        options: The options of `graceful_close.graceful_close`. The defaults are 30 seconds for
            `timeout` and 5 seconds for `idle_timeout` after the flush. In the flush, only a given
            `timeout` or `idle_timeout` replaces the 6 minutes.

    Raises:
        TypeError, ValueError: An argument has the wrong type or is out of range.

    Notes:
        The Reaper finishes its connections at interpreter exit. A transport that has not flushed when
        the loop is closed does not finish. With a loop of `graceful_loop` a server waits for both, and
        `start_tls()` and `sendfile()` accept these transports. `start_tls()` of uvloop's own loop
        rejects them, and so does `sendfile()` of asyncio's own loop over TLS.
        On Windows' ProactorEventLoop the close of a TLS transport is unchanged.

    .. versionadded:: 0.2.0
    """
    require_callable("protocol_factory", protocol_factory)
    options_of("graceful_factory", options)
    return _Closes(options).wrap(protocol_factory)


def graceful_loop(loop_class: type[L], **options: Unpack[CloseOptions]) -> type[L]:
    """Return a class of event loops whose servers close their connections gracefully.

    Use the class with servers that can be configured only with an event loop:

        Loop = graceful_loop(uvloop.Loop, timeout=10)  # uvicorn app:app --loop module:Loop
        asyncio.Runner(loop_factory=Loop)

    `create_server()`, `create_unix_server()` and `connect_accepted_socket()` pass their protocol
    factory through `graceful_factory`. `close_clients()` of the returned servers closes their
    connections gracefully, and `wait_closed()` also waits for the pending closes. From then on the
    defaults of `timeout` and `idle_timeout` limit the flushes, too. Everything else is unchanged.

    Args:
        loop_class: `asyncio.SelectorEventLoop`, `uvloop.Loop`, or another class. The options of a
            class that this function has returned are replaced.
        options: As for `graceful_factory`, for all servers.

    Raises:
        TypeError, ValueError: An argument has the wrong type or is out of range.

    .. versionadded:: 0.2.0
    """
    if not isinstance(loop_class, type):
        raise TypeError(f"loop_class must be a class of event loops, not {loop_class!r}")
    options_of("graceful_loop", options)
    # `graceful-close run` may have replaced uvloop's Loop with such a class already.
    graceful = issubclass(loop_class, _GracefulLoop)
    bases = (loop_class,) if graceful else (_GracefulLoop, loop_class)
    made: Any = type(f"Graceful{loop_class.__name__}", bases, {"_options": options})
    return cast("type[L]", made)


class _GracefulLoop:
    """A mixin before the loop's own class."""

    _options: CloseOptions
    # A GracefulListener checks this before a loop takes its descriptor.
    closes_gracefully = True
    _of_no_server: _Closes | None = None  # of connections that the program accepted itself

    async def create_server(
        self, protocol_factory: Factory, *args: Any, **kwargs: Any
    ) -> _Server:
        closes, loop = _Closes(self._options), cast("Any", super())
        made = await loop.create_server(closes.wrap(protocol_factory), *args, **kwargs)
        return _Server(made, closes)

    async def create_unix_server(
        self, protocol_factory: Factory, *args: Any, **kwargs: Any
    ) -> _Server:
        closes, loop = _Closes(self._options), cast("Any", super())
        made = await loop.create_unix_server(closes.wrap(protocol_factory), *args, **kwargs)
        return _Server(made, closes)

    async def connect_accepted_socket(
        self, protocol_factory: Factory, *args: Any, **kwargs: Any
    ) -> tuple[Any, asyncio.BaseProtocol]:
        if self._of_no_server is None:
            self._of_no_server = _Closes(self._options)
        wrapped = self._of_no_server.wrap(protocol_factory)
        made: list[Any] = []

        def remembered() -> asyncio.Protocol:
            made.append(wrapped())
            return cast("asyncio.Protocol", made[0])

        # uvloop does not return this protocol if the connection has TLS.
        await cast("Any", super()).connect_accepted_socket(remembered, *args, **kwargs)
        return made[0].proxy, made[0].protocol

    async def start_tls(self, transport: Any, *args: Any, **kwargs: Any) -> Any:
        loop = cast("Any", super())
        if not isinstance(transport, TransportProxy):
            return await loop.start_tls(transport, *args, **kwargs)
        secure = await loop.start_tls(transport.plain, *args, **kwargs)
        return None if secure is None else transport.over(secure)

    async def sendfile(self, transport: Any, *args: Any, **kwargs: Any) -> Any:
        plain = transport.plain if isinstance(transport, TransportProxy) else transport
        return await cast("Any", super()).sendfile(plain, *args, **kwargs)


class _Closes:
    """The closes of one server."""

    def __init__(self, given: CloseOptions) -> None:
        self._given = given
        # A Reaper gets the connection after the flush, so the defaults are those of a Reaper.
        self._options = ReaperSettings(**given).options
        self._flush_timeout = flush_timeout_of(given)
        self._stopping = False
        self._reaper = Reaper(**given)
        # Weak: a protocol refers to its transport as long as the connection exists.
        self.clients: WeakSet[TransportProxy] = WeakSet()
        self._looking: set[FirstLook] = set()
        self._flushing: dict[asyncio.Task[None], TransportTakeover] = {}

    def wrap(self, protocol_factory: Factory) -> Callable[[], asyncio.Protocol]:
        def introduced() -> asyncio.Protocol:
            protocol = protocol_factory()
            # A protocol that is already graceful keeps its options.
            if not isinstance(protocol, _Introduction):
                protocol = _Introduction(protocol, self)
            protocol.clients = self.clients
            return protocol

        return introduced

    def close_clients(self) -> None:
        """Close the transports of all clients."""
        for proxy in list(self.clients):
            proxy.close()

    def close(self, transport: asyncio.Transport) -> FirstLook | TransportTakeover | None:
        """Close a transport; connection_lost() is called later. A dup is closed separately."""
        if _is_running() and holds_nothing(transport):
            if set_to_abort(transport.get_extra_info("socket")):
                transport.close()
                return None
            first = FirstLook(transport, Pending(self._options, monotonic()))
            first.begin(self._looked)
            self._looking.add(first)
            return first
        takeover = self._take_over(transport)
        if takeover is None:
            transport.close()
            return None
        if not takeover.tls:
            takeover.begin()
        if takeover.is_empty:
            self._leave(takeover.sock)
        else:
            flushing = asyncio.create_task(self._flush(takeover))
            self._flushing[flushing] = takeover
            flushing.add_done_callback(self._flushing.pop)
            # Also for a task that never started. After a success drop() has no effect.
            flushing.add_done_callback(lambda _: takeover.drop())
        return takeover

    def _looked(self, first: FirstLook) -> None:
        """The first look of a transport that held nothing."""
        self._looking.discard(first)
        if first.result is None and first.error is None:
            leave_to(self._reaper, first.close, first.step)

    def _take_over(self, transport: asyncio.Transport) -> TransportTakeover | None:
        """Duplicate the descriptor; None: the transport closes in its own way."""
        if not _is_running():
            return None  # the loop has ended, and nothing can be waited for
        sock = open_socket_of(transport)
        watched = can_watch(asyncio.get_running_loop())
        if sock is None or not (watched or info_of(transport, "ssl_object") is None):
            return None
        try:
            return takeover_of(transport, sock)
        except OSError:
            return None  # EMFILE, ENFILE

    async def _flush(self, takeover: TransportTakeover) -> None:
        await takeover.begin_later()
        pending = Pending(
            self._options, monotonic(), flush=True, flush_timeout=self._flush_timeout
        )
        try:
            step = pending.begin(takeover.sock)
            while step is FLUSH:
                if self._stopping:
                    pending.machine.limit_flush(monotonic())
                step = await takeover.go_on(pending)
        except BaseException:
            takeover.stop()
            pending.abandon()
            raise
        leave_to(self._reaper, pending, step)
        await takeover.end()

    def _leave(self, sock: socket.socket) -> None:
        if not hand_over(sock, self._reaper):
            sock.close()  # the caller has configured an abort: SO_LINGER {1, 0}

    def stop(self) -> None:
        """From now on `timeout` and `idle_timeout` limit the flushes, too."""
        self._stopping = True
        for takeover in self._flushing.values():
            takeover.wake()

    async def wait(self) -> None:
        """Wait for all closes that are pending now, at most until SIGINT.

        uvicorn only notes a second Ctrl-C, and does not cancel its wait for the servers.
        """
        if uvicorn_must_exit():
            self._last_reaper().close(0)
            return
        loop = asyncio.get_running_loop()
        waiting = loop.create_task(self._wait())
        try:
            with calling_at_sigint(lambda: loop.call_soon_threadsafe(waiting.cancel)):
                await asyncio.wait([waiting])
        except asyncio.CancelledError:
            waiting.cancel()
            await asyncio.wait([waiting])  # one turn: the closes have ended when this raises
            raise
        finally:
            waiting.cancel()
        if not waiting.cancelled():
            waiting.result()

    async def _wait(self) -> None:
        ending: Reaper | None = None
        try:
            await some_turns(until=lambda: not self._looking)
            if self._flushing:
                await asyncio.wait(self._flushing)
            ending = self._last_reaper()
            if not len(ending):
                ending.close()
                return
            await in_a_thread(stop, ending)
        except asyncio.CancelledError:
            # Or the end of the loop would wait for the thread.
            (ending or self._last_reaper()).close(0)
            raise

    def _last_reaper(self) -> Reaper:
        """Return the Reaper of all connections until now. Its close() waits for all of them."""
        ending, self._reaper = self._reaper, Reaper(**self._given)
        return ending


def flush_timeout_of(options: CloseOptions) -> float:
    """Return the seconds of silence that end a flush: those that the user chose, or the default."""
    chosen = (options.get("timeout"), options.get("idle_timeout"))
    return min((seconds for seconds in chosen if seconds is not None), default=_FLUSH_TIMEOUT)


def _is_running() -> bool:
    """Whether the loop runs, so that it can wait."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class _Introduction(asyncio.Protocol):
    """A connection's first protocol, which passes the transport to the server's protocol.

    Attributes:
        protocol: The server's protocol.
        clients: The proxies of the server.
        proxy: Its transport, after `connection_made`.
    """

    clients: WeakSet[TransportProxy]
    proxy: TransportProxy

    def __init__(self, protocol: asyncio.BaseProtocol, closes: _Closes) -> None:
        self.protocol = protocol
        self._closes = closes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        plain: Any = transport
        plain.set_protocol(self.protocol)
        self.proxy = TransportProxy(plain, self._closes.close, self.clients)
        self.protocol.connection_made(self.proxy)


class _Server(asyncio.AbstractServer):
    """A loop's server that also waits for the pending closes."""

    def __init__(self, made: Any, closes: _Closes) -> None:
        self._made = made
        self._closes = closes

    def close(self) -> None:
        self._made.close()

    # As of Python 3.13, whose own close_clients() closes the transports below.
    def close_clients(self) -> None:
        self._closes.close_clients()
        for transport in list(getattr(self._made, "_clients", ())):
            # In the handshake of TLS the client's protocol does not have its transport yet.
            above = getattr(transport.get_protocol(), "_app_protocol", None)
            if isinstance(above, _Introduction):
                transport.close()

    def abort_clients(self) -> None:
        self._made.abort_clients()

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._made.get_loop()  # type: ignore[no-any-return]

    def is_serving(self) -> bool:
        return self._made.is_serving()  # type: ignore[no-any-return]

    async def start_serving(self) -> None:
        await self._made.start_serving()

    async def serve_forever(self) -> None:
        await self._made.serve_forever()

    async def wait_closed(self) -> None:
        self._closes.stop()  # first, because since Python 3.12 asyncio's own servers wait for the flushes
        await self._made.wait_closed()
        await self._closes.wait()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made, name)  # sockets

    def __repr__(self) -> str:
        return f"<graceful {self._made!r}>"
