"""One upload, by a client of one of two kinds, and what became of the reply."""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import ssl
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from graceful_close import abortive_close, unacked_bytes
from graceful_close._platform import ErrorKind, error_kind

from .outcome import Client, Outcome, Try
from .reply import NotHTTPError, Reply

if TYPE_CHECKING:
    from .address import Address


Endpoint = tuple[str | int | bytes, ...]
"""Where to connect to, as getaddrinfo() has it."""


class Upload(NamedTuple):
    """What every try does.

    Attributes:
        address: Where to.
        endpoints: What its host stands for: of each, the family and where to connect to.
        size: Bytes to upload.
        timeout: Seconds for a whole try.
        context: What speaks TLS; None: plain.
    """

    address: Address
    endpoints: tuple[tuple[int, Endpoint], ...]
    size: int
    timeout: float
    context: ssl.SSLContext | None

    def request(self, method: str = "POST") -> bytes:
        """The head of the request."""
        length = f"Content-Length: {self.size}\r\n" if method == "POST" else ""
        return (
            f"{method} {self.address.path} HTTP/1.1\r\n"
            f"Host: {self.address.authority}\r\n"
            "User-Agent: graceful-close-check\r\n"
            "Accept: */*\r\n"
            "Content-Type: application/octet-stream\r\n"
            f"{length}Connection: close\r\n\r\n"
        ).encode("ascii")


_PIECE = bytes(64 << 10)

# A kernel whose program reads nothing still takes some bytes now and then: it is asked by probes
# (RFC 9293, section 3.8.6.1) and finds room. So an upload is stuck if the second half of the
# time brought less than this part of what the first did. Arbitrary.
_TRICKLE = 8


class _Stop(Exception):  # noqa: N818 - not an error: the end of a try
    def __init__(self, outcome: Outcome, detail: str = "") -> None:
        super().__init__(outcome, detail)
        self.outcome = outcome
        self.detail = detail


def attempt(upload: Upload, client: Client) -> Try:
    """Upload once. Whatever happens is in what this returns, within the timeout."""
    trial = _Trial(upload, client)
    started = monotonic()
    try:
        with trial.connected() as sock:
            try:
                trial.talk(sock)
            except BaseException as stop:
                if not (isinstance(stop, _Stop) and trial.reply.whole):
                    abortive_close(sock)  # or the kernel would go on uploading
                raise
    except _Stop as stop:
        outcome, detail = stop.outcome, stop.detail
    return Try(
        client,
        outcome,
        trial.early,
        trial.reply.status,
        trial.reply.server,
        trial.sent,
        trial.reply.received,
        trial.stuck,
        monotonic() - started,
        detail,
    )


def ask_for_server(upload: Upload) -> str:
    """The Server field of a small request's answer; empty if it cannot be had."""
    trial = _Trial(upload._replace(size=0), Client.SENDS_THEN_READS, "HEAD")
    try:
        with trial.connected() as sock:
            trial.talk(sock)
    except _Stop:
        pass
    return trial.reply.server


