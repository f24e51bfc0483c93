"""A connection that was handed to a Reaper: how it gets there, and the first look at it.

Every connection of a server comes through here, so the calls of Python's are counted.
"""

from __future__ import annotations

import _socket
import socket
from time import monotonic

from ._checks import kind_of, native_family, native_type
from ._platform import meaning
from ._release import let_go
from ._tls import forget_session, send_close_notify, tls_class_above

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Final

    from ._alike import Alike
    from ._connection import Said, Shut
    from ._future import CloseFuture
    from ._linger import LingerPolicy
    from ._result import CloseResult

_close = _socket.socket.close
_detach = _socket.socket.detach
_native: Any = _socket.socket
_recv_into = _socket.socket.recv_into
_shutdown = _socket.socket.shutdown
_SHUT_WR = int(socket.SHUT_WR)

# Looking does not read, so nothing is lost if a signal's exception comes before it is noted.
_LOOK = int(socket.MSG_PEEK | getattr(socket, "MSG_DONTWAIT", 0))
_ONE_BYTE = bytearray(1)


class Handed:
    """A connection that is the Reaper's, and that no `CloseLoop` has yet.

    Attributes:
        held: The object that has the descriptor now, alone in a list; empty before `take`.
        future: Who is to be told of its end, if anybody.
        since: When it was handed over.
        said: As for `Connection`.
        shut: As for `Connection.first_step`.
        kind: For `Alike.kinds`; None: it has to go its own way.
        error: What the first look met, if it was neither input nor the end.
        outcome: How it ended, once it has.
    """

    __slots__ = ("error", "future", "held", "kind", "outcome", "said", "shut", "since")

    def __init__(self, future: CloseFuture | None) -> None:
        self.future: Final = future
        self.since: Final = monotonic()
        self.held: Final[list[socket.socket]] = []
        self.said: Said = None
        self.shut: Shut = False
        self.kind: tuple[int, int, int] | None = None
        self.error: OSError | None = None
        self.outcome: CloseResult | BaseException | None = None

    def take(self, sock: socket.socket, fin_sent: bool = False) -> bool:
        """Move the descriptor to an object of our own, and send our FIN unless that is out.

        It goes out here and not in the thread, so that the peer's is often there when somebody
        looks for the first time. False: it was closed already.
        """
        tls = tls_class_above(type(sock))  # type: ignore[arg-type]
        if tls is not None and sock.fileno() != -1:
            # The TLS session stays with the caller's object, so its goodbye is said first.
            try:
                self.said = send_close_notify(sock)
            except BlockingIOError:
                self.held.append(sock)
                return True
            except OSError as error:
                if meaning(error) is None:
                    raise
                self.said = error
        if isinstance(sock, _socket.socket):
            detach = _detach
            kind = family, type_, protocol = native_family(sock), native_type(sock), sock.proto
        else:
            detach = type(sock).detach
            kind = family, type_, protocol = kind_of(sock)
        try:
            # In one call, because a signal's exception between two would lose the descriptor.
            number = map(detach, (sock,))
            self.held.extend(map(_native, (family,), (type_,), (protocol,), number))
        except (OSError, ValueError):
            return False  # EBADF, or the number is -1: another thread closed it
        if tls is not None:
            forget_session(sock)
            if isinstance(self.said, OSError):
                return True
        try:
            if not fin_sent:
                _shutdown(self.held[0], _SHUT_WR)
        except OSError as error:
            if meaning(error) is None:
                raise
            self.shut = error
        else:
            self.shut = True
            # With a timeout (socket.setdefaulttimeout()) Python itself would wait.
            if tls is None and self.held[0].gettimeout() is None:
                self.kind = kind
        return True

    def let_go(self, parting: LingerPolicy) -> OSError | None:
        """Close it at once."""
        complaint: OSError | None = None
        for sock in self.held:
            complaint = let_go(sock, parting)
        return complaint


def look_at(lot: Iterable[Handed], alike: Alike) -> None:
    """End those that need not be waited for: the peer's FIN is there, and all is acknowledged.

    They have an `outcome` then. If a signal's exception comes out of this, it can be repeated.
    """
    # The same call for all of them, and then the next: see CloseLoop.add_alike().
    over: list[Handed] = []
    for handed in lot:
        if handed.kind not in alike.kinds:
            continue
        try:
            if handed.outcome or _recv_into(handed.held[0], _ONE_BYTE, 1, _LOOK) == 0:
                over.append(handed)
        except OSError as error:
            handed.error = error
    count_unacked = alike.count_unacked
    for handed in over:
        sock = handed.held[0]
        if handed.outcome is None:
            try:
                if count_unacked is None or count_unacked(sock) != 0:
                    continue
            except OSError as error:
                handed.error = error
                continue
            told = handed.future is not None
            waited = monotonic() - handed.since
            handed.outcome = alike.released(waited) if told else alike.unseen
        try:
            _close(sock)
        except OSError as error:
            handed.outcome = alike.released(monotonic() - handed.since, error)
