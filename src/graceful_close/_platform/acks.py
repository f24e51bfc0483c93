"""How to query a kernel for a connection's state, and for the number of unacknowledged bytes."""

from __future__ import annotations

import enum
import socket
import sys

from .._record import Record

if sys.platform != "win32":
    import fcntl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final


class Ioctl(Record):
    """An int that ioctl() returns."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number: Final = number

    def read(self, sock: socket.socket) -> int:
        if sys.platform == "win32":
            raise OSError("Python has no ioctl() for sockets on Windows")
        else:  # noqa: RET506  (type checkers follow this form)
            # A mutable buffer, because fcntl copies an immutable buffer and creates another object.
            answer = bytearray(4)
            fcntl.ioctl(sock, self.number, answer)
            return int.from_bytes(answer, sys.byteorder)


class Field(Record):
    """An unsigned number of `size` bytes at `offset` in the result of getsockopt()."""

    __slots__ = ("level", "option", "offset", "size")

    def __init__(self, level: int, option: int, offset: int, size: int) -> None:
        self.level: Final = level
        self.option: Final = option
        self.offset: Final = offset
        self.size: Final = size

    def read(self, sock: socket.socket) -> int:
        end = self.offset + self.size
        answer = sock.getsockopt(self.level, self.option, end)
        if end == 1 and answer:
            return answer[0]  # a state; every close queries it
        if len(answer) < end:
            raise OSError(f"option {self.option} ends before byte {end} on this kernel")
        return int.from_bytes(answer[self.offset : end], sys.byteorder)


class TcpState(enum.Enum):
    """The states of RFC 9293, section 3.3.2, as far as a close must distinguish them."""

    LISTENING = enum.auto()
    CONNECTING = enum.auto()  # SYN-SENT
    ACCEPTING = enum.auto()  # SYN-RECEIVED; accept() returns it to a Fast Open server
    OPEN = enum.auto()  # ESTABLISHED
    FIN_SENT = enum.auto()  # FIN-WAIT-1, FIN-WAIT-2
    PEER_FIN = enum.auto()  # CLOSE-WAIT, LAST-ACK: the peer's FIN came before ours
    BOTH_FINS = enum.auto()  # CLOSING, TIME-WAIT
    OVER = enum.auto()  # CLOSED, after a connection
    NEVER_OPEN = enum.auto()  # CLOSED, without an earlier connection


class StateProbe(Record):
    """How one system reports the state of a TCP connection.

    Attributes:
        number: The field with the state's number.
        states: The states, indexed by their numbers.
        established: Fields, each with a value that the field exceeds if a connection was ever
            established. Used on systems where CLOSED does not distinguish that.
        filled_in: A field that is above 0 on a kernel that fills in the fields of `established`. On
            another kernel CLOSED counts as the end of a connection; errors then show what happened.
    """

    __slots__ = ("number", "states", "established", "filled_in")

    def __init__(
        self,
        number: Field,
        states: tuple[TcpState | None, ...],
        established: tuple[tuple[Field, int], ...] = (),
        filled_in: Field | None = None,
    ) -> None:
        self.number: Final = number
        self.states: Final = states
        self.established: Final = established
        self.filled_in: Final = filled_in

    def read(self, sock: socket.socket, *, was_open: bool = False) -> TcpState | None:
        """The state; None: this kernel does not report the state.

        Args:
            sock: A TCP socket.
            was_open: The socket was connected earlier, so CLOSED is the end of that connection.
        """
        try:
            number = self.number.read(sock)
            state = self.states[number] if number < len(self.states) else None
            if state is not TcpState.OVER or was_open or not self.established:
                return state
            known = any(field.read(sock) > least for field, least in self.established)
            if not known and self.filled_in is not None:
                known = self.filled_in.read(sock) == 0
        except OSError:
            return None
        return TcpState.OVER if known else TcpState.NEVER_OPEN


# Not empty once a kernel has filled in the field below: asked once in a process.
_well_formed: list[bool] = []


class EndProbe(Record):
    """How one system reports whether the end of a stream is the peer's FIN.

    Attributes:
        level, option: The socket option that makes recvmsg() return the number of readable bytes.
            After a FIN the number is at least 1, even if there is nothing to read.
        filled_in: A field that is above 0 on a kernel whose answer is well formed. gVisor takes the
            option, and Python warns about what gVisor then returns.
    """

    __slots__ = ("level", "option", "filled_in")

    def __init__(self, level: int, option: int, filled_in: Field) -> None:
        self.level: Final = level
        self.option: Final = option
        self.filled_in: Final = filled_in

    def read(self, sock: socket.socket) -> bool | None:
        """Whether the FIN has arrived, at the end of the stream; None: not reported by this kernel.

        Raises:
            OSError: The connection's own error, if no call has returned the error yet.
        """
        if sys.platform == "win32":
            return None
        else:  # noqa: RET505  (type checkers follow this form)
            try:
                if not _well_formed:
                    if self.filled_in.read(sock) == 0:
                        return None
                    _well_formed.append(True)
                sock.setsockopt(self.level, self.option, 1)
            except OSError:
                return None
            messages = sock.recvmsg(0, 256, socket.MSG_DONTWAIT)[1]
            for level, kind, count in messages:
                if (level, kind) == (self.level, self.option):
                    return bool(int.from_bytes(count, sys.byteorder))
            return None


class AckProbe(Record):
    """One system's count of unacknowledged bytes.

    Attributes:
        queue: How the length of the send queue, in bytes, is read.
        state: How the TCP state is read, for systems whose queue does not count the FIN or where a
            kernel may refuse the queue.
        fin_waits_in: The states in which our FIN was sent and is not acknowledged, and is not counted.
        all_acked_in: The states in which everything is acknowledged, for kernels that refuse the count.
        survives_reset: An RST does not change the count. If false, the kernel drops the queue, and a
            count of 0 proves nothing after a reset.
    """

    __slots__ = ("queue", "state", "fin_waits_in", "all_acked_in", "survives_reset")

    def __init__(
        self,
        queue: Ioctl | Field,
        state: Field | None = None,
        fin_waits_in: frozenset[int] = frozenset(),
        all_acked_in: frozenset[int] = frozenset(),
        survives_reset: bool = False,
    ) -> None:
        self.queue: Final = queue
        self.state: Final = state
        self.fin_waits_in: Final = fin_waits_in
        self.all_acked_in: Final = all_acked_in
        self.survives_reset: Final = survives_reset

    def read(self, sock: socket.socket) -> int:
        """The number of unacknowledged bytes; an unacknowledged FIN counts as one byte.

        Raises:
            OSError: The kernel does not report the number.
            ValueError: The socket object is closed.
        """
        state = self.state
        try:
            count = self.queue.read(sock)
        except OSError:
            if state is None or state.read(sock) not in self.all_acked_in:
                raise
            return 0
        if self.fin_waits_in and state is not None and state.read(sock) in self.fin_waits_in:
            count += 1
        return count


class View(Record):
    """The capabilities of this system for one kind of stream.

    Attributes:
        acks: How unacknowledged bytes are counted; None: the system cannot count them.
        count_survives_reset: The count is still correct after a reset.
        state: How the TCP state is read; None: the system cannot report the state.
        end: How the peer's FIN is distinguished from a reset that another reader has consumed; None:
            the system cannot distinguish them.
        kernel_lingers: The bytes cannot be counted, so close() with {1, n} waits in the kernel.
        disconnects: connect() to AF_UNSPEC resets the connection immediately, even if other processes
            hold its descriptor (connect(2), tcp_disconnect() in Linux's net/ipv4/tcp.c).
        truncates: recv() with MSG_TRUNC discards data inside the kernel (tcp(7)).
        acked: The number of all bytes ever acknowledged; None: this system does not count them.
        error_queue: An entry in the error queue causes POLLERR until MSG_ERRQUEUE removes the entry
            (recvmsg(2)).
        loses_resets: With SO_RCVLOWAT above 1, a read that returns data may take the error of a reset
            and not report it (unix_stream_read_generic() in Linux's net/unix/af_unix.c).
    """

    __slots__ = (
        "acks",
        "count_survives_reset",
        "state",
        "end",
        "kernel_lingers",
        "disconnects",
        "truncates",
        "error_queue",
        "loses_resets",
        "acked",
    )

    def __init__(
        self,
        acks: AckProbe | None = None,
        state: StateProbe | None = None,
        *,
        end: EndProbe | None = None,
        count_survives_reset: bool = False,
        kernel_lingers: bool = False,
        disconnects: bool = False,
        truncates: bool = False,
        error_queue: bool = False,
        loses_resets: bool = False,
        acked: Field | None = None,
    ) -> None:
        self.acks: Final = acks
        self.state: Final = state
        self.end: Final = end
        self.count_survives_reset: Final = count_survives_reset
        self.kernel_lingers: Final = kernel_lingers
        self.disconnects: Final = disconnects
        self.truncates: Final = truncates
        self.error_queue: Final = error_queue
        self.loses_resets: Final = loses_resets
        self.acked: Final = acked