class _Trial:
    """One try while it lasts."""

    def __init__(self, upload: Upload, client: Client, method: str = "POST") -> None:
        self.reply = Reply(bodiless=method == "HEAD")
        self.early: bool | None = False
        self.stuck = False
        self._upload = upload
        self._deadline = monotonic() + upload.timeout
        self._halftime = self._deadline - upload.timeout / 2
        self._taken = -1  # bytes that the server's kernel had at half-time
        self._head = memoryview(upload.request(method))
        self._unsent = len(self._head) + upload.size
        self._sending = True
        self._connected = False
        self._reading = client is Client.READS_WHILE_SENDING
        self._failure = ""

    @property
    def sent(self) -> int:
        """Bytes of the upload, not of its head, that were sent."""
        return max(self._upload.size - self._unsent, 0)

    def _left(self) -> float:
        left = self._deadline - monotonic()
        if left <= 0:
            raise _Stop(Outcome.TIMED_OUT, "while it " + self._doing())
        return left

    def _doing(self) -> str:
        if not self._connected:
            return "connected"
        if self.reply.received:
            return "read the reply"
        return "sent the upload" if self._sending else "waited for the reply"

    def connected(self) -> socket.socket:
        """A connection, with TLS on it if there is to be."""
        sock = self._connect()
        try:
            context = self._upload.context
            if context is not None:
                sock.settimeout(self._left())
                # An end without close_notify is an error: it may be somebody's cut.
                sock = context.wrap_socket(
                    sock,
                    server_hostname=self._upload.address.host,
                    suppress_ragged_eofs=False,
                )
            sock.setblocking(False)
        except BaseException as error:
            sock.close()
            if isinstance(error, TimeoutError):
                raise _Stop(Outcome.TIMED_OUT, "in the TLS handshake") from None
            if isinstance(error, OSError):
                raise _Stop(Outcome.TLS_FAILED, _told(error)) from None
            raise
        return sock

    def _connect(self) -> socket.socket:
        stop = _Stop(Outcome.UNREACHABLE, "the host has no address")
        endpoints = self._upload.endpoints
        for number, (family, endpoint) in enumerate(endpoints):
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                # One that does not answer leaves its share of the time to the others.
                sock.settimeout(self._left() / (len(endpoints) - number))
                sock.connect(endpoint)
            except BaseException as error:
                sock.close()
                if not isinstance(error, OSError):
                    raise
                stop = _not_connected(error)
            else:
                self._connected = True
                return sock
        raise stop

    def talk(self, sock: socket.socket) -> NoReturn:
        """Send and read as this kind of client does; ends in _Stop, always."""
        with selectors.DefaultSelector() as selector:
            selector.register(sock, selectors.EVENT_READ)
            while True:
                readable, writable = self._wait(selector, sock)
                if readable:
                    self._read(sock)
                if writable and self._sending:
                    self._send(sock)

    def _wait(self, selector: selectors.BaseSelector, sock: socket.socket) -> tuple[bool, bool]:
        """Sleep until there is something to do: to read, to send."""
        tls = isinstance(sock, ssl.SSLSocket)
        if self._reading:
            if isinstance(sock, ssl.SSLSocket) and sock.pending():
                return True, self._sending
            wanted = selectors.EVENT_READ
        else:
            self._notice(sock)
            wanted = 0
        if self._sending:
            wanted |= selectors.EVENT_WRITE
        selector.modify(sock, wanted)
        events = selector.select(self._until(sock))
        if monotonic() >= self._deadline:
            more = self._count_taken(sock) - self._taken
            self.stuck = self._sending and more * _TRICKLE <= self._taken
            self._left()
        ready = events[0][1] if events else 0
        if tls:  # to send it may have to read first, and the other way round
            return self._reading, self._sending
        return bool(ready & selectors.EVENT_READ), bool(ready & selectors.EVENT_WRITE)

    def _until(self, sock: socket.socket) -> float:
        """How long to sleep: until half-time, or until the deadline."""
        before_half = self._halftime - monotonic()
        if before_half > 0:
            return before_half
        if self._taken < 0:
            self._taken = self._count_taken(sock)
        return max(self._deadline - monotonic(), 0)

    def _count_taken(self, sock: socket.socket) -> int:
        return self.sent - (unacked_bytes(sock) or 0)

    def _notice(self, sock: socket.socket) -> None:
        """Whether the reply is there already, for a client that does not look."""
        if isinstance(sock, ssl.SSLSocket):
            self.early = None  # what is there may be a session ticket
        elif not self.early:
            try:
                there = sock.recv(64 << 10, socket.MSG_PEEK)
            except BlockingIOError:
                return
            except OSError as error:
                self.early = True
                raise self._broken(error) from None
            reply = Reply()
            with contextlib.suppress(NotHTTPError):
                reply.feed(there)
            self.early = reply.status >= 200  # 100 Continue is no reply yet

    def _send(self, sock: socket.socket) -> None:
        piece = self._head or memoryview(_PIECE)[: self._unsent]
        try:
            count = sock.send(piece)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError as error:
            self.early = True
            if not self._reading:
                raise self._broken(error) from None
            self._sending = False
            self._failure = _told(error)
            return
        if self._head:
            self._head = self._head[count:]
        self._unsent -= count
        if not self._unsent:
            self._sending, self._reading = False, True

    def _read(self, sock: socket.socket) -> None:
        begun = self.reply.status >= 200
        uploading = self._is_uploading(sock)  # a reset may take the count with it
        try:
            data = sock.recv(64 << 10)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except ssl.SSLEOFError:
            raise self._ended(_CUT) from None
        except OSError as error:
            self.early = self.early or uploading
            raise self._broken(error) from None
        try:
            self.reply.feed(data)
        except NotHTTPError as error:
            raise _Stop(Outcome.NOT_HTTP, str(error)) from None
        # Asked after it: the reply acknowledges all that the server had by then.
        if self.reply.status >= 200 and not begun and self._is_uploading(sock):
            self.early = True
        if self.reply.whole:
            raise _Stop(Outcome.LATE if self.early is False else Outcome.WHOLE)
        if not data:
            raise self._ended("")

    def _is_uploading(self, sock: socket.socket) -> bool:
        return self._sending or bool(unacked_bytes(sock))

    def _ended(self, how: str) -> _Stop:
        """What the end of the stream means while the reply is not whole."""
        if self.reply.received:
            return _Stop(Outcome.CUT_OFF, self._failure or how or "FIN")
        if self._failure:
            return _Stop(Outcome.RESET, self._failure)
        return _Stop(Outcome.CLOSED, how)

    def _broken(self, error: OSError) -> _Stop:
        """What an error of recv() means."""
        spoken = isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError)
        if spoken and not (self._failure or self.reply.received):
            return _Stop(Outcome.TLS_FAILED, _told(error))
        if not isinstance(error, ssl.SSLError) and error_kind(error) is ErrorKind.LOST:
            return _Stop(Outcome.TIMED_OUT, _told(error))
        return _Stop(
            Outcome.CUT_OFF if self.reply.received else Outcome.RESET,
            self._failure or _told(error),
        )


def _not_connected(error: OSError) -> _Stop:
    if isinstance(error, TimeoutError):  # ETIMEDOUT among them
        return _Stop(Outcome.TIMED_OUT, "while it connected")
    refused = isinstance(error, ConnectionRefusedError)
    return _Stop(Outcome.REFUSED if refused else Outcome.UNREACHABLE, _told(error))


_CUT = "the end without close_notify"


def _told(error: OSError) -> str:
    """An error in a word, if there is one."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLEOFError):
        return _CUT
    if isinstance(error, ssl.SSLError):
        return str(error.reason or error)
    return errno.errorcode.get(error.errno or 0, str(error))
