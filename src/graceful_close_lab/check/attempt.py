"""One upload by one kind of client, and the outcome."""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
from time import monotonic
from typing import TYPE_CHECKING, NoReturn

from graceful_close import abortive_close, unacked_bytes
from graceful_close._platform import ErrorKind, error_kind

from .connecting import CUT, connect, describe
from .outcome import Client, Outcome, Stop, Try
from .reply import NotHTTPError, Reply

if TYPE_CHECKING:
    from .upload import Upload

_PIECE = bytes(64 << 10)

# A kernel whose program reads nothing still accepts a few bytes when a window probe arrives
# (RFC 9293, section 3.8.6.1). So an upload counts as stuck if the second half of the time sent
# less than this fraction of the first half. A heuristic.
_TRICKLE = 8

# How long curl waits for 100 Continue (CURLOPT_EXPECT_100_TIMEOUT_MS).
_WAITS_TO_CONTINUE = 1.0


def attempt(upload: Upload, client: Client) -> Try:
    """Upload once, within the timeout. Failures are returned as outcomes."""
    trial = _Trial(upload, client)
    started = monotonic()
    try:
        with connect(upload, trial.deadline) as sock:
            try:
                trial.talk(sock)
            except BaseException as stop:
                if not (isinstance(stop, Stop) and trial.reply.whole):
                    abortive_close(sock)  # otherwise the kernel continues the upload
                raise
    except Stop as stop:
        outcome, detail = stop.outcome, stop.detail
    return Try(
        client,
        outcome,
        trial.early,
        trial.reply.status,
        trial.reply.server,
        trial.sent,
        trial.reply.received,
        monotonic() - started,
        detail,
    )


def ask_without_upload(upload: Upload) -> Reply:
    """Send the same request without an upload, and return the reply, which may be empty."""
    trial = _Trial(upload._replace(size=0), Client.KEEP_ALIVE)
    with contextlib.suppress(Stop), connect(upload, trial.deadline) as sock:
        trial.talk(sock)
    return trial.reply


