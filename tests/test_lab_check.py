"""`python -m graceful_close check`: what it says of servers that lose replies, and of others."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import pytest

from certificates import server_context
from graceful_close import abortive_close, graceful_close
from graceful_close_lab.check import remedy
from graceful_close_lab.check.address import Address, parse
from graceful_close_lab.check.command import _size  # pyright: ignore[reportPrivateUsage]
from graceful_close_lab.check.reply import NotHTTPError, Reply
from graceful_close_lab.command import main
from lab_program import GIVE_UP, THE_LAB, Terminal, lines_of, run
from streams import PATIENCE

ROOT = Path(__file__).parent.parent
BODY = bytes(4096)
HEAD = b"HTTP/1.1 413 Content Too Large\r\nServer: waitress\r\nConnection: close\r\n"
REPLY = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY

READS, SENDS = "READS_WHILE_SENDING", "SENDS_THEN_READS"

Serve = Callable[[socket.socket, bytes], object]


@contextlib.contextmanager
def serving(
    serve: Serve, *, context: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> Generator[str, None, None]:
    """A server that gives each connection, and the head of its request, to `serve`.

    Gives where it listens, as HOST:PORT.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET

    def answer(sock: socket.socket) -> None:
        # A client that gives up resets; what the server thinks of it is not the matter here.
        with contextlib.suppress(OSError), sock:
            sock.settimeout(PATIENCE)
            stream = context.wrap_socket(sock, server_side=True) if context else sock
            with stream:
                head = b""
                while b"\r\n\r\n" not in head:
                    chunk = stream.recv(4096)
                    if not chunk:
                        return
                    head += chunk
                serve(stream, head)

    def accept(listener: socket.socket) -> None:
        while True:
            sock, _ = listener.accept()
            if ended.is_set():
                sock.close()
                return
            threads.append(threading.Thread(target=answer, args=[sock]))
            threads[-1].start()

    ended = threading.Event()
    threads: list[threading.Thread] = []
    with socket.create_server((host, 0), family=family) as listener:
        address = listener.getsockname()[:2]
        threads.append(threading.Thread(target=accept, args=[listener]))
        threads[0].start()
        try:
            yield f"[{host}]:{address[1]}" if ":" in host else f"{host}:{address[1]}"
        finally:
            ended.set()
            with contextlib.suppress(OSError):
                socket.create_connection(address).close()
            for thread in threads:
                thread.join(PATIENCE)


def keeps(sock: socket.socket, head: bytes) -> None:
    sock.sendall(REPLY)
    graceful_close(sock, timeout=PATIENCE)


def loses(sock: socket.socket, head: bytes) -> None:
    sock.sendall(REPLY)
    sock.close()


def reads_all(sock: socket.socket, head: bytes) -> None:
    length = re.search(rb"Content-Length: (\d+)", head)
    assert length is not None
    left = int(length[1]) - len(head.partition(b"\r\n\r\n")[2])
    while left and (chunk := sock.recv(65536)):
        left -= len(chunk)
    sock.sendall(REPLY)
    graceful_close(sock, timeout=PATIENCE)


def says_nothing(sock: socket.socket, head: bytes) -> None:
    while sock.recv(65536):
        pass


def stops_short(sock: socket.socket, head: bytes) -> None:
    sock.sendall(REPLY[:-1])
    graceful_close(sock, timeout=PATIENCE)


def aborts(sock: socket.socket, head: bytes) -> None:
    if head.startswith(b"HEAD "):
        sock.sendall(b"HTTP/1.1 200 OK\r\nServer: gunicorn\r\nContent-Length: 5\r\n\r\n")
        graceful_close(sock, timeout=PATIENCE)
    abortive_close(sock)


def closes(sock: socket.socket, head: bytes) -> None:
    graceful_close(sock, timeout=PATIENCE)


def speaks_ssh(sock: socket.socket, head: bytes) -> None:
    sock.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")
    graceful_close(sock, timeout=PATIENCE)


