"""`graceful-close check` of real servers, started with their usual commands."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from certificates import CERTIFICATE
from graceful_close.socketserver import GracefulMixIn
from serving import check, outcomes, verdicts
from started import commands, free_port, nginx_before, started
from wire.link import ADDRESSES, Journey, Link, why_not
from wire.packets import OURS, PEER, Side

if sys.platform != "linux":
    pytest.skip("the expected results are those of Linux", allow_module_level=True)

HOST = "127.0.0.1"
GIVES_UP = {"KEEP_ALIVE": "LOST", "CLOSE": "LOST"}


def needs(module: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(module) is None
    return pytest.mark.skipif(missing, reason=f"needs {module}")


def check_started(name: str) -> tuple[int, dict[str, Any]]:
    """Start a server on this machine, and return the findings of `check`."""
    port = free_port()
    with started(commands(HOST, port)[name], (HOST, port)):
        return check(f"{HOST}:{port}")


class Refuses(BaseHTTPRequestHandler):
    """Replies 413 without reading the body."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.send_response(413)
        self.send_header("Content-Length", "65536")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(bytes(65536))

    def log_message(self, format: str, *_: object) -> None:  # noqa: A002 - the base's name
        pass


class Graceful(GracefulMixIn, ThreadingHTTPServer):
    pass


def check_http_server(kind: type[ThreadingHTTPServer]) -> tuple[int, dict[str, Any]]:
    """Serve on this machine in a thread, and return the findings of `check`."""
    with kind((HOST, 0), Refuses) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            return check(f"{HOST}:{server.server_address[1]}")
        finally:
            server.shutdown()
            thread.join()


def test_http_server_loses_replies_unless_it_has_the_mixin() -> None:
    code, found = check_http_server(ThreadingHTTPServer)
    assert code == 1
    assert verdicts(found).items() >= GIVES_UP.items()
    assert "GracefulMixIn" in found["remedy"]
    code, found = check_http_server(Graceful)
    assert (code, outcomes(found)) == (0, {"WHOLE"})


@needs("uvicorn")
def test_uvicorn_loses_replies_only_for_clients_that_request_a_close() -> None:
    code, found = check_started("uvicorn")
    assert code == 1
    assert found["verdict"] == "LOST_FOR_SOME"
    assert [name for name, verdict in verdicts(found).items() if verdict == "LOST"] == ["CLOSE"]
    assert "--loop graceful_close.uvicorn:new_loop" in found["remedy"]


@pytest.mark.parametrize("server", ["uvicorn, new_loop", "gunicorn, ready module"])
def test_a_server_started_as_the_remedy_says_loses_no_reply(server: str) -> None:
    pytest.importorskip(server.partition(",")[0])
    code, found = check_started(server)
    assert (code, outcomes(found)) == (0, {"WHOLE"})


@needs("gunicorn")
def test_gunicorn_loses_replies_of_clients_that_send_everything_first() -> None:
    code, found = check_started("gunicorn")
    assert (code, found["server"]) == (1, "gunicorn")
    assert verdicts(found).items() >= GIVES_UP.items()


@needs("gunicorn")
def test_gunicorn_on_a_unix_socket_loses_replies_too(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    command = commands(HOST, 0)["gunicorn"]
    command[command.index("-b") + 1] = f"unix:{path}"
    with started(command, path):
        code, found = check("--unix-socket", str(path))
    assert code == 1
    assert verdicts(found).items() >= GIVES_UP.items()


needs_nginx = pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx")


@needs("gunicorn")
@needs_nginx
def test_a_loss_by_gunicorn_behind_nginx_is_attributed_to_the_server_behind(
    tmp_path: Path,
) -> None:
    port = free_port()
    with started(commands(HOST, port)["gunicorn"], (HOST, port)):
        with nginx_before(f"{HOST}:{port}", tmp_path) as front:
            code, found = check(f"{HOST}:{front}", tries=10)
            behind_code, behind = check(
                f"http://{HOST}:{front}", "--connect-to", f"{HOST}:{port}"
            )
    assert code == 1
    assert "BY_PROXY" in outcomes(found)
    assert found["verdict"] == "LOST"
    assert "nginx is a proxy" in found["remedy"]
    assert (behind_code, behind["server"]) == (1, "gunicorn")


@needs_nginx
def test_the_400_of_a_tls_port_to_a_plain_request_is_detected(
    tmp_path: Path,
) -> None:
    with nginx_before(f"{HOST}:9", tmp_path, CERTIFICATE) as port:
        code, found = check(f"{HOST}:{port}")
    assert code == 4
    [each] = found["tries"]
    assert (each["status"], each["detail"]) == (400, "the port speaks TLS")
    assert "write https://" in found["remedy"]


# --- over a link ---------------------------------------------------------------------------------


class Slow:
    """Delays every packet by 30 ms: a round trip takes 60 ms."""

    def carry(self, raw: bytes, from_: Side, now: float) -> list[Journey]:
        return [Journey.of(raw, from_.other, now + 0.03)]


@pytest.fixture
def link() -> Generator[Link, None, None]:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with closing(Link()) as link:
        link.hand_to(Slow())
        yield link


def check_over(link: Link, name: str) -> tuple[int, dict[str, Any]]:
    """Return the findings of `check` about a server at the other end of a link."""
    host, port = ADDRESSES["IPv4"][OURS], 8000

    def ask() -> tuple[int, dict[str, Any]]:
        with link.inside(PEER):
            return check(f"{host}:{port}", "--upload", "1MB", tries=4)

    # A process inherits the namespace of the thread that starts it.
    with ThreadPoolExecutor(1) as elsewhere, link.inside(OURS):
        with started(commands(host, port)[name], (host, port)):
            return elsewhere.submit(ask).result()


@needs("flask")
def test_flask_loses_replies_of_curl_over_a_link_of_60_ms(link: Link) -> None:
    # Not every reply is lost on a busy machine, because werkzeug waits for 10 ms.
    tries = (check_over(link, "flask run") for _ in range(10))
    code, found = next(each for each in tries if verdicts(each[1])["EXPECT"] == "LOST")
    assert code == 1
    assert found["verdict"] == "LOST"
    assert found["local"] is False
    assert "app.wsgi_app = graceful_close.wsgi.DrainMiddleware" in found["remedy"]


@needs("flask")
def test_flask_with_the_remedy_loses_no_reply_over_that_link(link: Link) -> None:
    code, found = check_over(link, "flask run, DrainMiddleware")
    assert (code, outcomes(found)) == (0, {"WHOLE"})
