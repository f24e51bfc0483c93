"""Close TCP connections without losing data, and report how each one ended.

    sock.sendall(reply)
    result = graceful_close(sock, timeout=5)

`close_all` closes many sockets at the same time, a `Reaper` closes them in a background thread, and
`closing` is a context manager. The modules `graceful_close.asyncio`, `.trio` and `.anyio` have the
same functions for event loops. For servers there are `GracefulListener` and the modules
`graceful_close.socketserver`, `.gunicorn`, `.uvicorn`, `.waitress`, `.werkzeug`, `.asgi` and `.wsgi`.
"""

from ._acks import unacked_bytes
from ._blocking import abortive_close, closing, graceful_close, timed_linger_close
from ._close_all import close_all
from ._linger import Linger, LingerPolicy, get_linger, set_linger
from ._listener import GracefulListener
from ._reaper import Reaper
from ._result import CloseOutcome, CloseResult, UncleanCloseError
from ._signals import exit_at_sigterm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._option_types import CloseOptions, ReaperOptions

__all__ = [
    "CloseOptions",
    "CloseOutcome",
    "CloseResult",
    "GracefulListener",
    "Linger",
    "LingerPolicy",
    "Reaper",
    "ReaperOptions",
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


def __getattr__(name: str) -> object:
    if name in ("CloseOptions", "ReaperOptions"):
        from . import _option_types  # loads typing, which nothing else here does

        return getattr(_option_types, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
