"""A socket and its state machine: the work of every driver between two waits.

Theory of operation
-------------------
`begin` takes the descriptor out of the caller's object, so that from then on only this close uses the
number. (OpenSSL writes to the number that the caller's object has. So the descriptor of a TLS socket is
borrowed, and taken when close_notify is sent.) `carry_out` executes the steps until a step is a wait,
the driver waits, and `waited` reports the end of the wait. `release` closes the descriptor. An exception
may interrupt each of them: `abandon` finds the descriptor in `held`, to which it is moved by one call
into C.

Most closes follow the same sequence: our FIN, the peer's FIN, and everything is acknowledged. Such a
close creates no state machine: `begin` sends our FIN, and `_first_look` reads once, after one wait at
most. As soon as something else happens, the property `machine` creates the machine and reports what was
done. From then on the machine decides. `may_end_at_first_look` (_teardown.py) has the conditions.
"""

from __future__ import annotations

import math

from . import _platform
from ._acks import clear_error_queue, count_unacked, pending_error, read_state, standing
from ._clock import monotonic
from ._drain import Drain, drain_of
from ._linger import LingerPolicy
from ._platform import ErrorKind, TcpState, error_kind, reset_error
from ._release import close_socket, shut_for_writing
from ._sockets import borrow_descriptor, has_open_writer, take_descriptor, view_of
from ._step import (
    CLEAR_ERRORS,
    COUNT,
    DRAIN,
    LOOK,
    READ_ERROR,
    RELEASE,
    SEND_CLOSE_NOTIFY,
    SHUT_WR,
    WAIT_ACK,
    WAIT_READABLE,
    Step,
)
from ._teardown import (
    OPEN,
    OVER,
    PEER_FIN,
    PEER_FIN_SEEN,
    Teardown,
    closed_by_peer,
    may_end_at_first_look,
)
from ._tls import LastRecords, Session, speaks_tls

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from ._options import Options
    from ._platform import View
    from ._result import CloseResult

    # What has become of a framework's session: what a close_notify gave, or what has yet to be sent.
    CloseNotify = tuple[bool | None, bool | None] | LastRecords | None

# Python repeats an interrupted call itself (PEP 475); EINTR from elsewhere means the same.
NOT_NOW = (ErrorKind.WOULD_BLOCK, ErrorKind.INTERRUPTED)

# Reads in a row before the driver's other connections get a turn. Heuristic: each read takes at most
# the content of a receive buffer, and this many take about a millisecond.
READS_IN_A_ROW = 8


