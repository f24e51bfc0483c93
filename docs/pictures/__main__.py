"""Record six exchanges on the wire of the tests, and draw them: `python docs/pictures`, as root."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent.parent / "tests")]

from sequence import Arrow, Doing, Exchange, Side, State, draw

from graceful_close import abortive_close, graceful_close, timed_linger_close
from wire.laid import Connection, Wire
from wire.link import Link, why_not
from wire.packets import OURS, PEER, Packet
from wire.rules import FIN, first

DELAY = 0.02  # seconds, each way
REPLY = b"r" * 2600  # two segments
CHUNK = b"u" * 1300  # one segment of an upload
UPLOAD = 3

Play = Callable[[Wire, Connection], None]


def send_reply(wire: Wire, ours: socket.socket) -> None:
    wire.note(OURS, "send(reply)")
    ours.sendall(REPLY)


def read_and_close(wire: Wire, peer: socket.socket) -> None:
    """The client reads to the end, and says what it found there."""
    received = 0
    try:
        while chunk := peer.recv(65536):
            received += len(chunk)
        wire.note(PEER, f"recv(): {received} bytes, end")
    except ConnectionResetError:
        wire.note(PEER, "recv(): ECONNRESET")
    wire.note(PEER, "close()")
    peer.close()


def upload(wire: Wire, peer: socket.socket) -> None:
    """The client sends all, then reads: what many HTTP clients do."""
    try:
        for _ in range(UPLOAD):
            wire.note(PEER, "send(body)")
            peer.sendall(CHUNK)
            # A busy client: the next piece takes it a moment.
            threading.Event().wait(0.015)
    except OSError as error:
        wire.note(PEER, f"send(): {type(error).__name__}")
    read_and_close(wire, peer)


def while_(wire: Wire, peer_does: Callable[[Wire, socket.socket], None], peer: socket.socket,
           we_do: Callable[[], None]) -> None:  # fmt: skip
    thread = threading.Thread(target=peer_does, args=(wire, peer))
    thread.start()
    we_do()
    thread.join()


def default_close(wire: Wire, connection: Connection) -> None:
    ours, peer = connection

    def server() -> None:
        send_reply(wire, ours)
        wire.note(OURS, "close()")
        ours.close()

    while_(wire, read_and_close, peer, server)


def lost_reply(wire: Wire, connection: Connection) -> None:
    ours, peer = connection

    def server() -> None:
        ours.recv(100)
        wire.note(OURS, "recv(): the head")
        send_reply(wire, ours)
        wire.note(OURS, "close()")
        ours.close()

    while_(wire, upload, peer, server)


def graceful(wire: Wire, connection: Connection) -> None:
    ours, peer = connection

    def server() -> None:
        ours.recv(100)
        wire.note(OURS, "recv(): the head")
        send_reply(wire, ours)
        wire.note(OURS, "graceful_close()")
        result = graceful_close(ours)
        wire.note(OURS, f"{result.outcome.name}, drained {result.drained}")

    while_(wire, upload, peer, server)


def abort(wire: Wire, connection: Connection) -> None:
    ours, peer = connection

    def server() -> None:
        send_reply(wire, ours)
        wire.note(OURS, "abortive_close()")
        result = abortive_close(ours)
        wire.note(OURS, f"{result.outcome.name}, {result.unacked} unacked")

    while_(wire, read_and_close, peer, server)


def linger(wire: Wire, connection: Connection) -> None:
    ours, _peer = connection
    send_reply(wire, ours)
    wire.note(OURS, "timed_linger_close(0.3)")
    result = timed_linger_close(ours, 0.3)
    wire.note(OURS, f"{result.outcome.name}, {result.unacked} unacked")


def linger_in_vain(wire: Wire, connection: Connection) -> None:
    wire.cut(at=first(FIN, from_=OURS))
    linger(wire, connection)


SCENES: list[tuple[str, str, Play]] = [
    ("default-close", "close(): nothing unread, and nothing goes wrong", default_close),
    ("lost-reply", "close() over unread input: the lost reply", lost_reply),
    ("graceful-close", "graceful_close() in the same place", graceful),
    ("abort", "abortive_close()", abort),
    ("timed-linger-met", "timed_linger_close(): the acknowledgement comes", linger),
    ("timed-linger-expired", "timed_linger_close(): the link is dead", linger_in_vain),
]

_SIDES: dict[object, Side] = {OURS: "left", PEER: "right"}


def exchange_of(wire: Wire, title: str) -> Exchange:
    """What is on the record, from the end of the handshake on."""
    exchange = Exchange(title, "server", "client")
    standing: dict[Side, str] = {"left": "ESTABLISHED", "right": "ESTABLISHED"}
    for packet in wire.packets():
        if "S" in packet.flags or (
            (packet.seq, packet.ack, packet.length) == (1, 1, 0) and (packet.flags == "A")
        ):
            continue
        arrived = packet.delivered[0] if packet.delivered else None
        exchange.arrows.append(
            Arrow(packet.time, arrived, _SIDES[packet.from_], _label(packet), _kind(packet))
        )
        for side, name in zip(standing, packet.states or (), strict=False):
            if standing[side] != name:
                standing[side] = name
                exchange.states.append(State(packet.time, side, name))
    exchange.doings += [Doing(note.time, _SIDES[note.side], note.text) for note in wire.notes()]
    return exchange


def _kind(packet: Packet) -> str:
    if "R" in packet.flags:
        return "rst"
    if "F" in packet.flags:
        return "fin"
    return "data" if packet.length else "ack"


def _label(packet: Packet) -> str:
    words: list[str] = []
    if "R" in packet.flags:
        words.append("RST")
    if "F" in packet.flags:
        words.append("FIN")
    if packet.length:
        words.append(f"{packet.length} bytes")
    if not words:
        words.append(f"ACK {packet.ack}")
    return " + ".join(words) + (" again" if packet.again else "")


def main() -> None:
    if reason := why_not():
        sys.exit(f"the wire cannot be laid here: {reason}")
    link = Link()
    try:
        for name, title, play in SCENES:
            with Wire(link, "IPv4") as wire:
                wire.sample_states()
                wire.delay(DELAY)  # before the handshake, from which the kernels learn it
                connection = wire.connect()
                connection.peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                play(wire, connection)
                wire.settle()
                picture = HERE / f"{name}.svg"
                picture.write_text(draw(exchange_of(wire, title)), encoding="utf-8")
                print(picture.name)
    finally:
        link.close()


if __name__ == "__main__":
    main()
