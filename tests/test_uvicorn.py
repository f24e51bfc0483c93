"""uvicorn, started from the command line with one more option."""

from __future__ import annotations

import http.client
import os
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from certificates import CERTIFICATE, NAME, client_context
from graceful_close.uvicorn import new_asyncio_loop
from programs import Program
from pythons import MIXED_UP_TLS, PYPY
from streams import DEADLINE, await_fin, read_all
from uvicorn_app import HELLO, REFUSAL

pytest.importorskip("uvicorn")
if sys.platform == "win32":
    pytest.skip("the test ends its child with SIGTERM", allow_module_level=True)

TESTS = Path(__file__).parent
TRIES = 3
UPLOAD = 5_000_000
HEAD = (
    b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    % UPLOAD
)
NEW_LOOP = "graceful_close.uvicorn:new_loop"
NEW_ASYNCIO_LOOP = "graceful_close.uvicorn:new_asyncio_loop"


class Started(NamedTuple):
    """A way to start uvicorn.

    Attributes:
        options: The options besides the application, with placeholders.
        environment: Additional environment variables.
        kind: The kind of connection: "tcp", "unix", "tls".
        needs: Required modules.
    """

    options: Sequence[str]
    environment: dict[str, str] = {}  # noqa: RUF012 (not changed)
    kind: str = "tcp"
    needs: Sequence[str] = ()


PORT = ("--port", "0")
TLS = ("--ssl-certfile", str(CERTIFICATE), "--ssl-keyfile", str(CERTIFICATE))
STARTED = {
    "uvloop, httptools": Started(
        ("--loop", NEW_LOOP, "--http", "httptools", *PORT), needs=("uvloop", "httptools")
    ),
    "asyncio, h11": Started(("--loop", NEW_ASYNCIO_LOOP, "--http", "h11", *PORT)),
    "UVICORN_LOOP": Started(PORT, {"UVICORN_LOOP": NEW_LOOP}),
    "--workers": Started(("--loop", NEW_LOOP, "--workers", "2", *PORT)),
    "--reload": Started(("--loop", NEW_LOOP, "--reload", "--reload-dir", "{folder}", *PORT)),
    "--uds": Started(("--loop", NEW_LOOP, "--uds", "{folder}/socket"), kind="unix"),
    "--uds, asyncio": Started(
        ("--loop", NEW_ASYNCIO_LOOP, "--uds", "{folder}/socket"), kind="unix"
    ),
    "--fd": Started(("--loop", NEW_LOOP, "--fd", "{listener}"), kind="unix"),
    "TLS": Started(("--loop", NEW_LOOP, *TLS, *PORT), kind="tls"),
    "TLS, asyncio": Started(("--loop", NEW_ASYNCIO_LOOP, *TLS, *PORT), kind="tls"),
}


class Server(Program):
    """A running uvicorn."""

    def __init__(self, started: Started, folder: Path, app_folder: Path = TESTS) -> None:
        self.kind = started.kind
        self.path = str(folder / "socket")
        listener = socket.socket(socket.AF_UNIX)
        with listener:
            if "--fd" in started.options:
                listener.bind(self.path)
                listener.listen()
            super().__init__(
                [
                    sys.executable, "-m", "uvicorn", "uvicorn_app:app", "--app-dir", str(app_folder),
                    *(
                        option.format(folder=folder, listener=listener.fileno())
                        for option in started.options
                    ),
                ],
                env={**os.environ, **started.environment},
                pass_fds=[listener.fileno()],
            )  # fmt: skip
        try:
            self.await_output(rb"Application startup complete")
            found = self.await_output(rb"running on .*?(?:127\.0\.0\.1:(\d+)|socket)")
            self.port = int(found[1] or 0)
        except BaseException:
            self.kill()
            raise

    @contextmanager
    def connect(self) -> Generator[socket.socket]:
        with ExitStack() as stack:
            if self.kind == "unix":
                sock = stack.enter_context(socket.socket(socket.AF_UNIX))
                sock.settimeout(DEADLINE)
                sock.connect(self.path)
            else:
                sock = stack.enter_context(self.connect_when_it_listens(self.port))
            if self.kind == "tls":
                context = client_context(ssl.TLSVersion.TLSv1_3)
                sock = stack.enter_context(context.wrap_socket(sock, server_hostname=NAME))
            yield sock

    def request(self, sock: socket.socket, method: str, body: bytes, **headers: str) -> bytes:
        """Send a request with http.client, which sends everything before it reads."""
        client = http.client.HTTPConnection("localhost")
        client.sock = sock
        client.request(method, "/", body, headers)
        response = client.getresponse()
        return response.read()


