"""The Reapers of the event loops: closes that no task awaits."""

from __future__ import annotations

from functools import partial
from typing import Generic, TypeVar

from ._async import TaskClose
from ._options import REAPER_OPTIONS, ReaperSettings, require_known
from ._result import CloseOutcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType
    from typing import Any, Self

    from typing_extensions import Unpack

    from ._options import OnTimeout, ReaperOptions
    from ._result import CloseResult

    Close = Callable[[TaskClose], Coroutine[Any, Any, CloseResult]]
    Start = Callable[[Callable[[], Coroutine[Any, Any, None]]], object]

S = TypeVar("S")


class AsyncReaper(Generic[S]):
    """The base class of each event loop's `Reaper`: a group of tasks, one for each close.

    Each close is a task, so that it can flush and can be cancelled. The oldest close makes room for the
    newest, as in the Reaper that has a thread.
    """

    _group: AbstractAsyncContextManager[Any]

    def __init__(self, **options: Unpack[ReaperOptions]) -> None:
        require_known("Reaper", options, REAPER_OPTIONS)
        self._settings = ReaperSettings(**options)
        self._start: Start | None = None
        # Oldest first. The streams are kept, because asyncio's closes itself when it is collected.
        self._pending: dict[TaskClose, S] = {}
        self._counts = dict.fromkeys(CloseOutcome, 0)
        self._overflowed = 0

    def submit(self, stream: S) -> None:
        """Close a stream gracefully, in a task of its own, without waiting for it.

        The close begins in the next turn of the event loop.

        Args:
            stream: As for `graceful_close`.

        Raises:
            TypeError, NotImplementedError: As for `graceful_close`.
            RuntimeError: The Reaper is not open: before, or after, its `async with` block. Or the
                stream belongs to another event loop.
        """
        if self._start is None:
            raise RuntimeError(
                f"the Reaper is not open, and cannot take {stream!r}: submit() works inside the "
                "Reaper's `async with` block"
            )
        run, peer = self._prepare(stream)
        reports = self._settings.on_close is not None
        clock = self._clock()
        close = TaskClose(
            self._settings.options, clock(), peer=peer() if reports else None, clock=clock
        )
        self._pending[close] = stream
        self._start(partial(self._run, close, run))
        if len(self._pending) > self._settings.max_sockets:
            oldest = next(iter(self._pending))
            del self._pending[oldest]
            self._overflowed += 1
            self._expire(oldest, self._settings.on_overflow)

    async def _run(self, close: TaskClose, run: Close) -> None:
        try:
            result = await run(close)
            self._counts[result.outcome] += 1
            if self._settings.on_close is not None:
                self._settings.on_close(result)
        except Exception:  # noqa: BLE001 (the other closes of the group continue)
            _log_failure()
        finally:
            self._pending.pop(close, None)

    def stats(self) -> dict[CloseOutcome, int]:
        """Return the number of connections by outcome; every outcome is a key."""
        return dict(self._counts)

    @property
    def overflowed(self) -> int:
        """The number of connections that were closed early to make room for others."""
        return self._overflowed

    def __len__(self) -> int:
        """Return the number of pending connections."""
        return len(self._pending)

    def __bool__(self) -> bool:
        return True  # an idle Reaper has the length 0

    async def __aenter__(self) -> Self:
        self._group = self._new_group()
        self._start = self._start_in(await self._group.__aenter__())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Finish the pending closes. On cancellation close everything immediately."""
        self._start = None
        if isinstance(error, Exception):
            await self._group.__aexit__(None, None, None)
        else:
            await self._group.__aexit__(kind, error, traceback)

    # --- what differs between event loops ---

    def _prepare(self, stream: S) -> tuple[Close, Callable[[], object]]:
        """How to close a stream, and how to ask for the peer's address."""
        raise NotImplementedError

    def _clock(self) -> Callable[[], float]:
        """The clock of the event loop's waits."""
        raise NotImplementedError

    def _new_group(self) -> AbstractAsyncContextManager[Any]:
        """A group of tasks, which waits at its end, and cancels its tasks if it is cancelled."""
        raise NotImplementedError

    def _start_in(self, group: Any) -> Start:
        """How to start a task in the group."""
        raise NotImplementedError

    def _expire(self, close: TaskClose, on_timeout: OnTimeout) -> None:
        """End a pending close as at its deadline."""
        raise NotImplementedError


def _log_failure() -> None:
    import logging

    try:
        logging.getLogger("graceful_close").exception("a close, or on_close, failed")
    except Exception:  # noqa: BLE001, S110 (a handler of the program's, or a closed stderr)
        pass
