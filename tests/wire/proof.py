"""A closer's word against what went over the wire."""

from __future__ import annotations

import errno
from collections.abc import Callable
from time import monotonic
from typing import Concatenate, ParamSpec

from graceful_close import CloseOutcome, CloseResult

from .laid import OurSocket, Wire
from .packets import OURS, PEER, Fate, Packet
from .rules import ACK, FIN, RST
from .table import Proof

P = ParamSpec("P")
Closer = Callable[Concatenate[OurSocket, P], CloseResult]

# How late a wait may end, in seconds: after its deadline, or after the packet it waited for.
LATE = 0.15

# The last look at the connection comes this much before the call returns, in seconds, at most.
# Arbitrary: a close is a few system calls, and two busy processors can stretch them.
LAST_LOOK = 0.005


def proven(
    wire: Wire, close: Closer[P], ours: OurSocket, *args: P.args, **options: P.kwargs
) -> CloseResult:
    """Close `ours`, and hold everything that the result says against the record.

    For every close, whatever the test is about: the outcome has its packets on record,
    delivered before the call returned; `unacked` is what the sequence numbers say; the deadline
    held, and the packet that ended the wait ended it at once; what is clean was exactly one FIN
    and no RST; nothing was reset while the call was waiting.

    Args:
        wire: Where `ours` is connected; nothing else is.
        close: Called as `close(ours, *args, **options)`.
        ours: Its `written` counts all that was ever sent on it.

    Returns:
        What `close` returned, once the wire is at rest.
    """
    written = ours.written
    call = _name(close, args, options)
    wire.note(OURS, call)
    began = monotonic()
    result = close(ours, *args, **options)
    returned = monotonic()
    wire.note(OURS, f"returned: {result.outcome.name}")
    wire.settle()

    timeout = args[0] if args else options.get("timeout", 5.0)
    idle = options.get("idle_timeout")
    assert isinstance(timeout, (int, float))
    assert idle is None or isinstance(idle, (int, float))
    trial = _Trial(
        wire, result, written=written, lasted=(began, returned), timeout=timeout, idle=idle
    )
    assert ours.fileno() == -1
    trial.the_outcome_is_on_record()
    trial.unacked_agrees()
    trial.the_wait_ended_when_it_should()
    trial.fins_and_resets_fit()
    wire.proofs.append(Proof(call, result, trial.unacked(), trial.ended_by(), trial.sent))
    return result


