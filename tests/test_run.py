"""`graceful-close run -- COMMAND`: unchanged servers that close gracefully."""

from __future__ import annotations

import ast
import colorsys
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import zipfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from certificates import CERTIFICATE, NAME, client_context
from event_loops import LOOPS
from graceful_close import _environment
from programs import Program
from pythons import without_coverage
from streams import DEADLINE, await_fin, read_all

if sys.platform == "win32":
    pytest.skip("the test ends its child with SIGTERM", allow_module_level=True)

TESTS = Path(__file__).parent
TRIES = 3
UPLOAD = 5_000_000
HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % UPLOAD

RUN = (sys.executable, "-m", "graceful_close", "run")

HTTP_SERVER = """
import ssl, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.send_response(413)
        self.send_header("Content-Length", "65536")
        self.end_headers()
        self.wfile.write(bytes(65536))

server = HTTPServer(("127.0.0.1", 0), Handler)
print("on 127.0.0.1:%d" % server.server_port, flush=True)
if len(sys.argv) > 1:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1])
    server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""

# A protocol for programs of asyncio.
REFUSES = """
import asyncio, socket, sys

class Refuses(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.transport.write(b"HTTP/1.1 413 No\\r\\nContent-Length: 65536\\r\\n\\r\\n" + bytes(65536))
        self.transport.close()
"""

RUN_MAIN = """
if len(sys.argv) > 1:
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""

ASYNCIO_SERVER = (
    REFUSES
    + """
async def main():
    server = await asyncio.get_running_loop().create_server(Refuses, "127.0.0.1", 0)
    print("on 127.0.0.1:%d" % server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
"""
    + RUN_MAIN
)

WSGI = """
def app(environ, start_response):
    start_response("413 No", [("Content-Length", "65536")])
    return [bytes(65536)]
"""

TRIO_SERVER = """
import trio

async def echo(stream):
    async for data in stream:
        await stream.send_all(data)

async def main():
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, echo, 0)
        print("on 127.0.0.1:%d" % listeners[0].socket.getsockname()[1], flush=True)

trio.run(main)
"""

GEVENT_SERVER = """
from gevent import monkey
monkey.patch_all()
import socket

listener = socket.create_server(("127.0.0.1", 0))
print("on 127.0.0.1:%d" % listener.getsockname()[1], flush=True)
while True:
    sock, _ = listener.accept()
    sock.sendall(sock.recv(100))
    sock.close()
"""


class Server(Program):
    """A running command that prints its address."""

    def connect(self) -> socket.socket:
        port = int(self.await_output(rb"127\.0\.0\.1:([1-9]\d*)\D")[1])
        return self.connect_when_it_listens(port)


@contextmanager
def serving(
    folder: Path, *command: str, run: Sequence[str] = (*RUN, "--")
) -> Generator[Server]:
    for name, program in {
        "http_server.py": HTTP_SERVER,
        "asyncio_server.py": ASYNCIO_SERVER,
        "trio_server.py": TRIO_SERVER,
        "gevent_server.py": GEVENT_SERVER,
        "wsgi.py": WSGI,
    }.items():
        (folder / name).write_text(program)
    with Server([*run, *command], cwd=folder) as server:
        yield server


def upload(sock: socket.socket) -> bytes:
    """Send the whole request before anything is read."""
    with sock:
        sock.sendall(HEAD + bytes(UPLOAD))
        return read_all(sock)


COMMANDS = {
    "http.server": ("python", "http_server.py"),
    "asyncio": ("python", "asyncio_server.py"),
    "uvloop": ("python", "asyncio_server.py", "on uvloop"),
    "gunicorn": ("python", "-m", "gunicorn", "-b", "127.0.0.1:0", "--no-control-socket", "wsgi:app"),
    "gunicorn gthread": ("python", "-m", "gunicorn", "-b", "127.0.0.1:0", "-k", "gthread",
                         "--no-control-socket", "wsgi:app"),
    "waitress": ("python", "-m", "waitress", "--max-request-body-size", "1000", "--listen",
                 "127.0.0.1:0", "wsgi:app"),
    "uvicorn": ("python", "-m", "uvicorn", "--app-dir", str(TESTS), "--port", "0", "uvicorn_app:app"),
    "uvicorn --workers": ("python", "-m", "uvicorn", "--app-dir", str(TESTS), "--port", "0",
                          "--workers", "2", "uvicorn_app:app"),
    "uvicorn --reload": ("python", "-m", "uvicorn", "--app-dir", str(TESTS), "--port", "0",
                         "--reload", "uvicorn_app:app"),
}  # fmt: skip


def in_this_python(command: Sequence[str]) -> list[str]:
    for word in command:
        if word in {"gunicorn", "waitress", "uvicorn"}:
            pytest.importorskip(word)
    if "on uvloop" in command and "uvloop" not in LOOPS:
        pytest.skip("needs uvloop")
    return [sys.executable if word == "python" else word for word in command]


@pytest.mark.parametrize("how", COMMANDS)
def test_every_early_reply_of_an_unchanged_server_arrives_complete(
    how: str, tmp_path: Path
) -> None:
    with serving(tmp_path, *in_this_python(COMMANDS[how])) as server:
        for _ in range(TRIES):
            reply = upload(server.connect())
            head, _, body = reply.partition(b"\r\n\r\n")
            stated = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
            assert stated is not None, reply[:200]
            assert (head[9:10], len(body)) == (b"4", int(stated[1]))
    assert b"Traceback" not in server.output, server.output.decode()


@pytest.mark.parametrize("how", ["http.server", "asyncio", "uvloop"])
def test_without_run_the_reply_is_lost(how: str, tmp_path: Path) -> None:
    """This test shows that the test above can fail."""
    with serving(tmp_path, *in_this_python(COMMANDS[how]), run=()) as server:
        with pytest.raises(ConnectionError):
            upload(server.connect())


def test_a_tls_server_closes_gracefully(tmp_path: Path) -> None:
    context = client_context(ssl.TLSVersion.TLSv1_3)
    with serving(tmp_path, sys.executable, "http_server.py", str(CERTIFICATE)) as server:
        sock = context.wrap_socket(server.connect(), server_hostname=NAME)
        assert upload(sock).endswith(bytes(65536))


def test_sigterm_ends_the_server_after_its_pending_closes(tmp_path: Path) -> None:
    with serving(tmp_path, sys.executable, "http_server.py") as server:
        with server.connect() as client:
            client.sendall(HEAD + bytes(1000))
            await_fin(client)
            # A reply to the next client proves that the last connection was submitted.
            with server.connect() as another:
                another.sendall(b"GET / HTTP/1.1\r\n\r\n")
                another.recv(1)
            server.process.send_signal(signal.SIGTERM)
            client.sendall(bytes(UPLOAD - 1000))
            assert read_all(client).endswith(bytes(65536))
        assert server.await_end() == -signal.SIGTERM


SIGTERM_IN_A_HAND_OVER = """
import os, signal, socket
from graceful_close import Reaper, _launched

class Interrupted(socket.socket):
    def detach(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return super().detach()

signal.signal(signal.SIGTERM, _launched._die_when_all_are_closed)
reaper = Reaper(timeout=1000, idle_timeout=None)
first, peer = socket.socketpair()
future = reaper.submit(first)
peer.close()
future.result()  # its thread runs
ours, peer = socket.socketpair()
reaper.submit(Interrupted(fileno=ours.detach()))
peer.close()
signal.pause()
"""

BLOCKED_IN_ACCEPT = """
import os, signal, socket, threading
from graceful_close import _launched

_launched.begin()
with socket.create_server(("127.0.0.1", 0)) as listener:
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    listener.accept()
"""


@pytest.mark.parametrize(
    "program",
    [BLOCKED_IN_ACCEPT, SIGTERM_IN_A_HAND_OVER],
    ids=["blocked in accept()", "during a submit()"],
)
def test_sigterm_ends_a_server(program: str) -> None:
    ended = subprocess.run([sys.executable, "-c", program], timeout=DEADLINE, check=False)
    assert ended.returncode == -signal.SIGTERM


@pytest.mark.parametrize("module", ["trio", "gevent"])
def test_unsupported_sockets_work_as_usual(module: str, tmp_path: Path) -> None:
    pytest.importorskip(module)
    with serving(tmp_path, sys.executable, f"{module}_server.py") as server:
        with server.connect() as client:
            client.sendall(b"hello")
            assert client.recv(100) == b"hello"


SHOWS = "import socket; print(socket.socket.accept.__name__)"


# --- the command -----------------------------------------------------------------------


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN, *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        env={**without_coverage(), **environment},
    )