Check = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Check:
    """Run it here, and give its exit code and what it found."""

    def checked(*arguments: str, tries: int = 3) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        code = main(["check", *arguments, "--tries", str(tries), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return checked


def outcomes(found: dict[str, Any], client: str | None = None) -> set[str]:
    return {
        each["outcome"] for each in found["tries"] if client is None or each["client"] == client
    }


# --- what it says of a server ------------------------------------------------------------------


def test_a_server_that_closes_gracefully_loses_nothing(check: Check) -> None:
    with serving(keeps) as address:
        code, found = check(address)
    assert code == 0
    assert found["verdict"] == "SURVIVED"
    assert outcomes(found) == {"WHOLE"}
    assert (found["whole"], found["lost"], found["remedy"]) == (6, 0, "")
    for each in found["tries"]:
        assert (each["status"], each["received"]) == (413, len(REPLY))
        assert each["early"] is True
    assert all(each["sent"] < 5_000_000 for each in found["tries"] if each["client"] == READS)
    assert all(each["sent"] == 5_000_000 for each in found["tries"] if each["client"] == SENDS)


@pytest.mark.skipif(sys.platform != "linux", reason="what is expected is what Linux does")
def test_a_server_that_just_closes_loses_replies(check: Check) -> None:
    with serving(loses) as address:
        code, found = check(address)
    assert code == 1
    assert found["verdict"] == "LOST"
    # The other client may win the race, on loopback.
    assert outcomes(found, SENDS) == {"RESET"}
    assert found["lost"] >= 3
    details = {each["detail"] for each in found["tries"] if each["outcome"] == "RESET"}
    assert details <= {"ECONNRESET", "EPIPE"}


def test_a_server_that_reads_all_before_it_answers_was_not_tested(check: Check) -> None:
    with serving(reads_all) as address:
        code, found = check(address)
    assert code == 3
    assert found["verdict"] == "NOT_TESTED"
    assert outcomes(found) == {"LATE"}
    assert len(found["tries"]) == 6
    assert "--path" in found["remedy"]
    assert "--upload" in found["remedy"]


def test_an_upload_that_fits_into_the_buffers_is_no_test(check: Check) -> None:
    with serving(reads_all) as address:
        code, found = check(address, "--upload", "1KiB")
    assert (code, outcomes(found)) == (3, {"LATE"})


def test_a_port_where_nobody_listens_is_tried_once(check: Check) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code, found = check(f"127.0.0.1:{port}")
    assert code == 3
    assert [each["outcome"] for each in found["tries"]] == ["REFUSED"]
    assert "start the server" in found["remedy"]


def test_a_server_that_says_nothing_costs_one_timeout(check: Check) -> None:
    with serving(says_nothing) as address:
        code, found = check(address, "--timeout", "0.2")
    assert code == 3
    assert [each["outcome"] for each in found["tries"]] == ["TIMED_OUT"]
    assert 0.2 <= found["tries"][0]["seconds"] < PATIENCE
    assert "--timeout" in found["remedy"]


def test_a_reply_that_waits_behind_a_stuck_upload_is_lost(check: Check) -> None:
    done = threading.Event()

    def holds(sock: socket.socket, head: bytes) -> None:
        sock.sendall(REPLY)
        done.wait(PATIENCE)  # and neither reads nor closes meanwhile

    with serving(holds) as address:
        code, found = check(address, "--timeout", "1.2")
        done.set()
    assert code == 1
    assert outcomes(found, READS) == {"WHOLE"}
    [stuck] = [each for each in found["tries"] if each["client"] == SENDS]
    assert (stuck["outcome"], stuck["early"], stuck["stuck"]) == ("TIMED_OUT", True, True)
    assert stuck["received"] == 0


def test_a_try_that_is_given_up_leaves_no_upload_in_the_kernel(check: Check) -> None:
    given_up = threading.Event()
    ends: list[str] = []

    def looks_later(sock: socket.socket, head: bytes) -> None:
        given_up.wait(PATIENCE)
        try:
            while sock.recv(65536):
                pass
            ends.append("FIN")
        except ConnectionResetError:
            ends.append("RST")

    with serving(looks_later) as address:
        check(address, "--timeout", "0.1")
        given_up.set()
    assert ends == ["RST"]


def test_a_slow_upload_is_not_taken_for_a_stuck_one(check: Check) -> None:
    done = threading.Event()

    def drips(sock: socket.socket, head: bytes) -> None:
        sock.sendall(REPLY)
        while not done.wait(0.01) and sock.recv(4096):
            pass

    with serving(drips) as address:
        code, found = check(address, "--timeout", "0.6")
        done.set()
    assert code == 0
    [slow] = [each for each in found["tries"] if each["client"] == SENDS]
    assert (slow["outcome"], slow["early"], slow["stuck"]) == ("TIMED_OUT", True, False)


def test_what_comes_before_a_reply_does_not_make_it_early(check: Check) -> None:
    def goes_on(sock: socket.socket, head: bytes) -> None:
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        reads_all(sock, head)

    with serving(goes_on) as address:
        code, found = check(address)
    assert (code, outcomes(found)) == (3, {"LATE"})


def test_a_reply_that_stops_short_is_cut_off(check: Check) -> None:
    with serving(stops_short) as address:
        code, found = check(address)
    assert (code, outcomes(found)) == (1, {"CUT_OFF"})
    assert {each["received"] for each in found["tries"]} == {len(REPLY) - 1}


@pytest.mark.skipif(sys.platform != "linux", reason="what is expected is what Linux does")
def test_a_server_that_was_never_heard_is_asked_for_its_name(check: Check) -> None:
    with serving(aborts) as address:
        code, found = check(address)
    assert (code, outcomes(found)) == (1, {"RESET"})
    assert found["server"] == "gunicorn"
    assert "post_fork" in found["remedy"]


def test_a_server_that_closes_without_a_word_has_lost_no_reply(check: Check) -> None:
    with serving(closes) as address:
        code, found = check(address)
    assert (code, outcomes(found)) == (3, {"CLOSED"})


def test_what_is_no_http_is_said_to_be_none(check: Check) -> None:
    with serving(speaks_ssh) as address:
        code, found = check(address)
    assert code == 3
    assert [each["outcome"] for each in found["tries"]] == ["NOT_HTTP"]
    assert "SSH-2.0" in found["tries"][0]["detail"]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_is_spoken_and_an_early_reply_is_known_to_be_one(
    version: ssl.TLSVersion, check: Check
) -> None:
    with serving(keeps, context=server_context(version)) as address:
        code, found = check(f"https://{address}/", "--insecure")
    assert code == 0
    assert outcomes(found) == {"WHOLE"}
    assert all(each["early"] for each in found["tries"])


def test_over_tls_a_late_reply_is_known_to_be_late(check: Check) -> None:
    with serving(reads_all, context=server_context(ssl.TLSVersion.TLSv1_3)) as address:
        code, found = check(f"https://{address}/", "--insecure", tries=1)
    assert (code, outcomes(found)) == (3, {"LATE"})
    assert not any(each["early"] for each in found["tries"])


def test_over_tls_a_lost_reply_is_known_to_be_lost(check: Check) -> None:
    with serving(loses, context=server_context(ssl.TLSVersion.TLSv1_3)) as address:
        code, found = check(f"https://{address}/", "--insecure")
    assert code == 1
    assert outcomes(found, SENDS) <= {"RESET", "CUT_OFF"}


def test_over_tls_a_stuck_upload_is_known_to_be_stuck(check: Check) -> None:
    done = threading.Event()

    def holds(sock: socket.socket, head: bytes) -> None:
        sock.sendall(REPLY)
        done.wait(PATIENCE)

    with serving(holds, context=server_context(ssl.TLSVersion.TLSv1_3)) as address:
        code, found = check(f"https://{address}/", "--insecure", "--timeout", "1.2", tries=1)
        done.set()
    assert code == 1
    assert outcomes(found, READS) == {"WHOLE"}
    assert outcomes(found, SENDS) == {"TIMED_OUT"}


def test_over_tls_an_end_that_nobody_vouches_for_cuts_a_reply_off(check: Check) -> None:
    def vouches_for_nothing(sock: socket.socket, head: bytes) -> None:
        sock.sendall(b"HTTP/1.0 413 No\r\n\r\nit ends at the end of the stream")
        with socket.socket(fileno=sock.detach()) as raw:
            graceful_close(raw, timeout=PATIENCE)  # FIN, without a close_notify

    context = server_context(ssl.TLSVersion.TLSv1_3)
    with serving(vouches_for_nothing, context=context) as address:
        code, found = check(f"https://{address}/", "--insecure")
    assert (code, outcomes(found)) == (1, {"CUT_OFF"})
    assert {each["detail"] for each in found["tries"]} == {"the end without close_notify"}


def test_a_certificate_is_looked_at_unless_it_is_not_to_be(check: Check) -> None:
    with serving(keeps, context=server_context(ssl.TLSVersion.TLSv1_3)) as address:
        code, found = check(f"https://{address}/")
    assert code == 3
    assert [each["outcome"] for each in found["tries"]] == ["TLS_FAILED"]
    assert "not trusted" in found["tries"][0]["detail"]
    assert "--insecure" in found["remedy"]


def test_tls_where_there_is_none_is_no_traceback(check: Check) -> None:
    with serving(keeps) as address:
        code, found = check(f"https://{address}/", "--insecure", "--timeout", "0.3")
    assert code == 3
    assert outcomes(found) <= {"TLS_FAILED", "TIMED_OUT"}


def test_plain_http_where_there_is_tls_is_no_traceback(check: Check) -> None:
    with serving(keeps, context=server_context(ssl.TLSVersion.TLSv1_3)) as address:
        code, _ = check(address, "--timeout", "2")
    assert code in (1, 3)  # what a TLS server says to that differs; a reset is one


def test_the_path_and_the_size_are_what_the_server_is_asked(check: Check) -> None:
    heads: list[bytes] = []

    def keep(sock: socket.socket, head: bytes) -> None:
        heads.append(head.partition(b"\r\n\r\n")[0])
        keeps(sock, head)

    with serving(keep) as address:
        code, found = check(address, "--path", "/up?load", "--upload", "20_000_000", tries=1)
    assert code == 0
    assert found["url"] == f"http://{address}/up?load"
    assert len(heads) == 2
    for head in heads:
        first, *fields = head.decode().split("\r\n")
        assert first == "POST /up?load HTTP/1.1"
        assert f"Host: {address}" in fields
        assert "Content-Length: 20000000" in fields
        assert "Connection: close" in fields


def test_ipv6_is_written_in_brackets(check: Check) -> None:
    try:
        with serving(keeps, host="::1") as address:
            code, found = check(address, tries=1)
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    assert code == 0
    assert found["url"] == f"http://{address}/"


def test_a_name_that_stands_for_two_addresses_is_tried_at_both(check: Check) -> None:
    with serving(keeps) as address:  # IPv4 alone, and localhost may be ::1 first
        code, _ = check(address.replace("127.0.0.1", "localhost"), tries=1)
    assert code == 0


CONTACTS = """
import runpy, sys
def note(event, values):
    if event == "socket.connect":
        print("CONNECT", values[1], file=sys.stderr)
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        print("LOOKUP", values[0], file=sys.stderr)
sys.addaudithook(note)
runpy.run_module("graceful_close", run_name="__main__")
"""


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="its audit events")
def test_nobody_is_contacted_but_who_was_named() -> None:
    def redirects(sock: socket.socket, head: bytes) -> None:
        sock.sendall(
            b"HTTP/1.1 307 Elsewhere\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n"
        )
        graceful_close(sock, timeout=PATIENCE)

    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "ALL_PROXY"), "http://192.0.2.2:1")
    with serving(redirects) as address:
        command = [sys.executable, "-c", CONTACTS, "check", address, "--tries", "1"]
        result = run(*command, **proxies)
    assert result.returncode == 0
    host, _, port = address.partition(":")
    seen = re.findall(r"^(?:CONNECT|LOOKUP) .*$", result.stderr, re.MULTILINE)
    assert seen == [f"LOOKUP {host}", *[f"CONNECT ('{host}', {port})"] * 2]


