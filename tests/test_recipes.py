"""The examples for other servers, run with these servers."""

from __future__ import annotations

import contextlib
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
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from programs import Program
from streams import DEADLINE, meanwhile

if sys.platform == "win32":
    pytest.skip("the test ends its child with SIGTERM", allow_module_level=True)

EXAMPLES = Path(__file__).parent.parent / "examples"
TRIES = 5
UPLOAD = 5_000_000
CLIENTS = 6
READABLE = select.POLLIN
FIN = getattr(select, "POLLRDHUP", READABLE)  # macOS cannot wait for the acknowledgement alone
# Some servers continue to read unless the client requests a close, as nginx does by default.
HEAD = (
    b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n" % UPLOAD
)


class Recipe(NamedTuple):
    """The command of an example, and the features of its server."""

    needs: str
    command: tuple[str, ...]
    keeps_alive: bool = True
    drains: bool = False  # the server itself drains before it closes


def program(needs: str, keeps_alive: bool = True, drains: bool = False) -> Recipe:
    command = (f"{needs}_server.py", "--port", "0")
    return Recipe(needs.split("_", maxsplit=1)[0], command, keeps_alive, drains)


def gunicorn(
    worker: str,
    *arguments: str,
    needs: str = "gunicorn",
    keeps_alive: bool = True,
) -> Recipe:
    # The control socket would be in the home folder.
    ours = ("--bind", "127.0.0.1:0", "--no-control-socket", "-k", worker, *arguments)
    command = ("-m", "gunicorn", "-c", "gunicorn.conf.py", *ours)
    return Recipe(needs, command, keeps_alive)


RECIPES = {
    "http.server": program("http"),
    "wsgiref": program("wsgiref", keeps_alive=False),
    "flask": program("flask", keeps_alive=False),
    "bottle": program("bottle", keeps_alive=False),
    "waitress": program("waitress"),
    "pserve": Recipe("pyramid", ("-m", "pyramid.scripts.pserve", "pserve.ini", "port=0")),
    "cheroot": program("cheroot"),
    "cherrypy": program("cherrypy"),
    "uvicorn": program("uvicorn"),
    "hypercorn": program("hypercorn"),
    "aiohttp": program("aiohttp"),
    "tornado": program("tornado"),
    "twisted": program("twisted"),
    "gevent": program("gevent", drains=True),
    "eventlet": program("eventlet"),
    "asyncio": program("asyncio"),
    "trio": program("trio"),
    "anyio": program("anyio"),
    "gunicorn-sync": gunicorn("sync", keeps_alive=False),
    "gunicorn-gthread": gunicorn("gthread"),
    "gunicorn-gevent": gunicorn("gevent", needs="gevent"),
    "gunicorn-tornado": gunicorn("tornado", "tornado_server:app", needs="tornado"),
    "gunicorn-asgi": gunicorn("asgi", "uvicorn_server:app"),
    "gunicorn-uvicorn": gunicorn(
        "uvicorn_worker.UvicornWorker", "uvicorn_server:app", needs="uvicorn_worker"
    ),
}


class Server(Program):
    """A running example."""

    def __init__(
        self, recipe: Recipe, folder: Path = EXAMPLES, environment: dict[str, str] | None = None
    ) -> None:
        self.recipe = recipe
        super().__init__(
            [sys.executable, *recipe.command],
            cwd=folder,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        try:
            # The port of the first address that it prints.
            self.port = int(self.await_output(rb"127\.0\.0\.1:(\d+)\D")[1])
            assert self.port != 8413, (
                "it listens at its default, not at the port of its command"
            )
            if recipe.needs == "cherrypy":
                self.await_output(rb"Bus STARTED")  # before that SIGTERM kills it
        except BaseException:
            self.kill()
            raise

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE)

    def await_stop_of_listening(self, seconds: float) -> None:
        """Wait until the server refuses connections. Some servers listen until their end."""
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=0.1):
                    select.select([], [], [], 0.02)
            except OSError:
                return  # ECONNREFUSED, ECONNRESET from the closed listener, or a full backlog

    def kill(self) -> None:
        """Kill the process, if it runs."""
        if self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)  # and gunicorn's workers
            self.output += self.process.communicate()[0]


