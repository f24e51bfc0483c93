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
    """

    BACKGROUND = "background"
    """{0, 0}, the default: close() returns at once and the kernel keeps sending."""

    ABORT = "abort"
    """{1, 0}: close() drops what is unsent and sends RST. There is no TIME_WAIT."""

    TIMED = "timed"
    """{1, n}: close() waits up to n seconds for the acknowledgement. Its return tells
    nothing: on Linux it is 0 on success, expiry, signal and reset alike. For an answer use
    `timed_linger_close`."""


class Linger(Record):
    """A socket's linger setting. It cannot be changed, and compares equal to its like.

    Args:
        policy: Which of the three cases.
        seconds: For TIMED, at least 1; otherwise 0.

    Raises:
        ValueError: The seconds do not fit the policy.
    """

    __slots__ = ("_policy", "_seconds")
    __match_args__ = ("policy", "seconds")

    def __init__(self, policy: LingerPolicy, seconds: int = 0) -> None:
        if policy is LingerPolicy.TIMED:
            if seconds < 1:
                raise ValueError(f"TIMED needs at least 1 second, not {seconds!r}")
        elif seconds != 0:
            raise ValueError(f"{policy.name} has no seconds, not {seconds!r}")
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

    Args:
        sock: An open socket of any kind; sockets that are not TCP store the option and
            ignore it.

    Raises:
        TypeError: `sock` is not a socket.
        OSError: The socket is closed (EBADF), or the system has no SO_LINGER (ENOPROTOOPT).

    Notes:
        On Linux {0, n} keeps the n of an earlier setting; it is background all the same.
    """
    require_socket(sock)
    on, seconds = _option().get(sock)
    if not on:
        return Linger(LingerPolicy.BACKGROUND)
    if seconds == 0:
        return Linger(LingerPolicy.ABORT)
    return Linger(LingerPolicy.TIMED, seconds)


def set_linger(sock: socket.socket, policy: LingerPolicy, seconds: float | None = None) -> None:
    """Choose what a plain `close()` of this socket does with unacknowledged data.

    The setting belongs to the connection, not to the object: every dup and forked child shares
    it, and accept() hands a listener's setting on. Nothing is changed when this raises.

    Args:
        sock: An open socket.
        policy: Which of the three cases.
        seconds: For TIMED only, and then required: more than 0, rounded **up** to whole
            seconds (0.5 becomes 1: rounded down it would be 0, which is an abort). At most
            327 on Apple's systems, 65535 on Windows, 32767 elsewhere. The other policies
            take the 0 of a `Linger`, so that what `get_linger` gave can be put back.

    Raises:
        TypeError: An argument is of the wrong kind, or TIMED came without seconds.
        ValueError: `seconds` is out of the range, or came with a policy that has none, or
            the kernel refused it (EDOM, EINVAL).
        OSError: The socket is closed (EBADF), the connection is over already (ENOTCONN), or
            the system has no SO_LINGER (ENOPROTOOPT).

    Source: socket(7); getsockopt(2) of each BSD; Apple's bsd/kern/uipc_socket.c.
    """
    require_socket(sock)
    if not isinstance(policy, LingerPolicy):
        raise TypeError(f"policy must be a LingerPolicy, not {policy!r}")
    option = _option()
    whole = _whole_seconds(option, policy, seconds)
    option.set(sock, policy is not LingerPolicy.BACKGROUND, whole)


def _whole_seconds(option: LingerOption, policy: LingerPolicy, seconds: float | None) -> int:
    if policy is not LingerPolicy.TIMED:
        if seconds is not None and seconds != 0:
            raise ValueError(f"seconds are for TIMED, and 0 for {policy.name}, not {seconds!r}")
        return 0
    if seconds is None:
        raise TypeError(f"TIMED needs seconds, more than 0 and at most {option.longest}")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(
            f"seconds must be a number more than 0 and at most {option.longest}, "
            f"not {seconds!r}"
        )
    # Written so that NaN, which compares false with everything, is refused too.
    if not 0 < seconds <= option.longest:
        raise ValueError(
            f"seconds must be more than 0 and at most {option.longest} on this system, "
            f"not {seconds!r}"
        )
    return math.ceil(seconds)


def _option() -> LingerOption:
    option = _platform.HERE.linger
    if option is None:
        raise OSError(errno.ENOPROTOOPT, f"{_platform.HERE.name} has no SO_LINGER")
    return option
