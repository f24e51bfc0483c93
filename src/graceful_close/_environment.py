"""Options for users that start a command and write no code."""

from __future__ import annotations

import os

from ._options import Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._options import CloseOptions

TIMEOUT = "GRACEFUL_CLOSE_TIMEOUT"
IDLE_TIMEOUT = "GRACEFUL_CLOSE_IDLE_TIMEOUT"


def options_from_environment() -> CloseOptions:
    """Return the options from the environment variables. An unset variable has the Reaper's default.

    Raises:
        ValueError: A variable is not a number of seconds, 0 or more.
    """
    options: CloseOptions = {
        "timeout": _seconds(TIMEOUT, 30.0),
        "idle_timeout": _seconds(IDLE_TIMEOUT, 5.0),
    }
    Options(**options)
    return options


def _seconds(name: str, default: float) -> float:
    value = os.environ.get(name)
    if not value:
        return default
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{name} must be a number of seconds, not {value!r}") from None
