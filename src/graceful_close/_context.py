"""`with closing(sock)`: commit on success, reset on error."""

from __future__ import annotations

from ._checks import require_stream
from ._linger import LingerPolicy
from ._result import CloseOutcome, CloseResult
from ._sync import abort_on, close_on
from ._terms import Terms

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from types import TracebackType


class closing:
    """Commit and rollback for a stream.

    When the body ends, `graceful_close`: a peer that sees the end of the stream knows that the
    message is whole. When the body raises, `abortive_close`: a peer that sees a reset knows
    that it is not. Either way the socket is closed when the block is left, and what the body
    raised goes on, whatever the closing met.

        with closing(listener.accept()[0], timeout=10) as sock:
            sock.sendall(reply)

    Args:
        sock: A stream socket.
        timeout, idle_timeout, drain_limit, until, on_timeout: For `graceful_close`.

    Attributes:
        result: How the connection ended; None until the block is left.

    Raises:
        TypeError, ValueError: As `graceful_close`, when it is made, not when it is left.
    """

    result: CloseResult | None

    def __init__(
        self,
        sock: socket.socket,
        *,
        timeout: float = 5.0,
        idle_timeout: float | None = None,
        drain_limit: int | None = None,
        until: CloseOutcome = CloseOutcome.PEER_CLOSED,
        on_timeout: LingerPolicy = LingerPolicy.BACKGROUND,
    ) -> None:
        self._terms = Terms(timeout, idle_timeout, drain_limit, until, on_timeout)
        require_stream(sock)
        self._sock = sock
        self.result = None

    def __enter__(self) -> socket.socket:
        return self._sock

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.result = close_on(self._terms, self._sock)
        else:
            self.result = abort_on(self._sock)
