"""`gunicorn -c python:graceful_close.gunicorn`, compared with gunicorn alone."""

from __future__ import annotations

import importlib.util
import signal
import ssl
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from certificates import CERTIFICATE, NAME, client_context
from test_recipes import Recipe, Server, read_reply

if sys.platform == "win32":
    pytest.skip("gunicorn needs fork()", allow_module_level=True)
if importlib.util.find_spec("gunicorn") is None:
    pytest.skip("needs gunicorn", allow_module_level=True)

OURS = "python:graceful_close.gunicorn"
TRIES = 3
UPLOAD = (
    b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    b"Content-Length: 20000000\r\n\r\n" + bytes(20_000_000)  # more than the buffers hold
)

WSGI = """
def app(environ, start_response):
    if environ["PATH_INFO"] == "/fails":
        raise RuntimeError("no answer")
    start_response("413 Content Too Large", [("Content-Length", "9"), ("Connection", "close")])
    return [b"too large"]
"""

ASGI = """
async def app(scope, receive, send):
    if scope["type"] == "http":
        headers = [(b"content-length", b"9"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": b"too large"})
"""

APPLICATIONS = {
    "sync": WSGI,
    "gthread": WSGI,
    "gevent": WSGI,
    "tornado": WSGI,
    "asgi": ASGI,
    "uvicorn_worker.UvicornWorker": ASGI,
}
OPTIONAL = {
    "gevent": "gevent",
    "tornado": "tornado",
    "uvicorn_worker.UvicornWorker": "uvicorn_worker",
}

# The tornado worker reads the whole request before it calls a WSGI application.
LOSES = ["sync", "gthread", "gevent", "asgi", "uvicorn_worker.UvicornWorker"]

Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path, stack: ExitStack) -> Start:
    """A function that starts gunicorn with a worker class; it is stopped after the test."""

    def start(
        worker: str, *arguments: str, environment: dict[str, str] | None = None
    ) -> Server:
        needs = OPTIONAL.get(worker, "gunicorn")
        if importlib.util.find_spec(needs) is None:
            pytest.skip(f"needs {needs}")
        (tmp_path / "applications.py").write_text(APPLICATIONS[worker])
        command = (
            "-m", "gunicorn", "--bind", "127.0.0.1:0",
            "--no-control-socket", "-k", worker, *arguments, "applications:app",
        )  # fmt: skip
        return stack.enter_context(Server(Recipe("gunicorn", command), tmp_path, environment))

    return start


def uploads(server: Server, context: ssl.SSLContext | None = None) -> int:
    """Run clients that send everything before they read; return how many got the reply."""
    received = 0
    for _ in range(TRIES):
        with server.connect() as plain:
            client = context.wrap_socket(plain, server_hostname=NAME) if context else plain
            with client:
                try:
                    client.sendall(UPLOAD)
                    received += read_reply(client) == (413, 9, 9)
                except OSError:  # EPIPE, ECONNRESET
                    pass
    return received


@pytest.mark.parametrize("worker", LOSES)
def test_gunicorn_loses_replies_without_the_module_and_none_with_it(
    start: Start, worker: str
) -> None:
    assert uploads(start(worker)) < TRIES
    assert uploads(start(worker, "-c", OURS)) == TRIES


@pytest.mark.parametrize("worker", APPLICATIONS)
def test_tls(start: Start, worker: str) -> None:
    files = ["--certfile", str(CERTIFICATE), "--keyfile", str(CERTIFICATE)]
    server = start(worker, "-c", OURS, *files)
    assert uploads(server, client_context(ssl.TLSVersion.TLSv1_3)) == TRIES


def test_options_are_read_from_the_environment(start: Start) -> None:
    server = start("gthread", environment={"GUNICORN_CMD_ARGS": f"-c {OURS}"})
    assert uploads(server) == TRIES


@pytest.mark.parametrize("worker", ["sync", "gthread", "gevent"])
def test_gunicorn_replies_for_an_application_that_raises(start: Start, worker: str) -> None:
    with start(worker, "-c", OURS).connect() as client:
        client.sendall(b"GET /fails HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_reply(client)[0] == 500


def test_replacement_workers_close_gracefully(start: Start) -> None:
    server = start("sync", "-c", OURS)
    assert uploads(server) == TRIES
    server.process.send_signal(signal.SIGHUP)
    server.await_output(rb"Worker exiting")
    assert uploads(server) == TRIES


def test_a_configuration_with_hooks_can_call_ours(start: Start, tmp_path: Path) -> None:
    configuration = tmp_path / "own.py"
    configuration.write_text("""
from graceful_close import gunicorn as graceful

def post_fork(server, worker):
    graceful.post_fork(server, worker, timeout=8)
    worker.log.info("in a hook of its own")
""")
    server = start("gthread", "-c", str(configuration))
    assert uploads(server) == TRIES
    server.await_output(rb"in a hook of its own")


@pytest.mark.parametrize("worker", ["gthread", "gevent"])
def test_a_worker_ends_after_its_last_pending_close(start: Start, worker: str) -> None:
    server = start(worker, "-c", OURS)
    with server.connect() as client:
        client.sendall(UPLOAD[:1000])
        assert read_reply(client) == (413, 9, 9)
        assert client.recv(1) == b""
        server.process.send_signal(signal.SIGTERM)
        server.await_output(rb"Worker exiting")
        client.sendall(UPLOAD[1000:])
    assert server.await_end() == 0  # before graceful_timeout, which is 30 seconds


def test_the_replacement_of_uvloop_is_logged(start: Start) -> None:
    pytest.importorskip("uvloop")
    server = start("uvicorn_worker.UvicornWorker", "-c", OURS)
    server.await_output(rb"the event loop is asyncio's, instead of 'auto'")


def test_the_limits_of_the_gevent_worker_are_logged(start: Start) -> None:
    server = start("gevent", "-c", OURS)
    server.await_output(rb"gevent accepts below the socket object")


SLOW_TO_EXIT = """
from graceful_close import gunicorn as graceful
from graceful_close.gunicorn import *

def post_fork(server, worker):
    graceful.post_fork(server, worker, timeout=1000, idle_timeout=1000)
"""


@pytest.mark.parametrize("worker", ["sync", "gthread"])
def test_a_silent_client_does_not_delay_the_replacement_of_the_worker(
    start: Start, worker: str, tmp_path: Path
) -> None:
    configuration = tmp_path / "own.py"
    configuration.write_text(SLOW_TO_EXIT)
    server = start(worker, "-c", str(configuration), "--max-requests", "1")
    with server.connect() as silent:
        silent.sendall(UPLOAD[:1000])
        assert read_reply(silent) == (413, 9, 9)
        assert uploads(server) == TRIES  # by three other workers, one after another


DRAINED = (
    WSGI
    + """
from graceful_close.wsgi import DrainMiddleware
app = DrainMiddleware(app, timeout=1000, idle_timeout=None)
"""
)


def test_the_middleware_does_not_occupy_a_worker_until_gunicorn_kills_it(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(APPLICATIONS, "sync", DRAINED)
    server = start("sync", "--timeout", "2")
    with server.connect() as silent, server.connect() as another:
        silent.sendall(UPLOAD[:1000])
        another.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert read_reply(another) == (413, 9, 9)
    server.process.terminate()
    assert server.await_end() == 0
    assert b"WORKER TIMEOUT" not in server.output, server.output.decode()
