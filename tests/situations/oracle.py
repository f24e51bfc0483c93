"""What must be true of each play. The library's own statements are not evidence."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator

from graceful_close import CloseOutcome, CloseResult

from .axes import INTERNET, REAPERS, SILENT, Situation
from .options import LITTLE_DRAIN, SILENCE, options_of
from .oracle_of_trace import contradictions
from .peers import Account
from .play import Play
from .probe import Report

# How much later than its bound a close may end, in seconds, on a busy machine. A late close is played
# again before it is reported. The exit of an interpreter takes longer.
_MARGIN, _EXIT = 1.0, 8.0
_PIECE = 4096  # of a transport's buffer, which earns it another `timeout`

# A wait may use this much time of the processor. A spin uses all of it. Under coverage the code before
# and after the wait uses more.
_CPU, _CPU_SHARE, _WAIT = 0.05, 0.25, 0.08

_ANSWERS = {  # peers that send FIN after ours
    "reads and closes",
    "reads, uploads, closes",
    "uploads, reads, closes",
    "reads slowly",
    "reads late",
    "drips",
    "script: answers",
    "script: repeats itself",
    "script: is unreachable once",
    "script: requires smaller packets",
    "script: loses our data",
    "script: loses our FIN",
    "script: acknowledges late",
    "script: opens its window later",
    "script: sends FIN with data",
    "script: repeats its data",
}
_ACKNOWLEDGES_NOTHING = {
    *SILENT,
    "acknowledges the unsent",
    "sends FIN and acknowledges nothing",
}
# The peer's kernel counts the bytes that arrived in order; for MPTCP, those of one subflow.
_COUNTED = (*INTERNET, "mapped", "mptcp fallback")

# How a process may end (waitpid(2)).
_ENDS = {"killed": {0, signal.SIGALRM}}

_MAKEFILE = "makefile() object"


def judge(play: Play) -> list[str]:
    """Return the complaints; each begins with the name of its kind and a colon."""
    return list(_complaints(play))


def judge_against(play: Play, plain: Play) -> list[str]:
    """Return a complaint if the plain close has delivered more."""
    if play.complete or not plain.complete:
        return []
    account, situation = play.account, play.situation
    if (
        situation.script in _ACKNOWLEDGES_NOTHING
        and account is not None
        and (account.received >= play.written or play.written > plain.written)
    ):
        # Our FIN is queued behind what is in flight: behind everything, or behind more than the plain
        # close had, because a client's Fast Open takes more or less before the handshake.
        return []
    delivers = situation.until == "delivered" or situation.call == "timed_linger_close"
    if delivers and account is not None and has_all(play, account):
        return []  # as requested; the kernel answers further input with RST
    return [f"worse: {play.account} of {play.written} bytes, and plainly {plain.account}"]


def may_be_compared(situation: Situation) -> bool:
    """Whether the requested close should deliver as much as a plain close."""
    return not (
        situation.aborts
        or situation.bare
        or situation.on_timeout == "abort"
        or not (situation.interrupt == "none" or situation.process_ends)
        # The caller has not sent its FIN yet when its process ends, as requested.
        or (situation.process_ends and situation.peer_first != "no")
        or situation.peer == "floods"  # no bounded close reads all of it
        # The kernel answers input with RST from then on, and the time of the input varies.
        or situation.shut in {"reading", "both"}
        or situation.peer == "has shut reading"
        or situation.script == "closes its window"  # before or after our FIN
        # uvloop aborts the transport at the alert, and the reset of an abort reports what is lost.
        or (situation.tls == "alert" and situation.transport)
        # With other holders or a makefile() object, a plain close() does not end the connection.
        or situation.holder not in {"none", "epoll", "reader", "task"}
        or (situation.driver in {"listener", "socketserver"} and situation.option == "linger 0")
        # A plain close of TLS may read everything, and this caller limits the drain.
        or situation.limit in {"no drain", "little drain"}
        # The timeout also limits the flush of a transport, and this caller has no timeout.
        or (situation.transport and situation.limit == "no time")
        or (situation.transport and situation.wrote == "more" and situation.limit != "none")
        # The buffer of a transport is lost with its process, sooner or later.
        or (situation.transport and situation.wrote == "more" and situation.process_ends)
    )


def _complaints(play: Play) -> Iterator[str]:
    situation, result = play.situation, _decisive(play.report)
    if not play.report.closed or play.report.left > 0:
        yield f"open: closed {play.report.closed}, {play.report.left} descriptors left"
    if play.leaked:
        yield f"leak: {play.leaked}"
    if play.harmed:
        yield f"harmed: {play.harmed}"
    if not play.report.other_is_right:
        yield "harmed: the other connections of close_all()"
    # Without memory a framework reports the MemoryError. Python 3.13 reports that a makefile() object
    # could not flush at the exit.
    own = situation.interrupt == "no memory" or situation.holder == "makefile writer"
    printed = play.printed and not own
    if printed or play.status not in _ENDS.get(situation.interrupt, {0}):
        yield f"process: it ended with {play.status}, and printed {play.printed}"
    # With a timeout, Python's recv() polls a number that may belong to another socket by then.
    # A sender that waits for a handshake is not woken by a plain close() either.
    sleeps_on = situation.mode != "blocking" or situation.unanswered
    if play.report.not_woken and not (play.report.stopped or sleeps_on):
        yield f"not woken: {play.report.not_woken}"
    if play.report.error is not None and not _may_raise(situation, play.report.error):
        yield f"raised: {play.report.error!r}"
    plainly = _returns_nothing(situation)
    if play.report.error is None and result is None and not (play.report.stopped or plainly):
        yield "raised: nothing, and no result was returned"
    if (play.report.stopped or play.report.error) and result is not None:
        yield f"raised: and the result was {result}"
    yield from _false_pair(play.report)
    # asyncio sets a future twice if a transport is aborted during sendfile().
    # It also reports a fatal alert.
    own = situation.holder == "sendfile" or situation.tls == "alert"
    reported = [text for text in play.report.reported if not own]
    reported = [text for text in reported if "MemoryError" not in text]
    if reported:
        yield f"reported: {reported}"
    unexpected = [text for text in play.warned if _MAKEFILE not in text]
    if unexpected:
        yield f"warned: {unexpected}"
    if play.report.seconds > bound(play) + (_EXIT if situation.process_ends else _MARGIN):
        yield f"late: {play.report.seconds:.3f} s, of {bound(play):.3f}"
    if _spins(play):
        yield f"spins: {play.report.cpu:.3f} s of the processor in {play.report.seconds:.3f} s"
    account = play.account
    unsent = play.unsent if situation.holder == "sendfile" else 0
    if (
        account is not None
        and account.end == "FIN"
        and account.received < play.written + unsent
    ):
        # UNIX sockets have no RST, and MPTCP drops data that no subflow has at close().
        reset = situation.tls == "none" and situation.family in (*INTERNET, "mapped")
        # The buffer of a transport is lost with its process.
        lost = situation.process_ends and situation.transport
        if reset and not (account.left or lost) and situation.holder != "closer":
            yield f"cut: {account.received} of {play.written} + {unsent}, and the stream looks whole"
    if result is not None:
        yield from _false_claims(play, result, account or Account(end="FIN"))
        yield from contradictions(play, result, account or Account(end="FIN"))


def _decisive(report: Report) -> CloseResult | None:
    """Return the result of the close that has taken the connection."""
    first, second = report.result, report.second
    if first is None or first.outcome is CloseOutcome.ALREADY_CLOSED:
        return second or first
    return first


def _false_pair(report: Report) -> Iterator[str]:
    """Yield a complaint if two closes have both closed one connection."""
    pair = [report.result, report.second]
    if None not in pair:
        ended = [one for one in pair if one and one.outcome is not CloseOutcome.ALREADY_CLOSED]
        if len(ended) > 1:
            yield f"claim: two closes of one connection: {report.result}, and {report.second}"


def _returns_nothing(situation: Situation) -> bool:
    """Whether the call has no result."""
    if situation.call == "transport":
        return True
    # A listener's socket with two processes is closed plainly by each.
    if situation.driver == "listener" and situation.holder == "child":
        return True
    if situation.driver in {"listener", "socketserver"} and situation.option == "linger 0":
        return True  # the caller has configured an abort
    # The exception of the body propagates, even if the abort fails. A Reaper logs the failure.
    fails = situation.interrupt == "no descriptors" and situation.transport
    return fails and situation.call in {"roll back", "submit"}


def bound(play: Play) -> float:
    """Return the longest time in seconds."""
    situation = play.situation
    if (play.report.stopped and not situation.process_ends) or situation.aborts:
        return 0.05
    timeout: float = options_of(situation)["timeout"]
    if not situation.transport or play.account is None:
        return timeout
    moved = max(play.account.received, play.account.kernel_has or 0) + play.account.sent
    return timeout * (2 + moved / _PIECE)


def _spins(play: Play) -> bool:
    situation = play.situation
    busy = situation.peer in {"floods", "uploads, reads, closes"}
    busy = busy or (situation.holder == "sender" and situation.scripted)  # both in this process
    seconds, cpu = play.report.seconds, play.report.cpu
    # On a busy machine a call lasts longer, and a wait uses no more of the processor.
    wait = min(seconds, bound(play))
    return not busy and seconds > _WAIT and cpu > _CPU + _CPU_SHARE * wait


def _may_raise(situation: Situation, error: BaseException) -> bool:
    """Whether the caller's process lacks what the close needs."""
    if situation.interrupt == "no memory":
        enomem = isinstance(error, OSError) and error.errno == errno.ENOMEM
        return enomem or isinstance(error, MemoryError)
    emfile = isinstance(error, OSError) and error.errno == errno.EMFILE
    return emfile and situation.interrupt == "no descriptors" and situation.transport


