"""The tutorial and the recipes work as printed, and the API page has every public name."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from graceful_close import GracefulListener
from started import free_port
from streams import (
    DEADLINE,
    connect,
    connect_many,
    ends_in_reset,
    meanwhile,
    read_all,
    read_and_close,
    reset,
)
from test_docstrings import MODULES
from test_snippets import HOW_TO, block_of

ROOT = Path(__file__).parent.parent
TUTORIAL = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    """Return the code blocks of one kind in the tutorial, in order."""
    return re.findall(rf"^```{kind}\n(.*?)^```", TUTORIAL, re.MULTILINE | re.DOTALL)


def patched(source: str, diff: str) -> str:
    """Apply a diff to a file, as a reader does by hand."""
    lines = diff.splitlines(keepends=True)
    old = "".join(line[1:] for line in lines if line[0] in " -")
    new = "".join(line[1:] for line in lines if line[0] in " +")
    assert source.count(old) == 1, old
    return source.replace(old, new)


def without_times(output: str) -> str:
    """Mask the times in an output, which differ between runs; the counts are kept."""
    return re.sub(r"\d+\.\d{3} s", "T s", output)


def without_number(output: str) -> str:
    """Mask the error numbers in an output, which differ between systems."""
    return re.sub(r"\[Errno \d+\]", "[Errno]", output)


class Reader:
    """A reader who runs the commands of the tutorial, with another port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Of four digits, as in the tutorial, because the bytes of the request are counted.
        self._port = str(free_port(5_001, 10_000))

    def save(self, name: str, source: str) -> None:
        assert f"`{name}`" in TUTORIAL
        assert "8413" in source
        (self._folder / name).write_text(source.replace("8413", self._port), encoding="utf-8")

    @contextlib.contextmanager
    def running(self, name: str) -> Generator[subprocess.Popen[str]]:
        assert f".venv/bin/python {name}\n" in blocks("sh")
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        with subprocess.Popen(
            [sys.executable, name],
            cwd=self._folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as program:
            try:
                yield program
            finally:
                program.kill()  # it has ended, unless an error occurred

    def run_both(self, client: str) -> tuple[str, str]:
        """Run server and client, with Enter for the client, and return their outputs."""
        with self.running("server.py") as server:
            assert server.stdout is not None
            assert server.stdout.readline() == "listening\n"
            with self.running(client) as peer:
                output, _ = server.communicate(timeout=DEADLINE)
                answer, _ = peer.communicate("\n", timeout=DEADLINE)
                assert (server.returncode, peer.returncode) == (0, 0)
        return output, answer


@pytest.mark.skipif(sys.platform == "win32", reason="the tutorial is for POSIX shells")
def test_the_tutorial_works_as_printed(tmp_path: Path) -> None:
    install, *_ = blocks("sh")
    assert install in (ROOT / "README.md").read_text(encoding="utf-8")

    server, client, silent = blocks("python")
    add_import, replace_close, one_second, import_outcome, delivered = blocks("diff")
    lost, reply, closed, timed_out, acknowledged = blocks("text")
    reader = Reader(tmp_path)
    reader.save("server.py", server)
    reader.save("client.py", client)
    reader.save("silent.py", silent)

    _, answer = reader.run_both("client.py")
    assert without_number(answer) in map(
        without_number, [lost, "no reply: [Errno] Broken pipe\n"]
    )

    server = patched(patched(server, add_import), replace_close)
    reader.save("server.py", server)
    output, answer = reader.run_both("client.py")
    assert answer == reply
    assert without_times(output) == without_times(closed)

    server = patched(server, one_second)
    reader.save("server.py", server)
    output, _ = reader.run_both("silent.py")
    assert without_times(output) == without_times(timed_out)

    reader.save("server.py", patched(patched(server, import_outcome), delivered))
    output, _ = reader.run_both("silent.py")
    assert without_times(output) == without_times(acknowledged)


@pytest.mark.skipif(sys.platform == "win32", reason="the tutorial is for POSIX shells")
@pytest.mark.parametrize(("plain", "exit_code"), [(True, 1), (False, 0)])
def test_the_check_in_the_tutorial_finds_the_lost_replies(plain: bool, exit_code: int) -> None:
    commands = [line.replace(" 8000", " 0") for line in blocks("sh")]
    start = ".venv/bin/python examples/early_reply.py 0" + " --plain" * plain + "\n"
    [check] = [line for line in commands if " check " in line]
    assert start in commands
    with subprocess.Popen(
        [sys.executable, *start.split()[1:]], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            checked = subprocess.run(
                [sys.executable, *check.replace("127.0.0.1:8000", address).split()[1:]],
                cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
            )  # fmt: skip
        finally:
            server.terminate()
    assert checked.returncode == exit_code, checked.stdout + checked.stderr
    assert ("LOST" in checked.stdout) == plain


class StoppableListener:
    """A listener whose accept() raises after the test stops it."""

    def __init__(self, waiting: list[socket.socket]) -> None:
        self._waiting = waiting

    def accept(self) -> tuple[socket.socket, None]:
        if not self._waiting:
            raise SystemExit
        return self._waiting.pop(), None


def test_the_pool_in_the_how_to_loses_no_reply_at_its_end() -> None:
    def upload(peer: socket.socket) -> bytes:
        peer.sendall(bytes(5_000_000))
        return read_and_close(peer)

    with connect_many(3) as connections, contextlib.ExitStack() as peers:
        replies = [
            peers.enter_context(meanwhile(upload, connection.peer))
            for connection in connections
        ]
        with pytest.raises(SystemExit):
            block_of(HOW_TO, "serve_from_pool")["serve_from_pool"](
                StoppableListener([ours for ours, _ in connections])
            )
    assert [reply[:12] for [reply] in replies] == [b"HTTP/1.1 200"] * 3


@pytest.mark.skipif(sys.platform == "win32", reason="a program cannot catch SIGTERM there")
def test_the_server_in_the_how_to_ends_without_a_reset(listener: socket.socket) -> None:
    names = block_of(HOW_TO, "serve_until_sigterm")
    idle_has_ended = asyncio.Event()

    async def handle(request: bytes) -> bytes:
        if request == b"stop, and then answer\n":
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(idle_has_ended.wait(), DEADLINE)
        return request

    names["handle"] = handle

    async def serve() -> None:
        loop = asyncio.get_running_loop()

        def talk() -> tuple[bytes, bytes]:
            with (
                socket.create_connection(listener.getsockname(), DEADLINE) as idle,
                socket.create_connection(listener.getsockname(), DEADLINE) as busy,
            ):
                idle.sendall(b"first\n")
                assert idle.recv(100) == b"first\n"
                busy.sendall(b"stop, and then answer\n")
                at_idle = read_and_close(idle)
                loop.call_soon_threadsafe(idle_has_ended.set)
                return at_idle, read_all(busy)

        with meanwhile(talk) as talks:
            await names["serve_until_sigterm"](listener)
        assert talks == [(b"", b"stop, and then answer\n")]

    asyncio.run(serve())


@pytest.mark.skipif(sys.platform == "win32", reason="a program cannot catch SIGTERM there")
def test_the_server_in_the_how_to_removes_a_client_that_resets(listener: socket.socket) -> None:
    names = block_of(HOW_TO, "serve_until_sigterm")
    closed = names["closing_stream"], names["close_all"]
    ended = asyncio.Event()
    left: list[int] = []
    errors: list[object] = []

    @contextlib.asynccontextmanager
    async def closing_stream(
        writer: asyncio.StreamWriter, timeout: float
    ) -> AsyncGenerator[None]:
        try:
            async with closed[0](writer, timeout=timeout):
                yield
        finally:
            ended.set()

    async def close_all(idle: list[asyncio.StreamWriter], timeout: float) -> object:
        left.append(len(idle))
        return await closed[1](idle, timeout=timeout)

    names["closing_stream"], names["close_all"] = closing_stream, close_all

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: errors.append(context))
        serving = asyncio.create_task(names["serve_until_sigterm"](listener))
        reset(await asyncio.to_thread(talk))
        await asyncio.wait_for(ended.wait(), DEADLINE)
        os.kill(os.getpid(), signal.SIGTERM)
        await serving

    def talk() -> socket.socket:
        client = socket.create_connection(listener.getsockname(), DEADLINE)
        client.sendall(b"first\n")
        assert client.recv(100) == b"FIRST\n"
        return client

    asyncio.run(serve())
    assert (left, errors) == ([0], [])


@pytest.mark.skipif(sys.platform == "win32", reason="a program cannot catch SIGTERM there")
def test_the_server_in_the_how_to_resets_connections_at_its_deadline(
    listener: socket.socket,
) -> None:
    names = block_of(HOW_TO, "serve_until_sigterm")
    names["WORK"], names["CLOSE"] = 0.0, 0.05

    async def handle(request: bytes) -> bytes:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(DEADLINE)
        return request

    names["handle"] = handle

    async def serve() -> None:
        with socket.create_connection(listener.getsockname(), DEADLINE) as late:
            late.sendall(b"slow\n")
            await names["serve_until_sigterm"](listener)
            assert ends_in_reset(late)  # before asyncio.run() cancels the remaining tasks

    asyncio.run(serve())


def test_the_stop_in_the_how_to_answers_the_backlog(capsys: pytest.CaptureFixture[str]) -> None:
    names = block_of(HOW_TO, "stop_listening")
    listener = GracefulListener(("127.0.0.1", 0))

    with contextlib.ExitStack() as peers:
        replies: list[list[bytes]] = []
        for _ in range(3):
            peer = socket.create_connection(listener.getsockname(), DEADLINE)
            peer.sendall(b"GET / HTTP/1.1\r\n\r\n")
            replies.append(peers.enter_context(meanwhile(read_and_close, peer)))
        names["stop_listening"](listener)
    assert replies == [[names["UNAVAILABLE"]]] * 3
    assert capsys.readouterr().out.count("peer closed after") == 3


def test_the_log_in_the_how_to_has_a_line_for_every_close(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "closes")
    with block_of(HOW_TO, "logged")["logged"] as reaper, connect("tcp4") as (ours, peer):
        host, port, *_ = ours.getpeername()
        reaper.submit(ours)
        assert read_and_close(peer) == b""
    [line] = caplog.messages
    assert line.startswith(f"{host}:{port}: peer closed after ")


def test_the_counter_in_the_how_to_counts_by_outcome() -> None:
    registry = CollectorRegistry()
    with block_of(HOW_TO, "counting_reaper")["counting_reaper"](registry) as reaper:
        with connect("tcp4") as (ours, peer):
            reaper.submit(ours)
            assert read_and_close(peer) == b""
    assert registry.get_sample_value("closes_total", {"outcome": "PEER_CLOSED"}) == 1


@pytest.mark.parametrize(
    ("server", "reset"), [("StrictServer", True), ("LenientServer", False)]
)
def test_a_handler_that_raises_in_the_how_to_resets(
    server: str, reset: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    names = block_of(HOW_TO, "StrictServer")
    with names[server](("127.0.0.1", 0), names["Handler"]) as made:
        made.daemon_threads = False  # server_close() waits for the handler's thread
        with socket.create_connection(made.server_address, DEADLINE) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            made.handle_request()
            if reset:
                assert ends_in_reset(client)
            else:
                assert read_and_close(client).endswith(b"the first half, ")
    assert "there is no second half" in capsys.readouterr().err


@pytest.mark.parametrize("module", MODULES)
def test_the_api_pages_have_every_public_name(module: str) -> None:
    page = "".join(
        file.read_text(encoding="utf-8") for file in sorted((ROOT / "docs/api").glob("*.md"))
    )
    shown = re.findall(
        rf"^\.\. auto(?:function|class|exception):: {re.escape(module)}\.(\w+)(?:\(\))?$",
        page,
        re.MULTILINE,
    )
    names: list[str] = importlib.import_module(module).__all__
    assert sorted(shown) == sorted(names)


def test_every_page_of_the_project_names_the_same_repository() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    source = project["project"]["urls"]["Source"].removeprefix("https://github.com/")
    owner = source.partition("/")[0]
    for file in [ROOT / "pyproject.toml", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")]:
        text = file.read_text(encoding="utf-8")
        ours = re.findall(r"github(?:usercontent)?\.com/([\w-]+/graceful-close)", text)
        assert set(ours) <= {source}, file
        assert set(re.findall(r"([\w-]+)\.github\.io", text)) <= {owner}, file


def test_the_readme_and_the_performance_page_have_the_same_figures() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    figures = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    [spared] = re.findall(r"get a 1 KiB reply (\d+ to \d+ %)", " ".join(readme.split()))
    assert spared in " ".join(figures.split())


def test_the_readme_and_the_proxies_page_have_the_same_figures() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    page = " ".join((ROOT / "docs/proxies.md").read_text(encoding="utf-8").split())
    [share] = re.findall(r"\[(\d+ to \d+ %)\]\(docs/proxies\.md\)", readme)
    assert f"{share} of the replies became a 502" in page


def test_the_summary_has_the_figures_of_the_results() -> None:
    def rounded(*numbers: str) -> tuple[str, ...]:
        return tuple(f"{float(number.replace(',', '')):.3g}" for number in numbers)

    results = (ROOT / "benchmarks/results.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in results.splitlines() if line.count("|") == 9]
    known = {
        rounded(ours, theirs): ratio
        for _, ours, theirs, _, ratio, *_ in rows[2:]
        if theirs.strip()
    }
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    summary = re.findall(r"\| ([\d.]+) [^|]+\| ([\d.]+): [^|]+\| ([\d.]+) \|", page)
    assert len(summary) == 5
    for ours, theirs, ratio in summary:
        assert f"{float(known[rounded(ours, theirs)]):.2g}" == f"{float(ratio):.2g}"


def test_the_sdist_has_every_file_of_the_repository() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = set(project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"])
    always = {"pyproject.toml", "LICENSE", ".gitignore"}  # by hatchling itself
    if not (ROOT / ".git").exists():  # this is an sdist
        assert included - {"src"} <= {file.name for file in ROOT.iterdir()}
        return
    if shutil.which("git") is None:
        pytest.skip("needs git")
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert {file.partition("/")[0] for file in files} == included | always
