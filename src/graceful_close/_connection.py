"""One connection on its way out: what every driver does between two waits."""

from __future__ import annotations

from time import monotonic

from . import _platform
from ._checks import is_tcp
from ._delivery import count_unacked, pending_error
from ._discard import FLOOD, Discard, discard_of, wake_for, wake_for_much
from ._linger import LingerPolicy
from ._platform import Meaning, meaning
from ._release import let_go, shut_for_writing
from ._teardown import DRAIN, PROBE, READ_ERROR, SEND_CLOSE_NOTIFY, SHUT_WR, Step, Teardown
from ._tls import LastRecords, send_close_notify, speaks_tls

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from ._result import CloseResult
    from ._terms import Terms

    # What send_close_notify() gave, or the error that it raised; or what is yet to be said.
    Said = tuple[bool | None, bool | None] | OSError | LastRecords | None

    # Whether shutdown(SHUT_WR) was called already, or the error that it raised.
    Shut = bool | OSError

# Python repeats an interrupted call by itself (PEP 475); elsewhere EINTR means the same.
NOT_NOW = (Meaning.WOULD_BLOCK, Meaning.INTERRUPTED)

# Reads in a row before a driver with other connections gets its turn. Arbitrary: each takes at
# most what a receive buffer holds, and so many take about a millisecond.
READS_IN_A_ROW = 8


class Connection:
    """A socket and the machine that closes it.

    A driver waits where the machine says to, reports that to `machine`, and hands every other
    step to `carry_out`:

        step = connection.first_step(monotonic())
        while step is not LET_GO:
            if step is WAIT_READABLE:
                ...
                step = connection.machine.woke(monotonic())
            else:
                step = connection.carry_out(step)
        result = connection.let_go()

    Whatever exception comes out of that is foreign (a KeyboardInterrupt, a cancellation, a
    bug), and the driver answers it with `abandon()`.

    Args:
        sock: A stream socket that is open.
        terms: What the caller asked for.
        now: A reading of time.monotonic(), from which the deadlines count.
        one_of_many: The driver serves others too; see `Teardown`.
        said: What became of the close_notify, if that is not for this socket to say: what
            `send_close_notify` gave or raised, or a framework's `LastRecords`.
    """

    __slots__ = ("_discard", "_low_water", "_said", "_tcp", "machine", "sock")

    def __init__(
        self,
        sock: socket.socket,
        terms: Terms,
        now: float,
        *,
        one_of_many: bool = False,
        said: Said = None,
    ) -> None:
        self.sock = sock
        self._tcp = tcp = is_tcp(sock)
        self._discard: Discard | None = None
        self._low_water = 0  # SO_RCVLOWAT before we changed it; 0: we did not
        sight = _platform.HERE.tcp_sight if tcp else _platform.BLIND
        self._said = said
        tls = said is not None or speaks_tls(sock)
        self.machine = Teardown(terms, now, sight, tls=tls, one_of_many=one_of_many)

    def first_step(self, now: float, shut: Shut = False) -> Step:
        """What to do first, after what was done already.

        Args:
            now: A reading of the clock.
            shut: Our FIN is out; or the error of the network's that came instead.
        """
        machine, said = self.machine, self._said
        if isinstance(said, OSError):
            machine.notified(False)
            step = machine.failed(said, now)
        elif isinstance(said, tuple):
            step = machine.notified(*said)
        else:
            if said is not None:
                machine.heard(said.peer_notified)
            step = machine.start()
        return machine.shut(now, None if shut is True else shut) if shut else step

    def carry_out(self, step: Step) -> Step:
        """Carry out `step`, and what follows from it, without ever waiting.

        Returns:
            The next step that waits; LET_GO; or DRAIN after many reads in a row, so that
            others get their turn.
        """
        machine, sock = self.machine, self.sock
        reads = 0
        while True:
            try:
                if step is DRAIN:
                    if reads == READS_IN_A_ROW:
                        return step
                    reads += 1
                    if self._discard is None:
                        self._discard = discard_of(sock, tcp=self._tcp)
                    count = self._discard.read(sock, machine.allowance)
                    if count >= FLOOD and self._discard.in_kernel:
                        self._flooded()
                    step = machine.received(count, monotonic())
                elif step is PROBE:
                    step = machine.probed(count_unacked(sock, tcp=self._tcp), monotonic())
                elif step is SHUT_WR:
                    shut_for_writing(sock)
                    step = machine.shut(monotonic())
                elif step is READ_ERROR:
                    error, now = pending_error(sock), monotonic()
                    step = machine.failed(error, now) if error else machine.no_error(now)
                elif step is SEND_CLOSE_NOTIFY:
                    said = self._said
                    send = said.send if isinstance(said, LastRecords) else send_close_notify
                    step = machine.notified(*send(sock))
                else:
                    return step
            except OSError as error:
                step = self.report_failure(step, error)

    def report_failure(self, step: Step, error: OSError) -> Step:
        """Tell the machine what `step` failed by."""
        now = monotonic()
        if step is DRAIN and meaning(error) in NOT_NOW:
            return self.machine.would_block(now)
        if step is SHUT_WR:
            return self.machine.shut(now, error)
        if step is SEND_CLOSE_NOTIFY and meaning(error) in NOT_NOW:
            return self.machine.notify_would_block(now)
        return self.machine.failed(error, now)

    def _flooded(self) -> None:
        """The peer is in full flow. Under a limit it is to be noticed when that is exceeded."""
        if not self._low_water and self.machine.allowance is None:
            self._low_water = wake_for_much(self.sock)

    def let_go(self) -> CloseResult:
        """Release the descriptor as the machine decided. What LET_GO asks for."""
        machine = self.machine
        if self._low_water:
            wake_for(self.sock, self._low_water)
        complaint = let_go(self.sock, machine.parting, machine.linger_seconds)
        return machine.released(monotonic(), complaint)

    def abandon(self) -> None:
        """Close at once, without lingering: something foreign happened."""
        let_go(self.sock, LingerPolicy.BACKGROUND)
