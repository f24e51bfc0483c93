"""The measurement: every server behind every proxy, before and after, with every client."""

from __future__ import annotations

import re
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.servers.clients import Order
from benchmarks.servers.places import loopback
from benchmarks.servers.processes import client

from .proxies import HOST, PROXIES
from .upstreams import UPSTREAMS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

CLIENTS = ("http.client", "curl -H Expect:", "requests")
SIDES = ("before", "after")
UPLOAD = 5_000_000
REPLIES = (100, 64 << 10)  # a short 401, a long 413

_ENDS = {
    "timeout": ("imed out", "imeout"),
    "cut short": ("IncompleteRead", "of 65536 bytes", "transfer closed"),
    "closed": ("RemoteDisconnected", "Remote end closed", "Empty reply"),
    "reset": ("eset", "roken pipe", "BrokenPipe", "Send failure"),
}


def kind_of(said: str) -> str:
    """Return the kind of a failure, from the client's message."""
    if status := re.search(r"status (\d+)", said):
        return status.group(1)
    for kind, signs in _ENDS.items():
        if any(sign in said for sign in signs):
            return kind
    return "other"


@dataclass
class Cell:
    """One server behind one proxy, as started or graceful.

    Attributes:
        right: The number of tries in which the client got the server's own 401 or 413,
            complete.
        by_client: The number of right tries, by client.
        said: The messages of the clients in the other tries, and how often.
        log: The kinds of lines in the proxy's log, and how often.
        lines: The first line of each kind, unchanged.
    """

    upstream: str
    proxy: str
    side: str
    tries: int = 0
    right: int = 0
    by_client: Counter[str] = field(default_factory=Counter[str])
    said: Counter[str] = field(default_factory=Counter[str])
    log: Counter[str] = field(default_factory=Counter[str])
    lines: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def what(self) -> tuple[str, str, str]:
        """The identity of the cell."""
        return self.upstream, self.proxy, self.side

    def add(self, who: str, whole: bool, said: str) -> None:
        """Count one try."""
        self.tries += 1
        self.by_client[who] += whole
        self.right += whole
        if not whole:
            self.said[f"{who}: {said}"] += 1

    @property
    def ends(self) -> Counter[str]:
        """Return the number of the other tries by kind: 502, reset, timeout and so on."""
        ends: Counter[str] = Counter()
        for said, count in self.said.items():
            ends[kind_of(said)] += count
        return ends

    def as_dict(self) -> dict[str, Any]:
        """Convert for the JSON file."""
        return vars(self) | {"ends": self.ends}

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> Self:
        """Convert from the JSON file."""
        cell = cls(**{name: value for name, value in kept.items() if name != "ends"})
        for name in ("by_client", "said", "log"):
            setattr(cell, name, Counter(getattr(cell, name)))
        return cell


def run(
    upstreams: Sequence[str],
    proxies: Sequence[str],
    tries: int,
    report: Callable[[list[Cell]], None],
) -> None:
    """Try all servers and proxies; `report` is called with the cells of each pair."""
    with ExitStack() as stack:
        place = stack.enter_context(loopback())
        clients = {who: stack.enter_context(client(place, who)) for who in CLIENTS}
        for upstream, proxy in product(upstreams, proxies):
            served, fronting = UPSTREAMS[upstream], PROXIES[proxy]
            if served.speaks_uwsgi != fronting.speaks_uwsgi:
                continue
            cells = {side: Cell(upstream, proxy, side) for side in SIDES}
            replies = (None,) if served.own_reply else REPLIES
            with ExitStack() as both:
                folder = Path(both.enter_context(tempfile.TemporaryDirectory()))
                ports: dict[str, int] = {}
                try:
                    for side in SIDES:
                        address = both.enter_context(served.running(folder, side == "after"))
                        fronted = fronting.before(address, folder / side)
                        ports[side] = both.enter_context(fronted)
                except RuntimeError as error:
                    print(f"Without {upstream}, {proxy}: {error}", file=sys.stderr)
                    continue
                for _, reply, (who, asking), side in product(
                    range(tries), replies, clients.items(), SIDES
                ):
                    answer = asking.ask(Order(HOST, ports[side], UPLOAD, reply))
                    cells[side].add(who, answer.whole, answer.said)
                for side, cell in cells.items():
                    cell.log, cell.lines = fronting.says(folder / side)
            report(list(cells.values()))
