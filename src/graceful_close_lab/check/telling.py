"""What was found, in words and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

from ..report import plain
from ..tables import Column, Table, Words
from .outcome import Client, Outcome
from .verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .outcome import Try
    from .verdict import Findings


def parts(findings: Findings) -> list[Table | Words]:
    """A table, and the sentences below it."""
    told: list[Table | Words] = [_table(findings), _conclusion(findings)]
    if findings.verdict is Verdict.LOST:
        told.append(Words(f"Remedy: {findings.remedy}."))
    if findings.verdict is Verdict.SURVIVED:
        told += _reservations(findings)
    return told


def as_json(findings: Findings) -> str:
    """All of it as one JSON object; enums by name."""
    summary = {
        "verdict": findings.verdict,
        "whole": findings.whole,
        "lost": findings.lost,
        "remedy": findings.remedy,
    }
    return json.dumps(summary | vars(findings), default=plain, indent=2)


def _table(findings: Findings) -> Table:
    told = [
        f"HTTP {status}" for status in sorted({each.status for each in findings.tries} - {0})
    ]
    if findings.server:
        told.append(f"Server: {_printable(findings.server)}")
    return Table(
        "check",
        f"Early replies from {findings.url}",
        f"A POST of {findings.upload:,} bytes by two kinds of client: how many early replies "
        "arrived whole, and what the client got instead."
        + (f" The replies say {', '.join(told)}." if told else ""),
        (Column("client"), Column("whole replies", right=True), Column("instead")),
        [
            _row(client, [each for each in findings.tries if each.client is client])
            for client in Client
        ],
    )


def _row(client: Client, tries: Sequence[Try]) -> Sequence[Words]:
    if not tries:
        return Words(client.value), Words("-"), Words("not tried")
    whole = sum(each.outcome is Outcome.WHOLE for each in tries)
    lost = any(each.lost for each in tries)
    others = Counter(
        f"{each.outcome.value} ({each.detail})" if each.detail else each.outcome.value
        for each in tries
        if each.outcome is not Outcome.WHOLE
    )
    return (
        Words(client.value),
        Words(f"{whole} of {len(tries)}", False if lost else whole == len(tries) or None),
        Words(", ".join(f"{count} {_printable(what)}" for what, count in others.most_common())),
    )


def _conclusion(findings: Findings) -> Words:
    whole, lost = findings.whole, findings.lost
    if findings.verdict is Verdict.LOST:
        return Words(f"LOST: {lost} of {whole + lost} early replies.", False)
    if findings.verdict is Verdict.SURVIVED:
        return Words(f"All {whole} early replies arrived whole.", True)
    return Words(f"Not tested: {findings.remedy}.")


def _reservations(findings: Findings) -> list[Words]:
    told: list[Words] = []
    for client in Client:
        tries = [each for each in findings.tries if each.client is client]
        if not any(each.outcome is Outcome.WHOLE for each in tries):
            told.append(
                Words(f"The client that {client.value} got no early reply: it tested nothing.")
            )
    if findings.local:
        told.append(
            Words(
                "This was on one machine, where a reply can win the race against the reset that "
                "follows it: try from another machine too."
            )
        )
    return told


def _printable(text: str) -> str:
    """What a server sent, with nothing in it that a terminal would obey."""
    return text if text.isascii() and text.isprintable() else ascii(text)[1:-1]
