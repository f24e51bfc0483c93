"""Peers that are programs above the kernel, and their own records."""

from __future__ import annotations

import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import ClassVar

from graceful_close import LingerPolicy, set_linger

# How long a peer waits for the end of a stream, in seconds. A complaint that depends on it is confirmed
# by further plays of the situation.
SILENCE = 0.5

LITTLE, MUCH = 700, 60_000
_A_WHILE = 0.02
_PIECE = 65536
_BYTES_RECEIVED = 128  # in struct tcp_info (include/uapi/linux/tcp.h)
_SIOCOUTQ = 0x5411
_FORGED = b"\x17\x03\x03\x00\x20" + bytes(32)  # a record of TLS


@dataclass
class Account:
    """A peer's own record.

    Attributes:
        sent: The number of bytes that it has sent; under TLS, bytes of the program.
        received: The number of bytes that it has read, likewise.
        end: How our stream ended: "FIN", "RST", or "" if the peer observed no end.
        fin: Whether it has sent FIN.
        fin_before: Whether it had sent FIN before the call.
        rst: Whether it has sent RST, or its kernel must.
        failure: The error of its TLS session.
        left: Whether it closed before it observed our end.
        got_close_notify: Whether our close_notify arrived.
        sent_close_notify: Whether it has sent its own.
        kernel_has: The number of bytes that its kernel had at the return; our FIN counts as one.
        exact: The exact number of bytes that it has acknowledged; None: not known.
        lately: The number of these that it has acknowledged since the call began.
    """

    sent: int = 0
    received: int = 0
    end: str = ""
    fin: bool = False
    fin_before: bool = False
    rst: bool = False
    left: bool = False
    got_close_notify: bool = False
    sent_close_notify: bool = False
    kernel_has: int | None = None
    exact: int | None = None
    lately: int = 0
    failure: str = ""


