"""A server that stops, a failed handshake, and an incomplete reply."""

from __future__ import annotations

import signal
import socket
import socketserver
import ssl
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, redirect_stderr, suppress
from io import StringIO
from time import monotonic
from typing import Any

import pytest
from werkzeug.serving import make_server

import descriptors
from certificates import NAME, client_context, server_context
from graceful_close import CloseOutcome, GracefulListener, Reaper
from graceful_close.socketserver import GracefulMixIn
from graceful_close.werkzeug import GracefulRequestHandler
from pythons import PYPY
from signals import each_moment
from streams import DEADLINE, ends_in_reset, meanwhile, read_all, reset

HERE = ("127.0.0.1", 0)
REPLY = b"HTTP/1.1 503 Service Unavailable\r\n\r\n"


# --- the backlog -----------------------------------------------------------------------------


@contextmanager
def waiting(listener: socket.socket, count: int) -> Generator[list[socket.socket], None, None]:
    """Connect clients that send a request, and are not accepted yet."""
    clients: list[socket.socket] = []
    try:
        for _ in range(count):
            client = socket.create_connection(listener.getsockname(), timeout=DEADLINE)
            clients.append(client)
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        yield clients
    finally:
        for client in clients:
            client.close()


@pytest.mark.parametrize(
    "timeout", [None, 0.0, 5.0], ids=["blocking", "non-blocking", "timeout"]
)
def test_clients_in_the_backlog_read_the_reply_and_the_end(
    timeout: float | None,
) -> None:
    with GracefulListener(HERE, backlog=20) as listener, waiting(listener, 10) as clients:
        listener.settimeout(timeout)

        def read_and_close() -> None:
            for client in clients:
                assert read_all(client) == REPLY
                client.close()

        with meanwhile(read_and_close):
            results = listener.refuse_backlog(REPLY, timeout=DEADLINE)
        assert [result.outcome for result in results] == [CloseOutcome.PEER_CLOSED] * 10
        assert listener.gettimeout() == timeout, "the mode of the listener is unchanged"
        assert listener.refuse_backlog(REPLY) == []


def test_a_backlog_longer_than_the_free_descriptors_is_refused_in_turns() -> None:
    with GracefulListener(HERE, backlog=20) as listener, waiting(listener, 10) as clients:

        def read_and_close(client: socket.socket) -> bytes:
            client.settimeout(None)  # with a timeout, recv() itself calls poll()
            received = b"".join(iter(lambda: client.recv(1000), b""))
            client.close()
            return received

        with ExitStack() as stack:
            readers = [
                stack.enter_context(meanwhile(read_and_close, client)) for client in clients
            ]
            stack.callback(listener.close)  # ends the readers of what was not refused
            with descriptors.none_left(but=3):
                results = listener.refuse_backlog(REPLY, timeout=DEADLINE)
        assert [result.outcome for result in results] == [CloseOutcome.PEER_CLOSED] * 10
        assert readers == [[REPLY]] * 10


def test_clients_that_keep_the_last_descriptors_do_not_delay_a_refusal_beyond_its_deadline() -> (
    None
):
    with GracefulListener(HERE, backlog=20) as listener, waiting(listener, 3) as clients:
        started = monotonic()
        with descriptors.none_left(but=1), pytest.raises(OSError, match="open files"):
            listener.refuse_backlog(REPLY, timeout=0.05)
        assert monotonic() - started < DEADLINE / 2
        assert read_all(clients[0]) == REPLY


@pytest.mark.skipif(sys.platform != "linux", reason="another system does not return it")
def test_a_client_in_the_backlog_that_has_reset_is_reported_without_a_signal() -> None:
    """A reset after the client's FIN gives EPIPE, at which the kernel sends SIGPIPE."""
    action = signal.signal(signal.SIGPIPE, signal.default_int_handler)
    try:
        with GracefulListener(HERE) as listener, waiting(listener, 2) as clients:
            clients[0].shutdown(socket.SHUT_WR)
            for client in clients:
                reset(client)
            results = listener.refuse_backlog(REPLY)
    finally:
        signal.signal(signal.SIGPIPE, action)
    assert [result.outcome for result in results] == [CloseOutcome.PEER_RESET] * 2
    assert [type(result.error) for result in results] == [BrokenPipeError, ConnectionResetError]


def test_a_plain_close_of_a_listener_resets_clients_in_the_backlog() -> None:
    with GracefulListener(HERE, backlog=20) as listener, waiting(listener, 1) as (client,):
        listener.close()
        assert ends_in_reset(client)


def test_clients_that_never_close_cost_the_timeout_once() -> None:
    with GracefulListener(HERE, backlog=20) as listener, waiting(listener, 5):
        results = listener.refuse_backlog(timeout=0.05)
    assert [result.outcome for result in results] == [CloseOutcome.TIMED_OUT] * 5
    assert max(result.elapsed for result in results) < DEADLINE / 2


