"""Servers on event loops, as shipped and graceful. See `threaded`."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .application import GREETING, REFUSED, answer_to, asgi, refusal
from .listening import announce, listen

if TYPE_CHECKING:
    import socket
    from collections.abc import Coroutine

_HEAD = 65536


def uvicorn_h11(host: str, graceful: bool) -> None:
    _uvicorn(host, graceful, "h11")


def uvicorn_httptools(host: str, graceful: bool) -> None:
    _uvicorn(host, graceful, "httptools")


def _uvicorn(host: str, graceful: bool, parser: str) -> None:
    package: Any = import_module("uvicorn")
    config = package.Config(
        asgi, loop="asyncio", http=parser, lifespan="off", log_level="critical"
    )
    listener = listen(host, graceful)
    announce(listener)
    package.Server(config).run(sockets=[listener])


def uvicorn_uvloop(host: str, graceful: bool) -> None:
    package: Any = import_module("uvicorn")
    config = package.Config(
        asgi,
        loop="graceful_close.uvicorn:new_uvloop" if graceful else "uvloop",
        http="httptools",
        lifespan="off",
        log_level="critical",
    )
    listener = listen(host, False)
    announce(listener)
    package.Server(config).run(sockets=[listener])


def hypercorn(host: str, graceful: bool) -> None:
    config: Any = import_module("hypercorn.config")
    serve: Any = import_module("hypercorn.asyncio").serve
    listener = listen(host, graceful)

    class Listening(config.Config):  # type: ignore[misc]
        loglevel = "CRITICAL"

        def create_sockets(self) -> Any:
            return config.Sockets([], [listener], [])

    announce(listener)
    asyncio.run(serve(asgi, Listening()))


def aiohttp(host: str, graceful: bool) -> None:
    _aiohttp(host, graceful)


def aiohttp_no_lingering(host: str, graceful: bool) -> None:
    _aiohttp(host, graceful, lingering_time=0)


def _aiohttp(host: str, graceful: bool, **options: float) -> None:
    web: Any = import_module("aiohttp.web")

    async def hello(_request: Any) -> Any:
        return web.Response(body=GREETING)

    async def refuse(request: Any) -> Any:
        response = web.Response(status=int(REFUSED[:3]), body=refusal(request.path))
        response.force_close()  # with a Connection field alone it stays open
        return response

    async def main() -> None:
        app = web.Application()
        app.add_routes([web.get("/", hello), web.post("/{size}", refuse)])
        runner = web.AppRunner(app, access_log=None, **options)
        await runner.setup()
        listener = listen(host, graceful)
        await web.SockSite(runner, listener).start()
        announce(listener)
        await asyncio.Event().wait()

    asyncio.run(main())


def tornado(host: str, graceful: bool) -> None:
    web: Any = import_module("tornado.web")
    server: Any = import_module("tornado.httpserver")

    class Handler(web.RequestHandler):  # type: ignore[misc]
        async def prepare(self) -> None:
            if self.request.method == "POST":
                self.set_status(int(REFUSED[:3]))
                self.set_header("Connection", "close")
                await self.finish(refusal(self.request.path))

        def get(self) -> None:
            self.finish(GREETING)

    async def main() -> None:
        streamed = web.stream_request_body(Handler)
        listener = listen(host, graceful)
        listener.setblocking(False)
        app = web.Application([("/.*", streamed)], log_function=_be_silent)
        server.HTTPServer(app).add_sockets([listener])
        announce(listener)
        await asyncio.Event().wait()

    asyncio.run(main())


def _be_silent(_handler: object) -> None: ...


def twisted(host: str, graceful: bool) -> None:
    reactor: Any = import_module("twisted.internet.reactor")
    protocol: Any = import_module("twisted.internet.protocol")
    basic: Any = import_module("twisted.protocols.basic")

    class Refuse(basic.LineReceiver):  # type: ignore[misc]
        def __init__(self) -> None:
            self.head = b""

        def lineReceived(self, line: bytes) -> None:
            self.head += line + b"\r\n"
            if line:
                return
            answer, close = answer_to(self.head)
            self.head = b""
            self.transport.write(answer)
            if close:
                self.transport.loseConnection()

    factory = protocol.Factory.forProtocol(Refuse)
    if graceful:
        factory = import_module("examples.twisted_server").GracefulFactory(factory)
    announce(reactor.listenTCP(0, factory, interface=host, backlog=512).getHost().port)
    reactor.run()


def asyncio_streams(host: str, graceful: bool) -> None:
    asyncio.run(_asyncio_streams(listen(host, False), graceful))


def asyncio_listener(host: str, graceful: bool) -> None:
    asyncio.run(_asyncio_streams(listen(host, graceful), False))


def uvloop(host: str, graceful: bool) -> None:
    run: Any = import_module("uvloop").run
    run(_asyncio_streams(listen(host, False), graceful))


def _asyncio_streams(listener: socket.socket, graceful: bool) -> Coroutine[Any, Any, None]:
    close: Any = import_module("graceful_close.asyncio").graceful_close if graceful else None

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        last = False
        try:
            while not last:
                reply, last = answer_to(await reader.readuntil(b"\r\n\r\n"))
                writer.write(reply)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        if close is None:
            writer.close()
        else:
            await close(writer, timeout=30)

    async def main() -> None:
        async with await asyncio.start_server(answer, sock=listener):
            announce(listener)
            await asyncio.Event().wait()

    return main()


def trio(host: str, graceful: bool) -> None:
    package: Any = import_module("trio")
    close: Any = import_module("graceful_close.trio").graceful_close if graceful else None

    async def answer(stream: Any) -> None:
        try:
            last = False
            while not last:
                head = await stream.receive_some(_HEAD)
                if not head:
                    break
                reply, last = answer_to(head)
                await stream.send_all(reply)
        except package.BrokenResourceError:
            pass
        if close is None:
            await stream.aclose()
        else:
            await close(stream, timeout=30)

    async def main() -> None:
        listener = listen(host, False)
        theirs = package.SocketListener(package.socket.from_stdlib_socket(listener))
        announce(theirs.socket.getsockname()[1])
        await package.serve_listeners(answer, [theirs])

    package.run(main)


def anyio(host: str, graceful: bool) -> None:
    package: Any = import_module("anyio")
    close: Any = import_module("graceful_close.anyio").graceful_close if graceful else None

    async def answer(stream: Any) -> None:
        try:
            last = False
            while not last:
                reply, last = answer_to(await stream.receive(_HEAD))
                await stream.send(reply)
        except (package.EndOfStream, package.BrokenResourceError):
            pass
        if close is None:
            await stream.aclose()
        else:
            await close(stream, timeout=30)

    async def main() -> None:
        listener = await package.create_tcp_listener(local_host=host, backlog=512)
        announce(listener.extra(package.abc.SocketAttribute.local_port))
        await listener.serve(answer)

    package.run(main)
