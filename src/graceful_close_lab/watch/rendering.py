"""The tally as text, as JSON, and for Prometheus."""

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

    from .reset_log import Entry
    from .tally import Row, Tally

SCHEMA_VERSION = 1

_METRIC = "graceful_close_watch"
_ROWS = 20  # the most rows of the table. A heuristic.


def parts(tally: Tally) -> list[Table | Words]:
    """Return the tables, and the sentences below them."""
    report: list[Table | Words] = []
    if tally.rows:
        report.append(_of_resets(tally))
    report += [_of_counters(tally), conclusion(tally)]
    if tally.may_have_cost and tally.rows:
        [row, _], *_ = _sorted(tally)
        report.append(
            Words(f"Next: run `check HOST:{row.port}`, which prints how to fix that server.")
        )
    report += [Words(sentence) for sentence in _reservations(tally)]
    return report


def beginning(tally: Tally) -> str:
    """Describe what is watched, in one line."""
    if not tally.traced:
        return "Watching the kernel's counters in this network namespace. Ctrl-C ends it."
    ports = f" at port {', '.join(map(str, sorted(tally.ports)))}" if tally.ports else ""
    whose = (
        f"process {', '.join(map(str, sorted(tally.pids)))}" if tally.pids else "every process"
    )
    return f"Watching the resets of {whose}{ports}. Ctrl-C ends it."


def conclusion(tally: Tally) -> Words:
    """Summarise the tally in one sentence."""
    during = f"in {tally.seconds:.0f} s"
    if not tally.traced:
        count = tally.may_have_cost
        if not count:
            return Words(f"No event that may lose a reply was counted {during}.", True)
        return Words(f"MAY HAVE BEEN LOST: {_replies(count)}, {during}.", False)
    lost, may = tally.total(Cost.LOST), tally.total(Cost.MAY)
    if not lost and not may:
        if tally.events_lost:
            return Words(
                f"No lost reply was seen {during}, but some events were not seen.", False
            )
        return Words(f"No reset lost a reply {during}.", True)
    losses = [f"LOST, and proven: {_replies(lost)}"] if lost else []
    losses += [f"MAY HAVE BEEN LOST: {_replies(may)}{' more' if lost else ''}"] if may else []
    return Words(f"{'. '.join(losses)}, {during}, by {_processes_with_losses(tally)}.", False)


def change(row: Row, costs: dict[Cost, int]) -> str:
    """Describe new resets of a row, in one line."""
    counts = ", ".join(f"{costs[cost]:,} {cost.value}" for cost in Cost if costs.get(cost))
    resets = sum(costs.values())
    return f"{row.process}, port {row.port}: {_resets(resets)} ({row.how}): {counts}"


def reset_as_json(entry: Entry) -> str:
    """Format a reset as one JSON line."""
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
    """Format what is watched as one JSON line."""
    return _line(
        "start",
        traced=tally.traced,
        why_not_traced=tally.why_not or None,
        ports=sorted(tally.ports),
        pids=sorted(tally.pids),
    )


def counters_as_json(tally: Tally) -> str:
    """Format the kernel's counters as one JSON line."""
    return _line("counters", seconds=round(tally.seconds, 3), **_grown(tally))


def summary_as_json(tally: Tally) -> str:
    """Format the whole tally as one JSON line."""
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
    """Format the tally for the textfile collector of the Prometheus node exporter."""
    name = f"{_METRIC}_resets_total"
    lines = [
        f"# HELP {name} Resets by the side that had accepted, by whether they lost a reply."
    ]
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
        f"# HELP {name} The kernel's counters of this network namespace, since the watch began."
    )
    lines.append(f"# TYPE {name} counter")
    lines += [
        f"{name}{{{_labels({'counter': counter})}}} {value}"
        for counter, value in _grown(tally).items()
    ]
    for what, count, description in (
        (
            "events_lost",
            tally.events_lost,
            "Events that the kernel discarded before they were read.",
        ),
        ("traced", int(tally.traced), "Whether resets are traced, and not only counted."),
    ):
        kind = "gauge" if what == "traced" else "counter"
        name = f"{_METRIC}_{what}" + ("" if kind == "gauge" else "_total")
        lines += [f"# HELP {name} {description}", f"# TYPE {name} {kind}", f"{name} {count}"]
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
        "Resets, and the replies that they lost",
        "Connections that a process of this machine had accepted and ended with RST. Lost: "
        "part of what it wrote was never read, which is proven. May be: neither the loss nor "
        "the opposite is proven.",
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
        "The kernel's counters",
        "Of every process in this network namespace, since the watch began; and per second, in "
        "the last ten seconds.",
        (
            Column("counter"),
            Column("new", right=True),
            Column("per s", right=True),
            Column("meaning"),
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


def _processes_with_losses(tally: Tally) -> str:
    """List the processes that lost replies, those with most losses first."""
    costs = {str(row.process): 0 for row, _ in _sorted(tally)}
    for row, each in tally.rows.items():
        costs[str(row.process)] += each[Cost.LOST] + each[Cost.MAY]
    found = sorted(
        (name for name, count in costs.items() if count), key=lambda name: -costs[name]
    )
    return ", ".join(found[:3]) + (f" and {len(found) - 3} others" if found[3:] else "")


def _reservations(tally: Tally) -> list[str]:
    reservations = list(tally.reservations)
    if tally.why_not:
        reservations.append(f"Processes are not known: {tally.why_not}.")
    if (more := len(tally.rows) - _ROWS) > 0:
        reservations.append(
            f"{more:,} more rows, with fewer replies, are omitted; --json has them."
        )
    if tally.by_others:
        counts = ", ".join(
            f"{name} {count:,}" for name, count in tally.by_others.most_common(5)
        )
        reservations.append(
            f"Not in the table: {_resets(tally.by_others.total())} by the side that had "
            f"connected, such as a client that gives up ({counts})."
        )
    if elsewhere := sorted({str(row.process) for row in tally.rows if row.process.elsewhere}):
        reservations.append(
            "In another network namespace, so it is not known what these had sent and read: "
            f"{', '.join(elsewhere[:5])}{', ...' if elsewhere[5:] else ''}. To know it, watch "
            "in that namespace: nsenter -n -t PID."
        )
    if tally.events_lost:
        reservations.append(
            f"The kernel discarded {tally.events_lost:,} events before they were read: there "
            "may be more resets."
        )
    if tally.notices_lost:
        reservations.append(
            "The kernel discarded notices of ended sockets. With them more losses might have "
            "been proven."
        )
    return reservations


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


def _line(event: str, **fields: object) -> str:
    return json.dumps({"schema_version": SCHEMA_VERSION, "event": event, **fields})


def _labels(labels: dict[str, str]) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _replies(count: int) -> str:
    return f"{count:,} {'reply' if count == 1 else 'replies'}"


def _resets(count: int) -> str:
    return f"{count:,} {'reset' if count == 1 else 'resets'}"
