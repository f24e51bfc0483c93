"""DrainMiddleware: early replies of applications arrive, on every server."""

from __future__ import annotations

import http.client
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest

from early_apps import BIG, PIECES, REFUSAL
from started import free_port
from streams import DEADLINE

HERE = Path(__file__).parent
UPLOAD = 5_000_000
PATHS = {
    "/small": (401, REFUSAL),
    "/unsized": (401, REFUSAL),
    "/big": (413, BIG),
    "/stream": (413, b"".join(PIECES)),
    "/part": (200, b"hello\n"),
    "/reads": (200, b"%d\n" % UPLOAD),
}

if sys.platform == "win32":
    pytest.skip("most of these servers do not run there", allow_module_level=True)

GUNICORN = ("gunicorn", "--no-control-socket", "-b", "127.0.0.1:{port}")
IN_GREENLETS = """
import sys
{patch}
import early_apps
{serve}
"""
EVENTLET = IN_GREENLETS.format(
    patch="import eventlet, eventlet.wsgi\neventlet.monkey_patch()",
    serve="address = '127.0.0.1', int(sys.argv[1])\n"
    "eventlet.wsgi.server(eventlet.listen(address), early_apps.wsgi)",
)
PYWSGI = IN_GREENLETS.format(
    patch="from gevent import monkey\nmonkey.patch_all()\nfrom gevent.pywsgi import WSGIServer",
    serve="WSGIServer(('127.0.0.1', int(sys.argv[1])), early_apps.wsgi).serve_forever()",
)
CHEROOT = """
import sys
from cheroot.wsgi import Server
import early_apps
Server(("127.0.0.1", int(sys.argv[1])), early_apps.wsgi).start()
"""
WSGIREF = """
import sys
from wsgiref.simple_server import make_server
import early_apps
make_server("127.0.0.1", int(sys.argv[1]), early_apps.wsgi).serve_forever()
"""
WERKZEUG = """
import sys
from werkzeug.serving import run_simple
import early_apps
run_simple("127.0.0.1", int(sys.argv[1]), early_apps.wsgi, threaded=True)
"""


UWSGI = "import sys, pyuwsgi; pyuwsgi.run(sys.argv[1:])"


class Command(NamedTuple):
    """The command of a server."""

    arguments: tuple[str, ...]
    chunked: bool = True  # whether it can read such a request
    before_reply: bool = False  # the modules that it needs


def module(*arguments: str, **more: Any) -> Command:
    return Command(("-m", *arguments), **more)


SERVERS = {
    "gunicorn": module(*GUNICORN, "early_apps:wsgi"),
    "gunicorn -k gthread": module(*GUNICORN, "-k", "gthread", "early_apps:wsgi"),
    "gunicorn -k gevent": module(*GUNICORN, "-k", "gevent", "early_apps:wsgi"),
    "gunicorn -k asgi": module(*GUNICORN, "-k", "asgi", "early_apps:asgi"),
    "uvicorn": module("uvicorn", "--port", "{port}", "early_apps:asgi"),
    "uvicorn --loop asyncio --http h11": module(
        "uvicorn", "--loop", "asyncio", "--http", "h11", "--port", "{port}", "early_apps:asgi"
    ),
    "uvicorn --workers 2": module(
        "uvicorn", "--workers", "2", "--port", "{port}", "early_apps:asgi"
    ),
    "hypercorn": module("hypercorn", "-b", "127.0.0.1:{port}", "early_apps:asgi"),
    "hypercorn -k trio": module(
        "hypercorn", "-k", "trio", "-b", "127.0.0.1:{port}", "early_apps:asgi"
    ),
    "granian --interface asgi": module(
        "granian", "--interface", "asgi", "--port", "{port}", "early_apps:asgi",
        before_reply=True,
    ),
    "granian --interface wsgi": module(
        "granian", "--interface", "wsgi", "--port", "{port}", "early_apps:wsgi"
    ),
    "uwsgi --http-socket": Command(
        ("-c", UWSGI, "--http-socket", "127.0.0.1:{port}", "--module", "early_apps:wsgi"),
        chunked=False,
    ),
    "uwsgi --http": Command(
        ("-c", UWSGI, "--http", "127.0.0.1:{port}", "--module", "early_apps:wsgi"),
        chunked=False,
    ),
    "eventlet": Command(("-c", EVENTLET, "{port}")),
    "gevent": Command(("-c", PYWSGI, "{port}")),
    "cheroot": Command(("-c", CHEROOT, "{port}"), chunked=False),
    "wsgiref": Command(("-c", WSGIREF, "{port}"), chunked=False),
    "werkzeug": Command(("-c", WERKZEUG, "{port}")),
    "waitress": module("waitress", "--listen=127.0.0.1:{port}", "early_apps:wsgi"),
}  # fmt: skip


