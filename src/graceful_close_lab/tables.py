"""The report as tables and sentences, independent of the output format."""

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
    """A piece of text. It is ASCII, because the encoding of a pipe may be ASCII.

    Attributes:
        text: The text.
        good: Whether it reports a good result; None: it is neither good nor bad.
    """

    text: str
    good: bool | None = None


class Column(NamedTuple):
    """A heading, and whether the cells below it are flush right, as numbers are."""

    heading: str
    right: bool = False


class Table(NamedTuple):
    """One table.

    Attributes:
        name: The name of its file.
        title: A short description.
        caption: A sentence that explains the table.
        columns: Its columns, from the left.
        rows: Each row has as many cells as there are columns.
    """

    name: str
    title: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Words]]


def tables(report: Report) -> tuple[Table, ...]:
    """Return one table for each part of the report, in the report's order."""
    found: list[Table] = []
    if report.lost_reply:
        found.append(_of_lost_reply(report.lost_reply))
    if report.linger_experiments:
        found.append(_of_linger_experiments(report.linger_experiments))
    if report.this_platform is not None:
        found.append(_of_this_platform(report.this_platform))
    return tuple(found)


def conclusion(report: Report) -> tuple[Words, ...]:
    """Summarise the report: the demonstrated loss, and what graceful_close did."""
    sentences: list[Words] = []
    losing = [each for each in report.lost_reply if not (each.promised or each.lost_nothing)]
    if losing:
        first, *others = losing
        lost = f"{first.way} lost {first.tries - first.whole} of {first.tries}"
        too = {0: "", 1: ", and one other way lost some too"}.get(
            len(others), f", and {len(others)} other ways lost some too"
        )
        sentences.append(Words(f"As expected: {lost}{too}."))
    run, replies = report.graceful_run, report.graceful_replies
    counts: list[str] = []
    if replies is not None:
        counts.append(f"{replies.whole} of {replies.tries} replies")
    if run is not None:
        counts.append(f"{run.received:,} of {run.written:,} bytes")
    if counts:
        kept = all(each is None or each.as_promised for each in (run, replies))
        words = "lost nothing" if kept else "LOST DATA"
        sentences.append(Words(f"graceful_close {words}: {', '.join(counts)}.", kept))
    if report.otherwise:
        sentences.append(Words(f"NOT AS EXPECTED: {', '.join(report.otherwise)}.", False))
    return tuple(sentences) or (Words("All went as expected.", True),)


def list_of(experiments: Sequence[Experiment]) -> Table:
    """Return the list of the experiments."""
    return Table(
        "experiments",
        "The experiments",
        "--only accepts the name of an experiment or of a group.",
        (Column("name"), Column("group"), Column("what it tries")),
        [(Words(each.name), Words(each.group), Words(each.title)) for each in experiments],
    )


def _of_linger_experiments(runs: Sequence[LingerRun]) -> Table:
    visible = all(run.before is not None for run in runs)
    view = (
        "the kernel's state of the connection right after it"
        if visible
        else "(the kernel's state of the connection is not visible here)"
    )
    state = (Column("state"), Column("Send-Q", right=True)) if visible else ()
    return Table(
        "linger",
        "Unsent output: the linger experiments",
        f"{linger_experiments.WRITTEN:,} bytes are written to a peer that reads only after the "
        f"close: what the closing call returned (with {linger_experiments.SECONDS} s for the "
        f"calls that wait), {view}, and what the peer received.",
        (
            Column("way to close"),
            Column("time", right=True),
            Column("result, unacked"),
            *state,
            Column("peer received", right=True),
        ),
        [_row_of_run(run, visible=visible) for run in runs],
    )


def _row_of_run(run: LingerRun, *, visible: bool) -> Sequence[Words]:
    if run.result is not None:
        count = run.result.unacked
        result = f"{run.result.outcome.value}, {'unknown' if count is None else f'{count:,}'}"
    else:
        result = run.error or "nothing"
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
        Words(result),
        *state,
        Words(f"{run.received:,} {run.ending.value}", run.whole or None),
    )


def _of_lost_reply(ways: Sequence[Replies]) -> Table:
    return Table(
        "reply",
        "Unread input: the lost reply",
        f"http.client uploads {lost_reply.UPLOAD // 1_000_000} MB to a server that answers 413 "
        f"and {lost_reply.REPLY >> 10} KiB immediately, then closes: how many replies arrived "
        "complete, and what the client received otherwise.",
        (Column("way to close"), Column("complete replies", right=True), Column("failures")),
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
    facts = [("system", here.system), ("platform key", here.name), ("Python", here.python)]
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
            ("SO_LINGER option", f"{linger.option} ({name}), level {linger.level}"),
            ("unit and range", f"{linger.unit}, {linger.shortest} to {linger.longest:,}"),
        ]
    return Table(
        "platform",
        "This platform",
        "The library's data about this system, and whether the features that it relies on work "
        "on live loopback connections.",
        (Column("feature"), Column("here")),
        [
            *((Words(what), Words(value)) for what, value in facts),
            *(
                (Words(trial.name), Words(trial.verdict.value, _GOOD[trial.verdict]))
                for trial in here.trials
            ),
        ],
    )


_GOOD = {Verdict.WORKS: True, Verdict.FAILS: False, Verdict.ABSENT: None}
