"""What a situation asks of its close: waits that are short, and longer than a loaded machine's delays."""

from __future__ import annotations

from typing import Any

from graceful_close import CloseOutcome, LingerPolicy

from .axes import Situation

TIMEOUT = 0.3
PEER_FIRST = 0.1
SILENCE = 0.1
LITTLE_DRAIN = 1000


def options_of(situation: Situation) -> dict[str, Any]:
    """What the close is asked for."""
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
