"""TLS: sending close_notify before the close sequence of the raw connection.

close_notify ends one direction and needs no answer (RFC 8446, section 6.1). It is sent once, without
waiting for the peer's. Further input is discarded without decryption.

The module supports the sockets of the ssl module. An `ssl.SSLObject` over `MemoryBIO` is not a
socket: its owner calls `unwrap()`, sends the content of the outgoing BIO, and passes the plain
socket. An SSLSocket holds no unsent data: the kernel has everything that send() accepted.

No other thread may use the TLS socket during the call; OpenSSL does not permit it.
"""

from __future__ import annotations

import _socket
import errno
import os
import signal
import socket
import sys
from functools import partial
from weakref import WeakKeyDictionary

from ._acks import pending_error, read_state
from ._platform import ErrorKind, TcpState, error_kind, forget_tls_error
from ._sockets import view_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import SocketIO
    from ssl import SSLError, SSLSocket
    from typing import Any, TypeVar

    T = TypeVar("T")

# By name, because importing ssl takes longer than the rest of the package, and because gevent may have
# replaced the class with which the socket was created.
_TLS_CLASSES = (("ssl", "SSLSocket"), ("gevent.ssl", "SSLSocket"))

# A kernel reports these once: after OpenSSL has read one, no later call reports it.
_REPORTED_ONCE = (ErrorKind.RESET, ErrorKind.CLOSED)

# EPIPE without a signal: with SIGPIPE at its default, a close must not kill the program.
MSG_NOSIGNAL = int(getattr(socket, "MSG_NOSIGNAL", 0))


def speaks_tls(sock: socket.socket) -> bool:
    """Whether this is a TLS socket of the ssl module or of gevent."""
    return _class_of(sock) is not None


def send_close_notify(sock: socket.socket) -> tuple[bool | None, bool | None]:
    """Send close_notify, once for a session, without waiting for the peer's.

    Returns:
        Whether ours was sent (None: there is no TLS session to end), and whether the peer's had
        arrived (False: its stream ended without one; None: not known).

    Raises:
        BlockingIOError: The send buffer has no room; try again when it has.
        OSError: The connection is over: reset, lost, or closed by another thread.
    """
    tls = _class_of(sock)
    if tls is None or not isinstance(sock, tls):
        return None, None
    try:
        # Before the handshake both are None. After an error that ended a session the first is None.
        if tls.version(sock) is None and tls.get_channel_binding(sock) is None:
            return None, None
        error = pending_error(sock)
        if error is not None and _is_over(sock):
            raise error  # OpenSSL would take it from the socket, and not always report it
        blocking = sock.gettimeout() is None
        # OpenSSL does not support MSG_DONTWAIT, so the descriptor itself must not block. Every dup
        # shares the mode, so a blocking socket gets its mode back immediately. With a timeout, even
        # of 0, the descriptor should not block anyway, but a dup may have changed the mode.
        try:
            sock.settimeout(0)
            return _without_sigpipe(lambda: _send(sock, tls))
        finally:
            if blocking:
                sock.settimeout(None)
    except (AttributeError, ValueError):
        return None, None  # another thread has closed or unwrapped it


def _is_over(sock: socket.socket) -> bool:
    """Whether a pending error has ended the connection, and not only affected one segment."""
    if not isinstance(sock, _socket.socket):
        return True  # gevent's, whose state is not read
    return read_state(sock, view_of(sock)) in (None, TcpState.OVER, TcpState.NEVER_OPEN)


