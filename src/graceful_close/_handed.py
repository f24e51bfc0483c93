"""A connection that was handed to a Reaper: how it gets there, and the first look at it.

Every connection of a server comes through here, so the calls of Python's are counted.
"""

from __future__ import annotations

import _socket
import socket
from time import monotonic

from ._checks import kind_of, native_family, native_type
from ._delivery import pending_error
from ._platform import meaning
from ._release import let_go
from ._tls import forget_session, send_close_notify, tls_class_above

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Final

    from ._alike import Alike
    from ._connection import Said, Shut
    from ._crew import Orders
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
        way: Which it is expected to go with others that are alike; None: its own.
        error: What the first look met, if it was neither input nor the end. (No error here keeps
            its traceback, which would keep this in turn, until the garbage is collected.)
        outcome: How it ended, once it has.
    """

    __slots__ = ("error", "future", "held", "outcome", "said", "shut", "since", "way")

    def __init__(self, future: CloseFuture | None) -> None:
        self.future: Final = future
        self.since: Final = monotonic()
        self.held: Final[list[socket.socket]] = []
        self.said: Said = None
        self.shut: Shut = False
        self.way: Alike | None = None
        self.error: OSError | None = None
        self.outcome: CloseResult | BaseException | None = None

    def take(self, sock: socket.socket, orders: Orders) -> bool:
        """Move the descriptor to an object of our own, and send our FIN.

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
                self.said = error.with_traceback(None)
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
        way = orders.ordinary
        try:
            _shutdown(self.held[0], _SHUT_WR)
            self.shut = True
        except OSError as error:
            if meaning(error) is None:
                raise
            self.shut = error.with_traceback(None)
            way = orders.over
        # With a timeout (socket.setdefaulttimeout()) Python itself would wait for input.
        if tls is None and kind in way.kinds and self.held[0].gettimeout() is None:
            self.way = way
        return True

    def let_go(self, parting: LingerPolicy) -> OSError | None:
        """Close it at once."""
        complaint: OSError | None = None
        for sock in self.held:
            complaint = let_go(sock, parting)
        return complaint


def look_at(lot: Iterable[Handed]) -> None:
    """End those that need not be waited for: the peer's FIN is there, and all is acknowledged.

    They have an `outcome` then. If a signal's exception comes out of this, it can be repeated.
    """
    # The same call for all of them, and then the next: see CloseLoop.add_alike().
    through: list[tuple[Handed, Alike]] = []
    for handed in lot:
        way = handed.way
        if way is None:
            continue
        try:
            if handed.outcome or _recv_into(handed.held[0], _ONE_BYTE, 1, _LOOK) == 0:
                through.append((handed, way))
        except OSError as error:
            handed.error = error.with_traceback(None)
    for handed, way in through:
        sock = handed.held[0]
        if handed.outcome is None:
            try:
                if way.asks_for_error:
                    handed.error = pending_error(sock)
                if handed.error is not None or way.count_unacked(sock) != 0:
                    continue
            except OSError as error:
                handed.error = error.with_traceback(None)
                continue
            told = handed.future is not None
            handed.outcome = way.released(monotonic() - handed.since) if told else way.unseen
        try:
            _close(sock)
        except OSError as error:
            handed.outcome = way.released(monotonic() - handed.since, error)
