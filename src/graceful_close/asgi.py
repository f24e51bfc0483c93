"""One line around an ASGI application, so that early replies arrive.

    from graceful_close.asgi import DrainMiddleware

    app = DrainMiddleware(app)

An application that replies before it has read the request (401, 413) leaves the rest of the request to
the server. Servers then close, and a close with unread input makes the kernel reset the connection: the
client reports "connection reset", and nginx returns 502. The middleware reads the rest after the reply,
and before it sends the end of the reply to the server. The middleware uses only ASGI's receive() and
send(), so it works with every server, event loop and transport.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

from ._clock import monotonic
from ._options import Options, require_callable
from ._request_body import DrainBounds, announces_body, expects_continue

# asgiref.typing, Starlette and the servers define these types differently.
Message = Any
Scope = Any
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

__all__ = ["DrainMiddleware"]

# The types of the messages that end a reply.
_BODIES = ("http.response.body", "http.response.zerocopysend")

# This message is the whole body of a reply and its end: nothing can be read in between.
_PATHSEND = "http.response.pathsend"


class DrainMiddleware:
    """Reads the unread rest of a request before the server closes the connection.

        app = DrainMiddleware(app, timeout=10)

    The whole reply is sent first. Only the end of the reply is sent after the drain, because a server
    delivers no more of a request after the end of the reply. (A reply in one piece gets a
    Content-Length if it has none. A client that reads a longer reply without a Content-Length waits
    for the end of the drain.) A file that the server sends by its path (granian) is sent after the drain.

    Requests without a body, requests that were read, websockets and lifespans pass through. HTTP/2 and
    HTTP/3 pass through, too, because the end of a stream does not end the connection. If the
    application raises before it has replied, the rest is read before the server sends its own reply.
    Background tasks of an application run after the drain.

    A client that sent `Expect: 100-continue` gets no 100 response for a body that is not needed. If the
    server has already sent the 100 response, the body is drained as usual.

    Args:
        app: An ASGI 3 application.
        timeout: The deadline in seconds, 0 or more, for the drain of one request.
        idle_timeout: Stop waiting after this many seconds, 0 or more, without input. None: no
            limit.
        drain_limit: The largest number of bytes to read, 0 or more. None: no limit.
        before_reply: Read the rest before the reply instead of after the reply, for a server that
            sends nothing before it has the end of a reply. A client that sends more than the limits
            permit then gets its reply late, and may lose the reply.

    Raises:
        TypeError, ValueError: An argument has the wrong type or is out of range.

    Notes:
        The drain occupies a task, and no thread. When a limit is reached, the server closes as it
        would without the middleware.

    .. versionadded:: 0.2.0
    """

    def __init__(  # noqa: D107 (the docstring is that of the class)
        self,
        app: ASGIApp,
        *,
        timeout: float = 30.0,
        idle_timeout: float | None = 5.0,
        drain_limit: int | None = None,
        before_reply: bool = False,
    ) -> None:
        require_callable("app", app)
        self._app = app
        self._options = Options(timeout, idle_timeout, drain_limit)
        self._before_reply = before_reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application (ASGI 3)."""
        if scope["type"] != "http" or not _has_body(scope):
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(self._options, self._before_reply, scope, receive, send)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception:
            await exchange.drain_unless_replied()
            raise
        await exchange.drain_unless_replied()


class _Exchange:
    """One request with a body, and its reply."""

    def __init__(
        self, options: Options, before_reply: bool, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._options = options
        self._receive = receive
        self._send = send
        self._expects = expects_continue(_header(scope, b"expect"))
        self._before_reply = before_reply and not self._expects
        self._is_head = scope["method"] == "HEAD"
        self._read = False  # the whole request was read, or the client has disconnected
        self._asked = False  # the application has called receive()
        self._bounds: DrainBounds | None = None  # once the drain has begun
        self._start: Message | None = None  # of a reply to which a Content-Length may be added
        self._replied = False  # the reply was at least begun
        self._one_at_a_time = _primitives().Lock()

    async def receive(self) -> Message:
        self._asked = True
        async with self._one_at_a_time:
            return await self._next()

    async def _next(self) -> Message:
        message = await self._receive()
        self._read = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start":
            if self._before_reply:
                await self._drain()
            if not self._read and not self._is_head and _may_have_length(message):
                # A server sends no headers before the first part of the body (ASGI's specification).
                self._start = message
                return
            self._replied = True
        if kind == _PATHSEND and (self._asked or not self._expects):
            await self._drain()
        is_end = kind in _BODIES and not message.get("more_body", False)
        if self._start is not None:
            start, self._start, self._replied = self._start, None, True
            if is_end and kind == "http.response.body":
                start = _with_length(start, len(message.get("body", b"")))
            await self._send(start)
        if is_end and not self._read:
            await self._send({**message, "more_body": True})
            await self._drain()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def drain_unless_replied(self) -> None:
        """Drain if the application has not replied, because the server then sends its own reply."""
        if self._start is not None:
            # A bug of the application: the start of a reply without a body.
            start, self._start = self._start, None
            await self._send(start)
        elif not self._replied and (self._asked or not self._expects):
            await self._drain()

    async def _drain(self) -> None:
        if self._bounds is None:
            uninvited = self._expects and not self._asked
            self._bounds = DrainBounds(self._options, monotonic(), may_not_come=uninvited)
        bounds = self._bounds
        while not self._read and bounds.left > 0:
            seconds = bounds.seconds(monotonic())
            if seconds <= 0:
                return
            count = await _within(seconds, self._discard_next)
            if count is None:
                return
            bounds.received(count, monotonic())

    async def _discard_next(self) -> int:
        async with self._one_at_a_time:
            # The application may have a task that waits for a disconnect, and that task reads, too.
            return 0 if self._read else len((await self._next()).get("body", b""))


def _header(scope: Scope, name: bytes) -> str:
    return b",".join(value for key, value in scope["headers"] if key.lower() == name).decode(
        "latin-1"
    )


def _has_body(scope: Scope) -> bool:
    # granian names HTTP/1.0 "1".
    return scope["http_version"] in ("1", "1.0", "1.1") and announces_body(
        _header(scope, b"content-length"), _header(scope, b"transfer-encoding")
    )


def _may_have_length(start: Message) -> bool:
    """Whether a Content-Length is missing in the start of a reply, and may be added."""
    status = start["status"]
    if status < 200 or status in (204, 304) or start.get("trailers", False):
        return False
    names = {bytes(name).lower() for name, _ in start.get("headers", ())}
    return not names & {b"content-length", b"transfer-encoding"}


def _with_length(start: Message, length: int) -> Message:
    headers = [*start.get("headers", ()), (b"content-length", b"%d" % length)]
    return {**start, "headers": headers}


# --- asyncio and trio ------------------------------------------------------------------------------


def _in_trio() -> bool:
    trio = sys.modules.get("trio")
    if trio is None:
        return False
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return False
    return True


def _primitives() -> Any:
    """The module with the Lock of the running framework, trio or asyncio."""
    if _in_trio():
        return sys.modules["trio"]
    import asyncio

    return asyncio


async def _within(seconds: float, receive: Callable[[], Awaitable[int]]) -> int | None:
    """The result of `receive`; None: it took longer than `seconds`."""
    if _in_trio():
        with sys.modules["trio"].move_on_after(seconds):
            return await receive()
        return None
    import asyncio

    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await receive()
    except TimeoutError:
        if not limit.expired():
            raise  # raised by the server
        return None
