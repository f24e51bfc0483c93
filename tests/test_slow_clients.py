"""Thousands of clients that do not close, and a server that continues to serve others."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from graceful_close import CloseOutcome
from graceful_close.socketserver import GracefulMixIn
from pythons import FAMILY_OF_FROMFD, PYPY
from streams import DEADLINE, wait_until
from test_socketserver import serving

if sys.platform == "win32":
    pytest.skip("Windows has no RLIMIT_NOFILE", allow_module_level=True)

import resource

CLIENTS = 2_000
IDLE, TOTAL = 0.5, 1.5  # seconds


@pytest.fixture
def affordable() -> Iterator[int]:
    """Return how many clients this process can have, with the server's ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = hard if hard != resource.RLIM_INFINITY else 1 << 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, max(soft, 3 * CLIENTS)), hard))
    yield min(CLIENTS, (most - 500) // 2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def slow_clients(address: tuple[str, int], count: int) -> Generator[None, None, None]:
    """Connect clients that do not close: half are silent, half send a byte regularly."""
    ended = threading.Event()

    def drip(socks: list[socket.socket]) -> None:
        while not ended.wait(IDLE / 5):
            for sock in socks.copy():
                try:
                    sock.send(b".")
                except OSError:
                    socks.remove(sock)  # the server gave up

    with ExitStack() as stack:
        dripping: list[socket.socket] = []
        thread = threading.Thread(target=drip, args=(dripping,))
        stack.callback(thread.join)
        stack.callback(ended.set)
        thread.start()
        for number in range(count):
            sock = stack.enter_context(socket.create_connection(address, DEADLINE))
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert sock.recv(1) != b""
            if number % 2:
                dripping.append(sock)
        yield


def get(address: tuple[str, int]) -> bytes:
    """Send a request as a normal client."""
    client = http.client.HTTPConnection(*address, timeout=DEADLINE)
    client.request("GET", "/")
    reply = client.getresponse().read()
    client.close()
    return reply


def serves_others(address: tuple[str, int], count: int) -> int:
    """Send `count` requests; return the largest number of the server's connections."""
    return max(int(get(address)) for _ in range(count))


class Handler(BaseHTTPRequestHandler):
    """Replies with the number of the server's connections."""

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"%d" % len(server.reaper))

    def log_message(self, *_args: object, **_more: object) -> None:
        pass


class Server(GracefulMixIn, HTTPServer):  # one thread
    request_queue_size = 128
    reaper_options = {"timeout": TOTAL, "idle_timeout": IDLE}  # noqa: RUF012


def test_slow_clients_do_not_block_the_one_thread_of_http_server(affordable: int) -> None:
    with serving(Server(("127.0.0.1", 0), Handler)) as server:
        address = ("127.0.0.1", server.server_port)
        with slow_clients(address, affordable):
            assert serves_others(address, 20) > 10
            wait_until(lambda: len(server.reaper) == 0)
    ended = server.reaper.stats()
    assert ended[CloseOutcome.TIMED_OUT] > 0  # the clients that drip
    assert ended[CloseOutcome.IDLE_TIMED_OUT] > 0
    assert sum(ended.values()) == affordable + 20


GUNICORN = f"""
import os
from graceful_close import GracefulListener, Reaper

reaper = Reaper(timeout={TOTAL}, idle_timeout={IDLE})

def post_fork(server, worker):
    for listening in worker.sockets:
        listening.sock = GracefulListener.adopt(listening.sock, reaper=reaper)

def post_request(worker, request, environ, response):
    environ["gunicorn.socket"].close()  # or the worker itself lingers, for 2 seconds each

def app(environ, start_response):
    start_response("200 OK", [])
    return [b"%d" % len(reaper)]
"""


@pytest.mark.skipif(PYPY, reason=FAMILY_OF_FROMFD)
def test_slow_clients_do_not_block_the_one_worker_of_gunicorn(
    affordable: int, tmp_path: Path
) -> None:
    pytest.importorskip("gunicorn")
    (tmp_path / "served.py").write_text(GUNICORN)
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        address = listener.getsockname()
        command = [
            *(sys.executable, "-m", "gunicorn", "--no-control-socket", "--log-level=critical"),
            *(f"--bind=fd://{listener.fileno()}", "--config=python:served", "served:app"),
        ]
        with subprocess.Popen(
            command, pass_fds=[listener.fileno()], cwd=tmp_path, stderr=subprocess.PIPE
        ) as process:
            try:
                with slow_clients(address, affordable):
                    assert serves_others(address, 20) > 10
                    wait_until(lambda: int(get(address)) == 0)
            finally:
                process.terminate()
                assert process.communicate(timeout=DEADLINE)[1] == b""
