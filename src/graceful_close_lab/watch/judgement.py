"""The judgement of a reset. Only proven losses are "lost"; the others "may have been lost"."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .socket_notices import SocketNotice


class Cost(enum.Enum):
    """The cost of one reset."""

    LOST = "lost"
    MAY = "may have been lost"
    NONE = "not lost"
    NO_REPLY = "no reply"  # the side that had connected sent it


class Kind(enum.Enum):
    """How the process caused the reset."""

    UNREAD = "closed with unread input"
    DATA = "data arrived after the close"
    ABORT = "aborted (SO_LINGER 0, or similar)"
    LINGER2 = "closed with TCP_LINGER2 below 0"
    MEMORY = "too many closed connections pending"
    SILENT = "the peer no longer responded"
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

# States in which nothing can have been written, because the connection is not established yet.
# (In SYN_RECV, with TCP Fast Open, data can have been written.)
_NOT_YET = ("TCP_LISTEN", "TCP_SYN_SENT", "TCP_NEW_SYN_RECV")

# The longest close_notify of TLS, with a cipher in CBC mode. Fewer bytes at the end may be a
# close_notify, and not a part of a reply.
_CLOSE_NOTIFY = 64


class Reset(NamedTuple):
    """The kernel's report of a reset.

    Attributes:
        reason: The symbol of the reason; "" before Linux 6.10, and NOT_SPECIFIED for a reset by
            a process before 6.12.
        state: The symbol of the connection's state.
        by_process: Whether a system call of a process caused the reset. If not, a packet or a
            timer caused it.
    """

    reason: str
    state: str
    by_process: bool

    @property
    def kind(self) -> Kind:
        """How the reset was caused."""
        if self.reason == "TCP_STATE":  # tcp_disconnect(), or a timer in FIN_WAIT2
            return Kind.ABORT if self.by_process else Kind.SILENT
        if self.by_process and self.reason in ("", "NOT_SPECIFIED"):
            return Kind.CLOSED
        if not self.reason:
            return Kind.DATA
        return _KINDS.get(self.reason, Kind.OTHER)

    @property
    def counts_are_kept(self) -> bool:
        """Whether the ended socket still had its counts, which tcp_disconnect() clears."""
        return self.kind not in (Kind.ABORT, Kind.CLOSED)

    @property
    def fin_was_acknowledged(self) -> bool:
        """Whether the peer's kernel had acknowledged everything, including our FIN."""
        return self.state == "TCP_TIME_WAIT"


class Judgement(NamedTuple):
    """The cost, and a phrase with the proof, or the reason why there is no proof."""

    cost: Cost
    because: str


def judge(
    reset: Reset,
    own: SocketNotice | None,
    peer: SocketNotice | None,
    *,
    peer_was_gone: bool = False,
) -> Judgement:
    """Judge what a reset cost.

    Args:
        reset: The kernel's report.
        own: The notice of the socket that sent the reset; None: not known.
        peer: The notice of the other end, if it is on this machine; None: not known.
        peer_was_gone: Whether the other end had ended before the reset was sent.
    """
    if reset.state in _NOT_YET:
        return Judgement(Cost.NONE, "the connection was not established yet")
    if reset.reason.startswith("MPTCP_"):
        return Judgement(Cost.MAY, "it ended a subflow, and there may be others")
    unsent = written = None
    if own is not None and reset.counts_are_kept:
        # If data arrives after a close, the unsent bytes include a FIN.
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
        return _judge_by_peer(reset, peer, written)
    if own is None or unsent is None or written is None:
        if reset.fin_was_acknowledged:
            return _ACKNOWLEDGED
        return Judgement(Cost.MAY, "it is not known what had been sent")
    # One byte may be a FIN, which shutdown(SHUT_WR) may have queued before.
    if unsent >= _CLOSE_NOTIFY or (unsent == written and unsent > 1):
        return Judgement(Cost.LOST, f"{unsent:,} bytes were never sent")
    if own.acknowledged < written:
        return Judgement(
            Cost.MAY, f"{written - own.acknowledged:,} bytes were not acknowledged"
        )
    return _ACKNOWLEDGED


_ACKNOWLEDGED = Judgement(
    Cost.MAY, "everything was acknowledged, but the peer may not have read it"
)


def _judge_by_peer(reset: Reset, peer: SocketNotice, written: int | None) -> Judgement:
    """Judge by what the peer's process read: the peer is on this machine, and has ended."""
    # A received FIN counts as received, and as unread until it is read. If it is not known
    # whether a FIN was received, one is assumed, because that makes the loss smaller.
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
            Cost.MAY, f"{lost:,} bytes were never read, which may be a close_notify"
        )
    if not exact:
        return Judgement(Cost.MAY, "it is not known what had been sent")
    return Judgement(Cost.NONE, "the peer, which is on this machine, has read everything")