@pytest.mark.skipif(PYPY, reason="PyPy runs signal handlers before calls of C functions, too")
def test_an_interrupt_leaves_the_mode_of_the_listener_unchanged() -> None:
    with GracefulListener(HERE) as listener:
        for stopped in each_moment(("return", "c_call")):
            with stopped():
                listener.refuse_backlog(timeout=0)
            assert listener.gettimeout() is None


@pytest.mark.parametrize(("argument", "value"), [("timeout", -1), ("reply", "503")])
def test_a_wrong_argument_raises_before_any_accept(argument: str, value: Any) -> None:
    with GracefulListener(HERE) as listener, waiting(listener, 1):
        with pytest.raises((TypeError, ValueError), match=f"^{argument} must be .*, not "):
            listener.refuse_backlog(**{argument: value})
        listener.accept()[0].close()
        listener.reaper.close(0)


# --- a handler that raises --------------------------------------------------------------------


class Half(socketserver.BaseRequestHandler):
    """Sends half of its reply, then raises."""

    error: type[BaseException] = ValueError

    def handle(self) -> None:
        self.request.recv(100)
        self.request.sendall(b"the first half, ")
        raise self.error


class HalfAndExit(Half):
    error = SystemExit


class Server(GracefulMixIn, socketserver.TCPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Record the error instead of printing it."""
        with redirect_stderr(StringIO()):
            super().handle_error(request, client_address)


class Lenient(Server):
    abort_on_error = False


@contextmanager
def asked(server: socketserver.TCPServer) -> Generator[socket.socket, None, None]:
    """A client of a server that serves one request in another thread."""

    def serve() -> None:
        try:
            raise ModuleNotFoundError
        except ModuleNotFoundError:  # a server that was started while an exception is handled
            with suppress(SystemExit):
                server.handle_request()

    with (
        server,
        meanwhile(serve),
        socket.create_connection(server.socket.getsockname(), timeout=DEADLINE) as client,
    ):
        client.sendall(b"GET")
        yield client


@pytest.mark.parametrize("handler", [Half, HalfAndExit])
def test_an_incomplete_reply_ends_with_a_reset(handler: type[Half]) -> None:
    with asked(Server(HERE, handler)) as client:
        assert ends_in_reset(client)


def test_an_exception_that_is_not_the_handlers_ends_no_reply_with_a_reset() -> None:
    class Whole(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(100)
            self.request.sendall(b"whole")

    with asked(Server(HERE, Whole)) as client:
        assert read_all(client) == b"whole"


class Quiet(GracefulRequestHandler):
    def log(self, *_args: object, **_more: object) -> None:
        pass


@pytest.mark.parametrize("raises", [False, True])
def test_werkzeugs_handler_hands_over_unless_the_application_raises(raises: bool) -> None:
    class Handler(Quiet):
        reaper = Reaper(timeout=DEADLINE)

    def app(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if raises:
            raise SystemExit
        start_response("413 Content Too Large", [("Content-Length", "0")])
        return []

    server = make_server("127.0.0.1", 0, app, request_handler=Handler)
    with asked(server) as client:
        client.sendall(b" / HTTP/1.0\r\n\r\n")
        read_all(client)
    Handler.reaper.close()
    closed = Handler.reaper.stats()[CloseOutcome.PEER_CLOSED]
    assert closed == (0 if raises else 1)


def test_werkzeugs_handler_does_not_wait_for_a_peer_that_sends_no_more() -> None:
    class Handler(Quiet):
        reaper = Reaper(timeout=DEADLINE)

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("413 Content Too Large", [("Content-Length", "3")])
        return [environ["wsgi.input"].read(3)]

    with asked(make_server("127.0.0.1", 0, app, request_handler=Handler)) as client:
        # More than BufferedReader reads with the head.
        client.sendall(b" / HTTP/1.0\r\nContent-Length: 100000\r\n\r\n123" + bytes(50_000))
        assert read_all(client).endswith(b"\r\n\r\n123")
    Handler.reaper.close()
    assert Handler.reaper.stats()[CloseOutcome.PEER_CLOSED] == 1


def test_a_lenient_server_ends_an_incomplete_reply_with_a_fin() -> None:
    with asked(Lenient(HERE, Half)) as client:
        assert read_all(client) == b"the first half, "


# --- a refused handshake ----------------------------------------------------------------------


def test_the_alert_of_a_failed_handshake_arrives() -> None:
    context = server_context(ssl.TLSVersion.TLSv1_3)
    context.verify_mode = ssl.CERT_REQUIRED
    server = Server(HERE, Half)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    raw = server.socket.getsockname()
    with (
        server,
        meanwhile(server.handle_request),
        socket.create_connection(raw, timeout=DEADLINE) as plain,
    ):
        client = client_context(ssl.TLSVersion.TLSv1_3).wrap_socket(plain, server_hostname=NAME)
        with client:
            # In TLS 1.3 the client finishes its handshake before the server has verified the
            # certificate.
            client.sendall(bytes(100_000))
            with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
                client.recv(1)
