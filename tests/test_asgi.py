"""graceful_close.asgi, message by message, on asyncio and trio."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
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
SENT: Message = {**BODY, "more_body": True}  # the body, when its end is still to come
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
    """What a server sees of one request: what it was asked for and told, in order."""

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


Run = Callable[[Awaitable[None]], None]


@pytest.fixture(params=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine; in trio by a clock that jumps over every wait."""

    def in_asyncio(what: Awaitable[None]) -> None:
        async def main() -> None:
            await what

        asyncio.run(main())

    def in_trio(what: Awaitable[None]) -> None:
        async def main() -> None:
            await what

        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))

    return in_asyncio if request.param == "asyncio" else in_trio


def test_the_rest_is_read_between_the_reply_and_its_end(run: Run) -> None:
    exchange = Exchange(CHUNK, CHUNK, LAST)
    run(exchange.serve(replies(START, BODY), scope()))
    assert exchange.seen == [START, SENT, RECEIVED, RECEIVED, RECEIVED, END]


def test_what_the_application_has_read_is_not_read_again(run: Run) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert await receive() == CHUNK
        await replies(START, BODY)(scope, receive, send)

    exchange = Exchange(CHUNK, LAST)
    run(exchange.serve(app, scope()))
    assert exchange.seen == [RECEIVED, START, SENT, RECEIVED, END]


def test_nothing_is_changed_where_all_was_read(run: Run) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert await receive() == LAST
        await replies(UNSIZED, BODY)(scope, receive, send)

    exchange = Exchange(LAST)
    run(exchange.serve(app, scope()))
    assert exchange.seen == [RECEIVED, UNSIZED, BODY]


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
def test_what_has_no_body_to_drain_passes_untouched(of: dict[str, Any]) -> None:
    passed: list[Any] = []

    async def app(*arguments: Any) -> None:
        passed.extend(arguments)

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        raise AssertionError

    asyncio.run(DrainMiddleware(app)(of, receive, send))
    assert [id(one) for one in passed] == [id(of), id(receive), id(send)]


def test_a_chunked_request_is_drained(run: Run) -> None:
    exchange = Exchange(CHUNK, LAST)
    run(exchange.serve(replies(START, BODY), scope((b"Transfer-Encoding", b"chunked"))))
    assert exchange.seen == [START, SENT, RECEIVED, RECEIVED, END]


def test_a_disconnect_ends_the_drain(run: Run) -> None:
    exchange = Exchange(CHUNK, GONE)
    run(exchange.serve(replies(START, BODY), scope()))
    assert exchange.seen == [START, SENT, RECEIVED, RECEIVED, END]


def test_a_reply_of_one_piece_is_given_its_length(run: Run) -> None:
    exchange = Exchange(LAST)
    run(exchange.serve(replies(UNSIZED, BODY), scope()))
    assert exchange.seen == [START, SENT, RECEIVED, END]


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
def test_a_reply_that_may_have_no_length_is_given_none(
    run: Run, start: Message, of: dict[str, Any]
) -> None:
    exchange = Exchange(LAST)
    run(exchange.serve(replies(start, {**BODY, "body": b""}), of))
    assert exchange.seen == [start, {**SENT, "body": b""}, RECEIVED, END]


def test_pieces_go_out_as_they_come(run: Run) -> None:
    exchange = Exchange(LAST)
    run(exchange.serve(replies(UNSIZED, SENT, SENT, BODY), scope()))
    assert exchange.seen == [UNSIZED, SENT, SENT, SENT, RECEIVED, END]


def test_a_file_sent_by_its_descriptor_is_followed_by_the_end(run: Run) -> None:
    file = {"type": "http.response.zerocopysend", "file": 3}
    exchange = Exchange(LAST)
    run(exchange.serve(replies(START, file), scope()))
    assert exchange.seen == [START, {**file, "more_body": True}, RECEIVED, END]


def test_a_file_can_not_be_sent_by_its_path_alone() -> None:
    offered: dict[str, Any] = {"http.response.pathsend": {}, "http.response.trailers": {}}
    shown: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        shown.append(scope["extensions"])
        await replies(START, BODY)(scope, receive, send)

    of = scope(extensions=offered)
    asyncio.run(Exchange(LAST).serve(app, of))
    assert shown == [{"http.response.trailers": {}}]
    assert of["extensions"] is offered, "the server's own is left alone"


