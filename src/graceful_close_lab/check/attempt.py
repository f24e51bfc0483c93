"""One upload, by a client of one kind, and what became of the reply."""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
from time import monotonic
from typing import TYPE_CHECKING, NoReturn

from graceful_close import abortive_close, unacked_bytes
from graceful_close._platform import ErrorKind, error_kind

from .connecting import CUT, connect, told
from .outcome import Client, Outcome, Stop, Try
from .reply import NotHTTPError, Reply

if TYPE_CHECKING:
    from .upload import Upload

_PIECE = bytes(64 << 10)

# A kernel whose program reads nothing still takes some bytes now and then: it is asked by probes
# (RFC 9293, section 3.8.6.1) and finds room. So an upload is stuck if the second half of the
# time brought less than this part of what the first did. A heuristic.
_TRICKLE = 8

# How long curl waits for 100 Continue (CURLOPT_EXPECT_100_TIMEOUT_MS).
_WAITS_TO_CONTINUE = 1.0


def attempt(upload: Upload, client: Client) -> Try:
    """Upload once. Whatever happens is in what this returns, within the timeout."""
    trial = _Trial(upload, client)
    started = monotonic()
    try:
        with connect(upload, trial.deadline) as sock:
            try:
                trial.talk(sock)
            except BaseException as stop:
                if not (isinstance(stop, Stop) and trial.reply.whole):
                    abortive_close(sock)  # or the kernel would continue uploading
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


def ask(upload: Upload) -> Reply:
    """What comes back for the same request without an upload; none of it, if nothing does."""
    trial = _Trial(upload._replace(size=0), Client.KEEP_ALIVE)
    with contextlib.suppress(Stop), connect(upload, trial.deadline) as sock:
        trial.talk(sock)
    return trial.reply


class _Trial:
    """One try while it lasts."""

    def __init__(self, upload: Upload, client: Client) -> None:
        self.reply = Reply()
        self.early: bool | None = False
        self.deadline = monotonic() + upload.timeout
        self._upload = upload
        self._client = client
        self._halftime = self.deadline - upload.timeout / 2
        self._taken = -1  # bytes that the server's kernel had at half-time
        self._head = memoryview(upload.head(client))
        self._unsent = len(self._head) + upload.size
        self._sending = True
        self._reading = client.reads_while_sending
        self._hold_until = 0.0  # when it sends without 100 Continue; 0: now
        if client is Client.EXPECT:
            self._hold_until = monotonic() + _WAITS_TO_CONTINUE
        self._failure = ""

    @property
    def sent(self) -> int:
        """Bytes of the upload, not of its head, that were sent."""
        return max(self._upload.size - self._unsent, 0)

    def talk(self, sock: socket.socket) -> NoReturn:
        """Send and read as this kind of client does; ends in Stop, always."""
        with selectors.DefaultSelector() as selector:
            selector.register(sock, selectors.EVENT_READ)
            while True:
                readable, writable = self._wait(selector, sock)
                if readable:
                    self._read(sock)
                if writable:
                    self._send(sock)

    def _wait(self, selector: selectors.BaseSelector, sock: socket.socket) -> tuple[bool, bool]:
        """Sleep until there is something to do: to read, to send."""
        sends = self._may_send()
        if self._reading:
            if isinstance(sock, ssl.SSLSocket) and sock.pending():
                return True, sends
            wanted = selectors.EVENT_READ
        else:
            self._notice(sock)
            wanted = 0
        if sends:
            wanted |= selectors.EVENT_WRITE
        selector.modify(sock, wanted)
        events = selector.select(self._sleep(sock))
        if monotonic() >= self.deadline:
            raise self._out_of_time(sock)
        ready = events[0][1] if events else 0
        if isinstance(sock, ssl.SSLSocket):  # to send it may have to read first, or vice versa
            return self._reading, sends
        return bool(ready & selectors.EVENT_READ), bool(ready & selectors.EVENT_WRITE)

    def _may_send(self) -> bool:
        if self._head or not self._hold_until:
            return self._sending
        if self.reply.continues or monotonic() >= self._hold_until:
            self._hold_until = 0.0
        return self._sending and not self._hold_until

    def _sleep(self, sock: socket.socket) -> float:
        """How long to: until the upload begins, until half-time, or until the deadline."""
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
            return Stop(Outcome.TIMED_OUT, "while it read the reply")
        if not self._sending:
            return Stop(Outcome.TIMED_OUT, "while it waited for the reply")
        there = ", with the reply there" if self.early else ""
        return Stop(Outcome.TIMED_OUT, f"while it sent the upload{there}")

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
            if not self._client.reads_after_failure:
                raise self._broken(error) from None
            self._sending, self._reading = False, True
            self._failure = told(error)
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
            raise self._ended(CUT) from None
        except OSError as error:
            self.early = self.early or uploading
            raise self._broken(error) from None
        try:
            self.reply.feed(data)
        except NotHTTPError as error:
            raise Stop(Outcome.NOT_HTTP, str(error)) from None
        # Asked after it: the reply acknowledges all that the server had by then.
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
        """What the end of the stream means while the reply is not whole."""
        if self.reply.received:
            return Stop(Outcome.CUT_OFF, self._failure or how or "FIN")
        if self._failure:
            return Stop(Outcome.RESET, self._failure)
        return Stop(Outcome.CLOSED, how)

    def _broken(self, error: OSError) -> Stop:
        """What an error of recv() means."""
        spoken = isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError)
        if spoken and not (self._failure or self.reply.received):
            return Stop(Outcome.TLS_FAILED, told(error))
        if not isinstance(error, ssl.SSLError) and error_kind(error) is ErrorKind.LOST:
            return Stop(Outcome.TIMED_OUT, told(error))
        return Stop(
            Outcome.CUT_OFF if self.reply.received else Outcome.RESET,
            self._failure or told(error),
        )
