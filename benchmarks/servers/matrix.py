"""The measurement: every server, client, and size of upload and reply; before and after."""

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
    """The tries to make.

    Attributes:
        servers, clients: The names.
        uploads, replies: The sizes in bytes.
        tries: The number of tries, by the size of the upload.
    """

    servers: list[str]
    clients: list[str]
    uploads: list[int]
    replies: list[int]
    tries: Callable[[int], int]

    def in_all(self) -> int:
        """The number of tries in one place."""
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
        reply: The size of the body in bytes; None: the server's own reply.
        whole: The number of tries in which the client got 401 or 413 and the whole body.
        said: The messages of the client in the other tries, and how often.
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
        """The identity of the cell."""
        return self.where, self.server, self.side, self.client, self.upload, self.reply

    def add(self, answer: Answer) -> None:
        """Count one try."""
        self.tries += 1
        self.whole += answer.whole
        if not answer.whole:
            self.said[answer.said] += 1

    def as_dict(self) -> dict[str, Any]:
        """Convert for the JSON file."""
        return asdict(self) | {"said": dict(self.said)}

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> Self:
        """Convert from the JSON file."""
        cell = cls(**kept)
        cell.said = Counter(cell.said)
        return cell


def run(place: Place, extent: Extent, report: Callable[[str, int], None]) -> list[Cell]:
    """Measure all cells of one place; `report` is called with each step and its tries.

    The two sides of a server alternate, with a round of all clients each, so that other work on
    the machine affects both.
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
                            report(f"{place.name}: {name}", len(clients))
                            order = Order(place.host, ports[side], upload, reply)
                            at_once = place.at_once(upload, len(clients))
                            for who, answer in _round(clients, order, at_once):
                                row[side, who].add(answer)
                    cells += row.values()
    return cells


def _round(clients: dict[str, Client], order: Order, at_once: int) -> list[tuple[str, Answer]]:
    """Make one try with each client."""
    with ThreadPoolExecutor(at_once) as pool:

        def ask(one: Client) -> Answer:
            return one.ask(order)

        answers = pool.map(ask, clients.values())
        return list(zip(clients, answers, strict=True))
