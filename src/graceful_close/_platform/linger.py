"""struct linger: the struct, the option and its unit differ between systems."""

from __future__ import annotations

import errno
import math
import struct

from .._record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Final


class LingerOption(Record):
    """How lingering is configured on one system.

    Attributes:
        level: SOL_SOCKET on that system.
        number: The option that counts **seconds**: SO_LINGER, or SO_LINGER_SEC on Apple's
            systems, where SO_LINGER counts ticks.
        layout: The two members of struct linger, as a format of the struct module.
        longest: The largest number of seconds that the kernel stores without overflow or error.
        einval_means_gone: setsockopt() fails with EINVAL not only for a bad value, but also after
            the connection was shut down in both directions (macOS and illumos).
    """

    __slots__ = ("level", "number", "layout", "longest", "einval_means_gone")

    def __init__(
        self,
        level: int,
        number: int,
        layout: str,
        longest: int,
        einval_means_gone: bool = False,
    ) -> None:
        self.level: Final = level
        self.number: Final = number
        self.layout: Final = layout
        self.longest: Final = longest
        self.einval_means_gone: Final = einval_means_gone

    def pack(self, on: bool, seconds: int) -> bytes:
        """The struct that setsockopt() takes."""
        return struct.pack(self.layout, int(on), seconds)

    def unpack(self, raw: bytes) -> tuple[bool, int]:
        """Whether lingering is on, and the seconds, from the result of getsockopt().

        FreeBSD and DragonFly return 128 for an `l_onoff` of 1. Linux treats -1 as an unsigned number,
        which is practically forever.
        """
        on, seconds = struct.unpack(self.layout, raw)
        return on != 0, seconds & 0xFFFFFFFF

    def whole_seconds(self, seconds: float) -> int:
        """Round a wait up to a value that the option can express, at least 1: 0 would mean "abort"."""
        return min(max(math.ceil(seconds), 1), self.longest)

    def get(self, sock: socket.socket) -> tuple[bool, int]:
        """Read the option from the kernel.

        Raises:
            OSError: The socket is closed, or does not support SO_LINGER (ENOPROTOOPT).
        """
        return self.unpack(self._read(sock))

    def aborts(self, sock: socket.socket) -> bool:
        """Whether close() would abort: {1, 0}."""
        raw = self._read(sock)
        return any(raw) and self.unpack(raw) == (True, 0)

    def _read(self, sock: socket.socket) -> bytes:
        try:
            return sock.getsockopt(self.level, self.number, struct.calcsize(self.layout))
        except OSError as error:
            if error.errno is None:  # Python accepts no struct for an option of AF_VSOCK
                raise _not_known(sock) from error
            raise

    def set(self, sock: socket.socket, on: bool, seconds: int) -> None:
        """Set the option.

        Raises:
            ValueError: The kernel does not accept the time (EDOM on the BSDs and newer macOS,
                EINVAL on OpenBSD).
            OSError: ENOTCONN on systems whose EINVAL means that the connection is over; ENOPROTOOPT
                for a socket that does not support SO_LINGER; otherwise the system's own error.
        """
        try:
            sock.setsockopt(self.level, self.number, self.pack(on, seconds))
        except TypeError as error:  # Python accepts no struct for an option of AF_VSOCK
            raise _not_known(sock) from error
        except OSError as error:
            if error.errno == errno.EINVAL and self.einval_means_gone:
                raise OSError(errno.ENOTCONN, "the connection has already ended") from error
            if error.errno in (errno.EDOM, errno.EINVAL):
                raise ValueError(
                    f"this system refused to linger {seconds} s; "
                    f"its documented range is 1 to {self.longest} s"
                ) from error
            raise


def _not_known(sock: socket.socket) -> OSError:
    return OSError(errno.ENOPROTOOPT, f"no SO_LINGER for {sock.family!r}")
