"""Thousands of connections whose peers are in one process, on the other processor.

A peer answers our FIN with its own immediately, or never. As in one_close, the peers' process
does not sleep while there is something to answer, because the wake-up would count as our CPU.
"""

from __future__ import annotations

import os
import resource
import select
import socket
import struct
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .peers import apart, peer, receive_exactly

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

# Connections that are made in one batch. They must fit into the backlog of a listener, which
# some systems limit to 128.
_CHUNK = 100

# Each address has its own ports. The side that closes first keeps the ports and addresses of a
# connection in TIME_WAIT for a minute, so a run uses the addresses in turn. (The kernel limits
# the number of connections in TIME_WAIT: tcp_max_tw_buckets in ip-sysctl.rst.)
_ADDRESSES = tuple(f"127.0.0.{number}" for number in range(1, 5))

# An order to the peers: the address, the number of connections, and how many of them never
# answer.
_CONNECT = struct.Struct("iii")
_FORGET = _CONNECT.pack(-1, 0, 0)  # close the connections that do not answer

# Descriptors for other purposes: the interpreter, a selector, pipes, event loops.
_SPARE = 64


@dataclass
class Crowd:
    """Makes connections, and returns our ends.

    Attributes:
        orders: The socket for orders to the peers.
        listeners: The listeners that the peers connect to.
        chunks: The number of orders to connect so far.
    """

    orders: socket.socket
    listeners: list[socket.socket]
    chunks: int = 0

    def connect(self, count: int, *, silent: int = 0) -> list[socket.socket]:
        """Make connections whose peers answer immediately; `silent` of them never answer."""
        socks: list[socket.socket] = []
        while len(socks) < count:
            address = self.chunks % len(self.listeners)
            self.chunks += 1
            size = min(_CHUNK, count - len(socks))
            made = len(socks) + size
            quiet = silent * made // count - silent * len(socks) // count
            self.orders.sendall(_CONNECT.pack(address, size, quiet))
            receive_exactly(self.orders, 1)
            socks += [self.listeners[address].accept()[0] for _ in range(size)]
        return socks

    def forget(self) -> None:
        """Make the silent peers close, so that their descriptors are free again."""
        self.orders.sendall(_FORGET)
        receive_exactly(self.orders, 1)


@contextmanager
def crowd() -> Generator[Crowd]:
    """Start the peers in a separate process, and pin this process to the other processor.

    During the block the limit of descriptors is the highest that the system allows.
    """
    with ExitStack() as stack:
        stack.enter_context(_all_descriptors())
        elsewhere = stack.enter_context(apart())
        listeners = [
            stack.enter_context(socket.create_server((address, 0), backlog=_CHUNK))
            for address in _ADDRESSES
        ]
        orders = stack.enter_context(peer(_peers_of(listeners, elsewhere)))
        yield Crowd(orders, listeners)


def why_not() -> str | None:
    """Return why a crowd is not possible here."""
    return None if sys.platform == "linux" else "it needs epoll, and many loopback addresses"


def affordable(count: int) -> int:
    """Return `count`, or the number of connections that this process may have open."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most == resource.RLIM_INFINITY:
        return count
    held = len(os.listdir("/proc/self/fd"))
    return min(count, most - held - _SPARE)


@contextmanager
def _all_descriptors() -> Generator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _peers_of(
    listeners: list[socket.socket], processor: int | None
) -> Callable[[socket.socket], None]:
    addresses = [listener.getsockname() for listener in listeners]

    def connect(address: tuple[str, int]) -> int:
        sock = socket.socket()
        sock.connect(address)
        return sock.detach()

    def work(orders: socket.socket) -> None:
        for listener in listeners:
            listener.close()
        if processor is not None:
            os.sched_setaffinity(0, {processor})
        silent: list[int] = []
        answering = 0
        with select.epoll() as epoll:
            epoll.register(orders, select.EPOLLIN)
            while True:
                # This process does not sleep while there is something to answer.
                awake = processor is not None and answering
                for number, _ in epoll.poll(0 if awake else None):
                    if number != orders.fileno():
                        os.close(number)  # only our FIN or RST arrives
                        answering -= 1
                        continue
                    order = orders.recv(_CONNECT.size, socket.MSG_WAITALL)
                    if not order:
                        return
                    address, count, quiet = _CONNECT.unpack(order)
                    if order == _FORGET:
                        while silent:
                            os.close(silent.pop())
                    for index in range(count):
                        connection = connect(addresses[address])
                        if index < quiet:
                            silent.append(connection)
                        else:
                            epoll.register(connection, select.EPOLLIN)
                            answering += 1
                    orders.sendall(b".")

    return work
