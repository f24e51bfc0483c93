"""A program for strace: closes of every kind, each between two marks.

A mark is a write() to descriptor -1: it has no effect, and strace shows its text.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from graceful_close import abortive_close, graceful_close, timed_linger_close

from .peers import idiom, peer

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

BEGIN = "begin: "
END = "end: "

# Seconds before the peer answers, so that the close is asleep, which needs the most system
# calls. Also the delay before it reads, if the close does not wait that long.
_DEADLINE = 0.02
_SILENCE = 5.0

# Orders to the peer.
_ANSWER = b"a"  # read to the end, wait, close
_BE_FIRST = b"f"  # send a FIN immediately
_READ_NOTHING = b"n"  # do not read or answer until the next order

WAITS = (0.5, 2.0)


def main() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        peer(_peer_of(listener)) as orders,
    ):

        def connection(order: bytes, timeout: float | None) -> socket.socket:
            orders.sendall(order)
            sock = listener.accept()[0]
            if order == _READ_NOTHING:
                sock.setblocking(False)
                try:
                    while True:
                        sock.send(bytes(1 << 16))
                except BlockingIOError:
                    pass
            orders.recv(1)
            sock.settimeout(timeout)
            return sock

        def show(
            name: str,
            close: Callable[[socket.socket], object],
            *,
            order: bytes = _ANSWER,
            timeout: float | None = None,
            rehearsal: bool = True,
        ) -> None:
            if rehearsal:  # work that is done once per process is not part of a close
                close(connection(order, timeout))
            sock = connection(order, timeout)
            with _marked(name):
                close(sock)

        show("idiom", idiom)
        show("graceful_close, blocking", graceful_close)
        show("graceful_close, with a timeout", graceful_close, timeout=1.0)
        show("graceful_close, non-blocking", graceful_close, timeout=0.0)
        show("graceful_close, peer's FIN was first", graceful_close, order=_BE_FIRST)
        show("timed_linger_close", partial(timed_linger_close, seconds=5))
        show("abortive_close", abortive_close)
        for seconds in WAITS:
            show(
                f"graceful_close, {seconds} s, no answer",
                partial(graceful_close, timeout=seconds),
                order=_READ_NOTHING,
                rehearsal=False,
            )
            show(
                f"timed_linger_close, {seconds} s, no answer",
                partial(timed_linger_close, seconds=seconds),
                order=_READ_NOTHING,
                rehearsal=False,
            )


@contextmanager
def _marked(name: str) -> Generator[None]:
    _mark(BEGIN + name)
    yield
    _mark(END + name)


def _mark(text: str) -> None:
    with suppress(OSError):  # EBADF, as meant
        os.write(-1, text.encode())


def _peer_of(listener: socket.socket) -> Callable[[socket.socket], None]:
    address = listener.getsockname()

    def work(orders: socket.socket) -> None:
        listener.close()
        silent: list[socket.socket] = []
        while order := orders.recv(1):
            sock = socket.create_connection(address)
            if order == _READ_NOTHING:
                silent.append(sock)  # closed, and thereby reset, at the end
                orders.sendall(b".")
                continue
            if order == _BE_FIRST:
                sock.shutdown(socket.SHUT_WR)
            orders.sendall(b".")
            with sock:
                try:
                    while sock.recv(65536):
                        pass
                except ConnectionResetError:  # the abortive closes
                    pass
                time.sleep(_DEADLINE)
        for sock in silent:
            sock.close()

    return work


if __name__ == "__main__":
    main()