def _send(sock: SSLSocket, tls: type[SSLSocket]) -> tuple[bool | None, bool | None]:
    import ssl  # already imported: see _class_of()

    try:
        # Writes nothing, and reports what prevents a write (SSL_write_ex(3)): a half-written record
        # (only its owner could finish it), or an error that ended the session. unwrap() would not
        # report it, because SSL_shutdown() then fails without using the socket.
        tls.send(sock, b"")
    except OSError as error:
        forget_tls_error()
        if getattr(error, "reason", None) != "PROTOCOL_IS_SHUTDOWN":
            return False, None
        # It was begun before: by us, without room, or by the caller.
    session: Any = getattr(sock, "_sslobj", None)
    try:
        # Calls SSL_shutdown() twice: the first call sends ours, the second reads the peer's.
        tls.unwrap(sock)
    except ssl.SSLWantWriteError:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
    except OSError as caught:
        forget_tls_error()
        failure = _of_the_system(caught)
        if isinstance(failure, ssl.SSLError):
            return _after(failure)
        # EPIPE: shut down for writing before, which says nothing about the connection.
        lost = not isinstance(failure, BrokenPipeError)
        if lost and error_kind(failure) in (*_REPORTED_ONCE, ErrorKind.LOST):
            raise failure from None
        return False, None
    # gevent, and every socket with this option, treats a bare end of the stream as a close_notify.
    cannot_tell = not isinstance(sock, _socket.socket) or (
        sock.context.options & getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    )
    return True, None if cannot_tell or _has_failed(session) else True


def _has_failed(session: Any) -> bool:
    """Whether a fatal alert ended a session. SSL_shutdown() returns the same as after close_notify."""
    try:
        session.do_handshake()  # fails after a fatal alert; after a handshake it does nothing else
    except (AttributeError, OSError):
        forget_tls_error()
        return True
    return False


def _of_the_system(error: OSError) -> OSError:
    """Return an error as CPython raises it: PyPy raises the system's as an SSLError without reason."""
    import ssl

    if isinstance(error, ssl.SSLError) and not hasattr(error, "reason"):
        return OSError(error.errno, error.strerror)
    return error


def _after(error: SSLError) -> tuple[bool | None, bool | None]:
    """Return what unwrap() has done when it raises `error`."""
    import ssl

    if isinstance(error, ssl.SSLWantReadError):
        return True, None
    if isinstance(error, ssl.SSLEOFError):
        return True, False
    if isinstance(error, ssl.SSLZeroReturnError):
        return False, True  # the peer's had arrived, and ours failed
    # The second call fails because of the peer's data (APPLICATION_DATA_AFTER_CLOSE_NOTIFY), or did
    # so before. The first fails only if the caller's own unwrap() found a half-written record. A
    # reason that is newer than the OpenSSL that Python was built with has no name, but a library. An
    # error with neither is not an error of TLS: the connection failed.
    is_of_tls = error.reason is not None or error.library is not None
    return is_of_tls and error.reason != "BAD_WRITE_RETRY", None


def _without_sigpipe(call: Callable[[], T]) -> T:
    """Call with SIGPIPE blocked if it would kill: OpenSSL writes without MSG_NOSIGNAL."""
    if sys.platform == "win32" or signal.getsignal(signal.SIGPIPE) is not signal.SIG_DFL:
        return call()
    mask = _signal.pthread_sigmask
    before = mask(signal.SIG_BLOCK, ())
    was_blocked = int(signal.SIGPIPE) in before
    # No signal's exception can come between an end of `try` and the first call into C after it.
    try:
        mask(signal.SIG_BLOCK, _SIGPIPE)
        try:
            return call()
        finally:
            if not was_blocked:
                _take_sigpipe()
    finally:
        mask(signal.SIG_SETMASK, before)


# The functions without the wrappers in Python, in which an interrupt could prevent the call into C.
_signal: Any = sys.modules["_signal"]

if sys.platform == "win32":
    _SIGPIPE: tuple[signal.Signals, ...] = ()
else:
    _SIGPIPE = (signal.SIGPIPE,)


def _sigwait_sigpipe() -> None:
    """Take the pending SIGPIPE where sigtimedwait() is missing: macOS, PyPy."""
    if sys.platform != "win32" and signal.SIGPIPE in signal.sigpending():
        signal.sigwait(_SIGPIPE)


