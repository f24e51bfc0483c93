"""The mixin for the standard library's servers, and for servers built on them."""

from __future__ import annotations

import os
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from time import monotonic
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from xmlrpc.server import SimpleXMLRPCServer

import pytest
from werkzeug.serving import BaseWSGIServer, ForkingWSGIServer, ThreadedWSGIServer

from certificates import NAME, client_context, server_context
from cpython_tests import NO_TESTS
from graceful_close import CloseOutcome, GracefulListener, LingerPolicy, set_linger
from graceful_close.socketserver import GracefulMixIn
from listening import child
from streams import DEADLINE, ends_in_reset, meanwhile, read_all, wait_until

UPLOAD = bytes(5_000_000)
REQUEST = b"POST /nowhere HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(UPLOAD)
HERE = ("127.0.0.1", 0)


class Refuse(socketserver.BaseRequestHandler):
    """Replies without reading the upload."""

    def handle(self) -> None:
        assert self.request.recv(1) != b""
        self.request.sendall(b"413 too large")


class RefuseHTTP(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.send_error(413)

    def log_message(self, *_args: object, **_more: object) -> None:
        pass


class Quiet(WSGIRequestHandler):
    def log_message(self, *_args: object, **_more: object) -> None:
        pass


def refuse(_environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    start_response("413 Content Too Large", [("Content-Length", "13")])
    return [b"413 too large"]


class GracefulTCPServer(GracefulMixIn, socketserver.TCPServer):
    """Two lines, like the servers of users."""


class GracefulThreadingTCPServer(GracefulMixIn, socketserver.ThreadingTCPServer):
    pass


class GracefulForkingTCPServer(GracefulMixIn, socketserver.ForkingTCPServer):
    pass


def graceful(kind: type[socketserver.BaseServer]) -> Any:
    """Return a subclass of another server with the mixin."""
    return type(f"Graceful{kind.__name__}", (GracefulMixIn, kind), {})


def wsgiref_server() -> WSGIServer:
    server: WSGIServer = graceful(WSGIServer)(HERE, Quiet)
    server.set_app(refuse)
    return server


SERVERS: dict[str, Callable[[], Any]] = {
    "TCPServer": partial(GracefulTCPServer, HERE, Refuse),
    "ThreadingTCPServer": partial(GracefulThreadingTCPServer, HERE, Refuse),
    "ForkingTCPServer": partial(GracefulForkingTCPServer, HERE, Refuse),
    "HTTPServer": partial(graceful(HTTPServer), HERE, RefuseHTTP),
    "ThreadingHTTPServer": partial(graceful(ThreadingHTTPServer), HERE, RefuseHTTP),
    "WSGIServer": wsgiref_server,
    "SimpleXMLRPCServer": partial(graceful(SimpleXMLRPCServer), HERE, logRequests=False),
}


@contextmanager
def serving(server: Any) -> Generator[Any, None, None]:
    with server, meanwhile(partial(server.serve_forever, 0.01)):
        try:
            yield server
        finally:
            server.shutdown()


def client_of(server: Any) -> socket.socket:
    client = socket.socket(server.address_family)
    client.settimeout(DEADLINE)
    client.connect(server.server_address)
    return client


def upload(server: Any) -> bytes:
    with client_of(server) as client:
        client.sendall(REQUEST)
        client.sendall(UPLOAD)
        reply = read_all(client)
        close(client)
        return reply


def close(client: socket.socket) -> None:
    """Close a server although a child of a forking server may have a copy of it."""
    client.shutdown(socket.SHUT_WR)
    client.close()


def ended(server: Any) -> dict[CloseOutcome, int]:
    return {outcome: count for outcome, count in server.reaper.stats().items() if count}


@pytest.mark.parametrize("make", SERVERS.values(), ids=SERVERS.keys())
def test_an_early_reply_arrives_complete(make: Callable[[], Any]) -> None:
    with serving(make()) as server:
        for _ in range(3):
            reply = upload(server)
            assert b"413" in reply or b"404" in reply
    if not isinstance(server, socketserver.ForkingMixIn):
        assert ended(server) == {CloseOutcome.PEER_CLOSED: 3}


@pytest.mark.parametrize("kind", [BaseWSGIServer, ThreadedWSGIServer, ForkingWSGIServer])
def test_an_early_reply_of_werkzeugs_server_arrives_complete(
    kind: type[BaseWSGIServer],
) -> None:
    with serving(graceful(kind)(*HERE, refuse)) as server:
        for _ in range(3):
            with client_of(server) as client, client.makefile("rb") as file:
                client.sendall(REQUEST)
                client.sendall(UPLOAD)
                assert b"413" in file.readline()
                while not file.readline().isspace():
                    pass
                assert file.read(13) == b"413 too large"
                # The server reads until it has 10 MB, or the end of the stream.
                client.shutdown(socket.SHUT_WR)
                assert file.read() == b""
    if not isinstance(server, socketserver.ForkingMixIn):
        assert ended(server) == {CloseOutcome.PEER_CLOSED: 3}


def test_an_early_reply_over_af_unix_arrives_complete(tmp_path: Path) -> None:
    with serving(
        graceful(socketserver.UnixStreamServer)(str(tmp_path / "server"), Refuse)
    ) as server:
        assert upload(server) == b"413 too large"
    assert ended(server) == {CloseOutcome.PEER_CLOSED: 1}


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("kind", [GracefulThreadingTCPServer, GracefulForkingTCPServer])
def test_an_early_reply_over_tls_arrives_complete(
    kind: type[socketserver.TCPServer], version: ssl.TLSVersion
) -> None:
    server = kind(HERE, Refuse)
    server.socket = server_context(version).wrap_socket(server.socket, server_side=True)
    with serving(server):
        with client_context(version).wrap_socket(
            client_of(server), server_hostname=NAME, suppress_ragged_eofs=False
        ) as client:
            client.sendall(UPLOAD)
            assert read_all(client) == b"413 too large"
            close(client)


def test_a_datagram_server_works() -> None:
    class Echo(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data, sock = self.request
            sock.sendto(data, self.client_address)

    with serving(graceful(socketserver.UDPServer)(HERE, Echo)) as server:
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.settimeout(DEADLINE)
            client.sendto(b"datagram", server.server_address)
            assert client.recv(100) == b"datagram"


def test_a_socket_that_is_not_a_stream_is_closed_as_usual(tmp_path: Path) -> None:
    class PacketServer(GracefulMixIn, socketserver.UnixStreamServer):
        socket_type = socket.SOCK_SEQPACKET

    with serving(PacketServer(str(tmp_path / "server"), Refuse)) as server:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.settimeout(DEADLINE)
            client.connect(server.server_address)
            client.sendall(b"packet")
            assert client.recv(100) == b"413 too large"
            assert client.recv(100) == b""
    assert ended(server) == {}


def test_one_thread_serves_the_next_client_while_a_client_does_not_close() -> None:
    with serving(GracefulTCPServer(HERE, Refuse)) as server:
        clients = [client_of(server) for _ in range(3)]
        for client in clients:
            client.sendall(b"x")
            assert read_all(client) == b"413 too large"
        # A client gets the FIN before the Reaper has counted the close.
        wait_until(lambda: len(server.reaper) == 3)
        for client in clients:
            client.close()
    assert ended(server) == {CloseOutcome.PEER_CLOSED: 3}


def test_closing_the_server_is_limited_by_the_timeout_of_its_closes() -> None:
    class ShortTimeout(GracefulThreadingTCPServer):
        reaper_options = {"timeout": 0.1}  # noqa: RUF012

    with serving(ShortTimeout(HERE, Refuse)) as server, client_of(server) as client:
        client.sendall(b"x")
        assert read_all(client) == b"413 too large"
        started = monotonic()
        server.server_close()
        assert monotonic() - started < 5
        assert ended(server) == {CloseOutcome.TIMED_OUT: 1}


def test_closing_an_unused_server_returns_immediately() -> None:
    with GracefulTCPServer(HERE, Refuse) as server:
        pass
    with socket.socket() as sock, pytest.raises(RuntimeError, match="closed"):
        server.reaper.submit(sock)


def test_a_server_that_sets_so_linger_to_abort_resets() -> None:
    class Abort(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            assert self.request.recv(1) == b"x"
            set_linger(self.request, LingerPolicy.ABORT)

    with serving(GracefulTCPServer(HERE, Abort)) as server, client_of(server) as client:
        client.sendall(b"x")
        assert ends_in_reset(client)
        assert ended(server) == {}


def test_a_server_may_close_the_request_itself() -> None:
    class Own(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(b"all")
            self.request.close()

    with serving(GracefulTCPServer(HERE, Own)) as server, client_of(server) as client:
        assert read_all(client) == b"all"


def test_close_request_is_called_as_usual() -> None:
    closed: list[int] = []

    class Watched(GracefulTCPServer):
        def close_request(self, request: Any) -> None:
            closed.append(request.fileno())
            super().close_request(request)

    with serving(Watched(HERE, Refuse)) as server:
        assert upload(server) == b"413 too large"
    assert closed == [-1]


def test_an_overridden_shutdown_request_of_a_base_is_called() -> None:
    ended: list[int] = []

    class Counting(socketserver.TCPServer):
        def shutdown_request(self, request: Any) -> None:
            ended.append(request.fileno())
            super().shutdown_request(request)

    class Server(GracefulMixIn, Counting):
        pass

    with serving(Server(HERE, Refuse)) as server:
        assert upload(server) == b"413 too large"
    assert ended == [-1]


def test_a_forking_server_waits_only_in_the_child() -> None:
    """The parent does not wait for a child's connection, nor for one that it rejects itself."""

    class Rejecting(GracefulForkingTCPServer):
        served = 0

        def verify_request(self, request: Any, client_address: Any) -> bool:
            self.served += 1
            return self.served != 2

    with serving(Rejecting(HERE, Refuse)) as server:
        clients = [client_of(server) for _ in range(4)]
        for client in clients:
            client.sendall(b"x")
        replies = [read_all(client) for client in clients]
        assert replies == [b"413 too large", b"", b"413 too large", b"413 too large"]
        for client in clients:
            close(client)
    assert ended(server) == {CloseOutcome.PEER_CLOSED: 1}


def test_a_prefork_server_closes_gracefully_in_each_child() -> None:
    server = GracefulTCPServer(HERE, Refuse)

    def serve_two() -> None:
        for _ in range(2):
            server.handle_request()
        server.server_close()
        assert ended(server) == {CloseOutcome.PEER_CLOSED: 2}

    with child(serve_two):
        for _ in range(2):
            assert upload(server) == b"413 too large"
    server.server_close()


def test_threads_share_one_reaper() -> None:
    """This is also true if the first connections end at the same moment."""
    server = GracefulThreadingTCPServer(HERE, Refuse, bind_and_activate=False)
    barrier = threading.Barrier(8)
    seen: list[object] = []

    def look() -> None:
        barrier.wait()
        seen.append(server.reaper)

    with ExitStack() as threads:
        for _ in range(8):
            threads.enter_context(meanwhile(look))
    server.server_close()
    assert len({id(reaper) for reaper in seen}) == 1


def test_a_server_with_the_mixin_may_use_a_graceful_listener() -> None:
    server = GracefulTCPServer(HERE, Refuse, bind_and_activate=False)
    server.socket.close()
    server.socket = GracefulListener(HERE)
    server.server_address = server.socket.getsockname()
    with server.socket.reaper, serving(server):
        assert upload(server) == b"413 too large"
    assert ended(server) == {CloseOutcome.PEER_CLOSED: 1}


# --- CPython's own tests ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ["test_httpservers"],
        ["test_socketserver"],
        ["test_wsgiref"],
        # The other tests have waits of 30 seconds.
        [
            f"test_xmlrpc.{name}TestCase"
            for name in ("SimpleServer", "GzipServer", "FailingServer")
        ],
    ],
    ids=lambda names: names[0].partition(".")[0],
)
def test_cpythons_own_tests_pass_with_graceful_servers(names: list[str]) -> None:
    """`python tests/cpython_tests.py` runs all of them."""
    ran = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("cpython_tests.py")), *names],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if ran.returncode == NO_TESTS:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{ran.stderr.strip()} (Debian: apt install libpython3-testsuite)")
        pytest.skip(ran.stderr.strip())
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " peer closed" in ran.stdout, "no connection was closed gracefully"
