"""TLS: say close_notify, then leave the rest to the raw sequence.

close_notify ends one direction and needs no answer (RFC 8446, section 6.1). It is sent once, and
nobody waits for the peer's. What the peer still sends is thrown away undecrypted.

Only sockets of the ssl module are known here. An `ssl.SSLObject` over `MemoryBIO` is no socket:
its owner calls its `unwrap()`, sends what that leaves in the outgoing BIO, and hands in the plain
socket. An SSLSocket holds no unsent data back: what send() took, the kernel has.

No other thread may be using the TLS socket meanwhile; OpenSSL does not allow it.
"""

from __future__ import annotations

import _socket
import errno
import os
import signal
import socket
import sys
from weakref import WeakKeyDictionary

from ._acks import pending_error, read_state
from ._platform import ErrorKind, TcpState, error_kind
from ._sockets import view_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from ssl import SSLError, SSLSocket
    from typing import TypeVar

    T = TypeVar("T")

# By name, because importing ssl costs more than the rest of the package, and because gevent may
# have put its own class in the place of the one that the socket was made with.
_TLS_CLASSES = (("ssl", "SSLSocket"), ("gevent.ssl", "SSLSocket"))

# A kernel reports these once: after OpenSSL has read one, no later call will.
_REPORTED_ONCE = (ErrorKind.RESET, ErrorKind.CLOSED)

# EPIPE, and no signal: a program that has SIGPIPE at its default is not to die of a close.
MSG_NOSIGNAL = int(getattr(socket, "MSG_NOSIGNAL", 0))


def speaks_tls(sock: socket.socket) -> bool:
    """Whether this is a TLS socket of the ssl module, or of gevent's."""
    return _class_of(sock) is not None


def send_close_notify(sock: socket.socket) -> tuple[bool | None, bool | None]:
    """Send close_notify, once in a session's life, and do not wait for the peer's.

    Returns:
        Whether ours is out (None: there is no TLS session to end), and whether the peer's was
        there (False: its stream was cut without one; None: nobody looked that far).

    Raises:
        BlockingIOError: There is no room for it in the send buffer; try again when there is.
        OSError: The connection is gone: reset, lost, or closed by another thread.
    """
    tls = _class_of(sock)
    if tls is None or not isinstance(sock, tls):
        return None, None
    try:
        # Before the handshake there is neither. An error that ended a session takes the first.
        if tls.version(sock) is None and tls.get_channel_binding(sock) is None:
            return None, None
        error = pending_error(sock)
        if error is not None and _is_over(sock):
            raise error  # OpenSSL would take it from the socket, and not always tell
        blocking = sock.gettimeout() is None
        # OpenSSL knows no MSG_DONTWAIT, so the descriptor itself must not block, and every dup
        # shares that: a blocking one gets its mode back at once. With a timeout, even of 0, it
        # should not be blocking anyway, but a dup may have made it so.
        sock.settimeout(0)
        try:
            return _without_sigpipe(lambda: _send(sock, tls))
        finally:
            if blocking:
                sock.settimeout(None)
    except (AttributeError, ValueError):
        return None, None  # another thread has just closed or unwrapped it


def _is_over(sock: socket.socket) -> bool:
    """Whether a pending error has ended the connection, and not just told of one segment."""
    if not isinstance(sock, _socket.socket):
        return True  # gevent's, whose state nobody reads here
    return read_state(sock, view_of(sock)) in (None, TcpState.OVER, TcpState.NEVER_OPEN)


def _send(sock: SSLSocket, tls: type[SSLSocket]) -> tuple[bool | None, bool | None]:
    import ssl  # the caller has it: see _class_of()

    try:
        # Writes nothing, and says what stands in the way (SSL_write_ex(3)): a record of which
        # only a part is out (only its owner could finish it), or an error that ended the session.
        # unwrap() would guess, because SSL_shutdown() then fails without touching the socket.
        tls.send(sock, b"")
    except OSError as error:
        if getattr(error, "reason", None) != "PROTOCOL_IS_SHUTDOWN":
            return False, None
        # It was begun before: by us, and there was no room, or by the caller.
    try:
        # Calls SSL_shutdown() twice: the first sends ours, the second looks for the peer's.
        tls.unwrap(sock)
    except ssl.SSLWantWriteError:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
    except ssl.SSLError as error:
        return _after(error)
    except OSError as error:
        # EPIPE: shut for writing before, which is no news of the connection.
        lost = not isinstance(error, (ssl.SSLError, BrokenPipeError))
        if lost and error_kind(error) in (*_REPORTED_ONCE, ErrorKind.LOST):
            raise
        return False, None
    # gevent, and everybody under this option, take the bare end of the stream for a close_notify.
    cannot_tell = not isinstance(sock, _socket.socket) or (
        sock.context.options & getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    )
    return True, None if cannot_tell else True


