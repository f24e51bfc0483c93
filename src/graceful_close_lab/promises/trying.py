"""A promise, and what came of trying it."""

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
    """What came of trying a promise. The values have one width."""

    HELD = "held    "
    BROKEN = "BROKEN  "
    NOT_HERE = "not here"


class BrokenError(Exception):
    """A promise was not kept."""


class NotHereError(Exception):
    """The system, or an optional package, has no such thing to try."""


@dataclass(frozen=True)
class Promise:
    """Something that a user may rely on.

    Attributes:
        sentence: It.
        attempt: Tries it, and says in a few words what it saw.
    """

    sentence: str
    attempt: Callable[[], str]


@dataclass(frozen=True)
class Trial:
    """What came of a promise.

    Attributes:
        sentence: The promise.
        verdict: Whether it was kept.
        detail: What was seen.
        seconds: How long it took.
    """

    sentence: str
    verdict: Verdict
    detail: str
    seconds: float

    def __str__(self) -> str:
        """One line."""
        return f"{self.verdict.value}  {self.sentence}: {self.detail} ({self.seconds:.1f} s)"


def promise(sentence: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Enter what tries a promise in `PROMISES`."""

    def enter(attempt: Callable[[], str]) -> Callable[[], str]:
        PROMISES.append(Promise(sentence, attempt))
        return attempt

    return enter


def require(kept: bool, seen: object) -> None:
    """Break the promise, by what was seen, unless it is kept.

    Raises:
        BrokenError: It is not.
    """
    if not kept:
        raise BrokenError(str(seen))


def attempt(promise: Promise, patience: float) -> Trial:
    """Try a promise in a thread of its own, so that one that hangs keeps nobody.

    Args:
        promise: Which.
        patience: Seconds after which it is broken for not having ended.
    """
    started = monotonic()
    said: list[tuple[Verdict, str]] = []
    thread = threading.Thread(target=lambda: said.append(_outcome(promise)), daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # Emscripten
        return Trial(promise.sentence, Verdict.NOT_HERE, str(error), 0.0)
    thread.join(patience)
    verdict, detail = said[0] if said else (Verdict.BROKEN, f"not over after {patience:.0f} s")
    return Trial(promise.sentence, verdict, detail, monotonic() - started)


def _outcome(promise: Promise) -> tuple[Verdict, str]:
    try:
        return Verdict.HELD, promise.attempt()
    except BrokenError as broken:
        return Verdict.BROKEN, str(broken)
    except NotHereError as missing:
        return Verdict.NOT_HERE, str(missing)
    except BaseException as error:  # noqa: BLE001 (none was promised)
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        return Verdict.BROKEN, f"{type(error).__name__}: {error} ({where})"
