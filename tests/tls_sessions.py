"""Both ends of a TLS session on a real connection, and the records between them."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import pytest

from certificates import NAME, client_context, server_context
from graceful_close import CloseResult, graceful_close
from streams import DEADLINE, connect, fill, meanwhile

ALERT, APPLICATION_DATA = 21, 23


class Session(NamedTuple):
    """Both ends of one TLS connection."""

    ours: ssl.SSLSocket
    peer: ssl.SSLSocket


@contextmanager
def wrapped(
    version: ssl.TLSVersion,
    family: str = "tcp4",
    side: str = "server",
    *,
    peer_buffer: int | None = None,
    options: int = 0,
) -> Generator[Session, None, None]:
    """A connection between two TLS sockets before the handshake."""
    server, client = server_context(version), client_context(version)
    server.options |= options
    client.options |= options

    def wrap(sock: socket.socket, *, serves: bool) -> ssl.SSLSocket:
        return (server if serves else client).wrap_socket(
            sock,
            server_side=serves,
            server_hostname=None if serves else NAME,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        )

    with connect(family, peer_buffer=peer_buffer) as (raw, raw_peer):
        with wrap(raw, serves=side == "server") as ours:
            with wrap(raw_peer, serves=side == "client") as peer:
                yield Session(ours, peer)


@contextmanager
def session(
    version: ssl.TLSVersion,
    family: str = "tcp4",
    side: str = "server",
    **more: Any,
) -> Generator[Session, None, None]:
    """A connection like that of `wrapped`, after the handshake, without unread session tickets."""
    with wrapped(version, family, side, **more) as both:
        shake_hands(both)
        exchange(both.ours, both.peer)
        exchange(both.peer, both.ours)
        yield both


def shake_hands(both: Session) -> None:
    with meanwhile(both.ours.do_handshake):
        both.peer.do_handshake()


def exchange(sender: ssl.SSLSocket, receiver: ssl.SSLSocket) -> None:
    sender.sendall(b"hello")
    assert receiver.recv(100) == b"hello"


def read_raw(sock: socket.socket) -> bytes:
    """Read the raw bytes to the FIN; raise ConnectionResetError at a reset."""
    sock.settimeout(DEADLINE)
    chunks: list[bytes] = []
    while chunk := socket.socket.recv(sock, 1 << 20):
        chunks.append(chunk)
    return b"".join(chunks)


def read_raw_and_close(sock: socket.socket) -> bytes:
    received = read_raw(sock)
    sock.close()
    return received


def close_while_the_peer_reads(
    ours: socket.socket, peer: socket.socket
) -> tuple[CloseResult, bytes]:
    """Close gracefully. Returns the result, and the raw bytes that the peer has read to the FIN."""
    with meanwhile(read_raw_and_close, peer) as received:
        result = graceful_close(ours, timeout=DEADLINE)
    return result, received[0]


def records(stream: bytes) -> list[tuple[int, int]]:
    """Return the type and the length of each record (RFC 8446, section 5.1)."""
    found: list[tuple[int, int]] = []
    while stream:
        length = int.from_bytes(stream[3:5], "big")
        assert len(stream) >= 5 + length, "the last record is incomplete"
        found.append((stream[0], length))
        stream = stream[5 + length :]
    return found


def is_one_close_notify(stream: bytes, version: ssl.TLSVersion) -> bool:
    """TLS 1.3 encrypts the alert: two bytes, one byte for the type, and a tag of 16 bytes."""
    if version is ssl.TLSVersion.TLSv1_3:
        return records(stream) == [(APPLICATION_DATA, 2 + 1 + 16)]
    return [kind for kind, _ in records(stream)] == [ALERT]


def hold_too(sock: socket.socket) -> socket.socket:
    """Return a plain socket on the same connection."""
    return socket.socket(fileno=os.dup(sock.fileno()))


def fill_raw(sock: socket.socket) -> int:
    """Fill the send buffer completely, with bytes that a TLS peer cannot read."""
    with hold_too(sock) as holder:
        # The kernel enlarges a buffer whose size was not set, and there would be room again.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        return fill(holder)


def send_half_a_record(sock: ssl.SSLSocket) -> None:
    sock.setblocking(False)
    with suppress(ssl.SSLWantWriteError):
        while True:
            sock.send(bytes(60_000))


def send_close_notify(sock: ssl.SSLSocket) -> None:
    """Send close_notify, and do not wait for the peer's."""
    sock.setblocking(False)
    with pytest.raises(ssl.SSLWantReadError):
        sock.unwrap()


def send_raw_fin(sock: socket.socket) -> None:
    """Send a FIN below the TLS session, without close_notify."""
    socket.socket.shutdown(sock, socket.SHUT_WR)
