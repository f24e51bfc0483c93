"""A server of thousands of keep-alive connections that stops without cutting anybody off.

    python examples/graceful_stop.py 8080      (0 picks a free port)
    curl http://127.0.0.1:8080/1000000
    kill -TERM <its process>

On SIGTERM it accepts no more, answers what was asked already, and closes every connection: all
together, within one deadline, by one call of close_all().
"""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector

from graceful_close import close_all

# Seconds after SIGTERM for requests and replies that are half way, and then for closing.
FINISH, CLOSE = 5.0, 5.0


@dataclass(eq=False)
class Client:
    """A connection, and what is half way on it."""

    sock: socket.socket
    received: bytes = b""
    to_send: bytearray = field(default_factory=bytearray)


class Server:
    """Answers GET /N with N bytes, until SIGTERM comes."""

    def __init__(self, port: int) -> None:  # noqa: D107
        self.listener = socket.create_server(("127.0.0.1", port), backlog=1024)
        self.signalled, self.to_signal = socket.socketpair()
        self.listener.setblocking(False)
        self.selector = DefaultSelector()
        self.selector.register(self.listener, EVENT_READ, self.accept)
        self.selector.register(self.signalled, EVENT_READ, self.stop)
        self.clients: set[Client] = set()
        self.stopping = False
        signal.signal(signal.SIGTERM, lambda number, frame: self.to_signal.send(b"."))

    def serve(self) -> None:
        while not self.stopping:
            for key, _ in self.selector.select():
                key.data()
        finish_by = time.monotonic() + FINISH
        while time.monotonic() < finish_by and any(
            c.received or c.to_send for c in self.clients
        ):
            for key, _ in self.selector.select(finish_by - time.monotonic()):
                key.data()

    def accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                client = Client(self.listener.accept()[0])
                client.sock.setblocking(False)
                self.clients.add(client)
                self.selector.register(client.sock, EVENT_READ, partial(self.go_on, client))

    def go_on(self, client: Client) -> None:
        try:
            with contextlib.suppress(BlockingIOError):
                self.answer(client, client.sock.recv(65536))
            with contextlib.suppress(BlockingIOError):
                while client.to_send:
                    del client.to_send[: client.sock.send(client.to_send[:65536])]
        except ConnectionError:  # the client has gone, or has reset
            self.clients.discard(client)
            self.selector.unregister(client.sock)
            client.sock.close()
            return
        events = EVENT_READ | (EVENT_WRITE if client.to_send else 0)
        self.selector.modify(client.sock, events, partial(self.go_on, client))

    def answer(self, client: Client, data: bytes) -> None:
        if not data:
            raise ConnectionError
        *requests, client.received = (client.received + data).split(b"\r\n\r\n")
        for request in requests:
            size = int(request.split()[1][1:] or 0)
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n" % size
            client.to_send += head + (b"Connection: close\r\n" if self.stopping else b"")
            client.to_send += b"\r\n" + b"x" * size

    def stop(self) -> None:
        self.accept()  # who has connected already is not to be reset
        for sock in (self.listener, self.signalled):
            self.selector.unregister(sock)
        self.listener.close()
        self.stopping = True
        print("stopping", flush=True)


def main() -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    server = Server(int(sys.argv[1]))
    print(f"http://127.0.0.1:{server.listener.getsockname()[1]}/", flush=True)
    server.serve()
    print(f"closing {len(server.clients)} connections", flush=True)
    results = close_all((client.sock for client in server.clients), timeout=CLOSE)
    for outcome, count in Counter(result.outcome for result in results).most_common():
        print(f"{outcome.value}: {count}")


if __name__ == "__main__":
    main()
