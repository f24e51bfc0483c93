"""The examples for servers that are not ours, run with the real servers."""

from __future__ import annotations

import http.client
import importlib.util
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from streams import PATIENCE

EXAMPLES = Path(__file__).parent.parent / "examples"
TRIES = 5
UPLOAD = 5_000_000
HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % UPLOAD

if sys.platform == "win32":
    pytest.skip("a child is told to end by SIGTERM", allow_module_level=True)


class Recipe(NamedTuple):
    """An example, and what its server can do."""

    needs: str
    example: str
    arguments: tuple[str, ...] = ("--port", "0")
    keeps_alive: bool = True
    reads_on: bool = False  # by itself, before it closes


def gunicorn(*arguments: str, keeps_alive: bool = True) -> Recipe:
    ours = ("--bind", "127.0.0.1:0", "--no-control-socket")  # that would be in the home folder
    return Recipe("gunicorn", "gunicorn.conf.py", (*ours, *arguments), keeps_alive)


RECIPES = {
    "http.server": Recipe("http", "http_server.py"),
    "wsgiref": Recipe("wsgiref", "wsgiref_server.py", keeps_alive=False),
    "flask": Recipe("flask", "flask_server.py", keeps_alive=False),
    "waitress": Recipe("waitress", "waitress_server.py"),
    "cheroot": Recipe("cheroot", "cheroot_server.py"),
    "uvicorn": Recipe("uvicorn", "uvicorn_server.py"),
    "hypercorn": Recipe("hypercorn", "hypercorn_server.py"),
    "aiohttp": Recipe("aiohttp", "aiohttp_server.py"),
    "tornado": Recipe("tornado", "tornado_server.py"),
    "twisted": Recipe("twisted", "twisted_server.py"),
    "gevent": Recipe("gevent", "gevent_server.py", reads_on=True),
    "asyncio": Recipe("asyncio", "asyncio_server.py"),
    "trio": Recipe("trio", "trio_server.py"),
    "anyio": Recipe("anyio", "anyio_server.py"),
    "gunicorn-sync": gunicorn(keeps_alive=False),
    "gunicorn-gthread": gunicorn("-k", "gthread"),
    "gunicorn-asgi": gunicorn("-k", "asgi", "uvicorn_server:app"),
}


class Server:
    """An example at work."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.output = b""
        example = str(EXAMPLES / recipe.example)
        run = ["-m", "gunicorn", "-c", example] if recipe.needs == "gunicorn" else [example]
        self.process = subprocess.Popen(
            [sys.executable, *run, *recipe.arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            self.port = self._listening_port()
        except BaseException:
            self.kill()
            raise

    def _listening_port(self) -> int:
        """The port of the first address that it prints."""
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        give_up = time.monotonic() + PATIENCE
        while (found := re.search(rb"127\.0\.0\.1:(\d+)\D", self.output)) is None:
            left = max(0, give_up - time.monotonic())
            assert select.select([descriptor], [], [], left)[0], self.output.decode()
            chunk = os.read(descriptor, 65536)
            assert chunk, self.output.decode()
            self.output += chunk
        return int(found[1])

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def await_stop_of_listening(self, seconds: float) -> None:
        """Until it refuses connections; some listen up to their end, hence the limit."""
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up:
            try:
                with self.connect():
                    select.select([], [], [], 0.02)
            except OSError:
                return  # ECONNREFUSED, or ECONNRESET by the end of the listener

    def await_end(self) -> int:
        """Its exit status; it is killed if it does not end by itself."""
        try:
            self.output += self.process.communicate(timeout=PATIENCE)[0]
        except subprocess.TimeoutExpired:
            self.kill()
        return self.process.returncode

    def kill(self) -> None:
        """Make sure that it has ended."""
        if self.process.returncode is None:
            self.process.kill()
            self.output += self.process.communicate()[0]


def read_reply(sock: socket.socket) -> tuple[int, int, int]:
    """Its status, the length that it was said to have, and the length that it has."""
    reply = b""
    while True:
        head, end, body = reply.partition(b"\r\n\r\n")
        if end:
            stated = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
            assert stated is not None, head
            if len(body) >= int(stated[1]):
                return int(head.split()[1]), int(stated[1]), len(body)
        chunk = sock.recv(1 << 20)
        assert chunk, f"the stream ended in {reply[:200]!r}"
        reply += chunk


@pytest.fixture(scope="module", params=RECIPES)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Started once for the tests below, the last of which ends it."""
    recipe = RECIPES[request.param]
    if importlib.util.find_spec(recipe.needs) is None:
        pytest.skip(f"needs {recipe.needs}")
    started = Server(recipe)
    yield started
    started.kill()


def test_a_client_that_sends_all_before_it_reads_gets_the_early_reply(server: Server) -> None:
    for _ in range(TRIES):
        with server.connect() as client:
            client.sendall(HEAD + bytes(UPLOAD))
            status, stated, length = read_reply(client)
        assert (status, length) == (413, stated)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_gets_the_early_reply(server: Server, tmp_path: Path) -> None:
    upload = tmp_path / "upload"
    upload.write_bytes(bytes(UPLOAD))
    replies = [
        subprocess.run(
            ["curl", "-sS", "-H", "Expect:", "--data-binary", f"@{upload}", "-o", os.devnull,
             "-w", "%{http_code}", "--max-time", "20", f"http://127.0.0.1:{server.port}/"],
            capture_output=True, text=True, check=False,
        )
        for _ in range(TRIES)
    ]  # fmt: skip
    # 0: as many bytes as Content-Length says.
    assert [(curl.returncode, curl.stdout) for curl in replies] == [(0, "413")] * TRIES


def test_a_connection_is_kept_alive_as_ever(server: Server) -> None:
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    connections: list[object] = []
    for _ in range(3):
        client.request("GET", "/")
        connections.append(client.sock)
        assert client.getresponse().read() == b"hello\n"
    client.close()
    assert len(set(connections)) == (1 if server.recipe.keeps_alive else 3)


def test_sigterm_ends_it_and_what_is_in_flight_is_finished(server: Server) -> None:
    with server.connect() as client:
        client.sendall(HEAD)
        status, stated, length = read_reply(client)
        assert (status, length) == (413, stated)
        if not server.recipe.reads_on:
            assert client.recv(1) == b""  # its FIN
            # Who answers the next has handed the last one over. A signal's exception on the way
            # would have ended it at once.
            with server.connect() as another:
                another.sendall(HEAD)
                read_reply(another)
        server.process.send_signal(signal.SIGTERM)
        server.await_stop_of_listening(1)
        client.sendall(bytes(4 * UPLOAD))  # more than the kernels hold; RST would end it
    assert server.await_end() == 0, server.output.decode()
    # asyncio of CPython 3.13.0 stumbles now and then over a transport that it had left behind,
    # when the interpreter is going: _SelectorTransport.__del__(), Server._wakeup(). Not ours.
    said = re.sub(
        rb"Exception ignored in: <function _SelectorTransport.__del__.*?is not iterable\n",
        b"",
        server.output,
        flags=re.DOTALL,
    )
    assert b"Traceback" not in said, server.output.decode()
