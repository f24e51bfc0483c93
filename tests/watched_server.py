"""A server that closes connections in a chosen way, and its clients, in a network namespace.

Start it with `unshare -n python tests/watched_server.py`. It prints its pid and ports, reads
the names of exchanges, one on each line, and prints "done" after each. Each client is a forked
process.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from typing import NamedTuple

from graceful_close import LingerPolicy, graceful_close, set_linger
from streams import DEADLINE, await_fin, await_reset, fill

REQUEST, REPLY = b"x" * 1000, b"y" * 200
ALMOST = len(REPLY) - 30

_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1  # linux/sockios.h, linux/if.h


# The code of one side: the first socket is its connection, the second synchronises the two
# sides.
Side = Callable[[socket.socket, socket.socket], None]


class Exchange(NamedTuple):
    """Both sides; `client_stays`: the client keeps its connection until the server ends."""

    server: Side
    client: Side
    client_stays: bool = False


def _step(turns: socket.socket) -> None:
    turns.sendall(b".")


def _await_step(turns: socket.socket) -> None:
    assert turns.recv(1) == b"."


# --- how the server closes


def _over_unread_input(reply: bytes) -> Side:
    def serve(sock: socket.socket, turns: socket.socket) -> None:
        sock.recv(len(REQUEST), socket.MSG_PEEK | socket.MSG_WAITALL)
        sock.sendall(reply)
        sock.close()
        _step(turns)

    return serve


def _with_nothing_unread(sock: socket.socket, turns: socket.socket) -> None:
    sock.sendall(REPLY)
    sock.close()
    _step(turns)


def _while_much_is_unsent(sock: socket.socket, turns: socket.socket) -> None:
    fill(sock)
    sock.close()
    _step(turns)


def _over_unread_input_while_much_is_unsent(sock: socket.socket, turns: socket.socket) -> None:
    sock.recv(len(REQUEST), socket.MSG_PEEK | socket.MSG_WAITALL)
    _while_much_is_unsent(sock, turns)


def _with_linger_0(sock: socket.socket, turns: socket.socket) -> None:
    sock.sendall(REPLY)
    set_linger(sock, LingerPolicy.ABORT)
    sock.close()
    _step(turns)


def _gracefully(sock: socket.socket, turns: socket.socket) -> None:
    sock.sendall(REPLY)
    graceful_close(sock, timeout=DEADLINE)


def _after_the_clients_reset(sock: socket.socket, turns: socket.socket) -> None:
    sock.sendall(REPLY)
    _step(turns)
    await_reset(sock)
    sock.close()


# --- what the client does


def _sends_and_then(client: Side) -> Side:
    def send(sock: socket.socket, turns: socket.socket) -> None:
        sock.sendall(REQUEST)
        client(sock, turns)

    return send


def _reads(count: int) -> Side:
    def read(sock: socket.socket, turns: socket.socket) -> None:
        _await_step(turns)
        if count:
            assert len(sock.recv(count, socket.MSG_WAITALL)) == count

    return read


def _stays(sock: socket.socket, turns: socket.socket) -> None:
    _await_step(turns)
    _step(turns)
    turns.settimeout(None)
    assert turns.recv(1) == b""  # the server has ended


def _sends_on_after(count: int) -> Side:
    def send(sock: socket.socket, turns: socket.socket) -> None:
        _await_step(turns)
        await_fin(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)  # acknowledge the FIN now
        if count:
            assert len(sock.recv(count, socket.MSG_WAITALL)) == count
        sock.sendall(b"more")
        await_reset(sock)

    return send


def _sends_on_when_released(sock: socket.socket, turns: socket.socket) -> None:
    _await_step(turns)
    _step(turns)
    turns.settimeout(None)
    assert turns.recv(1) == b"."
    sock.sendall(b"more")
    await_reset(sock)


def _sends_on_before_the_fin(sock: socket.socket, turns: socket.socket) -> None:
    _await_step(turns)
    sock.sendall(b"more")
    await_reset(sock)


def _half_closes(sock: socket.socket, turns: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)
    assert sock.recv(len(REPLY) + 1, socket.MSG_WAITALL) == REPLY


EXCHANGES = {
    "read": Exchange(_over_unread_input(REPLY), _sends_and_then(_reads(len(REPLY)))),
    "unread": Exchange(_over_unread_input(REPLY), _sends_and_then(_reads(0))),
    "almost read": Exchange(_over_unread_input(REPLY), _sends_and_then(_reads(ALMOST))),
    "nothing written": Exchange(_over_unread_input(b""), _sends_and_then(_reads(0))),
    "peer still there": Exchange(
        _over_unread_input(REPLY), _sends_and_then(_stays), client_stays=True
    ),
    "unsent": Exchange(
        _over_unread_input_while_much_is_unsent, _sends_and_then(_stays), client_stays=True
    ),
    "data, read": Exchange(_with_nothing_unread, _sends_on_after(len(REPLY))),
    "data, unread": Exchange(_with_nothing_unread, _sends_on_after(0)),
    "data, unsent": Exchange(_while_much_is_unsent, _sends_on_before_the_fin),
    "data, released": Exchange(
        _with_nothing_unread, _sends_on_when_released, client_stays=True
    ),
    "linger 0, read": Exchange(_with_linger_0, _reads(len(REPLY))),
    "linger 0, unread": Exchange(_with_linger_0, _reads(0)),
    "graceful": Exchange(_gracefully, _sends_and_then(_half_closes)),
    "clean": Exchange(_with_nothing_unread, _reads(len(REPLY))),
    "client resets": Exchange(_after_the_clients_reset, _reads(0)),
}


def main() -> None:
    """Serve until stdin ends."""
    _loopback_up()
    staying: list[tuple[int, socket.socket]] = []
    with (
        socket.create_server(("127.0.0.1", 0)) as ipv4,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as ipv6,
    ):
        listeners = {"4": ipv4, "6": ipv6}
        ports = {name: each.getsockname()[1] for name, each in listeners.items()}
        print(json.dumps({"pid": os.getpid(), "ports": ports}), flush=True)
        for line in sys.stdin:
            family, _, name = line.strip().partition(" ")
            if name == "release":
                for client, turns in staying:
                    _step(turns)
                    _end(client, turns)
                staying.clear()
            else:
                exchange = EXCHANGES[name]
                client, turns = _begin(listeners, family, exchange)
                sock, _ = listeners[family].accept()
                with sock:
                    _await_step(turns)
                    exchange.server(sock, turns)
                if exchange.client_stays:
                    _await_step(turns)
                    staying.append((client, turns))
                else:
                    _end(client, turns)
            print("done", flush=True)
    # Later clients inherited the sockets of earlier ones.
    for client, turns in reversed(staying):
        _end(client, turns)


def _begin(
    listeners: dict[str, socket.socket], family: str, exchange: Exchange
) -> tuple[int, socket.socket]:
    """Start a client; return its pid, and the socket that synchronises the two sides."""
    ours, its = socket.socketpair()
    ours.settimeout(DEADLINE)
    client = os.fork()
    if client:
        its.close()
        return client, ours
    status = 1
    try:
        ours.close()
        its.settimeout(DEADLINE)
        address = listeners[family].getsockname()[:2]
        for listener in listeners.values():
            listener.close()
        with socket.create_connection(address) as sock:
            _step(its)
            exchange.client(sock, its)
        status = 0
    except BaseException:  # noqa: BLE001 (a child must never continue here)
        traceback.print_exc()
    finally:
        os._exit(status)


def _end(client: int, turns: socket.socket) -> None:
    turns.close()
    assert os.waitpid(client, 0)[1] == 0


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


if __name__ == "__main__":
    main()
