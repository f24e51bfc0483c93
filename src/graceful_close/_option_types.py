"""The keyword options as types, for programs that pass them on.

A module of its own, which is loaded when one of them is asked for at run time: `typing` takes
longer to load than the rest of `graceful_close`.
"""

from __future__ import annotations

from collections.abc import Callable  # noqa: TC003 (get_type_hints() looks it up)
from typing import Literal, TypedDict

from ._linger import LingerPolicy
from ._result import CloseOutcome, CloseResult

Until = Literal[CloseOutcome.PEER_CLOSED, CloseOutcome.DELIVERED]
OnTimeout = Literal[LingerPolicy.BACKGROUND, LingerPolicy.ABORT]


class CloseOptions(TypedDict, total=False):
    """The keyword options of every graceful close; see `graceful_close` for each of them.

        from typing import Unpack  # typing_extensions before Python 3.12

        def refuse(sock: socket.socket, **options: Unpack[CloseOptions]) -> CloseResult:
            sock.sendall(REFUSAL)
            return graceful_close(sock, **options)

    Every key is optional.

    .. versionadded:: 0.2.0
    """

    timeout: float
    idle_timeout: float | None
    drain_limit: int | None
    until: Until
    on_timeout: OnTimeout
    peer_first: float


class ReaperOptions(CloseOptions, total=False):
    """The keyword options of `Reaper`, which `GracefulListener` accepts, too.

        def listen(port: int, **options: Unpack[ReaperOptions]) -> GracefulListener:
            return GracefulListener(("127.0.0.1", port), **options)

    Every key is optional.

    .. versionadded:: 0.2.0
    """

    max_sockets: int | None
    on_overflow: OnTimeout
    on_close: Callable[[CloseResult], object] | None
