"""`graceful-close watch` and real closes of every kind, whose number and cost are known."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab_program import GIVE_UP, THE_LAB, Terminal, environment_with, lines_of
from programs import Program

if sys.platform != "linux":
    pytest.skip("only Linux reports its resets", allow_module_level=True)

from graceful_close_lab.watch.tracefs import NoTracingError, Tracing, find_root

HERE = Path(__file__).parent

UNREAD = "closed with unread input"
DATA = "data arrived after the close"
ABORT = "aborted (SO_LINGER 0, or similar)"

# The expected kind and cost of each exchange.
EXPECTED = {
    "read": (UNREAD, "not_lost"),
    "unread": (UNREAD, "lost"),
    "almost read": (UNREAD, "may_have_been_lost"),
    "nothing written": (UNREAD, "not_lost"),
    "peer still there": (UNREAD, "may_have_been_lost"),
    "unsent": (UNREAD, "lost"),
    "data, read": (DATA, "not_lost"),
    "data, unread": (DATA, "lost"),
    "data, unsent": (DATA, "lost"),
    "linger 0, read": (ABORT, "may_have_been_lost"),
    "linger 0, unread": (ABORT, "lost"),
    "graceful": None,
    "clean": None,
    "client resets": None,
}


def why_not() -> str | None:
    """Return why resets cannot be watched here; None: they can."""
    if os.geteuid() != 0:
        return "tracing needs root"
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        return "network namespaces need `unshare` and `nsenter` of util-linux"
    made = subprocess.run(
        ["unshare", "-n", "true"], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        return f"a network namespace cannot be made: {made.stderr.strip()}"
    try:
        with Tracing() as tracing:
            if "TCP_ABORT_ON_CLOSE" not in tracing.symbols("tcp/tcp_send_reset", "reason"):
                return "this kernel (before 6.12) does not report why it resets"
    except NoTracingError as error:
        return str(error)
    return None


@pytest.fixture(scope="module", autouse=True)
def _watch_is_possible() -> None:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)


class Server:
    """watched_server.py, in its own network namespace."""

    def __init__(self, program: subprocess.Popen[str]) -> None:
        self._program = program
        started = json.loads(self._line())
        self.pid: int = started["pid"]
        self.name = Path(f"/proc/{self.pid}/comm").read_text(encoding="ascii").rstrip("\n")
        self.ports: dict[str, int] = started["ports"]

    def serve(self, *exchanges: str, family: str = "4") -> None:
        """Run exchanges one after the other; they have ended when it returns."""
        assert self._program.stdin is not None
        for exchange in exchanges:
            self._program.stdin.write(f"{family} {exchange}\n")
            self._program.stdin.flush()
            assert self._line() == "done\n"

    def _line(self) -> str:
        assert self._program.stdout is not None
        return self._program.stdout.readline()


@pytest.fixture
def server() -> Iterator[Server]:
    with subprocess.Popen(
        ["unshare", "-n", sys.executable, str(HERE / "watched_server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        try:
            yield Server(program)
            program.communicate(timeout=GIVE_UP)
            assert program.returncode == 0
        finally:
            program.kill()


def watching(server: Server, *options: str) -> list[str]:
    """Return the command that watches in the server's network namespace."""
    return ["nsenter", "-n", "-t", str(server.pid), *THE_LAB, "watch", *options]


class Watch:
    """`watch --json`, running."""

    def __init__(self, program: subprocess.Popen[str]) -> None:
        self.program = program
        assert program.stdout is not None
        self.start = json.loads(program.stdout.readline())
        self.instance = ""  # its name in tracefs
        if self.start["traced"]:
            [self.instance] = [name for name in instances() if f"-{program.pid}-" in name]

    def end(self, by: signal.Signals = signal.SIGTERM) -> list[dict[str, Any]]:
        """End the watch, and return its lines; the last is the summary."""
        self.program.send_signal(by)
        output, _ = self.program.communicate(timeout=GIVE_UP)
        return [json.loads(line) for line in output.splitlines()]


def instances() -> set[str]:
    """Return the names of the instances in tracefs."""
    with ExitStack() as held:
        return {path.name for path in (find_root(held) / "instances").iterdir()}


