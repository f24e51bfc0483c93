"""The wire that a test uses: its connections, its rules, and its record."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Self

from graceful_close import LingerPolicy, set_linger
from streams import DEADLINE

from .link import ADDRESSES, Journey, Link
from .packets import OURS, PEER, Conversation, Fate, Packet, Segment, Side
from .record import Record
from .rules import FIN, Which, acknowledging, first
from .states import StateMonitor
from .table import Proof


class Passage(NamedTuple):
    """A packet before it is carried, and the time of its arrival."""

    packet: Packet
    raw: bytes
    due: float
    conversation: Conversation


Act = Callable[[Passage], list[Journey]]


class OurSocket(socket.socket):
    """A socket that counts the bytes written to it, to verify `unacked`."""

    written = 0

    def send(self, data: bytes, flags: int = 0, /) -> int:  # type: ignore[override]
        count = super().send(data, flags)
        self.written += count
        return count

    def sendall(self, data: bytes, flags: int = 0, /) -> None:  # type: ignore[override]
        super().sendall(data, flags)
        self.written += len(data)


class Connection(NamedTuple):
    """Both ends of one connection across the wire."""

    ours: OurSocket
    peer: socket.socket


@dataclass
class _Rule:
    which: Which
    act: Act
    count: int = 0

    def takes(self, packet: Packet) -> bool:
        if not self.which.is_one(packet):
            return False
        self.count += 1
        return self.which.counts(self.count)


class Wire(Record):
    """A wire between two network namespaces. Call `close`, or use it in a `with` block.

    Without a rule every packet is carried immediately and in order. Rules are tried in the
    order in which they were added, and the first rule that matches a packet applies.

    Args:
        link: The link, which carries only this wire until it is closed.
        version: "IPv4" or "IPv6".
        recording: Whether to keep a record and to apply rules. Without it only `delay()` works,
            for traffic that is too much for a record.

    Attributes:
        late: The most seconds by which a packet was delivered too late, because the machine is slow,
            and the seconds in which no processor was free for a close.
    """

    def __init__(self, link: Link, version: str, *, recording: bool = True) -> None:
        super().__init__()
        self.version = version
        self.late = 0.0
        self._recording = recording
        self.proofs: list[Proof] = []
        self._link = link
        self._held = ExitStack()
        self._ports: dict[int, Side] = {}
        self._conversations: dict[tuple[int, int], Conversation] = {}
        self._rules: list[_Rule] = []
        self._delay = 0.0
        self._dark: set[Side] = set()
        self._waiting_to_swap: dict[Side, Journey] = {}
        self._monitors: dict[Side, StateMonitor] = {}
        link.hand_to(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every socket of the wire; packets in flight are not waited for."""
        self._link.hand_to(None)
        self._held.close()

    # --- connections --------------------------------------------------------------------------

    def inside(self, side: Side) -> AbstractContextManager[None]:
        """Put sockets and child processes that this thread makes in the block on that side."""
        return self._link.inside(side)

    def listen(self, side: Side = OURS) -> socket.socket:
        """Return a listener on that side, whose connections are recorded."""
        address = ADDRESSES[self.version][side]
        with self._link.inside(side):
            listener = socket.create_server((address, 0), family=self._family, backlog=512)
        self._held.callback(listener.close)
        self._ports[listener.getsockname()[1]] = side
        return listener

    def unconnected(self, side: Side = PEER) -> socket.socket:
        """Return a new TCP socket on that side."""
        with self._link.inside(side):
            sock = socket.socket(self._family, socket.SOCK_STREAM)
        sock.settimeout(DEADLINE)
        self._held.callback(_vanish, sock)
        return sock

    def connect(self, *, peer_buffer: int | None = None) -> Connection:
        """Make a connection whose `ours` is the accepting side; `peer_buffer` is in bytes."""
        with self.listen() as listener:
            peer = self.unconnected(PEER)
            if peer_buffer is not None:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, peer_buffer)
            peer.connect(listener.getsockname())
            accepted, _ = listener.accept()
        ours = OurSocket(fileno=accepted.detach())
        self._held.callback(_vanish, ours)
        return Connection(ours, peer)

    def half_closed(self) -> Connection:
        """Make a connection on which the peer's FIN has arrived."""
        connection = self.connect()
        connection.peer.shutdown(socket.SHUT_WR)
        self.await_delivery(first(FIN, from_=PEER))
        self.settle()
        return connection

    @property
    def _family(self) -> socket.AddressFamily:
        return socket.AF_INET if self.version == "IPv4" else socket.AF_INET6

    # --- rules --------------------------------------------------------------------------------

    def delay(self, seconds: float) -> None:
        """Delay every packet from now on, in each direction."""
        with self.changed:
            self._delay = seconds

    def drop(self, which: Which) -> None:
        """Drop the packet."""

        def act(passage: Passage) -> list[Journey]:
            passage.packet.fate = Fate.DROPPED
            return []

        self._add_rule(which, act)

    def hold(self, which: Which, seconds: float) -> None:
        """Delay the packet; later packets may arrive before it."""

        def act(passage: Passage) -> list[Journey]:
            passage.packet.fate = Fate.HELD
            return [self._journey(passage._replace(due=passage.due + seconds))]

        self._add_rule(which, act)

    def duplicate(self, which: Which) -> None:
        """Deliver the packet twice."""

        def act(passage: Passage) -> list[Journey]:
            passage.packet.fate = Fate.DOUBLED
            return [self._journey(passage)] * 2

        self._add_rule(which, act)

    def swap(self, which: Which) -> None:
        """Deliver the packet right after the next one."""

        def act(passage: Passage) -> list[Journey]:
            passage.packet.fate = Fate.SWAPPED
            self._waiting_to_swap[passage.packet.from_] = self._journey(passage)
            return []

        self._add_rule(which, act)

    def reset(self, side: Side, *, at: Which, too_far: int = 0) -> None:
        """Replace the packet by a forged RST to `side`, which the other side never sent.

        The sequence number is the one that `side` expects, plus `too_far` bytes.
        """

        def act(passage: Passage) -> list[Journey]:
            passage.packet.fate = Fate.REFUSED

            def load(now: float) -> tuple[bytes, Callable[[], None]]:
                reset, raw = passage.conversation.forge_reset(side, now, too_far=too_far)
                self.add(reset)
                return raw, partial(self.mark_delivered, reset, now)

            return [Journey(passage.due, side, load)]

        self._add_rule(at, act)

    def cut(self, *, from_: Side | None = None, at: Which | None = None) -> None:
        """Drop all packets from now on, from one side or from both.

        Args:
            from_: The side whose packets are dropped; None: both.
            at: The first packet to be dropped; None: the next packet.
        """
        sides = set(Side) if from_ is None else {from_}
        if at is None:
            with self.changed:
                self._dark |= sides
            return

        def act(passage: Passage) -> list[Journey]:
            self._dark |= sides
            return self._pass(passage)

        self._add_rule(at, act)

    def mend(self) -> None:
        """Undo every cut."""
        with self.changed:
            self._dark.clear()

    def deliver(self, data: bytes, ours: OurSocket) -> None:
        """Send data, and wait for the acknowledgement of everything that was sent on `ours`."""
        ours.sendall(data)
        self.await_delivery(first(acknowledging(ours.written), from_=PEER))

    def sample_states(self) -> None:
        """Record with each packet, from now on, the TCP state of each side."""
        for side in Side:
            with self._link.inside(side):
                monitor = StateMonitor()
            self._held.callback(monitor.close)
            self._monitors[side] = monitor

    def settle(self) -> None:
        """Wait until all packets sent so far have arrived or are lost."""
        self._link.come_to_rest()

    def _add_rule(self, which: Which, act: Act) -> None:
        with self.changed:
            self._rules.append(_Rule(which, act))

    # --- carrying -----------------------------------------------------------------------------

    def carry(self, raw: bytes, from_: Side, now: float) -> list[Journey] | None:
        """Decide about a packet; called by the forwarder."""
        if not self._recording:
            return [Journey.of(raw, from_.other, now + self._delay)]
        segment = Segment.read(raw)
        conversation = segment and self._conversation_of(segment, from_)
        if segment is None or conversation is None:
            return None
        with self.changed:
            packet = conversation.tell(from_, segment, now)
            if len(self._monitors) == len(Side):
                packet.states = self._states_of(conversation)
            self.add(packet)
            passage = Passage(packet, raw, now + self._delay, conversation)
            swapped = self._waiting_to_swap.pop(from_, None)
            if from_ in self._dark:
                return self._pass(passage)
            rule = next((rule for rule in self._rules if rule.takes(packet)), None)
            journeys = self._pass(passage) if rule is None else rule.act(passage)
            if swapped is not None:
                journeys = [*journeys, swapped._replace(due=passage.due)]
            return journeys

    def _states_of(self, conversation: Conversation) -> tuple[str, str]:
        ours, peer = conversation.addresses[OURS], conversation.addresses[PEER]
        return self._monitors[OURS].state(ours, peer), self._monitors[PEER].state(peer, ours)

    def _pass(self, passage: Passage) -> list[Journey]:
        if passage.packet.from_ in self._dark:
            passage.packet.fate = Fate.DROPPED
            return []
        return [self._journey(passage)]

    def _journey(self, passage: Passage) -> Journey:
        packet = passage.packet

        def load(now: float) -> tuple[bytes, Callable[[], None]]:
            self.late = max(self.late, now - passage.due)

            def landed() -> None:
                # The time is taken before the write, because the answer may arrive before this
                # thread continues. The waiting threads are notified after the write, because
                # they may act on it.
                passage.conversation.arrived(packet)
                self.mark_delivered(packet, now)

            return passage.raw, landed

        return Journey(passage.due, packet.from_.other, load)

    def _conversation_of(self, segment: Segment, from_: Side) -> Conversation | None:
        ports = segment.source_port, segment.target_port
        ours, peer = ports if from_ is OURS else ports[::-1]
        if ours not in self._ports and peer not in self._ports:
            return None
        conversation = self._conversations.get((ours, peer))
        if conversation is None:
            ends = ADDRESSES[self.version]
            conversation = Conversation({OURS: (ends[OURS], ours), PEER: (ends[PEER], peer)})
            self._conversations[ours, peer] = conversation
        return conversation


def _vanish(sock: socket.socket) -> None:
    """Close with a reset, so that no later packets disturb the next test."""
    if sock.fileno() != -1:
        set_linger(sock, LingerPolicy.ABORT)
        sock.close()
