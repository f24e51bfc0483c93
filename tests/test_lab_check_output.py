"""The output and the command line of `graceful-close check`."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from subprocess import PIPE, Popen
from xml.etree import ElementTree

import pytest

from graceful_close_lab.command import main
from lab_program import GIVE_UP, INTERRUPTIBLE, THE_LAB, Terminal, exits, lines_of, run
from serving import (
    Serve,
    closes,
    keeps,
    loses,
    loses_if_closing,
    never_replies,
    reads_all,
    replying,
    serving,
)
from streams import DEADLINE


def test_the_text_in_a_pipe_has_the_loss_and_the_remedy() -> None:
    with serving(loses) as address:
        result = run(*THE_LAB, "check", address, "--tries", "4")
    assert result.returncode == 1
    assert result.stdout.startswith(f"Early replies from http://{address}/\n")
    assert re.search("^keep-alive +http.client +0 of 4  ", result.stdout, re.MULTILINE)
    assert re.search(r"^LOST: \d+ of 20 early replies\.$", result.stdout, re.MULTILINE)
    assert "\nkeep-alive: http.client" in result.stdout
    assert "What to do: " in result.stdout
    assert "See https://" in result.stdout
    assert result.stdout.isascii()
    assert result.stdout.replace("\n", "").isprintable()
    lines = [line for line in result.stdout.splitlines() if not line.startswith("https:")]
    assert max(map(len, lines)) <= 80
    assert result.stderr == ""  # no progress to a pipe


def output_of(serve: Serve, *arguments: str) -> tuple[int, str]:
    """Check a server; return the exit code, and the words on stdout and stderr."""
    with redirect_stdout(StringIO()) as printed, redirect_stderr(printed):
        with serving(serve) as address:
            code = main(["check", address, "--tries", "1", *arguments])
    return code, " ".join(printed.getvalue().split())


def test_a_success_on_one_machine_reports_what_it_does_not_prove() -> None:
    code, output = output_of(keeps)
    assert code == 0
    assert "All 5 early replies arrived complete." in output
    assert "Client and server were on one machine" in output
    assert "What to do" not in output


def test_a_success_with_short_replies_reports_that_they_are_short() -> None:
    assert "No reply was longer than 4," in output_of(keeps)[1]
    is_long = b"HTTP/1.1 413 No\r\nContent-Length: 65536\r\n\r\n" + bytes(65536)
    output = output_of(replying(is_long))[1]
    assert re.search(r"the longest has 65,\d{3} bytes", output)
    assert "No reply was longer" not in output


@pytest.mark.skipif(sys.platform != "linux", reason="the expected results are those of Linux")
def test_a_loss_for_some_clients_names_them() -> None:
    code, output = output_of(loses_if_closing)
    assert code == 1
    assert (
        "LOST for clients that send `Connection: close`: 1 of 5 early replies. The other "
        "clients lost none." in output
    )
    assert "502 Bad Gateway" in output


def test_a_hang_is_not_reported_as_a_loss() -> None:
    code, output = output_of(never_replies, "--timeout", "0.2")
    assert code == 5
    assert "HUNG: 1 of 1 tries." in output
    assert "a graceful close does not help" in output
    assert "LOST" not in output


def test_a_server_that_was_not_tested_has_no_success_reported() -> None:
    code, output = output_of(reads_all)
    assert code == 3
    assert "Not tested: there was no early reply. What to do: " in output


def test_a_status_of_500_is_reported_as_a_server_error() -> None:
    fails = replying(b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n")
    assert "All replies report a server error" in output_of(fails)[1]


def test_quiet_prints_nothing_and_returns_the_exit_code() -> None:
    assert output_of(closes, "--quiet") == (3, "")


# --- JUnit ------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="the expected results are those of Linux")
def test_junit_has_a_case_for_each_kind_of_client(tmp_path: Path) -> None:
    file = tmp_path / "found.xml"
    assert output_of(loses_if_closing, "--junit", str(file))[0] == 1
    suite = ElementTree.parse(file).getroot()
    counts = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "5", "failures": "1", "errors": "0", "skipped": "0"}
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases if len(case)] == ["Connection: close"]
    [failure] = suite.iter("failure")
    assert "reset" in failure.get("message", "")
    assert "https://" in (failure.text or "")


@pytest.mark.parametrize(
    ("serve", "tag", "count"), [(never_replies, "error", 1), (reads_all, "skipped", 5)]
)
def test_junit_has_an_error_for_a_hang_and_skipped_for_an_untested_client(
    serve: Serve, tag: str, count: int, tmp_path: Path
) -> None:
    file = tmp_path / "found.xml"
    output_of(serve, "--junit", str(file), "--timeout", "2")
    assert len(list(ElementTree.parse(file).getroot().iter(tag))) == count


def test_junit_has_errors_for_a_server_that_does_not_listen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    file = tmp_path / "found.xml"
    assert main(["check", f"127.0.0.1:{port}", "--junit", str(file)]) == 4
    assert ElementTree.parse(file).getroot().get("errors") == "5"
    assert f"Could not check http://127.0.0.1:{port}/: connection refused" in (
        capsys.readouterr().out
    )


# --- terminals --------------------------------------------------------------------------------


def test_control_codes_of_a_server_are_escaped() -> None:
    paints = b"HTTP/1.1 400 No\r\nServer: \x1b[2Jfoo\xff\r\nContent-Length: 0\r\n\r\n"
    with serving(replying(paints)) as address:
        output = exits(0, "check", address, "--tries", "1")
    assert "foo" in output
    assert output.isascii()
    assert output.replace("\n", "").isprintable()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pty")
@pytest.mark.parametrize("columns", [40, 80])
def test_the_lines_in_a_terminal_fit_its_width(columns: int) -> None:
    pytest.importorskip("rich")
    with serving(keeps) as address:
        terminal = Terminal(*THE_LAB, "check", address, "--tries", "2", columns=columns)
        written = terminal.end()
    assert terminal.program.returncode == 0
    lines = lines_of(written)
    assert max(map(len, lines)) <= columns
    assert any("All 10 early replies arrived complete." in line for line in lines)


@pytest.mark.skipif(
    sys.platform == "win32", reason="on Windows SIGINT cannot be sent to one child only"
)
def test_an_interrupt_ends_the_check_without_a_traceback() -> None:
    connected = threading.Event()

    def waits(sock: socket.socket, head: bytes) -> None:
        connected.set()
        never_replies(sock, head)

    with serving(waits) as address:
        command = [sys.executable, "-c", INTERRUPTIBLE, "check", address]
        with Popen(command, stdout=PIPE, stderr=PIPE, text=True) as program:
            assert connected.wait(DEADLINE)
            program.send_signal(signal.SIGINT)
            output, errors = program.communicate(timeout=GIVE_UP)
    assert program.returncode == 130
    assert (output, errors) == ("", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "an ADDRESS is required"),
        (["localhost"], "is not HOST:PORT"),
        (["::1"], "is not HOST:PORT"),
        (["localhost:0"], "is not HOST:PORT"),
        (["localhost:99999"], "from 1 to 65535"),
        (["ftp://localhost:21"], "unsupported scheme ftp://"),
        (["http://me:secret@localhost:1"], "credentials"),
        (["localhost:1/a", "--path", "/b"], "'/b' in --path and '/a' in the address"),
        (["localhost:1", "--path", "/a b"], "percent-encoded"),
        (["localhost:1", "--path", "/a\r\nX: y"], "percent-encoded"),
        (["localhost:1", "--upload", "much"], "invalid size 'much'"),
        (["localhost:1", "--upload", "0"], "between 1 byte and"),
        (["localhost:1", "--upload", "9" * 400], "between 1 byte and"),
        (["localhost:1", "--tries", "0"], "from 1 to 10000"),
        (["localhost:1", "--tries", "9" * 5000], "from 1 to 10000"),
        (["localhost:1", "--timeout", "0"], "number of seconds"),
        (["localhost:1", "--timeout", "inf"], "number of seconds"),
        (["localhost:1", "--insecure"], "not https://"),
        (["localhost:1", "--cacert", "/x"], "--cacert: the address is not https://"),
        (["https://localhost:1", "--cacert", "/nowhere/x"], "--cacert: /nowhere/x: "),
        (["localhost:1", "-4", "-6"], "not allowed with"),
        (["localhost:1", "--connect-to", "x"], "'x' is not HOST:PORT"),
        (["--unix-socket", "/x", "--connect-to", "localhost:1"], "cannot be used together"),
        (["localhost:1", "--method", "HEAD"], "not a method that can upload"),
        (["localhost:1", "--method", "PO ST"], "not a method that can upload"),
        (["localhost:1", "--header", "Name"], "is not 'Name: value'"),
        (["localhost:1", "--header", "A: b\r\nC: d"], "is not 'Name: value'"),
        (["localhost:1", "--header", "Connection: close"], "cannot be set"),
        (["localhost:1", "--expect-status", "100"], "not a status"),
        (["localhost:1", "--junit", "/nowhere/x"], "argument --junit: "),
    ],
)
def test_a_mistake_on_the_command_line_is_explained(arguments: list[str], message: str) -> None:
    assert message in exits(2, "check", *arguments)


def test_an_unknown_host_name_is_reported_in_one_line_or_in_json(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # The real resolver is called: the domain "invalid" does not exist (RFC 6761).
    command = ["check", "nobody.invalid:80", "--timeout", "60"]
    assert re.fullmatch("graceful-close check: nobody.invalid: .+\n", exits(4, *command))
    assert main([*command, "--json"]) == 4
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert (found["verdict"], found["exit_code"], found["tries"]) == ("NOT_CONNECTED", 4, [])
    assert found["problem"].startswith("nobody.invalid: ")
    assert output.err == ""


def test_a_resolver_that_never_answers_does_not_block_the_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = threading.Event()

    def never(*_: object, **__: object) -> list[object]:
        answer.wait(DEADLINE)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", never)
    try:
        errors = exits(4, "check", "slow.invalid:80", "--timeout", "0.05")
    finally:
        answer.set()
    assert "could not be resolved in time" in errors
