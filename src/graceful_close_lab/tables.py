"""The report in words: one table for each part, before anybody knows how it will look."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from . import linger_experiments, lost_reply
from .formatting import duration
from .this_platform import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .experiments import Experiment
    from .linger_experiments import LingerRun
    from .lost_reply import Replies
    from .report import Report
    from .this_platform import ThisPlatform


class Words(NamedTuple):
    """A piece of text. ASCII, because a pipe may know no other.

    Attributes:
        text: What it says.
        good: Whether it is good news; None: it is no news.
    """

    text: str
    good: bool | None = None


class Column(NamedTuple):
    """A heading, and whether what stands below is flush right, as numbers are."""

    heading: str
    right: bool = False


class Table(NamedTuple):
    """One table.

    Attributes:
        name: What a file that shows it is called.
        title: A few words.
        caption: A sentence on what it shows.
        columns: Its columns, from the left.
        rows: In each, as many cells as there are columns.
    """

    name: str
    title: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Words]]


def tables(report: Report) -> tuple[Table, ...]:
    """One table for each part that the report has, in its order."""
    found: list[Table] = []
    if report.lost_reply:
        found.append(_of_lost_reply(report.lost_reply))
    if report.linger_experiments:
        found.append(_of_linger_experiments(report.linger_experiments))
    if report.this_platform is not None:
        found.append(_of_this_platform(report.this_platform))
    return tuple(found)


def conclusion(report: Report) -> tuple[Words, ...]:
    """The report in a few sentences: what was to be shown, and what graceful_close did."""
    told: list[Words] = []
    losing = [each for each in report.lost_reply if not (each.promised or each.lost_nothing)]
    if losing:
        first, *others = losing
        lost = f"{first.way} lost {first.tries - first.whole} of {first.tries}"
        too = {0: "", 1: ", and one other way lost some too"}.get(
            len(others), f", and {len(others)} other ways lost some too"
        )
        told.append(Words(f"As expected: {lost}{too}."))
    run, replies = report.graceful_run, report.graceful_replies
    counts: list[str] = []
    if replies is not None:
        counts.append(f"{replies.whole} of {replies.tries} replies")
    if run is not None:
        counts.append(f"{run.received:,} of {run.written:,} bytes")
    if counts:
        kept = all(each is None or each.as_promised for each in (run, replies))
        words = "lost nothing" if kept else "LOST DATA"
        told.append(Words(f"graceful_close {words}: {', '.join(counts)}.", kept))
    if report.otherwise:
        told.append(Words(f"NOT AS EXPECTED: {', '.join(report.otherwise)}.", False))
    return tuple(told) or (Words("All went as expected.", True),)


def list_of(experiments: Sequence[Experiment]) -> Table:
    """The experiments by name."""
    return Table(
        "experiments",
        "The experiments",
        "What --only takes: a name, or the name of a group.",
        (Column("name"), Column("group"), Column("what is tried")),
        [(Words(each.name), Words(each.group), Words(each.title)) for each in experiments],
    )


def _of_linger_experiments(runs: Sequence[LingerRun]) -> Table:
    visible = all(run.before is not None for run in runs)
    view = (
        "how the kernel saw the connection right after it"
        if visible
        else "(how the kernel saw the connection after it is not visible here)"
    )
    state = (Column("state"), Column("Send-Q", right=True)) if visible else ()
    return Table(
        "linger",
        "Unsent output: the linger experiments",
        f"{linger_experiments.WRITTEN:,} bytes are written to a peer that reads only after the "
        f"close: what the closing call told us (with {linger_experiments.SECONDS} s for those "
        f"that wait), {view}, and what the peer got in the end.",
        (
            Column("way to close"),
            Column("took", right=True),
            Column("told us, unacked"),
            *state,
            Column("peer got", right=True),
        ),
        [_row_of_run(run, visible=visible) for run in runs],
    )


def _row_of_run(run: LingerRun, *, visible: bool) -> Sequence[Words]:
    if run.result is not None:
        count = run.result.unacked
        told = f"{run.result.outcome.value}, {'unknown' if count is None else f'{count:,}'}"
    else:
        told = run.error or "nothing"
    state: Sequence[Words] = ()
    if visible:
        after = run.after
        state = (
            (Words("gone"), Words("-"))
            if after is None
            else (Words(after.state), Words(f"{after.send_queue:,}"))
        )
    return (
        Words(run.way),
        Words(duration(run.took)),
        Words(told),
        *state,
        Words(f"{run.received:,} {run.ending.value}", run.whole or None),
    )


def _of_lost_reply(ways: Sequence[Replies]) -> Table:
    return Table(
        "reply",
        "Unread input: the lost reply",
        f"http.client uploads {lost_reply.UPLOAD // 1_000_000} MB to a server that answers 413 "
        f"and {lost_reply.REPLY >> 10} KiB at once, then closes: how many replies arrived "
        "whole, and what the client got instead.",
        (Column("way to close"), Column("whole replies", right=True), Column("instead")),
        [
            (
                Words(replies.way),
                Words(f"{replies.whole} of {replies.tries}", replies.lost_nothing),
                Words(", ".join(f"{n} {name}" for name, n in replies.lost.items())),
            )
            for replies in ways
        ],
    )


def _of_this_platform(here: ThisPlatform) -> Table:
    facts = [("system", here.system), ("taken for", here.name), ("Python", here.python)]
    linger = here.linger
    if linger is None:
        facts.append(("struct linger", "none: there is no SO_LINGER"))
    else:
        name = (
            "SO_LINGER"
            if linger.option == linger.python_option
            else f"not Python's SO_LINGER, {linger.python_option}"
        )
        facts += [
            ("struct linger", f"{{{', '.join(linger.layout)}}}"),
            ("its option", f"{linger.option} ({name}), level {linger.level}"),
            ("its unit and range", f"{linger.unit}, {linger.shortest} to {linger.longest:,}"),
        ]
    return Table(
        "platform",
        "This platform",
        "What the library knows of this system, and what came of trying on live loopback "
        "connections what it relies on.",
        (Column("what"), Column("here")),
        [
            *((Words(what), Words(value)) for what, value in facts),
            *(
                (Words(trial.name), Words(trial.verdict.value, _NEWS[trial.verdict]))
                for trial in here.trials
            ),
        ],
    )


_NEWS = {Verdict.WORKS: True, Verdict.FAILS: False, Verdict.ABSENT: None}
