"""GracefulListeners, their clients, and forked children that serve them."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from certificates import NAME, client_context
from graceful_close import CloseOutcome, GracefulListener, Reaper
from streams import DEADLINE, await_input, read_all

if TYPE_CHECKING:
    from graceful_close import ReaperOptions

UPLOAD = bytes(300_000)
FOREVER: ReaperOptions = {"timeout": 4 * DEADLINE, "idle_timeout": None}


@contextmanager
def closing_reaper(listener: GracefulListener) -> Generator[GracefulListener, None, None]:
    with listener, listener.reaper:
        yield listener


def listen(family: str, folder: Path) -> GracefulListener:
    match family:
        case "tcp4":
            return GracefulListener(("127.0.0.1", 0))
        case "tcp6":
            return GracefulListener(("::1", 0), family=socket.AF_INET6)
        case _:
            return GracefulListener(str(folder / "listener"), family=socket.AF_UNIX)


def client_of(listener: socket.socket, buffer: int | None = None) -> socket.socket:
    client = socket.socket(listener.family, socket.SOCK_STREAM)
    if buffer is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    client.settimeout(DEADLINE)
    client.connect(listener.getsockname())
    return client


@contextmanager
def connection(
    listener: socket.socket,
) -> Generator[tuple[socket.socket, socket.socket], None, None]:
    """Our end, from accept(), and the client's."""
    with client_of(listener) as client:
        accepted, _ = listener.accept()
        with accepted:
            yield accepted, client


def assert_graceful(accepted: socket.socket, client: socket.socket) -> None:
    """Check that a close with unread input ends the client's stream, and does not reset it."""
    client.sendall(b"unread")
    await_input(accepted)
    accepted.close()
    assert read_all(client) == b""


def outcomes(reaper: Reaper) -> dict[CloseOutcome, int]:
    """Return the outcomes of all connections of a listener."""
    reaper.close()
    return {outcome: count for outcome, count in reaper.stats().items() if count}


@contextmanager
def child(work: Callable[[], object]) -> Generator[None, None, None]:
    """Run `work` in a forked child while the block runs; the child must exit with 0."""
    number = os.fork()
    if number == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    try:
        yield
    finally:
        assert os.waitpid(number, 0)[1] == 0


def serve_one(listener: socket.socket) -> None:
    accepted, _ = listener.accept()
    await_input(accepted)
    accepted.sendall(b"reply")
    accepted.close()


def serve_one_to_its_end(listener: GracefulListener) -> None:
    serve_one(listener)
    assert outcomes(listener.reaper) == {CloseOutcome.PEER_CLOSED: 1}


def ask(listener: socket.socket) -> None:
    with client_of(listener) as client:
        client.sendall(b"unread")
        assert read_all(client) == b"reply"


def secured(sock: socket.socket, version: ssl.TLSVersion) -> ssl.SSLSocket:
    return client_context(version).wrap_socket(
        sock, server_hostname=NAME, suppress_ragged_eofs=False
    )


def ask_by_tls(listener: socket.socket, version: ssl.TLSVersion) -> bytes:
    """Send an upload that is not read, and read the reply to its close_notify."""
    with secured(client_of(listener), version) as client:
        client.sendall(UPLOAD)
        return read_all(client)
