"""Closes that go the same way: one machine decides for all of them."""

from __future__ import annotations

import _socket
import socket

from . import _platform
from ._checks import TCP_KINDS, kind_of
from ._teardown import DRAIN, LET_GO, PROBE, READ_ERROR, SHUT_WR, WAIT_READABLE, Teardown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from ._platform import Sight
    from ._terms import Terms

# Neither a subclass, which may be an SSLSocket, nor gevent's.
_PLAIN = tuple(
    kind for kind in (socket.socket, _socket.socket) if issubclass(kind, _socket.socket)
)


class Alike:
    """The closes of many TCP connections on the same terms.

    Nearly all of them go the same way: our FIN goes out, the next thing to come is the peer's,
    and everything is acknowledged then. Whatever goes this way needs no machine of its own, for
    all of theirs would be told the same and would answer the same: one is asked here, once.

    So do those that are over when they come: shutdown() says that there is no connection, there is
    nothing to read, and no error is left to say what has ended it.

    Args:
        terms: As for `Teardown`, as is the next but one.
        looks_at_once: The driver reads before it waits for the first time.
        sight: What can be seen of a TCP connection.
        over: What shutdown() says of those that are over; None: the others are meant.

    Attributes:
        kinds: What may go this way, as `kind_of` says it; empty where nothing may.
        patience: How many seconds the wait for input may last.
        allowance: The most bytes that the first read may take; None: as many as it likes.
        asks_for_error: After the end of the stream, SO_ERROR must be read.
        count_unacked: Counts what one of `kinds` has unacknowledged.
        released: To be told of the end of each that went this way: the seconds since its close
            began, and what close() said; see `Teardown.released`.
        unseen: What it would say of one whose result nobody will look at.
    """

    __slots__ = (
        "allowance", "asks_for_error", "count_unacked", "kinds", "patience", "released", "terms",
        "unseen",
    )  # fmt: skip

    def __init__(
        self,
        terms: Terms,
        *,
        looks_at_once: bool = False,
        sight: Sight | None = None,
        over: OSError | None = None,
    ) -> None:
        self.terms: Final = terms
        machine = Teardown(terms, 0.0, sight or _platform.HERE.tcp_sight, one_of_many=True)
        begins = machine.start() is SHUT_WR and machine.shut(0.0, over)
        self.patience: Final = machine.wake_at
        self.allowance: Final = machine.allowance
        ends = machine.received(0, 0.0)
        self.asks_for_error: Final = ends is READ_ERROR
        if self.asks_for_error:
            ends = machine.no_error(0.0)
        same = (
            (begins is WAIT_READABLE or (looks_at_once and begins is DRAIN))
            and self.asks_for_error is (over is not None)
            and ends is PROBE
            and machine.probed(0, 0.0) is LET_GO
            and machine.parting is None
        )
        self.kinds: Final = TCP_KINDS if same else frozenset[tuple[int, int, int]]()
        acks = _platform.HERE.acks
        self.count_unacked: Final = _nothing if acks is None else acks.counter()
        self.released: Final = machine.released
        self.unseen: Final = machine.released(0.0)

    def takes(self, sock: socket.socket) -> bool:
        """Whether a stream socket may go this way."""
        return type(sock) in _PLAIN and kind_of(sock) in self.kinds


def _nothing(_sock: socket.socket) -> int:
    return 0  # where nobody can know, there are no kinds
