"""Every server, with every client, for every size of upload and reply; before and after."""

from __future__ import annotations

import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from .clients import Order
from .processes import client, server
from .table import SERVERS

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from .clients import Answer
    from .places import Place
    from .processes import Client


class Extent(NamedTuple):
    """What is to be tried.

    Attributes:
        servers, clients: By name.
        uploads, replies: Bytes.
        tries: How often each, by the size of the upload.
    """

    servers: list[str]
    clients: list[str]
    uploads: list[int]
    replies: list[int]
    tries: Callable[[int], int]

    def in_all(self) -> int:
        """Tries in one place."""
        rounds = sum(map(self.tries, self.uploads))
        sizes = sum(
            (1 if SERVERS[name].own_reply else len(self.replies)) * len(SERVERS[name].sides)
            for name in self.servers
        )
        return rounds * sizes * len(self.clients)


@dataclass
class Cell:
    """One cell of the table.

    Attributes:
        reply: Bytes of the body; None: the server's own.
        whole: How many of the tries gave the client 401 or 413 and the whole body.
        said: What the client said the other times, and how often.
    """

    where: str
    server: str
    side: str
    client: str
    upload: int
    reply: int | None
    tries: int = 0
    whole: int = 0
    said: Counter[str] = field(default_factory=Counter[str])

    @property
    def what(self) -> tuple[str | int | None, ...]:
        """What it is the count of."""
        return self.where, self.server, self.side, self.client, self.upload, self.reply

    def add(self, answer: Answer) -> None:
        """Count one try."""
        self.tries += 1
        self.whole += answer.whole
        if not answer.whole:
            self.said[answer.said] += 1

    def as_dict(self) -> dict[str, Any]:
        """For the JSON file."""
        return asdict(self) | {"said": dict(self.said)}

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> Self:
        """From the JSON file."""
        cell = cls(**kept)
        cell.said = Counter(cell.said)
        return cell


def run(place: Place, extent: Extent, tell: Callable[[str, int], None]) -> list[Cell]:
    """All cells of one place. `tell` is called with what was tried, and how many tries that was.

    The two sides of a server take turns, a round of all clients each, so that what else happens
    on the machine happens to both.
    """
    cells: list[Cell] = []
    with ExitStack() as stack:
        clients = {name: stack.enter_context(client(place, name)) for name in extent.clients}
        for name in extent.servers:
            with ExitStack() as both:
                sides = SERVERS[name].sides
                try:
                    ports = {
                        side: both.enter_context(server(place, name, side)).port
                        for side in sides
                    }
                except RuntimeError as error:
                    print(f"Without {name}: {error}", file=sys.stderr)
                    continue
                replies = [None] if SERVERS[name].own_reply else extent.replies
                for upload, reply in product(extent.uploads, replies):
                    row = {
                        (side, who): Cell(place.name, name, side, who, upload, reply)
                        for side in sides
                        for who in clients
                    }
                    for _ in range(extent.tries(upload)):
                        for side in sides:
                            tell(f"{place.name}: {name}", len(clients))
                            order = Order(place.host, ports[side], upload, reply)
                            at_once = place.at_once(upload, len(clients))
                            for who, answer in _round(clients, order, at_once):
                                row[side, who].add(answer)
                    cells += row.values()
    return cells


def _round(clients: dict[str, Client], order: Order, at_once: int) -> list[tuple[str, Answer]]:
    """One try of each client."""
    with ThreadPoolExecutor(at_once) as pool:

        def ask(one: Client) -> Answer:
            return one.ask(order)

        answers = pool.map(ask, clients.values())
        return list(zip(clients, answers, strict=True))
