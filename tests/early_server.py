"""A small server that replies early to every upload, and closes with the chosen driver.

python tests/early_server.py DRIVER [CERTIFICATE]
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from typing import Any

import anyio
import trio
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSListener

from event_loops import LOOPS
from graceful_close import Reaper, close_all, graceful_close
from graceful_close import anyio as graceful_anyio
from graceful_close import asyncio as graceful_asyncio
from graceful_close import trio as graceful_trio

BODY = bytes(64 << 10)
REPLY = (
    b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
)
ENOUGH = 30.0


def listening(port: int) -> None:
    print(port, flush=True)


def serve_by_threads(
    close: Callable[[socket.socket], object], context: ssl.SSLContext | None
) -> None:
    def answer(sock: socket.socket) -> None:
        stream = context.wrap_socket(sock, server_side=True) if context else sock
        head = b""
        while b"\r\n\r\n" not in head:
            head += stream.recv(4096)
        stream.sendall(REPLY)
        close(stream)

    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        listening(listener.getsockname()[1])
        while True:
            threading.Thread(target=answer, args=listener.accept()[:1], daemon=True).start()


async def serve_by_asyncio(context: ssl.SSLContext | None) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(REPLY)
        await graceful_asyncio.graceful_close(writer, timeout=ENOUGH)

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context, backlog=100)
    listening(server.sockets[0].getsockname()[1])
    await server.serve_forever()


async def serve_by_trio(context: ssl.SSLContext | None) -> None:
    async def answer(stream: Any) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some(4096)
        await stream.send_all(REPLY)
        await graceful_trio.graceful_close(stream, timeout=ENOUGH)

    async with trio.open_nursery() as nursery:
        listeners: Any
        if context:
            listeners = await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1")
            number = listeners[0].transport_listener.socket.getsockname()[1]
        else:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            number = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, answer, listeners)
        listening(number)


async def serve_by_anyio(context: ssl.SSLContext | None) -> None:
    async def answer(stream: Any) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive(4096)
        await stream.send(REPLY)
        await graceful_anyio.graceful_close(stream, timeout=ENOUGH)

    plain = await anyio.create_tcp_listener(local_host="127.0.0.1")
    listening(plain.extra(SocketAttribute.local_port))
    listener: Any = TLSListener(plain, context) if context else plain
    await listener.serve(answer)


def main() -> None:
    driver, *certificate = sys.argv[1:]
    context = None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate[0])
    match driver:
        case "blocking":
            serve_by_threads(lambda sock: graceful_close(sock, timeout=ENOUGH), context)
        case "close_all":
            serve_by_threads(lambda sock: close_all([sock], timeout=ENOUGH), context)
        case "Reaper":
            serve_by_threads(Reaper(timeout=ENOUGH).submit, context)
        case "asyncio":
            asyncio.run(serve_by_asyncio(context))
        case "uvloop":
            with asyncio.Runner(loop_factory=LOOPS["uvloop"]) as runner:
                runner.run(serve_by_asyncio(context))
        case "trio":
            trio.run(serve_by_trio, context)
        case "anyio on asyncio" | "anyio on trio":
            anyio.run(serve_by_anyio, context, backend=driver.removeprefix("anyio on "))
        case _:
            raise SystemExit(f"unknown driver {driver}")


if __name__ == "__main__":
    main()
