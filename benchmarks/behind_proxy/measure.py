"""Every server behind every proxy, before and after, asked by every client in turns."""

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
    """What became of a reply that did not arrive, from what the client said."""
    if status := re.search(r"status (\d+)", said):
        return status.group(1)
    for kind, signs in _ENDS.items():
        if any(sign in said for sign in signs):
            return kind
    return "other"


@dataclass
class Cell:
    """One server behind one proxy, on one side.

    Attributes:
        right: How many of the tries gave the client the server's own 401 or 413, whole.
        by_client: How many were right, by client.
        said: What the clients said the other times, and how often.
        log: What the proxy's log said meanwhile, and how often.
        lines: The first line of each kind, as it stands there.
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
        """What it is the count of."""
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
        """What became of the others: 502, reset, timeout and so on."""
        ends: Counter[str] = Counter()
        for said, count in self.said.items():
            ends[kind_of(said)] += count
        return ends

    def as_dict(self) -> dict[str, Any]:
        """For the JSON file."""
        return vars(self) | {"ends": self.ends}

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> Self:
        """From the JSON file."""
        cell = cls(**{name: value for name, value in kept.items() if name != "ends"})
        for name in ("by_client", "said", "log"):
            setattr(cell, name, Counter(getattr(cell, name)))
        return cell


def run(
    upstreams: Sequence[str],
    proxies: Sequence[str],
    tries: int,
    tell: Callable[[list[Cell]], None],
) -> None:
    """Try all of them; `tell` is called with the cells of each server and proxy."""
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
                        address = both.enter_context(served.at_work(folder, side == "after"))
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
            tell(list(cells.values()))