# --- how it says it ----------------------------------------------------------------------------


def test_a_person_is_told_the_loss_and_the_remedy_in_a_pipe() -> None:
    with serving(loses) as address:
        result = run(*THE_LAB, "check", address, "--tries", "4")
    assert result.returncode == 1
    assert result.stdout.startswith(f"Early replies from http://{address}/\n")
    assert "sends all, then reads         0 of 4  " in result.stdout
    assert re.search(r"^LOST: \d of 8 early replies\.$", result.stdout, re.MULTILINE)
    assert "Remedy: " in result.stdout
    for text in (result.stdout, result.stderr):
        assert text.isascii()
        assert text.replace("\n", "").isprintable()
    assert max(map(len, result.stdout.splitlines())) <= 80
    progress = result.stderr.splitlines()
    assert progress[0] == "[1/8] reads while it sends: try 1 of 4"
    assert progress[-1] == "[8/8] sends all, then reads: try 4 of 4"


def test_a_success_on_one_machine_says_what_it_does_not_prove(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with serving(keeps) as address:
        assert main(["check", address, "--tries", "1"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "All 2 early replies arrived whole." in said
    assert "This was on one machine" in said
    assert "Remedy" not in said


def test_what_a_server_says_does_not_drive_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def paints(sock: socket.socket, head: bytes) -> None:
        sock.sendall(b"HTTP/1.1 400 No\r\nServer: \x1b[2Jfoo\xff\r\nContent-Length: 0\r\n\r\n")
        graceful_close(sock, timeout=PATIENCE)

    with serving(paints) as address:
        assert main(["check", address, "--tries", "1"]) == 0
    said = capsys.readouterr().out
    assert "foo" in said
    assert said.isascii()
    assert said.replace("\n", "").isprintable()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pty")
@pytest.mark.parametrize("columns", [40, 80])
def test_a_terminal_gets_lines_that_fit(columns: int) -> None:
    pytest.importorskip("rich")
    with serving(keeps) as address:
        terminal = Terminal(*THE_LAB, "check", address, "--tries", "2", columns=columns)
        written = terminal.end()
    assert terminal.program.returncode == 0
    lines = lines_of(written)
    assert max(map(len, lines)) <= columns
    assert any("All 4 early replies arrived whole." in line for line in lines)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for a child alone")
def test_an_interrupt_ends_it_without_a_traceback() -> None:
    interruptible = (
        "import runpy, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "runpy.run_module('graceful_close', run_name='__main__')"
    )
    connected = threading.Event()

    def waits(sock: socket.socket, head: bytes) -> None:
        connected.set()
        says_nothing(sock, head)

    with serving(waits) as address:
        command = [sys.executable, "-c", interruptible, "check", address]
        with Popen(command, stdout=PIPE, stderr=PIPE, text=True) as program:
            assert connected.wait(PATIENCE)
            program.send_signal(signal.SIGINT)
            output, errors = program.communicate(timeout=GIVE_UP)
    assert program.returncode == 130
    assert output == ""
    assert errors == "[ 1/20] reads while it sends: try 1 of 10\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "required: address"),
        (["localhost"], "is not HOST:PORT"),
        (["::1"], "is not HOST:PORT"),
        (["localhost:0"], "is not HOST:PORT"),
        (["localhost:99999"], "from 1 to 65535"),
        (["ftp://localhost:21"], "not ftp://"),
        (["http://me:secret@localhost:1"], "no password"),
        (["localhost:1/a", "--path", "/b"], "'/b' in --path and '/a' in the address"),
        (["localhost:1", "--path", "/a b"], "percent-encoded"),
        (["localhost:1", "--path", "/a\r\nX: y"], "percent-encoded"),
        (["localhost:1", "--upload", "much"], "'much' is no size"),
        (["localhost:1", "--upload", "0"], "between 1 byte and"),
        (["localhost:1", "--tries", "0"], "from 1 to 10000"),
        (["localhost:1", "--timeout", "0"], "number of seconds"),
        (["localhost:1", "--timeout", "inf"], "number of seconds"),
        (["localhost:1", "--insecure"], "not https://"),
    ],
)
def test_a_mistake_on_the_command_line_is_explained(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["check", *arguments])
    assert complaint in capsys.readouterr().err


def test_a_name_that_nobody_knows_is_said_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert main(["check", "nobody.invalid:80"]) == 3
    assert capsys.readouterr().err == (
        "python -m graceful_close check: nobody.invalid: Name or service not known\n"
    )


def test_a_resolver_that_never_answers_is_not_waited_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = threading.Event()

    def never(*_: object, **__: object) -> list[object]:
        answer.wait(PATIENCE)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", never)
    try:
        assert main(["check", "slow.invalid:80", "--timeout", "0.05"]) == 3
    finally:
        answer.set()
    assert "not found in time" in capsys.readouterr().err


# --- its parts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8000", Address("127.0.0.1", 8000, False, "/")),
        ("[::1]:8000", Address("::1", 8000, False, "/")),
        ("[0:0::1]:8000/a", Address("::1", 8000, False, "/a")),
        ("http://localhost:8000/a/b?c=d#e", Address("localhost", 8000, False, "/a/b?c=d")),
        ("http://localhost", Address("localhost", 80, False, "/")),
        ("https://localhost", Address("localhost", 443, True, "/")),
        ("https://[::1]?q", Address("::1", 443, True, "/?q")),
        ("bücher.test:80", Address("xn--bcher-kva.test", 80, False, "/")),
    ],
)
def test_an_address_is_read_as_it_is_meant(text: str, address: Address) -> None:
    assert parse(text) == address


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("5MB", 5_000_000),
        ("5 mb", 5_000_000),
        ("64KiB", 65536),
        ("1.5k", 1500),
        ("5_000_000", 5_000_000),
        ("1GiB", 1 << 30),
    ],
)
def test_a_size_is_read_as_it_is_meant(text: str, size: int) -> None:
    assert _size(text) == size


