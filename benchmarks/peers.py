"""The other end of each connection, in a separate process, so that its CPU is not counted."""

from __future__ import annotations

import os
import resource
import signal
import socket
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


@contextmanager
def peer(work: Callable[[socket.socket], None]) -> Generator[socket.socket]:
    """Fork a child that runs `work`, and yield the socket for its orders.

    `work` gets the other end of the socket, and returns at the end of the stream. The child is
    waited for when the block is left, and killed first if the block raised.

    Raises:
        RuntimeError: The child failed.
    """
    ours, its = socket.socketpair()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            ours.close()
            with its:
                work(its)
            status = 0
        except BaseException:  # noqa: BLE001 (the child must never continue here)
            traceback.print_exc()
        finally:
            os._exit(status)
    its.close()
    try:
        with ours:
            yield ours
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    if os.waitpid(child, 0)[1] != 0:
        raise RuntimeError("the peer's process failed; its error is above")


@contextmanager
def apart() -> Generator[int | None]:
    """Pin this process to one processor, and return the number of another for its peer.

    None if there is only one, or if the system has no such call (only Linux has).
    """
    if not hasattr(os, "sched_setaffinity"):
        yield None
        return
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        yield None
        return
    here, elsewhere = sorted(allowed)[:2]
    os.sched_setaffinity(0, {here})
    try:
        yield elsewhere
    finally:
        os.sched_setaffinity(0, allowed)


def times_asleep() -> int:
    """Return how often this process has slept since its start."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """Read `size` bytes.

    Raises:
        EOFError: The stream ended before.
    """
    whole = bytearray()
    while len(whole) < size:
        part = sock.recv(size - len(whole))
        if not part:
            raise EOFError(f"the peer closed after {len(whole)} of {size} bytes")
        whole += part
    return bytes(whole)


def idiom(sock: socket.socket, timeout: float = 5.0, size: int = 65536) -> int:
    """Close as by hand, with reads of `size` bytes; return the number of bytes read."""
    count = 0
    sock.shutdown(socket.SHUT_WR)
    sock.settimeout(timeout)
    try:
        while data := sock.recv(size):
            count += len(data)
    except OSError:  # reset, or the time is up: only the close is left
        pass
    sock.close()
    return count
