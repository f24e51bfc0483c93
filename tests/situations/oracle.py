"""What must be true of a play, whatever the situation: judged by nothing that the library says of itself."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator

from graceful_close import CloseOutcome, CloseResult

from .axes import INTERNET, Situation
from .options import LITTLE_DRAIN, SILENCE, options_of
from .oracle_of_trace import contradictions
from .peers import Account
from .play import Play

# How much later than its bound a close may end: the machine has others to serve. What is late is
# played again, before it is said. The exit of an interpreter takes longer on a busy machine.
_MARGIN, _EXIT = 1.0, 3.0
_PIECE = 4096  # of a transport's buffer, which earns it another `timeout`

# A wait that costs more of the processor than this is none: a spin takes all of it, and what comes
# before and after the wait costs more under coverage.
_CPU, _CPU_SHARE, _WAIT = 0.05, 0.25, 0.08

_ANSWERS = {  # which send FIN once they have seen ours
    "reads and closes",
    "reads, uploads, closes",
    "uploads, reads, closes",
    "reads slowly",
    "reads late",
    "drips",
    "script: answers",
    "script: repeats itself",
}
_ACKNOWLEDGES_NOTHING = {
    "is silent",
    "acknowledges the unsent",
    "sends FIN and acknowledges nothing",
    "is unreachable",
    "has no port",
    "is prohibited",
}
# Whose kernel counts what has come in order; of MPTCP it counts one subflow.
_COUNTED = (*INTERNET, "mapped", "mptcp fallback")

# How a process may end (waitpid(2)).
_ENDS = {"killed": {0, signal.SIGALRM}}

_MAKEFILE = "makefile() object"


def judge(play: Play) -> list[str]:
    """What is wrong, each beginning with the name of its kind and a colon."""
    return list(_complaints(play))


def judge_against(play: Play, plain: Play) -> list[str]:
    """What ours has lost that the plain close has delivered."""
    if play.complete or not plain.complete:
        return []
    account, situation = play.account, play.situation
    # A FIN that comes late waits behind what is sent again and again.
    late = situation.script in _ACKNOWLEDGES_NOTHING
    if late and account is not None and account.received >= play.written:
        return []
    delivers = situation.until == "delivered" or situation.call == "timed_linger_close"
    if delivers and account is not None and has_all(play, account):
        return []  # as asked; what the peer goes on sending is answered with RST then
    return [f"worse: {play.account} of {play.written} bytes, and plainly {plain.account}"]


def may_be_compared(situation: Situation) -> bool:
    """Whether the caller asked for nothing that a plain close does not do."""
    return not (
        situation.aborts
        or situation.bare
        or situation.on_timeout == "abort"
        or not (situation.interrupt == "none" or situation.ends)
        or situation.peer == "floods"  # which no bounded close reads to its end
        # Input is answered with RST from then on, whoever closes; it may come sooner or later.
        or situation.shut in {"reading", "both"}
        or situation.peer == "has shut reading"
        or situation.script == "closes its window"  # before our FIN or after it, as it happens
        # Where others have it, or a makefile() object, a plain close() does not end it.
        or situation.holder not in {"nobody", "epoll", "reader", "task"}
        or (situation.driver == "listener" and situation.option == "linger 0")
        # A plain close of TLS may read all there is; but this caller wants little read.
        or situation.limit in {"no drain", "little drain"}
        # Silence bounds what a transport still holds, and this caller wants none.
        or (situation.transport and situation.limit == "no time")
    )


def _complaints(play: Play) -> Iterator[str]:
    situation, result = play.situation, play.report.result
    if not play.report.closed or play.report.left > 0:
        yield f"open: closed {play.report.closed}, {play.report.left} descriptors left"
    if play.leaked:
        yield f"leak: {play.leaked}"
    if play.hurt:
        yield f"hurt: {play.hurt}"
    if not play.report.well:
        yield "hurt: the other of close_all()"
    # Without memory a framework reports what it lacks.
    printed = play.printed and situation.interrupt != "no memory"
    if printed or play.status not in _ENDS.get(situation.interrupt, {0}):
        yield f"process: it ended with {play.status}, and printed {play.printed}"
    # With a timeout a reader polls a number, which may be a stranger's by then: Python's own race.
    if play.report.asleep and not play.report.stopped and situation.mode == "blocking":
        yield f"asleep: {play.report.asleep}"
    if play.report.error is not None and not _may_raise(situation, play.report.error):
        yield f"raised: {play.report.error!r}"
    # A listener's socket that two processes have is closed plainly by each, and aborts if told so.
    plainly = situation.driver == "listener" and (
        situation.holder == "child" or situation.option == "linger 0"
    )
    # What the body raised goes on, whatever its roll back met.
    plainly = plainly or (
        situation.call == "roll back"
        and situation.interrupt == "no descriptors"
        and situation.transport
    )
    if play.report.error is None and result is None and not (play.report.stopped or plainly):
        yield "raised: nothing, and nothing was returned"
    if (play.report.stopped or play.report.error) and result is not None:
        yield f"raised: and returned {result}"
    # asyncio's own: a transport that is aborted under sendfile() sets a future twice.
    reported = [text for text in play.report.reported if situation.holder != "sendfile"]
    reported = [text for text in reported if "MemoryError" not in text]
    if reported:
        yield f"reported: {reported}"
    unexpected = [text for text in play.warned if _MAKEFILE not in text]
    if unexpected:
        yield f"warned: {unexpected}"
    if play.report.seconds > bound(play) + (_EXIT if situation.ends else _MARGIN):
        yield f"late: {play.report.seconds:.3f} s, of {bound(play):.3f}"
    if _spins(play):
        yield f"spins: {play.report.cpu:.3f} s of the processor in {play.report.seconds:.3f} s"
    account = play.account
    unsent = play.kept if situation.holder == "sendfile" else 0
    if (
        account is not None
        and account.end == "FIN"
        and account.received < play.written + unsent
    ):
        # UNIX sockets have no RST to tell it by, and a close() of MPTCP's forgets what no subflow has.
        told = situation.tls == "none" and situation.family in (*INTERNET, "mapped")
        # What a transport still holds is lost with its process.
        lost = situation.ends and situation.transport
        if told and not (account.left or lost) and situation.holder != "closer":
            yield f"cut: {account.received} of {play.written} + {unsent}, and the stream looks whole"
    if result is not None:
        yield from _false_claims(play, result, account or Account(end="FIN"))
        yield from contradictions(play, result, account or Account(end="FIN"))


def bound(play: Play) -> float:
    """Seconds within which it must end."""
    situation = play.situation
    if (play.report.stopped and not situation.ends) or situation.aborts:
        return 0.05
    timeout: float = options_of(situation)["timeout"]
    if not situation.transport or play.account is None:
        return timeout
    moved = max(play.account.received, play.account.kernel_has or 0) + play.account.sent
    return timeout * (2 + moved / _PIECE)


def _spins(play: Play) -> bool:
    busy = play.situation.peer in {"floods", "uploads, reads, closes"}
    return (
        not busy
        and play.report.seconds > _WAIT
        and play.report.cpu > _CPU + _CPU_SHARE * play.report.seconds
    )


def _may_raise(situation: Situation, error: BaseException) -> bool:
    """What the caller's process lacks; it is closed, or reset where a transport has it."""
    if situation.interrupt == "no memory":
        enomem = isinstance(error, OSError) and error.errno == errno.ENOMEM
        return enomem or isinstance(error, MemoryError)
    emfile = isinstance(error, OSError) and error.errno == errno.EMFILE
    return emfile and situation.interrupt == "no descriptors" and situation.transport


