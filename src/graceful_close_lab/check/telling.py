"""What was found: in words, as JSON, and as JUnit's XML."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING
from xml.etree import ElementTree as Xml

from ..report import plain
from ..tables import Column, Table, Words
from .outcome import Outcome
from .remedy import advice
from .verdict import EXIT_CODES, Findings, Row, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEMA_VERSION = 1
"""Of the JSON. It is incremented when a key is removed or changes its meaning."""

# What a server may send before the first acknowledgement: ten segments of 1,460 bytes
# (RFC 6928, section 2). A longer reply is still on its way when the reset follows.
_SENT_AT_ONCE = 14_600


def parts(findings: Findings) -> list[Table | Words]:
    """A table, if there is anything to stand in it, and sentences."""
    told: list[Table | Words] = []
    if findings.verdict is not Verdict.NOT_CONNECTED:
        told.append(_table(findings))
    told.append(_conclusion(findings))
    told += [
        Words(f"{row.client.value}: {row.client.a_loss}")
        for row in findings.rows
        if any(each.lost and each.outcome is not Outcome.BY_PROXY for each in row.tries)
    ]
    if findings.hung:
        told.append(_hangs(findings))
    told += _reservations(findings)
    words, link = advice(findings)
    if words:
        told.append(Words(f"What to do: {words}"))
    if link:
        told.append(Words(f"See {link}"))
    return told


def as_json(findings: Findings) -> str:
    """All of it as one JSON object; enums by name."""
    words, link = advice(findings)
    told = {
        "schema_version": SCHEMA_VERSION,
        "ok": findings.verdict is Verdict.SURVIVED,
        "verdict": findings.verdict,
        "exit_code": EXIT_CODES[findings.verdict],
        "whole": findings.whole,
        "lost": findings.lost,
        "hung": findings.hung,
        "longest_reply": findings.longest,
        "remedy": words,
        "link": link,
        "clients": [_row_as_json(row) for row in findings.rows],
    }
    return json.dumps(told | vars(findings), default=plain, indent=2)


def _row_as_json(row: Row) -> dict[str, object]:
    return {
        "client": row.client,
        "like": row.client.like,
        "by_default": row.client.by_default,
        "verdict": row.verdict,
        "tries": len(row.tries),
        "whole": row.whole,
        "lost": row.lost,
        "hung": row.hung,
    }


def as_junit(findings: Findings) -> str:
    """A test suite with a case for each kind of client, as continuous integration reads it."""
    rows = findings.rows
    nobody = findings.verdict is Verdict.NOT_CONNECTED
    verdicts = [Verdict.NOT_CONNECTED if nobody else row.verdict for row in rows]
    suite = Xml.Element(
        "testsuite",
        name=f"graceful-close check {findings.url}",
        tests=str(len(rows)),
        failures=str(verdicts.count(Verdict.LOST)),
        errors=str(verdicts.count(Verdict.HUNG) + verdicts.count(Verdict.NOT_CONNECTED)),
        skipped=str(verdicts.count(Verdict.NOT_TESTED)),
        time=f"{sum(each.seconds for each in findings.tries):.3f}",
    )
    for row, verdict in zip(rows, verdicts, strict=True):
        case = Xml.SubElement(
            suite,
            "testcase",
            classname="graceful-close.check",
            name=row.client.value,
            time=f"{sum(each.seconds for each in row.tries):.3f}",
        )
        tag = {
            Verdict.LOST: "failure",
            Verdict.HUNG: "error",
            Verdict.NOT_CONNECTED: "error",
            Verdict.NOT_TESTED: "skipped",
        }.get(verdict)
        if tag is not None:
            said = _others(row) or findings.problem or "not tried"
            told = Xml.SubElement(case, tag, message=said)
            if tag != "skipped":
                told.text = " ".join(filter(None, advice(findings)))
    Xml.indent(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(suite, "unicode")


def _table(findings: Findings) -> Table:
    told = [
        f"HTTP {status}" for status in sorted({each.status for each in findings.tries} - {0})
    ]
    if findings.server:
        told.append(f"Server: {_printable(findings.server)}")
    size = f", and are {findings.longest:,} bytes long" if findings.longest else ""
    return Table(
        "check",
        f"Early replies from {findings.url}"
        + (f" by {findings.unix_socket}" if findings.unix_socket else ""),
        f"{findings.upload:,} bytes uploaded by each kind of client: how many early replies "
        "arrived whole, and what the client got instead."
        + (f" The replies say {', '.join(told)}{size}." if told else ""),
        (Column("client"), Column("as"), Column("whole", right=True), Column("instead")),
        [_cells(row) for row in findings.rows],
    )


def _cells(row: Row) -> Sequence[Words]:
    news = {Verdict.LOST: False, Verdict.HUNG: False}.get(row.verdict)
    if row.tries and row.whole == len(row.tries):
        news = True
    return (
        Words(row.client.value),
        Words(row.client.like),
        Words(_count(row), news),
        Words(_others(row) if row.tries else "not tried"),
    )


def _count(row: Row) -> str:
    if row.verdict is Verdict.NOT_TESTED:
        return "-"
    return f"{row.whole} of {len(row.tries)}"


def _others(row: Row) -> str:
    """What came instead of whole early replies, the most frequent first."""
    counts = Counter(
        f"{each.outcome.value} ({each.detail})" if each.detail else each.outcome.value
        for each in row.tries
        if not each.whole
    )
    return ", ".join(f"{count} {_printable(what)}" for what, count in counts.most_common())


def _conclusion(findings: Findings) -> Words:
    whole, lost = findings.whole, findings.lost
    match findings.verdict:
        case Verdict.LOST if Outcome.BY_PROXY in findings.outcomes:
            # One that takes the whole upload first makes early replies late.
            late = sum(each.outcome is Outcome.LATE for each in findings.tries)
            return Words(f"LOST, by a proxy: {lost} of {whole + late + lost} replies.", False)
        case Verdict.LOST:
            return Words(f"LOST: {lost} of {whole + lost} early replies.", False)
        case Verdict.LOST_FOR_SOME:
            names = " and ".join(f"`{client.value}`" for client in findings.losers)
            return Words(
                f"LOST for clients that say {names}: {lost} of {whole + lost} early replies. "
                "The others lost none.",
                False,
            )
        case Verdict.HUNG:
            return Words(f"HUNG: {findings.hung} of {len(findings.tries)} tries.", False)
        case Verdict.SURVIVED:
            return Words(f"All {whole} early replies arrived whole.", True)
        case Verdict.NOT_TESTED:
            return Words("Not tested: there was no early reply to be lost.")
        case Verdict.NOT_CONNECTED:
            problem = findings.problem or _others(findings.rows[0]).removeprefix("1 ")
            return Words(f"Could not ask {findings.url}: {problem}.", False)


def _hangs(findings: Findings) -> Words:
    names = ", ".join(row.client.value for row in findings.rows if row.hung)
    return Words(
        f"A try that hangs is no reply lost by closing, and a graceful close does not help: "
        f"{findings.hung} of {len(findings.tries)} ({names})."
    )


def _reservations(findings: Findings) -> list[Words]:
    """What the replies that survived do not prove."""
    verdicts = [row.verdict for row in findings.rows]
    if Verdict.SURVIVED not in verdicts:
        return []
    told = [
        Words(f"{row.client.value} got no early reply: it tested nothing.")
        for row, verdict in zip(findings.rows, verdicts, strict=True)
        if verdict is Verdict.NOT_TESTED
    ]
    if all(each.status >= 500 for each in findings.tries if each.whole):
        told.append(
            Words(
                "All of them say that the server failed: --expect-status names what you want."
            )
        )
    if findings.unix_socket or findings.verdict is Verdict.LOST_FOR_SOME:
        return told
    if findings.longest <= _SENT_AT_ONCE:
        told.append(
            Words(
                f"No reply was longer than {findings.longest:,} bytes. One of more than "
                f"{_SENT_AT_ONCE:,}, which are sent without waiting, is lost more easily: try a --path "
                "with a longer error page, if there is one."
            )
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