class Connection:
    """The close of one socket.

    A driver executes the waits of the state machine, reports them with `waited`, and passes every
    other step to `carry_out`:

        connection = Connection(options, monotonic())
        try:
            step = connection.begin(sock)
            while (step := connection.carry_out(step)) is not RELEASE:
                ...  # wait as `step` says, until connection.wake_at
                step = connection.waited(step)
            result = connection.release()
        except BaseException:
            connection.abandon(sock)
            raise

    An exception in this code is a KeyboardInterrupt, a cancellation or a bug.

    Args:
        options: The options of the close.
        now: A reading of `clock`, from which the deadlines count.
        one_of_many: The driver has other connections, too; see `Teardown`.
        abort: Discard the connection.
        close_notify: The close_notify, if the socket itself does not send it.
        peer: The peer's address, for the result.
        flush, flush_timeout, stood: As for `Teardown`.
        clock: The clock of the driver's waits.

    Attributes:
        borrowed: Another object owns the descriptor, and closes it when this close has ended at its
            first look. Otherwise `adopt` is called before the first wait.
        clock: As above.
        held: A list with the object that has the descriptor; empty before `begin`.
        machine: The state machine.
        unflushed: Whether a makefile() object may hold unsent data; None before `begin`, which
            searches for one unless a driver has done so.
        wakes_readers: Whether readers of the connection read its end when the descriptor is released;
            False: their own object wakes them. True unless a driver has changed it.
        abort, close_notify, flush, flush_timeout, options, peer, stood: As above; a driver may set
            them until `begin`, and `close_notify` until the end of the flush.
    """

    __slots__ = (
        "_drain",
        "_found_no_input",
        "_machine",
        "_now",
        "_one_of_many",
        "_session",
        "_state",
        "_view",
        "abort",
        "borrowed",
        "clock",
        "close_notify",
        "flush",
        "flush_timeout",
        "held",
        "options",
        "peer",
        "stood",
        "unflushed",
        "wakes_readers",
    )

    def __init__(
        self,
        options: Options,
        now: float,
        *,
        one_of_many: bool = False,
        abort: bool = False,
        close_notify: CloseNotify = None,
        peer: object = None,
        flush: bool = False,
        stood: bool = False,
        flush_timeout: float | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.options = options
        self.borrowed = False
        self._now = now
        self._one_of_many = one_of_many
        self.abort = abort
        self.peer = peer
        self.close_notify = close_notify
        self.clock = clock
        self.flush = flush
        self.flush_timeout = flush_timeout
        self.stood = stood
        self._session: Session | None = None
        self._state: TcpState | None = None
        self._machine: Teardown | None = None
        self._found_no_input = False
        self.unflushed: bool | None = None
        self.wakes_readers = True
        self.held: list[socket.socket] = []

    _drain: Drain
    _view: View

    @property
    def since(self) -> float:
        """The time from which the deadlines count."""
        return self._now

    @property
    def sock(self) -> socket.socket:
        return self.held[0]

    @property
    def machine(self) -> Teardown:
        """The state machine, created when the first look cannot decide the outcome."""
        machine = self._machine
        if machine is None:
            self._begin_with_machine()
            machine = self.machine
            # Report what was done without it.
            machine.shut(self._now)
            if self._found_no_input and machine.would_block(self._now) is COUNT:
                machine.counted(0, self._now)
        return machine

    @property
    def wake_at(self) -> float:
        """The time at which a wait must end."""
        if self._machine is not None:
            return self._machine.wake_at
        return self._now + self.options.longest_silence

    def begin(self, sock: socket.socket) -> Step:
        """Take the descriptor; return the first step. RELEASE: the socket was already closed."""
        held = self.held
        if self.unflushed is None:
            self.unflushed = not self.abort and has_open_writer(sock)
        self._session = session = Session(sock) if speaks_tls(sock) else None
        tls = session is not None and not self.abort and sock.fileno() != -1
        if session is None:
            take_descriptor(sock, held)
        elif not session.claim():
            self._session = None  # another close has it
        elif tls:
            session.keep_open()
            borrow_descriptor(sock, held)
        else:
            take_descriptor(sock, held)
            self._end_session()
        if not held:
            self._machine = Teardown(self.options, self._now, _platform.HERE.other)
            return RELEASE
        return self._begin_held(tls=tls)

    def begin_borrowed(self, sock: socket.socket) -> Step:
        """`begin` on a descriptor that another object keeps; see `borrowed`."""
        self.borrowed, self.unflushed = True, False
        borrow_descriptor(sock, self.held)
        return self._begin_held(tls=False)

    def _begin_held(self, *, tls: bool) -> Step:
        held = self.held
        self._view = view = view_of(held[0])
        self._drain = drain_of(held[0], view)
        tls = tls or self.close_notify is not None
        if tls or self.abort or self.flush:
            self._machine = machine = self._new_machine(tls=tls)
            if isinstance(self.close_notify, LastRecords):
                machine.peer_close_notify(self.close_notify.peer_notified)
            return machine.start()
        return self._begin_plain(held[0], view)

    def _begin_plain(self, sock: socket.socket, view: View) -> Step:
        """Execute the first steps of a close that may end at its first look."""
        self._state = state = read_state(sock, view)
        options = self.options
        if not may_end_at_first_look(options, view, state):
            return self._begin_with_machine()
        try:
            shut_for_writing(sock)
        except OSError:
            return self._begin_with_machine()  # which shuts it again, and takes the error
        # An idle time begins with a count, which follows a first read.
        waits = self._one_of_many and options.timeout and options.idle_timeout == math.inf
        return WAIT_READABLE if waits and state is OPEN else DRAIN

    def _begin_with_machine(self) -> Step:
        """Create the state machine, and report the state of the connection."""
        self._machine = machine = self._new_machine(tls=False)
        machine.start()
        return machine.looked(self._state, self._now)

    def _first_look(self) -> Step:
        """Read once. RELEASE: the peer's FIN, and everything acknowledged. Else use the machine."""
        sock, view, limit = self.held[0], self._view, self.options.drain_limit
        try:
            count = self._drain.read(sock, None if limit is None else limit + 1)
        except OSError as error:
            if error_kind(error) not in NOT_NOW:
                return self.machine.failed(error, self.clock())
            if self._may_wait_without_machine():
                self._found_no_input = True
                return WAIT_READABLE
            return self.machine.would_block(self.clock())
        if count == 0:
            state = self._state
            if state is not PEER_FIN:
                state = read_state(sock, view, was_open=True)
                try:
                    self._require_fin(state)
                except OSError as error:
                    return self.machine.failed(error, self.clock())
            if state in PEER_FIN_SEEN and count_unacked(sock, view) == 0:
                return RELEASE
        return self.machine.received(count, self.clock())

    def _may_wait_without_machine(self) -> bool:
        """Whether this is the first wait, and only the peer's FIN is missing."""
        if self._found_no_input or self.clock() >= self.wake_at:
            return False
        # An idle time begins with a count, because acknowledgements restart it, too.
        waits_long = self.options.idle_timeout == math.inf
        return waits_long or count_unacked(self.held[0], self._view) == 0

    def _new_machine(self, *, tls: bool) -> Teardown:
        machine = Teardown(
            self.options,
            self._now,
            self._view,
            tls=tls,
            one_of_many=self._one_of_many,
            abort=self.abort,
            unflushed=bool(self.unflushed),
            flush=self.flush,
            stood=self.stood,
            flush_timeout=self.flush_timeout,
        )
        machine.peer = self.peer
        return machine

    def carry_out(self, step: Step) -> Step:
        """Execute `step` and the following steps, without waiting.

        Returns:
            The next step that is a wait; RELEASE; or DRAIN after many reads in a row, so that other
            connections get a turn.
        """
        if step is DRAIN and self._machine is None:
            step = self._first_look()
        if step is RELEASE or step is WAIT_READABLE:
            return step
        machine, sock, view = self.machine, self.held[0], self._view
        reads = 0
        while True:
            try:
                if step is DRAIN:
                    if reads == READS_IN_A_ROW:
                        return step
                    reads += 1
                    step = machine.received(
                        self._drain.read(sock, machine.allowance), self.clock()
                    )
                elif step is LOOK:
                    step = machine.looked(self._look(), self.clock())
                elif step is COUNT:
                    step = machine.counted(count_unacked(sock, view), self.clock())
                elif step is SHUT_WR:
                    self._end_session()
                    shut_for_writing(sock)
                    step = machine.shut(self.clock())
                elif step is READ_ERROR:
                    error = pending_error(sock)
                    if error is None:
                        step = machine.no_error(self.clock())
                    else:
                        state = read_state(sock, view)
                        step = machine.pending_error(error, state, self.clock())
                elif step is CLEAR_ERRORS:
                    clear_error_queue(sock)
                    step = machine.cleared(self.clock())
                elif step is SEND_CLOSE_NOTIFY:
                    sent, received = self._send_close_notify(sock)
                    step = machine.notified(sent, self.clock(), received)
                else:
                    return step
            except OSError as error:
                step = self._report_failure(step, error)

    def _look(self) -> TcpState | None:
        """How the connection stands."""
        state = standing(self.held[0], self._view)
        if self._state is None:
            self._state = state
        else:
            self._require_fin(state)
        return state

    def _require_fin(self, state: TcpState | None) -> None:
        """Raise at the end of the stream if a reset, and not the peer's FIN, ended it.

        The kernel reports a reset once. If other threads read from this connection, one of them may
        have received the error; recv() returns 0 to the others.

        Raises:
            OSError: The connection was reset.
        """
        end = self._view.end
        if state is OVER and end is not None and end.read(self.held[0]) is False:
            raise reset_error()

    def waited(
        self, step: Step, error: OSError | None = None, *, readable: bool = True
    ) -> Step:
        """Report the end of a wait.

        Args:
            step: The wait.
            error: The error of the wait, if it failed. Only EBADF concerns the connection.
            readable: As for `Teardown.woke`.
        """
        now = self.clock()
        if error is None:
            if self._machine is None and now < self.wake_at:
                return DRAIN
            return self.machine.woke(now, readable=readable)
        if step is WAIT_ACK:
            return self.machine.cannot_watch(now)
        if error_kind(error) is ErrorKind.CLOSED:
            return self.machine.failed(error, now)
        return self.machine.cannot_wait(now)

    def _send_close_notify(self, sock: socket.socket) -> tuple[bool | None, bool | None]:
        close_notify = self.close_notify
        if isinstance(close_notify, tuple):
            return close_notify
        session = close_notify or self._session
        return (None, None) if session is None else session.send(sock)

    def _end_session(self) -> None:
        """Release the caller's object: from now on only we have the descriptor."""
        if self._session is not None:
            self._session.end()
            self._session = None

    def _report_failure(self, step: Step, error: OSError) -> Step:
        """Report the error of `step` to the state machine."""
        now = self.clock()
        if step is DRAIN and error_kind(error) in NOT_NOW:
            return self.machine.would_block(now)
        if step is SHUT_WR:
            return self.machine.shut(now, error)
        if step is SEND_CLOSE_NOTIFY and error_kind(error) in NOT_NOW:
            return self.machine.notify_would_block(now)
        return self.machine.failed(error, now)

    @property
    def has_machine(self) -> bool:
        """False after the step RELEASE: the connection ended at its first look."""
        return self._machine is not None

    def adopt(self, dup: socket.socket) -> None:
        """Continue on a dup of the descriptor that was borrowed."""
        # First, because an object that is lost would close the descriptor.
        self.held[0].detach()
        self.held[0], self.borrowed = dup, False

    def release(self) -> CloseResult:
        """Release the descriptor as the machine decided; the step RELEASE."""
        machine = self._machine
        error: OSError | None = None
        if machine is None:
            error = self._close(self.held[0], None)
            peer_first: bool | None = None
            if self._state is PEER_FIN:
                peer_first = True
            elif self._found_no_input:
                peer_first = False  # our FIN was sent before that read
            return closed_by_peer(
                self.clock() - self._now, peer_first, error, bool(self.unflushed), self.peer
            )
        if self.held:
            self._end_session()
            wake_readers: bool | None = False
            if self.wakes_readers:
                # None: after an abort only.
                wake_readers = True if machine.wake_readers else None
            error = close_socket(
                self.held[0],
                machine.linger_policy,
                self._view,
                machine.linger_seconds,
                wake_readers=wake_readers,
            )
        return machine.released(self.clock(), error)

    def abandon(self, sock: socket.socket | None = None) -> None:
        """Close immediately, after an interrupt or a bug. During an abort or a flush, reset.

        Args:
            sock: The argument of `begin`, which may have been interrupted; None: `begin` returned.
        """
        cut = self.flush if self._machine is None else self._machine.is_flushing
        policy = LingerPolicy.ABORT if self.abort or cut else LingerPolicy.BACKGROUND
        if self._session is None and sock is not None and speaks_tls(sock):
            self._session = Session(sock)
        session = self._session
        if session is not None:
            # Otherwise another close has it.
            sock = session.sock if session.claim() else None
        if not self.held and sock is not None:
            take_descriptor(sock, self.held)
        if sock is not None:
            self._end_session()
        for held in self.held:
            self._close(held, policy)

    def _close(self, sock: socket.socket, policy: LingerPolicy | None) -> OSError | None:
        if self.borrowed:
            sock.detach()
            return None
        return close_socket(sock, policy, None if policy is None else view_of(sock))

    def release_at_once(self, policy: LingerPolicy) -> None:
        """Close in another thread, because the driver's thread is blocked."""
        self._end_session()
        for sock in self.held:
            close_socket(sock, policy, view_of(sock))

    def disown(self) -> None:
        """In a forked child: release our copy of the descriptor, and change nothing else."""
        self._end_session()
        for sock in self.held:
            close_socket(sock, None)
