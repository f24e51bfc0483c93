"""The parts of `graceful-close check`, tested separately."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from graceful_close_lab.check import remedy
from graceful_close_lab.check.address import Address, connect_to, parse
from graceful_close_lab.check.command import _size  # pyright: ignore[reportPrivateUsage]
from graceful_close_lab.check.outcome import Client, Outcome, Try
from graceful_close_lab.check.reply import NotHTTPError, Reply
from graceful_close_lab.check.verdict import Findings, Verdict
from graceful_close_lab.documentation import SITE

ROOT = Path(__file__).parent.parent


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
def test_an_address_is_parsed(text: str, address: Address) -> None:
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
def test_a_size_is_parsed(text: str, size: int) -> None:
    assert _size(text) == size


REPLIES = {
    "counted": b"HTTP/1.1 413 No\r\nServer: s\r\nContent-Length: 3\r\n\r\nabc",
    "empty": b"HTTP/1.1 413 No\r\nServer: s\r\ncontent-length: 0\r\n\r\n",
    "no content": b"HTTP/1.0 204 No\r\nServer: s\r\n\r\n",
    "chunked": b"HTTP/1.1 413 No\r\nServer: s\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n",
    "chunked with a trailer": b"HTTP/1.1 413 No\r\nServer: s\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"1\r\na\r\n0\r\nMood: good\r\n\r\n",
    "lines end with LF alone": b"HTTP/1.1 413 No\nServer: s\nContent-Length: 3\n\nabc",
    "after others": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\n"
    b"HTTP/1.1 413 No\r\nServer: s\r\nContent-Length: 3\r\n\r\nabc",
}


@pytest.mark.parametrize("data", REPLIES.values(), ids=REPLIES.keys())
def test_a_reply_is_complete_at_its_last_byte_and_not_before(data: bytes) -> None:
    reply = Reply()
    for n in range(len(data)):
        assert not reply.whole
        reply.feed(data[n : n + 1])
    assert reply.whole
    assert reply.status in (413, 204)
    assert reply.server == "s"
    assert reply.received == len(data)
    in_one_part = Reply()
    in_one_part.feed(data)
    assert in_one_part.whole


def test_a_reply_without_a_length_is_complete_at_the_end_of_the_stream() -> None:
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
        b"HTTP/1.1 413 No\r\n" + b"x: y\r\n" * 12_000,
        b"HTTP/1.1 " + b"4" * 5000 + b"\r\n\r\n",
    ],
)
def test_bytes_that_are_not_an_http_reply_are_rejected(data: bytes) -> None:
    with pytest.raises(NotHTTPError):
        Reply().feed(data)


def findings(server: str, outcome: Outcome, client: Client = Client.KEEP_ALIVE) -> Findings:
    made = Try(client, outcome, True, 413, server, 0, 100, 0.1, "")
    return Findings("http://localhost:80/", 5_000_000, (made,), server)


@pytest.mark.parametrize(
    ("server", "word"),
    [
        ("gunicorn", "gunicorn -c python:graceful_close.gunicorn"),
        ("gunicorn/20.1.0", "gunicorn -c python:graceful_close.gunicorn"),
        ("uvicorn", "--loop graceful_close.uvicorn:new_loop"),
        ("granian", "graceful_close.wsgi.DrainMiddleware"),
        ("waitress", "graceful_close.waitress.serve(app)"),
        ("Werkzeug/3.1.3 Python/3.11.7", "app.wsgi_app"),
        ("BaseHTTP/0.6 Python/3.11.7", "GracefulMixIn"),
        ("SimpleHTTP/0.6 Python/3.11.7", "GracefulMixIn"),
        ("WSGIServer/0.2 CPython/3.11.7", "GracefulMixIn"),
        ("Cheroot/10.0.1", "subclass the server"),
        ("CherryPy/18.9.0", "cherrypy.server.httpserver"),
        ("hypercorn-h11", "graceful_close.asgi.DrainMiddleware"),
        ("TornadoServer/6.5", "add_sockets"),
        ("TwistedWeb/25.5.0", "protocol"),
        ("gevent/24.2", "graceful_close.wsgi.DrainMiddleware"),
        ("Python/3.11 aiohttp/3.12", "SockSite"),
        ("uWebSockets: 20", "graceful_close.asgi.DrainMiddleware"),
        ("homemade", "find your command"),
        ("", "uWSGI, granian, gevent, eventlet"),
        ("nginx/1.27.0", "Check the server behind it"),
        ("Caddy", "Caddy is a proxy"),
    ],
)
def test_the_remedy_is_for_the_servers_software(server: str, word: str) -> None:
    words, link = remedy.advice(findings(server, Outcome.RESET))
    assert word in words
    assert "\n" not in words
    assert link.startswith("https://")


@pytest.mark.parametrize("outcome", [Outcome.WHOLE, Outcome.LATE])
@pytest.mark.parametrize(
    "server", ["daphne", "TwistedWeb/26.10", "Python/3.11 aiohttp/3.12", "Apache/2.4"]
)
def test_a_server_that_needs_no_fix_is_reported_as_such(server: str, outcome: Outcome) -> None:
    if (server, outcome) == ("Apache/2.4", Outcome.LATE):
        return  # it may be a proxy
    assert "needs no fix" in remedy.advice(findings(server, outcome)).words
    assert "needs no fix" not in remedy.advice(findings(server, Outcome.RESET)).words


@pytest.mark.parametrize("outcome", Outcome)
def test_every_problem_has_advice(outcome: Outcome) -> None:
    found = findings("", outcome)
    assert bool(remedy.advice(found).words) == (found.verdict is not Verdict.SURVIVED)


def anchors(page: str) -> set[str]:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    headings = re.findall(r"^##+ (.+)$", text, re.MULTILINE)
    return {
        *(heading.lower().replace(" ", "-") for heading in headings),
        *re.findall(r"^\(([a-z-]+)\)=$", text, re.MULTILINE),
    }


@pytest.mark.parametrize(
    "server",
    ["", *(mark for known in remedy.REMEDIES for mark in known.marks), *remedy.PROXIES],
)
def test_every_remedy_links_to_a_section_that_exists(server: str) -> None:
    link = remedy.advice(findings(server, Outcome.RESET)).link
    page, _, section = link.removeprefix(SITE).partition(".html")
    assert section.removeprefix("#") in {"", *anchors(page)}


def test_a_loss_by_a_client_in_its_default_configuration_is_the_verdict_lost() -> None:
    for client in Client:
        lost = findings("", Outcome.RESET, client).verdict
        assert lost is (Verdict.LOST if client.by_default else Verdict.LOST_FOR_SOME)


@pytest.mark.parametrize("text", ["http://localhost:80", "localhost:80/path", "localhost"])
def test_connect_to_accepts_only_a_host_and_a_port(text: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        connect_to(text)
    assert connect_to("[::1]:8000") == ("::1", 8000)