def test_the_arguments_the_output_and_the_exit_code_of_the_command_are_unchanged() -> None:
    program = "import sys; print(sys.argv[1:]); sys.exit(7)"
    ended = run("--", sys.executable, "-c", program, "--timeout", "--", "x")
    assert (ended.returncode, ended.stdout) == (7, "['--timeout', '--', 'x']\n")


NOTICE = "socket.accept() is replaced"


def test_it_is_replaced_in_child_processes_too_and_only_the_first_process_reports_it() -> None:
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SHOWS!r}])"
    ended = run("--", sys.executable, "-c", program)
    assert (ended.stdout, ended.stderr.count(NOTICE)) == ("graceful_accept\n", 1)
    assert run("--quiet", "--", sys.executable, "-c", "pass").stderr == ""


@pytest.mark.parametrize(
    "command",
    [[sys.executable, "-I"], [sys.executable, "-E"], [sys.executable, "-S"], ["env", "-i"]],
    ids=" ".join,
)
def test_nothing_is_reported_where_nothing_is_replaced(command: list[str]) -> None:
    more = [sys.executable] if command[0] == "env" else []
    ended = run("--", *command, *more, "-c", SHOWS)
    assert (ended.stdout, ended.stderr) == ("accept\n", "")


def test_a_server_that_does_not_accept_in_python_is_reported(tmp_path: Path) -> None:
    (tmp_path / "granian").write_text("#!/bin/sh\n")
    (tmp_path / "granian").chmod(0o755)
    notice = run("--", "granian", PATH=f"{tmp_path}:{os.environ['PATH']}").stderr
    assert "not in Python" in notice
    assert NOTICE not in notice