def _false_claims(play: Play, result: CloseResult, account: Account) -> Iterator[str]:
    yield from _false_outcome(play, result, account)
    yield from _false_counts(play, result, account)
    yield from _false_order(play, result, account)
    # The shutdown(SHUT_RDWR) of an accepted socket begins the close, before the play does.
    earlier = play.situation.driver == "listener" and play.situation.shut == "both"
    if result.elapsed > play.report.seconds + 0.05 and not earlier:
        yield f"claim: elapsed {result.elapsed}, and it was {play.report.seconds}"


def has_all(play: Play, account: Account) -> bool:
    """Whether the peer or its kernel had everything that was written, and our FIN, at the return."""
    if account.exact is not None:
        return account.exact >= play.written + 2  # our SYN and our FIN are one each
    if account.kernel_has is not None and play.situation.family in _COUNTED:
        if play.situation.tls != "none":
            return account.kernel_has >= play.written  # in TLS records, which are longer
        # If the program has closed, our FIN may have arrived later.
        return account.kernel_has >= play.written + (not account.left)
    if account.left or (account.received >= play.written and account.end == "FIN"):
        return True
    # Our close with unread input resets, and the number of arrived bytes is unknown.
    return play.situation.family == "mptcp" and account.end == "RST"


def _counts(situation: Situation) -> bool:
    """Whether the count of the peer's kernel and `written` have the same unit."""
    return situation.tls == "none" and situation.family in _COUNTED


