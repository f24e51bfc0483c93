"""What a caller asks for: checked, and held to."""

from __future__ import annotations

import math

from ._checks import require_count, require_seconds
from ._linger import LingerPolicy
from ._result import CloseOutcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final


def require_parting(name: str, policy: LingerPolicy) -> LingerPolicy:
    """Give a policy back that says what to do with what is unacknowledged when giving up.

    Raises:
        ValueError: It is none of the two that do.
    """
    if policy is not LingerPolicy.BACKGROUND and policy is not LingerPolicy.ABORT:
        raise ValueError(f"{name} must be BACKGROUND or ABORT, not {policy!r}")
    return policy


class Terms:
    """What the caller asked for, checked.

    Args are those of `graceful_close`.

    Raises:
        TypeError, ValueError: One of them is not what it says there.
    """

    __slots__ = ("drain_limit", "idle_timeout", "on_timeout", "timeout", "until")

    def __init__(
        self,
        timeout: float,
        idle_timeout: float | None = None,
        drain_limit: int | None = None,
        until: CloseOutcome = CloseOutcome.PEER_CLOSED,
        on_timeout: LingerPolicy = LingerPolicy.BACKGROUND,
    ) -> None:
        self.timeout: Final = require_seconds("timeout", timeout)
        self.idle_timeout: Final = (
            math.inf if idle_timeout is None else require_seconds("idle_timeout", idle_timeout)
        )
        self.drain_limit: Final = (
            None if drain_limit is None else require_count("drain_limit", drain_limit)
        )
        if until is not CloseOutcome.PEER_CLOSED and until is not CloseOutcome.DELIVERED:
            raise ValueError(f"until must be PEER_CLOSED or DELIVERED, not {until!r}")
        self.until: Final = until
        self.on_timeout: Final = require_parting("on_timeout", on_timeout)

    @property
    def limit(self) -> float:
        """`drain_limit`, which is infinite where there is none."""
        return math.inf if self.drain_limit is None else self.drain_limit

    def after(self, seconds: float, drained: int = 0) -> Terms:
        """The same, for what is left of the time and of what may be drained."""
        limit = self.drain_limit
        return Terms(
            max(0.0, self.timeout - seconds),
            None if self.idle_timeout == math.inf else self.idle_timeout,
            None if limit is None else max(0, limit - drained),
            self.until,
            self.on_timeout,
        )


class Patience:
    """The terms before the machine begins, while a framework flushes what it holds.

    Args:
        terms: What the caller asked for.
        since: From when its time counts.
        now: From when the silence does.

    Attributes:
        last_sign: From when the silence counts.
    """

    __slots__ = ("_deadline", "_terms", "last_sign")

    def __init__(self, terms: Terms, since: float, now: float) -> None:
        self._terms: Final = terms
        self._deadline: Final = since + terms.timeout
        self.last_sign = now

    @property
    def idle_at(self) -> float:
        """The reading of the clock at which the silence has lasted too long."""
        return self.last_sign + self._terms.idle_timeout

    @property
    def wake_at(self) -> float:
        """The latest reading of the clock at which a wait must end."""
        return min(self._deadline, self.idle_at)

    def sign_of_life(self, now: float) -> None:
        """Something was read, or acknowledged."""
        self.last_sign = now

    def gives_up(self, now: float, drained: int) -> CloseOutcome | None:
        """Why, if it does; `drained` bytes were read so far."""
        if drained > self._terms.limit:
            return CloseOutcome.DRAIN_LIMIT
        if now >= self._deadline:
            return CloseOutcome.TIMED_OUT
        return CloseOutcome.IDLE_TIMED_OUT if now >= self.idle_at else None
