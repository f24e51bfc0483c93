"""What each system is like. Where a fact comes from stands beside it."""

from __future__ import annotations

import socket

from .._value import Value, replace
from .acks import (
    ACKS,
    ACKS_UNTIL_RESET,
    BLIND,
    KERNEL_LINGERS,
    AckProbe,
    Field,
    Ioctl,
    Sight,
)
from .linger import LingerOption

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final


class System(Value):
    """One operating system (on Linux, one family of processors) as closing sees it.

    Attributes:
        name: The key in `SYSTEMS`.
        linger: How it is told to linger; None: it has no SO_LINGER.
        acks: How it is asked for unacknowledged bytes; None: it does not say.
        truncates: recv() with MSG_TRUNC throws TCP data away inside the kernel (tcp(7)).
        disconnects: connect() to AF_UNSPEC resets a TCP connection at once, whoever else
            holds its descriptor (connect(2), tcp_disconnect() in net/ipv4/tcp.c).
    """

    __slots__ = ("name", "linger", "acks", "truncates", "disconnects")

    def __init__(
        self,
        name: str,
        linger: LingerOption | None,
        acks: AckProbe | None = None,
        truncates: bool = False,
        disconnects: bool = False,
    ) -> None:
        self.name: Final = name
        self.linger: Final = linger
        self.acks: Final = acks
        self.truncates: Final = truncates
        self.disconnects: Final = disconnects

    @property
    def tcp_sight(self) -> Sight:
        """What a TCP connection shows here."""
        if self.acks is None:
            return BLIND if self.linger is None else KERNEL_LINGERS
        return ACKS if self.acks.survives_reset else ACKS_UNTIL_RESET


TCP = 6  # IPPROTO_TCP, the same everywhere

# include/uapi/asm-generic/socket.h; the exceptions in arch/{mips,sparc}/include/uapi/asm.
# The send queue is SIOCOUTQ, which is TIOCOUTQ (tcp(7)): it counts the FIN, is 0 from
# FIN_WAIT2 on, and keeps its count after a reset (tcp_ioctl(): write_seq - snd_una).
_LINUX = System(
    "linux",
    LingerOption(level=1, number=13, layout="ii", longest=32767),
    AckProbe(Ioctl(0x5411), survives_reset=True),
    truncates=True,
    disconnects=True,
)

_BSD_LINGER = LingerOption(level=0xFFFF, number=0x80, layout="ii", longest=32767)

# netinet/tcp_fsm.h of 4.4BSD and its heirs: FIN_WAIT_1, CLOSING, LAST_ACK. Their send queue
# does not count the FIN, so the state must say whether it is out.
_BSD_FIN_WAITS = frozenset({6, 7, 8})

# Apple: SO_LINGER counts ticks, SO_LINGER_SEC (0x1080) seconds, kept as a short of ticks, 100
# a second: 328 s wraps to no wait (bsd/kern/uipc_socket.c). The queue is SO_NWRITE; the state
# is the first byte of TCP_CONNECTION_INFO (bsd/netinet/tcp.h).
_MACOS = System(
    "macos",
    LingerOption(level=0xFFFF, number=0x1080, layout="ii", longest=327, einval_means_gone=True),
    AckProbe(
        Field(0xFFFF, 0x1024, offset=0, size=4),
        Field(TCP, 0x106, offset=0, size=1),
        _BSD_FIN_WAITS,
    ),
)

# Windows: two u_shorts (winsock2.h). Two ints are accepted and read as {1, 0}: an abort.
_WINDOWS = System(
    "windows", LingerOption(level=0xFFFF, number=0x80, layout="HH", longest=65535)
)

_ALL = (
    _LINUX,
    replace(_LINUX, name="linux-ppc", acks=AckProbe(Ioctl(0x40047473), survives_reset=True)),
    replace(
        _LINUX,
        name="linux-mips",
        linger=_BSD_LINGER,
        acks=AckProbe(Ioctl(0x7472), survives_reset=True),
    ),
    replace(
        _LINUX,
        name="linux-sparc",
        linger=_BSD_LINGER,
        acks=AckProbe(Ioctl(0x40047473), survives_reset=True),
    ),
    replace(_LINUX, name="android"),
    _MACOS,
    replace(_MACOS, name="ios"),
    replace(_MACOS, name="tvos"),
    replace(_MACOS, name="watchos"),
    # FreeBSD and NetBSD: FIONWRITE; the state is the first byte of TCP_INFO. FreeBSD takes up
    # to 65535 s and wraps over 32767.
    System(
        "freebsd",
        _BSD_LINGER,
        AckProbe(Ioctl(0x40046677), Field(TCP, 32, offset=0, size=1), _BSD_FIN_WAITS),
    ),
    System(
        "netbsd",
        _BSD_LINGER,
        AckProbe(Ioctl(0x40046679), Field(TCP, 9, offset=0, size=1), _BSD_FIN_WAITS),
    ),
    # OpenBSD has the count in TCP_INFO, but tells it to root alone; everybody else reads 0
    # (tcp_fill_info() in netinet/tcp_usrreq.c). A 0 that proves nothing is not asked for.
    System("openbsd", _BSD_LINGER),
    # Nobody has verified these; the layout is the one that their ancestors have.
    System("dragonfly", _BSD_LINGER),
    System("haiku", replace(_BSD_LINGER, level=-1, number=0x200)),
    System("aix", _BSD_LINGER),
    System("illumos", replace(_BSD_LINGER, einval_means_gone=True)),
    _WINDOWS,
    replace(_WINDOWS, name="cygwin"),
    replace(_WINDOWS, name="msys"),
    System("wasi", linger=None),
    # A system that we have not heard of: its own numbers, BSD's layout, no claims.
    System(
        "unknown",
        replace(_BSD_LINGER, level=socket.SOL_SOCKET, number=socket.SO_LINGER)
        if hasattr(socket, "SO_LINGER")
        else None,
    ),
)

SYSTEMS = {system.name: system for system in _ALL}

# sys.platform, without the release that some append ("freebsd14"), to our name.
_PLATFORMS = {
    "darwin": "macos",
    "win32": "windows",
    "sunos": "illumos",
    "emscripten": "wasi",
}

# uname's machine on Linux to the family of headers. alpha, parisc, sh and xtensa have numbers
# of their own that nobody here has checked (arch/*/include/uapi/asm/{socket,ioctls}.h).
_MACHINES = {
    "ppc": "linux-ppc",
    "mips": "linux-mips",
    "sparc": "linux-sparc",
    "alpha": "unknown",
    "parisc": "unknown",
    "sh": "unknown",
    "xtensa": "unknown",
}


def identify(platform: str, machine: str) -> str:
    """The name in `SYSTEMS` for a `sys.platform` and, on Linux, a `uname` machine."""
    base = platform.rstrip("0123456789") if platform != "win32" else platform
    if base == "linux":
        family = (name for name in _MACHINES if machine.startswith(name))
        return _MACHINES.get(next(family, ""), "linux")
    name = _PLATFORMS.get(base, base)
    return name if name in SYSTEMS else "unknown"
