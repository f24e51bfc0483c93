"""graceful_close.wsgi: its calls, with every call checked against PEP 3333."""

from __future__ import annotations

import io
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest

from graceful_close._options import Options
from graceful_close._request_body import DrainBounds
from graceful_close.wsgi import DrainMiddleware
from streams import DEADLINE, Connection

BODY = b"one\ntwo\nthree\n"
REPLY = b"no\n"


class Input(io.BytesIO):
    """The body of a request, as a server offers it."""

    @property
    def left(self) -> int:
        return len(self.getvalue()) - self.tell()


App = Callable[[dict[str, Any], Any], Iterable[bytes]]


def environment(body: Any, **more: Any) -> dict[str, Any]:
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "POST",
        "CONTENT_LENGTH": str(len(BODY)),
        "QUERY_STRING": "",
        "wsgi.input": body,
        **more,
    }
    setup_testing_defaults(environ)
    return environ


def refuse(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("401 Unauthorized", [("Content-Type", "text/plain")])
    return [REPLY]


def after(act: Callable[[Any], object]) -> App:
    """Return an application that refuses a request after it has done something with its input."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        act(environ["wsgi.input"])
        return refuse(environ, start_response)

    return app


def start(status: str, headers: object, exc_info: object = None) -> Callable[[bytes], object]:
    return lambda data: None


def serve(app: App, environ: dict[str, Any], **options: Any) -> tuple[bytes, int]:
    """Serve a request as PEP 3333 requires.

    Returns:
        The reply, and how much of the body was unread when the reply was complete.
    """
    checked: Any = validator(DrainMiddleware(validator(app), **options))
    body = environ["wsgi.input"]
    reply = checked(environ, start)
    try:
        received = b"".join(reply)
        unread = body.left
    finally:
        reply.close()
    return received, unread


def test_the_rest_of_the_request_is_read_after_the_reply() -> None:
    body = Input(BODY)
    assert serve(refuse, environment(body)) == (REPLY, len(BODY))
    assert body.left == 0


READS: dict[str, Callable[[Any], object]] = {
    "read": lambda stream: stream.read(5),
    "readline": lambda stream: stream.readline(),
    "readlines": lambda stream: stream.readlines(5),
    "iteration": lambda stream: next(iter(stream)),
    "a read of 0 bytes": lambda stream: stream.read(0),
}


@pytest.mark.parametrize("way", READS)
def test_bytes_that_the_application_has_read_are_not_read_again(way: str) -> None:
    seen: list[int] = []

    class Counting(Input):
        def read(self, size: int | None = -1, /) -> bytes:
            seen.append(-1 if size is None else size)
            return super().read(size)

    body = Counting(BODY + b"the next request")
    serve(after(READS[way]), environment(body))
    assert body.left == len("the next request")
    assert all(size >= 0 for size in seen), "no more than the body has"


# Frameworks call these if the server's input has them: werkzeug's form parser calls readinto().
BEYOND_PEP_3333: dict[str, Callable[[Any], object]] = {
    "read1": lambda stream: stream.read1(5),
    "readinto": lambda stream: stream.readinto(bytearray(5)),
    "readinto1": lambda stream: stream.readinto1(bytearray(5)),
    "readinto of 0 bytes": lambda stream: stream.readinto(bytearray()),
}


@pytest.mark.parametrize("way", BEYOND_PEP_3333)
def test_bytes_that_were_read_in_another_way_are_not_read_again(way: str) -> None:
    body = Input(BODY + b"the next request")
    reply: Any = DrainMiddleware(after(BEYOND_PEP_3333[way]))(environment(body), start)
    reply.close()
    assert body.left == len("the next request")


def test_the_input_has_no_more_methods_than_that_of_the_server() -> None:
    class Pep3333:
        read = readline = readlines = __iter__ = None

    def look(stream: object) -> None:
        assert not hasattr(stream, "readinto")

    DrainMiddleware(after(look))(environment(Pep3333()), start)


def test_a_body_that_was_read_to_its_end_is_not_read_again() -> None:
    class Ended(Input):
        ended = False

        def read(self, size: int | None = -1, /) -> bytes:
            assert not self.ended
            data = super().read(size)
            self.ended = not data
            return data

    def read_all(stream: Any) -> None:
        while stream.read(4):
            pass

    # The client sent less than its Content-Length.
    serve(after(read_all), environment(Ended(BODY[:-2])))


@pytest.mark.parametrize(
    "more",
    [
        {"CONTENT_LENGTH": "0"},
        {"CONTENT_LENGTH": ""},
        {"CONTENT_LENGTH": "", "HTTP_TRANSFER_ENCODING": "chunked"},
        {"CONTENT_LENGTH": "", "wsgi.input_terminated": True},
    ],
    ids=["empty", "no body", "chunked, with no end known", "no body that ends"],
)
def test_requests_without_a_body_are_passed_unchanged(more: dict[str, Any]) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        assert environ["wsgi.input"] is body
        return reply

    body = Input(BODY)
    reply = [b"as it is"]
    environ = environment(body, **more)
    assert DrainMiddleware(app)(environ, None) is reply  # type: ignore[arg-type]


def test_a_chunked_body_is_read_to_its_end() -> None:
    more = {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True}
    environ = environment(Input(BODY), **more)
    del environ["CONTENT_LENGTH"]
    body = environ["wsgi.input"]
    assert serve(refuse, environ) == (REPLY, len(BODY))
    assert body.left == 0


def test_an_exception_of_the_application_propagates_to_the_server() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        raise LookupError("intended")

    body = Input(BODY)
    with pytest.raises(LookupError, match="intended"):
        serve(app, environment(body))
    assert body.left == 0


def test_the_close_of_the_reply_is_called_once_before_the_drain() -> None:
    happened: list[str] = []

    class Reply:
        def __iter__(self) -> Iterator[bytes]:
            yield REPLY

        def close(self) -> None:
            happened.append("closed")

    class Body(Input):
        def read(self, size: int | None = -1, /) -> bytes:
            happened.append("read")
            return super().read(size)

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("401 Unauthorized", [("Content-Type", "text/plain")])
        return Reply()

    serve(app, environment(Body(BODY)))
    assert happened == ["closed", "read"]


def test_a_close_that_raises_is_reported_after_the_drain() -> None:
    class Reply(list[bytes]):
        def close(self) -> None:
            raise LookupError("intended")

    body = Input(BODY)
    reply: Any = DrainMiddleware(lambda environ, start_response: Reply())(
        environment(body),
        None,  # type: ignore[arg-type]
    )
    with pytest.raises(LookupError, match="intended"):
        reply.close()
    assert body.left == 0


def test_the_length_of_a_reply_is_kept_if_it_has_one() -> None:
    def of(reply: Iterable[bytes]) -> Any:
        app = DrainMiddleware(lambda environ, start_response: reply)
        return app(environment(Input(BODY)), None)  # type: ignore[arg-type]

    assert len(of([b"one"])) == 1
    assert not hasattr(of(iter([b"one"])), "__len__")


@pytest.mark.parametrize(
    ("more", "options", "left"),
    [
        ({}, {"drain_limit": 5}, len(BODY) - 5),
        ({}, {"timeout": 0}, len(BODY)),
        ({"HTTP_EXPECT": "100-continue"}, {}, len(BODY)),
    ],
    ids=["a limit of bytes", "a timeout of 0", "a client that waits for 100 Continue"],
)
def test_the_drain_reads_no_more_than_it_may(
    more: dict[str, str], options: dict[str, Any], left: int
) -> None:
    body = Input(BODY)
    serve(refuse, environment(body, **more), **options)
    assert body.left == left


def test_an_exception_of_the_input_during_the_drain_is_not_propagated() -> None:
    class Broken(Input):
        def read(self, size: int | None = -1, /) -> bytes:
            raise ConnectionResetError

    assert serve(refuse, environment(Broken(BODY))) == (REPLY, len(BODY))


FAILING = {name: way for name, way in (READS | BEYOND_PEP_3333).items() if "0" not in name}


@pytest.mark.parametrize("way", FAILING)
@pytest.mark.parametrize("error", [TimeoutError, ValueError("a malformed chunk")])
def test_nothing_is_read_after_a_read_of_the_application_failed(
    way: str, error: OSError | ValueError
) -> None:
    reads: list[str] = []

    class Failing:
        def __getattr__(self, name: str) -> Callable[[object], bytes]:
            def fail(_size: object = -1) -> bytes:
                reads.append(name)
                raise error

            return fail

    with pytest.raises((OSError, ValueError)):
        DrainMiddleware(after(FAILING[way]))(environment(Failing()), start)
    assert len(reads) == 1


def test_a_client_that_got_100_continue_is_drained() -> None:
    body = Input(BODY)
    serve(after(READS["read"]), environment(body, HTTP_EXPECT="100-continue"))
    assert body.left == 0


class Shown:
    """A body whose server exposes its connection."""

    def __init__(self, ours: socket.socket) -> None:
        self.stream = ours.makefile("rb")
        self.fileno = ours.fileno
        self.count = 0

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.count += len(data)
        return data


def drained(ours: socket.socket, *, expect: str = "", **options: Any) -> int:
    """Return how much of a request of 100,000 bytes is drained."""
    shown = Shown(ours)
    environ = environment(shown, CONTENT_LENGTH="100000", HTTP_EXPECT=expect)
    reply: Any = DrainMiddleware(refuse, **options)(environ, start)
    with shown.stream:
        reply.close()
    assert ours.getblocking()
    assert os.get_blocking(ours.fileno())
    return shown.count


@pytest.mark.parametrize("options", [{"idle_timeout": 0.5}, {"timeout": 0.5}])
def test_a_read_that_blocks_ends_at_the_deadline_if_the_connection_is_known(
    options: dict[str, Any], tcp: Connection
) -> None:
    tcp.peer.sendall(bytes(1000))
    assert drained(tcp.ours, **options) == 1000


def test_a_body_that_may_not_come_is_waited_for_for_a_second() -> None:
    options = Options(60.0, idle_timeout=30.0)
    assert DrainBounds(options, 10.0, may_not_come=False).seconds(10.0) == 30.0
    bounds = DrainBounds(options, 10.0, may_not_come=True)
    assert bounds.seconds(10.0) == 1.0
    bounds.received(5, 10.5)
    assert bounds.seconds(10.5) == 30.0, "it has begun"


def test_a_client_without_100_continue_is_not_waited_for_if_the_connection_is_known(
    tcp: Connection,
) -> None:
    assert drained(tcp.ours, timeout=DEADLINE, expect="100-continue") == 0


def test_the_drain_does_not_change_the_timeout_of_the_servers_socket(tcp: Connection) -> None:
    tcp.ours.settimeout(None)
    socket.setdefaulttimeout(7)
    try:
        assert drained(tcp.ours, timeout=0.1) == 0
    finally:
        socket.setdefaulttimeout(None)


def test_no_thread_is_left(tcp: Connection) -> None:
    before = threading.active_count()
    tcp.peer.sendall(bytes(100_000))
    assert drained(tcp.ours, timeout=DEADLINE) == 100_000
    assert threading.active_count() == before