def test_an_unknown_command_and_a_missing_one_are_reported() -> None:
    ended = run("--", "no-such-command")
    assert ended.returncode == 127
    assert "no-such-command" in ended.stderr
    assert run().stderr.endswith("the following arguments are required: COMMAND\n")


def test_a_script_without_a_first_line_is_the_shells_and_a_wrong_one_is_reported(
    tmp_path: Path,
) -> None:
    script = tmp_path / "script"
    script.write_text('echo "$@"\n')
    script.chmod(0o755)
    assert run("--", str(script), "a", "b").stdout == "a b\n"
    script.write_text("#!/no/such/interpreter\n")
    for mode in (0o755, 0o644):
        script.chmod(mode)
        ended = run("--", str(script))
        assert (ended.returncode, ended.stderr.count("\n")) == (126, 1)
        assert f"{script} cannot be started: " in ended.stderr


@pytest.mark.parametrize(
    "arguments",
    [[], ["--timeout", "-1", "--", "true"], ["--timeout", "x"], ["--timeout", "inf", "true"]],
)
def test_wrong_arguments_are_rejected(arguments: list[str]) -> None:
    ended = run(*arguments)
    assert ended.returncode == 2
    assert "number of seconds" in ended.stderr or not arguments


def test_options_become_environment_variables() -> None:
    program = "import os; print(*sorted(v for v in os.environ.items() if 'GRACEFUL' in v[0]))"
    ended = run("--timeout", "3", "--", sys.executable, "-c", program)
    assert ended.stdout == "('GRACEFUL_CLOSE_TIMEOUT', '3.0')\n"


def test_an_invalid_variable_does_not_stop_the_program() -> None:
    ended = run("--", sys.executable, "-c", "print(1)", GRACEFUL_CLOSE_TIMEOUT="soon")
    assert ended.stdout == "1\n"
    assert "soon" in ended.stderr


def test_the_users_sitecustomize_is_imported(tmp_path: Path) -> None:
    mine = tmp_path / "sitecustomize.py"
    mine.write_text("print('mine')")
    program = f"import sitecustomize; print(sitecustomize.__file__); {SHOWS}"
    ended = run("--", sys.executable, "-c", program, PYTHONPATH=str(tmp_path))
    # Once in the Python that starts the command, and once in the Python of the command.
    assert ended.stdout == f"mine\nmine\n{mine}\ngraceful_accept\n"


BEGINS = Path(_environment.LAUNCHER, "sitecustomize.py").read_text()


@pytest.mark.parametrize("descriptor", ["closed", "full"])
def test_a_python_without_stderr_starts(descriptor: str) -> None:
    """There the launcher has something to report, and cannot."""
    redirect = {"closed": "2>&-", "full": "2>/dev/full"}[descriptor]
    shell = f'exec "$0" -c "print(1)" {redirect}'
    ended = run("--", "sh", "-c", shell, sys.executable, GRACEFUL_CLOSE_TIMEOUT="soon")
    assert (ended.returncode, ended.stdout) == (0, "1\n")
    ended = run("--", "sh", "-c", shell, sys.executable)
    assert (ended.returncode, ended.stdout) == (0, "1\n")


def test_the_launcher_has_the_syntax_of_every_python() -> None:
    tree = ast.parse(BEGINS)
    newer = (ast.JoinedStr, ast.AnnAssign, ast.NamedExpr, ast.FunctionDef, ast.AsyncFunctionDef)
    assert not [node for node in ast.walk(tree) if isinstance(node, newer)]
    imported = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert imported == ["importlib"]


