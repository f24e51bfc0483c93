"""The places of server and client: on loopback, or at the ends of the tests' delayed wire."""

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

DELAY = 0.02  # seconds, one-way

# The wire is a thread of this process, and carries some 30 MB per second. More concurrent
# clients would measure timeouts.
_LARGE = 10_000_000
_FEW = 2


class Place(NamedTuple):
    """A place for servers and clients.

    Attributes:
        name: The name of the place.
        host: The address that servers listen on.
        serving, asking: In these blocks this thread makes sockets and processes of servers, or
            of clients.
        far: Whether a try is mostly waiting, so that concurrent tries do not disturb each
            other.
    """

    name: str
    host: str
    serving: Callable[[], AbstractContextManager[None]]
    asking: Callable[[], AbstractContextManager[None]]
    far: bool

    def at_once(self, upload: int, clients: int) -> int:
        """The number of concurrent clients."""
        if not self.far:
            return 1
        return min(clients, _FEW) if upload > _LARGE else clients


@contextmanager
def loopback() -> Generator[Place]:
    yield Place("loopback", "127.0.0.1", nullcontext, nullcontext, far=False)


@contextmanager
def wire() -> Generator[Place]:
    """Return the place with 20 ms of one-way delay.

    Raises:
        OSError: The system refuses; see also `why_no_wire`.
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
    """Return why the wire cannot be made here; None: it can."""
    reason = why_not()
    if reason is None:
        try:
            Link().close()
        except PermissionError as error:  # root in a container that may not call unshare(2)
            reason = f"the wire cannot be made here: {error}"
    return reason


PLACES = {"loopback": loopback, "wire": wire}
