"""The example graceful_stop: it stops with five thousand connections and loses no reply."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, NamedTuple

import pytest

import descriptors
from streams import DEADLINE, await_fin, read_all

SERVER = Path(__file__).parent.parent / "examples" / "graceful_stop.py"
COUNT = 5000
LONG = 10_000_000  # bytes: more than the buffers of both ends hold


class Server(NamedTuple):
    process: subprocess.Popen[str]
    port: int

    def read_line(self) -> str:
        return self.out.readline().strip()

    @property
    def out(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.read_line() == "stopping"


@pytest.fixture
def server() -> Iterator[Server]:
    with subprocess.Popen(
        [sys.executable, str(SERVER), "0"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            address = process.stdout.readline()
            yield Server(process, int(address.split(":")[2].rstrip("/\n")))
        finally:
            process.kill()


def ask(sock: socket.socket, size: int) -> None:
    sock.sendall(b"GET /%d HTTP/1.1\r\nHost: here\r\n\r\n" % size)


def is_whole(reply: bytes, size: int) -> bool:
    head, _, body = reply.partition(b"\r\n\r\n")
    return head.startswith(b"HTTP/1.1 200 OK\r\n") and body == b"x" * size


def test_five_thousand_connections_are_closed_without_a_lost_reply(server: Server) -> None:
    with descriptors.limited_to(COUNT + 200), ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(COUNT)]
        # Every client gets one reply and keeps its connection. Then some clients send a request
        # and do not read the reply yet, some are in the middle of a request, and some in the
        # middle of a reply.
        for client in clients:
            ask(client, 10)
        for client in clients:
            assert client.recv(1000).endswith(b"x" * 10)
        unread, asking, slow = clients[:500], clients[500:600], clients[600:605]
        for client in unread:
            ask(client, 100_000)
        for client in asking:
            client.sendall(b"GET /1000 HTTP/1.1\r\n")
        for client in slow:
            ask(client, LONG)
        server.stop()
        with pytest.raises(ConnectionRefusedError):
            server.connect()
        for client in asking:
            client.sendall(b"Host: here\r\n\r\n")
        assert all(is_whole(read_some(client), 1000) for client in asking)
        assert all(is_whole(read_some(client), LONG) for client in slow)
        assert server.read_line() == f"closing {COUNT} connections"
        for client in unread:
            client.sendall(b"GET /1 HTTP/1.1\r\n" * 10)  # too late: the server does not read it
        assert all(is_whole(read_all(client), 100_000) for client in unread)
        for client in clients[500:]:
            await_fin(client)
            assert read_all(client) == b""
        for client in clients:
            client.close()
        assert server.out.read() == f"peer closed: {COUNT}\n"
        assert server.process.wait(DEADLINE) == 0


def read_some(client: socket.socket) -> bytes:
    """Read one reply from a server that may keep the connection open."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += client.recv(1000)
    head, body = received.split(b"\r\n\r\n", 1)
    match = re.search(rb"Content-Length: (\d+)", head)
    assert match is not None
    whole = bytearray(body)
    while len(whole) < int(match[1]):
        part = client.recv(1 << 20)
        assert part, f"the reply was cut after {len(whole)} bytes"
        whole += part
    return head + b"\r\n\r\n" + bytes(whole)


def test_peers_that_never_close_delay_the_stop_until_its_deadline(server: Server) -> None:
    with ExitStack() as stack:
        for _ in range(100):
            client = stack.enter_context(server.connect())
            ask(client, 10)
            assert is_whole(read_some(client), 10)
        server.stop()
        started = time.monotonic()
        assert server.out.read() == "closing 100 connections\ntimed out: 100\n"
        assert time.monotonic() - started < DEADLINE
        assert server.process.wait(DEADLINE) == 0


def test_http_client_sees_the_end_between_two_replies(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)
    for _ in range(2):
        connection.request("GET", "/1000")
        assert connection.getresponse().read() == b"x" * 1000
    server.stop()
    assert server.read_line() == "closing 1 connections"
    connection.request("GET", "/1000")
    with pytest.raises(
        http.client.RemoteDisconnected
    ):  # a subclass of ConnectionResetError, and no other
        connection.getresponse()
    connection.close()
    assert server.out.read() == "peer closed: 1\n"


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_reads_the_whole_reply_during_the_stop(server: Server) -> None:
    command = ["curl", "-sSfN", "--max-time", str(DEADLINE),
               f"http://127.0.0.1:{server.port}/{LONG}"]  # fmt: skip
    with ExitStack() as stack:
        curls = [
            stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            for _ in range(10)
        ]
        # A full pipe stops each curl in the middle of its reply.
        assert [os.read(curl.stdout.fileno(), 1) for curl in curls if curl.stdout] == [
            b"x"
        ] * 10
        server.stop()
        replies = [curl.communicate(timeout=DEADLINE)[0] for curl in curls]
        assert [len(reply) for reply in replies] == [LONG - 1] * 10
        assert [curl.returncode for curl in curls] == [0] * 10
    server.process.wait(DEADLINE)