REPLIES = {
    "counted": b"HTTP/1.1 413 No\r\nServer: s\r\nContent-Length: 3\r\n\r\nabc",
    "empty": b"HTTP/1.1 413 No\r\nServer: s\r\ncontent-length: 0\r\n\r\n",
    "no content": b"HTTP/1.0 204 No\r\nServer: s\r\n\r\n",
    "chunked": b"HTTP/1.1 413 No\r\nServer: s\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n",
    "chunked with a trailer": b"HTTP/1.1 413 No\r\nServer: s\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"1\r\na\r\n0\r\nMood: good\r\n\r\n",
    "after others": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\n"
    b"HTTP/1.1 413 No\r\nServer: s\r\nContent-Length: 3\r\n\r\nabc",
}


@pytest.mark.parametrize("data", REPLIES.values(), ids=REPLIES.keys())
def test_a_reply_is_whole_at_its_last_byte_and_not_before(data: bytes) -> None:
    reply = Reply()
    for n in range(len(data)):
        assert not reply.whole
        reply.feed(data[n : n + 1])
    assert reply.whole
    assert reply.status in (413, 204)
    assert reply.server == "s"
    assert reply.received == len(data)
    at_once = Reply()
    at_once.feed(data)
    assert at_once.whole


def test_a_reply_without_a_length_is_whole_at_the_end_of_the_stream() -> None:
    reply = Reply()
    reply.feed(b"HTTP/1.0 500 Oh\r\n\r\nsome, and")
    reply.feed(b" more")
    assert not reply.whole
    reply.feed(b"")
    assert reply.whole


