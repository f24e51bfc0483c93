"""The facts about each system. The source of a fact is next to the fact."""

from __future__ import annotations

import socket
from functools import cached_property

from .._record import Record, replace
from .acks import AckProbe, EndProbe, Field, Ioctl, StateProbe, TcpState, View
from .linger import LingerOption

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final


class System(Record):
    """The facts about one operating system (on Linux: one family of processors) that a close needs.

    Attributes:
        name: The key in `SYSTEMS`.
        linger: How lingering is configured; None: the system has no SO_LINGER.
        acks: How unacknowledged bytes are counted; None: the system does not report them.
        state: How a TCP connection's state is read; None: the system does not report the state.
        protocol: Level and number of SO_PROTOCOL, which returns a socket's protocol; None: the system
            has no MPTCP.
        linux: MSG_TRUNC, MSG_ERRQUEUE and connect() to AF_UNSPEC work as Linux documents.
        tcp, mptcp, other: The capabilities of the system for this kind of stream.
    """

    __slots__ = ("name", "linger", "acks", "state", "protocol", "linux", "__dict__")

    def __init__(
        self,
        name: str,
        linger: LingerOption | None,
        acks: AckProbe | None = None,
        state: StateProbe | None = None,
        protocol: tuple[int, int] | None = None,
        linux: bool = False,
    ) -> None:
        self.name: Final = name
        self.linger: Final = linger
        self.acks: Final = acks
        self.state: Final = state
        self.protocol: Final = protocol
        self.linux: Final = linux

    @cached_property
    def tcp(self) -> View:
        acks = self.acks
        return View(
            acks,
            self.state,
            count_survives_reset=acks is not None and acks.survives_reset,
            kernel_lingers=acks is None and self.linger is not None,
            disconnects=self.linux,
            truncates=self.linux,
            error_queue=self.linux,
            end=_INQ if self.linux else None,
            acked=_BYTES_ACKED if self.linux else None,
        )

    @cached_property
    def mptcp(self) -> View:
        # mptcp_ioctl() counts like tcp_ioctl(). getsockopt() returns the TCP_INFO of the first subflow,
        # and a reset of the first subflow does not end the connection.
        return View(self.acks, error_queue=self.linux)

    @cached_property
    def other(self) -> View:
        return View(error_queue=self.linux, loses_resets=self.linux)


TCP = 6  # IPPROTO_TCP, the same everywhere

# tcpi_bytes_acked of TCP_INFO: from Linux 4.1 on (include/uapi/linux/tcp.h).
_BYTES_ACKED = Field(TCP, 11, offset=120, size=8)

# tcpi_snd_mss of TCP_INFO, which is never 0 on Linux. gVisor does not fill it in.
_SND_MSS = Field(TCP, 11, offset=16, size=4)

# TCP_INQ and TCP_CM_INQ: from Linux 4.18 on (include/uapi/linux/tcp.h). After a FIN the number is 1 if
# there is nothing to read (tcp_inq_hint() in net/ipv4/tcp.c).
_INQ = EndProbe(TCP, 36, filled_in=_SND_MSS)

# The state is the first byte of TCP_INFO (include/net/tcp_states.h).
_LINUX_STATE = Field(TCP, 11, offset=0, size=1)


def _linux_acks(number: int) -> AckProbe:
    """The send queue by SIOCOUTQ, which has the number of TIOCOUTQ (tcp(7)).

    The count includes the FIN, is 0 from FIN_WAIT2 on, and does not change at a reset (tcp_ioctl():
    write_seq - snd_una). gVisor does not implement the ioctl (ENOPROTOOPT), but it reports the states
    FIN_WAIT2 (5) and TIME_WAIT (6).
    """
    return AckProbe(
        Ioctl(number), _LINUX_STATE, all_acked_in=frozenset({5, 6}), survives_reset=True
    )


# include/uapi/asm-generic/socket.h; the exceptions in arch/{mips,sparc}/include/uapi/asm.
_LINUX = System(
    "linux",
    LingerOption(level=1, number=13, layout="ii", longest=32767),
    _linux_acks(0x5411),
    # A connection that was established has had a byte acknowledged (tcpi_bytes_acked counts the SYN
    # of a connect()) or received two segments (tcpi_segs_in: the SYN and the ACK of an accept()).
    # gVisor fills in neither field, and it does not fill in tcpi_snd_mss, which is never 0 on Linux.
    StateProbe(
        _LINUX_STATE,
        (
            None,
            TcpState.OPEN,
            TcpState.CONNECTING,
            TcpState.ACCEPTING,
            TcpState.FIN_SENT,
            TcpState.FIN_SENT,
            TcpState.BOTH_FINS,  # TIME_WAIT
            TcpState.OVER,
            TcpState.PEER_FIN,  # CLOSE_WAIT
            TcpState.PEER_FIN,  # LAST_ACK
            TcpState.LISTENING,
            TcpState.BOTH_FINS,  # CLOSING
            TcpState.ACCEPTING,  # NEW_SYN_RECV
        ),
        ((_BYTES_ACKED, 0), (Field(TCP, 11, offset=140, size=4), 1)),
        _SND_MSS,
    ),
    protocol=(1, 38),
    linux=True,
)

