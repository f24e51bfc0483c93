"""The CPU time of one graceful_close over TLS, compared with the same close without TLS.

The peer is a separate process. It does the handshake, waits for the end of the stream, and
closes.
"""

from __future__ import annotations

import socket
import ssl
import statistics
import time
from functools import partial
from typing import TYPE_CHECKING

import trustme

from graceful_close import graceful_close

from .figures import Figure, take_turns
from .peers import apart, idiom, peer

if TYPE_CHECKING:
    from collections.abc import Callable

# A heuristic: a batch is short, compared with the handshakes before it.
_BATCH = 50
_ROUNDS = 11

_PLAIN, _TLS = b"p", b"t"


def measure() -> list[Figure]:
    """Return two figures: against a plain socket, and against a close without close_notify."""
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("server.test", key_type=trustme.KeyType.ECDSA).configure_cert(server)
    with (
        apart(),
        socket.create_server(("127.0.0.1", 0), backlog=_BATCH) as listener,
        peer(_peer_of(listener, client)) as orders,
    ):

        def batch(order: bytes, close: Callable[[socket.socket], object]) -> float:
            """Return the microseconds of this thread's CPU for one close."""
            spent = 0.0
            for _ in range(_BATCH):
                orders.sendall(order)
                sock = listener.accept()[0]
                if order == _TLS:
                    sock = server.wrap_socket(sock, server_side=True)
                    sock.sendall(b"reply")
                started = time.thread_time()
                close(sock)
                spent += time.thread_time() - started
            return spent / _BATCH * 1e6

        ours = partial(batch, _TLS, graceful_close)
        rivals = {
            "graceful_close without TLS": partial(batch, _PLAIN, graceful_close),
            "shutdown(SHUT_WR), recv loop, close(): no close_notify": partial(
                batch, _TLS, _without_close_notify
            ),
        }
        figures: list[Figure] = []
        for name, theirs in rivals.items():
            a, b = take_turns(_ROUNDS, ours, theirs)
            figures.append(
                Figure(
                    "one close over TLS",
                    "µs CPU",
                    statistics.median(a),
                    statistics.median(b),
                    name,
                )
            )
        return figures


def _without_close_notify(sock: socket.socket) -> None:
    idiom(socket.socket(sock.family, sock.type, sock.proto, sock.detach()))


def _peer_of(
    listener: socket.socket, context: ssl.SSLContext
) -> Callable[[socket.socket], None]:
    address = listener.getsockname()

    def work(orders: socket.socket) -> None:
        listener.close()
        while order := orders.recv(1):
            with socket.create_connection(address) as sock:
                if order == _PLAIN:
                    sock.recv(1)
                    continue
                with context.wrap_socket(sock, server_hostname="server.test") as tls:
                    while tls.recv(100):
                        pass

    return work
