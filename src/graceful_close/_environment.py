"""Options for users that start a command and write no code."""

from __future__ import annotations

import os

from ._options import require_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from ._options import CloseOptions

TIMEOUT = "GRACEFUL_CLOSE_TIMEOUT"
IDLE_TIMEOUT = "GRACEFUL_CLOSE_IDLE_TIMEOUT"

# Set by `graceful-close run` for the first Python process of the command, which reports that it has
# made the replacements, and removes the variable.
NOTICE = "GRACEFUL_CLOSE_NOTICE"

# The folder in PYTHONPATH whose sitecustomize makes the replacements.
LAUNCHER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_launcher")


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
    return options


def put_launcher_first(environment: MutableMapping[str, str]) -> None:
    """Make Pythons that start in this environment import our sitecustomize, before all others."""
    value = environment.get("PYTHONPATH", "")
    others = value.split(os.pathsep) if value else []  # an empty entry is the current folder
    paths = [LAUNCHER, *(path for path in others if path != LAUNCHER)]
    environment["PYTHONPATH"] = os.pathsep.join(paths)


def _seconds(name: str) -> float | None:
    value = os.environ.get(name)
    if not value:
        return None
    try:
        return require_seconds(name, float(value))
    except ValueError:
        raise ValueError(
            f"{name} must be a finite number of seconds, 0 or more, not {value!r}"
        ) from None
