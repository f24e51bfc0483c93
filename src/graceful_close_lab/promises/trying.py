"""A promise, and the result of its trial."""

from __future__ import annotations

import enum
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PROMISES: list[Promise] = []
"""All of them, in the order in which they are tried."""


class Verdict(enum.Enum):
    """The result of a trial. All values have the same width."""

    HELD = "held    "
    BROKEN = "BROKEN  "
    NOT_HERE = "not here"


class BrokenError(Exception):
    """A promise is broken."""


class NotHereError(Exception):
    """The system, or an optional package, does not have the feature."""


@dataclass(frozen=True)
class Promise:
    """A guarantee of the library.

    Attributes:
        sentence: The guarantee.
        attempt: Tries the promise, and returns a short description of what happened.
    """

    sentence: str
    attempt: Callable[[], str]


@dataclass(frozen=True)
class Trial:
    """The trial of a promise.

    Attributes:
        sentence: The promise.
        verdict: The result.
        detail: What happened.
        seconds: The duration.
    """

    sentence: str
    verdict: Verdict
    detail: str
    seconds: float

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.verdict.value}  {self.sentence}: {self.detail} ({self.seconds:.1f} s)"


def promise(sentence: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Decorate a function that tries a promise, and add it to `PROMISES`."""

    def enter(attempt: Callable[[], str]) -> Callable[[], str]:
        PROMISES.append(Promise(sentence, attempt))
        return attempt

    return enter


def require(kept: bool, seen: object) -> None:
    """Require that a promise is kept.

    Raises:
        BrokenError: The promise is broken; the message is `seen`.
    """
    if not kept:
        raise BrokenError(str(seen))


def attempt(promise: Promise, timeout: float) -> Trial:
    """Try a promise in its own thread, so that a trial that hangs does not block the others.

    Args:
        promise: The promise.
        timeout: Seconds after which an unfinished trial counts as broken.
    """
    started = monotonic()
    results: list[tuple[Verdict, str]] = []
    thread = threading.Thread(target=lambda: results.append(_outcome(promise)), daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # Emscripten
        return Trial(promise.sentence, Verdict.NOT_HERE, str(error), 0.0)
    thread.join(timeout)
    verdict, detail = (
        results[0] if results else (Verdict.BROKEN, f"not finished after {timeout:.0f} s")
    )
    return Trial(promise.sentence, verdict, detail, monotonic() - started)


def _outcome(promise: Promise) -> tuple[Verdict, str]:
    try:
        return Verdict.HELD, promise.attempt()
    except BrokenError as broken:
        return Verdict.BROKEN, str(broken)
    except NotHereError as missing:
        return Verdict.NOT_HERE, str(missing)
    except BaseException as error:  # noqa: BLE001 (any exception breaks the promise)
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        return Verdict.BROKEN, f"{type(error).__name__}: {error} ({where})"
