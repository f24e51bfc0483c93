"""What the kernel is asked about a connection, question by question."""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
from collections.abc import Iterator
from itertools import count, repeat
from time import monotonic
from typing import Any

import pytest

from graceful_close import unacked_bytes
from graceful_close._acks import (
    clear_error_queue,
    count_acked,
    count_unacked,
    count_written,
    pending_error,
    read_state,
    standing,
)
from graceful_close._platform import SYSTEMS, TcpState, View
from streams import DEADLINE, Connection, connect, listen

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the questions are Linux's")

TCP, UNIX = SYSTEMS["linux"].tcp, SYSTEMS["linux"].other

SO_TIMESTAMPING = 37  # asm-generic/socket.h
TX_SOFTWARE, SOFTWARE, OPT_ID = 1 << 1, 1 << 4, 1 << 7  # net_tstamp.h


class Answers:
    """What a kernel might answer, one after the other."""

    survives_reset = True

    def __init__(self, answers: Iterator[int]) -> None:
        self._answers = answers

    def read(self, sock: socket.socket) -> int:
        return next(self._answers)


def view(acked: Iterator[int], unacked: Iterator[int]) -> View:
    answers: Any = Answers
    return View(answers(unacked), acked=answers(acked))


def closed() -> socket.socket:
    sock = socket.socket()
    sock.close()
    return sock


def test_what_was_written_is_counted_acknowledged_or_not(tcp: Connection) -> None:
    before, acked = count_written(tcp.ours, TCP), count_acked(tcp.ours, TCP)
    assert before is not None
    assert acked is not None
    tcp.ours.sendall(bytes(1000))
    assert count_written(tcp.ours, TCP) == before + 1000
    until = monotonic() + DEADLINE
    while unacked_bytes(tcp.ours):
        assert monotonic() < until
    assert count_written(tcp.ours, TCP) == before + 1000
    assert count_acked(tcp.ours, TCP) == acked + 1000


def test_two_counts_are_one_if_no_acknowledgement_came_between_them(tcp: Connection) -> None:
    assert count_written(tcp.ours, view(iter([10, 20, 30, 30]), iter([7, 6, 5]))) == 35
    assert count_written(tcp.ours, view(iter([10] + [11] * 2), iter([7, 6]))) == 17


def test_counts_that_never_agree_are_given_up(tcp: Connection) -> None:
    assert count_written(tcp.ours, view(count(), repeat(7))) is None


def test_what_was_written_is_not_known_where_either_count_is_not(tcp: Connection) -> None:
    assert count_written(tcp.ours, SYSTEMS["macos"].tcp) is None
    with connect("unix") as unix:
        assert count_written(unix.ours, UNIX) is None
    acked: Any = Answers(repeat(10))
    assert count_written(tcp.ours, View(acked=acked)) is None


def test_a_socket_that_is_closed_answers_no_question() -> None:
    assert count_acked(closed(), TCP) is None
    assert count_unacked(closed(), TCP) is None
    assert count_written(closed(), TCP) is None
    assert read_state(closed(), TCP) is None
    assert read_state(closed(), UNIX) is None


def test_the_state_of_a_stream_that_is_not_tcp_is_only_that_it_listens() -> None:
    with connect("unix") as unix:
        assert read_state(unix.ours, UNIX) is None
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("")
        sock.listen()
        assert read_state(sock, UNIX) is TcpState.LISTENING
        assert standing(sock, UNIX) is TcpState.LISTENING


def test_whether_there_is_a_peer_is_known_of_every_stream() -> None:
    with connect("unix") as unix:
        assert standing(unix.ours, UNIX) is TcpState.OPEN
    with socket.socket(socket.AF_UNIX) as sock:
        assert standing(sock, UNIX) is TcpState.OVER


def test_a_tcp_connection_shows_its_state(tcp: Connection) -> None:
    assert read_state(tcp.ours, TCP) is TcpState.OPEN
    assert standing(tcp.ours, TCP) is TcpState.OPEN
    with socket.socket() as sock:
        assert read_state(sock, TCP) is TcpState.NEVER_OPEN
        assert standing(sock, TCP) is TcpState.NEVER_OPEN


def test_a_pending_error_is_taken_once() -> None:
    with listen("tcp4") as listener:
        address = listener.getsockname()
    with socket.socket() as sock:
        assert pending_error(sock) is None
        sock.setblocking(False)
        assert sock.connect_ex(address) == errno.EINPROGRESS
        assert select.select([], [sock], [], DEADLINE)[1]
        error = pending_error(sock)
        assert error is not None
        assert (error.errno, error.strerror) == (
            errno.ECONNREFUSED,
            os.strerror(errno.ECONNREFUSED),
        )
        assert pending_error(sock) is None


def test_an_error_queue_is_emptied_and_the_input_is_left(tcp: Connection) -> None:
    flags = TX_SOFTWARE | SOFTWARE | OPT_ID
    tcp.ours.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, flags)
    poll = select.poll()
    poll.register(tcp.ours, 0)
    for _ in range(3):
        tcp.ours.sendall(b"x")
        assert poll.poll(DEADLINE * 1000) == [(tcp.ours.fileno(), select.POLLERR)]
    tcp.peer.sendall(b"input")
    assert select.select([tcp.ours], [], [], DEADLINE)[0]
    clear_error_queue(tcp.ours)
    assert poll.poll(0) == []
    assert tcp.ours.recv(100, socket.MSG_DONTWAIT) == b"input"


def test_an_error_queue_that_is_empty_is_not_waited_for(tcp: Connection) -> None:
    tcp.ours.settimeout(None)
    clear_error_queue(tcp.ours)


def test_a_query_leaves_the_socket_as_it_was(tcp: Connection) -> None:
    number = tcp.ours.fileno()
    assert unacked_bytes(tcp.ours) == 0
    assert tcp.ours.fileno() == number
    tcp.ours.sendall(b"x")
    assert tcp.peer.recv(1) == b"x"
