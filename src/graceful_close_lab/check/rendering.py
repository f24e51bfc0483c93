"""The findings as text, as JSON, and as JUnit XML."""

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
"""The version of the JSON. It is incremented when a key is removed or changes its meaning."""

# A server may send ten segments of 1,460 bytes before the first acknowledgement (RFC 6928,
# section 2). A part of a longer reply is still unsent when the reset follows.
_INITIAL_WINDOW = 14_600


def parts(findings: Findings) -> list[Table | Words]:
    """Return a table, if it has rows, and sentences."""
    report: list[Table | Words] = []
    if findings.verdict is not Verdict.NOT_CONNECTED:
        report.append(_table(findings))
    report.append(_conclusion(findings))
    report += [
        Words(f"{row.client.value}: {row.client.a_loss}")
        for row in findings.rows
        if any(each.lost and each.outcome is not Outcome.BY_PROXY for each in row.tries)
    ]
    if findings.hung:
        report.append(_hangs(findings))
    report += _reservations(findings)
    words, link = advice(findings)
    if words:
        report.append(Words(f"What to do: {words}"))
    if link:
        report.append(Words(f"See {link}"))
    return report


def as_json(findings: Findings) -> str:
    """Format the findings as one JSON object; enums by name."""
    words, link = advice(findings)
    summary = {
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
    return json.dumps(summary | vars(findings), default=plain, indent=2)


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
    """Format the findings as a JUnit test suite with a case for each kind of client."""
    rows = findings.rows
    not_connected = findings.verdict is Verdict.NOT_CONNECTED
    verdicts = [Verdict.NOT_CONNECTED if not_connected else row.verdict for row in rows]
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
            message = _others(row) or findings.problem or "not tried"
            element = Xml.SubElement(case, tag, message=message)
            if tag != "skipped":
                element.text = " ".join(filter(None, advice(findings)))
    Xml.indent(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(suite, "unicode")


def _table(findings: Findings) -> Table:
    heads = [
        f"HTTP {status}" for status in sorted({each.status for each in findings.tries} - {0})
    ]
    if findings.server:
        heads.append(f"Server: {_printable(findings.server)}")
    size = f"; the longest has {findings.longest:,} bytes" if findings.longest else ""
    return Table(
        "check",
        f"Early replies from {findings.url}"
        + (f" by {_printable(findings.unix_socket)}" if findings.unix_socket else ""),
        f"{findings.upload:,} bytes uploaded by each kind of client: how many early replies "
        "arrived complete, and what the client received otherwise."
        + (f" Replies: {', '.join(heads)}{size}." if heads else ""),
        (
            Column("client"),
            Column("like"),
            Column("complete", right=True),
            Column("failures"),
        ),
        [_cells(row) for row in findings.rows],
    )


def _cells(row: Row) -> Sequence[Words]:
    good = {Verdict.LOST: False, Verdict.HUNG: False}.get(row.verdict)
    if row.tries and row.whole == len(row.tries):
        good = True
    return (
        Words(row.client.value),
        Words(row.client.like),
        Words(_count(row), good),
        Words(_others(row) if row.tries else "not tried"),
    )


def _count(row: Row) -> str:
    if row.verdict is Verdict.NOT_TESTED:
        return "-"
    return f"{row.whole} of {len(row.tries)}"


def _others(row: Row) -> str:
    """Count the other outcomes, the most frequent first."""
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
            # A proxy that reads the whole upload first makes early replies late.
            late = sum(each.outcome is Outcome.LATE for each in findings.tries)
            return Words(f"LOST, by a proxy: {lost} of {whole + late + lost} replies.", False)
        case Verdict.LOST:
            return Words(f"LOST: {lost} of {whole + lost} early replies.", False)
        case Verdict.LOST_FOR_SOME:
            names = " and ".join(f"`{client.value}`" for client in findings.losing_clients)
            return Words(
                f"LOST for clients that send {names}: {lost} of {whole + lost} early replies. "
                "The other clients lost none.",
                False,
            )
        case Verdict.HUNG:
            return Words(f"HUNG: {findings.hung} of {len(findings.tries)} tries.", False)
        case Verdict.SURVIVED:
            return Words(f"All {whole} early replies arrived complete.", True)
        case Verdict.NOT_TESTED:
            return Words("Not tested: there was no early reply.")
        case Verdict.NOT_CONNECTED:
            problem = findings.problem or _others(findings.rows[0]).removeprefix("1 ")
            return Words(f"Could not check {findings.url}: {problem}.", False)


def _hangs(findings: Findings) -> Words:
    names = ", ".join(row.client.value for row in findings.rows if row.hung)
    return Words(
        f"A try that hung is not a reply lost by closing, and a graceful close does not help: "
        f"{findings.hung} of {len(findings.tries)} ({names})."
    )


def _reservations(findings: Findings) -> list[Words]:
    """Return what the complete replies do not prove."""
    verdicts = [row.verdict for row in findings.rows]
    if Verdict.SURVIVED not in verdicts:
        return []
    reservations = [
        Words(f"{row.client.value} got no early reply, so it was not tested.")
        for row, verdict in zip(findings.rows, verdicts, strict=True)
        if verdict is Verdict.NOT_TESTED
    ]
    if all(each.status >= 500 for each in findings.tries if each.whole):
        reservations.append(
            Words(
                "All replies report a server error: name the expected status with "
                "--expect-status."
            )
        )
    if findings.unix_socket or findings.verdict is Verdict.LOST_FOR_SOME:
        return reservations
    if findings.longest <= _INITIAL_WINDOW:
        reservations.append(
            Words(
                f"No reply was longer than {findings.longest:,} bytes. A reply of more than "
                f"{_INITIAL_WINDOW:,} bytes (TCP's initial window) is lost more easily: try a "
                "--path with a longer error page, if there is one."
            )
        )
    if findings.local:
        reservations.append(
            Words(
                "Client and server were on one machine, where a reply can arrive before the "
                "reset that follows it: check from another machine too."
            )
        )
    return reservations


def _printable(text: str) -> str:
    """Escape what may not be printed in a text of a server, or in a name of a file."""
    return text if text.isascii() and text.isprintable() else ascii(text)[1:-1]
