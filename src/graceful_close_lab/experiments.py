"""The experiments by their names, and which of them somebody chose."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from . import linger_experiments, lost_reply, this_platform

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .report import Finding
    from .story import Story


class Experiment(NamedTuple):
    """One experiment.

    Attributes:
        name: What the command line and the files call it.
        group: The name that stands for it and its like.
        title: What it is, in a few words.
        run: The doing. It tells a story of itself meanwhile, and raises OSError if the
            loopback does not work.
    """

    name: str
    group: str
    title: str
    run: Callable[[Story], Finding]


def _examine(_: Story) -> Finding:
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

# Each group before what is in it.
NAMES = tuple(dict.fromkeys(name for each in ALL for name in (each.group, each.name)))


def chosen(names: Sequence[str]) -> tuple[Experiment, ...]:
    """What these names stand for, each once and in the lab's own order; no names: all.

    Raises:
        ValueError: There is no such name; the message lists those that there are.
    """
    for name in names:
        if name not in NAMES:
            raise ValueError(f"no experiment is called {name!r}; there are: {', '.join(NAMES)}")
    return tuple(each for each in ALL if not names or {each.name, each.group} & {*names})
