"""The options of a close, validated before any socket is touched."""

from __future__ import annotations

import math
import operator

from . import _platform
from ._linger import LingerPolicy
from ._result import CloseOutcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable
    from enum import Enum
    from typing import Any, Final

    from ._option_types import CloseOptions as CloseOptions  # noqa: PLC0414 (others import it from here)
    from ._option_types import OnTimeout as OnTimeout  # noqa: PLC0414 (others import it from here)
    from ._option_types import ReaperOptions as ReaperOptions  # noqa: PLC0414 (others import it from here)
    from ._option_types import Until as Until  # noqa: PLC0414 (others import it from here)
    from ._result import CloseResult


class Options:
    """The validated options of a close. Args are those of `graceful_close`.

    Raises:
        TypeError, ValueError: An argument has the wrong type or is out of range.
    """

    __slots__ = ("drain_limit", "idle_timeout", "on_timeout", "peer_first", "timeout", "until")

    def __init__(
        self,
        timeout: float = 5.0,
        idle_timeout: float | None = None,
        drain_limit: int | None = None,
        until: Until = CloseOutcome.PEER_CLOSED,
        on_timeout: OnTimeout = LingerPolicy.BACKGROUND,
        peer_first: float = 0,
    ) -> None:
        self.timeout: Final = require_seconds("timeout", timeout)
        self.idle_timeout: Final = (
            math.inf if idle_timeout is None else require_seconds("idle_timeout", idle_timeout)
        )
        self.drain_limit: Final = (
            None if drain_limit is None else require_count("drain_limit", drain_limit)
        )
        self.until: Final = require_member(
            "until", until, CloseOutcome.PEER_CLOSED, CloseOutcome.DELIVERED
        )
        self.on_timeout: Final = require_policy("on_timeout", on_timeout)
        self.peer_first: Final = require_seconds("peer_first", peer_first)

    @property
    def longest_silence(self) -> float:
        """For how many seconds at most a peer may send and acknowledge nothing."""
        return min(self.timeout, self.idle_timeout)

    @property
    def limit(self) -> float:
        """`drain_limit` as a number; infinite if it is None."""
        return math.inf if self.drain_limit is None else self.drain_limit


# The default where the number of descriptors is not limited (Windows). Heuristic: the pending closes
# of a server with ten thousand connections.
_MAX_SOCKETS = 10_000


class ReaperSettings:
    """The validated options of a Reaper. Args are those of `Reaper`.

    Attributes:
        options: The options of each close.

    Raises:
        TypeError, ValueError: An argument has the wrong type or is out of range.
    """

    __slots__ = ("max_sockets", "on_close", "on_overflow", "options")

    def __init__(
        self,
        *,
        timeout: float = 30.0,
        idle_timeout: float | None = 5.0,
        drain_limit: int | None = None,
        until: Until = CloseOutcome.PEER_CLOSED,
        on_timeout: OnTimeout = LingerPolicy.BACKGROUND,
        peer_first: float = 0,
        max_sockets: int | None = None,
        on_overflow: OnTimeout = LingerPolicy.BACKGROUND,
        on_close: Callable[[CloseResult], object] | None = None,
    ) -> None:
        self.options: Final = Options(
            timeout, idle_timeout, drain_limit, until, on_timeout, peer_first
        )
        self.on_overflow: Final = require_policy("on_overflow", on_overflow)
        require_callable("on_close", on_close, optional=True)
        self.on_close: Final = on_close
        if max_sockets is None:
            limit = _platform.descriptor_limit()
            max_sockets = _MAX_SOCKETS if limit is None else max(1, limit // 2)
        self.max_sockets: Final = require_count("max_sockets", max_sockets, "sockets", least=1)


# The names of the keyword options.
REAPER_OPTIONS = {*Options.__slots__, *ReaperSettings.__slots__} - {"options"}


def options_of(call: str, given: CloseOptions) -> Options:
    """Validate the keyword options of a function.

    Args:
        call: The name of the function or class that the caller used, for the message.
        given: The keyword options.

    Raises:
        TypeError, ValueError: As for `Options`.
    """
    require_known(call, given, Options.__slots__)
    return Options(**given)


def require_known(call: str, given: Iterable[str], known: Container[str]) -> None:
    """Raise as Python does for an unknown keyword, with the name that the caller used.

    Raises:
        TypeError: One of the names is not known.
    """
    for name in given:
        if name not in known:
            raise TypeError(f"{call}() got an unexpected keyword argument {name!r}")


def require_callable(name: str, value: object, *, optional: bool = False) -> None:
    """Raise if `value` cannot be called; `optional`: it may be None.

    Raises:
        TypeError: It cannot be called.
    """
    if not callable(value) and not (optional and value is None):
        allowed = "callable or None" if optional else "callable"
        raise TypeError(f"{name} must be {allowed}, not {value!r}")


def require_policy(name: str, policy: OnTimeout) -> OnTimeout:
    """Return a policy for unacknowledged data when giving up: BACKGROUND or ABORT.

    Raises:
        TypeError, ValueError: It is neither of them.
    """
    checked: OnTimeout = require_member(
        name, policy, LingerPolicy.BACKGROUND, LingerPolicy.ABORT
    )
    return checked


def require_member(name: str, value: Any, *allowed: Enum) -> Any:
    """Return `value` if it is one of the members allowed.

    Raises:
        TypeError: It is not a member of that enum.
        ValueError: It is another member.
    """
    for member in allowed:
        if value is member:
            return value
    kind = type(allowed[0])
    names = " or ".join(f"{kind.__name__}.{member.name}" for member in allowed)
    error = ValueError if isinstance(value, kind) else TypeError
    raise error(f"{name} must be {names}, not {value!r}")


def require_seconds(name: str, value: float) -> float:
    """Return a wait that is a finite number of seconds, 0 or more.

    Raises:
        TypeError, ValueError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a finite number of seconds, 0 or more, not {value!r}")
    try:
        seconds = float(value)
    except OverflowError:  # an int that is too large for a float
        seconds = math.inf
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{name} must be a finite number of seconds, 0 or more, not {value!r}")
    return seconds


def require_count(name: str, value: int, of: str = "bytes", least: int = 0) -> int:
    """Return a whole number that is `least` or more.

    Raises:
        TypeError, ValueError: It is not.
    """
    try:
        count = operator.index(value)
        if isinstance(value, bool):
            raise TypeError
    except TypeError:
        raise TypeError(
            f"{name} must be a whole number of {of}, {least} or more, not {value!r}"
        ) from None
    if count < least:
        raise ValueError(f"{name} must be at least {least}, not {value!r}")
    return count
