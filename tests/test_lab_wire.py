"""The lab's look at the loopback: an arrow ends when its packet arrived."""

from __future__ import annotations

import os
import sys
from time import perf_counter

import pytest

from graceful_close import abortive_close
from graceful_close_lab import linger_experiments, loopback, lost_reply, wire_view
from graceful_close_lab.picture import picture
from graceful_close_lab.story import Exchange, Kind, Side, Story
from graceful_close_lab.ways import Way
from graceful_close_lab.wire_view import Packet, Wire, as_it_arrived, watched
from lab_program import run

needs_root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="needs Linux, and root"
)

SERVER, CLIENT = 80, 50000


@needs_root
def test_every_packet_that_arrives_is_seen_with_what_it_carries() -> None:
    with loopback.connection() as (ours, peer):
        port, peer_port = ours.getsockname()[1], peer.getsockname()[1]
        before = perf_counter()
        with watched(port) as wire:
            ours.sendall(bytes(1000))
            assert len(peer.recv(2000)) == 1000
            abortive_close(ours)
            assert loopback.read_to_the_end(peer) == (0, loopback.Ending.RST)
        after = perf_counter()
    assert wire.complete
    by_us = [packet for packet in wire.packets if packet.port == port]
    assert [packet.kind for packet in by_us] == [Kind.DATA, Kind.RST]
    assert by_us[0].end - by_us[0].start == 1000
    assert {packet.port for packet in wire.packets} == {port, peer_port}
    assert any(packet.acked == by_us[0].end for packet in wire.packets)
    # Two clocks are compared, which may differ by some microseconds.
    for packet in wire.packets:
        assert before - 0.1 < packet.at < after + 0.1


@needs_root
def test_what_others_send_on_loopback_is_not_seen() -> None:
    with loopback.connection() as (ours, _), loopback.connection() as (other, others_peer):
        with watched(ours.getsockname()[1]) as wire:
            other.sendall(b"x")
            assert others_peer.recv(1) == b"x"
        assert (wire.complete, wire.packets) == (True, [])


@needs_root
@pytest.mark.parametrize("way", linger_experiments.WAYS, ids=lambda way: way.name)
def test_the_story_of_unsent_output_is_told_by_the_wire(way: Way) -> None:
    if way.name == "linger-timed":
        return  # it waits for a second, as others do
    exchange = linger_experiments.run(way).exchange
    assert exchange.on_wire
    first = next(arrow for arrow in exchange.arrows if arrow.kind is Kind.DATA)
    reads = next(event for event in exchange.events if event.text == "recv() to the end")
    assert first.seen_at is not None
    assert first.seen_at < reads.at  # and not when that was told
    for arrow in exchange.arrows:
        if arrow.kind is not Kind.DATA:  # one packet each
            assert arrow.seen_at == arrow.sent_at


@needs_root
def test_the_story_of_the_lost_reply_is_told_by_the_wire() -> None:
    exchange = lost_reply.run(lost_reply.WAYS[0], tries=1).exchange
    assert exchange.on_wire
    [reset] = [arrow for arrow in exchange.arrows if arrow.kind is Kind.RST]
    assert reset.seen_at == reset.sent_at
    told = exchange.events[-1]
    assert told.side is Side.CLIENT
    assert reset.seen_at is not None
    assert reset.seen_at <= told.at


def a_wire(*packets: Packet) -> Wire:
    wire = Wire()
    wire.packets += packets
    wire.complete = True
    return wire


def told(*arrows: tuple[Side, Kind, float, float | None, int]) -> Exchange:
    story = Story()
    for sender, kind, at, seen_at, reach in arrows:
        story.sends(sender, kind, "it", at, seen_at, reach)
    return story.so_far()


LAST = (1 << 32) - 1  # where sequence numbers begin again


@pytest.mark.parametrize("base", [1, LAST - 100])
def test_an_arrow_goes_from_its_first_packet_to_its_last(base: int) -> None:
    def data(at: float, start: int, size: int) -> Packet:
        first = (base + start) & LAST
        return Packet(at, SERVER, Kind.DATA, first, first + size, 7)

    def ack(at: float, count: int) -> Packet:
        return Packet(at, CLIENT, Kind.ACK, 7, 7, (base + count) & LAST)

    wire = a_wire(
        data(10.1, 0, 100), ack(10.2, 100), data(10.3, 100, 50), data(10.4, 150, 50),
        data(10.5, 150, 50), ack(10.6, 200), Packet(10.7, SERVER, Kind.FIN, 0, 0, 7),
    )  # fmt: skip
    exchange = told(
        (Side.SERVER, Kind.DATA, 0, 2, 100),
        (Side.SERVER, Kind.DATA, 0, 3, 200),
        (Side.CLIENT, Kind.ACK, 2, 2, 100),
        (Side.CLIENT, Kind.ACK, 3, 3, 200),
        (Side.SERVER, Kind.FIN, 2, 3, 0),
    )
    arrived = as_it_arrived(exchange, wire, 10.0, SERVER)
    times = [
        (arrow.kind, round(arrow.sent_at, 3), round(arrow.seen_at or 0, 3))
        for arrow in arrived.arrows
    ]
    assert times == [
        (Kind.DATA, 0.1, 0.1),
        (Kind.ACK, 0.2, 0.2),
        (Kind.DATA, 0.3, 0.4),  # and not when it came again
        (Kind.ACK, 0.6, 0.6),
        (Kind.FIN, 0.7, 0.7),
    ]


def test_what_is_not_on_the_wire_stays_as_it_was_told() -> None:
    exchange = told(
        (Side.SERVER, Kind.DATA, 1, None, 100),
        (Side.SERVER, Kind.DATA, 2, 3, 500),
        (Side.SERVER, Kind.RST, 3, 4, 0),
    )
    wire = a_wire(
        Packet(10.1, SERVER, Kind.DATA, 0, 100, 7), Packet(10.2, CLIENT, Kind.ACK, 7, 7, 100)
    )
    assert as_it_arrived(exchange, wire, 10.0, SERVER).arrows == exchange.arrows
    wire.complete = False
    assert as_it_arrived(exchange, wire, 10.0, SERVER) == exchange


def test_a_picture_says_whether_it_is_of_the_wire() -> None:
    exchange = told((Side.SERVER, Kind.DATA, 1, 2, 100))
    wire = a_wire(
        Packet(10.1, SERVER, Kind.DATA, 0, 100, 7), Packet(10.2, CLIENT, Kind.ACK, 7, 7, 100)
    )
    assert "without a look at the wire" in picture("it", exchange)
    assert "as they arrived" in picture("it", as_it_arrived(exchange, wire, 10.0, SERVER))


@needs_root
def test_who_may_not_look_is_told_what_the_programs_were() -> None:
    code = """
import os
from graceful_close_lab import linger_experiments
os.seteuid(65534)
print(linger_experiments.run(linger_experiments.WAYS[0]).exchange.on_wire)
os.seteuid(0)  # coverage writes its data in root's folder
"""
    result = run(sys.executable, "-W", "error", "-c", code)
    assert (result.stdout, result.stderr) == ("False\n", "")


def test_a_port_that_cannot_be_watched_has_an_incomplete_wire(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(wire_view, "_listening", refuse)
    with watched(80) as wire:
        pass
    assert not wire.complete