def _false_outcome(play: Play, result: CloseResult, account: Account) -> Iterator[str]:
    situation, outcome = play.situation, result.outcome
    said = f"claim: {outcome.name}, clean {result.clean}, and the peer {account}"
    if situation.aborts and outcome not in _OF_AN_ABORT:
        yield said
    shut = situation.shut in {"reading", "both"}
    # For these, recv() is the only proof. It proves nothing after SHUT_RD, or if another thread has
    # received the error of the reset, which the kernel reports once.
    alone = situation.holder not in {"reader", "sender"} and not shut
    blind = not alone and situation.family in {"unix", "mptcp", "mptcp fallback"}
    match outcome:
        case CloseOutcome.ABORTED:
            ended = situation.shut in {"writing", "both"} or account.left
            plain = situation.tls == "none" and situation.family in (*INTERNET, "mapped")
            reset = ended or account.end == "RST" or not plain
            if not situation.aborts or not (reset or situation.bare):
                yield said
            return
        case CloseOutcome.DELIVERED:
            asked = situation.until == "delivered" or situation.call == "timed_linger_close"
            if not asked or not has_all(play, account):
                yield said
        case CloseOutcome.PEER_CLOSED:
            if not (account.fin or blind):
                yield said
        case CloseOutcome.PEER_RESET:
            # A UNIX socket that the peer has shut for reading reports EPIPE.
            broken = situation.family == "unix" and situation.peer == "has shut reading"
            if not (account.rst or shut or broken):
                yield said
        case CloseOutcome.NOT_CONNECTED:
            over = account.rst or shut or (situation.shut != "none" and account.fin)
            if not (situation.bare or over or situation.unanswered):
                yield said
        case CloseOutcome.ALREADY_CLOSED:
            # At the end of the stream, after SHUT_RD too, and at an error, a transport closes itself.
            ended = situation.transport and (
                shut
                or account.rst
                or account.fin
                or account.sent_close_notify
                or situation.asks_for_errors
            )
            failed = situation.transport and situation.tls == "alert"
            others = situation.holder == "closer"
            if not (ended or failed or situation.origin == "closed" or others):
                yield said
        case CloseOutcome.TIMED_OUT:
            timeout: float = options_of(situation)["timeout"]
            # Without a thread, a Reaper closes a non-blocking socket without waiting.
            threadless = situation.driver in REAPERS and situation.interrupt == "no memory"
            if threadless and situation.mode == "non-blocking":
                timeout = 0.0
            if result.error is None and play.report.seconds < timeout - 0.01:
                yield f"{said} after {play.report.seconds} s"
        case CloseOutcome.IDLE_TIMED_OUT:
            if situation.limit != "little silence" or play.report.seconds < SILENCE - 0.01:
                yield f"{said} after {play.report.seconds} s"
        case CloseOutcome.DRAIN_LIMIT:
            limit = {"no drain": 0, "little drain": LITTLE_DRAIN}.get(situation.limit)
            if limit is None or result.drained <= limit:
                yield f"{said}, {result.drained} drained"
    whole = blind or has_all(play, account)
    # The bytes of a file that asyncio has read are discarded by an abort, too.
    whole = whole or (situation.aborts and situation.holder == "sendfile")
    unsent = play.unsent and not situation.aborts  # an abort discards it, as requested
    if result.clean and not situation.bare and (unsent or not whole):
        yield f"{said}, {play.unsent} bytes unsent"


