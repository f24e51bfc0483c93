"""struct linger, which is not the same struct, option or unit everywhere."""

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
    """How one system is told to linger.

    Attributes:
        level: SOL_SOCKET there.
        number: The option that counts **seconds**: SO_LINGER, or SO_LINGER_SEC on Apple's
            systems, where SO_LINGER counts ticks.
        layout: struct linger's two members, in the struct module's letters.
        longest: The most seconds that the kernel keeps without wrapping or refusing.
        einval_means_gone: The system answers EINVAL to setsockopt() once the connection is
            shut in both directions (macOS and illumos), not only to a bad value.
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
        """The struct, as setsockopt() wants it."""
        return struct.pack(self.layout, int(on), seconds)

    def unpack(self, raw: bytes) -> tuple[bool, int]:
        """Whether lingering is on, and the seconds, as getsockopt() answers them.

        FreeBSD and DragonFly answer 128 for an `l_onoff` of 1. Linux takes -1 as unsigned,
        which is about for ever.
        """
        on, seconds = struct.unpack(self.layout, raw)
        return on != 0, seconds & 0xFFFFFFFF

    def whole_seconds(self, seconds: float) -> int:
        """Round a wait up to what the option can say: 0 would mean "abort"."""
        return min(max(math.ceil(seconds), 1), self.longest)

    def get(self, sock: socket.socket) -> tuple[bool, int]:
        """Ask the kernel.

        Raises:
            OSError: The socket is closed, or knows no SO_LINGER (ENOPROTOOPT).
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
            if error.errno is None:  # Python takes no struct for an option of AF_VSOCK
                raise _not_known(sock) from error
            raise

    def set(self, sock: socket.socket, on: bool, seconds: int) -> None:
        """Tell the kernel.

        Raises:
            ValueError: The kernel keeps no such time (EDOM on the BSDs and newer macOS,
                EINVAL on OpenBSD).
            OSError: ENOTCONN where the system means that by EINVAL; ENOPROTOOPT for a socket
                that knows no SO_LINGER; else the system's own.
        """
        try:
            sock.setsockopt(self.level, self.number, self.pack(on, seconds))
        except TypeError as error:  # Python takes no struct for an option of AF_VSOCK
            raise _not_known(sock) from error
        except OSError as error:
            if error.errno == errno.EINVAL and self.einval_means_gone:
                raise OSError(errno.ENOTCONN, "the connection is over already") from error
            if error.errno in (errno.EDOM, errno.EINVAL):
                raise ValueError(
                    f"this system refused to linger {seconds} s; "
                    f"it is said to take 1 to {self.longest} s"
                ) from error
            raise


def _not_known(sock: socket.socket) -> OSError:
    return OSError(errno.ENOPROTOOPT, f"no SO_LINGER for {sock.family!r}")
