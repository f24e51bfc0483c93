"""One line around a WSGI application, so that early replies arrive.

    from graceful_close.wsgi import DrainMiddleware

    app = DrainMiddleware(app)

An application that replies before it has read the request (401, 413) leaves the rest of the request to
the server. Servers then close, and a close with unread input makes the kernel reset the connection: the
client reports "connection reset", and nginx returns 502. The middleware reads the rest after the
reply, in close() of the iterable. A server calls that close() before it closes the connection (PEP
3333).
"""

from __future__ import annotations

import math
import signal
import socket
import threading
from contextlib import contextmanager
from functools import partial

from ._clock import monotonic
from ._options import Options, require_callable
from ._request_body import DrainBounds, announces_body, expects_continue
from ._sockets import plain_dup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from typing import Any, TypeVar
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    T = TypeVar("T")

__all__ = ["DrainMiddleware"]

# The size of one read, in bytes. A client that sends less in `idle_timeout` counts as silent.
# Heuristic: a 56k modem sends 4 KiB in less than a second, and such short reads cost a server nothing.
_PIECE = 4096


class DrainMiddleware:
    """Reads the unread rest of a request before the server closes the connection.

        app = DrainMiddleware(app, timeout=10)

    The server sends the whole reply first, and then calls close() of the iterable, which reads the
    rest. Requests without a body and requests whose body was read pass through. If the application
    raises before it has replied, the rest is read before the server sends its own reply. After a read
    that failed (OSError, ValueError) nothing more is read.

    A client that sent `Expect: 100-continue` gets no 100 response for a body that is not needed. If the
    server has already sent the 100 response, the body is drained as usual if the connection is known
    (below), and in cheroot, which always sends the 100 response.

    Args:
        app: A WSGI application.
        timeout: The deadline in seconds, 0 or more, for the drain of one request.
        idle_timeout: Stop waiting after this many seconds, 0 or more, in which fewer than 4 KiB
            arrived. None: no limit.
        drain_limit: The largest number of bytes to read, 0 or more. None: no limit.

    Raises:
        TypeError, ValueError: An argument has the wrong type or is out of range.

    Notes:
        The drain occupies the worker (a process, a thread, a greenlet). In gunicorn's sync worker it
        lasts half of gunicorn's `timeout` at most, because gunicorn kills a worker that is busy for
        longer than `timeout`.

        WSGI has no read with a timeout. gunicorn and servers based on http.server (wsgiref, werkzeug,
        Django's runserver) give access to the connection, and the drain then ends in time by
        `shutdown(SHUT_RD)`. In other servers one read lasts as long as the server allows: 10 seconds
        of silence in cheroot (`timeout`), 4 seconds in uWSGI (`socket-timeout`). gevent's pywsgi,
        eventlet (`socket_timeout`) and granian have no bound by default, so put a proxy that buffers
        requests before these servers, as nginx does.

        A request without a Content-Length is read only if the server declares that wsgi.input ends
        (`wsgi.input_terminated`): gunicorn, werkzeug, waitress, gevent, cheroot.

        A reply made by `wsgi.file_wrapper` is sent like any other iterable if the request has a body.

    .. versionadded:: 0.2.0
    """

    def __init__(  # noqa: D107 (the docstring is that of the class)
        self,
        app: WSGIApplication,
        *,
        timeout: float = 30.0,
        idle_timeout: float | None = 5.0,
        drain_limit: int | None = None,
    ) -> None:
        require_callable("app", app)
        self._app = app
        self._options = Options(timeout, idle_timeout, drain_limit)

    def __call__(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        """Call the application (PEP 3333)."""
        request = _Request(self._options, environ)
        if request.left == 0:
            return self._app(environ, start_response)
        environ["wsgi.input"] = request
        try:
            reply = self._app(environ, start_response)
        except Exception:
            request.drain()
            raise
        kind = _SizedReply if hasattr(reply, "__len__") else _Reply
        return kind(reply, request)


class _Reply:
    """The iterable that the application returned, with a close() that also drains."""

    def __init__(self, reply: Iterable[bytes], request: _Request) -> None:
        self._reply = reply
        self._request = request

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._reply)

    def close(self) -> None:
        try:
            close = getattr(self._reply, "close", None)
            if close is not None:
                close()
        finally:
            self._request.drain()


class _SizedReply(_Reply):
    """A reply with a len(). If it has one piece, a server sends the length of the piece."""

    def __len__(self) -> int:
        return len(self._reply)  # type: ignore[arg-type] # __call__ has checked


