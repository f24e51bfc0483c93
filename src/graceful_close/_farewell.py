"""A connection that was taken from its framework, and what TLS has yet to say on it.

trio's and anyio's streams hold nothing back, or can be flushed. So the descriptor is taken from
them and the close sequence runs on a plain socket. What a TLS session has to say before that is
asked of it in memory, and sent here, where nothing but the deadline can hold it up.
"""

from __future__ import annotations

import math
import selectors
from time import monotonic

from ._awaiting import BATCH, LOOK_EVERY, close_on, wait_on
from ._checks import is_tcp
from ._delivery import count_unacked
from ._discard import Discard, discard_of
from ._linger import LingerPolicy
from ._loop import CloseLoop
from ._platform import Meaning, meaning
from ._release import let_go
from ._result import CloseResult
from ._teardown import Terms

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Sequence

    from ._awaiting import Wait
    from ._loop import Closing, Said

_NOT_NOW = (Meaning.WOULD_BLOCK, Meaning.INTERRUPTED)

# Reads in a row before others get their turn. Arbitrary: about a millisecond.
_READS_IN_A_ROW = 8


class Farewell:
    """A connection that is ours alone, and the last words of its TLS session.

    There may be no room for them; then they wait for it, and what the peer sends meanwhile is
    thrown away: a peer that sends all before it reads takes nothing while nobody reads.

    Args:
        sock: A plain stream socket, open.
        terms: What the caller asked for.
        since: From when the deadlines count.

    Attributes:
        sock: As above.
        last_sign: The reading of the clock at the last sign of life, or `since`.
        result: How the connection ended; None until it has.
    """

    __slots__ = (
        "_discard",
        "_drained",
        "_left",
        "_said",
        "_since",
        "_terms",
        "_unacked",
        "_words",
        "last_sign",
        "result",
        "sock",
    )

    def __init__(self, sock: socket.socket, terms: Terms, since: float) -> None:
        sock.settimeout(0)  # as its framework had it; a new object does not know
        self.sock = sock
        self.result: CloseResult | None = None
        self._terms = terms
        self._since = since
        self._said: Said = None
        self._words = b""
        self._discard: Discard | None = None
        self._left: float = math.inf if terms.drain_limit is None else terms.drain_limit
        self._drained = 0
        self.last_sign = since  # of life
        self._unacked: int | None = None

    def say(self, words: bytes, notified: bool | None, peer_notified: bool | None) -> None:
        """Have TLS's last records sent, and told what they are.

        Args:
            words: The records, with close_notify at their end if `notified` is true.
            notified: As in `CloseResult`, once they are out.
            peer_notified: The same.
        """
        self._words = words
        self._said = None if notified is None else (notified, peer_notified)

    def failed(self, error: OSError) -> None:
        """The network ended the connection, and told it to the framework alone."""
        self._words = b""
        self._said = error.with_traceback(None)

    @property
    def has_failed(self) -> bool:
        """The network ended it."""
        return isinstance(self._said, OSError)

    # --- the words --------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """The reading of the clock at which the time is up."""
        return self._since + self._terms.timeout

    @property
    def wake_at(self) -> float:
        """The latest reading of the clock at which to `go_on`."""
        return min(self.deadline, self.last_sign + self._terms.idle_timeout)

    def go_on(self) -> bool:
        """Say what there is room for.

        Returns:
            Whether there is nothing more to say, or no sense in it.

        Raises:
            OSError: Nothing that a network does.
        """
        if not self._words:
            return True
        try:
            if self._send():
                return True
            self.drain()
        except BrokenPipeError:
            self._cut()  # shut for writing before, which is no news of the connection
            return True
        except OSError as error:
            if meaning(error) is None:
                raise
            self.failed(error)
            return True
        if self.is_late(monotonic()):
            self._cut()
            return True
        return False

    def is_late(self, now: float) -> bool:
        """Whether the time is up, or the peer was silent for too long."""
        return now >= self.wake_at and (now >= self.deadline or not self._lives(now))

    def _send(self) -> bool:
        waited = self._discard is not None
        while self._words:
            try:
                count = self.sock.send(self._words)
            except OSError as error:
                if meaning(error) in _NOT_NOW:
                    return False
                raise
            self._words = self._words[count:]
            if waited:
                self.last_sign = monotonic()
        return True

    def drain(self) -> None:
        """Throw away what has come in."""
        if self._discard is None:
            self._discard = discard_of(self.sock, tcp=is_tcp(self.sock))
            self._unacked = self._count_unacked()
        for _ in range(_READS_IN_A_ROW):
            if self._left <= 0:
                return  # the machine is to meet the limit
            allowance = None if self._left == math.inf else int(self._left)
            try:
                count = self._discard.read(self.sock, allowance)
            except OSError as error:
                if meaning(error) in _NOT_NOW:
                    return
                raise
            if count == 0:
                self._left = 0  # the peer's FIN, which the machine will find again
                return
            self._drained += count
            self._left -= count
            self.last_sign = monotonic()

    def _lives(self, now: float) -> bool:
        """Whether the peer has acknowledged something while it was silent."""
        before, self._unacked = self._unacked, self._count_unacked()
        if before is None or self._unacked is None or self._unacked >= before:
            return False
        self.last_sign = now
        return True

    def _count_unacked(self) -> int | None:
        return count_unacked(self.sock, tcp=is_tcp(self.sock))

    def _cut(self) -> None:
        """Not all could be said. A peer that reads the FIN after it knows so."""
        self._words = b""
        peers = self._said[1] if isinstance(self._said, tuple) else None
        self._said = (False, peers)

    def watch(self, selector: selectors.BaseSelector) -> None:
        """Have `selector`, which does not know it, tell when to `go_on`."""
        both = selectors.EVENT_READ | selectors.EVENT_WRITE
        selector.register(self.sock, both if self._left > 0 else selectors.EVENT_WRITE, self)

    # --- the close ----------------------------------------------------------------------------

    def begin(self, loop: CloseLoop) -> None:
        """Go on as one of many."""
        loop.add(self.sock, self._rest(), self.last_sign, self, self._said)

    async def close(self, wait: Wait) -> CloseResult:
        """Go on alone."""
        rest = self._rest()
        return self.told(await close_on(rest, self.sock, wait, self.last_sign, self._said))

    def told(self, result: CloseResult) -> CloseResult:
        """How it ended, with what happened before the machine began."""
        self.result = CloseResult(
            result.outcome,
            result.elapsed + (self.last_sign - self._since),
            result.drained + self._drained,
            result.unacked,
            result.error,
            result.notified,
            result.peer_notified,
        )
        return self.result

    def _rest(self) -> Terms:
        """What was asked for, as it counts from the last sign of life."""
        terms = self._terms
        if self.last_sign == self._since:
            return terms
        limit = terms.drain_limit
        return Terms(
            max(0.0, self.deadline - self.last_sign),
            None if terms.idle_timeout == math.inf else terms.idle_timeout,
            None if limit is None else limit - self._drained,
            terms.until,
            terms.on_timeout,
        )