class _Trial:
    def __init__(
        self,
        wire: Wire,
        result: CloseResult,
        *,
        written: int,
        lasted: tuple[float, float],
        timeout: float,
        idle: float | None,
    ) -> None:
        self._wire = wire
        self._result = result
        self._written = written
        self._began, self._returned = lasted
        self._timeout = timeout
        self._idle = idle

    # --- what must be on record ----------------------------------------------------------------

    def the_outcome_is_on_record(self) -> None:
        outcome = self._result.outcome
        if outcome in (CloseOutcome.DELIVERED, CloseOutcome.PEER_CLOSED):
            assert self._acknowledgement() is not None, self._say(
                "nothing acknowledged our FIN"
            )
            assert self._result.unacked == 0
        if outcome is CloseOutcome.PEER_CLOSED:
            assert self._peers_fin() is not None, self._say("the peer's FIN never arrived")
        if outcome is CloseOutcome.PEER_RESET:
            assert self._reset() is not None, self._say("no RST ever arrived")

    def unacked_agrees(self) -> None:
        """`unacked` is all that was written, and the FIN, less what was acknowledged by then.

        An acknowledgement that came in the very last moment may or may not be counted.
        """
        end = 1 + self._written + (1 if self._has_fin() else 0)
        last_look = min(self._over_at(), self._returned) - LAST_LOOK
        least = end - max(1, self._acked_by(self._returned))
        most = end - max(1, self._acked_by(last_look))
        assert self._result.unacked is not None
        assert least <= self._result.unacked <= most, self._say(
            f"unacked is {self._result.unacked}, the wire says {least} to {most}"
        )

    def the_wait_ended_when_it_should(self) -> None:
        result, event = self._result, self._event()
        waited = self._returned - self._began
        assert result.elapsed <= waited
        assert waited <= self._timeout + LATE, self._say(
            f"{waited:.3f} s, {self._timeout} asked"
        )
        if result.outcome is CloseOutcome.TIMED_OUT and result.error is None:
            assert result.elapsed >= self._timeout
        if result.outcome is CloseOutcome.IDLE_TIMED_OUT:
            assert self._idle is not None
            assert self._returned - self._last_input() >= self._idle
        if event is not None:
            late = self._returned - max(event.delivered[0], self._began)
            assert late <= LATE, self._say(f"returned {late:.3f} s after {event}")

    def fins_and_resets_fit(self) -> None:
        """One FIN and no RST when it is clean; RST and no FIN for an abort."""
        fins, outcome = self._wire.fins_sent(OURS), self._result.outcome
        resets = [
            packet
            for packet in self._wire.packets(from_=OURS)
            if RST.is_one(packet) and packet.fate is not Fate.FORGED
        ]
        if outcome is CloseOutcome.ABORTED:
            assert resets, self._say("an abort without RST")
            assert fins == 0, self._say("an abort with a FIN")
            return
        assert fins <= 1, self._say("more than one FIN")
        if outcome in (CloseOutcome.PEER_CLOSED, CloseOutcome.DELIVERED):
            assert fins == 1, self._say("no FIN")
        if outcome is CloseOutcome.PEER_CLOSED:
            assert all(map(self._answers_a_straggler, resets)), self._say(
                "RST on a clean close"
            )
        elif self._result.error is None:  # else our kernel had ended it already
            early = [packet for packet in resets if packet.time < self._over_at()]
            assert not early, self._say("RST while the call was waiting")

    def _answers_a_straggler(self, reset: Packet) -> bool:
        """Whether an RST says no more than that the connection is over.

        The side that closes second has no TIME_WAIT. A second copy of the acknowledgement of
        its FIN finds nothing there, and is answered with RST (RFC 9293, section 3.10.7.1).
        """
        acknowledgement = self._acknowledgement()
        assert acknowledgement is not None
        return reset.flags == "R" and any(
            packet is not acknowledgement
            and ACK.is_one(packet)
            and packet.acks_fin
            and bool(packet.delivered)
            and acknowledgement.delivered[0] <= packet.delivered[0] <= reset.time
            for packet in self._wire.packets(from_=PEER)
        )

    def _has_fin(self) -> bool:
        """Whether there was still a connection for a FIN when we began to close it."""
        reset = self._reset()
        over = reset is not None and reset.delivered[0] < self._began
        return not over and self._result.outcome is not CloseOutcome.ABORTED

    # --- reading the record --------------------------------------------------------------------

    def _delivered_to_us(self) -> list[Packet]:
        return [
            packet
            for packet in self._wire.packets(from_=PEER)
            if packet.delivered_by(self._returned)
        ]

    def _acknowledgement(self) -> Packet | None:
        """The first one that had all of it."""
        end = 1 + self._written + 1
        found = (p for p in self._delivered_to_us() if not RST.is_one(p) and p.ack >= end)
        return min(found, key=lambda p: p.delivered[0], default=None)

    def _peers_fin(self) -> Packet | None:
        """The first packet with which its FIN, and all before it, had arrived."""
        arrived = self._delivered_to_us()
        arrived.sort(key=lambda packet: packet.delivered[0])
        fin = next((packet.end for packet in arrived if FIN.is_one(packet)), None)
        if fin is None:
            return None
        reach, early = 0, dict[int, int]()
        for packet in arrived:
            early[packet.seq] = max(packet.end, early.get(packet.seq, 0))
            for start in sorted(early):
                if start > reach:
                    break
                reach = max(reach, early.pop(start))
            if reach >= fin:
                return packet
        return None

    def _reset(self) -> Packet | None:
        return next((p for p in self._delivered_to_us() if RST.is_one(p)), None)

    def _acked_by(self, time: float) -> int:
        return max(
            (
                packet.ack
                for packet in self._wire.packets(from_=PEER)
                if packet.delivered_by(time) and not RST.is_one(packet)
            ),
            default=0,
        )

    def _last_input(self) -> float:
        times = [p.delivered[0] for p in self._delivered_to_us() if p.length and not p.again]
        return max([*times, self._began])

    def _over_at(self) -> float:
        """When the wait was over, at the earliest."""
        event = self._event()
        if event is not None:
            return event.delivered[0]
        match self._result.outcome:
            case CloseOutcome.TIMED_OUT if self._result.error is None:
                return self._began + self._timeout
            case CloseOutcome.IDLE_TIMED_OUT:
                return self._last_input() + (self._idle or 0)
            case _:
                return self._returned - LATE

    def _event(self) -> Packet | None:
        """The packet that ended the wait."""
        match self._result.outcome:
            case CloseOutcome.PEER_CLOSED:
                both = [p for p in (self._peers_fin(), self._acknowledgement()) if p]
                return max(both, key=lambda packet: packet.delivered[0])
            case CloseOutcome.DELIVERED:
                return self._acknowledgement()
            case CloseOutcome.PEER_RESET:
                return self._reset()
            case _:
                return None

    # --- for the table -------------------------------------------------------------------------

    def ended_by(self) -> str:
        """What ended the wait, in a word or two."""
        result, event = self._result, self._event()
        if result.outcome is CloseOutcome.TIMED_OUT:
            if result.error is None:
                return "the deadline"
            return f"{errno.errorcode[result.error.errno or 0]} of our kernel"
        if result.outcome is CloseOutcome.IDLE_TIMED_OUT:
            return "the idle deadline"
        if result.outcome is CloseOutcome.DRAIN_LIMIT:
            return "the limit"
        if event is None or event.delivered[0] < self._began:
            return "nothing to wait for"
        if event is self._reset():
            return "RST"
        return "the peer's FIN" if event is self._peers_fin() else "the acknowledgement"

    def unacked(self) -> str:
        """What is not acknowledged, in words: how much of it varies from run to run."""
        count, fin = self._result.unacked, int(self._has_fin())
        if not count:
            return str(count)
        if count == fin:
            return "1: the FIN"
        what = "all data" if count == self._written + fin else "some data"
        return f"{what} and the FIN" if fin else what

    def sent(self) -> str:
        """What we sent, in order, acknowledgements and the handshake aside.

        Data or a FIN is "again" if it was lost before, or if its acknowledgement was. What a
        kernel repeats out of impatience is left out: that depends on the day.
        """
        words: list[str] = []
        for packet in self._wire.packets(from_=OURS):
            if packet.fate is Fate.FORGED or "S" in packet.flags:
                continue
            if packet.again and not self._had_to_be_repeated(packet):
                continue
            if RST.is_one(packet):
                if self._result.clean and self._event() and self._answers_a_straggler(packet):
                    continue
                word = "RST"
            elif FIN.is_one(packet):
                word = "FIN"
            elif packet.length:
                word = "data"
            else:
                continue
            if packet.again:
                word += " again"
            if word not in words:
                words.append(word)
        return ", ".join(words) or "nothing"

    def _had_to_be_repeated(self, packet: Packet) -> bool:
        before = (p for p in self._wire.packets() if p.time < packet.time)
        return any(
            lost.fate is Fate.DROPPED
            and (lost.end if lost.from_ is OURS else lost.ack) >= packet.end
            for lost in before
        )

    def _say(self, what: str) -> str:
        return f"{what}\n{self._result}\n{self._wire.draw()}"


def _name(
    close: Callable[..., CloseResult], args: tuple[object, ...], options: dict[str, object]
) -> str:
    if not close.__module__.startswith("graceful_close"):
        return str(close.__doc__)
    shown = [str(arg) for arg in args]
    for name, value in options.items():
        shown.append(f"{name}={getattr(value, 'name', value)}")
    return f"{close.__name__}({', '.join(shown)})"
