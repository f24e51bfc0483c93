"""graceful_close.asgi: its messages, on asyncio and trio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import trio
import trio.testing

from graceful_close.asgi import DrainMiddleware

Message = dict[str, Any]

CHUNK: Message = {"type": "http.request", "body": bytes(1000), "more_body": True}
LAST: Message = {"type": "http.request", "body": bytes(10), "more_body": False}
GONE: Message = {"type": "http.disconnect"}
START: Message = {
    "type": "http.response.start",
    "status": 401,
    "headers": [(b"content-length", b"3")],
}
UNSIZED: Message = {"type": "http.response.start", "status": 401, "headers": []}
BODY: Message = {"type": "http.response.body", "body": b"no\n"}
END: Message = {"type": "http.response.body", "body": b"", "more_body": False}
SENT: Message = {**BODY, "more_body": True}  # a part of the body that is not the last
RECEIVED = "received"


def scope(*headers: tuple[bytes, bytes], **more: Any) -> dict[str, Any]:
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/",
        "headers": list(headers or [(b"content-length", b"2010")]),
        **more,
    }


class Exchange:
    """A server's view of one request: the calls of receive() and send(), in order."""

    def __init__(self, *requests: Message) -> None:
        self.requests = list(requests)
        self.seen: list[Any] = []

    async def receive(self) -> Message:
        if not self.requests:
            await forever()
        self.seen.append(RECEIVED)
        return self.requests.pop(0)

    async def send(self, message: Message) -> None:
        self.seen.append(message)

    async def serve(self, app: Any, of: dict[str, Any], **options: Any) -> None:
        await DrainMiddleware(app, **options)(of, self.receive, self.send)


async def forever() -> None:
    if trio.lowlevel.in_trio_run():
        await trio.sleep_forever()
    await asyncio.Event().wait()


def replies(*messages: Message) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    return app


Run = Callable[[Coroutine[Any, Any, None]], None]


