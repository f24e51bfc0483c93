"""Closes that go the same way: one machine decides for all of them."""

from __future__ import annotations

import _socket
import socket

from . import _platform
from ._checks import is_tcp
from ._teardown import LET_GO, PROBE, SHUT_WR, WAIT_READABLE, Teardown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from ._platform import Sight
    from ._teardown import Terms


class Alike:
    """The closes of many TCP connections that begin at the same moment, on the same terms.

    Nearly all of them go the same way: our FIN goes out, the next thing to come is the peer's,
    and everything is acknowledged then. Whatever goes this way needs no machine of its own, for
    all of theirs would be told the same and would answer the same: one is asked here, once.

    Args:
        terms: As for `Teardown`, as are the next two.
        began: From when the deadlines count.
        sight: What can be seen of a TCP connection.

    Attributes:
        wake_at: The latest reading of the clock at which the wait for input must end.
        allowance: The most bytes that the first read may take; None: as many as it likes.
        released: To be told of the end of each that went this way; see `Teardown.released`.
    """

    __slots__ = ("_kind", "allowance", "began", "released", "terms", "wake_at")

    def __init__(self, terms: Terms, began: float, sight: Sight | None = None) -> None:
        self.terms: Final = terms
        self.began: Final = began
        machine = Teardown(terms, began, sight or _platform.HERE.tcp_sight, one_of_many=True)
        waits = machine.start() is SHUT_WR and machine.shut(began) is WAIT_READABLE
        self.wake_at: Final = machine.wake_at
        self.allowance: Final = machine.allowance
        ends = machine.received(0, began) is PROBE and machine.probed(0, began) is LET_GO
        self.released: Final = machine.released
        # Neither of a subclass, which may be an SSLSocket, nor gevent's.
        plain = issubclass(socket.socket, _socket.socket)
        self._kind = socket.socket if plain and waits and ends and not machine.parting else None

    def takes(self, sock: socket.socket) -> bool:
        """Whether a stream socket is of the kind that may go this way."""
        return type(sock) is self._kind and is_tcp(sock)
