"""The bounds within which a middleware reads and discards the rest of a request."""

from __future__ import annotations

import math

from ._selector import LONGEST_WAIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._options import Options

# In seconds. A client that sent `Expect: 100-continue` sends its body one round trip after the 100
# response, or when it stops waiting for the 100 response: after one second, in curl. A body that has
# not begun one second after the reply does not arrive.
_UNINVITED = 1.0


class DrainBounds:
    """The deadlines and the limit for reading the rest of one request.

    Args:
        options: `timeout` counts from now, `idle_timeout` from each arrival.
        now: A reading of the monotonic clock.
        may_not_come: The client may have decided not to send the body.
        at_most: Another limit for `timeout`.
    """

    __slots__ = ("_deadline", "_idle_timeout", "_silent_until", "left")

    def __init__(
        self, options: Options, now: float, *, may_not_come: bool, at_most: float = math.inf
    ) -> None:
        self._deadline = now + min(options.timeout, at_most)
        self._idle_timeout = options.idle_timeout
        self._silent_until = now + self._idle_timeout
        if may_not_come:
            self._silent_until = min(self._silent_until, now + _UNINVITED)
        self.left = options.limit  # of the bytes that may be read

    def seconds(self, now: float) -> float:
        """How many seconds to wait for the next input; 0 or less: stop reading."""
        return min(self._deadline - now, self._silent_until - now, LONGEST_WAIT)

    def received(self, count: int, now: float) -> None:
        if count:
            self._silent_until = now + self._idle_timeout
            self.left -= count


def announces_body(content_length: str, transfer_encoding: str) -> bool:
    """Whether a request has a body (RFC 9112 section 6.3)."""
    return bool(transfer_encoding) or content_length.strip().lstrip("0") != ""


def expects_continue(expect: str) -> bool:
    """Whether the client waits for a 100 response (RFC 9110 section 10.1.1)."""
    return "100-continue" in expect.lower()