_OF_AN_ABORT = {
    CloseOutcome.ABORTED,
    CloseOutcome.NOT_CONNECTED,
    CloseOutcome.PEER_RESET,
    CloseOutcome.ALREADY_CLOSED,
}


def _false_counts(play: Play, result: CloseResult, account: Account) -> Iterator[str]:
    situation = play.situation
    if situation.tls != "none":
        return
    urgent = situation.unread == "urgent"  # one byte, which may be in the stream or not
    if result.drained > account.sent + urgent:
        yield f"drained: {result.drained} of {account.sent}"
    sole = (
        situation.holder not in {"reader", "closer", "task", "sendfile", "second close"}
        and not situation.transport
    )
    if (
        sole
        and result.outcome is CloseOutcome.PEER_CLOSED
        and situation.shut in {"none", "writing"}
        and not urgent
        and result.drained != account.sent
    ):
        yield f"drained: {result.drained} of {account.sent}, to the peer's FIN"
    # asyncio may have read a part of a file that it has not sent.
    if result.unacked is None or situation.bare or situation.holder == "sendfile":
        return
    if account.exact is not None:
        lacks = play.written + 1 - max(account.exact, 1)
    elif _counts(situation) and account.kernel_has is not None:
        lacks = play.written - account.kernel_has
    else:
        return
    # Without our FIN a sender may write after the count.
    writes_on = situation.holder == "sender" and account.end != "FIN"
    if result.unacked < lacks and not writes_on:
        yield f"unacked: {result.unacked}, and the peer lacks {lacks}: {account}"
    # After a reset, by either side, acknowledgements do not change the count any more.
    shut = situation.shut in {"reading", "both"}  # the kernel answers input with RST
    fresh = account.exact is not None and account.end != "RST" and not shut
    if fresh and result.unacked > lacks + 1 + account.lately:
        yield f"unacked: {result.unacked}, and the peer lacks only {lacks}: {account}"


def _false_order(play: Play, result: CloseResult, account: Account) -> Iterator[str]:
    situation = play.situation
    first = result.peer_first
    shut = situation.shut in {"writing", "both"}
    if first is not None and (situation.bare or result.outcome is CloseOutcome.ALREADY_CLOSED):
        yield f"order: peer_first {first}, and there was no connection"
    elif first and not account.fin:
        yield f"order: peer_first, and it sent no FIN: {account}"
    elif first and (shut or (situation.peer in _ANSWERS and not account.fin_before)):
        yield f"order: peer_first, and it answered ours: {account}"
    elif first is False and account.fin_before and not shut:
        yield f"order: not peer_first, and its FIN was there: {account}"
    if situation.tls == "none":
        if result.notified is not None or result.peer_notified is not None:
            yield f"notified: {result.notified}, {result.peer_notified}, without TLS"
        return
    whole = account.end == "FIN" and not (account.failure or account.left)
    whole = whole and situation.on_timeout != "abort"
    if result.notified and whole and not account.got_close_notify:
        yield f"notified: true, and the peer got no close_notify: {account}"
    if (
        result.notified is False
        and account.got_close_notify
        and result.outcome is CloseOutcome.PEER_CLOSED
    ):
        yield f"notified: false, and the peer got a close_notify: {account}"
    if result.peer_notified is False and account.sent_close_notify:
        yield f"notified: not peer_notified, and the peer sent a close_notify: {account}"
    if result.peer_notified and not account.sent_close_notify:
        yield f"notified: peer_notified, and the peer sent no close_notify: {account}"
