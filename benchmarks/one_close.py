"""The CPU time of one graceful_close, compared with the same close written by hand.

Each process is pinned to one processor, and the peer does not sleep. The wake-up of a processor
counts as CPU of the waking process, and costs nothing or as much as the close itself. So every
close sleeps once, as over a network, and wakes no process.
"""

from __future__ import annotations

import os
import selectors
import socket
import statistics
import time
from functools import partial
from typing import TYPE_CHECKING

from graceful_close import graceful_close

from .figures import Figure, Target, take_turns
from .peers import apart, idiom, peer, receive_exactly, times_asleep

if TYPE_CHECKING:
    from collections.abc import Callable

# Connections whose closes are timed in one batch, and the number of batches. Heuristics: a
# batch takes about 10 ms of CPU, far more than the clock's step, and all batches leave fewer
# connections in TIME_WAIT than there are ports.
_BATCH = 200
_ROUNDS = 31

# Orders to the peer: connect _BATCH times and ...
_ANSWER = b"a"  # ... answer each FIN with a FIN immediately
_BE_FIRST = b"f"  # ... send a FIN now
_LEAVE_INPUT = b"i"  # ... send data that is not read, then answer each FIN immediately


def measure() -> list[Figure]:
    """Return three figures: the peer answers, sent its FIN first, or sent unread input."""
    with (
        apart() as elsewhere,
        socket.create_server(("127.0.0.1", 0), backlog=_BATCH) as listener,
        peer(_peer_of(listener, elsewhere)) as orders,
    ):
        asleep: dict[bytes, list[int]] = {_ANSWER: [], _BE_FIRST: [], _LEAVE_INPUT: []}

        def batch(order: bytes, close: Callable[[socket.socket], object]) -> float:
            """Return the microseconds of this thread's CPU for one close."""
            orders.sendall(order)
            socks = [listener.accept()[0] for _ in range(_BATCH)]
            receive_exactly(orders, 1)
            slept, started = times_asleep(), time.thread_time()
            for sock in socks:
                close(sock)
            spent = time.thread_time() - started
            asleep[order].append(times_asleep() - slept)
            return spent / _BATCH * 1e6

        figures: list[Figure] = []
        for what, order, target in (
            ("one close, peer answers the FIN", _ANSWER, Target("ratio", 2.0)),
            ("one close, peer's FIN was first", _BE_FIRST, None),
            ("one close, 4 KiB of input unread", _LEAVE_INPUT, None),
        ):
            ours, theirs = take_turns(
                _ROUNDS, partial(batch, order, graceful_close), partial(batch, order, idiom)
            )
            figures.append(
                Figure(
                    what,
                    "µs CPU",
                    statistics.median(ours),
                    statistics.median(theirs),
                    "shutdown(SHUT_WR), settimeout, recv loop, close",
                    target,
                    {
                        "closes": _BATCH * _ROUNDS,
                        "asleep_per_close": statistics.mean(asleep[order]) / _BATCH,
                        "least_ours": min(ours),
                        "least_theirs": min(theirs),
                        "median_of_pairs": statistics.median(
                            a / b for a, b in zip(ours, theirs, strict=True)
                        ),
                    },
                )
            )
        return figures


def _peer_of(listener: socket.socket, processor: int | None) -> Callable[[socket.socket], None]:
    address = listener.getsockname()

    def work(orders: socket.socket) -> None:
        listener.close()
        if processor is not None:
            os.sched_setaffinity(0, {processor})
        with selectors.DefaultSelector() as selector:
            selector.register(orders, selectors.EVENT_READ)
            while True:
                # This process does not sleep while there is something to close.
                awake = processor is not None and len(selector.get_map()) > 1
                for key, _ in selector.select(0 if awake else None):
                    sock = key.fileobj
                    if not isinstance(sock, socket.socket):
                        raise TypeError(f"not registered by us: {sock!r}")
                    said = sock.recv(1)
                    if sock is not orders:
                        selector.unregister(sock)
                        sock.close()
                    elif said:
                        for _ in range(_BATCH):
                            connection = socket.create_connection(address)
                            selector.register(connection, selectors.EVENT_READ)
                            if said == _BE_FIRST:
                                connection.shutdown(socket.SHUT_WR)
                            elif said == _LEAVE_INPUT:
                                connection.sendall(bytes(4096))
                        orders.sendall(b".")
                    else:
                        return

    return work
