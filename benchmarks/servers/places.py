"""Where server and client are: on loopback, or with the delayed wire of the tests between them."""

from __future__ import annotations

import sys
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.append(str(Path(__file__).parents[2] / "tests"))

from wire.laid import Wire
from wire.link import ADDRESSES, Link, why_not
from wire.packets import OURS, PEER

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from contextlib import AbstractContextManager

DELAY = 0.02  # seconds, each way

# The wire is a thread of ours, and carries some 30 MB in a second. More than these at once would
# measure how patient everybody is.
_LARGE = 10_000_000
_FEW = 2


class Place(NamedTuple):
    """A place for servers and clients.

    Attributes:
        name: Of it.
        host: Where servers listen.
        serving, asking: What this thread makes meanwhile, processes too, is a server's, a client's.
        far: Whether a try is spent in waiting, so that several at once do not disturb each other.
    """

    name: str
    host: str
    serving: Callable[[], AbstractContextManager[None]]
    asking: Callable[[], AbstractContextManager[None]]
    far: bool

    def at_once(self, upload: int, clients: int) -> int:
        """How many clients may try at the same time."""
        if not self.far:
            return 1
        return min(clients, _FEW) if upload > _LARGE else clients


@contextmanager
def loopback() -> Generator[Place]:
    yield Place("loopback", "127.0.0.1", nullcontext, nullcontext, far=False)


@contextmanager
def wire() -> Generator[Place]:
    """20 ms each way.

    Raises:
        OSError: The system does not let us; see also `why_no_wire`.
    """
    link = Link()
    try:
        with Wire(link, "IPv4", recording=False) as laid:
            laid.delay(DELAY)
            host = ADDRESSES["IPv4"][OURS]
            inside = laid.inside
            yield Place("wire", host, partial(inside, OURS), partial(inside, PEER), far=True)
    finally:
        link.close()


def why_no_wire() -> str | None:
    """Why the wire cannot be laid here; None: it can."""
    reason = why_not()
    if reason is None:
        try:
            Link().close()
        except PermissionError as error:  # root of a container, which may not unshare(2)
            reason = f"the wire cannot be laid here: {error}"
    return reason


PLACES = {"loopback": loopback, "wire": wire}
