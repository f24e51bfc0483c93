"""The tally in words, as JSON, and for Prometheus."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ..tables import Column, Table, Words
from .counters import COUNTERS
from .judgement import Cost
from .tally import how

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence

    from .ledger import Entry
    from .tally import Row, Tally

SCHEMA_VERSION = 1

_METRIC = "graceful_close_watch"
_ROWS = 20  # of the table; there is a new one for each process. Arbitrary.


def parts(tally: Tally) -> list[Table | Words]:
    """All of it: tables, and the sentences below them."""
    told: list[Table | Words] = []
    if tally.rows:
        told.append(_of_resets(tally))
    told += [_of_counters(tally), conclusion(tally)]
    if tally.may_have_cost and tally.rows:
        [row, _], *_ = _sorted(tally)
        told.append(
            Words(f"Next: check HOST:{row.port} tries that server, and says what helps it.")
        )
    told += [Words(sentence) for sentence in _reservations(tally)]
    return told


def beginning(tally: Tally) -> str:
    """What is watched, in one line."""
    if not tally.traced:
        return "Watching what the kernel counts in this network namespace. Ctrl-C ends it."
    ports = f" at port {', '.join(map(str, sorted(tally.ports)))}" if tally.ports else ""
    whose = (
        f"process {', '.join(map(str, sorted(tally.pids)))}" if tally.pids else "every process"
    )
    return f"Watching the resets of {whose}{ports}. Ctrl-C ends it."


def conclusion(tally: Tally) -> Words:
    """It in one sentence."""
    during = f"in {tally.seconds:.0f} s"
    if not tally.traced:
        count = tally.may_have_cost
        if not count:
            return Words(f"Nothing that may cost a reply was counted {during}.", True)
        return Words(f"MAY HAVE BEEN LOST: {_replies(count)}, {during}.", False)
    lost, may = tally.total(Cost.LOST), tally.total(Cost.MAY)
    if not lost and not may:
        if tally.events_lost:
            return Words(f"No lost reply was seen {during}, but not everything was.", False)
        return Words(f"No reset cost a reply {during}.", True)
    said = [f"LOST, and proven: {_replies(lost)}"] if lost else []
    said += [f"MAY HAVE BEEN LOST: {_replies(may)}{' more' if lost else ''}"] if may else []
    return Words(f"{'. '.join(said)}, {during}, by {_culprits(tally)}.", False)


def change(row: Row, costs: dict[Cost, int]) -> str:
    """What has come to a row, in one line."""
    counts = ", ".join(f"{costs[cost]:,} {cost.value}" for cost in Cost if costs.get(cost))
    resets = sum(costs.values())
    return f"{row.process}, port {row.port}: {_resets(resets)} ({row.how}): {counts}"


def reset_as_json(entry: Entry) -> str:
    """A reset, in one line."""
    process, judgement = entry.process, entry.judgement
    return _line(
        "reset",
        time=round(entry.when, 3),
        pid=process.number,
        process=process.name,
        process_known_by=entry.known_by or None,
        other_netns=process.elsewhere,
        local=str(entry.connection.local),
        peer=str(entry.connection.peer),
        port=entry.connection.local.port,
        kernel_reason=entry.reset.reason or None,
        how=how(entry),
        reply=None if judgement is None else judgement.cost.value,
        because=None if judgement is None else judgement.because,
    )


def start_as_json(tally: Tally) -> str:
    """What is watched, in one line."""
    return _line(
        "start",
        traced=tally.traced,
        why_not_traced=tally.why_not or None,
        ports=sorted(tally.ports),
        pids=sorted(tally.pids),
    )


def counters_as_json(tally: Tally) -> str:
    """The kernel's counters, in one line."""
    return _line("counters", seconds=round(tally.seconds, 3), **_grown(tally))


def summary_as_json(tally: Tally) -> str:
    """All of it, in one line."""
    return _line(
        "summary",
        seconds=round(tally.seconds, 3),
        traced=tally.traced,
        why_not_traced=tally.why_not or None,
        rows=[
            {
                "pid": row.process.number,
                "process": row.process.name,
                "other_netns": row.process.elsewhere,
                "port": row.port,
                "how": row.how,
                "resets": costs.total(),
                **_by_cost(costs),
            }
            for row, costs in _sorted(tally)
        ],
        lost=tally.total(Cost.LOST),
        may_have_been_lost=tally.may_have_cost - tally.total(Cost.LOST),
        resets_by_the_side_that_connected=dict(tally.by_others),
        counters=_grown(tally),
        events_lost=tally.events_lost,
        notices_lost=tally.notices_lost,
        reservations=_reservations(tally),
    )


