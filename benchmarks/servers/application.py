"""The application of every server: it answers a GET, and rejects a POST without reading it.

The path has the size of the reply: `POST /65536` gets a body of 64 KiB. The applications here
reply 413 with `Connection: close`. Those in `apps` reply like real applications: 401 if the
reply is short, otherwise 413, without a Connection field.
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
    """Return the body of the size in the path; 1 KiB by default."""
    size = path.strip("/")
    return b"This upload is too large.\n".ljust(int(size) if size.isdigit() else 1024, b".")


def early_reply(path: str) -> tuple[int, bytes]:
    """Return the status and the body of a reply of the applications in `apps`."""
    body = refusal(path)
    return 401 if len(body) <= _SHORT else 413, body


def wsgi(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    """The WSGI application. PEP 3333 reserves the Connection field, but servers accept it."""
    refused = environ["REQUEST_METHOD"] == "POST"
    body = refusal(environ["PATH_INFO"]) if refused else GREETING
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
    if refused and not environ.get("SERVER_SOFTWARE", "").startswith("WSGIServer"):
        headers.append(("Connection", "close"))  # wsgiref rejects the field
    start_response(REFUSED if refused else "200 OK", headers)
    return [body]


async def asgi(
    scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    """The application for ASGI servers. It never calls `receive`."""
    if scope["type"] != "http":
        return  # no "lifespan"
    refused = scope["method"] == "POST"
    body = refusal(scope["path"]) if refused else GREETING
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    if refused:
        headers.append((b"connection", b"close"))
    status = 413 if refused else 200
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def answer_to(head: bytes) -> tuple[bytes, bool]:
    """For servers without HTTP: return the answer, and whether to close after it."""
    method, path, _ = head.split(b" ", 2)
    refused = method == b"POST"
    body = refusal(path.decode()) if refused else GREETING
    close = refused or b"connection: close" in head.lower()
    status = REFUSED.encode() if refused else b"200 OK"
    fields = b"Content-Type: text/plain\r\nContent-Length: %d\r\n" % len(body)
    if close:
        fields += b"Connection: close\r\n"
    return b"HTTP/1.1 %s\r\n%s\r\n%s" % (status, fields, body), close
