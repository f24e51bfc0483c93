"""What the lab found, all of it, and the same as JSON."""

from __future__ import annotations

import dataclasses
import enum
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graceful_close import CloseResult
from graceful_close._value import fields

from . import linger_experiments, lost_reply

if TYPE_CHECKING:
    from .linger_experiments import LingerRun
    from .lost_reply import Replies
    from .this_platform import ThisPlatform


@dataclass(frozen=True)
class Report:
    """Everything that was measured.

    Attributes:
        linger_experiments: One for each way to close with unsent output.
        lost_reply: One for each way to close with unread input.
        this_platform: The running system.
    """

    linger_experiments: tuple[LingerRun, ...]
    lost_reply: tuple[Replies, ...]
    this_platform: ThisPlatform

    @property
    def graceful_run(self) -> LingerRun:
        """What graceful_close did with unsent output."""
        name = linger_experiments.GRACEFUL.name
        return next(run for run in self.linger_experiments if run.way == name)

    @property
    def graceful_replies(self) -> Replies:
        """What became of the replies that graceful_close followed."""
        name = lost_reply.GRACEFUL.name
        return next(replies for replies in self.lost_reply if replies.way == name)

    @property
    def lost_nothing(self) -> bool:
        """Whether everything arrived that was written before a graceful_close."""
        return self.graceful_run.whole and self.graceful_replies.lost_nothing


def as_json(report: Report) -> str:
    """The report as one JSON object; enums by name, errors as the text they print."""
    return json.dumps(
        {"lost_nothing": report.lost_nothing} | _fields(report), default=_plain, indent=2
    )


def _plain(value: object) -> object:
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, OSError):
        return str(value)
    return _fields(value)


def _fields(value: object) -> dict[str, object]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, CloseResult):
        return fields(value)
    raise TypeError(f"no part of a report: {value!r}")
