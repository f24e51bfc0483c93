"""Everything that the lab found, as objects and as JSON."""

from __future__ import annotations

import dataclasses
import enum
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graceful_close import CloseResult
from graceful_close._record import fields

from . import linger_experiments, lost_reply
from .linger_experiments import LingerRun
from .lost_reply import Replies
from .this_platform import ThisPlatform, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

Finding = LingerRun | Replies | ThisPlatform
"""The finding of one experiment."""


@dataclass(frozen=True)
class Report:
    """Everything that was measured.

    Attributes:
        linger_experiments: One run for each way to close with unsent output.
        lost_reply: The replies for each way to close with unread input.
        this_platform: The running system; None: it was not examined.
    """

    linger_experiments: tuple[LingerRun, ...] = ()
    lost_reply: tuple[Replies, ...] = ()
    this_platform: ThisPlatform | None = None

    @classmethod
    def of(cls, findings: Iterable[Finding]) -> Report:
        """Make a report of findings of any kind, in any order."""
        findings = tuple(findings)
        platforms = [found for found in findings if isinstance(found, ThisPlatform)]
        return cls(
            tuple(found for found in findings if isinstance(found, LingerRun)),
            tuple(found for found in findings if isinstance(found, Replies)),
            platforms[-1] if platforms else None,
        )

    @property
    def graceful_run(self) -> LingerRun | None:
        """The run of graceful_close with unsent output; None: it was not tried."""
        name = linger_experiments.GRACEFUL.name
        return next((run for run in self.linger_experiments if run.name == name), None)

    @property
    def graceful_replies(self) -> Replies | None:
        """The replies with graceful_close; None: it was not tried."""
        name = lost_reply.GRACEFUL.name
        return next((replies for replies in self.lost_reply if replies.name == name), None)

    @property
    def otherwise(self) -> tuple[str, ...]:
        """The names of the experiments that did not go as expected."""
        runs: list[LingerRun | Replies] = [*self.linger_experiments, *self.lost_reply]
        names = [run.name for run in runs if not run.as_promised]
        here = self.this_platform
        if here is not None and any(trial.verdict is Verdict.FAILS for trial in here.trials):
            names.append("platform")
        return tuple(names)


SCHEMA_VERSION = 1
"""The version of the JSON. It is incremented when a key is removed or changes its meaning."""


def as_json(report: Report) -> str:
    """Format the report as one JSON object; enums by name, errors by message."""
    otherwise = report.otherwise
    summary = {"schema_version": SCHEMA_VERSION, "ok": not otherwise, "otherwise": otherwise}
    return json.dumps(summary | _fields(report), default=plain, indent=2)


def plain(value: object) -> object:
    """Convert a value for JSON: the argument `default` of `json.dumps`."""
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
    raise TypeError(f"not a part of a report: {value!r}")
