"""Record six exchanges on the wire of the tests, and draw them: `python docs/pictures`, as root."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent.parent / "tests")]

from sequence import Arrow, Doing, Exchange, Side, State, draw

from graceful_close import CloseResult, abortive_close, graceful_close, timed_linger_close
from wire.laid import Connection, Wire
from wire.link import Link, why_not
from wire.packets import OURS, PEER, Packet
from wire.rules import FIN, first

DELAY = 0.02  # seconds, each way
REPLY = b"r" * 2600  # two segments
CHUNK = b"u" * 1300  # one segment of an upload
UPLOAD = 3


def do_nothing(wire: Wire, peer: socket.socket) -> None:
    """The client keeps its side open."""


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
            time.sleep(0.015)  # a busy client: the next piece takes it a moment
    except OSError as error:
        wire.note(PEER, f"send(): {type(error).__name__}")
    read_and_close(wire, peer)


def plain_close(sock: socket.socket) -> None:
    sock.close()


def play(wire: Wire, scene: Scene, connection: Connection) -> None:
    """The server in this thread, the client in another."""
    ours, peer = connection
    client = threading.Thread(target=scene.client, args=(wire, peer))
    client.start()
    if scene.client is upload:
        ours.recv(100)
        wire.note(OURS, "recv(): the head")
    wire.note(OURS, "send(reply)")
    ours.sendall(REPLY)
    wire.note(OURS, scene.call)
    result = scene.close(ours)
    if result is not None:
        what = f"drained {result.drained}" if result.drained else f"{result.unacked} unacked"
        wire.note(OURS, f"{result.outcome.name}, {what}")
    client.join()


class Scene(NamedTuple):
    """One picture.

    Attributes:
        name: Of the file.
        title: Above the drawing.
        client: What the peer does.
        call: What the server calls, as the drawing says it.
        close: The same, to be called.
        cut: Whether the link is dead from our FIN on.
    """

    name: str
    title: str
    client: Callable[[Wire, socket.socket], None]
    call: str
    close: Callable[[socket.socket], CloseResult | None]
    cut: bool = False


def linger(sock: socket.socket) -> CloseResult:
    return timed_linger_close(sock, 0.3)


SCENES = [
    Scene(
        "default-close",
        "close(): nothing unread, and nothing goes wrong",
        read_and_close,
        "close()",
        plain_close,
    ),
    Scene(
        "lost-reply",
        "close() over unread input: the lost reply",
        upload,
        "close()",
        plain_close,
    ),
    Scene(
        "graceful-close",
        "graceful_close() in the same place",
        upload,
        "graceful_close()",
        graceful_close,
    ),
    Scene("abort", "abortive_close()", read_and_close, "abortive_close()", abortive_close),
    Scene(
        "timed-linger-met",
        "timed_linger_close(): the acknowledgement comes",
        do_nothing,
        "timed_linger_close(0.3)",
        linger,
    ),
    Scene(
        "timed-linger-expired",
        "timed_linger_close(): the link is dead",
        do_nothing,
        "timed_linger_close(0.3)",
        linger,
        cut=True,
    ),
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
        for scene in SCENES:
            with Wire(link, "IPv4") as wire:
                wire.sample_states()
                wire.delay(DELAY)  # before the handshake, from which the kernels learn it
                connection = wire.connect()
                connection.peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if scene.cut:
                    wire.cut(at=first(FIN, from_=OURS))
                play(wire, scene, connection)
                wire.settle()
                picture = HERE / f"{scene.name}.svg"
                picture.write_text(draw(exchange_of(wire, scene.title)), encoding="utf-8")
                print(picture.name)
    finally:
        link.close()


if __name__ == "__main__":
    main()