def in_trio(what: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine with a clock that skips every wait."""

    async def main() -> None:
        await what

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.fixture(params=[asyncio.run, in_trio], ids=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Run:
    run: Run = request.param
    return run


CHUNKED = scope((b"Transfer-Encoding", b"chunked"))
BY_DESCRIPTOR: Message = {"type": "http.response.zerocopysend", "file": 3}
BY_PATH: Message = {"type": "http.response.pathsend", "path": "/file"}
ANNOUNCES: Message = {**UNSIZED, "trailers": True}
TRAILERS: Message = {"type": "http.response.trailers", "headers": [(b"sum", b"1")]}


@pytest.mark.parametrize(
    ("of", "requests", "reply", "seen"),
    [
        (scope(), [CHUNK, CHUNK, LAST], [START, BODY], [START, SENT, *[RECEIVED] * 3, END]),
        (CHUNKED, [CHUNK, LAST], [START, BODY], [START, SENT, RECEIVED, RECEIVED, END]),
        (scope(http_version="1"), [LAST], [START, BODY], [START, SENT, RECEIVED, END]),
        (scope(), [CHUNK, GONE], [START, BODY], [START, SENT, RECEIVED, RECEIVED, END]),
        (scope(), [CHUNK, LAST], [], [RECEIVED, RECEIVED]),
        # A reply of one part gets a Content-Length; the parts of others are sent immediately.
        (scope(), [LAST], [UNSIZED, BODY], [START, SENT, RECEIVED, END]),
        (
            scope(),
            [LAST],
            [UNSIZED, SENT, SENT, BODY],
            [UNSIZED, SENT, SENT, SENT, RECEIVED, END],
        ),
        (
            scope(),
            [LAST],
            [START, BY_DESCRIPTOR],
            [START, {**BY_DESCRIPTOR, "more_body": True}, RECEIVED, END],
        ),
        (scope(), [CHUNK, LAST], [START, BY_PATH], [START, RECEIVED, RECEIVED, BY_PATH]),
        (
            scope(),
            [LAST],
            [ANNOUNCES, BODY, TRAILERS],
            [ANNOUNCES, SENT, RECEIVED, END, TRAILERS],
        ),
    ],
    ids=[
        "a reply with a length",
        "a chunked request",
        "granian's HTTP/1.0",
        "a disconnect",
        "no reply",
        "one part",
        "many parts",
        "a file by its descriptor",
        "a file by its path",
        "trailers",
    ],
)
def test_the_rest_of_the_request_is_read_before_the_end_of_the_reply(
    run: Run, of: dict[str, Any], requests: list[Message], reply: list[Message], seen: list[Any]
) -> None:
    exchange = Exchange(*requests)
    run(exchange.serve(replies(*reply), of))
    assert exchange.seen == seen


@pytest.mark.parametrize(
    ("requests", "start", "seen"),
    [
        ([CHUNK, LAST], START, [RECEIVED, START, SENT, RECEIVED, END]),
        ([LAST], UNSIZED, [RECEIVED, UNSIZED, BODY]),
    ],
    ids=["a part", "the whole request, after which the reply is not changed"],
)
def test_messages_that_the_application_has_read_are_not_read_again(
    run: Run, requests: list[Message], start: Message, seen: list[Any]
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert await receive() == requests[0]
        await replies(start, BODY)(scope, receive, send)

    exchange = Exchange(*requests)
    run(exchange.serve(app, scope()))
    assert exchange.seen == seen


@pytest.mark.parametrize(
    "of",
    [
        scope((b"host", b"localhost")),
        scope((b"content-length", b"0")),
        scope(http_version="2"),
        scope(http_version="3"),
        scope(type="websocket"),
        scope(type="lifespan"),
    ],
    ids=["no body", "an empty body", "HTTP/2", "HTTP/3", "websocket", "lifespan"],
)
def test_scopes_without_a_body_are_passed_unchanged(of: dict[str, Any]) -> None:
    passed: list[Any] = []

    async def app(*arguments: Any) -> None:
        passed.extend(arguments)

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        raise AssertionError

    asyncio.run(DrainMiddleware(app)(of, receive, send))
    assert [id(one) for one in passed] == [id(of), id(receive), id(send)]


@pytest.mark.parametrize(
    ("start", "of"),
    [
        ({**UNSIZED, "status": 304}, scope()),
        ({**UNSIZED, "status": 204}, scope()),
        ({**UNSIZED, "headers": [(b"Transfer-Encoding", b"chunked")]}, scope()),
        ({**UNSIZED, "trailers": True}, scope()),
        (UNSIZED, scope(method="HEAD")),
    ],
    ids=["304", "204", "chunked", "trailers", "HEAD"],
)
def test_a_reply_that_must_not_have_a_content_length_gets_none(
    run: Run, start: Message, of: dict[str, Any]
) -> None:
    exchange = Exchange(LAST)
    run(exchange.serve(replies(start, {**BODY, "body": b""}), of))
    assert exchange.seen == [start, {**SENT, "body": b""}, RECEIVED, END]


def test_the_application_gets_the_servers_own_scope() -> None:
    """An outer middleware reads there what a framework notes there: the route, its parameters."""
    of = scope(extensions={"http.response.pathsend": {}})

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["route"] = "/items/{n}"
        await replies(START, BODY)(scope, receive, send)

    asyncio.run(Exchange(LAST).serve(app, of))
    assert of["route"] == "/items/{n}"


@pytest.mark.parametrize(
    ("sent", "seen"),
    [([], [RECEIVED, RECEIVED]), ([UNSIZED], [UNSIZED])],
    ids=["drained, so that the server can reply", "in the middle of a reply"],
)
def test_an_exception_of_the_application_is_propagated_to_the_server(
    run: Run, sent: list[Message], seen: list[Any]
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await replies(*sent)(scope, receive, send)
        raise LookupError("intended")

    exchange = Exchange(CHUNK, LAST)
    with pytest.raises(LookupError, match="intended"):
        run(exchange.serve(app, scope()))
    assert exchange.seen == seen


def test_a_task_that_waits_for_the_disconnect_gets_it(run: Run) -> None:
    """Starlette's StreamingResponse has such a task, which reads the rest of the request."""
    listened: list[Message] = []

    async def listen(receive: Any) -> None:
        while not listened or listened[-1] != GONE:
            listened.append(await receive())

    async def in_asyncio(scope: Any, receive: Any, send: Any) -> None:
        listening = asyncio.create_task(listen(receive))
        await asyncio.sleep(0)
        await replies(UNSIZED, SENT, BODY)(scope, receive, send)
        await listening

    async def in_trio(scope: Any, receive: Any, send: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, receive)
            await trio.lowlevel.checkpoint()
            await replies(UNSIZED, SENT, BODY)(scope, receive, send)

    async def app(*arguments: Any) -> None:
        await (in_trio if trio.lowlevel.in_trio_run() else in_asyncio)(*arguments)

    exchange = Exchange(CHUNK, CHUNK, LAST, GONE)
    run(exchange.serve(app, scope()))
    assert exchange.seen.count(RECEIVED) == 4
    messages = [one for one in exchange.seen if one != RECEIVED]
    assert messages in ([UNSIZED, SENT, SENT, END], [UNSIZED, SENT, BODY]), "or it was faster"


EXPECTS = scope((b"content-length", b"2010"), (b"expect", b"100-Continue"))


def test_a_client_that_waits_for_100_continue_gets_the_reply_before_the_drain() -> None:
    exchange = Exchange()  # the client sends nothing more
    in_trio(exchange.serve(replies(START, BODY), EXPECTS, before_reply=True))
    assert exchange.seen == [START, SENT, END]


def test_a_client_without_100_continue_is_not_drained_before_the_servers_own_reply(
    run: Run,
) -> None:
    exchange = Exchange(CHUNK, LAST)
    run(exchange.serve(replies(), EXPECTS))
    assert exchange.seen == []


@pytest.mark.parametrize(
    "options",
    [{"idle_timeout": 0.05}, {"timeout": 0.05}, {"timeout": 0}],
    ids=["silence", "total", "none at all"],
)
def test_the_drain_has_a_deadline(options: dict[str, Any]) -> None:
    exchange = Exchange(CHUNK)
    asyncio.run(exchange.serve(replies(START, BODY), scope(), **options))
    asked = [] if options == {"timeout": 0} else [RECEIVED]
    assert exchange.seen == [START, SENT, *asked, END]


def test_the_drain_has_a_limit_of_bytes(run: Run) -> None:
    exchange = Exchange(CHUNK, CHUNK, CHUNK, LAST)
    run(exchange.serve(replies(START, BODY), scope(), drain_limit=1500))
    assert exchange.seen == [START, SENT, RECEIVED, RECEIVED, END]


def test_before_reply_reads_the_rest_before_the_reply(run: Run) -> None:
    exchange = Exchange(CHUNK, LAST)
    run(exchange.serve(replies(START, BODY), scope(), before_reply=True))
    assert exchange.seen == [RECEIVED, RECEIVED, START, BODY]


def test_a_timeout_error_of_the_server_is_propagated() -> None:
    async def receive() -> Message:
        raise TimeoutError("the server's")

    exchange = Exchange()
    app = DrainMiddleware(replies(START, BODY))
    with pytest.raises(TimeoutError, match="the server's"):
        asyncio.run(app(scope(), receive, exchange.send))


def test_a_cancellation_is_propagated() -> None:
    async def main() -> None:
        exchange = Exchange()
        serving = asyncio.create_task(exchange.serve(replies(START, BODY), scope()))
        while SENT not in exchange.seen:
            await asyncio.sleep(0)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving

    asyncio.run(main())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"timeout": -1}, ValueError),
        ({"idle_timeout": "5"}, TypeError),
        ({"drain_limit": 1.5}, TypeError),
        ({"app": 3}, TypeError),
    ],
)
def test_options_are_checked(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        DrainMiddleware(**{"app": replies(), **options})
