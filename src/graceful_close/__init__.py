"""End TCP connections right, and tell the truth about how they ended."""

from ._acks import unacked_bytes
from ._blocking import abortive_close, closing, graceful_close, timed_linger_close
from ._close_all import close_all
from ._linger import Linger, LingerPolicy, get_linger, set_linger
from ._listener import GracefulListener
from ._reaper import Reaper
from ._result import CloseOutcome, CloseResult, UncleanCloseError
from ._signals import exit_at_sigterm

__all__ = [
    "CloseOutcome",
    "CloseResult",
    "GracefulListener",
    "Linger",
    "LingerPolicy",
    "Reaper",
    "UncleanCloseError",
    "abortive_close",
    "close_all",
    "closing",
    "exit_at_sigterm",
    "get_linger",
    "graceful_close",
    "set_linger",
    "timed_linger_close",
    "unacked_bytes",
]
