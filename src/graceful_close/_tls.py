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
import socket
from functools import lru_cache

from ._checks import is_native
from ._delivery import pending_error
from ._platform import Meaning, meaning

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ssl import SSLError, SSLSocket

# By name, because importing ssl costs more than the rest of the package, and because gevent may
# have put its own class in the place of the one that the socket was made with.
_TLS_CLASSES = (("ssl", "SSLSocket"), ("gevent.ssl", "SSLSocket"))

# A socket says these once: after OpenSSL has heard one, nobody else will.
_SAID_ONCE = (Meaning.RESET, Meaning.LOST, Meaning.CLOSED)


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
        if error is not None:
            raise error  # OpenSSL would take it from the socket, and not always tell
        blocking = sock.gettimeout() is None
        # OpenSSL knows no MSG_DONTWAIT, so the descriptor itself must not block, and every dup
        # shares that: a blocking one gets its mode back at once. With a timeout, even of 0, it
        # should not be blocking anyway, but a dup may have made it so.
        sock.settimeout(0)
        try:
            return _send(sock, tls)
        finally:
            if blocking:
                sock.settimeout(None)
    except (AttributeError, ValueError):
        return None, None  # another thread has just closed or unwrapped it


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
        if meaning(error) in _SAID_ONCE and not isinstance(error, BrokenPipeError):
            raise
        return False, None
    # gevent, and everybody under this option, take the bare end of the stream for a close_notify.
    cannot_tell = not is_native(sock) or (
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
    # so before; the first only if the caller's own unwrap() met a record that is half out.
    return error.reason not in (None, "BAD_WRITE_RETRY"), None


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
                self._left = self._left[sock.send(self._left) :]
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
    plain = kind is socket.socket or kind is _socket.socket
    # Nearly always, and ten times as fast. mypy takes a class for unhashable.
    return None if plain else tls_class_above(kind)  # type: ignore[arg-type]


@lru_cache  # of the last few classes, whose ancestors do not change
def tls_class_above(kind: type[socket.socket]) -> type[SSLSocket] | None:
    """The class of TLS sockets that a class is, or comes from."""
    for tls in kind.__mro__:
        if (tls.__module__, tls.__name__) in _TLS_CLASSES:
            return tls
    return None
