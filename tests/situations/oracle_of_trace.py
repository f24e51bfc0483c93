"""Compares a result with the kernel's record of the connection."""

from __future__ import annotations

from collections.abc import Iterator

from graceful_close import CloseOutcome, CloseResult

from .peers import Account
from .play import Play
from .trace import Event

# One socket has all events of these. MPTCP closes its subflows later, in a thread of the kernel.
_ONE_SOCKET = ("tcp4", "tcp6", "mapped")

# The states in which an abort sends RST (tcp_need_reset() in net/ipv4/tcp.c).
_NEED_RESET = {"ESTABLISHED", "CLOSE_WAIT", "FIN_WAIT1", "FIN_WAIT2", "SYN_RECV"}

# The reasons for an RST of a close or an abort. The other reasons are answers to segments.
_OF_A_CLOSE = {"TCP_ABORT_ON_CLOSE", "TCP_ABORT_ON_LINGER", "TCP_STATE"}

# A close that returns later than this after the end, in seconds, must have observed the end.
_NOTICED_WITHIN = 0.15

_GAVE_UP = {CloseOutcome.TIMED_OUT, CloseOutcome.IDLE_TIMED_OUT, CloseOutcome.DRAIN_LIMIT}


def has_trace(play: Play) -> bool:
    """Whether the kernel's record is complete for this connection."""
    situation = play.situation
    one = situation.family in _ONE_SOCKET
    return bool(play.trace) and (one or _is_plain_behind_mptcp(play))


def _is_plain_behind_mptcp(play: Play) -> bool:
    return play.situation.family == "mptcp fallback" and play.situation.origin == "accept"


def contradictions(play: Play, result: CloseResult, account: Account) -> Iterator[str]:
    """Yield a complaint for each statement of the result that the record contradicts."""
    if not has_trace(play):
        return
    events = [event for event in play.trace or [] if event.time <= play.returned]
    said = f"{result.outcome.name}, and the kernel: {_lines(play, events)}"
    for name in _contradicted(play, result, account, events):
        yield f"{name}: {said}"


def _contradicted(
    play: Play, result: CloseResult, account: Account, events: list[Event]
) -> Iterator[str]:
    situation, outcome = play.situation, result.outcome
    sent = [event for event in events if event.name == "sent reset"]
    received = [event for event in events if event.name == "received reset"]
    shut_reading = situation.shut in {"reading", "both"}  # the kernel answers input with RST
    # After both FINs and all acknowledgements the socket is closed, and has no more resets.
    if outcome is CloseOutcome.PEER_CLOSED and (sent or received):
        yield "claim"
    if outcome is CloseOutcome.PEER_RESET and not received and not (shut_reading and sent):
        yield "claim"
    ended = [event for event in events if event.new == "CLOSE"]
    if outcome is CloseOutcome.NOT_CONNECTED and not (ended or situation.unanswered):
        yield "claim"
    gave_up = outcome in _GAVE_UP and situation.on_timeout == "abort"
    if outcome is CloseOutcome.IDLE_TIMED_OUT and result.unacked is None:
        gave_up = False  # a peer that may acknowledge slowly is not aborted
    aborts = outcome is CloseOutcome.ABORTED or (gave_up and result.error is None)
    if aborts and not (sent or received) and _needs_reset(play, account, ended):
        yield "not reset"
    of_ours = any(event.new in _OF_A_CLOSE for event in sent)
    in_time = situation.limit != "no time" and not (situation.process_ends or of_ours)
    if outcome in _GAVE_UP and result.error is None and in_time:
        last = play.returned - _NOTICED_WITHIN
        if any(play.report.began < event.time < last for event in ended):
            yield "missed"
    yield from _wrong_order(result, events)
    if of_ours and not (aborts or gave_up) and _may_send_no_reset(play, result, account):
        yield "reset"


def _needs_reset(play: Play, account: Account, ended: list[Event]) -> bool:
    """Whether the connection was in a state in which an abort sends RST."""
    if not ended:
        return True
    if play.situation.option == "user_timeout":
        return False  # the kernel may have ended the connection before, without RST
    last = ended[-1]
    # In TIME_WAIT the socket is in CLOSE: the peer's FIN changes FIN_WAIT2 to CLOSE.
    has_ended = last.time < play.report.began or (last.old == "FIN_WAIT2" and account.fin)
    return last.old in _NEED_RESET and not has_ended


def _wrong_order(result: CloseResult, events: list[Event]) -> Iterator[str]:
    peers_was_first = ("ESTABLISHED", "CLOSE_WAIT") in [(one.old, one.new) for one in events]
    if result.peer_first is not None and result.peer_first != peers_was_first:
        yield "order"


def _may_send_no_reset(play: Play, result: CloseResult, account: Account) -> bool:
    """Whether nothing justifies an RST of ours: no unread input, and no option."""
    situation = play.situation
    read = 0 if situation.transport else result.drained
    return (
        account.sent <= read
        and situation.unread != "urgent"
        and situation.option not in {"linger 0", "linger2"}
        and situation.shut in {"none", "writing"}
        and situation.holder
        not in {"closer", "sendfile"}  # an RST marks the file as incomplete
        and situation.tls == "none"
        # The buffer of the transport is lost, and an RST reports that.
        and not (situation.transport and situation.wrote == "more")
        and result.outcome not in {CloseOutcome.DRAIN_LIMIT, CloseOutcome.ALREADY_CLOSED}
    )


def _lines(play: Play, events: list[Event]) -> str:
    return "; ".join(
        f"{event.time - play.returned:+.4f} s {event.name} {event.old} {event.new}".rstrip()
        for event in events
    )
