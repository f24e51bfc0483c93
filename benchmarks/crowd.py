"""Thousands of connections whose peers live in one process, on the other processor.

A peer answers our FIN with its own at once, or never. As in one_close the peers' process does
not sleep while there is something to answer: to wake it is work that would be charged to us.
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

# Connections that are made in one go: they must fit in the backlog of a listener, which some
# systems hold to 128.
_CHUNK = 100

# Each address has ports of its own. Whoever closes first keeps the connection's two ports and
# addresses in TIME_WAIT for a minute, so a run uses them in turn. (Not many more: the kernel
# keeps no more than so many connections in TIME_WAIT, tcp_max_tw_buckets in ip-sysctl.rst.)
_ADDRESSES = tuple(f"127.0.0.{number}" for number in range(1, 5))

# An order to the peers: which address, how many connections, and how many of them never answer.
_CONNECT = struct.Struct("iii")
_FORGET = _CONNECT.pack(-1, 0, 0)  # close those that do not answer

# Descriptors for everything else: the interpreter's, a selector, pipes, event loops.
_SPARE = 64


@dataclass
class Crowd:
    """Makes connections, and gives our ends of them.

    Attributes:
        orders: Where the peers take orders.
        listeners: Where they connect to.
        chunks: How many orders to connect there have been.
    """

    orders: socket.socket
    listeners: list[socket.socket]
    chunks: int = 0

    def connect(self, count: int, *, silent: int = 0) -> list[socket.socket]:
        """Connections whose peers answer at once, but `silent` of them, here and there, never."""
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
        """Have the silent peers close, so that their descriptors are free again."""
        self.orders.sendall(_FORGET)
        receive_exactly(self.orders, 1)


@contextmanager
def crowd() -> Generator[Crowd]:
    """Peers in a process of their own, and this one kept to the other processor.

    As many descriptors may be open meanwhile as the system lets us have.
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
    """The reason why there can be no crowd here."""
    return (
        None if sys.platform == "linux" else "it needs epoll, and a loopback of many addresses"
    )


def affordable(count: int) -> int:
    """`count`, or as many connections as the system lets this process hold open."""
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
                # Wide awake while there is something to answer.
                awake = processor is not None and answering
                for number, _ in epoll.poll(0 if awake else None):
                    if number != orders.fileno():
                        os.close(number)  # all that ever comes is our FIN, or RST
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