LAUNCHER = """
import os, sys
os.environ["PYTHONPATH"] = os.pathsep.join([sys.argv[1], os.environ["PYTHONPATH"]])
os.execlp(sys.executable, sys.executable, *sys.argv[2:])
"""


def test_another_launcher_does_not_prevent_the_replacements(tmp_path: Path) -> None:
    """opentelemetry-instrument is such a launcher; its sitecustomize does not import others."""
    (tmp_path / "sitecustomize.py").write_text("print('the launcher')")
    program = [sys.executable, "-c", LAUNCHER, str(tmp_path), "-c", SHOWS]
    assert run("--", *program).stdout == "the launcher\ngraceful_accept\n"


def test_a_module_that_a_program_finds_before_it_imports_it_is_changed() -> None:
    program = (
        "import importlib.util; importlib.util.find_spec('ssl')\n"
        "import ssl; print(ssl.SSLContext.sslsocket_class.__name__)\n"
        "importlib.reload(ssl); print(ssl.__loader__ is ssl.__spec__.loader)"
    )
    assert run("--", sys.executable, "-c", program).stdout == "GracefulSSLSocket\nTrue\n"


def test_modules_in_an_archive_share_a_loader_that_is_not_changed(tmp_path: Path) -> None:
    """Python keeps its standard library in a zip on Windows (the embeddable package)."""
    with zipfile.ZipFile(tmp_path / "modules.zip", "w") as archive:
        for name in ("ssl", "colorsys"):
            archive.write(Path(colorsys.__file__).with_stem(name), f"{name}.py")
    program = (
        "import ssl, colorsys, inspect\n"
        "print(ssl.__loader__.archive, type(ssl.__spec__.loader).__name__)\n"
        "print(ssl.SSLContext.sslsocket_class.__name__, 'class SSLSocket' in inspect.getsource(ssl))"
    )
    archived = str(tmp_path / "modules.zip")
    ended = run("--quiet", "--", sys.executable, "-c", program, PYTHONPATH=archived)
    assert ended.stdout == f"{archived} zipimporter\nGracefulSSLSocket True\n"
    assert ended.stderr == ""


def test_an_empty_entry_of_the_path_is_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "here.py").write_text("print('here')")
    (tmp_path / "main").mkdir()
    (tmp_path / "main" / "main.py").write_text("import here")
    command = [*RUN, "--quiet", "--", sys.executable, "main/main.py"]
    ended = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.stdout, ended.stderr) == ("here\n", "")


@pytest.mark.parametrize(
    "imports", ["", "import graceful_close._launched; "], ids=["nothing", "the module"]
)
def test_without_run_nothing_is_replaced(imports: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", imports + SHOWS], capture_output=True, text=True, check=True
    )
    assert ended.stdout == "accept\n"


