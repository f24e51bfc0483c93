"""The time from the peer's acknowledgement to the return of timed_linger_close.

On loopback the acknowledgement would arrive before the wait begins. So the peer delays the
acknowledgement: with TCP_QUICKACK off, the acknowledgement of a FIN waits for data or for a
timer, and setting TCP_QUICKACK sends it immediately, inside setsockopt() (tcp(7);
tcp_sock_set_quickack() in net/ipv4/tcp.c). Just before that the peer reads the clock, which all
processes share. The alternative is the kernel's own wait with SO_LINGER.
"""

from __future__ import annotations

import socket
import statistics
import struct
import time
from typing import TYPE_CHECKING

from graceful_close import LingerPolicy, set_linger, timed_linger_close

from .figures import Figure, Target, percentile, take_turns
from .peers import peer, receive_exactly

if TYPE_CHECKING:
    from collections.abc import Callable

_ROUNDS = 200

# Seconds by which the peer delays the acknowledgement: long enough for the closing side to
# sleep, and shorter than the kernel's timer, which is some milliseconds.
_HELD_BACK = 0.002

_MOMENT = struct.Struct("d")


def measure() -> list[Figure]:
    """Return one figure, in milliseconds."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        peer(_peer_of(listener)) as orders,
    ):
        too_early = 0

        def late_by(close: Callable[[socket.socket], object]) -> float:
            """Return the milliseconds from the acknowledgement to the return of `close`."""
            nonlocal too_early
            while True:
                orders.sendall(b".")
                sock = listener.accept()[0]
                sock.sendall(b"the reply")
                close(sock)
                returned = time.monotonic()
                moment: float
                (moment,) = _MOMENT.unpack(receive_exactly(orders, _MOMENT.size))
                if returned > moment:
                    return (returned - moment) * 1e3
                too_early += 1  # the kernel's timer was faster than the peer: not counted

        ours, theirs = take_turns(_ROUNDS, lambda: late_by(_ours), lambda: late_by(_theirs))
    return [
        Figure(
            "from the acknowledgement to the return",
            "ms",
            statistics.median(ours),
            statistics.median(theirs),
            "close() with SO_LINGER {1, 5}",
            Target("ours", 1.0),
            {
                "p99_ours": percentile(ours, 99),
                "p99_theirs": percentile(theirs, 99),
                "rounds": _ROUNDS,
                "repeated": too_early,
            },
        )
    ]


def _ours(sock: socket.socket) -> None:
    timed_linger_close(sock, 5).check()


def _theirs(sock: socket.socket) -> None:
    set_linger(sock, LingerPolicy.TIMED, 5)
    sock.close()


def _peer_of(listener: socket.socket) -> Callable[[socket.socket], None]:
    address = listener.getsockname()

    def work(orders: socket.socket) -> None:
        listener.close()
        while orders.recv(1):
            with socket.create_connection(address) as sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
                while sock.recv(65536):
                    pass
                time.sleep(_HELD_BACK)
                moment = time.monotonic()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
                orders.sendall(_MOMENT.pack(moment))

    return work