class _Trial:
    """The state of one try."""

    def __init__(self, upload: Upload, client: Client) -> None:
        self.reply = Reply()
        self.early: bool | None = False
        self.deadline = monotonic() + upload.timeout
        self._upload = upload
        self._client = client
        self._halftime = self.deadline - upload.timeout / 2
        self._taken = -1  # bytes that the server's kernel had acknowledged at half-time
        self._head = memoryview(upload.head(client))
        self._unsent = len(self._head) + upload.size
        self._sending = True
        self._reading = client.reads_while_sending
        self._hold_until = 0.0  # the time to send without 100 Continue; 0: now
        if client is Client.EXPECT:
            self._hold_until = monotonic() + _WAITS_TO_CONTINUE
        self._failure = ""

    @property
    def sent(self) -> int:
        """The number of bytes of the upload, without the head, that were sent."""
        return max(self._upload.size - self._unsent, 0)

    def talk(self, sock: socket.socket) -> NoReturn:
        """Send and read as this kind of client does; always raises Stop."""
        with selectors.DefaultSelector() as selector:
            selector.register(sock, selectors.EVENT_READ)
            while True:
                readable, writable = self._wait(selector, sock)
                if readable:
                    self._read(sock)
                if writable:
                    self._send(sock)

    def _wait(self, selector: selectors.BaseSelector, sock: socket.socket) -> tuple[bool, bool]:
        """Wait until the socket is ready; return whether to read, and whether to send."""
        sends = self._may_send()
        if self._reading:
            if isinstance(sock, ssl.SSLSocket) and sock.pending():
                return True, sends
            wanted = selectors.EVENT_READ
        else:
            self._detect_early_reply(sock)
            wanted = 0
        if sends:
            wanted |= selectors.EVENT_WRITE
        selector.modify(sock, wanted)
        events = selector.select(self._sleep(sock))
        if monotonic() >= self.deadline:
            raise self._out_of_time(sock)
        ready = events[0][1] if events else 0
        if isinstance(sock, ssl.SSLSocket):  # sending may need a read first, or reading a write
            return self._reading, sends
        return bool(ready & selectors.EVENT_READ), bool(ready & selectors.EVENT_WRITE)

    def _may_send(self) -> bool:
        if self._head or not self._hold_until:
            return self._sending
        if self.reply.continues or monotonic() >= self._hold_until:
            self._hold_until = 0.0
        return self._sending and not self._hold_until

    def _sleep(self, sock: socket.socket) -> float:
        """Return the seconds until the upload begins, or half-time, or the deadline."""
        now = monotonic()
        if self._hold_until:
            return max(min(self._hold_until, self.deadline) - now, 0)
        if now < self._halftime:
            return self._halftime - now
        if self._taken < 0:
            self._taken = self._count_taken(sock)
        return max(self.deadline - now, 0)

    def _out_of_time(self, sock: socket.socket) -> Stop:
        more = self._count_taken(sock) - self._taken
        if self._sending and not self._hold_until and more * _TRICKLE > self._taken:
            return Stop(Outcome.TOO_SLOW, f"{self.sent:,} bytes were sent")
        if self.reply.received:
            return Stop(Outcome.TIMED_OUT, "while reading the reply")
        if not self._sending:
            return Stop(Outcome.TIMED_OUT, "while waiting for the reply")
        there = ", after the reply had arrived" if self.early else ""
        return Stop(Outcome.TIMED_OUT, f"while sending the upload{there}")

    def _count_taken(self, sock: socket.socket) -> int:
        return self.sent - (unacked_bytes(sock) or 0)

    def _detect_early_reply(self, sock: socket.socket) -> None:
        """Detect an early reply for a client that does not read while it sends."""
        if isinstance(sock, ssl.SSLSocket):
            self.early = None  # the pending bytes may be a session ticket
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
            self.early = reply.status >= 200  # 100 Continue is not the final reply

    def _send(self, sock: socket.socket) -> None:
        piece = self._head or memoryview(_PIECE)[: self._unsent]
        try:
            count = sock.send(piece)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError as error:
            self.early = True
            if not self._client.reads_after_failure:
                raise self._broken(error) from None
            self._sending, self._reading = False, True
            self._failure = describe(error)
            return
        if self._head:
            self._head = self._head[count:]
        self._unsent -= count
        if not self._unsent:
            self._sending, self._reading = False, True

    def _read(self, sock: socket.socket) -> None:
        begun = self.reply.status >= 200
        uploading = self._is_uploading(sock)  # a reset may clear the count
        try:
            data = sock.recv(64 << 10)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except ssl.SSLEOFError:
            raise self._ended(CUT) from None
        except OSError as error:
            self.early = self.early or uploading
            raise self._broken(error) from None
        try:
            self.reply.feed(data)
        except NotHTTPError as error:
            raise Stop(Outcome.NOT_HTTP, str(error)) from None
        # Queried after the read: the reply acknowledges everything that the server had
        # received.
        if self.reply.status >= 200 and not begun and self._is_uploading(sock):
            self.early = True
        if self.reply.whole:
            raise Stop(Outcome.LATE if self.early is False else Outcome.WHOLE)
        if not data:
            raise self._ended("")
        if self._client is Client.EXPECT and self.reply.status >= 400:
            self._sending = False

    def _is_uploading(self, sock: socket.socket) -> bool:
        return self._sending or bool(unacked_bytes(sock))

    def _ended(self, how: str) -> Stop:
        """Return the outcome for the end of the stream before the reply is complete."""
        if self.reply.received:
            return Stop(Outcome.CUT_OFF, self._failure or how or "FIN")
        if self._failure:
            return Stop(Outcome.RESET, self._failure)
        return Stop(Outcome.CLOSED, how)

    def _broken(self, error: OSError) -> Stop:
        """Return the outcome for an error of recv()."""
        tls_error = isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError)
        if tls_error and not (self._failure or self.reply.received):
            return Stop(Outcome.TLS_FAILED, describe(error))
        if not isinstance(error, ssl.SSLError) and error_kind(error) is ErrorKind.LOST:
            return Stop(Outcome.TIMED_OUT, describe(error))
        return Stop(
            Outcome.CUT_OFF if self.reply.received else Outcome.RESET,
            self._failure or describe(error),
        )