class _Request:
    """A wrapper of wsgi.input that counts the bytes read.

    Attributes:
        left: The number of unread bytes; infinite for a chunked body, which marks its own end.
    """

    def __init__(self, options: Options, environ: WSGIEnvironment) -> None:
        self._options = options
        self._input = environ["wsgi.input"]
        self._expects = (
            expects_continue(environ.get("HTTP_EXPECT", ""))
            # cheroot sends its 100 response before it calls the application, so the body arrives.
            and not type(self._input).__module__.startswith("cheroot.")
        )
        self._socket: Any = environ.get("gunicorn.socket")
        self._multithread = environ.get("wsgi.multithread", False)
        self._asked = False  # the application has called a read
        length = environ.get("CONTENT_LENGTH") or ""
        self.left: float = 0
        if length.strip().isdecimal():
            self.left = int(length)
        elif environ.get("wsgi.input_terminated") and announces_body(
            "", environ.get("HTTP_TRANSFER_ENCODING", "")
        ):
            self.left = math.inf

    def read(self, *size: int) -> bytes:
        return self._read_by(self._input.read, *size)

    def readline(self, *size: int) -> bytes:
        return self._read_by(self._input.readline, *size)

    def readlines(self, *hint: int) -> list[bytes]:
        lines: list[bytes] = self._call(self._input.readlines, *hint)
        self._count(b"".join(lines), hint)
        return lines

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._input, name)  # further attributes of this server's input
        if name == "read1":
            return partial(self._read_by, found)
        if name in {"readinto", "readinto1"}:
            return partial(self._read_into, found)
        return found

    def _read_by(self, read: Callable[..., bytes], *size: int) -> bytes:
        return self._count(self._call(read, *size), size)

    def _call(self, read: Callable[..., T], *arguments: Any) -> T:
        self._asked = True
        try:
            return read(*arguments)
        except (OSError, ValueError):
            # A timeout, or a malformed chunk. A further read would only delay the reply: cheroot waits
            # 10 seconds for the next chunk, uWSGI 4 seconds for the next byte.
            self.left = 0
            raise

    def _read_into(self, read: Callable[[Any], int | None], buffer: Any) -> int | None:
        count = self._call(read, buffer)
        self._counted(count or 0, of_none=memoryview(buffer).nbytes == 0)
        return count

    def _count(self, data: bytes, size: tuple[int, ...]) -> bytes:
        self._counted(len(data), of_none=size == (0,))
        return data

    def _counted(self, count: int, *, of_none: bool) -> None:
        self.left -= count
        if count == 0 and not of_none:
            self.left = 0  # the end of the stream

    def drain(self) -> None:
        """Read the rest, within the bounds. A second call has no effect."""
        if self.left <= 0:
            return
        uninvited = self._expects and not self._asked
        with self._connection() as connection:
            if uninvited and connection is None:
                return  # a read would make the server send the 100 response
            bounds = DrainBounds(
                self._options,
                monotonic(),
                may_not_come=uninvited,
                at_most=_longest_in_worker(self._socket, self._multithread),
            )
            try:
                with _cut_off(connection, bounds):
                    self._discard(bounds)
            except Exception:  # noqa: BLE001 (the server's own errors, after the reply was sent)
                self.left = 0

    def _discard(self, bounds: DrainBounds) -> None:
        while self.left > 0 and bounds.left > 0 and bounds.seconds(monotonic()) > 0:
            size = min(_PIECE, self.left, bounds.left)
            bounds.received(len(self.read(int(size))), monotonic())

    @contextmanager
    def _connection(self) -> Generator[socket.socket | None]:
        """A socket for the connection, if the server gives access to the connection; else None."""
        try:
            connection = plain_dup(self._socket if self._socket is not None else self._input)
        except (AttributeError, OSError, ValueError):
            # ENOTSOCK: a gateway's file. ValueError: io.UnsupportedOperation
            yield None
            return
        try:
            yield connection
        finally:
            connection.close()


def _longest_in_worker(connection: object, multithread: bool) -> float:
    """How many seconds gunicorn's sync worker may be busy: half of gunicorn's `timeout`.

    gunicorn kills a worker that has not called notify() for `timeout` seconds. The other workers call
    notify() in another thread or greenlet. The sync worker handles SIGTERM by a method.
    """
    if connection is None or multithread:
        return math.inf
    worker: Any = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    seconds = getattr(worker, "timeout", None)
    if not isinstance(seconds, (int, float)) or not hasattr(worker, "notify"):
        return math.inf
    worker.notify()
    return seconds or math.inf


@contextmanager
def _cut_off(connection: socket.socket | None, bounds: DrainBounds) -> Generator[None]:
    """End a read that lasts too long: shutdown(SHUT_RD) ends the stream."""
    if connection is None:
        yield
        return
    done = threading.Event()

    def watch() -> None:
        while (seconds := bounds.seconds(monotonic())) > 0:
            if done.wait(seconds):
                return
        try:
            connection.shutdown(socket.SHUT_RD)
        except OSError:
            pass  # ENOTCONN: the client has gone

    watcher = threading.Thread(target=watch, name="graceful-close drain", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
