"""What a transport of asyncio or uvloop shows of itself, also while it ends, and what its loop can do."""

from __future__ import annotations

import asyncio
from typing import TypeVar

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any

T = TypeVar("T")


def info_of(transport: asyncio.Transport, name: str) -> Any:
    try:
        return transport.get_extra_info(name)
    except AttributeError:
        return None  # asyncio's TLS transport has no state left when it is closed twice


def size_of_buffer(transport: asyncio.Transport) -> int:
    try:
        return transport.get_write_buffer_size()
    except AttributeError:
        # asyncio's TLS transport has no state left when it is closed twice. Its bytes are on their way
        # to the transport below, and are counted there.
        return 0


def open_socket_of(transport: asyncio.Transport) -> socket.socket | None:
    """Return the object that represents a transport's socket; None: the socket is closed."""
    sock: socket.socket | None = info_of(transport, "socket")
    return None if sock is None or sock.fileno() == -1 else sock


def is_elsewhere(transport: Any) -> bool:
    """Whether another event loop runs a transport, as far as that is visible."""
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        return False  # the constructor of `closing` may be called before the loop runs
    its_own = getattr(transport, "_loop", None)
    if its_own is not None:
        return its_own is not running
    # uvloop's transports do not show their loop. A loop refuses a call about the descriptor of one of
    # its own transports.
    sock = open_socket_of(transport)
    if sock is None or not type(transport).__module__.startswith("uvloop"):
        return False
    try:
        running.remove_reader(sock.fileno())
    except RuntimeError:
        return False
    return True


def can_watch(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether the loop can wait for our descriptors. Windows' ProactorEventLoop cannot."""
    return type(loop).add_reader is not asyncio.AbstractEventLoop.add_reader


async def in_a_thread(function: Callable[..., T], *args: Any) -> T:
    """Call a function that blocks in a thread of the loop's default executor.

    The executor starts no threads when the interpreter exits while the loop runs in another thread.
    The program ends then, so the function may block the loop, and is called here.
    """
    try:
        done = asyncio.get_running_loop().run_in_executor(None, function, *args)
    except RuntimeError:
        return function(*args)
    return await done


def forget_number(loop: asyncio.AbstractEventLoop, number: int) -> None:
    """Remove what a loop has registered for the number of a descriptor that was just created.

    It is of an earlier descriptor, which was closed while the loop watched it: asyncio leaves the
    writer of a sendfile() that a close interrupts. The loop would add a new callback to it, and the
    kernel has forgotten it.
    """
    for remove in (loop.remove_reader, loop.remove_writer):
        try:
            remove(number)
        except OSError:
            pass  # both were registered; the selector forgets them before it raises


def is_sending_file(transport: asyncio.Transport, protocol: object) -> bool:
    """Whether loop.sendfile() uses a transport. The transport then rejects even an empty write."""
    # For TLS, and for files and systems without sendfile().
    if type(protocol).__name__ == "_SendfileFallbackProtocol":
        return True
    try:
        transport.write(b"")
    except RuntimeError as error:
        return "sendfile" in str(error)  # after write_eof() the error is another
    return False
