"""The CPU time of a connection through a GracefulListener and through a plain listener.

The server is minimal: accept, read a request, send a reply, close. So the close is a large part
of it. The clock counts the whole process, with all threads. The clients are in a separate
process, on the other processor.
"""

from __future__ import annotations

import fcntl
import os
import socket
import statistics
import termios
import time
from collections import deque
from contextlib import ExitStack
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING

from graceful_close import CloseOutcome, GracefulListener
from graceful_close.socketserver import GracefulMixIn

from .figures import Figure, Target, all_take_turns
from .peers import apart, peer, receive_exactly

if TYPE_CHECKING:
    from collections.abc import Callable

# Connections that are timed in one batch, and the number of batches. Heuristics, as in
# one_close.
_BATCH = 400
_ROUNDS = 15

# The number of concurrent clients; a batch must be a multiple of it.
_AT_A_TIME = (1, 50)

_BARE = "shutdown(SHUT_WR), later recv, ioctl, close: the floor"

# How many connections wait before one is finished, so that its peer has closed. A heuristic.
_MEANWHILE = 100

_REQUEST = b"GET / HTTP/1.0\r\n\r\n"
_REPLY = b"HTTP/1.0 200 OK\r\n\r\n" + bytes(200)


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(bytes(200))

    def log_message(self, *_args: object, **_more: object) -> None:
        pass


class _Server(HTTPServer):
    request_queue_size = max(_AT_A_TIME)


class _GracefulServer(GracefulMixIn, _Server):
    pass


def measure() -> list[Figure]:
    """Return seven figures, in µs for each connection."""
    with ExitStack() as stack:
        elsewhere = stack.enter_context(apart())
        backlog = max(_AT_A_TIME)
        graceful = stack.enter_context(GracefulListener(("127.0.0.1", 0), backlog=backlog))
        plain = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=backlog))
        http = stack.enter_context(_Server(("127.0.0.1", 0), _Handler))
        graceful_http = stack.enter_context(_GracefulServer(("127.0.0.1", 0), _Handler))
        listeners = [graceful, plain, http.socket, graceful_http.socket]
        orders = stack.enter_context(peer(_clients_of(listeners, elsewhere)))

        def batch(at_a_time: int, listener: socket.socket, serve: Callable[[], None]) -> float:
            orders.sendall(bytes([listeners.index(listener), at_a_time]))
            started = time.process_time()
            for _ in range(_BATCH):
                serve()
            receive_exactly(orders, 1)  # all clients have closed
            bare.finish()
            while len(graceful.reaper) or len(graceful_http.reaper):
                time.sleep(0.005)  # rarely, because each look takes CPU too
            return (time.process_time() - started) / _BATCH * 1e6

        bare = _Bare()
        small = {
            "": partial(_serve, graceful, _close),
            _BARE: partial(_serve, plain, bare.close),
            "shutdown(SHUT_WR), close()": partial(_serve, plain, _shut_and_close),
            "close()": partial(_serve, plain, _close),
        }
        figures: list[Figure] = []
        for at_a_time in _AT_A_TIME:
            clients = "one client" if at_a_time == 1 else f"{at_a_time} clients"
            taken = all_take_turns(
                _ROUNDS,
                {
                    name: partial(batch, at_a_time, serve.args[0], serve)
                    for name, serve in small.items()
                },
            )
            figures += _figures(f"a connection, {clients} at a time", taken)
        taken = all_take_turns(
            _ROUNDS,
            {
                "": partial(batch, 1, graceful_http.socket, graceful_http.handle_request),
                "http.server": partial(batch, 1, http.socket, http.handle_request),
            },
        )
        figures += _figures("a connection, http.server", taken)
        for reaper in (graceful.reaper, graceful_http.reaper):
            reaper.close()
            if sum(reaper.stats().values()) != reaper.stats()[CloseOutcome.PEER_CLOSED]:
                raise RuntimeError(f"some connections ended in another way: {reaper.stats()}")
    return figures


def _figures(what: str, taken: dict[str, list[float]]) -> list[Figure]:
    ours = taken.pop("")
    return [
        Figure(
            what,
            "µs CPU",
            statistics.median(ours),
            statistics.median(theirs),
            name,
            None if name in {"close()", _BARE} else Target("ratio", 1.7),
            {
                "connections": _BATCH * _ROUNDS,
                "least_ours": min(ours),
                "least_theirs": min(theirs),
                "median_of_pairs": statistics.median(
                    a / b for a, b in zip(ours, theirs, strict=True)
                ),
            },
        )
        for name, theirs in taken.items()
    ]


def _serve(listener: socket.socket, end: Callable[[socket.socket], None]) -> None:
    sock, _ = listener.accept()
    sock.recv(4096)
    sock.sendall(_REPLY)
    end(sock)


def _close(sock: socket.socket) -> None:
    sock.close()


def _shut_and_close(sock: socket.socket) -> None:
    """Close as socketserver does."""
    sock.shutdown(socket.SHUT_WR)
    sock.close()


class _Bare:
    """The system calls alone, with minimal Python code and without error handling.

    This is the least cost of a close that waits for the peer.
    """

    def __init__(self) -> None:
        self._waiting: deque[socket.socket] = deque()
        self._byte = bytearray(1)

    def close(self, sock: socket.socket) -> None:
        sock.shutdown(socket.SHUT_WR)
        self._waiting.append(socket.socket(fileno=sock.detach()))
        if len(self._waiting) > _MEANWHILE:
            self._finish_one()

    def finish(self) -> None:
        while self._waiting:
            self._finish_one()

    def _finish_one(self) -> None:
        sock = self._waiting.popleft()
        sock.recv_into(self._byte)
        fcntl.ioctl(sock, termios.TIOCOUTQ, bytearray(4))
        sock.close()


def _clients_of(
    listeners: list[socket.socket], processor: int | None
) -> Callable[[socket.socket], None]:
    """Run clients that connect, send, read to the end and close.

    An order is two bytes: the listener, and the number of concurrent clients.
    """
    addresses = [listener.getsockname() for listener in listeners]

    def work(orders: socket.socket) -> None:
        for listener in listeners:
            listener.close()
        if processor is not None:
            os.sched_setaffinity(0, {processor})
        while order := orders.recv(2, socket.MSG_WAITALL):
            address, at_a_time = addresses[order[0]], order[1]
            for _ in range(_BATCH // at_a_time):
                socks = [socket.create_connection(address) for _ in range(at_a_time)]
                for sock in socks:
                    sock.sendall(_REQUEST)
                for sock in socks:
                    while sock.recv(65536):
                        pass
                    sock.close()
            orders.sendall(b".")

    return work