class Server:
    """A running server."""

    def __init__(self, name: str, log: Path, **environment: str) -> None:
        command = SERVERS[name]
        self.name = name
        self.log = log
        self.port = free_port()
        arguments = [one.replace("{port}", str(self.port)) for one in command.arguments]
        if command.before_reply:
            environment["EARLY_BEFORE_REPLY"] = "1"
        path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                stdout=output,
                stderr=output,
                env={**os.environ, **environment, "PYTHONPATH": path},
                start_new_session=True,
            )
        try:
            self._await()
        except BaseException:
            self.kill()
            raise

    def _await(self) -> None:
        give_up = time.monotonic() + DEADLINE
        while True:
            try:
                if self.exchange("GET", "/")[0] == 200:
                    return
            except (OSError, http.client.HTTPException):
                pass  # the server does not listen yet, or has no worker
            assert time.monotonic() < give_up, self.output()
            assert self.process.poll() is None, self.output()
            time.sleep(0.02)

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def exchange(self, method: str, path: str, **more: Any) -> tuple[int, bytes]:
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        try:
            client.request(method, path, **more)
            reply = client.getresponse()
            return reply.status, reply.read()
        finally:
            client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)  # and its workers
        except ProcessLookupError:
            pass
        self.process.wait()


def started(name: str, log: Path, **environment: str) -> Server:
    needs = ["pyuwsgi" if "uwsgi" in name else name.split(maxsplit=1)[0]]
    if name.endswith("-k gevent"):
        needs.append("gevent")
    for module_name in needs:
        if importlib.util.find_spec(module_name) is None:
            pytest.skip(f"needs {module_name}")
    return Server(name, log, **environment)


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with started(request.param, tmp_path_factory.mktemp("server") / "log") as made:
        yield made


