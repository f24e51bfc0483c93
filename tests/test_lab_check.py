"""`graceful-close check`: what it says of servers that lose replies, and of others."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import sys
import threading
from pathlib import Path

import pytest

from certificates import authority_file, server_context
from graceful_close import graceful_close
from graceful_close_lab.check.outcome import Client
from lab_program import run
from serving import (
    REPLY,
    Serve,
    aborts,
    check,
    closes,
    keeps,
    loses,
    outcomes,
    reads_all,
    says_nothing,
    serving,
    speaks_ssh,
    stops_short,
    verdicts,
)
from streams import PATIENCE

GIVES_UP = ("KEEP_ALIVE", "CLOSE")
CLIENTS = [client.name for client in Client]


def test_a_server_that_closes_gracefully_loses_nothing() -> None:
    with serving(keeps) as address:
        code, found = check(address)
    assert code == 0
    assert (found["verdict"], found["ok"]) == ("SURVIVED", True)
    assert verdicts(found) == dict.fromkeys(CLIENTS, "SURVIVED")
    assert (found["whole"], found["lost"], found["hung"], found["remedy"]) == (15, 0, 0, "")
    assert found["longest_reply"] == len(REPLY)
    for each in found["tries"]:
        assert (each["status"], each["received"]) == (413, len(REPLY))
        assert each["early"] is True


def test_each_kind_of_client_sends_as_much_as_it_does_in_life() -> None:
    with serving(keeps) as address:
        _, found = check(address)
    sent = {name: {each["sent"] for each in found["tries"] if each["client"] == name}
            for name in CLIENTS}  # fmt: skip
    for name in (*GIVES_UP, "SENDS_FIRST"):
        assert sent[name] == {5_000_000}
    assert max(sent["READS"]) < 5_000_000
    assert sent["EXPECT"] == {0}  # it was answered before it began


@pytest.mark.skipif(sys.platform != "linux", reason="what is expected is what Linux does")
def test_a_server_that_just_closes_loses_replies() -> None:
    with serving(loses) as address:
        code, found = check(address)
    assert code == 1
    assert found["verdict"] == "LOST"
    # The others may win the race, on loopback.
    assert outcomes(found, *GIVES_UP) == {"RESET"}
    assert found["lost"] >= 6
    details = {each["detail"] for each in found["tries"] if each["outcome"] == "RESET"}
    assert details <= {"ECONNRESET", "EPIPE"}


@pytest.mark.skipif(sys.platform != "linux", reason="what is expected is what Linux does")
def test_a_server_that_loses_only_where_it_is_asked_to_close_is_said_to_do_that() -> None:
    def reads_on_if_kept(sock: socket.socket, head: bytes) -> None:
        (loses if b"Connection: close" in head else keeps)(sock, head)

    with serving(reads_on_if_kept) as address:
        code, found = check(address)
    assert code == 1
    assert found["verdict"] == "LOST_FOR_SOME"
    assert verdicts(found) == dict.fromkeys(CLIENTS, "SURVIVED") | {"CLOSE": "LOST"}


def test_a_server_that_reads_all_before_it_answers_was_not_tested() -> None:
    with serving(reads_all) as address:
        code, found = check(address, tries=1)
    assert code == 3
    assert found["verdict"] == "NOT_TESTED"
    assert outcomes(found) == {"LATE"}
    assert len(found["tries"]) == 5
    assert "--path" in found["remedy"]
    assert "--upload" in found["remedy"]


def test_an_upload_that_fits_into_the_buffers_is_no_test() -> None:
    with serving(reads_all) as address:
        code, found = check(address, "--upload", "1KiB", tries=1)
    assert (code, outcomes(found)) == (3, {"LATE"})


def test_a_port_where_nobody_listens_is_tried_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code, found = check(f"127.0.0.1:{port}")
    assert code == 4
    assert found["verdict"] == "NOT_CONNECTED"
    assert [each["outcome"] for each in found["tries"]] == ["REFUSED"]
    assert "start it" in found["remedy"]


def test_a_server_that_says_nothing_hangs_and_costs_one_timeout() -> None:
    with serving(says_nothing) as address:
        code, found = check(address, "--timeout", "0.2")
    assert code == 5
    assert found["verdict"] == "HUNG"
    assert [each["outcome"] for each in found["tries"]] == ["TIMED_OUT"]
    assert 0.2 <= found["tries"][0]["seconds"] < PATIENCE
    assert "--timeout" in found["remedy"]


def test_a_server_that_hangs_now_and_then_has_lost_nothing_by_it() -> None:
    asked: list[bytes] = []
    done = threading.Event()

    def hangs_once(sock: socket.socket, head: bytes) -> None:
        asked.append(head)
        if len(asked) == 2:
            done.wait(PATIENCE)
        else:
            keeps(sock, head)

    with serving(hangs_once) as address:
        code, found = check(address, "--timeout", "1.2")
        done.set()
    assert code == 5
    assert found["verdict"] == "HUNG"
    assert (found["whole"], found["lost"], found["hung"]) == (14, 0, 1)
    assert verdicts(found) == dict.fromkeys(CLIENTS, "SURVIVED") | {"KEEP_ALIVE": "HUNG"}


def test_a_reply_that_waits_behind_a_stuck_upload_hangs() -> None:
    done = threading.Event()

    def holds(sock: socket.socket, head: bytes) -> None:
        sock.sendall(REPLY)
        done.wait(PATIENCE)  # and neither reads nor closes meanwhile

    with serving(holds) as address:
        code, found = check(address, "--timeout", "1.2", tries=1)
        done.set()
    assert code == 5
    assert len(found["tries"]) == 1
    [stuck] = found["tries"]
    assert (stuck["outcome"], stuck["early"], stuck["received"]) == ("TIMED_OUT", True, 0)
    assert stuck["detail"] == "while it sent the upload, with the reply there"


def test_a_try_that_is_given_up_leaves_no_upload_in_the_kernel() -> None:
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


def test_an_upload_that_takes_longer_is_not_taken_for_one_that_hangs() -> None:
    with serving(says_nothing) as address:  # and reads, as fast as it can
        code, found = check(address, "--timeout", "0.6", "--upload", "1024GiB")
    assert (code, outcomes(found)) == (3, {"TOO_SLOW"})
    assert "--timeout" in found["remedy"]


def test_what_comes_before_a_reply_does_not_make_it_early() -> None:
    def goes_on(sock: socket.socket, head: bytes) -> None:
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        reads_all(sock, head)

    with serving(goes_on) as address:
        code, found = check(address)
    assert (code, outcomes(found)) == (3, {"LATE"})


def test_a_client_that_was_told_to_continue_stops_when_it_is_refused() -> None:
    def holds_the_end_back(sock: socket.socket, head: bytes) -> None:
        if b"Expect: 100-continue" not in head:
            keeps(sock, head)
            return
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        sock.recv(1)
        sock.sendall(REPLY[:-1])
        sock.settimeout(0.3)
        with contextlib.suppress(TimeoutError):  # as it sends no more
            while sock.recv(65536):
                pass
        sock.sendall(REPLY[-1:])
        graceful_close(sock, timeout=PATIENCE)

    with serving(holds_the_end_back) as address:
        code, found = check(address, tries=1)
    assert (code, outcomes(found)) == (0, {"WHOLE"})
    [each] = [each for each in found["tries"] if each["client"] == "EXPECT"]
    assert 0 < each["sent"] < 5_000_000


def test_a_reply_that_stops_short_is_cut_off() -> None:
    with serving(stops_short) as address:
        code, found = check(address)
    assert (code, outcomes(found)) == (1, {"CUT_OFF"})
    assert {each["received"] for each in found["tries"]} == {len(REPLY) - 1}


@pytest.mark.skipif(sys.platform != "linux", reason="what is expected is what Linux does")
def test_a_server_that_was_never_heard_is_asked_for_its_name() -> None:
    with serving(aborts) as address:
        code, found = check(address)
    assert (code, outcomes(found)) == (1, {"RESET"})
    assert found["server"] == "gunicorn"
    assert "gunicorn -c python:graceful_close.gunicorn" in found["remedy"]


def test_a_server_that_closes_without_a_word_has_lost_no_reply() -> None:
    with serving(closes) as address:
        code, found = check(address)
    assert (code, outcomes(found)) == (3, {"CLOSED"})


def test_a_close_without_a_word_is_a_loss_where_others_were_answered() -> None:
    asked: list[bytes] = []

    def leaves_one_out(sock: socket.socket, head: bytes) -> None:
        asked.append(head)
        (closes if len(asked) == 2 else keeps)(sock, head)

    with serving(leaves_one_out) as address:
        code, found = check(address)
    assert (code, found["lost"]) == (1, 1)
    assert outcomes(found) == {"WHOLE", "MISSING"}


def test_what_is_no_http_is_said_to_be_none() -> None:
    with serving(speaks_ssh) as address:
        code, found = check(address)
    assert code == 4
    assert [each["outcome"] for each in found["tries"]] == ["NOT_HTTP"]
    assert "SSH-2.0" in found["tries"][0]["detail"]


# --- proxies -----------------------------------------------------------------------------------


BY_A_PROXY = b"HTTP/1.1 502 Bad Gateway\r\nServer: nginx/1.27\r\nContent-Length: 0\r\n\r\n"


def answers(reply: bytes, sock: socket.socket, head: bytes) -> None:
    """Once all of it has been read, as a proxy does."""
    length = re.search(rb"Content-Length: (\d+)", head)
    assert length is not None
    left = int(length[1]) - len(head.partition(b"\r\n\r\n")[2])
    while left and (chunk := sock.recv(65536)):
        left -= len(chunk)
    sock.sendall(reply)
    graceful_close(sock, timeout=PATIENCE)


def test_a_502_among_other_replies_is_a_loss_by_a_proxy() -> None:
    asked: list[bytes] = []

    def second_fails(sock: socket.socket, head: bytes) -> None:
        asked.append(head)
        answers(REPLY if len(asked) % 2 else BY_A_PROXY, sock, head)

    with serving(second_fails) as address:
        code, found = check(address, tries=2)
    assert code == 1
    assert (found["verdict"], found["lost"]) == ("LOST", 5)
    assert outcomes(found) == {"LATE", "BY_PROXY"}
    assert "--connect-to" in found["remedy"]


def test_nothing_but_502_is_a_loss_if_a_request_without_an_upload_is_answered() -> None:
    def fails_at_uploads(sock: socket.socket, head: bytes) -> None:
        answers(REPLY if b"Content-Length: 0\r\n" in head else BY_A_PROXY, sock, head)

    with serving(fails_at_uploads) as address:
        code, found = check(address, tries=1)
    assert (code, outcomes(found)) == (1, {"BY_PROXY"})


def test_nothing_but_502_whatever_is_asked_says_nothing_of_early_replies() -> None:
    def fails(sock: socket.socket, head: bytes) -> None:
        answers(BY_A_PROXY, sock, head)

    with serving(fails) as address:
        code, found = check(address, tries=1)
    assert (code, outcomes(found)) == (3, {"LATE"})


def test_a_proxy_that_takes_the_upload_first_hides_the_server_behind_it() -> None:
    def takes_all(sock: socket.socket, head: bytes) -> None:
        answers(REPLY.replace(b"waitress", b"nginx/1.27"), sock, head)

    with serving(takes_all) as address:
        code, found = check(address, tries=1)
    assert code == 3
    assert "Ask the server behind it" in found["remedy"]
    assert "nginx" in found["remedy"]


def test_what_was_expected_is_what_counts() -> None:
    with serving(keeps) as address:
        code, found = check(address, "--expect-status", "401", tries=1)
        assert (code, outcomes(found)) == (3, {"OTHER_STATUS"})
        assert {each["detail"] for each in found["tries"]} == {"HTTP 413"}
        both = ("--expect-status", "401", "--expect-status", "413")
        code, found = check(address, *both, tries=1)
        assert (code, outcomes(found)) == (0, {"WHOLE"})


def test_a_502_that_was_expected_is_no_loss_and_one_that_was_not_is() -> None:
    def fails(sock: socket.socket, head: bytes) -> None:
        sock.sendall(BY_A_PROXY)
        graceful_close(sock, timeout=PATIENCE)

    with serving(fails) as address:
        code, found = check(address, "--expect-status", "502", tries=1)
        assert (code, outcomes(found)) == (0, {"WHOLE"})
        code, found = check(address, "--expect-status", "413", tries=1)
        assert (code, outcomes(found)) == (1, {"BY_PROXY"})


# --- TLS ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_is_spoken_and_an_early_reply_is_known_to_be_one(
    version: ssl.TLSVersion,
) -> None:
    with serving(keeps, context=server_context(version)) as address:
        code, found = check(f"https://{address}/", "--insecure")
    assert code == 0
    assert outcomes(found) == {"WHOLE"}
    assert all(each["early"] for each in found["tries"])


def test_over_tls_a_late_reply_is_known_to_be_late() -> None:
    with serving(reads_all, context=server_context(ssl.TLSVersion.TLSv1_3)) as address:
        code, found = check(f"https://{address}/", "--insecure", tries=1)
    assert (code, outcomes(found)) == (3, {"LATE"})
    assert not any(each["early"] for each in found["tries"])


def test_over_tls_a_lost_reply_is_known_to_be_lost() -> None:
    with serving(loses, context=server_context(ssl.TLSVersion.TLSv1_3)) as address:
        code, found = check(f"https://{address}/", "--insecure")
    assert code == 1
    assert outcomes(found, *GIVES_UP) <= {"RESET", "CUT_OFF"}


def test_over_tls_an_end_that_nobody_vouches_for_cuts_a_reply_off() -> None:
    def vouches_for_nothing(sock: socket.socket, head: bytes) -> None:
        sock.sendall(b"HTTP/1.0 413 No\r\n\r\nit ends at the end of the stream")
        with socket.socket(fileno=sock.detach()) as raw:
            graceful_close(raw, timeout=PATIENCE)  # FIN, without a close_notify

    context = server_context(ssl.TLSVersion.TLSv1_3)
    with serving(vouches_for_nothing, context=context) as address:
        code, found = check(f"https://{address}/", "--insecure")
    assert (code, outcomes(found)) == (1, {"CUT_OFF"})
    assert {each["detail"] for each in found["tries"]} == {"the end without close_notify"}


def test_a_certificate_is_looked_at_unless_it_is_not_to_be() -> None:
    with serving(keeps, context=server_context(ssl.TLSVersion.TLSv1_3)) as address:
        code, found = check(f"https://{address}/")
    assert code == 4
    assert [each["outcome"] for each in found["tries"]] == ["TLS_FAILED"]
    assert "not trusted" in found["tries"][0]["detail"]
    assert "--insecure" in found["remedy"]


def test_tls_where_there_is_none_is_no_traceback() -> None:
    with serving(keeps) as address:
        code, found = check(f"https://{address}/", "--insecure", "--timeout", "0.3")
    assert (code, outcomes(found)) == (4, {"TLS_FAILED"})


def test_a_certificate_of_an_authority_that_was_named_is_trusted(tmp_path: Path) -> None:
    authority = str(authority_file(tmp_path))
    with serving(keeps, context=server_context(ssl.TLSVersion.TLSv1_3)) as address:
        code, found = check(f"https://{address}/", "--cacert", authority, tries=1)
    assert (code, outcomes(found)) == (0, {"WHOLE"})


def test_a_tls_port_that_is_asked_in_plain_is_known_to_be_one() -> None:
    with serving(keeps, context=server_context(ssl.TLSVersion.TLSv1_3)) as address:
        code, found = check(address, "--timeout", "2")
    assert code == 4
    assert [each["detail"] for each in found["tries"]] == ["it speaks TLS"]
    assert "write https://" in found["remedy"]


def test_a_400_is_a_reply_like_others_where_no_tls_is_spoken() -> None:
    def finds_it_bad(sock: socket.socket, head: bytes) -> None:
        if head.startswith(b"POST "):
            sock.sendall(REPLY.replace(b"413 Content Too Large", b"400 Bad Request"))
            graceful_close(sock, timeout=PATIENCE)

    with serving(finds_it_bad) as address:
        code, found = check(address, "--timeout", "1", tries=1)
    assert (code, outcomes(found)) == (0, {"WHOLE"})


# --- where to, and what ------------------------------------------------------------------------


def test_the_path_and_the_size_are_what_the_server_is_asked() -> None:
    heads: list[bytes] = []

    def keep(sock: socket.socket, head: bytes) -> None:
        heads.append(head.partition(b"\r\n\r\n")[0])
        keeps(sock, head)

    with serving(keep) as address:
        code, found = check(address, "--path", "/up?load", "--upload", "20_000_000", tries=1)
    assert code == 0
    assert found["url"] == f"http://{address}/up?load"
    assert len(heads) == 5
    for head in heads:
        first, *fields = head.decode().split("\r\n")
        assert first == "POST /up?load HTTP/1.1"
        assert f"Host: {address}" in fields
        assert "Content-Length: 20000000" in fields
    assert [b"Connection: close" in head for head in heads] == [False, True, *[False] * 3]
    assert [b"Expect: 100-continue" in head for head in heads] == [False] * 2 + [True] + [
        False
    ] * 2


def test_the_method_and_the_fields_are_what_the_server_is_asked_with() -> None:
    heads: list[bytes] = []

    def keep(sock: socket.socket, head: bytes) -> None:
        heads.append(head.partition(b"\r\n\r\n")[0])
        keeps(sock, head)

    fields = ("--header", "authorization: Bearer x", "--header", "HOST: other.test")
    with serving(keep) as address:
        code, _ = check(address, "--method", "PUT", *fields, tries=1)
    assert code == 0
    for head in heads:
        assert head.startswith(b"PUT / HTTP/1.1\r\n")
        assert head.lower().count(b"\r\nhost: ") == 1
        assert b"\r\nHOST: other.test\r\n" in head
        assert b"\r\nauthorization: Bearer x\r\n" in head


def test_the_server_behind_a_name_is_asked_by_that_name() -> None:
    hosts: list[bytes] = []

    def keep(sock: socket.socket, head: bytes) -> None:
        hosts.extend(re.findall(rb"\r\nHost: (.+)\r\n", head))
        keeps(sock, head)

    with serving(keep) as address:
        code, found = check("http://site.invalid/up", "--connect-to", address, tries=1)
    assert code == 0
    assert found["url"] == "http://site.invalid:80/up"
    assert set(hosts) == {b"site.invalid:80"}


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs UNIX sockets")
@pytest.mark.parametrize(("serve", "expected"), [(keeps, 0), (loses, 1)])
def test_a_unix_socket_is_asked_as_a_port_is(
    serve: Serve, expected: int, tmp_path: Path
) -> None:
    path = str(tmp_path / "sock")
    with serving(serve, path=path):
        code, found = check("--unix-socket", path)
    assert code == expected
    assert (found["unix_socket"], found["url"]) == (path, "http://localhost:80/")


def test_a_unix_socket_that_is_not_there_cannot_be_asked(tmp_path: Path) -> None:
    code, found = check("--unix-socket", str(tmp_path / "sock"))
    assert (code, outcomes(found)) == (4, {"UNREACHABLE"})
    assert found["tries"][0]["detail"] == "ENOENT"


def test_one_version_of_ip_is_used_if_one_is_named() -> None:
    with serving(keeps) as address:
        port = address.rpartition(":")[2]
        assert check(f"localhost:{port}", "-4", tries=1)[0] == 0
        code, found = check(f"localhost:{port}", "--ipv6", tries=1)
    assert code == 4
    assert found["verdict"] == "NOT_CONNECTED"  # ::1 refuses it, or there is no IPv6


def test_ipv6_is_written_in_brackets() -> None:
    try:
        with serving(keeps, host="::1") as address:
            code, found = check(address, tries=1)
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    assert code == 0
    assert found["url"] == f"http://{address}/"


def test_a_name_that_stands_for_two_addresses_is_tried_at_both() -> None:
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
    assert seen == [f"LOOKUP {host}", *[f"CONNECT ('{host}', {port})"] * 5]
