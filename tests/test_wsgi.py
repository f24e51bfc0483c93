"""graceful_close.wsgi, call by call, with every call checked against PEP 3333."""

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

from graceful_close.wsgi import DrainMiddleware
from streams import PATIENCE

BODY = b"one\ntwo\nthree\n"
REPLY = b"no\n"


class Input(io.BytesIO):
    """A request's body, as a server shows it."""

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


def start(status: str, headers: object, exc_info: object = None) -> Callable[[bytes], object]:
    return lambda data: None


def serve(app: App, environ: dict[str, Any], **options: Any) -> tuple[bytes, int]:
    """Serve a request as PEP 3333 says.

    Returns:
        The reply, and how much of the body was unread when the last of it was there.
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


def test_the_rest_is_read_when_the_reply_is_out() -> None:
    body = Input(BODY)
    assert serve(refuse, environment(body)) == (REPLY, len(BODY))
    assert body.left == 0


READS: dict[str, Callable[[Any], object]] = {
    "read": lambda stream: stream.read(5),
    "readline": lambda stream: stream.readline(),
    "readlines": lambda stream: stream.readlines(5),
    "iteration": next,
    "a read of nothing": lambda stream: stream.read(0),
}


@pytest.mark.parametrize("way", READS)
def test_what_the_application_has_read_is_not_read_again(way: str) -> None:
    seen: list[int] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        stream = environ["wsgi.input"]
        READS[way](iter(stream) if way == "iteration" else stream)
        return refuse(environ, start_response)

    class Counting(Input):
        def read(self, size: int | None = -1, /) -> bytes:
            seen.append(-1 if size is None else size)
            return super().read(size)

    body = Counting(BODY + b"the next request")
    serve(app, environment(body))
    assert body.left == len("the next request")
    assert all(size >= 0 for size in seen), "no more than there is"


def test_a_body_that_was_read_to_its_end_is_left_alone() -> None:
    class Ended(Input):
        ended = False

        def read(self, size: int | None = -1, /) -> bytes:
            assert not self.ended
            data = super().read(size)
            self.ended = not data
            return data

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        while environ["wsgi.input"].read(4):
            pass
        return refuse(environ, start_response)

    serve(app, environment(Ended(BODY[:-2])))  # the client sent less than it had said


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
def test_what_has_no_body_to_drain_passes_untouched(more: dict[str, Any]) -> None:
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


def test_the_reply_of_an_application_that_raises_is_for_the_server_to_send() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        raise LookupError("on purpose")

    body = Input(BODY)
    with pytest.raises(LookupError, match="on purpose"):
        serve(app, environment(body))
    assert body.left == 0


def test_the_applications_own_close_comes_first_and_once() -> None:
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
            raise LookupError("on purpose")

    body = Input(BODY)
    reply: Any = DrainMiddleware(lambda environ, start_response: Reply())(
        environment(body),
        None,  # type: ignore[arg-type]
    )
    with pytest.raises(LookupError, match="on purpose"):
        reply.close()
    assert body.left == 0


def test_a_reply_says_of_how_many_pieces_it_is_if_it_knows() -> None:
    def of(reply: Iterable[bytes]) -> Any:
        app = DrainMiddleware(lambda environ, start_response: reply)
        return app(environment(Input(BODY)), None)  # type: ignore[arg-type]

    assert len(of([b"one"])) == 1
    assert not hasattr(of(iter([b"one"])), "__len__")


def test_the_drain_is_bounded_in_bytes() -> None:
    body = Input(BODY)
    serve(refuse, environment(body), drain_limit=5)
    assert body.left == len(BODY) - 5


def test_no_time_is_no_drain() -> None:
    body = Input(BODY)
    serve(refuse, environment(body), timeout=0)
    assert body.left == len(BODY)


def test_what_the_input_raises_in_the_drain_is_not_the_applications() -> None:
    class Broken(Input):
        def read(self, size: int | None = -1, /) -> bytes:
            raise ConnectionResetError

    assert serve(refuse, environment(Broken(BODY))) == (REPLY, len(BODY))


def test_a_client_that_waits_to_be_invited_is_not() -> None:
    body = Input(BODY)
    serve(refuse, environment(body, HTTP_EXPECT="100-continue"))
    assert body.left == len(BODY)


def test_a_client_that_was_invited_by_the_application_is_drained() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ["wsgi.input"].read(1)
        return refuse(environ, start_response)

    body = Input(BODY)
    serve(app, environment(body, HTTP_EXPECT="100-continue"))
    assert body.left == 0


class Shown:
    """A body whose server shows the connection that it is read from."""

    def __init__(self, ours: socket.socket) -> None:
        self.stream = ours.makefile("rb")
        self.fileno = ours.fileno
        self.count = 0

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.count += len(data)
        return data


def drained(ours: socket.socket, *, expect: str = "", **options: Any) -> int:
    """How much is drained of a request of 100,000 bytes."""
    shown = Shown(ours)
    environ = environment(shown, CONTENT_LENGTH="100000", HTTP_EXPECT=expect)
    reply: Any = DrainMiddleware(refuse, **options)(environ, start)
    with shown.stream:
        reply.close()
    assert ours.getblocking()
    assert os.get_blocking(ours.fileno())
    return shown.count


@pytest.mark.parametrize("options", [{"idle_timeout": 0.1}, {"timeout": 0.1}])
def test_a_read_that_waits_too_long_is_ended_where_the_connection_is_known(
    options: dict[str, Any],
) -> None:
    ours, peer = socket.socketpair()
    with ours, peer:
        peer.sendall(bytes(1000))
        assert drained(ours, **options) == 1000


def test_a_client_that_was_not_invited_is_not_waited_for_where_the_connection_is_known() -> (
    None
):
    ours, peer = socket.socketpair()
    with ours, peer:
        assert drained(ours, timeout=PATIENCE, expect="100-continue") == 0


def test_the_servers_default_timeout_does_not_change_its_socket() -> None:
    ours, peer = socket.socketpair()
    with ours, peer:
        ours.settimeout(None)
        socket.setdefaulttimeout(7)
        try:
            assert drained(ours, timeout=0.1) == 0
        finally:
            socket.setdefaulttimeout(None)


def test_no_thread_is_left() -> None:
    before = threading.active_count()
    ours, peer = socket.socketpair()
    with ours, peer:
        peer.sendall(bytes(100_000))
        assert drained(ours, timeout=PATIENCE) == 100_000
    assert threading.active_count() == before