def _after(error: SSLError) -> tuple[bool, bool | None]:
    """What unwrap() has done when it says `error`."""
    import ssl

    if isinstance(error, ssl.SSLWantReadError):
        return True, None
    if isinstance(error, ssl.SSLEOFError):
        return True, False
    if isinstance(error, ssl.SSLZeroReturnError):
        return False, True  # the peer's was there, and ours failed
    # The second call fails over what the peer sends (APPLICATION_DATA_AFTER_CLOSE_NOTIFY), or did
    # so before; the first only if the caller's own unwrap() met a record that is half out. Reasons
    # that are newer than the OpenSSL that Python was built with have no name, and are None.
    ours_failed = isinstance(error, ssl.SSLSyscallError) or error.reason == "BAD_WRITE_RETRY"
    return not ours_failed, None


def _without_sigpipe(call: Callable[[], T]) -> T:
    """Call with SIGPIPE blocked, where it would kill: OpenSSL writes without MSG_NOSIGNAL."""
    if sys.platform == "win32" or signal.getsignal(signal.SIGPIPE) is not signal.SIG_DFL:
        return call()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
    try:
        return call()
    finally:
        if signal.SIGPIPE not in before:
            if signal.SIGPIPE in signal.sigpending() and hasattr(signal, "sigtimedwait"):
                signal.sigtimedwait({signal.SIGPIPE}, 0)  # ours, which is this thread's
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Session:
    """The TLS session of a caller's socket, held until its close_notify is out.

    OpenSSL writes by the number of the descriptor, and only while the caller's object has it. So
    the descriptor stays there until then. A makefile() object keeps it open meanwhile: a close()
    of the caller's counts only when the last of those is closed.
    """

    __slots__ = ("_file", "_sock")

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._file = sock.makefile("rb", buffering=0)

    peer_notified: bool | None = None

    def send(self, sock: socket.socket) -> tuple[bool | None, bool | None]:
        """`send_close_notify`; `sock` is another object for the same descriptor."""
        return send_close_notify(self._sock)

    def end(self) -> None:
        """Take descriptor and session out of the caller's object. The descriptor stays open."""
        detach_session(self._sock)
        self._file.close()


def detach_session(sock: socket.socket) -> None:
    """Take descriptor and TLS session out of a socket object; the descriptor stays open."""
    if isinstance(sock, _socket.socket):
        sock.detach()
    else:
        type(sock).detach(sock)
    forget_session(sock)


class LastRecords:
    """What a TLS session has yet to say that a framework speaks, made in memory.

    Args:
        records: They have close_notify at their end, if `notified` is true.
        notified: As in `CloseResult`, once they are out.
        peer_notified: The same.
    """

    __slots__ = ("_left", "_notified", "peer_notified")

    def __init__(
        self, records: bytes, notified: bool | None, peer_notified: bool | None
    ) -> None:
        self._left = records
        self._notified = notified
        self.peer_notified = peer_notified

    def send(self, sock: socket.socket) -> tuple[bool | None, bool | None]:
        """As `send_close_notify`, on a plain socket that does not block."""
        try:
            while self._left:
                self._left = self._left[sock.send(self._left, MSG_NOSIGNAL) :]
        except BrokenPipeError:  # shut for writing before, which is no news of the connection
            return False, self.peer_notified
        return self._notified, self.peer_notified


def forget_session(sock: socket.socket) -> None:
    """Take the TLS session out of a socket object that is closed.

    OpenSSL keeps the descriptor's number and would go on using it, whoever has it by then.
    """
    tls = _class_of(sock)
    if tls is None or not isinstance(sock, tls):
        return
    try:
        tls.shutdown(sock, socket.SHUT_WR)  # forgets first, and then finds nothing to shut down
    except OSError:
        pass  # EBADF


def _class_of(sock: socket.socket) -> type[SSLSocket] | None:
    """The class itself, because a subclass may have made something else of its methods."""
    kind = type(sock)
    return tls_class_above(kind) if hasattr(kind, "do_handshake") else None


# Classes come and go with listeners, and none may stay for having been looked at.
_known: WeakKeyDictionary[type, type[SSLSocket] | None] = WeakKeyDictionary()


def tls_class_above(kind: type[socket.socket]) -> type[SSLSocket] | None:
    """The class of TLS sockets that a class is, or comes from."""
    try:
        return _known[kind]
    except KeyError:
        above = (one for one in kind.__mro__ if (one.__module__, one.__name__) in _TLS_CLASSES)
        found = _known[kind] = next(above, None)
        return found