async def close_one(farewell: Farewell, wait: Wait) -> CloseResult:
    """Say what is to be said, then close. A cancellation closes at once and goes on."""
    try:
        if not farewell.go_on():
            with _new_selector() as selector:
                while True:
                    farewell.watch(selector)
                    await wait_on(_number_of(selector), farewell.wake_at, wait)
                    selector.unregister(farewell.sock)
                    if farewell.go_on():
                        break
    except BaseException:
        drop([farewell])
        raise
    return await farewell.close(wait)


async def close_many(farewells: Sequence[Farewell], wait: Wait) -> None:
    """`close_one` for many at once; each has its result then.

    Raises:
        Exception: What the first of them failed by, if one did, by nothing that a network does.
            All are closed by then, the others as they would have been.
    """
    crowd = _Crowd()
    try:
        for index, farewell in enumerate(farewells):
            crowd.add(farewell)
            if index % BATCH == BATCH - 1:
                await wait.pause(0)
        while crowd.loop or crowd.speaking:
            await wait_on(crowd.loop.fileno(), crowd.wake_at, wait)
            crowd.turn()
    except BaseException:
        crowd.close()
        drop(farewells)
        raise
    crowd.close()
    if crowd.failures:
        raise crowd.failures[0]


def drop(farewells: Iterable[Farewell]) -> None:
    """Close all at once, without lingering: something foreign happened."""
    for farewell in farewells:
        let_go(farewell.sock, LingerPolicy.BACKGROUND)


class _Crowd:
    """Connections that are closed by one loop, and those that have yet to say something."""

    def __init__(self) -> None:
        self.failures: list[Exception] = []
        self.loop = CloseLoop(self._ended)
        self.speaking: set[Farewell] = set()
        self._selector: selectors.BaseSelector | None = None

    def add(self, farewell: Farewell) -> None:
        """Go on with one: it has to say something yet, or is closed by the loop from now on."""
        try:
            if farewell.go_on():
                farewell.begin(self.loop)
                return
            if self._selector is None:
                self._selector = _new_selector()
                if _number_of(self._selector) != -1:
                    self.loop.wake_for(_number_of(self._selector))
            farewell.watch(self._selector)
        except Exception as error:  # noqa: BLE001 (whatever it is, others are not to blame)
            drop([farewell])
            self.failures.append(error)
        else:
            self.speaking.add(farewell)

    @property
    def wake_at(self) -> float:
        """The latest reading of the clock at which to `turn`."""
        wake_at = min((farewell.wake_at for farewell in self.speaking), default=math.inf)
        if self._selector is not None and _number_of(self._selector) == -1:
            wake_at = min(wake_at, monotonic() + LOOK_EVERY)
        return min(wake_at, self.loop.wake_at)

    def turn(self) -> None:
        """Carry out what can be without waiting."""
        self.loop.turn(0)
        if self._selector is None or not self.speaking:
            return
        woken = {key.data for key, _ in self._selector.select(0)}
        now = monotonic()
        for farewell in [f for f in self.speaking if f in woken or now >= f.wake_at]:
            self.speaking.discard(farewell)
            self._selector.unregister(farewell.sock)
            self.add(farewell)

    def close(self) -> None:
        self.loop.close()
        if self._selector is not None:
            self._selector.close()

    def _ended(self, closing: Closing, outcome: CloseResult | Exception) -> None:
        if isinstance(outcome, Exception):
            self.failures.append(outcome)
        else:
            closing.ticket.told(outcome)


def _new_selector() -> selectors.BaseSelector:
    try:
        return selectors.DefaultSelector()
    except OSError:  # EMFILE: poll() takes no descriptor
        return getattr(selectors, "PollSelector", selectors.SelectSelector)()


def _number_of(selector: selectors.BaseSelector) -> int:
    fileno = getattr(selector, "fileno", None)  # epoll, kqueue and /dev/poll have it
    return -1 if fileno is None else fileno()