def _false_claims(play: Play, result: CloseResult, account: Account) -> Iterator[str]:
    yield from _false_outcome(play, result, account)
    yield from _false_counts(play, result, account)
    yield from _false_order(play, result, account)
    if result.elapsed > play.report.seconds + 0.05:
        yield f"claim: elapsed {result.elapsed}, and it was {play.report.seconds}"


def has_all(play: Play, account: Account) -> bool:
    """Whether the peer, or its kernel, had all that was written, and our FIN, by the return."""
    if account.exact is not None:
        return account.exact >= play.written + 2  # our SYN and our FIN are one each
    if account.kernel_has is not None and play.situation.family in _COUNTED:
        if play.situation.tls != "none":
            return account.kernel_has >= play.written  # in records, which are longer
        # The kernel of a program that has left may have seen our FIN since.
        return account.kernel_has >= play.written + (not account.left)
    if account.left or (account.received >= play.written and account.end == "FIN"):
        return True
    # A close of ours over input resets, and what had arrived by then is not to be known.
    return play.situation.family == "mptcp" and account.end == "RST"


def _counts(situation: Situation) -> bool:
    """Whether the peer's kernel counts what is counted as written."""
    return situation.tls == "none" and situation.family in _COUNTED


def _false_outcome(play: Play, result: CloseResult, account: Account) -> Iterator[str]:
    situation, outcome = play.situation, result.outcome
    said = f"claim: {outcome.name}, clean {result.clean}, and the peer {account}"
    if situation.aborts and outcome not in _OF_AN_ABORT:
        yield said
    shut = situation.shut in {"reading", "both"}
    # For these recv() is all the proof there is: after SHUT_RD it is none, nor is it where another
    # reader may have been told of a reset, which is told once.
    alone = situation.holder != "reader" and not shut
    blind = not alone and situation.family in {"unix", "mptcp", "mptcp fallback"}
    match outcome:
        case CloseOutcome.ABORTED:
            ended = situation.shut in {"writing", "both"} or account.left
            plain = situation.tls == "none" and situation.family in (*INTERNET, "mapped")
            told = ended or account.end == "RST" or not plain
            if not situation.aborts or not (told or situation.bare):
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
            if not (account.rst or shut):
                yield said
        case CloseOutcome.NOT_CONNECTED:
            over = account.rst or shut or (situation.shut != "none" and account.fin)
            if not (situation.bare or over):
                yield said
        case CloseOutcome.ALREADY_CLOSED:
            ended = situation.transport and (account.rst or account.fin or account.tells)
            if not (ended or situation.origin == "closed" or situation.holder == "closer"):
                yield said
        case CloseOutcome.TIMED_OUT:
            timeout: float = options_of(situation)["timeout"]
            # Without a thread, a Reaper closes a non-blocking socket at once.
            threadless = situation.driver == "Reaper" and situation.interrupt == "no memory"
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
    kept = play.kept and not situation.aborts  # which throws that away, as asked
    if result.clean and not situation.bare and (kept or not whole):
        yield f"{said}, {play.kept} kept back"


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
    urgent = situation.unread == "urgent"  # a byte that is in the stream, or is not
    if result.drained > account.sent + urgent:
        yield f"drained: {result.drained} of {account.sent}"
    sole = (
        situation.holder not in {"reader", "closer", "task", "sendfile"}
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
    if result.unacked is None or situation.bare:
        return
    if account.exact is not None:
        lacks = play.written + 1 - max(account.exact, 1)
    elif _counts(situation) and account.kernel_has is not None:
        lacks = play.written - account.kernel_has
    else:
        return
    if result.unacked < lacks:
        yield f"unacked: {result.unacked}, and the peer lacks {lacks}: {account}"
    # What is acknowledged to one that has reset does not count any more.
    fresh = account.exact is not None and account.end != "RST"
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
    if result.notified and whole and not account.told:
        yield f"notified: and the peer was not told: {account}"
    if result.notified is False and account.told and result.outcome is CloseOutcome.PEER_CLOSED:
        yield f"notified: not, and the peer was told: {account}"
    if result.peer_notified and not account.tells:
        yield f"notified: by a peer that says nothing: {account}"
