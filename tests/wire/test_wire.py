"""The wire itself: it applies the rules, and no packet leaves it."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path
from time import monotonic

import pytest

from streams import DEADLINE, await_fin, meanwhile, read_all

from .laid import Wire
from .link import ADDRESSES, Link, why_not
from .packets import OURS, PEER
from .rules import ACK_OF_FIN, DATA, FIN, every, first, nth


def test_the_record_counts_from_the_start_of_the_connection(wire: Wire) -> None:
    ours, peer = wire.connect()
    ours.sendall(b"hello")
    assert peer.recv(100) == b"hello"
    peer.sendall(b"hi")
    assert ours.recv(100) == b"hi"
    wire.settle()
    assert ours.getsockname()[0] == ADDRESSES[wire.version][OURS]
    seen = [(p.direction, p.flags, p.seq, p.ack, p.length) for p in wire.packets()]
    assert seen[:5] == [
        ("peer→ours", "S", 0, 0, 0),
        ("ours→peer", "SA", 0, 1, 0),
        ("peer→ours", "A", 1, 1, 0),
        ("ours→peer", "PA", 1, 1, 5),
        ("peer→ours", "A", 1, 6, 0),
    ]
    assert ("peer→ours", "PA", 1, 6, 2) in seen


def test_a_delay_applies_to_both_directions(wire: Wire) -> None:
    wire.delay(0.02)
    began = monotonic()
    wire.connect()
    assert monotonic() - began >= 0.04
    for packet in wire.packets():
        if packet.delivered:
            assert packet.delivered[0] - packet.time >= 0.02


def test_a_dropped_packet_is_recorded_and_does_not_arrive(wire: Wire) -> None:
    wire.drop(first(DATA, from_=OURS))
    ours, peer = wire.connect()
    ours.sendall(b"hello")
    assert peer.recv(100) == b"hello"
    wire.settle()
    lost, repeated = wire.packets(from_=OURS)[1:3]
    assert (lost.delivered, lost.again, lost.length) == ([], False, 5)
    assert (len(repeated.delivered), repeated.again, repeated.length) == (1, True, 5)


def test_later_packets_arrive_before_a_held_packet(wire: Wire) -> None:
    wire.hold(nth(2, DATA, from_=OURS), 0.05)
    ours, peer = wire.connect()
    ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for word in (b"one", b"two", b"three"):
        ours.sendall(word)
    ours.shutdown(socket.SHUT_WR)
    assert read_all(peer) == b"onetwothree"
    wire.settle()
    held = wire.await_delivery(nth(2, DATA, from_=OURS))
    assert 0.05 <= held.delivered[0] - held.time < 0.1
    assert wire.await_delivery(nth(3, DATA, from_=OURS)).delivered[0] < held.delivered[0]


def test_a_duplicated_packet_arrives_twice_and_is_recorded_once(wire: Wire) -> None:
    wire.duplicate(every(DATA, from_=OURS))
    ours, peer = wire.connect()
    ours.sendall(b"hello")
    wire.settle()
    assert peer.recv(100) == b"hello"
    assert len(wire.await_delivery(first(DATA, from_=OURS)).delivered) == 2


def test_a_swapped_packet_arrives_after_the_next(wire: Wire) -> None:
    wire.swap(first(DATA, from_=OURS))
    ours, peer = wire.connect()
    ours.sendall(b"hello")
    ours.shutdown(socket.SHUT_WR)
    assert read_all(peer) == b"hello"
    data = wire.await_delivery(first(DATA, from_=OURS))
    fin = wire.await_delivery(first(FIN, from_=OURS))
    assert data.time <= fin.time
    assert fin.delivered[0] <= data.delivered[0]


@pytest.mark.parametrize("side", [OURS, PEER], ids=["ours", "peer"])
def test_a_forged_rst_is_accepted(wire: Wire, side: object) -> None:
    ours, peer = wire.connect()
    victim, witness = (ours, OURS) if side is OURS else (peer, PEER)
    wire.reset(witness, at=first(DATA, from_=PEER))
    peer.sendall(b"never arrives")
    with pytest.raises(ConnectionResetError):
        read_all(victim)


def test_a_cut_applies_to_its_direction(wire: Wire) -> None:
    ours, peer = wire.connect()
    wire.cut(from_=OURS)
    peer.sendall(b"hello")
    assert ours.recv(100) == b"hello"
    ours.sendall(b"lost")
    wire.settle()
    assert wire.await_packet(first(DATA, from_=OURS)).delivered == []
    wire.mend()
    assert peer.recv(100) == b"lost", "sent again"


def test_the_wire_carries_many_connections_at_the_same_time(wire: Wire) -> None:
    wire.delay(0.005)
    with wire.listen() as listener:
        peers = [wire.unconnected() for _ in range(20)]
        for peer in peers:
            peer.setblocking(False)
            peer.connect_ex(listener.getsockname())
        for _ in peers:
            accepted, (_host, port, *_rest) = listener.accept()
            accepted.sendall(b"%d" % port)
            accepted.close()
        for peer in peers:
            assert read_all(peer) == b"%d" % peer.getsockname()[1]
    assert len({packet.connection for packet in wire.packets()}) == 20


def test_the_states_of_both_ends_are_read_without_descriptors(wire: Wire) -> None:
    ours, peer = wire.connect()
    wire.sample_states()
    ours.close()
    wire.await_delivery(first(ACK_OF_FIN, from_=PEER))
    peer.close()
    wire.await_delivery(first(ACK_OF_FIN, from_=OURS))
    states = [packet.states for packet in wire.packets()][-4:]
    assert states == [
        ("FIN_WAIT1", "ESTABLISHED"),
        ("FIN_WAIT1", "CLOSE_WAIT"),
        ("FIN_WAIT2", "LAST_ACK"),
        ("TIME_WAIT", "LAST_ACK"),
    ]


def test_a_drawing_has_packets_and_notes_in_order_of_time(wire: Wire) -> None:
    ours, peer = wire.connect()
    wire.settle()
    wire.note(OURS, "close()")
    ours.close()
    await_fin(peer)
    # A slow delivery on this machine is drawn too, after a comma.
    drawing = [line.split(" ms  ")[1].split(",")[0] for line in wire.draw().splitlines()]
    assert drawing[:5] == [
        "peer→ours  S    seq 0 ack 0",
        "ours→peer  SA   seq 0 ack 1",
        "peer→ours  A    seq 1 ack 1",
        "ours: close()",
        "ours→peer  FA   seq 1 ack 1",
    ]


def test_a_delay_works_without_a_record(link: Link) -> None:
    with Wire(link, "IPv4", recording=False) as wire:
        wire.delay(0.01)
        ours, peer = wire.connect()
        began = monotonic()
        with meanwhile(read_all, peer) as received:
            ours.sendall(bytes(100_000))
            ours.shutdown(socket.SHUT_WR)
        assert monotonic() - began >= 0.01
        assert received == [bytes(100_000)]
        assert wire.packets() == []


# --- isolation ------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [OURS, PEER], ids=["ours", "peer"])
def test_the_wire_has_no_route_to_other_networks(wire: Wire, side: object) -> None:
    elsewhere = "198.51.100.1" if wire.version == "IPv4" else "2001:db8:1::1"  # RFC 5737, 3849
    outside = wire.unconnected(OURS if side is OURS else PEER)
    assert outside.connect_ex((elsewhere, 80)) == errno.ENETUNREACH


def test_the_thread_returns_to_its_namespace(wire: Wire) -> None:
    before = os.readlink("/proc/thread-self/ns/net")

    def fail_there() -> None:
        with wire.inside(PEER):
            assert os.readlink("/proc/thread-self/ns/net") != before
            raise LookupError

    with pytest.raises(LookupError):
        fail_there()
    assert os.readlink("/proc/thread-self/ns/net") == before
    assert "wire" not in [name for _, name in socket.if_nameindex()]


_LAY_A_WIRE = """
import os, sys
from wire.link import Link
from wire.packets import Side
link = Link()
for side in Side:
    with link.inside(side):
        print(os.readlink("/proc/thread-self/ns/net"), flush=True)
sys.stdin.read()
"""


@pytest.mark.usefixtures("link")
def test_a_run_that_is_killed_leaves_no_namespace() -> None:
    here = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), *sys.path])}
    with subprocess.Popen(
        [sys.executable, "-c", _LAY_A_WIRE],
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        namespaces = {process.stdout.readline().strip() for _ in range(2)}
        try:
            assert namespaces <= _held_namespaces()
        finally:
            process.kill()
            process.wait(DEADLINE)
    assert not namespaces & _held_namespaces()


def _held_namespaces() -> set[str]:
    """Return the network namespaces of all processes, descriptors and mounts."""
    held = set[str]()
    for process in Path("/proc").glob("[0-9]*"):
        for link in (process / "ns/net", *process.glob("fd/*")):
            try:
                held.add(os.readlink(link))
            except OSError:
                continue  # the process has ended
    mounts = Path("/proc/self/mountinfo").read_text().split()
    return {name for name in held | set(mounts) if name.startswith("net:")}


# --- missing requirements ---------------------------------------------------------------------


def test_the_reason_for_a_missing_requirement_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert why_not() == "the wire needs root, to make network namespaces"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert why_not() == "the wire needs Linux, not darwin"