@contextmanager
def watch(server: Server, *options: str) -> Generator[Watch]:
    with subprocess.Popen(
        watching(server, "--json", *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment_with(),
    ) as program:
        try:
            yield Watch(program)
        finally:
            program.kill()


def counted(rows: list[dict[str, Any]]) -> dict[tuple[str, str], int]:
    """Return the number of resets by kind and cost."""
    costs = "lost", "may_have_been_lost", "not_lost"
    return {(row["how"], cost): row[cost] for row in rows for cost in costs if row[cost]}


@pytest.mark.parametrize("family", ["4", "6"])
def test_closes_of_every_kind_are_counted_and_judged_exactly(
    server: Server, family: str
) -> None:
    with watch(server, "--pid", str(server.pid)) as watched:
        assert watched.start["traced"], watched.start
        expected: dict[tuple[str, str], int] = {}
        for n, (exchange, kind_and_cost) in enumerate(EXPECTED.items()):
            times = 1 + n % 3
            server.serve(*[exchange] * times, family=family)
            if kind_and_cost is not None:
                expected[kind_and_cost] = expected.get(kind_and_cost, 0) + times
        *resets, summary = watched.end()
    why = [(line["how"], line["reply"], line["because"]) for line in resets if "how" in line]
    # On a busy machine the kernel also resets a handshake, in which a segment is repeated.
    closes = [row for row in summary["rows"] if "TCP_FLAGS" not in row["how"]]
    assert counted(closes) == expected, why
    assert {(row["process"], row["pid"], row["port"]) for row in summary["rows"]} == {
        (server.name, server.pid, server.ports[family])
    }
    assert summary["events_lost"] == summary["notices_lost"] == 0
    # Every client is a separate process, so --pid excludes it.
    assert summary["resets_by_the_side_that_connected"] == {}


def test_the_kernels_counters_are_reported_exactly(server: Server) -> None:
    with watch(server, "--counters", "--fail-over", "8") as watched:
        assert not watched.start["traced"]
        server.serve(*["unread"] * 3, *["data, unsent"] * 2, *["linger 0, read"] * 4)
        server.serve("graceful", "clean")
        summary = watched.end()[-1]
        assert watched.program.returncode == 1
    assert summary["counters"] == {
        "TCPAbortOnClose": 3,
        "TCPAbortOnData": 6,
        "TCPAbortOnLinger": 0,
        "TCPAbortOnMemory": 0,
        "TCPAbortOnTimeout": 0,
        "OutRsts": 9,
    }
    assert summary["may_have_been_lost"] == 9
    assert summary["rows"] == []


def test_a_reset_by_later_data_is_attributed_to_the_process_that_closed(
    server: Server,
) -> None:
    with watch(server, "--port", str(server.ports["4"])) as watched:
        server.serve("data, unread", "data, unsent")
        *_, summary = watched.end()
    [row] = [row for row in summary["rows"] if not row["other_netns"]]
    assert (row["pid"], row["lost"]) == (server.pid, 2)


def test_a_reset_after_a_close_before_the_watch_is_attributed_to_the_listener(
    server: Server,
) -> None:
    server.serve("data, released")
    with watch(server, "--pid", str(server.pid)) as watched:
        server.serve("release")
        *lines, summary = watched.end()
    [reset] = [line for line in lines if line["event"] == "reset"]
    assert (reset["process_known_by"], reset["reply"]) == ("listener", "lost")
    assert summary["lost"] == 1


def test_a_reset_by_a_client_is_not_a_lost_reply(server: Server) -> None:
    with watch(server) as watched:
        server.serve("client resets")
        *lines, summary = watched.end()
    here = [line for line in lines if line["event"] == "reset" and not line["other_netns"]]
    [reset] = [line for line in here if line["peer"] == f"127.0.0.1:{server.ports['4']}"]
    assert (reset["how"], reset["reply"]) == (UNREAD, "no reply")
    assert [row for row in summary["rows"] if row["pid"] == reset["pid"]] == []
    assert summary["resets_by_the_side_that_connected"][reset["process"]] >= 1


@pytest.mark.parametrize(("limit", "code"), [(1, 1), (2, 0)])
def test_fail_over_counts_replies_that_were_or_may_have_been_lost(
    server: Server, limit: int, code: int
) -> None:
    options = "--fail-over", str(limit), "--pid", str(server.pid)
    with watch(server, *options) as watched:
        server.serve("unread", "linger 0, read", "read", "graceful")
        watched.end()
        assert watched.program.returncode == code


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_watch_and_removes_its_instance(
    server: Server, by: signal.Signals
) -> None:
    with watch(server) as watched:
        assert watched.end(by)[-1]["event"] == "summary"
        assert watched.program.returncode == 0
    assert watched.instance not in instances()


def test_a_failure_removes_the_instance(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with watch(server, "--prometheus", str(folder / "file")) as watched:
        shutil.rmtree(folder)
        _, errors = watched.program.communicate(timeout=GIVE_UP)
        assert watched.program.returncode == 3
    assert "No such file" in errors
    assert watched.instance not in instances()


def test_a_closed_pipe_ends_the_watch_and_removes_its_instance(server: Server) -> None:
    with watch(server, "--pid", str(server.pid)) as watched:
        assert watched.program.stdout is not None
        watched.program.stdout.close()
        server.serve("unread")
        assert watched.program.wait(GIVE_UP) == 141
    assert watched.instance not in instances()


def test_the_instance_of_a_killed_watch_is_removed_by_the_next_watch(server: Server) -> None:
    with watch(server) as killed:
        killed.program.kill()
        killed.program.wait(GIVE_UP)
    with watch(server) as watched:
        assert killed.instance not in instances()
        watched.end()


def test_events_that_the_kernel_discarded_are_reported(server: Server) -> None:
    with watch(server, "--fail-over", "1000000") as watched, ExitStack() as held:
        instance = find_root(held) / "instances" / watched.instance
        (instance / "buffer_size_kb").write_text("4")
        watched.program.send_signal(signal.SIGSTOP)
        server.serve(*["unread"] * 200)
        watched.program.send_signal(signal.SIGCONT)
        watched.program.send_signal(signal.SIGTERM)
        output, errors = watched.program.communicate(timeout=GIVE_UP)
        assert watched.program.returncode == 3
    summary = json.loads(output.splitlines()[-1])
    assert summary["events_lost"] > 0
    assert "events were lost, so the number is unknown" in errors
    assert any("discarded" in words for words in summary["reservations"])


def test_the_text_output_has_the_process_and_its_losses(server: Server) -> None:
    command = watching(server, "--port", str(server.ports["4"]), "--pid", str(server.pid))
    with Program(command, env=environment_with(COLUMNS="80")) as program:
        program.await_output(b"^Watching the resets of process .*\n")
        server.serve("unread", "unread", "read")
        program.process.send_signal(signal.SIGINT)
        assert program.await_end() == 0
    output = program.output.decode()
    [row] = [line for line in output.splitlines() if line.endswith(f"  {UNREAD}")]
    *_, pid, port, resets, lost, may, kept = row.removesuffix(UNREAD).split()
    assert (int(pid), int(port)) == (server.pid, server.ports["4"])
    assert (resets, lost, may, kept) == ("3", "2", "0", "1")
    assert "LOST, and proven: 2 replies, in " in output
    assert f" {server.pid}.\n" in output  # the process
    assert f"run `check HOST:{port}`" in output
    assert max(map(len, output.splitlines())) <= 80 + len(" (closed with unread input)") * 2


def test_the_screen_shows_the_tables_live_and_keeps_the_last(server: Server) -> None:
    pytest.importorskip("rich")
    screen = Terminal(*watching(server, "--pid", str(server.pid)), columns=100)
    screen.read_until("The kernel's counters")
    server.serve("unread")
    screen.read_until(UNREAD)
    screen.program.send_signal(signal.SIGINT)
    lines = lines_of(screen.end())
    assert screen.program.returncode == 0
    assert any(line.startswith("LOST, and proven: 1 reply, in ") for line in lines)


def test_prometheus_can_read_the_counts(server: Server, tmp_path: Path) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    file = tmp_path / "watch.prom"
    with watch(server, "--pid", str(server.pid), "--prometheus", str(file)) as watched:
        server.serve("unread", "unread", "read")
        watched.end()
    samples = {
        (sample.name, sample.labels.get("reply", "")): sample
        for family in text_string_to_metric_families(file.read_text())
        for sample in family.samples
    }
    lost = samples["graceful_close_watch_resets_total", "lost"]
    assert lost.value == 2
    assert (lost.labels["pid"], lost.labels["how"]) == (str(server.pid), UNREAD)
    assert samples["graceful_close_watch_resets_total", "not lost"].value == 1
    assert list(tmp_path.iterdir()) == [file]