def ask(server: Server, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
    return server.exchange("POST", path, body=bytes(UPLOAD), headers=headers)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("headers", [{}, {"Connection": "close"}], ids=["kept", "close"])
def test_a_client_that_sends_everything_before_it_reads_gets_the_reply(
    server: Server, path: str, headers: dict[str, str]
) -> None:
    assert ask(server, path, headers) == PATHS[path], server.output()


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("path", ["/small", "/big"])
def test_curl_gets_the_reply_with_and_without_100_continue(
    server: Server, path: str, tmp_path: Path
) -> None:
    upload = tmp_path / "upload"
    upload.write_bytes(bytes(UPLOAD))
    ways = [[], ["-H", "Expect:"]]
    if SERVERS[server.name].chunked:
        ways += [[*way, "-H", "Transfer-Encoding: chunked"] for way in ways]
    for way in ways:
        curl = subprocess.run(
            ["curl", "-sS", *way, "--data-binary", f"@{upload}", "-o", os.devnull,
             "-w", "%{http_code} %{size_download}", "--max-time", "20",
             f"http://127.0.0.1:{server.port}{path}"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        status, body = PATHS[path]
        assert (curl.returncode, curl.stdout) == (0, f"{status} {len(body)}"), way


def test_the_servers_own_reply_for_an_application_that_raises_arrives(server: Server) -> None:
    try:
        status, _ = ask(server, "/raises", {"Connection": "close"})
    except http.client.RemoteDisconnected:
        status = 500 if "uwsgi" in server.name else 0  # it closes without a reply
    assert status == 500


@pytest.mark.parametrize("name", ["gunicorn", "gunicorn -k gthread", "uvicorn", "wsgiref"])
def test_the_application_loses_replies_without_the_middleware(
    name: str, tmp_path: Path
) -> None:
    lost = 0
    with started(name, tmp_path / "log", EARLY_PLAIN="1") as server:
        for _ in range(10):
            try:
                ask(server, "/big", {"Connection": "close"})
            except OSError:
                lost += 1
    assert lost


@contextmanager
def connected(
    name: str, log: Path, **environment: str
) -> Generator[tuple[Server, socket.socket]]:
    """Start a server, and connect a client to it."""
    with started(name, log, **environment) as server:
        address = ("127.0.0.1", server.port)
        with socket.create_connection(address, timeout=DEADLINE) as client:
            yield server, client


# With the path, the length of the body, and more lines.
HEAD = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n%b\r\n"
CLOSE, EXPECT = b"Connection: close\r\n", b"Expect: 100-continue\r\n"
BOUNDED = ["gunicorn", "gunicorn -k gthread", "uvicorn", "hypercorn", "wsgiref", "werkzeug"]


@pytest.mark.parametrize("name", BOUNDED)
def test_the_idle_timeout_limits_the_wait_for_a_client_that_stops_sending(
    name: str, tmp_path: Path
) -> None:
    with connected(name, tmp_path / "log", EARLY_IDLE_TIMEOUT="0.3") as (server, client):
        client.sendall(HEAD % (b"/small", 5000, CLOSE) + bytes(1000))
        received = b""
        try:
            while chunk := client.recv(4096):
                received += chunk
        except ConnectionResetError:
            pass  # after the timeout it closes as it does without the middleware
        client.close()
        assert received.endswith(REFUSAL), received
        assert server.exchange("GET", "/") == (200, b"hello\n")


# Not werkzeug, which continues to read by itself.
@pytest.mark.parametrize("name", [name for name in BOUNDED if name != "werkzeug"])
def test_the_timeout_limits_the_drain_of_a_client_that_continues_to_send(
    name: str, tmp_path: Path
) -> None:
    with connected(name, tmp_path / "log", EARLY_TIMEOUT="0.5") as (_, client):
        began = time.monotonic()
        client.sendall(HEAD % (b"/small", UPLOAD, CLOSE))
        try:
            while time.monotonic() < began + DEADLINE:
                client.sendall(bytes(100))
                time.sleep(0.01)
        except OSError:
            pass  # the connection has ended
        assert time.monotonic() < began + DEADLINE


@pytest.mark.parametrize("name", ["uvicorn", "granian --interface wsgi", "eventlet"])
def test_a_client_that_waits_for_100_continue_gets_the_reply_without_it(
    name: str, tmp_path: Path
) -> None:
    with connected(name, tmp_path / "log") as (_, client):
        client.sendall(HEAD % (b"/small", UPLOAD, EXPECT))
        received = b""
        while not received.endswith(REFUSAL):
            chunk = client.recv(4096)
            assert chunk, received
            received += chunk
        assert received.startswith(b"HTTP/1.1 401"), received


@pytest.mark.parametrize("name", ["cheroot", "gunicorn", "hypercorn"])
def test_a_client_that_got_100_continue_gets_the_reply(name: str, tmp_path: Path) -> None:
    with connected(name, tmp_path / "log") as (_, client), client.makefile("rb") as replies:
        client.sendall(HEAD % (b"/big", UPLOAD, CLOSE + EXPECT))
        assert b" 100 " in replies.readline()
        while replies.readline().strip():
            pass
        client.sendall(bytes(UPLOAD))
        assert b" 413 " in replies.readline()
        assert replies.read().endswith(b"\r\n\r\n" + BIG)


KEPT = ["gunicorn -k gthread", "uvicorn", "hypercorn", "granian --interface wsgi", "gevent"]


@pytest.mark.parametrize("name", KEPT)
def test_the_connection_is_kept_after_an_early_reply(name: str, tmp_path: Path) -> None:
    connections: set[int] = set()
    with (
        started(name, tmp_path / "log") as server,
        closing(
            http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)
        ) as client,
    ):
        for path in ("/small", "/big", "/part", "/reads"):
            client.request("POST", path, body=bytes(UPLOAD))
            connections.add(id(client.sock))
            reply = client.getresponse()
            assert (reply.status, reply.read()) == PATHS[path]
        assert len(connections) == 1
