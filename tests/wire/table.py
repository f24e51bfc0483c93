"""The generator of `docs/wire.md`, from the results of the tests."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from graceful_close import CloseResult

PAGE = Path(__file__).parents[2] / "docs" / "wire.md"

_HEAD = """\
# On the wire

Packets sent and results returned by each function, case by case. Each row is a test in `tests/wire/`: two network
namespaces of one Linux machine, joined by a link that drops, delays, repeats, reorders and forges packets. For each row, over
IPv4 and IPv6, the test compares the result with the recorded packets:

- DELIVERED and PEER_CLOSED are returned only after an acknowledgement of our FIN has arrived, PEER_CLOSED only after the
  peer's FIN, and PEER_RESET only after an RST.
- `unacked` is the number of bytes written, plus the FIN, minus the highest acknowledgement that has arrived.
- The wait ends within 50 ms of the packet that ends it, or of its deadline.
- A clean end is exactly one FIN and no RST. An abort is RST and no FIN. No RST is sent while a call waits.

"We sent" omits the handshake, plain acknowledgements, and retransmissions of packets that were not lost. The tests write this
page: `WRITE_DOCS=1 pytest tests/wire`, as root.
"""

_COLUMNS = "| What happens | Call | Outcome | `unacked` | Ended by | We sent |\n" + "| --- " * 6


class Proof(NamedTuple):
    """One close: its result, and its packets."""

    call: str
    result: CloseResult
    unacked: str
    ended_by: str
    sent: Callable[[], str]  # called when the test has ended


class Row(NamedTuple):
    """One row of the table."""

    section: str
    sentence: str
    call: str
    outcome: str
    unacked: str
    ended_by: str
    sent: str


class Page:
    """The rows of a run. Equal rows for IPv4 and IPv6 are merged."""

    def __init__(self) -> None:
        self._versions: dict[Row, list[str]] = {}

    def add(
        self, proof: Proof, module_doc: str, name: str, doc: str | None, version: str
    ) -> None:
        """Add a row for one close.

        Args:
            proof: The close.
            module_doc: The docstring of the module, whose first line is the heading.
            name: The name of the test, which is a sentence.
            doc: The docstring of the test, if the name does not describe the packets.
            version: "IPv4" or "IPv6".
        """
        row = Row(
            module_doc.strip().splitlines()[0].rstrip("."),
            " ".join(inspect.cleandoc(doc).split()) if doc else _sentence(name),
            f"`{proof.call}`",
            proof.result.outcome.name,
            proof.unacked,
            proof.ended_by,
            proof.sent(),
        )
        self._versions.setdefault(row, []).append(version)

    def write(self) -> None:
        parts = [_HEAD]
        for section, rows in groupby(self._versions, key=lambda row: row.section):
            parts.append(f"\n## {section}\n\n{_COLUMNS}|\n")
            for row in rows:
                sentence = row.sentence
                versions = set(self._versions[row])
                if len(versions) == 1:
                    sentence += f" ({versions.pop()})"
                parts.append(f"| {sentence} | {' | '.join(row[2:])} |\n")
        PAGE.write_text("".join(parts), encoding="utf-8")


def _sentence(name: str) -> str:
    words = name.removeprefix("test_").split("_")
    text = " ".join(_SPELT.get(word, word) for word in words)
    return f"{text[0].upper()}{text[1:]}."


_SPELT = {"fin": "FIN", "rst": "RST", "peers": "peer's"}