# Each prints "well".
PROGRAMS = {
    "run loads no module that the program does not load": """
import sys
assert not {"asyncio", "ssl", "uvloop", "trio", "anyio"} & {*sys.modules}
print("well")
""",
    "a graceful listener prepares its TLS contexts": """
import ssl
from graceful_close import GracefulListener
with GracefulListener(("127.0.0.1", 0)) as listener:
    listener.tls(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
print("well")
""",
    "a client of TLS is as it was": """
import socket, ssl
kind = ssl.SSLContext.sslsocket_class
client = ssl.create_default_context().wrap_socket(
    socket.socket(), server_hostname="x", do_handshake_on_connect=False)
assert type(client) is kind and not client.closes_gracefully()
print("well")
""",
    "exit_at_sigterm() ends the program with its finally blocks": """
import signal, graceful_close
graceful_close.exit_at_sigterm()
try:
    signal.raise_signal(signal.SIGTERM)
finally:
    print("well")
""",
    "a duplicate of no connection changes nothing": """
import os, socket
number = os.dup(2)
with socket.create_server(("127.0.0.1", 0)) as listener:
    with socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            os.dup2(2, number)
            for wrong in (-1, 1 << 70, None):
                try:
                    os.dup(wrong)
                except (OSError, OverflowError, TypeError):
                    assert connection.closes_gracefully()
                else:
                    raise AssertionError
print("well")
""",
    "a forked child has the default of SIGTERM until it accepts": """
import os, signal, socket
with socket.create_server(("127.0.0.1", 0)) as listener:
    if os.fork():
        os.wait()
    else:
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        with socket.create_connection(listener.getsockname()), listener.accept()[0]:
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
            print("well")
""",
    "a child that is terminated immediately ends": """
import multiprocessing, signal, time
context = multiprocessing.get_context("fork")
for _ in range(40):
    process = context.Process(target=time.sleep, args=(1000,))
    process.start()
    process.terminate()
    process.join(10)
    process.kill()
    assert process.exitcode == -signal.SIGTERM
for _ in range(20):
    with context.Pool(3):  # terminated at once
        pass
assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
print("well")
""",
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_the_command_works(program: str) -> None:
    ended = run("--", sys.executable, "-c", program)
    assert (ended.returncode, ended.stdout) == (0, "well\n"), ended.stderr


ACCEPTED_BY_THE_PROGRAM = (
    REFUSES
    + """
async def main():
    loop = asyncio.get_running_loop()
    listener = socket.create_server(("127.0.0.1", 0))
    print("on 127.0.0.1:%d" % listener.getsockname()[1], flush=True)
    while True:
        sock, _ = await loop.run_in_executor(None, listener.accept)
        sock.setblocking(False)
        await loop.connect_accepted_socket(Refuses, sock)
"""
    + RUN_MAIN
)


@pytest.mark.parametrize("words", [(), ("on uvloop",)], ids=["asyncio", "uvloop"])
def test_a_loop_closes_what_the_program_has_accepted(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "accepts.py").write_text(ACCEPTED_BY_THE_PROGRAM)
    command = in_this_python(("python", "accepts.py", *words))
    with serving(tmp_path, *command) as server:
        for _ in range(TRIES):
            assert upload(server.connect()).endswith(bytes(65536))


# --- connections with another holder --------------------------------------------------------------

PASSED_ON = {
    "by multiprocessing": """
import multiprocessing
def serve(pipe):
    connection = pipe.recv()
    connection.sendall(b"hello " + connection.recv(100))
if __name__ == "__main__":
    near, far = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    worker = context.Process(target=serve, args=(far,))
    worker.start()
    near.send(accept())
    worker.join()
""",
    "by send_fds": """
near, far = socket.socketpair()
if os.fork() == 0:
    near.close()
    _, [number], _, _ = socket.recv_fds(far, 10, 1)
    far.recv(1)  # the parent has closed its own
    with socket.socket(fileno=number) as connection:
        connection.sendall(b"hello " + connection.recv(100))
    os._exit(0)
connection = accept()
socket.send_fds(near, [b"."], [connection.fileno()])
connection.close()
near.send(b".")
os.wait()
""",
    "to a subprocess": """
connection = accept()
child = subprocess.Popen(
    [sys.executable, "-c", "print('hello', input())"], stdin=connection, stdout=connection
)
connection.close()
child.wait()
""",
    "to an inheriting subprocess": """
connection = accept()
connection.set_inheritable(True)
program = "import os; os.write(%d, b'hello ' + os.read(%d, 100))"
program %= connection.fileno(), connection.fileno()
child = subprocess.Popen([sys.executable, "-c", program], close_fds=False)
connection.close()
child.wait()
""",
    "by posix_spawn": """
connection = accept()
stdio = [(os.POSIX_SPAWN_DUP2, connection.fileno(), number) for number in (0, 1)]
command = [sys.executable, "-c", "print('hello', input())"]
child = os.posix_spawn(sys.executable, command, os.environ, file_actions=stdio)
connection.close()
os.waitpid(child, 0)
""",
    **{
        f"to {dup}": f"""
import fcntl
connection = accept()
number = connection.fileno()
kept = {dup}
connection.close()
kept.sendall(b"hello " + kept.recv(100))
"""
        for dup in (
            "socket.fromfd(number, connection.family, connection.type)",
            "socket.socket(fileno=os.dup(number))",
            "socket.socket(fileno=os.dup2(number, 99))",
            "socket.socket(fileno=fcntl.fcntl(number, fcntl.F_DUPFD, 0))",
        )
    },
}


@pytest.mark.parametrize("how", PASSED_ON)
def test_a_connection_that_is_passed_on_is_served_there(how: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import os, socket, subprocess, sys\n"
        "def accept():\n"
        "    with socket.create_server(('127.0.0.1', 0)) as listener:\n"
        "        print('127.0.0.1:%d' % listener.getsockname()[1], flush=True)\n"
        "        return listener.accept()[0]\n" + PASSED_ON[how]
    )
    with serving(tmp_path, sys.executable, "program.py") as server:
        with server.connect() as client, client.makefile("rb") as reader:
            client.sendall(b"you\n")
            assert reader.readline() == b"hello you\n"
        assert server.await_end() == 0
