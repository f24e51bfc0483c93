"""The lab's recording of packets on loopback: an arrow ends when its packet arrived."""

from __future__ import annotations

import os
import sys
from time import perf_counter

import pytest

from graceful_close import abortive_close
from graceful_close_lab import linger_experiments, loopback, lost_reply
from graceful_close_lab.picture import picture
from graceful_close_lab.timeline import Exchange, Kind, Side, Timeline
from graceful_close_lab.ways import Way
from graceful_close_lab.wire_view import Packet, Wire, as_it_arrived, watched
from lab_program import run

needs_root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="needs Linux, and root"
)

SERVER, CLIENT = 80, 50000


@needs_root
def test_every_packet_is_recorded_with_its_sequence_numbers() -> None:
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
def test_packets_of_other_connections_are_not_recorded() -> None:
    with loopback.connection() as (ours, _), loopback.connection() as (other, others_peer):
        with watched(ours.getsockname()[1]) as wire:
            other.sendall(b"x")
            assert others_peer.recv(1) == b"x"
        assert (wire.complete, wire.packets) == (True, [])


@needs_root
@pytest.mark.parametrize("way", linger_experiments.WAYS, ids=lambda way: way.name)
def test_the_timeline_of_unsent_output_has_the_times_of_the_packets(way: Way) -> None:
    if way.name == "linger-timed":
        return  # it waits for a second, like others
    exchange = linger_experiments.run(way).exchange
    assert exchange.on_wire
    first = next(arrow for arrow in exchange.arrows if arrow.kind is Kind.DATA)
    reads = next(event for event in exchange.events if event.text == "recv() to the end")
    assert first.seen_at is not None
    assert first.seen_at < reads.at  # not when the program read it
    for arrow in exchange.arrows:
        if arrow.kind is not Kind.DATA:  # one packet each
            assert arrow.seen_at == arrow.sent_at


@needs_root
def test_the_timeline_of_the_lost_reply_has_the_times_of_the_packets() -> None:
    exchange = lost_reply.run(lost_reply.WAYS[0], tries=1).exchange
    assert exchange.on_wire
    [reset] = [arrow for arrow in exchange.arrows if arrow.kind is Kind.RST]
    assert reset.seen_at == reset.sent_at
    last = exchange.events[-1]
    assert last.side is Side.CLIENT
    assert reset.seen_at is not None
    assert reset.seen_at <= last.at


def a_wire(*packets: Packet) -> Wire:
    wire = Wire()
    wire.packets += packets
    wire.complete = True
    return wire


def exchange_of(*arrows: tuple[Side, Kind, float, float | None, int]) -> Exchange:
    timeline = Timeline()
    for sender, kind, at, seen_at, reach in arrows:
        timeline.add_packet(sender, kind, "it", at, seen_at, reach)
    return timeline.exchange()


LAST = (1 << 32) - 1  # the last sequence number before 0


@pytest.mark.parametrize("base", [1, LAST - 100])
def test_an_arrow_spans_its_first_packet_to_its_last(base: int) -> None:
    def data(at: float, start: int, size: int) -> Packet:
        first = (base + start) & LAST
        return Packet(at, SERVER, Kind.DATA, first, first + size, 7)

    def ack(at: float, count: int) -> Packet:
        return Packet(at, CLIENT, Kind.ACK, 7, 7, (base + count) & LAST)

    wire = a_wire(
        data(10.1, 0, 100), ack(10.2, 100), data(10.3, 100, 50), data(10.4, 150, 50),
        data(10.5, 150, 50), ack(10.6, 200), Packet(10.7, SERVER, Kind.FIN, 0, 0, 7),
    )  # fmt: skip
    exchange = exchange_of(
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
        (Kind.DATA, 0.3, 0.4),  # not the time of the retransmission
        (Kind.ACK, 0.6, 0.6),
        (Kind.FIN, 0.7, 0.7),
    ]


def test_an_arrow_without_packets_keeps_its_times() -> None:
    exchange = exchange_of(
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


def test_a_picture_says_whether_its_times_are_those_of_packets() -> None:
    exchange = exchange_of((Side.SERVER, Kind.DATA, 1, 2, 100))
    wire = a_wire(
        Packet(10.1, SERVER, Kind.DATA, 0, 100, 7), Packet(10.2, CLIENT, Kind.ACK, 7, 7, 100)
    )
    assert "without packets" in picture("it", exchange)
    assert "as they arrived" in picture("it", as_it_arrived(exchange, wire, 10.0, SERVER))


@needs_root
def test_without_privileges_the_timeline_has_the_times_of_the_calls() -> None:
    code = """
import os
from graceful_close_lab import linger_experiments
os.seteuid(65534)
print(linger_experiments.run(linger_experiments.WAYS[0]).exchange.on_wire)
os.seteuid(0)  # coverage writes its data to root's folder
"""
    result = run(sys.executable, "-W", "error", "-c", code)
    assert (result.stdout, result.stderr) == ("False\n", "")
