"""The command `lab`: its findings, its output and its exit codes."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from graceful_close import CloseOutcome, CloseResult, abortive_close
from graceful_close_lab import kernel_view, loopback, lost_reply
from graceful_close_lab.command import main
from graceful_close_lab.experiments import ALL, NAMES, Experiment, chosen
from graceful_close_lab.layout import lay_out, wrap
from graceful_close_lab.linger_experiments import WAYS, LingerRun
from graceful_close_lab.loopback import Ending
from graceful_close_lab.lost_reply import Replies
from graceful_close_lab.report import Report, as_json
from graceful_close_lab.tables import Column, Table, Words, conclusion, tables
from graceful_close_lab.this_platform import ThisPlatform, Trial, Verdict, examine
from graceful_close_lab.timeline import Exchange
from lab_program import INTERRUPTIBLE, THE_LAB, Terminal, environment_with, exits, run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from subprocess import CompletedProcess

WITHOUT_RICH = """
import runpy, sys
sys.modules["rich"] = None
runpy.run_module("graceful_close", run_name="__main__")
"""

# One experiment of each kind, none of which waits for a second.
QUICK = "linger-abort,reply-graceful-close,platform"


@pytest.fixture(scope="module")
def runs() -> dict[str, CompletedProcess[str]]:
    """Run the lab twice at the same time: most of its time is waiting."""
    commands = {
        "json": [*THE_LAB, "--json"],
        "plain": [sys.executable, "-W", "error", "-c", WITHOUT_RICH, "--only", QUICK],
    }
    with ThreadPoolExecutor() as pool:
        running = {name: pool.submit(run, *command) for name, command in commands.items()}
    return {name: future.result() for name, future in running.items()}


@pytest.fixture
def json_run(runs: dict[str, CompletedProcess[str]]) -> CompletedProcess[str]:
    return runs["json"]


@pytest.fixture
def plain_run(runs: dict[str, CompletedProcess[str]]) -> CompletedProcess[str]:
    return runs["plain"]


@pytest.fixture
def findings(json_run: CompletedProcess[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json_run.stdout)
    return found


def test_the_lab_reports_that_every_experiment_went_as_expected(
    json_run: CompletedProcess[str], findings: dict[str, Any]
) -> None:
    assert findings["otherwise"] == []
    assert findings["ok"] is True
    assert findings["schema_version"] == 1
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


def test_only_an_abort_loses_unsent_output(findings: dict[str, Any]) -> None:
    for found in findings["linger_experiments"]:
        if found["way"] in ("ABORT close()", "abortive_close"):
            assert found["received"] < found["written"] == 200_000
            assert found["ending"] == "RST"
        else:
            assert found["received"] == found["written"] == 200_000
            assert found["ending"] == "FIN"


def test_the_functions_of_the_library_return_a_result_and_close_does_not(
    findings: dict[str, Any],
) -> None:
    results = [found["result"] for found in findings["linger_experiments"]]
    outcomes = [result and result["outcome"] for result in results]
    assert outcomes == [None, None, None, "TIMED_OUT", "ABORTED", "TIMED_OUT"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists its connections")
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


def test_every_reply_is_either_complete_or_lost(findings: dict[str, Any]) -> None:
    for found in findings["lost_reply"]:
        assert found["tries"] == 20
        assert found["whole"] + sum(found["lost"].values()) == 20


@pytest.mark.skipif(sys.platform != "linux", reason="the expected results are those of Linux")
def test_no_other_way_to_close_saves_a_reply_on_loopback(findings: dict[str, Any]) -> None:
    whole = {found["way"]: found["whole"] for found in findings["lost_reply"]}
    assert whole.pop("graceful_close") == 20
    assert set(whole.values()) == {0}


def test_every_feature_that_the_library_relies_on_works_here(findings: dict[str, Any]) -> None:
    for trial in findings["this_platform"]["trials"]:
        assert trial["verdict"] in ("WORKS", "ABSENT"), trial


@pytest.mark.skipif(sys.platform != "linux", reason="other systems lack some features")
def test_no_feature_is_absent_on_linux() -> None:
    assert {trial.verdict for trial in examine().trials} == {Verdict.WORKS}


def test_every_experiment_records_the_events_of_both_programs(findings: dict[str, Any]) -> None:
    for found in [*findings["linger_experiments"], *findings["lost_reply"]]:
        events, arrows = found["exchange"]["events"], found["exchange"]["arrows"]
        assert [event["at"] for event in events] == sorted(event["at"] for event in events)
        assert found["way"] in [event["text"] for event in events]
        for arrow in arrows:  # times are in order
            assert arrow["seen_at"] is None or 0 <= arrow["sent_at"] <= arrow["seen_at"], arrow


def kinds(found: dict[str, Any], *, seen: bool) -> set[tuple[str, str]]:
    """Return the sender and kind of each packet that was, or was not, seen."""
    return {
        (arrow["sender"], arrow["kind"])
        for arrow in found["exchange"]["arrows"]
        if (arrow["seen_at"] is not None) == seen
    }


def test_the_timeline_of_a_loss_has_a_reset_and_no_reply(findings: dict[str, Any]) -> None:
    for found in findings["lost_reply"]:
        if found["way"] == "graceful_close":
            assert kinds(found, seen=False) == set()
            assert kinds(found, seen=True) >= {
                ("SERVER", "DATA"),
                ("SERVER", "FIN"),
                ("CLIENT", "DATA"),
                ("CLIENT", "FIN"),
            }
        else:
            assert ("SERVER", "DATA") in kinds(found, seen=False)
            assert ("SERVER", "RST") in kinds(found, seen=True)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists its connections")
def test_the_timeline_of_unsent_output_has_every_byte(findings: dict[str, Any]) -> None:
    for found in findings["linger_experiments"]:
        arrived = [
            int(arrow["text"].split()[0].replace(",", ""))
            for arrow in found["exchange"]["arrows"]
            if "bytes" in arrow["text"]
        ]
        assert sum(arrived) == found["received"]
        assert ("SERVER", found["ending"]) in kinds(found, seen=True)


def test_no_progress_is_written_to_a_pipe(
    json_run: CompletedProcess[str], plain_run: CompletedProcess[str]
) -> None:
    assert (json_run.stderr, plain_run.stderr) == ("", "")


def test_without_rich_it_prints_plain_text(plain_run: CompletedProcess[str]) -> None:
    assert plain_run.returncode == 0
    titles = [
        "Unread input: the lost reply",
        "Unsent output: the linger experiments",
        "This platform",
    ]
    lines = plain_run.stdout.splitlines()
    assert [line for line in lines if line in titles] == titles
    assert lines[-1] == "graceful_close lost nothing: 20 of 20 replies."


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_the_output_to_a_pipe_has_no_control_codes_and_no_long_lines(
    plain_run: CompletedProcess[str], columns: int
) -> None:
    result = run(*THE_LAB, "--only", "linger-abort,reply-close", COLUMNS=str(columns))
    assert result.returncode == 0
    for text in (result.stdout, result.stderr, plain_run.stdout, plain_run.stderr):
        assert text.isascii()
        assert text.replace("\n", "").isprintable()
    assert max(map(len, result.stdout.splitlines())) <= columns
    assert max(map(len, plain_run.stdout.splitlines())) <= 80


@pytest.mark.skipif(
    sys.platform == "win32", reason="on Windows SIGINT cannot be sent to one child only"
)
def test_an_interrupt_ends_the_lab_without_a_traceback() -> None:
    # Warnings are not errors here: the signal may arrive between an accept() and its `with`,
    # and then the interpreter closes the socket.
    command = [sys.executable, "-c", INTERRUPTIBLE, "--only", "linger-timed"]
    lab = Terminal(*command, TERM="dumb")
    lab.read_until("TIMED close()\n")
    lab.program.send_signal(signal.SIGINT)
    written = lab.end()
    assert lab.program.returncode == 130
    assert written == "[1/1] unsent output: TIMED close()\n"


@pytest.mark.skipif(
    sys.platform == "win32", reason="on Windows a closed pipe raises another error"
)
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_a_closed_pipe_ends_the_lab_without_a_message(unbuffered: str) -> None:
    command = [*THE_LAB, "--only", "linger-abort,linger-background"]
    environment = environment_with(PYTHONUNBUFFERED=unbuffered)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as lab:
        assert lab.stdout is not None
        assert lab.stderr is not None
        lab.stdout.close()
        errors = lab.stderr.read()
    assert lab.returncode == 141
    assert errors == ""


def test_a_mistake_on_the_command_line_is_explained() -> None:
    result = run(*THE_LAB, "--yaml")
    assert result.returncode == 2
    assert "usage: python -m graceful_close" in result.stderr


def test_an_unknown_experiment_is_rejected_with_a_list_of_all() -> None:
    errors = exits(2, "--only", "platform,linger-forever")
    assert "unknown experiment 'linger-forever'" in errors
    assert all(name in errors for name in NAMES)


def test_without_names_all_experiments_are_chosen_and_names_keep_the_order_of_the_lab() -> None:
    assert chosen([]) == ALL
    assert [each.name for each in chosen(["platform", "reply-close", "reply-close"])] == [
        "reply-close",
        "platform",
    ]
    assert {each.group for each in chosen(["linger"])} == {"linger"}
    assert len(chosen(["linger", "linger-abort"])) == len(WAYS)


def test_several_names_are_given_by_repeating_the_option_or_with_commas() -> None:
    names = ["--only", "linger-abort,linger-background", "--only", "linger-abortive-close"]
    found = json.loads(exits(0, *names, "--json"))
    assert [run["name"] for run in found["linger_experiments"]] == [
        "linger-background",
        "linger-abort",
        "linger-abortive-close",
    ]
    assert found["lost_reply"] == []
    assert found["this_platform"] is None


# --- without a run ---------------------------------------------------------------------------


NOTHING = Exchange((), ())


def example_report(
    *, received: int = 200_000, whole: int = 20, visible: bool = True, error: str | None = None
) -> Report:
    """Make a report as it could be on another system."""
    seen = kernel_view.KernelState("ESTABLISHED", 100) if visible else None
    result = CloseResult(CloseOutcome.TIMED_OUT, 1.0, 0, None, OSError(104, "reset"))
    ending = Ending.FIN if received == 200_000 else Ending.RST
    runs = [
        LingerRun(
            way.name,
            way.title,
            way.promised,
            1.0,
            result if way.name == "linger-graceful-close" else None,
            error,
            seen,
            seen,
            200_000,
            received,
            Ending.RST if way.promised is False else ending,
            NOTHING,
        )
        for way in WAYS
    ]
    lost = {"ECONNRESET": 20 - whole} if whole < 20 else {}
    replies = [
        Replies(way.name, way.title, way.promised, 20, whole, lost, NOTHING)
        for way in lost_reply.WAYS
    ]
    return Report(tuple(runs), tuple(replies), examine())


@pytest.mark.parametrize(
    ("received", "whole", "names"),
    [
        (
            199_999,
            20,
            ["linger-background", "linger-graceful-close", "linger-timed-linger-close"],
        ),
        (200_000, 19, ["reply-graceful-close"]),
    ],
)
def test_a_loss_by_graceful_close_is_reported(
    received: int, whole: int, names: list[str]
) -> None:
    report = example_report(received=received, whole=whole)
    found = json.loads(as_json(report))
    assert found["ok"] is False
    assert found["otherwise"] == names
    *_, lost, otherwise = conclusion(report)
    assert lost.text.startswith("graceful_close LOST DATA")
    assert otherwise.text == f"NOT AS EXPECTED: {', '.join(names)}."
    assert (lost.good, otherwise.good) == (False, False)


def test_an_unexpected_result_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def close_too_early(sock: socket.socket) -> None:
        sock.close()

    broken = lost_reply.WAYS[-1]._replace(close=close_too_early)
    [graceful] = [each for each in ALL if each.name == broken.name]
    experiment = graceful._replace(run=partial(lost_reply.run, broken, tries=1))

    def chosen_by_us(_: Sequence[str]) -> tuple[Experiment, ...]:
        return (experiment,)

    monkeypatch.setattr("graceful_close_lab.lab_command.chosen", chosen_by_us)
    assert main([]) == 1
    assert "NOT AS EXPECTED: reply-graceful-close." in capsys.readouterr().out


def test_an_abort_without_a_reset_at_the_peer_is_not_as_expected() -> None:
    report = Report(
        (LingerRun("x", "x", False, 0, None, None, None, None, 2, 2, Ending.FIN, NOTHING),)
    )
    assert report.otherwise == ("x",)
    assert conclusion(report) == (Words("NOT AS EXPECTED: x.", False),)


def test_a_feature_that_does_not_work_is_not_as_expected() -> None:
    fails = (Trial("it", Verdict.FAILS), Trial("that", Verdict.ABSENT))
    here = ThisPlatform("linux", "Linux", "CPython", None, fails)
    assert Report(this_platform=here).otherwise == ("platform",)
    absent = ThisPlatform("linux", "Linux", "CPython", None, fails[1:])
    assert Report(this_platform=absent).otherwise == ()


def test_a_table_without_kernel_states_has_no_columns_for_them() -> None:
    seen = tables(example_report())[1]
    assert [column.heading for column in seen.columns][3:5] == ["state", "Send-Q"]
    unseen = tables(example_report(visible=False))[1]
    assert "not visible here" in unseen.caption
    assert not {"state", "Send-Q"} & {column.heading for column in unseen.columns}
    assert all(len(row) == len(unseen.columns) for row in unseen.rows)


def test_an_error_of_close_is_shown_in_the_column_of_the_result() -> None:
    table = tables(example_report(error="EWOULDBLOCK"))[1]
    assert table.rows[2][2].text == "EWOULDBLOCK"


@pytest.mark.parametrize("width", [20, 31, 40, 60, 72, 79, 80, 120, 200])
def test_a_table_keeps_all_its_text_at_any_width(width: int) -> None:
    awkward = Table(
        "none",
        "A table",
        "With a caption.",
        (Column("what"), Column("n", right=True), Column("why")),
        [
            (Words("a-word-that-is-longer-than-some"), Words("1,000"), Words("because " * 20)),
            (Words("b"), Words(""), Words("")),
        ],
    )
    for table in (*tables(example_report(whole=7)), awkward):
        lines = ["".join(piece.text for piece in line) for line in lay_out(table, width)]
        assert max(map(len, lines)) <= width
        assert all(line == line.rstrip() for line in lines)
        shown = "".join("".join(lines).split())
        for row in table.rows:
            for cell in row:
                for word in cell.text.split():
                    assert word in shown
        assert shown.startswith("".join((table.title + table.caption).split()))


@pytest.mark.parametrize("width", [30, 40, 60, 80])
def test_a_command_is_not_broken_if_it_fits_on_a_line(width: int) -> None:
    command = "`uvicorn --loop x:y`"
    lines = wrap(f"Some words before it, {command}, and some words after it.", width)
    assert sum(command in line for line in lines) == 1
    assert max(map(len, lines)) <= width


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists its connections")
def test_the_kernel_lists_both_ends_of_a_connection_until_it_is_gone() -> None:
    with loopback.connection() as (ours, peer):
        here, there = ours.getsockname()[1], peer.getsockname()[1]
        assert kernel_view.kernel_state(here, there) == kernel_view.KernelState(
            "ESTABLISHED", 0
        )
        ours.shutdown(socket.SHUT_WR)
        assert peer.recv(1) == b""
        assert kernel_view.kernel_state(there, here) == kernel_view.KernelState("CLOSE_WAIT", 0)
        abortive_close(ours)
        assert kernel_view.kernel_state(here, there) is None


def test_without_the_kernels_list_no_state_is_returned(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(kernel_view, "_FILES", (tmp_path / "tcp",))
    with loopback.connection() as (ours, peer):
        assert kernel_view.kernel_state(ours.getsockname()[1], peer.getsockname()[1]) is None


def test_a_silent_stream_ends_with_neither_fin_nor_reset() -> None:
    with loopback.connection() as (ours, peer):
        ours.sendall(b"some")
        peer.settimeout(0.01)
        assert loopback.read_to_the_end(peer) == (4, Ending.NOTHING)


def test_a_broken_loopback_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no sockets here")

    monkeypatch.setattr(socket, "create_server", refuse)
    assert exits(1) == "graceful-close lab: no sockets here\n"