def read_reply(sock: socket.socket) -> tuple[int, int, int]:
    """Read a reply; return its status, its Content-Length, and its length."""
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
def recipe(request: pytest.FixtureRequest) -> Recipe:
    recipe = RECIPES[request.param]
    if importlib.util.find_spec(recipe.needs) is None:
        pytest.skip(f"needs {recipe.needs}")
    return recipe


@pytest.fixture(scope="module")
def server(recipe: Recipe) -> Iterator[Server]:
    """A server for the tests that do not end it."""
    with Server(recipe) as started:
        yield started


def test_a_client_that_sends_everything_before_it_reads_gets_the_early_reply(
    server: Server,
) -> None:
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
    # 0: as many bytes as the Content-Length.
    assert [(curl.returncode, curl.stdout) for curl in replies] == [(0, "413")] * TRIES


def test_a_connection_is_kept_alive(server: Server) -> None:
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)
    connections: list[object] = []
    for _ in range(3):
        client.request("GET", "/")
        connections.append(client.sock)
        assert client.getresponse().read() == b"hello\n"
    client.close()
    assert len(set(connections)) == (1 if server.recipe.keeps_alive else 3)


def await_refusal(client: socket.socket, event: int) -> None:
    poll = select.poll()
    poll.register(client, event)
    assert poll.poll(DEADLINE * 1000), "no reply"


def upload_slowly(client: socket.socket, stopped: threading.Event) -> tuple[int, bool]:
    """Upload until the server gets SIGTERM, send the rest, and read the reply."""
    client.sendall(HEAD)
    await_refusal(client, READABLE)
    sent = 0
    while not stopped.is_set() and sent < UPLOAD:
        sent += client.send(bytes(8192))
        stopped.wait(0.02)
    # More than the buffers hold, so that RST would truncate the reply.
    client.sendall(bytes(4 * UPLOAD))
    status, stated, length = read_reply(client)
    return status, length == stated


def test_sigterm_ends_the_server_after_its_pending_closes(recipe: Recipe) -> None:
    with Server(recipe) as server:
        stop_in_the_midst_of_uploads(server)


def stop_in_the_midst_of_uploads(server: Server) -> None:
    """Send SIGTERM during uploads that are rejected; each client must read its reply."""
    stopped = threading.Event()
    with contextlib.ExitStack() as uploads:
        clients = [uploads.enter_context(server.connect()) for _ in range(CLIENTS)]
        replies = [
            uploads.enter_context(meanwhile(partial(upload_slowly, client, stopped)))
            for client in clients
        ]
        uploads.callback(stopped.set)
        for client in clients:
            await_refusal(client, READABLE if server.recipe.drains else FIN)
        if not server.recipe.drains:
            # A reply to the next client proves that the last connection was submitted. The
            # exception of a signal before that would have closed it immediately.
            with server.connect() as another:
                another.sendall(HEAD)
                read_reply(another)
        server.process.send_signal(signal.SIGTERM)
        server.await_stop_of_listening(1)
    assert replies == [[(413, True)]] * CLIENTS
    assert server.await_end() == 0, server.output.decode()
    # asyncio of CPython 3.13.0 sometimes fails at exit because of an unclosed transport:
    # _SelectorTransport.__del__(), Server._wakeup(). This is not a bug of the library.
    errors = re.sub(
        rb"Exception ignored in: <function _SelectorTransport.__del__.*?is not iterable\n",
        b"",
        server.output,
        flags=re.DOTALL,
    )
    assert b"Traceback" not in errors, server.output.decode()
