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
    """Return the options that the environment variables set.

    Raises:
        ValueError: A variable is not a number of seconds, 0 or more.
    """
    options: CloseOptions = {}
    timeout, idle_timeout = _seconds(TIMEOUT), _seconds(IDLE_TIMEOUT)
    if timeout is not None:
        options["timeout"] = timeout
    if idle_timeout is not None:
        options["idle_timeout"] = idle_timeout
    Options(**options)
    return options


def _seconds(name: str) -> float | None:
    value = os.environ.get(name)
    if not value:
        return None
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{name} must be a number of seconds, not {value!r}") from None