def test_trailers_follow_the_drain(run: Run) -> None:
    start = {**UNSIZED, "trailers": True}
    trailers = {"type": "http.response.trailers", "headers": [(b"sum", b"1")]}
    exchange = Exchange(LAST)
    run(exchange.serve(replies(start, BODY, trailers), scope()))
    assert exchange.seen == [start, SENT, RECEIVED, END, trailers]


def test_the_server_replies_for_an_application_that_raises_after_the_drain(run: Run) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise LookupError("on purpose")

    async def serve() -> None:
        with pytest.raises(LookupError, match="on purpose"):
            await exchange.serve(app, scope())

    exchange = Exchange(CHUNK, LAST)
    run(serve())
    assert exchange.seen == [RECEIVED, RECEIVED]


def test_an_application_that_raises_in_its_reply_is_left_to_the_server(run: Run) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(UNSIZED)
        raise LookupError("on purpose")

    async def serve() -> None:
        with pytest.raises(LookupError, match="on purpose"):
            await exchange.serve(app, scope())

    exchange = Exchange(CHUNK, LAST)
    run(serve())
    assert exchange.seen == [UNSIZED]


def test_an_application_that_never_replies_is_drained_for(run: Run) -> None:
    exchange = Exchange(CHUNK, LAST)
    run(exchange.serve(replies(), scope()))
    assert exchange.seen == [RECEIVED, RECEIVED]


def test_a_task_that_waits_for_the_disconnect_is_not_disturbed(run: Run) -> None:
    """As Starlette's StreamingResponse does, whose listener reads what is left on its way."""
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
    told = [one for one in exchange.seen if one != RECEIVED]
    assert told in ([UNSIZED, SENT, SENT, END], [UNSIZED, SENT, BODY]), "or it was faster"


EXPECTS = scope((b"content-length", b"2010"), (b"expect", b"100-Continue"))


def test_the_rest_is_asked_for_after_the_reply_of_a_client_that_waits_to_be_invited() -> None:
    exchange = Exchange()  # it sends nothing more

    async def main() -> None:
        await exchange.serve(replies(START, BODY), EXPECTS, before_reply=True)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert exchange.seen == [START, SENT, END]


def test_a_client_that_was_not_invited_is_not_for_the_servers_own_reply(run: Run) -> None:
    exchange = Exchange(CHUNK, LAST)
    run(exchange.serve(replies(), EXPECTS))
    assert exchange.seen == []


@pytest.mark.parametrize(
    "options",
    [{"idle_timeout": 0.05}, {"timeout": 0.05}, {"timeout": 0}],
    ids=["silence", "total", "none at all"],
)
def test_the_drain_is_bounded_in_time(options: dict[str, Any]) -> None:
    exchange = Exchange(CHUNK)
    asyncio.run(exchange.serve(replies(START, BODY), scope(), **options))
    asked = [] if options == {"timeout": 0} else [RECEIVED]
    assert exchange.seen == [START, SENT, *asked, END]


def test_the_drain_is_bounded_in_bytes(run: Run) -> None:
    exchange = Exchange(CHUNK, CHUNK, CHUNK, LAST)
    run(exchange.serve(replies(START, BODY), scope(), drain_limit=1500))
    assert exchange.seen == [START, SENT, RECEIVED, RECEIVED, END]


def test_the_rest_is_read_before_the_reply_where_the_server_needs_it(run: Run) -> None:
    exchange = Exchange(CHUNK, LAST)
    run(exchange.serve(replies(START, BODY), scope(), before_reply=True))
    assert exchange.seen == [RECEIVED, RECEIVED, START, BODY]


def test_a_timeout_of_the_servers_own_is_not_taken_for_ours() -> None:
    async def receive() -> Message:
        raise TimeoutError("the server's")

    exchange = Exchange()
    app = DrainMiddleware(replies(START, BODY))
    with pytest.raises(TimeoutError, match="the server's"):
        asyncio.run(app(scope(), receive, exchange.send))


def test_a_cancellation_goes_through() -> None:
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
    ],
)
def test_options_are_checked(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        DrainMiddleware(replies(), **options)
