"""What a reset cost. Only what is proven is said; all else "may have cost a reply"."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .obituaries import Obituary


class Cost(enum.Enum):
    """Of one reset."""

    LOST = "lost"
    MAY = "may have been lost"
    NONE = "not lost"
    NO_REPLY = "no reply"  # it came from the side that had connected


class Kind(enum.Enum):
    """How the process brought the reset about."""

    UNREAD = "closed over unread input"
    DATA = "data came after the close"
    ABORT = "aborted (SO_LINGER 0, or the like)"
    LINGER2 = "closed with TCP_LINGER2 below 0"
    MEMORY = "too many closed connections in flight"
    SILENT = "the peer no longer answered"
    CLOSED = "closed with a reset"
    OTHER = "other"


_KINDS = {
    "TCP_ABORT_ON_CLOSE": Kind.UNREAD,
    "TCP_ABORT_ON_DATA": Kind.DATA,
    "TCP_TIMEWAIT_SOCKET": Kind.DATA,  # the same, when the peer had acknowledged our FIN
    "TCP_ABORT_ON_LINGER": Kind.LINGER2,
    "TCP_ABORT_ON_MEMORY": Kind.MEMORY,
    "TCP_KEEPALIVE_TIMEOUT": Kind.SILENT,
    "TCP_DISCONNECT_WITH_DATA": Kind.ABORT,
}

# States in which nobody can have written: the connection is not established yet. (In SYN_RECV,
# with TCP Fast Open, somebody can.)
_NOT_YET = ("TCP_LISTEN", "TCP_SYN_SENT", "TCP_NEW_SYN_RECV")

# The most that TLS's close_notify takes up, with a cipher of CBC mode. So few bytes at the end
# may be that, and not of a reply.
_CLOSE_NOTIFY = 64


class Reset(NamedTuple):
    """What the kernel said of it.

    Attributes:
        reason: Its symbol; "" before Linux 6.10, and NOT_SPECIFIED where a process sent it
            before 6.12.
        state: Of the connection, its symbol.
        by_process: Whether a process sent it, by a system call of its own. If not, a packet or
            a timer did.
    """

    reason: str
    state: str
    by_process: bool

    @property
    def kind(self) -> Kind:
        """How it came about."""
        if self.reason == "TCP_STATE":  # tcp_disconnect(), or a timer in FIN_WAIT2
            return Kind.ABORT if self.by_process else Kind.SILENT
        if self.by_process and self.reason in ("", "NOT_SPECIFIED"):
            return Kind.CLOSED
        if not self.reason:
            return Kind.DATA
        return _KINDS.get(self.reason, Kind.OTHER)

    @property
    def tells_what_was_sent(self) -> bool:
        """Whether the socket, when it ended, still knew: tcp_disconnect() forgets it."""
        return self.kind not in (Kind.ABORT, Kind.CLOSED)

    @property
    def fin_was_acknowledged(self) -> bool:
        """Whether the peer's kernel had everything, our FIN too: else it would not be there."""
        return self.state == "TCP_TIME_WAIT"


class Judgement(NamedTuple):
    """The cost, and what proves it, or why nothing does: a phrase."""

    cost: Cost
    because: str


def judge(
    reset: Reset,
    own: Obituary | None,
    peer: Obituary | None,
    *,
    peer_was_gone: bool = False,
) -> Judgement:
    """What it cost.

    Args:
        reset: What the kernel said.
        own: Of the socket that sent it; None: not known.
        peer: Of the other end, where that is on this machine; None: not known.
        peer_was_gone: Whether that had ended before the reset was sent.
    """
    if reset.state in _NOT_YET:
        return Judgement(Cost.NONE, "the connection was not established yet")
    if reset.reason.startswith("MPTCP_"):
        return Judgement(Cost.MAY, "it ended a subflow, which need not be the only one")
    unsent = written = None
    if own is not None and reset.tells_what_was_sent:
        # Where data comes after a close, a FIN is among what has been written.
        fin = 1 if reset.kind is Kind.DATA and own.not_sent else 0
        unsent = own.not_sent - fin
        written = own.sent + unsent
        if written == 0:
            return Judgement(Cost.NONE, "nothing had been written")
    if peer is not None:
        if peer_was_gone:
            return Judgement(
                Cost.NONE, "the peer, which is on this machine, had closed before the reset"
            )
        return _by_the_peer(reset, peer, written)
    if own is None or unsent is None or written is None:
        if reset.fin_was_acknowledged:
            return _ACKNOWLEDGED
        return Judgement(Cost.MAY, "what had been sent is not known")
    # One byte may be a FIN: a process can have sent that before, by shutdown(SHUT_WR).
    if unsent >= _CLOSE_NOTIFY or (unsent == written and unsent > 1):
        return Judgement(Cost.LOST, f"{unsent:,} bytes were never sent")
    if own.acknowledged < written:
        return Judgement(
            Cost.MAY, f"{written - own.acknowledged:,} bytes were not acknowledged"
        )
    return _ACKNOWLEDGED


_ACKNOWLEDGED = Judgement(Cost.MAY, "all was acknowledged, but the peer need not have read it")


def _by_the_peer(reset: Reset, peer: Obituary, written: int | None) -> Judgement:
    """The peer is on this machine, and its socket has ended too: what did its process read?"""
    # A FIN that came is among what was received, and, until it was read, among the unread. Where
    # it is not known whether one came, it did: that makes less of what is lost.
    exact = written is not None or reset.fin_was_acknowledged
    fin = 1 if written is None or peer.received > written else 0
    unread, received = max(peer.unread - fin, 0), peer.received - fin
    lost = unread + max((written or 0) - received, 0)
    if lost and (lost >= _CLOSE_NOTIFY or unread >= received):
        least = "" if exact else "at least "
        return Judgement(
            Cost.LOST, f"{least}{lost:,} bytes were never read by the peer, on this machine"
        )
    if lost:
        return Judgement(
            Cost.MAY, f"{lost:,} bytes were never read: fewer than close_notify may have"
        )
    if not exact:
        return Judgement(Cost.MAY, "what had been sent is not known")
    return Judgement(Cost.NONE, "the peer, which is on this machine, has read all of it")
