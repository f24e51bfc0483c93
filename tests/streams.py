"""Connections to close, scripted peers, and waits for a state of a stream."""

from __future__ import annotations

import os
import select
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

from graceful_close import LingerPolicy, set_linger, unacked_bytes

T = TypeVar("T")

# Seconds. A test that waits longer than this has failed.
DEADLINE = float(os.environ.get("TESTS_DEADLINE", "20"))

# asm-generic/poll.h, where the select module has no name for it (PyPy).
POLLRDHUP: int = getattr(select, "POLLRDHUP", 0x2000)

REPLY = b"reply" * 13_000

# The timeouts that a socket may have.
MODES: dict[str, float | None] = {"blocking": None, "non-blocking": 0.0, "timeout": 30.0}


class Connection(NamedTuple):
    """Both ends of one stream."""

    ours: socket.socket
    peer: socket.socket


class Full(NamedTuple):
    """Both ends of one stream, and the number of bytes that fill its buffers."""

    ours: socket.socket
    peer: socket.socket
    written: int


class FailsToDetach(socket.socket):
    """A socket that raises when its descriptor is taken."""

    def detach(self) -> int:
        super().detach()
        raise RuntimeError("a bug")


def listen(family: str, folder: Path | None = None) -> socket.socket:
    match family:
        case "tcp4":
            return socket.create_server(("127.0.0.1", 0))
        case "tcp6":
            return socket.create_server(("::1", 0), family=socket.AF_INET6)
        case _:
            assert folder is not None
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(str(folder / "listener"))
            listener.listen()
            return listener


@contextmanager
def connect(
    family: str, *, peer_buffer: int | None = None
) -> Generator[Connection, None, None]:
    """Make a connection whose `ours` is the accepting side; `peer_buffer` is in bytes."""
    with (
        tempfile.TemporaryDirectory() as folder,
        listen(family, Path(folder)) as listener,
        socket.socket(listener.family, socket.SOCK_STREAM) as peer,
    ):
        if peer_buffer is not None:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, peer_buffer)
        peer.settimeout(DEADLINE)
        peer.connect(listener.getsockname())
        ours, _ = listener.accept()
        with ours:
            yield Connection(ours, peer)


@contextmanager
def connect_many(
    count: int, family: str = "tcp4", *, peer_buffer: int | None = None
) -> Generator[list[Connection], None, None]:
    """Make connections like those of `connect`, with one listener."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        listener = stack.enter_context(listen(family, Path(folder)))
        connections: list[Connection] = []
        for _ in range(count):
            peer = stack.enter_context(socket.socket(listener.family, socket.SOCK_STREAM))
            if peer_buffer is not None:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, peer_buffer)
            peer.settimeout(DEADLINE)
            peer.connect(listener.getsockname())
            ours = stack.enter_context(listener.accept()[0])
            connections.append(Connection(ours, peer))
        yield connections


@contextmanager
def default_timeout(seconds: float | None) -> Generator[None, None, None]:
    """Give each new socket this timeout in the block."""
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(None)


@cache
def kernel_counts() -> bool:
    """Return whether this kernel counts unacknowledged bytes (gVisor's does not)."""
    with connect("tcp4") as tcp:
        return unacked_bytes(tcp.ours) is not None


def fill(sock: socket.socket) -> int:
    """Write until the send buffer is full, without a change of the socket's mode."""
    timeout = sock.gettimeout()
    sock.setblocking(False)
    written = 0
    try:
        while True:
            written += sock.send(b"x" * 65536)
    except BlockingIOError:
        return written
    finally:
        sock.settimeout(timeout)


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    set_linger(sock, LingerPolicy.ABORT)
    sock.close()


def reply_early(connection: Connection, upload: bytes) -> None:
    """Reply to an upload that is not read."""
    connection.peer.sendall(upload)
    await_input(connection.ours)
    connection.ours.sendall(REPLY)


def read_all(sock: socket.socket) -> bytes:
    """Read to the end of the stream; raise ConnectionResetError if it ends with RST."""
    sock.settimeout(DEADLINE)
    chunks: list[bytes] = []
    while chunk := sock.recv(1 << 20):
        chunks.append(chunk)
    return b"".join(chunks)


def ends_in_reset(sock: socket.socket) -> bool:
    """Return whether the stream ends with RST and not with FIN."""
    try:
        read_all(sock)
    except ConnectionResetError:
        return True
    return False


def await_input(sock: socket.socket) -> None:
    _await(sock, select.POLLIN)


def await_fin(sock: socket.socket) -> None:
    """Until the peer's FIN has come, read or not."""
    _await(sock, POLLRDHUP)


def send_fin(peer: socket.socket, *, to: socket.socket) -> None:
    """Half-close the peer, and wait until its FIN has arrived."""
    peer.shutdown(socket.SHUT_WR)
    await_fin(to)


def await_reset(sock: socket.socket) -> None:
    """Wait until the peer's RST has arrived."""
    _await(sock, select.POLLERR)


def _await(sock: socket.socket, event: int) -> None:
    poller = select.poll()
    poller.register(sock, event)
    assert poller.poll(DEADLINE * 1000), "the state was not reached"


def wait_until(state: Callable[[], object]) -> None:
    """Wait until a condition is true, by polling."""
    deadline = time.monotonic() + DEADLINE
    while not state():
        assert time.monotonic() < deadline, "the condition was never true"
        time.sleep(0.001)


def read_and_close(sock: socket.socket) -> bytes:
    """Read to the end of the stream, then close."""
    received = read_all(sock)
    sock.close()
    return received


def read_and_close_late(sock: socket.socket) -> bytes:
    """Read to the end of the stream, then close after our FIN would have arrived."""
    received = read_all(sock)
    time.sleep(0.15)
    sock.close()
    return received


@contextmanager
def meanwhile(action: Callable[..., T], *args: socket.socket) -> Generator[list[T], None, None]:
    """Run `action` in a thread while the block runs; an exception in it fails the test.

    Yields a list that has the return value of `action` after the block.
    """
    returned: list[T] = []
    errors: list[BaseException] = []

    def act() -> None:
        try:
            returned.append(action(*args))
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield returned
    finally:
        thread.join(DEADLINE)
        assert not thread.is_alive(), "the peer never ended"
    if errors:
        raise errors[0]


@contextmanager
def held_by_a_child(*, but: socket.socket) -> Generator[None, None, None]:
    """Run the block while a forked child holds every socket of this process `but` one."""
    hold, release = os.pipe()
    child = os.fork()
    if child == 0:
        but.close()
        os.close(release)
        os.read(hold, 1)
        os._exit(0)
    os.close(hold)
    try:
        yield
    finally:
        os.close(release)
        os.waitpid(child, 0)
