"""The comparison of a result with the recorded packets."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Concatenate, ParamSpec

from graceful_close import CloseOutcome, CloseResult

from .laid import OurSocket, Wire
from .packets import OURS, PEER, Fate, Packet
from .rules import ACK, FIN, RST
from .table import Proof

P = ParamSpec("P")
Closer = Callable[Concatenate[OurSocket, P], CloseResult]

# Seconds by which a wait may end after its deadline, or after the packet that ends it. On a busy
# machine the packets are late, or no processor is free when the wait ends: as many seconds more.
LATE = 0.15

# Seconds between the last look at the connection and the return of the call, at most. A
# heuristic: a close is a few system calls, which take longer on busy processors.
LAST_LOOK = 0.005


def proven(
    wire: Wire, close: Closer[P], ours: OurSocket, *args: P.args, **options: P.kwargs
) -> CloseResult:
    """Close `ours`, and compare the whole result with the record.

    The checks for every close: the packets that prove the outcome are in the record, and were
    delivered before the call returned. `unacked` agrees with the sequence numbers. The deadline
    was kept, and the packet that ended the wait ended it immediately. A clean close has exactly
    one FIN and no RST. No RST was sent while the call was waiting.

    Args:
        wire: The wire, which has only the connection of `ours`.
        close: The function, called as `close(ours, *args, **options)`.
        ours: The socket; `written` counts everything that was sent on it.

    Returns:
        The result of `close`, after the wire is idle.
    """
    written = ours.written
    call = _name(close, args, options)
    wire.note(OURS, call)
    began, ready = monotonic(), _ready_seconds()
    result = close(ours, *args, **options)
    returned, ready = monotonic(), _ready_seconds() - ready
    wire.late += ready
    wire.note(OURS, f"returned: {result.outcome.name}")
    wire.settle()

    timeout = args[0] if args else options.get("timeout", 5.0)
    idle = options.get("idle_timeout")
    assert isinstance(timeout, (int, float))
    assert idle is None or isinstance(idle, (int, float))
    trial = _Trial(wire, result, written, began, returned, timeout, idle)
    assert ours.fileno() == -1
    trial.the_outcome_is_in_the_record()
    trial.unacked_agrees()
    trial.the_wait_ended_in_time()
    trial.fins_and_resets_fit()
    wire.proofs.append(Proof(call, result, trial.unacked(), trial.ended_by(), trial.sent))
    return result


def _ready_seconds() -> float:
    """Return for how long this thread was ready to run, and waited for a processor.

    The second number of /proc/PID/schedstat (Documentation/scheduler/sched-stats.rst of Linux).
    """
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


@dataclass
class _Trial:
    _wire: Wire
    _result: CloseResult
    _written: int
    _began: float
    _returned: float
    _timeout: float
    _idle: float | None

    @property
    def _late(self) -> float:
        return LATE + self._wire.late

    # --- the checks ----------------------------------------------------------------

    def the_outcome_is_in_the_record(self) -> None:
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
        """Check that `unacked` is everything written, and the FIN, less the acknowledged bytes.

        An acknowledgement just before the return may be counted or not.
        """
        end = 1 + self._written + (1 if self._has_fin() else 0)
        last_look = min(self._over_at(), self._returned) - LAST_LOOK - self._wire.late
        least = end - max(1, self._acked_by(self._returned))
        most = end - max(1, self._acked_by(last_look))
        assert self._result.unacked is not None
        assert least <= self._result.unacked <= most, self._say(
            f"unacked is {self._result.unacked}, the record has {least} to {most}"
        )

    def the_wait_ended_in_time(self) -> None:
        result, event = self._result, self._event()
        waited = self._returned - self._began
        assert result.elapsed <= waited
        assert waited <= self._timeout + self._late, self._say(
            f"{waited:.3f} s, {self._timeout} asked"
        )
        if result.outcome is CloseOutcome.TIMED_OUT and result.error is None:
            assert result.elapsed >= self._timeout
        if result.outcome is CloseOutcome.IDLE_TIMED_OUT:
            assert self._idle is not None
            assert self._returned - self._last_input() >= self._idle
        if event is not None:
            late = self._returned - max(event.delivered[0], self._began)
            assert late <= self._late, self._say(f"returned {late:.3f} s after {event}")

    def fins_and_resets_fit(self) -> None:
        """Check for one FIN and no RST if clean, and for RST and no FIN after an abort."""
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
        elif self._result.error is None:  # otherwise our kernel had already ended it
            early = [packet for packet in resets if packet.time < self._over_at()]
            assert not early, self._say("RST while the call was waiting")

    def _answers_a_straggler(self, reset: Packet) -> bool:
        """Return whether an RST only answers a late packet of an ended connection.

        The side that closes second has no TIME_WAIT. So a second copy of the acknowledgement of
        its FIN is answered with RST (RFC 9293, section 3.10.7.1).
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
        """Return whether the connection could still send a FIN when the close began."""
        reset = self._reset()
        over = reset is not None and reset.delivered[0] < self._began
        return not over and self._result.outcome is not CloseOutcome.ABORTED

    # --- reading the record -------------------------------------------------------------------

    def _delivered_to_us(self) -> list[Packet]:
        return [
            packet
            for packet in self._wire.packets(from_=PEER)
            if packet.delivered_by(self._returned)
        ]

    def _acknowledgement(self) -> Packet | None:
        """Return the first acknowledgement of everything."""
        end = 1 + self._written + 1
        found = (p for p in self._delivered_to_us() if not RST.is_one(p) and p.ack >= end)
        return min(found, key=lambda p: p.delivered[0], default=None)

    def _peers_fin(self) -> Packet | None:
        """Return the packet that completed the peer's stream up to its FIN."""
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
        """Return the earliest possible end of the wait."""
        event = self._event()
        if event is not None:
            return event.delivered[0]
        match self._result.outcome:
            case CloseOutcome.TIMED_OUT if self._result.error is None:
                return self._began + self._timeout
            case CloseOutcome.IDLE_TIMED_OUT:
                return self._last_input() + (self._idle or 0)
            case _:
                return self._returned - self._late

    def _event(self) -> Packet | None:
        """Return the packet that ended the wait."""
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

    # --- for the table ------------------------------------------------------------------------

    def ended_by(self) -> str:
        """Describe what ended the wait."""
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
        """Describe what is not acknowledged, without numbers that vary between runs."""
        count, fin = self._result.unacked, int(self._has_fin())
        if not count:
            return str(count)
        if count == fin:
            return "1: the FIN"
        what = "all data" if count == self._written + fin else "some data"
        return f"{what} and the FIN" if fin else what

    def sent(self) -> str:
        """Describe what we sent, in order, without acknowledgements and the handshake.

        Data or a FIN is "again" if it, or its acknowledgement, was lost before. Other
        retransmissions are omitted, because they vary between runs.
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
