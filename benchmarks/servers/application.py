"""What every server here runs: it greets a GET, and refuses a POST without reading its body.

The path says how long the refusal is to be: `POST /65536` gets a body of 64 KiB. The applications
here say 413 and `Connection: close`; those in `apps` say what applications say: 401 if it is
short, else 413, and nothing about the connection.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from wsgiref.types import StartResponse, WSGIEnvironment

GREETING = b"hello\n"
REFUSED = "413 Content Too Large"
_SHORT = 1 << 10


@cache
def refusal(path: str) -> bytes:
    """The body that this path asks for; 1 KiB if it asks for none."""
    size = path.strip("/")
    return b"This upload is too large.\n".ljust(int(size) if size.isdigit() else 1024, b".")


def early_reply(path: str) -> tuple[int, bytes]:
    """Status and body, as the applications in `apps` reply."""
    body = refusal(path)
    return 401 if len(body) <= _SHORT else 413, body


def wsgi(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    """For WSGI servers. PEP 3333 leaves the Connection field to them; they do not mind it."""
    refused = environ["REQUEST_METHOD"] == "POST"
    body = refusal(environ["PATH_INFO"]) if refused else GREETING
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
    if refused and not environ.get("SERVER_SOFTWARE", "").startswith("WSGIServer"):
        headers.append(("Connection", "close"))  # wsgiref asserts that it is not there
    start_response(REFUSED if refused else "200 OK", headers)
    return [body]


async def asgi(
    scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    """For ASGI servers. It calls `receive` for no request."""
    if scope["type"] != "http":
        return  # no "lifespan" here
    refused = scope["method"] == "POST"
    body = refusal(scope["path"]) if refused else GREETING
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    if refused:
        headers.append((b"connection", b"close"))
    status = 413 if refused else 200
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def answer_to(head: bytes) -> tuple[bytes, bool]:
    """For servers without HTTP of their own: the answer, and whether to close after it."""
    method, path, _ = head.split(b" ", 2)
    refused = method == b"POST"
    body = refusal(path.decode()) if refused else GREETING
    close = refused or b"connection: close" in head.lower()
    status = REFUSED.encode() if refused else b"200 OK"
    fields = b"Content-Type: text/plain\r\nContent-Length: %d\r\n" % len(body)
    if close:
        fields += b"Connection: close\r\n"
    return b"HTTP/1.1 %s\r\n%s\r\n%s" % (status, fields, body), close
