"""The options of a close. The waits are short, but longer than the delays of a busy machine."""

from __future__ import annotations

from typing import Any

from graceful_close import CloseOutcome, LingerPolicy

from .axes import Situation

TIMEOUT = 0.3
PEER_FIRST = 0.1
SILENCE = 0.1
LITTLE_DRAIN = 1000


def options_of(situation: Situation) -> dict[str, Any]:
    """Return the options of the closing function."""
    if situation.aborts:
        return {}
    options: dict[str, Any] = {"timeout": TIMEOUT, "idle_timeout": None}
    if situation.until == "delivered":
        options["until"] = CloseOutcome.DELIVERED
    if situation.on_timeout == "abort":
        options["on_timeout"] = LingerPolicy.ABORT
    if situation.peer_first != "no":
        options["peer_first"] = PEER_FIRST
    match situation.limit:
        case "no time":
            options["timeout"] = 0
        case "little silence":
            options["idle_timeout"] = SILENCE
        case "no drain":
            options["drain_limit"] = 0
        case "little drain":
            options["drain_limit"] = LITTLE_DRAIN
        case _:
            pass
    return options