@pytest.mark.parametrize(
    "data",
    [
        b"\x15\x03\x03\x00\x02\x02\x46",
        b"HTTP/2 413\r\n",
        b"HTTP/1.1 teapot\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 413 No\r\nContent-Length: -3\r\n\r\n",
        b"HTTP/1.1 413 No\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\n",
        b"HTTP/1.1 413 " + b"x" * 70_000,
    ],
)
def test_what_is_no_reply_is_refused(data: bytes) -> None:
    with pytest.raises(NotHTTPError):
        Reply().feed(data)


@pytest.mark.parametrize(
    ("server", "word"),
    [
        ("gunicorn", "post_fork"),
        ("gunicorn/20.1.0", "post_fork"),
        ("uvicorn", "uvicorn"),
        ("waitress", "waitress"),
        ("Werkzeug/3.1.3 Python/3.11.7", "GracefulMixIn"),
        ("BaseHTTP/0.6 Python/3.11.7", "GracefulMixIn"),
        ("SimpleHTTP/0.6 Python/3.11.7", "GracefulMixIn"),
        ("WSGIServer/0.2 CPython/3.11.7", "GracefulMixIn"),
        ("Cheroot/10.0.1", "Cheroot"),
        ("CherryPy/18.9.0", "Cheroot"),
        ("hypercorn-h11", "Hypercorn"),
        ("TornadoServer/6.5", "Tornado"),
        ("TwistedWeb/25.5.0", "Twisted"),
        ("gevent/24.2", "gevent"),
        ("Python/3.11 aiohttp/3.12", "aiohttp"),
        ("homemade", "graceful_close.asyncio"),
        ("", "GracefulListener"),
    ],
)
def test_the_remedy_is_for_the_server_that_it_is(server: str, word: str) -> None:
    line = remedy.remedy(server)
    assert word in line
    assert "\n" not in line


def test_every_remedy_has_its_section_on_the_page_of_servers() -> None:
    page = (ROOT / "docs/servers.md").read_text(encoding="utf-8")
    sections = {
        heading.lower().replace(" ", "-")
        for heading in re.findall(r"^## (.+)$", page, re.MULTILINE)
    }
    assert {known.section for known in remedy.REMEDIES} <= sections
