"""SO_LINGER without its traps: the struct, the unit and the range of the running system."""

from __future__ import annotations

import enum
import errno
import math

from . import _platform
from ._record import Record
from ._sockets import require_socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from ._platform.linger import LingerOption


class LingerPolicy(enum.Enum):
    """What `close()` does with data that the peer has not acknowledged.

    The three cases of struct linger (POSIX `<sys/socket.h>`, socket(7)).

        set_linger(sock, LingerPolicy.ABORT)  # close() will send RST
    """

    BACKGROUND = "background"
    """{0, 0}, the default: close() returns immediately and the kernel keeps sending."""

    ABORT = "abort"
    """{1, 0}: close() drops unsent data and sends RST. There is no TIME_WAIT."""

    TIMED = "timed"
    """{1, n}: close() waits up to n seconds for the acknowledgement. Its return value has no
    information: on Linux it is 0 on success, expiry, signal and reset. `timed_linger_close`
    returns the outcome."""


class Linger(Record):
    """A socket's linger setting. Immutable; compares by value.

        assert get_linger(socket.socket()) == Linger(LingerPolicy.BACKGROUND)

    Args:
        policy: Which of the three cases.
        seconds: For TIMED, at least 1; otherwise 0.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: The seconds do not fit the policy.
    """

    __slots__ = ("_policy", "_seconds")
    __match_args__ = ("policy", "seconds")

    def __init__(self, policy: LingerPolicy, seconds: int = 0) -> None:
        _require_policy(policy)
        if isinstance(seconds, bool) or not isinstance(seconds, int):
            raise TypeError(f"seconds must be a whole number, not {seconds!r}")
        if policy is LingerPolicy.TIMED:
            if seconds < 1:
                raise ValueError(f"seconds must be at least 1 with TIMED, not {seconds!r}")
        else:
            _require_zero(policy, seconds)
        self._policy = policy
        self._seconds = seconds

    @property
    def policy(self) -> LingerPolicy:
        """Which of the three cases."""
        return self._policy

    @property
    def seconds(self) -> int:
        """For TIMED, how long close() waits; otherwise 0."""
        return self._seconds


def get_linger(sock: socket.socket) -> Linger:
    """Read a socket's linger setting, in seconds on every system.

        before = get_linger(sock)
        ...
        set_linger(sock, before.policy, before.seconds)

    Args:
        sock: An open socket of any kind. Sockets that are not TCP store the option and ignore
            it.

    Raises:
        TypeError: `sock` is not a socket.
        OSError: The socket is closed (EBADF), or the system has no SO_LINGER (ENOPROTOOPT).

    Notes:
        On Linux {0, n} keeps the n of an earlier setting; the policy is BACKGROUND nevertheless.
    """
    require_socket(sock)
    on, seconds = _option().get(sock)
    if not on:
        return Linger(LingerPolicy.BACKGROUND)
    if seconds == 0:
        return Linger(LingerPolicy.ABORT)
    return Linger(LingerPolicy.TIMED, seconds)


def set_linger(sock: socket.socket, policy: LingerPolicy, seconds: float | None = None) -> None:
    """Set what a plain `close()` of this socket does with unacknowledged data.

        set_linger(sock, LingerPolicy.TIMED, 0.5)  # close() will wait for up to 1 second

    The setting belongs to the connection, not to the object: every dup and forked child shares it,
    and accept() copies the listener's setting. When this raises, the setting is unchanged.

    Args:
        sock: An open socket.
        policy: Which of the three cases.
        seconds: Required with TIMED: more than 0, rounded **up** to whole seconds (0.5 becomes
            1, because rounded down it would be 0, which aborts). At most 327 on Apple's systems,
            65535 on Windows, 32767 elsewhere. The other policies accept 0, so that a result of
            `get_linger` can be set again.

    Raises:
        TypeError: An argument has the wrong type, or TIMED was given without seconds.
        ValueError: `seconds` is out of range, or was given with another policy than TIMED, or the
            kernel refused it (EDOM, EINVAL).
        OSError: The socket is closed (EBADF), the connection is already over (ENOTCONN), or the
            system has no SO_LINGER (ENOPROTOOPT).

    Source: socket(7); getsockopt(2) of each BSD; Apple's bsd/kern/uipc_socket.c.
    """
    require_socket(sock)
    _require_policy(policy)
    option = _option()
    whole = _whole_seconds(option, policy, seconds)
    option.set(sock, policy is not LingerPolicy.BACKGROUND, whole)


def _whole_seconds(option: LingerOption, policy: LingerPolicy, seconds: float | None) -> int:
    if seconds is None:
        if policy is not LingerPolicy.TIMED:
            return 0
        raise TypeError(f"TIMED needs seconds, more than 0 and at most {option.longest}")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(
            f"seconds must be a number more than 0 and at most {option.longest}, "
            f"not {seconds!r}"
        )
    if policy is not LingerPolicy.TIMED:
        _require_zero(policy, seconds)
        return 0
    # Written so that NaN, which compares false with everything, is refused too.
    if not 0 < seconds <= option.longest:
        raise ValueError(
            f"seconds must be more than 0 and at most {option.longest} on this system, "
            f"not {seconds!r}"
        )
    return math.ceil(seconds)


def _require_policy(policy: object) -> None:
    if not isinstance(policy, LingerPolicy):
        raise TypeError(f"policy must be a LingerPolicy, not {policy!r}")


def _require_zero(policy: LingerPolicy, seconds: float) -> None:
    if seconds != 0:
        raise ValueError(f"seconds must be 0 with {policy.name}, not {seconds!r}")


def _option() -> LingerOption:
    option = _platform.HERE.linger
    if option is None:
        raise OSError(errno.ENOPROTOOPT, f"{_platform.HERE.name} has no SO_LINGER")
    return option
