"""The other end of each connection, in a process of its own so that its CPU is not counted."""

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
    """Fork a child that runs `work`, and give the socket on which it takes orders.

    `work` gets the other end, and returns when that says end of stream. The child is reaped
    when the block is left, and killed first if the block raised.

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
        except BaseException:  # noqa: BLE001 (whatever it is, the parent must not run on here)
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
        raise RuntimeError("the peer's process failed; what it says is above")


@contextmanager
def apart() -> Generator[int | None]:
    """Keep this process to one processor, and give the number of another one for its peer.

    None where there is only one, or the system cannot be told (only Linux can).
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
    """How often this process has gone to sleep, since it began."""
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
            raise EOFError(f"the peer went away after {len(whole)} of {size} bytes")
        whole += part
    return bytes(whole)


def idiom(sock: socket.socket, timeout: float = 5.0, size: int = 65536) -> int:
    """The close that careful people write by hand, `size` at a time, and how much it read."""
    count = 0
    sock.shutdown(socket.SHUT_WR)
    sock.settimeout(timeout)
    try:
        while data := sock.recv(size):
            count += len(data)
    except OSError:  # reset, or the time is up: closing is all that is left to do
        pass
    sock.close()
    return count