def start(how: str, folder: Path, **options: Any) -> Server:
    started = STARTED[how]
    for module in (*started.needs,):
        pytest.importorskip(module)
    return Server(started, folder, **options)


@pytest.fixture(scope="module", params=STARTED)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server for the tests below, the last of which ends it."""
    if PYPY and STARTED[request.param].kind == "tls":
        pytest.skip(MIXED_UP_TLS)
    with start(request.param, tmp_path_factory.mktemp("uvicorn")) as started:
        yield started


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_every_early_reply_arrives_complete(server: Server, connection: str) -> None:
    for _ in range(TRIES):
        with server.connect() as sock:
            body = server.request(sock, "POST", bytes(UPLOAD), Connection=connection)
        assert body == REFUSAL


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("expect", ["Expect: 100-continue", "Expect:"])
def test_curl_gets_every_early_reply(server: Server, expect: str, tmp_path: Path) -> None:
    upload = tmp_path / "upload"
    upload.write_bytes(bytes(UPLOAD))
    where = (
        ["--unix-socket", server.path, "http://localhost/"]
        if server.kind == "unix"
        else ["-k", f"{'https' if server.kind == 'tls' else 'http'}://127.0.0.1:{server.port}/"]
    )
    for _ in range(TRIES):
        curl = subprocess.run(
            ["curl", "-sS", "--http1.1", "-H", "Connection: close", "-H", expect, "--max-time",
             "20", "--data-binary", f"@{upload}", *where],
            capture_output=True, check=False,
        )  # fmt: skip
        assert (curl.returncode, curl.stdout) == (0, REFUSAL), curl.stderr


def test_a_connection_is_kept_alive(server: Server) -> None:
    with server.connect() as sock:
        client = http.client.HTTPConnection("localhost")
        client.sock = sock
        for _ in range(3):
            client.request("GET", "/")
            assert client.getresponse().read() == HELLO
            assert client.sock is sock


def test_a_websocket_works(server: Server) -> None:
    connect: Callable[..., Any] = pytest.importorskip("websockets.sync.client").connect
    with server.connect() as sock, connect("ws://localhost/", sock=sock) as client:
        for text in ("hello", "again"):
            client.send(text)
            assert client.recv(DEADLINE) == text


def test_sigterm_ends_uvicorn_after_its_pending_closes(server: Server) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(6)]
        for client in clients:
            client.sendall(HEAD + bytes(1000))
        for client in clients:
            if server.kind == "tls":
                client.recv(1)  # of the reply; its close_notify would end the poll() for a FIN
            else:
                await_fin(client)
        server.process.send_signal(signal.SIGTERM)
        server.await_output(b"Shutting down|Stopping parent process")
        for client in clients:
            # More than the buffers hold, so that RST would lose the reply.
            client.sendall(bytes(UPLOAD - 1000))
            assert read_all(client).endswith(b"\r\n\r\n" + REFUSAL)
            client.close()
    server.await_end()
    assert b"Traceback" not in server.output, server.output.decode()


# --- without the option -----------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["auto", "asyncio"])
def test_without_the_option_replies_are_lost(loop: str, tmp_path: Path) -> None:
    """This test shows that the tests above can fail."""
    with Server(Started(("--loop", loop, *PORT)), tmp_path) as server:
        lost = 0
        for _ in range(TRIES):
            with server.connect() as sock:
                try:
                    server.request(sock, "POST", bytes(UPLOAD), Connection="close")
                except ConnectionError:
                    lost += 1
        assert lost == TRIES


# --- other features ---------------------------------------------------------------------------


def test_early_replies_arrive_after_a_reload(tmp_path: Path) -> None:
    file = tmp_path / "uvicorn_app.py"
    shutil.copy(TESTS / "uvicorn_app.py", file)
    with start("--reload", tmp_path, app_folder=tmp_path) as server:
        file.write_text(file.read_text().replace("hello", "changed"))
        # uvicorn reads the times of files at its first check, which may be after this.
        changed = file.stat().st_mtime
        give_up = time.monotonic() + DEADLINE
        while b"Reloading" not in server.output:
            assert time.monotonic() < give_up, server.output.decode()
            changed += 1
            os.utime(file, (changed, changed))
            server.read_output(0.5)
        server.await_output(rb"(?s)Reloading.*Application startup complete")
        with server.connect() as sock:
            assert server.request(sock, "GET", b"") == b"changed\n"
        with server.connect() as sock:
            body = server.request(sock, "POST", bytes(UPLOAD), Connection="close")
            assert body == REFUSAL


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
@pytest.mark.parametrize("how", ["uvloop, httptools", "asyncio, h11"])
def test_hundreds_of_connections_leave_no_descriptor(how: str, tmp_path: Path) -> None:
    with start(how, tmp_path) as server:
        held = Path(f"/proc/{server.process.pid}/fd")
        before = len(list(held.iterdir()))
        for _ in range(500):
            with server.connect() as sock:
                sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                assert read_all(sock).endswith(HELLO)
        give_up = time.monotonic() + DEADLINE
        # The Reaper has a selector and a pair of sockets. The last closes may be pending.
        while len(list(held.iterdir())) > before + 3:
            assert time.monotonic() < give_up
            select.select([], [], [], 0.02)


def test_a_variable_sets_how_long_a_silent_client_delays_the_stop(
    tmp_path: Path,
) -> None:
    patient = Started(("--loop", NEW_LOOP, *PORT), {"GRACEFUL_CLOSE_IDLE_TIMEOUT": "60"})
    hurried = Started(("--loop", NEW_LOOP, *PORT), {"GRACEFUL_CLOSE_IDLE_TIMEOUT": "0"})
    with ExitStack() as stack:
        for started in (patient, hurried):
            server = stack.enter_context(Server(started, tmp_path))
            # The client keeps its connection, and does not read the server's FIN.
            sock = stack.enter_context(server.connect())
            assert server.request(sock, "GET", b"") == HELLO
            server.process.send_signal(signal.SIGTERM)
            await_fin(sock)
            if started is hurried:
                server.await_end()
            else:
                assert server.process.poll() is None
            sock.close()


@pytest.mark.parametrize("loop", ["new_uvloop", "new_asyncio_loop"])
def test_a_second_ctrl_c_ends_the_wait_for_a_silent_client(loop: str, tmp_path: Path) -> None:
    if loop == "new_uvloop":
        pytest.importorskip("uvloop")
    patience = {"GRACEFUL_CLOSE_TIMEOUT": "1000", "GRACEFUL_CLOSE_IDLE_TIMEOUT": "1000"}
    options = ("--loop", f"graceful_close.uvicorn:{loop}", *PORT)
    with Server(Started(options, patience), tmp_path) as server:
        with server.connect() as silent:
            silent.sendall(HEAD + bytes(1000))
            await_fin(silent)
            server.process.send_signal(signal.SIGINT)
            server.await_output(b"Shutting down")
            server.process.send_signal(signal.SIGINT)
            server.await_end()


@pytest.mark.parametrize("name", ["GRACEFUL_CLOSE_TIMEOUT", "GRACEFUL_CLOSE_IDLE_TIMEOUT"])
@pytest.mark.parametrize("value", ["soon", "-1", "inf"])
def test_a_variable_that_is_not_a_number_of_seconds_is_rejected(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="number of seconds"):
        new_asyncio_loop()
