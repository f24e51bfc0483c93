"""The lab: what `python -m graceful_close` measures, prints and exits with."""

from __future__ import annotations

import contextlib
import io
import json
import re
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from graceful_close import CloseOutcome, CloseResult, abortive_close
from graceful_close._lab import kernel_view, loopback, lost_reply, show
from graceful_close._lab.command import main
from graceful_close._lab.linger_experiments import WAYS, LingerRun
from graceful_close._lab.loopback import Ending
from graceful_close._lab.lost_reply import Replies
from graceful_close._lab.report import Report, as_json
from graceful_close._lab.tables import conclusion, tables
from graceful_close._lab.this_platform import Verdict, examine

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path
    from subprocess import CompletedProcess

THE_LAB = [sys.executable, "-W", "error", "-m", "graceful_close"]

WITHOUT_RICH = """
import runpy, sys
sys.modules["rich"] = None
runpy.run_module("graceful_close", run_name="__main__")
"""

# What a shell starts in the background ignores SIGINT, and so do its children.
INTERRUPTIBLE = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("graceful_close", run_name="__main__")
"""

# The lab promises half of it; more than this means that it hangs.
GIVE_UP = 60


def run(*command: str) -> CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=GIVE_UP, check=False)


@pytest.fixture(scope="module")
def json_run() -> CompletedProcess[str]:
    return run(*THE_LAB, "--json")


@pytest.fixture(scope="module")
def findings(json_run: CompletedProcess[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json_run.stdout)
    return found


@pytest.fixture(scope="module")
def plain_run() -> CompletedProcess[str]:
    return run(sys.executable, "-W", "error", "-c", WITHOUT_RICH)


def test_the_lab_says_that_graceful_close_lost_nothing(
    json_run: CompletedProcess[str], findings: dict[str, Any]
) -> None:
    assert findings["lost_nothing"] is True
    assert json_run.returncode == 0


def test_every_way_to_close_is_tried(findings: dict[str, Any]) -> None:
    assert [found["way"] for found in findings["linger_experiments"]] == [
        "BACKGROUND close()",
        "ABORT close()",
        "TIMED close()",
        "graceful_close",
        "abortive_close",
        "timed_linger_close",
    ]
    assert [found["way"] for found in findings["lost_reply"]] == [
        "close()",
        "shutdown(SHUT_RDWR), close()",
        "shutdown(SHUT_WR), close()",
        "SO_LINGER {1, 5}, close()",
        "SHUT_WR, drain 64 KiB, close()",
        "graceful_close",
    ]


def test_only_an_abort_loses_what_was_not_sent(findings: dict[str, Any]) -> None:
    for found in findings["linger_experiments"]:
        if found["way"] in ("ABORT close()", "abortive_close"):
            assert found["received"] < found["written"] == 200_000
            assert found["ending"] == "RST"
        else:
            assert found["received"] == found["written"] == 200_000
            assert found["ending"] == "FIN"


def test_our_closers_say_what_became_of_it_and_close_does_not(
    findings: dict[str, Any],
) -> None:
    results = [found["result"] for found in findings["linger_experiments"]]
    outcomes = [result and result["outcome"] for result in results]
    assert outcomes == [None, None, None, "TIMED_OUT", "ABORTED", "TIMED_OUT"]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's list is Linux's")
def test_the_kernel_agrees_with_the_result(findings: dict[str, Any]) -> None:
    for found in findings["linger_experiments"]:
        assert found["before"]["state"] == "ESTABLISHED"
        assert found["before"]["send_queue"] > 0
        if found["ending"] == "RST":
            assert found["after"] is None
        else:
            assert found["after"]["state"] == "FIN_WAIT1"
            assert found["after"]["send_queue"] > 0
        if found["result"] is not None and found["after"] is not None:
            assert found["result"]["unacked"] == found["after"]["send_queue"]


def test_every_reply_is_accounted_for(findings: dict[str, Any]) -> None:
    for found in findings["lost_reply"]:
        assert found["tries"] == 20
        assert found["whole"] + sum(found["lost"].values()) == 20


@pytest.mark.skipif(sys.platform != "linux", reason="what is expected is what Linux does")
def test_no_other_way_to_close_saves_a_reply_on_loopback(findings: dict[str, Any]) -> None:
    whole = {found["way"]: found["whole"] for found in findings["lost_reply"]}
    assert whole.pop("graceful_close") == 20
    assert set(whole.values()) == {0}


def test_all_that_the_library_relies_on_works_here(findings: dict[str, Any]) -> None:
    for trial in findings["this_platform"]["trials"]:
        assert trial["verdict"] in ("WORKS", "ABSENT"), trial


@pytest.mark.skipif(sys.platform != "linux", reason="on other systems some things are absent")
def test_nothing_is_absent_on_linux() -> None:
    assert {trial.verdict for trial in examine().trials} == {Verdict.WORKS}


def test_progress_goes_to_stderr_a_line_for_each_step(json_run: CompletedProcess[str]) -> None:
    lines = json_run.stderr.splitlines()
    assert lines[0] == "[ 1/13] unsent output: BACKGROUND close()"
    assert lines[-1] == "[13/13] this platform"
    assert len(lines) == 13


def test_without_rich_it_prints_plain_text(plain_run: CompletedProcess[str]) -> None:
    assert plain_run.returncode == 0
    titles = [
        "Unsent output: the linger experiments",
        "Unread input: the lost reply",
        "This platform",
    ]
    lines = plain_run.stdout.splitlines()
    assert [line for line in lines if line in titles] == titles
    assert lines[-1].startswith("graceful_close lost nothing: 20 of 20 replies")


def test_a_pipe_gets_no_control_codes_and_80_columns(
    plain_run: CompletedProcess[str],
) -> None:
    result = run(*THE_LAB)
    assert result.returncode == 0
    for text in (result.stdout, result.stderr, plain_run.stdout, plain_run.stderr):
        assert text.isascii()
        assert text.replace("\n", "").isprintable()
        assert max(map(len, text.splitlines())) <= 80


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for a child alone")
def test_an_interrupt_ends_it_without_a_traceback() -> None:
    # No warnings as errors here: the signal may come between an accept() and its `with`, and then
    # it is the interpreter that closes the socket.
    command = [sys.executable, "-c", INTERRUPTIBLE]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as lab:
        assert lab.stderr is not None
        while "TIMED close()" not in lab.stderr.readline():
            assert lab.poll() is None
        lab.send_signal(signal.SIGINT)
        output, errors = lab.communicate(timeout=GIVE_UP)
    assert lab.returncode == 130
    assert output == ""
    assert "Traceback" not in errors


def test_a_mistake_on_the_command_line_is_explained() -> None:
    result = run(*THE_LAB, "--yaml")
    assert result.returncode == 2
    assert "usage: python -m graceful_close" in result.stderr


# --- without a run ---------------------------------------------------------------------------


def made_up(
    *, received: int = 200_000, whole: int = 20, visible: bool = True, error: str | None = None
) -> Report:
    """A report like one of another day, or of another system."""
    seen = kernel_view.Standing("ESTABLISHED", 100) if visible else None
    result = CloseResult(CloseOutcome.TIMED_OUT, 1.0, 0, None, OSError(104, "reset"))
    ending = Ending.FIN if received == 200_000 else Ending.RST
    runs = [
        LingerRun(
            way.name,
            1.0,
            result if way.name == "graceful_close" else None,
            error,
            seen,
            seen,
            200_000,
            received,
            ending,
        )
        for way in WAYS
    ]
    lost = {"ECONNRESET": 20 - whole} if whole < 20 else {}
    replies = [Replies(way.name, 20, whole, lost) for way in lost_reply.WAYS]
    return Report(tuple(runs), tuple(replies), examine())


class Terminal(io.StringIO):
    """A screen that remembers all that was written to it."""

    def isatty(self) -> bool:
        return True


@contextlib.contextmanager
def a_terminal(kind: str) -> Generator[Terminal]:
    environment = {"TERM": kind, "COLUMNS": "80"}
    with pytest.MonkeyPatch.context() as patch, Terminal() as screen:
        for name in ("NO_COLOR", "FORCE_COLOR"):
            patch.delenv(name, raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
            yield screen


@pytest.mark.parametrize(("received", "whole"), [(199_999, 20), (200_000, 19)])
def test_a_loss_is_said_and_not_hidden(received: int, whole: int) -> None:
    report = made_up(received=received, whole=whole)
    assert not report.lost_nothing
    assert json.loads(as_json(report))["lost_nothing"] is False
    words = conclusion(report)
    assert words.text.startswith("graceful_close LOST DATA")
    assert words.good is False


def test_what_the_kernel_does_not_show_is_not_made_up() -> None:
    seen = tables(made_up())[0]
    assert [column.heading for column in seen.columns][3:5] == ["state", "Send-Q"]
    unseen = tables(made_up(visible=False))[0]
    assert "not visible here" in unseen.caption
    assert not {"state", "Send-Q"} & {column.heading for column in unseen.columns}
    assert all(len(row) == len(unseen.columns) for row in unseen.rows)


def test_an_error_of_close_stands_where_a_result_would() -> None:
    table = tables(made_up(error="EWOULDBLOCK"))[0]
    assert table.rows[2][2].text == "EWOULDBLOCK"


def test_a_terminal_gets_colour() -> None:
    pytest.importorskip("rich")
    report = made_up()
    with a_terminal("xterm") as screen:
        show.show(tables(report), conclusion(report))
        assert f"\x1b[32m{conclusion(report).text}\x1b[0m" in screen.getvalue()


def test_a_terminal_gets_the_same_words_as_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    report = made_up()
    with a_terminal("xterm") as screen:
        show.show(tables(report), conclusion(report))
        colourful = re.sub(r"\x1b\[[0-9;]*m|─", "", screen.getvalue())
    show.show(tables(report), conclusion(report))
    assert colourful.split() == re.sub("--+", "", capsys.readouterr().out).split()


def test_a_dumb_terminal_gets_plain_text() -> None:
    report = made_up()
    with a_terminal("dumb") as screen:
        with show.progress(1) as begin:
            begin("a step")
        show.show(tables(report), conclusion(report))
        assert screen.getvalue().startswith("[1/1] a step\nUnsent output")
        assert "\x1b" not in screen.getvalue()


def test_a_terminal_sees_the_step_that_is_running_and_then_no_more_of_it() -> None:
    pytest.importorskip("rich")
    with a_terminal("xterm") as screen:
        with show.progress(2) as begin:
            begin("the first step")
            begin("the second step")
        assert "the second step" in screen.getvalue()
        assert screen.getvalue().endswith("\x1b[2K")  # the line is erased


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's list is Linux's")
def test_the_kernel_shows_both_ends_of_a_connection_until_it_is_gone() -> None:
    with loopback.connection() as (ours, peer):
        here, there = ours.getsockname()[1], peer.getsockname()[1]
        assert kernel_view.standing(here, there) == kernel_view.Standing("ESTABLISHED", 0)
        ours.shutdown(socket.SHUT_WR)
        assert peer.recv(1) == b""
        assert kernel_view.standing(there, here) == kernel_view.Standing("CLOSE_WAIT", 0)
        abortive_close(ours)
        assert kernel_view.standing(here, there) is None


def test_a_system_without_the_list_shows_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(kernel_view, "_FILES", (tmp_path / "tcp",))
    with loopback.connection() as (ours, peer):
        assert kernel_view.standing(ours.getsockname()[1], peer.getsockname()[1]) is None


def test_a_stream_that_falls_silent_has_neither_fin_nor_reset() -> None:
    with loopback.connection() as (ours, peer):
        ours.sendall(b"some")
        peer.settimeout(0.01)
        assert loopback.read_to_the_end(peer) == (4, Ending.NOTHING)


def test_a_loopback_that_does_not_work_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no sockets here")

    monkeypatch.setattr(socket, "create_server", refuse)
    assert main([]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.endswith("python -m graceful_close: no sockets here\n")