class Peer:
    """The other end of a connection of the kernel.

    Args:
        sock: Its socket.
        name: Its behaviour; see `axes`.
        context: TLS, as a client or, with `server_side`, as a server; None: no TLS.
        truncates: It never sends close_notify.
    """

    def __init__(
        self,
        sock: socket.socket,
        name: str,
        context: ssl.SSLContext | None = None,
        *,
        server_side: bool = False,
        hostname: str | None = None,
        truncates: bool = False,
    ) -> None:
        self.sock = sock
        self._truncates = truncates
        self.name = name
        self.account = Account()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._session: ssl.SSLObject | None = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._cpu = 0.0
        self._open = True
        sock.setblocking(False)
        if context is not None:
            self._session = context.wrap_bio(
                self._incoming,
                self._outgoing,
                server_side=server_side,
                server_hostname=None if server_side else hostname,
            )

    # --- single actions --------------------------------------------------------------------------

    def handshake(self, *, half: bool = False) -> None:
        """Complete the handshake; `half`: begin it only."""
        assert self._session is not None
        while True:
            try:
                self._session.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                if half:
                    return
                if not self._await(select.POLLIN, 5.0):
                    raise TimeoutError("the handshake never came") from None
                self._incoming.write(self.sock.recv(_PIECE))
            else:
                self._flush()
                return

    def _await(self, events: int, seconds: float) -> bool:
        poller = select.poll()
        poller.register(self.sock, events)
        return bool(poller.poll(seconds * 1000))

    def _read(self, seconds: float) -> bool:
        """Read once; return whether the stream is still open."""
        account = self.account
        if not self._open or account.end:
            return False
        if not self._await(select.POLLIN, seconds):
            return True
        try:
            data = self.sock.recv(_PIECE)
        except BlockingIOError:
            return True
        except OSError:
            account.end = "RST"
            return False
        if not data:
            account.end = "FIN"
            return False
        if self._session is None:
            account.received += len(data)
        else:
            self._incoming.write(data)
            self._decrypt(self._session)
        return True

    def _decrypt(self, session: ssl.SSLObject) -> None:
        account = self.account
        try:
            while not account.got_close_notify:
                count = len(session.read(_PIECE))
                account.received += count
                if not count:
                    account.got_close_notify = True
        except ssl.SSLZeroReturnError:
            account.got_close_notify = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            account.failure = repr(error)

    def _read_all(self) -> None:
        while not self._over.is_set() and self._read(_A_WHILE):
            pass

    def _flush(self) -> None:
        data = self._outgoing.read()
        while data and self._await(select.POLLOUT, SILENCE):
            try:
                data = data[self.sock.send(data) :]
            except BlockingIOError:
                continue
            except OSError:
                self.account.end = self.account.end or "RST"
                return

    def upload(self, count: int, seconds: float = SILENCE) -> bool:
        """Send `count` bytes without reading; return whether all were sent."""
        until = monotonic() + seconds
        while count and self._open:
            if self._over.is_set() or monotonic() > until:
                return False
            piece = b"u" * min(count, 16384)
            try:
                if self._session is not None:
                    self._session.write(piece)
                    count -= len(piece)
                    self.account.sent += len(piece)
                    self._flush()
                    continue
                sent = self.sock.send(piece)
            except BlockingIOError:
                self._await(select.POLLOUT, _A_WHILE)
            except ssl.SSLError:
                return False  # it has sent its close_notify
            except OSError:
                self.account.end = self.account.end or "RST"
                return False
            else:
                count -= sent
                self.account.sent += sent
        return not count

    def fin(self) -> None:
        with suppress(OSError):
            if not self.account.rst:
                self.sock.shutdown(socket.SHUT_WR)
                self.account.fin = True

    def reset(self) -> None:
        self.returned()
        if self.sock.family == socket.AF_UNIX:
            self.close()  # AF_UNIX has no RST; close() with unread input reports ECONNRESET to us
            return
        self.account.rst = True
        self.account.left = not self.account.end
        self._open = False
        set_linger(self.sock, LingerPolicy.ABORT)
        self.sock.close()

    def send_close_notify(self) -> None:
        """Send close_notify."""
        if self._truncates or self.account.failure:
            return
        if self._session is not None and not self.account.sent_close_notify:
            with suppress(ssl.SSLError):
                self._session.unwrap()
            self._flush()
            self.account.sent_close_notify = True

    def send_alert(self) -> None:
        """Send a fatal alert, as after a record that was forged."""
        assert self._session is not None
        self._incoming.write(_FORGED)
        self._decrypt(self._session)
        self._flush()

    def close(self) -> None:
        """Close. With unread input its kernel sends RST."""
        if not self._open:
            return
        self.send_close_notify()
        self.returned()
        self._open = False
        account = self.account
        try:
            unread = self.sock.recv(1, socket.MSG_PEEK)
        except OSError:
            unread = b""
        # Its kernel also answers later input with RST.
        account.left = not account.end
        account.rst = account.rst or bool(unread) or account.left
        account.fin = account.fin or not unread
        self.sock.close()

    def kernel_has(self) -> int | None:
        """Return the number of bytes that arrived in order; FIN counts as one. None: not known."""
        if not self._open:
            return self.account.kernel_has
        try:
            info = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        except OSError:
            return None
        if self.sock.family not in {socket.AF_INET, socket.AF_INET6} or len(info) < 136:
            return None
        count: int = struct.unpack_from("Q", info, _BYTES_RECEIVED)[0]
        return count

    def unread_there(self) -> int:
        """Return how many of its bytes our kernel has not acknowledged yet."""
        import fcntl

        raw = fcntl.ioctl(self.sock, _SIOCOUTQ, bytes(4))
        return int.from_bytes(raw, "little")

    # --- before the call -------------------------------------------------------------------------

    def before(self, unread: str) -> None:
        """Do what precedes the call. When this returns, our kernel has received it."""
        if unread == "urgent":
            try:
                self.account.sent += self.sock.send(b"u" * LITTLE)
                self.sock.send(b"!", socket.MSG_OOB)
            except OSError:
                self.account.end = "RST"
        elif unread != "nothing":
            self.upload(LITTLE if unread == "little" else MUCH)
        self._arrive()
        if self.name == "has closed":
            self.close()
        elif self.name == "has half-closed":
            self.send_close_notify()
            self.fin()
        elif self.name == "has reset":
            self.reset()
        elif self.name == "has shut reading":
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_RD)
            self.account.left = True
        self.account.fin_before = self.account.fin
        self._arrive()

    def _arrive(self) -> None:
        if not self._open or self.sock.family == socket.AF_UNIX:
            return
        until = monotonic() + 0.2
        with suppress(OSError):
            while self.unread_there() and monotonic() < until:
                time.sleep(0.001)

    # --- during the call -------------------------------------------------------------------------

    def start(self) -> None:
        act = self._ACTS.get(self.name)
        if act is not None:
            self._thread = threading.Thread(target=self._run, args=(act,), name="peer")
            self._thread.start()

    def _run(self, act: Callable[[Peer], None]) -> None:
        try:
            act(self)
        finally:
            self._cpu = time.thread_time()

    def cpu(self) -> float:
        """Return the processor time of its thread in seconds."""
        thread = self._thread
        if thread is None or thread.ident is None or not thread.is_alive():
            return self._cpu
        try:
            return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
        except OSError:
            return self._cpu

    def returned(self) -> None:
        """Record what its kernel has at the return of the call."""
        self.account.kernel_has = self.kernel_has()

    def finish(self) -> Account:
        """Read until the end, close, and return the record."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(5)
        last = monotonic()
        while monotonic() - last < SILENCE:
            before = self.account.received
            if not self._read(_A_WHILE):
                break
            if self.account.received != before:
                last = monotonic()
        self._open = False
        self.sock.close()
        return self.account

    def _reads_and_closes(self) -> None:
        self._read_all()
        if self.account.end:
            self.close()

    def _reads_uploads_closes(self) -> None:
        self._read_all()
        if self.account.end == "FIN":
            self.upload(5000)
            self.close()

    def _uploads_reads_closes(self) -> None:
        self.upload(100_000)
        self._reads_and_closes()

    def _floods(self) -> None:
        while not self._over.is_set() and self.upload(16384, 0.05):
            pass

    def _drips(self) -> None:
        for _ in range(10):
            self._read(0.01)
            if self._over.is_set() or not self.upload(1):
                break
            time.sleep(0.005)
        self._reads_and_closes()

    def _reads_slowly(self) -> None:
        while not self._over.is_set() and self._read(_A_WHILE):
            time.sleep(0.002)
        if self.account.end:
            self.close()

    def _reads_late(self) -> None:
        self._over.wait(0.12)
        self._reads_and_closes()

    def _resets_later(self) -> None:
        self._over.wait(_A_WHILE)
        self.reset()

    def _resets_at_our_fin(self) -> None:
        self._read_all()
        if self.account.end:
            self.reset()

    def _closes_unread(self) -> None:
        self._over.wait(_A_WHILE)
        self.close()

    _ACTS: ClassVar[dict[str, Callable[[Peer], None]]] = {
        "reads and closes": _reads_and_closes,
        "reads, uploads, closes": _reads_uploads_closes,
        "uploads, reads, closes": _uploads_reads_closes,
        "floods": _floods,
        "drips": _drips,
        "reads slowly": _reads_slowly,
        "reads late": _reads_late,
        "never closes": _read_all,
        "has half-closed": _reads_and_closes,
        "resets later": _resets_later,
        "resets at our FIN": _resets_at_our_fin,
        "closes unread": _closes_unread,
        "has shut reading": _read_all,
    }