# Takes the pending SIGPIPE: the kernel has sent the signal to this thread, for the write.
_take_sigpipe: Callable[[], object] = (
    partial(_signal.sigtimedwait, _SIGPIPE, 0)
    if hasattr(_signal, "sigtimedwait")
    else _sigwait_sigpipe
)


# The attribute of a TLS socket that names the close that uses its session.
_CLAIM = "_graceful_close"


class Session:
    """The TLS session of a caller's socket, held until its close_notify is sent.

    OpenSSL writes to the number of the descriptor, and only while the caller's object has it. So the
    descriptor stays in the object until then. Two things protect it during this time. A claim keeps
    other closes away, because they would use the same number, and the same session. A makefile()
    object keeps the descriptor open: a close() by the caller takes effect when the last makefile()
    object is closed.
    """

    __slots__ = ("_file", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._file: SocketIO | None = None

    peer_notified: bool | None = None

    def claim(self) -> bool:
        """Reserve the session until `end`. False: another close has it."""
        return vars(self.sock).setdefault(_CLAIM, self) is self

    def keep_open(self) -> None:
        """Keep the descriptor open until `end`."""
        self._file = self.sock.makefile("rb", buffering=0)

    def send(self, sock: socket.socket) -> tuple[bool | None, bool | None]:
        """`send_close_notify`; `sock` is another object for the same descriptor."""
        return send_close_notify(self.sock)

    def end(self) -> None:
        """Take the descriptor and the session out of the caller's object; it stays open."""
        sock = self.sock
        if isinstance(sock, _socket.socket):
            sock.detach()
        else:
            type(sock).detach(sock)
        _forget(sock)
        if self._file is not None:
            self._file.close()
        vars(sock).pop(_CLAIM, None)


class LastRecords:
    """The final records of a framework's TLS session, created in memory.

    Args:
        records: Unsent records; close_notify is at their end, if `notified` is true.
        notified: As in `CloseResult`, after they are sent.
        peer_notified: As in `CloseResult`.
    """

    __slots__ = ("_left", "_notified", "peer_notified")

    def __init__(
        self, records: bytes, notified: bool | None, peer_notified: bool | None
    ) -> None:
        self._left = records
        self._notified = notified
        self.peer_notified = peer_notified

    @property
    def left(self) -> bytes:
        """The records that are not sent yet."""
        return self._left

    def send(self, sock: socket.socket) -> tuple[bool | None, bool | None]:
        """As `send_close_notify`, on a plain socket that does not block."""
        try:
            while self._left:
                self._left = self._left[sock.send(self._left, MSG_NOSIGNAL) :]
        except BrokenPipeError:  # shut down for writing before, not an end of the connection
            return False, self.peer_notified
        return self._notified, self.peer_notified


def _forget(sock: socket.socket) -> None:
    """Take the TLS session out of a closed socket object.

    OpenSSL keeps the number of the descriptor and would use it, although another object may have it.
    """
    tls = _class_of(sock)
    if tls is None or not isinstance(sock, tls):
        return
    try:
        tls.shutdown(sock, socket.SHUT_WR)  # drops the session, then fails
    except OSError:
        pass  # EBADF


def _class_of(sock: socket.socket) -> type[SSLSocket] | None:
    """Return the class itself, because a subclass may override its methods."""
    kind = type(sock)
    return tls_class_above(kind) if hasattr(kind, "do_handshake") else None


# Weak, because listeners create classes, which must be collected with them.
_known: WeakKeyDictionary[type, type[SSLSocket] | None] = WeakKeyDictionary()


def tls_class_above(kind: type[socket.socket]) -> type[SSLSocket] | None:
    """Return the class of TLS sockets that a class is, or derives from."""
    try:
        return _known[kind]
    except KeyError:
        above = (one for one in kind.__mro__ if (one.__module__, one.__name__) in _TLS_CLASSES)
        found = _known[kind] = next(above, None)
        return found
