"""The experiments, and the choice of experiments by name."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from . import linger_experiments, lost_reply, this_platform

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .report import Finding
    from .timeline import Timeline


class Experiment(NamedTuple):
    """One experiment.

    Attributes:
        name: The name on the command line and in file names.
        group: The name of its group.
        title: A short description.
        run: Runs the experiment and records it in the timeline. Raises OSError if the loopback
            does not work.
    """

    name: str
    group: str
    title: str
    run: Callable[[Timeline], Finding]


def _examine(_: Timeline) -> Finding:
    return this_platform.examine()


ALL = (
    *(
        Experiment(
            way.name, "reply", f"unread input: {way.title}", partial(lost_reply.run, way)
        )
        for way in lost_reply.WAYS
    ),
    *(
        Experiment(
            way.name,
            "linger",
            f"unsent output: {way.title}",
            partial(linger_experiments.run, way),
        )
        for way in linger_experiments.WAYS
    ),
    Experiment("platform", "platform", "this platform", _examine),
)

# Each group precedes its experiments.
NAMES = tuple(dict.fromkeys(name for each in ALL for name in (each.group, each.name)))


def chosen(names: Sequence[str]) -> tuple[Experiment, ...]:
    """Return the experiments with these names, each once, in the lab's order; no names: all.

    Raises:
        ValueError: A name is unknown; the message lists the known names.
    """
    for name in names:
        if name not in NAMES:
            raise ValueError(f"unknown experiment {name!r} (choose from {', '.join(NAMES)})")
    return tuple(each for each in ALL if not names or {each.name, each.group} & {*names})
