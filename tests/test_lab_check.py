"""`graceful-close check`: its findings about servers that lose replies, and about others."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import sys
import threading
from pathlib import Path

import pytest

from certificates import AUTHORITY, server_context
from graceful_close import graceful_close
from graceful_close_lab.check.outcome import Client
from lab_program import run
from pythons import PYPY, RESET_AS_SSL_ERROR
from serving import (
    REPLY,
    Serve,
    aborts,
    check,
    check_server,
    closes,
    in_turn,
    keeps,
    loses,
    loses_if_closing,
    never_replies,
    outcomes,
    reads_all,
    replying,
    serving,
    verdicts,
)
from streams import DEADLINE

TLS = server_context(ssl.TLSVersion.TLSv1_3)
GIVES_UP = ("KEEP_ALIVE", "CLOSE")
CLIENTS = [client.name for client in Client]


def test_a_server_that_closes_gracefully_loses_nothing() -> None:
    code, found = check_server(keeps)
    assert code == 0
    assert (found["verdict"], found["ok"]) == ("SURVIVED", True)
    assert verdicts(found) == dict.fromkeys(CLIENTS, "SURVIVED")
    assert (found["whole"], found["lost"], found["hung"], found["remedy"]) == (15, 0, 0, "")
    assert found["longest_reply"] == len(REPLY)
    for each in found["tries"]:
        assert (each["status"], each["received"]) == (413, len(REPLY))
        assert each["early"] is True


def test_each_kind_of_client_sends_as_much_as_the_real_clients() -> None:
    _, found = check_server(keeps)
    sent = {name: {each["sent"] for each in found["tries"] if each["client"] == name}
            for name in CLIENTS}  # fmt: skip
    for name in (*GIVES_UP, "SENDS_FIRST"):
        assert sent[name] == {5_000_000}
    assert max(sent["READS"]) < 5_000_000
    assert sent["EXPECT"] == {0}  # the reply arrived before the upload began


@pytest.mark.skipif(sys.platform != "linux", reason="the expected results are those of Linux")
def test_a_server_that_only_calls_close_loses_replies() -> None:
    code, found = check_server(loses)
    assert code == 1
    assert found["verdict"] == "LOST"
    # On loopback the other clients may read the reply before the reset.
    assert outcomes(found, *GIVES_UP) == {"RESET"}
    assert found["lost"] >= 6
    details = {each["detail"] for each in found["tries"] if each["outcome"] == "RESET"}
    assert details <= {"ECONNRESET", "EPIPE"}


@pytest.mark.skipif(sys.platform != "linux", reason="the expected results are those of Linux")
def test_a_server_that_loses_only_when_a_client_requests_a_close_is_reported_as_such() -> None:
    code, found = check_server(loses_if_closing)
    assert code == 1
    assert found["verdict"] == "LOST_FOR_SOME"
    assert verdicts(found) == dict.fromkeys(CLIENTS, "SURVIVED") | {"CLOSE": "LOST"}


@pytest.mark.parametrize("upload", ["5MB", "1KiB"], ids=["long", "fits into the buffers"])
def test_a_server_that_reads_everything_before_it_replies_is_not_tested(upload: str) -> None:
    code, found = check_server(reads_all, "--upload", upload, tries=1)
    assert code == 3
    assert found["verdict"] == "NOT_TESTED"
    assert outcomes(found) == {"LATE"}
    assert len(found["tries"]) == 5
    assert "--path" in found["remedy"]
    assert "--upload" in found["remedy"]


def test_a_port_without_a_listener_is_tried_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code, found = check(f"127.0.0.1:{port}")
    assert code == 4
    assert found["verdict"] == "NOT_CONNECTED"
    assert [each["outcome"] for each in found["tries"]] == ["REFUSED"]
    assert "server is running" in found["remedy"]


def test_a_server_that_never_replies_hangs_for_one_timeout() -> None:
    code, found = check_server(never_replies, "--timeout", "0.2")
    assert code == 5
    assert found["verdict"] == "HUNG"
    assert [each["outcome"] for each in found["tries"]] == ["TIMED_OUT"]
    assert 0.2 <= found["tries"][0]["seconds"] < DEADLINE
    assert "--timeout" in found["remedy"]


def test_an_occasional_hang_is_not_a_loss() -> None:
    done = threading.Event()

    def hangs(sock: socket.socket, head: bytes) -> None:
        done.wait(DEADLINE)

    with serving(in_turn(keeps, hangs, keeps)) as address:
        code, found = check(address, "--timeout", "1.2")
        done.set()
    assert code == 5
    assert found["verdict"] == "HUNG"
    assert (found["whole"], found["lost"], found["hung"]) == (14, 0, 1)
    assert verdicts(found) == dict.fromkeys(CLIENTS, "SURVIVED") | {"KEEP_ALIVE": "HUNG"}


def test_an_unread_reply_during_a_stuck_upload_is_a_hang() -> None:
    done = threading.Event()

    def never_reads(sock: socket.socket, head: bytes) -> None:
        sock.sendall(REPLY)
        done.wait(DEADLINE)  # without a read or a close

    with serving(never_reads) as address:
        code, found = check(address, "--timeout", "1.2", tries=1)
        done.set()
    assert code == 5
    assert len(found["tries"]) == 1
    [stuck] = found["tries"]
    assert (stuck["outcome"], stuck["early"], stuck["received"]) == ("TIMED_OUT", True, 0)
    assert stuck["detail"] == "while sending the upload, after the reply had arrived"


def test_a_try_that_times_out_leaves_no_upload_in_the_kernel() -> None:
    given_up = threading.Event()
    ends: list[str] = []

    def looks_later(sock: socket.socket, head: bytes) -> None:
        given_up.wait(DEADLINE)
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


def test_a_slow_upload_is_not_a_hang() -> None:
    with serving(never_replies) as address:  # it reads as fast as it can
        code, found = check(address, "--timeout", "0.6", "--upload", "1024GiB")
    assert (code, outcomes(found)) == (3, {"TOO_SLOW"})
    assert "--timeout" in found["remedy"]


def test_an_interim_reply_is_not_an_early_reply() -> None:
    def continues(sock: socket.socket, head: bytes) -> None:
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        reads_all(sock, head)

    code, found = check_server(continues)
    assert (code, outcomes(found)) == (3, {"LATE"})


def test_a_client_stops_its_upload_at_an_error_after_100_continue() -> None:
    def delays_the_end(sock: socket.socket, head: bytes) -> None:
        if b"Expect: 100-continue" not in head:
            keeps(sock, head)
            return
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        sock.recv(1)
        sock.sendall(REPLY[:-1])
        sock.settimeout(0.3)
        with contextlib.suppress(TimeoutError):  # the client has stopped
            while sock.recv(65536):
                pass
        sock.sendall(REPLY[-1:])
        graceful_close(sock, timeout=DEADLINE)

    code, found = check_server(delays_the_end, tries=1)
    assert (code, outcomes(found)) == (0, {"WHOLE"})
    [each] = [each for each in found["tries"] if each["client"] == "EXPECT"]
    assert 0 < each["sent"] < 5_000_000


def test_an_incomplete_reply_is_reported_as_truncated() -> None:
    code, found = check_server(replying(REPLY[:-1]))
    assert (code, outcomes(found)) == (1, {"CUT_OFF"})
    assert {each["received"] for each in found["tries"]} == {len(REPLY) - 1}


@pytest.mark.skipif(sys.platform != "linux", reason="the expected results are those of Linux")
def test_the_name_of_a_server_is_found_by_a_request_without_an_upload() -> None:
    code, found = check_server(aborts)
    assert (code, outcomes(found)) == (1, {"RESET"})
    assert found["server"] == "gunicorn"
    assert "gunicorn -c python:graceful_close.gunicorn" in found["remedy"]


def test_a_server_that_never_replies_before_its_close_has_lost_no_reply() -> None:
    code, found = check_server(closes)
    assert (code, outcomes(found)) == (3, {"CLOSED"})


def test_a_close_without_a_reply_is_a_loss_if_other_tries_got_one() -> None:
    code, found = check_server(in_turn(keeps, closes, keeps))
    assert (code, found["lost"]) == (1, 1)
    assert outcomes(found) == {"WHOLE", "MISSING"}


def test_a_server_that_does_not_speak_http_is_reported_as_such() -> None:
    code, found = check_server(replying(b"SSH-2.0-OpenSSH_9.9\r\n"))
    assert code == 4
    assert [each["outcome"] for each in found["tries"]] == ["NOT_HTTP"]
    assert "SSH-2.0" in found["tries"][0]["detail"]


# --- proxies ----------------------------------------------------------------------------------


BY_A_PROXY = b"HTTP/1.1 502 Bad Gateway\r\nServer: nginx/1.27\r\nContent-Length: 0\r\n\r\n"


def test_a_502_among_other_replies_is_a_loss_by_a_proxy() -> None:
    fails = replying(BY_A_PROXY, reads_first=True)
    code, found = check_server(in_turn(*[reads_all, fails] * 5, reads_all), tries=2)
    assert code == 1
    assert (found["verdict"], found["lost"]) == ("LOST", 5)
    assert outcomes(found) == {"LATE", "BY_PROXY"}
    assert "--connect-to" in found["remedy"]


def test_502_for_every_upload_is_a_loss_if_an_empty_request_gets_another_status() -> None:
    def fails_at_uploads(sock: socket.socket, head: bytes) -> None:
        reply = REPLY if b"Content-Length: 0\r\n" in head else BY_A_PROXY
        replying(reply, reads_first=True)(sock, head)

    code, found = check_server(fails_at_uploads, tries=1)
    assert (code, outcomes(found)) == (1, {"BY_PROXY"})


def test_502_for_every_request_does_not_test_early_replies() -> None:
    code, found = check_server(replying(BY_A_PROXY, reads_first=True), tries=1)
    assert (code, outcomes(found)) == (3, {"LATE"})


def test_behind_a_proxy_that_buffers_uploads_the_server_is_not_tested() -> None:
    by_nginx = REPLY.replace(b"waitress", b"nginx/1.27")
    code, found = check_server(replying(by_nginx, reads_first=True), tries=1)
    assert code == 3
    assert "Check the server behind it" in found["remedy"]
    assert "nginx" in found["remedy"]


def test_only_replies_with_an_expected_status_count() -> None:
    with serving(keeps) as address:
        code, found = check(address, "--expect-status", "401", tries=1)
        assert (code, outcomes(found)) == (3, {"OTHER_STATUS"})
        assert {each["detail"] for each in found["tries"]} == {"HTTP 413"}
        both = ("--expect-status", "401", "--expect-status", "413")
        code, found = check(address, *both, tries=1)
        assert (code, outcomes(found)) == (0, {"WHOLE"})


def test_a_502_is_a_loss_only_if_it_is_not_expected() -> None:
    with serving(replying(BY_A_PROXY)) as address:
        code, found = check(address, "--expect-status", "502", tries=1)
        assert (code, outcomes(found)) == (0, {"WHOLE"})
        code, found = check(address, "--expect-status", "413", tries=1)
        assert (code, outcomes(found)) == (1, {"BY_PROXY"})


# --- TLS --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "serve", "code", "outcome"),
    [
        (ssl.TLSVersion.TLSv1_2, keeps, 0, "WHOLE"),
        (ssl.TLSVersion.TLSv1_3, keeps, 0, "WHOLE"),
        (ssl.TLSVersion.TLSv1_3, reads_all, 3, "LATE"),
    ],
    ids=["early, TLS 1.2", "early", "late"],
)
def test_over_tls_early_and_late_replies_are_told_apart(
    version: ssl.TLSVersion, serve: Serve, code: int, outcome: str
) -> None:
    answer, found = check_server(serve, "--insecure", context=server_context(version))
    assert (answer, outcomes(found)) == (code, {outcome})
    assert {each["early"] for each in found["tries"]} == {serve is keeps}


@pytest.mark.skipif(PYPY, reason=RESET_AS_SSL_ERROR)
def test_over_tls_a_lost_reply_is_detected() -> None:
    code, found = check_server(loses, "--insecure", context=TLS)
    assert code == 1
    assert outcomes(found, *GIVES_UP) <= {"RESET", "CUT_OFF"}


def test_over_tls_an_end_without_close_notify_truncates_a_reply() -> None:
    def sends_no_close_notify(sock: socket.socket, head: bytes) -> None:
        sock.sendall(b"HTTP/1.0 413 No\r\n\r\nit ends at the end of the stream")
        with socket.socket(fileno=sock.detach()) as raw:
            graceful_close(raw, timeout=DEADLINE)  # FIN, without a close_notify

    code, found = check_server(sends_no_close_notify, "--insecure", context=TLS)
    assert (code, outcomes(found)) == (1, {"CUT_OFF"})
    assert {each["detail"] for each in found["tries"]} == {"TLS ended without close_notify"}


def test_the_certificate_is_verified_without_insecure() -> None:
    code, found = check_server(keeps, context=TLS)
    assert code == 4
    assert [each["outcome"] for each in found["tries"]] == ["TLS_FAILED"]
    assert "not trusted" in found["tries"][0]["detail"]
    assert "--insecure" in found["remedy"]


def test_https_to_a_plain_server_is_reported_without_a_traceback() -> None:
    with serving(keeps) as address:
        code, found = check(f"https://{address}/", "--insecure", "--timeout", "0.3")
    assert (code, outcomes(found)) == (4, {"TLS_FAILED"})


def test_a_certificate_of_an_authority_that_was_named_is_trusted() -> None:
    code, found = check_server(keeps, "--cacert", str(AUTHORITY), tries=1, context=TLS)
    assert (code, outcomes(found)) == (0, {"WHOLE"})


def test_a_plain_request_to_a_tls_port_is_detected() -> None:
    with serving(keeps, context=TLS) as address:
        code, found = check(address, "--timeout", "2")
    assert code == 4
    assert [each["detail"] for each in found["tries"]] == ["the port speaks TLS"]
    assert "write https://" in found["remedy"]


def test_a_400_from_a_plain_server_is_a_normal_reply() -> None:
    def finds_it_bad(sock: socket.socket, head: bytes) -> None:
        if head.startswith(b"POST "):
            replying(REPLY.replace(b"413 Content Too Large", b"400 Bad Request"))(sock, head)

    code, found = check_server(finds_it_bad, "--timeout", "1", tries=1)
    assert (code, outcomes(found)) == (0, {"WHOLE"})


# --- the address and the request --------------------------------------------------------------


def noting() -> tuple[list[bytes], Serve]:
    """Return a server, and the list of the heads of its requests."""
    heads: list[bytes] = []

    def keep(sock: socket.socket, head: bytes) -> None:
        heads.append(head)
        keeps(sock, head)

    return heads, keep


def test_the_request_has_the_path_and_the_size_of_the_options() -> None:
    heads, keep = noting()
    with serving(keep) as address:
        code, found = check(address, "--path", "/up?load", "--upload", "20_000_000", tries=1)
    assert code == 0
    assert found["url"] == f"http://{address}/up?load"
    assert len(heads) == 5
    for head in heads:
        first, *fields = head.partition(b"\r\n\r\n")[0].decode().split("\r\n")
        assert first == "POST /up?load HTTP/1.1"
        assert f"Host: {address}" in fields
        assert "Content-Length: 20000000" in fields
    assert [b"Connection: close" in head for head in heads] == [False, True, *[False] * 3]
    expects = [b"Expect: 100-continue" in head for head in heads]
    assert expects == [False, False, True, False, False]


def test_the_request_has_the_method_and_the_header_fields_of_the_options() -> None:
    heads, keep = noting()
    fields = ("--header", "authorization: Bearer x", "--header", "HOST: other.test")
    code, _ = check_server(keep, "--method", "PUT", *fields, tries=1)
    assert code == 0
    for head in heads:
        assert head.startswith(b"PUT / HTTP/1.1\r\n")
        assert head.lower().count(b"\r\nhost: ") == 1
        assert b"\r\nHOST: other.test\r\n" in head
        assert b"\r\nauthorization: Bearer x\r\n" in head


def test_a_request_by_connect_to_has_the_host_name_of_the_url() -> None:
    heads, keep = noting()
    with serving(keep) as address:
        code, found = check("http://site.invalid/up", "--connect-to", address, tries=1)
    assert code == 0
    assert found["url"] == "http://site.invalid:80/up"
    hosts = {host for head in heads for host in re.findall(rb"\r\nHost: (.+)\r\n", head)}
    assert hosts == {b"site.invalid:80"}


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs UNIX sockets")
@pytest.mark.parametrize(("serve", "expected"), [(keeps, 0), (loses, 1)])
def test_a_server_on_a_unix_socket_is_checked_like_one_on_a_port(
    serve: Serve, expected: int, tmp_path: Path
) -> None:
    path = str(tmp_path / "sock")
    with serving(serve, path=path):
        code, found = check("--unix-socket", path)
    assert code == expected
    assert (found["unix_socket"], found["url"]) == (path, "http://localhost:80/")


def test_a_missing_unix_socket_is_reported_as_unreachable(tmp_path: Path) -> None:
    code, found = check("--unix-socket", str(tmp_path / "sock"))
    assert (code, outcomes(found)) == (4, {"UNREACHABLE"})
    assert found["tries"][0]["detail"] == "ENOENT"


def test_only_the_named_version_of_ip_is_used() -> None:
    with serving(keeps) as address:
        port = address.rpartition(":")[2]
        assert check(f"localhost:{port}", "-4", tries=1)[0] == 0
        code, found = check(f"localhost:{port}", "--ipv6", tries=1)
    assert code == 4
    # ::1 refuses the connection, or there is no IPv6.
    assert found["verdict"] == "NOT_CONNECTED"


def test_ipv6_is_written_in_brackets() -> None:
    try:
        with serving(keeps, host="::1") as address:
            code, found = check(address, tries=1)
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    assert code == 0
    assert found["url"] == f"http://{address}/"


def test_a_name_with_two_addresses_is_tried_at_both() -> None:
    with serving(keeps) as address:  # IPv4 only, and localhost may be ::1 first
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
def test_only_the_named_server_is_contacted() -> None:
    redirect = (
        b"HTTP/1.1 307 Elsewhere\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n"
    )
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "ALL_PROXY"), "http://192.0.2.2:1")
    with serving(replying(redirect)) as address:
        command = [sys.executable, "-c", CONTACTS, "check", address, "--tries", "1"]
        result = run(*command, **proxies)
    assert result.returncode == 0
    host, _, port = address.partition(":")
    seen = re.findall(r"^(?:CONNECT|LOOKUP) .*$", result.stderr, re.MULTILINE)
    assert seen == [f"LOOKUP {host}", *[f"CONNECT ('{host}', {port})"] * 5]
