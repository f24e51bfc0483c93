"""Small HTTP servers for the tests of `check`."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
import socket
import ssl
import threading
from collections.abc import Callable, Generator
from typing import Any

from graceful_close import abortive_close, graceful_close
from graceful_close_lab.command import main
from streams import DEADLINE

BODY = bytes(4096)
HEAD = b"HTTP/1.1 413 Content Too Large\r\nServer: waitress\r\nConnection: close\r\n"
REPLY = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY

Serve = Callable[[socket.socket, bytes], object]


@contextlib.contextmanager
def serving(
    serve: Serve,
    *,
    context: ssl.SSLContext | None = None,
    host: str = "127.0.0.1",
    path: str = "",
) -> Generator[str, None, None]:
    """Run a server that calls `serve` with each connection and the head of its request.

    Args:
        serve: Serves one connection.
        context: The TLS context; None: plain TCP.
        host: The address to listen on.
        path: The path of a UNIX socket, instead of a host.

    Yields:
        The address of the server, as HOST:PORT.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET

    def answer(sock: socket.socket) -> None:
        # A client that gives up resets the connection, which is not an error here.
        with contextlib.suppress(OSError), sock:
            sock.settimeout(DEADLINE)
            stream = context.wrap_socket(sock, server_side=True) if context else sock
            with stream:
                head = b""
                while b"\r\n\r\n" not in head:
                    chunk = stream.recv(4096)
                    if not chunk:
                        return
                    head += chunk
                serve(stream, head)

    def accept(listener: socket.socket) -> None:
        while True:
            sock, _ = listener.accept()
            if ended.is_set():
                sock.close()
                return
            threads.append(threading.Thread(target=answer, args=[sock]))
            threads[-1].start()

    ended = threading.Event()
    threads: list[threading.Thread] = []
    with _listening(family, host, path) as listener:
        address = listener.getsockname()
        threads.append(threading.Thread(target=accept, args=[listener]))
        threads[0].start()
        try:
            yield path or f"[{host}]:{address[1]}" if ":" in host else f"{host}:{address[1]}"
        finally:
            ended.set()
            with contextlib.suppress(OSError), socket.socket(listener.family) as knock:
                knock.connect(address)
            for thread in threads:
                thread.join(DEADLINE)


def _listening(family: int, host: str, path: str) -> socket.socket:
    if not path:
        return socket.create_server((host, 0), family=family)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    return listener


def replying(reply: bytes, *, reads_first: bool = False) -> Serve:
    """Return a server that replies so, closes gracefully, and may read the whole upload first."""

    def serve(sock: socket.socket, head: bytes) -> None:
        if reads_first:
            length = re.search(rb"Content-Length: (\d+)", head)
            assert length is not None
            left = int(length[1]) - len(head.partition(b"\r\n\r\n")[2])
            while left and (chunk := sock.recv(65536)):
                left -= len(chunk)
        sock.sendall(reply)
        graceful_close(sock, timeout=DEADLINE)

    return serve


def keeps(sock: socket.socket, head: bytes) -> None:
    replying(REPLY)(sock, head)


def loses(sock: socket.socket, head: bytes) -> None:
    sock.sendall(REPLY)
    sock.close()


def loses_if_closing(sock: socket.socket, head: bytes) -> None:
    (loses if b"Connection: close" in head else keeps)(sock, head)


def reads_all(sock: socket.socket, head: bytes) -> None:
    replying(REPLY, reads_first=True)(sock, head)


def never_replies(sock: socket.socket, head: bytes) -> None:
    while sock.recv(65536):
        pass


def aborts(sock: socket.socket, head: bytes) -> None:
    if b"Content-Length: 0\r\n" in head:
        sock.sendall(b"HTTP/1.1 200 OK\r\nServer: gunicorn\r\nContent-Length: 0\r\n\r\n")
        graceful_close(sock, timeout=DEADLINE)
    abortive_close(sock)


def closes(sock: socket.socket, head: bytes) -> None:
    graceful_close(sock, timeout=DEADLINE)


def in_turn(*serves: Serve) -> Serve:
    """Return a server that serves each connection with the next of these, and the rest with the last."""
    turns = itertools.chain(serves, itertools.repeat(serves[-1]))

    def serve(sock: socket.socket, head: bytes) -> None:
        next(turns)(sock, head)

    return serve


def check(*arguments: str, tries: int = 3) -> tuple[int, dict[str, Any]]:
    """Run `graceful-close check` in this process, and return the exit code and the findings."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = main(["check", *arguments, "--tries", str(tries), "--json"])
    found = json.loads(printed.getvalue())
    assert found["exit_code"] == code
    return code, found


def check_server(
    serve: Serve, *arguments: str, tries: int = 3, context: ssl.SSLContext | None = None
) -> tuple[int, dict[str, Any]]:
    """Return what `graceful-close check` finds out about a server, over TLS with a context."""
    with serving(serve, context=context) as address:
        where = f"https://{address}/" if context else address
        return check(where, *arguments, tries=tries)


def outcomes(found: dict[str, Any], *clients: str) -> set[str]:
    """Return the outcomes of these kinds of client; without names, of all."""
    return {
        each["outcome"] for each in found["tries"] if not clients or each["client"] in clients
    }


def verdicts(found: dict[str, Any]) -> dict[str, str]:
    """Return the verdict on each kind of client."""
    return {row["client"]: row["verdict"] for row in found["clients"]}