def for_prometheus(tally: Tally) -> str:
    """The text format, as the textfile collector of the node exporter reads it."""
    name = f"{_METRIC}_resets_total"
    lines = [f"# HELP {name} Resets of the side that had accepted, by what they cost."]
    lines.append(f"# TYPE {name} counter")
    for row, costs in tally.rows.items():
        labels = {
            "process": row.process.name,
            "pid": "" if row.process.number is None else str(row.process.number),
            "port": str(row.port),
            "how": row.how,
        }
        lines += [
            f"{name}{{{_labels(labels | {'reply': cost.value})}}} {costs[cost]}"
            for cost in (Cost.LOST, Cost.MAY, Cost.NONE)
        ]
    name = f"{_METRIC}_kernel_counter_total"
    lines.append(
        f"# HELP {name} The kernel's counters of this network namespace, from the start."
    )
    lines.append(f"# TYPE {name} counter")
    lines += [
        f"{name}{{{_labels({'counter': counter})}}} {value}"
        for counter, value in _grown(tally).items()
    ]
    for what, count, said in (
        ("events_lost", tally.events_lost, "Events that the kernel threw away unread."),
        ("traced", int(tally.traced), "Whether resets are seen, and not only counted."),
    ):
        kind = "gauge" if what == "traced" else "counter"
        name = f"{_METRIC}_{what}" + ("" if kind == "gauge" else "_total")
        lines += [f"# HELP {name} {said}", f"# TYPE {name} {kind}", f"{name} {count}"]
    return "\n".join(lines) + "\n"


def _of_resets(tally: Tally) -> Table:
    rows = [
        (
            Words(str(row.process)),
            Words(str(row.port)),
            Words(f"{costs.total():,}"),
            Words(f"{costs[Cost.LOST]:,}", False if costs[Cost.LOST] else None),
            Words(f"{costs[Cost.MAY]:,}", False if costs[Cost.MAY] else None),
            Words(f"{costs[Cost.NONE]:,}"),
            Words(row.how),
        )
        for row, costs in _sorted(tally)[:_ROWS]
    ]
    return Table(
        "resets",
        "Resets, and the replies that they cost",
        "Connections that a process of this machine had accepted and ended with RST. Lost: part "
        "of what it wrote was never read, which is proven. May be: neither that nor the opposite "
        "is proven.",
        (
            Column("process"),
            Column("port", right=True),
            Column("resets", right=True),
            Column("lost", right=True),
            Column("may be", right=True),
            Column("not", right=True),
            Column("how"),
        ),
        rows,
    )


def _of_counters(tally: Tally) -> Table:
    grown = tally.grown
    return Table(
        "counters",
        "What the kernel counts",
        "In this network namespace, of every process, since the watch began; and each second, "
        "of the last ten.",
        (
            Column("counter"),
            Column("new", right=True),
            Column("each s", right=True),
            Column("what each means"),
        ),
        [
            (
                Words(counter.name),
                Words(
                    f"{grown[counter.name].since_start:,}",
                    False
                    if counter.may_cost_a_reply and grown[counter.name].since_start
                    else None,
                ),
                Words(f"{grown[counter.name].a_second:.1f}"),
                Words(counter.means),
            )
            for counter in COUNTERS
            if counter.name in grown
        ],
    )


def _culprits(tally: Tally) -> str:
    """Who cost replies, those that cost most first."""
    costs = {str(row.process): 0 for row, _ in _sorted(tally)}
    for row, each in tally.rows.items():
        costs[str(row.process)] += each[Cost.LOST] + each[Cost.MAY]
    found = sorted(
        (name for name, count in costs.items() if count), key=lambda name: -costs[name]
    )
    return ", ".join(found[:3]) + (f" and {len(found) - 3} others" if found[3:] else "")


def _reservations(tally: Tally) -> list[str]:
    told = list(tally.reservations)
    if tally.why_not:
        told.append(f"No process can be named: {tally.why_not}.")
    if (more := len(tally.rows) - _ROWS) > 0:
        told.append(f"{more:,} more rows, of fewer replies, are left out; --json has them.")
    if tally.by_others:
        said = ", ".join(f"{name} {count:,}" for name, count in tally.by_others.most_common(5))
        told.append(
            f"Not in the table: {_resets(tally.by_others.total())} by the side that had "
            f"connected, as a client does that gives up ({said})."
        )
    if elsewhere := sorted({str(row.process) for row in tally.rows if row.process.elsewhere}):
        told.append(
            "In another network namespace, where what was sent and read is not seen from here: "
            f"{', '.join(elsewhere[:5])}{', ...' if elsewhere[5:] else ''}. To see it, watch from "
            "there: nsenter -n -t PID."
        )
    if tally.events_lost:
        told.append(
            f"The kernel threw {tally.events_lost:,} events away before they were read: there "
            "may be more resets than these."
        )
    if tally.notices_lost:
        told.append(
            "The kernel threw notices of ended sockets away: some that may have cost a reply "
            "would have been proven."
        )
    return told


def _sorted(tally: Tally) -> Sequence[tuple[Row, Counter[Cost]]]:
    return sorted(
        tally.rows.items(),
        key=lambda item: (-item[1][Cost.LOST], -item[1][Cost.MAY], -item[1].total()),
    )


def _by_cost(costs: Counter[Cost]) -> dict[str, int]:
    return {
        "lost": costs[Cost.LOST],
        "may_have_been_lost": costs[Cost.MAY],
        "not_lost": costs[Cost.NONE],
    }


def _grown(tally: Tally) -> dict[str, int]:
    return {name: growth.since_start for name, growth in tally.grown.items()}


def _line(event: str, **said: object) -> str:
    return json.dumps({"schema_version": SCHEMA_VERSION, "event": event, **said})


def _labels(labels: dict[str, str]) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _replies(count: int) -> str:
    return f"{count:,} {'reply' if count == 1 else 'replies'}"


def _resets(count: int) -> str:
    return f"{count:,} {'reset' if count == 1 else 'resets'}"