_BSD_LINGER = LingerOption(level=0xFFFF, number=0x80, layout="ii", longest=32767)

# netinet/tcp_fsm.h of 4.4BSD and the systems derived from it: FIN_WAIT_1, CLOSING, LAST_ACK. Their send
# queue does not count the FIN, so the state shows whether the FIN is unacknowledged.
_BSD_FIN_WAITS = frozenset({6, 7, 8})
_BSD_STATES = (
    TcpState.OVER,
    TcpState.LISTENING,
    TcpState.CONNECTING,
    TcpState.ACCEPTING,
    TcpState.OPEN,
    TcpState.PEER_FIN,  # CLOSE_WAIT
    TcpState.FIN_SENT,  # FIN_WAIT_1
    TcpState.BOTH_FINS,  # CLOSING
    TcpState.PEER_FIN,  # LAST_ACK
    TcpState.FIN_SENT,  # FIN_WAIT_2
    TcpState.BOTH_FINS,  # TIME_WAIT
)

# Apple: SO_LINGER counts ticks, and SO_LINGER_SEC (0x1080) counts seconds. The kernel stores a short of
# ticks, 100 per second, so 328 s overflows to no wait (bsd/kern/uipc_socket.c). The queue is SO_NWRITE;
# the state is the first byte of TCP_CONNECTION_INFO (bsd/netinet/tcp.h).
_MACOS = System(
    "macos",
    LingerOption(level=0xFFFF, number=0x1080, layout="ii", longest=327, einval_means_gone=True),
    AckProbe(
        Field(0xFFFF, 0x1024, offset=0, size=4),
        Field(TCP, 0x106, offset=0, size=1),
        _BSD_FIN_WAITS,
    ),
    StateProbe(Field(TCP, 0x106, offset=0, size=1), _BSD_STATES),
)

# Windows: two u_shorts (winsock2.h). Windows accepts two ints and reads them as {1, 0}: an abort.
_WINDOWS = System(
    "windows", LingerOption(level=0xFFFF, number=0x80, layout="HH", longest=65535)
)

_ALL = (
    _LINUX,
    replace(_LINUX, name="linux-ppc", acks=_linux_acks(0x40047473)),
    replace(
        _LINUX,
        name="linux-mips",
        linger=_BSD_LINGER,
        acks=_linux_acks(0x7472),
    ),
    replace(
        _LINUX,
        name="linux-sparc",
        linger=_BSD_LINGER,
        acks=_linux_acks(0x40047473),
    ),
    replace(_LINUX, name="android"),
    _MACOS,
    replace(_MACOS, name="ios"),
    replace(_MACOS, name="tvos"),
    replace(_MACOS, name="watchos"),
    # FreeBSD and NetBSD: FIONWRITE; the state is the first byte of TCP_INFO. FreeBSD accepts up to
    # 65535 s and overflows above 32767 s.
    System(
        "freebsd",
        _BSD_LINGER,
        AckProbe(Ioctl(0x40046677), Field(TCP, 32, offset=0, size=1), _BSD_FIN_WAITS),
        StateProbe(Field(TCP, 32, offset=0, size=1), _BSD_STATES),
    ),
    System(
        "netbsd",
        _BSD_LINGER,
        AckProbe(Ioctl(0x40046679), Field(TCP, 9, offset=0, size=1), _BSD_FIN_WAITS),
        StateProbe(Field(TCP, 9, offset=0, size=1), _BSD_STATES),
    ),
    # OpenBSD has the count in TCP_INFO, but returns it to root only; other users read 0
    # (tcp_fill_info() in netinet/tcp_usrreq.c). Such a 0 proves nothing, so the count is not queried.
    System("openbsd", _BSD_LINGER),
    # These are not verified. The layout is that of the systems from which they are derived.
    System("dragonfly", _BSD_LINGER),
    System("haiku", replace(_BSD_LINGER, level=-1, number=0x200)),
    System("aix", _BSD_LINGER),
    System("illumos", replace(_BSD_LINGER, einval_means_gone=True)),
    _WINDOWS,
    replace(_WINDOWS, name="cygwin"),
    replace(_WINDOWS, name="msys"),
    System("wasi", linger=None),
    # An unknown system: the system's own numbers, BSD's layout, and no further capabilities.
    System(
        "unknown",
        replace(_BSD_LINGER, level=socket.SOL_SOCKET, number=socket.SO_LINGER)
        if hasattr(socket, "SO_LINGER")
        else None,
    ),
)

SYSTEMS = {system.name: system for system in _ALL}

# sys.platform, without the release that some systems append ("freebsd14"), to a name in SYSTEMS.
_PLATFORMS = {
    "darwin": "macos",
    "win32": "windows",
    "sunos": "illumos",
    "emscripten": "wasi",
}

# uname's machine on Linux to the family of headers. alpha, parisc, sh and xtensa have numbers of their
# own, which are not verified (arch/*/include/uapi/asm/{socket,ioctls}.h).
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
