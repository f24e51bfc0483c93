"""Errors caused by an administrator or an unusual family: set in `error`, and never raised.

Errors caused by ICMP are in wire/test_icmp.py.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from drivers import EVERY, GRACEFUL, THREADED, WAITING, Close, parts
from graceful_close import (
    CloseOutcome,
    CloseResult,
    LingerPolicy,
    Reaper,
    abortive_close,
    close_all,
    closing,
    get_linger,
    set_linger,
    unacked_bytes,
)
from streams import DEADLINE, Connection, await_reset, connect_many, meanwhile, read_all

every_close = pytest.mark.parametrize("close", parts(GRACEFUL))


# --- an administrator ends the connection (ss -K) ---------------------------------------------


def kill(sock: socket.socket) -> None:
    """Run `ss -K` for this end. The kernel sets ECONNABORTED (tcp_abort())."""
    host, port = sock.getsockname()[:2]
    _, peer_port = sock.getpeername()[:2]
    words = ["src", host, "sport", "=", f":{port}", "dport", "=", f":{peer_port}"]
    subprocess.run(
        ["ss", "-K", "-H", "-t", "-n", *words],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=DEADLINE,
    )


@pytest.fixture
def killable(tcp: Connection) -> Connection:
    """A connection, if `ss -K` works on this machine."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ss") is None:
        pytest.skip("needs root, and `ss` of iproute2")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as guinea_pig:
            with listener.accept()[0] as other:
                kill(guinea_pig)
                if not guinea_pig.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    pytest.skip("the kernel refuses it (CONFIG_INET_DIAG_DESTROY)")
                other.close()
    return tcp


def assert_given_up(result: CloseResult, number: int) -> None:
    assert result.outcome is CloseOutcome.TIMED_OUT
    assert result.error is not None
    assert result.error.errno == number
    assert result.elapsed < DEADLINE / 2, "not at the deadline"
    assert not result.clean


@pytest.mark.parametrize("policy", [LingerPolicy.BACKGROUND, LingerPolicy.ABORT])
@every_close
def test_a_killed_connection_is_not_reported_as_ended_by_the_peer(
    killable: Connection, close: Close, policy: Any
) -> None:
    killable.ours.sendall(b"reply")
    kill(killable.ours)
    await_reset(killable.ours)
    result = close(killable.ours, timeout=DEADLINE, on_timeout=policy)
    assert_given_up(result, errno.ECONNABORTED)
    assert killable.ours.fileno() == -1


@pytest.mark.parametrize("close", parts(WAITING))
def test_a_connection_may_be_killed_during_its_close(
    killable: Connection, close: Close
) -> None:
    dup = socket.socket(fileno=os.dup(killable.ours.fileno()))
    if close is WAITING["timed_linger_close"]:
        killable.ours.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                killable.ours.send(bytes(1 << 20))

    def kill_after_the_fin(peer: socket.socket) -> None:
        if close is not WAITING["timed_linger_close"]:
            read_all(peer)
        kill(dup)

    with dup, meanwhile(kill_after_the_fin, killable.peer):
        result = close(killable.ours, timeout=DEADLINE)
    assert_given_up(result, errno.ECONNABORTED)


def test_an_abort_after_a_kill_reports_no_connection(killable: Connection) -> None:
    kill(killable.ours)
    result = abortive_close(killable.ours)
    assert result.outcome is CloseOutcome.NOT_CONNECTED
    assert killable.ours.fileno() == -1


def test_a_killed_connection_does_not_change_the_results_of_others(
    killable: Connection,
) -> None:
    with connect_many(3) as others:
        socks = [killable.ours, *(ours for ours, _ in others)]
        for ours, peer in others:
            ours.sendall(b"reply")
            peer.shutdown(socket.SHUT_WR)
        kill(killable.ours)
        killed, *results = close_all(socks, timeout=DEADLINE)
        assert_given_up(killed, errno.ECONNABORTED)
        for result, (_, peer) in zip(results, others, strict=True):
            assert (result.outcome, result.unacked) == (CloseOutcome.PEER_CLOSED, 0)
            assert read_all(peer) == b"reply"


def test_a_reaper_continues_after_a_killed_connection(killable: Connection) -> None:
    with connect_many(1) as [(ours, peer)], Reaper(timeout=DEADLINE) as reaper:
        kill(killable.ours)
        assert_given_up(reaper.submit(killable.ours).result(DEADLINE), errno.ECONNABORTED)
        peer.shutdown(socket.SHUT_WR)
        assert reaper.submit(ours).result(DEADLINE).clean


# --- a family without socket options in Python ------------------------------------------------


@pytest.mark.parametrize("close", parts(EVERY))
def test_a_vsock_without_a_connection_is_closed(vsock: socket.socket, close: Close) -> None:
    result = close(vsock, timeout=3.0)
    assert result.outcome is CloseOutcome.NOT_CONNECTED
    assert result.unacked is None
    assert result.elapsed < 1
    assert vsock.fileno() == -1


@pytest.mark.parametrize("close", parts(THREADED))
def test_a_vsock_is_closed_without_so_linger(vsock: socket.socket, close: Close) -> None:
    close(vsock, timeout=0, on_timeout=LingerPolicy.ABORT)
    assert vsock.fileno() == -1


def test_a_listening_vsock_is_closed(vsock: socket.socket) -> None:
    if not hasattr(socket, "VMADDR_CID_ANY"):
        pytest.skip("this Python (PyPy) has no addresses of AF_VSOCK")
    try:
        vsock.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
        vsock.listen()
    except OSError as error:
        pytest.skip(f"listening is not possible here: {error}")
    result = GRACEFUL["graceful_close"](vsock, timeout=3.0)
    assert result.outcome is CloseOutcome.NOT_CONNECTED
    assert vsock.fileno() == -1


def test_an_exception_of_the_body_propagates_from_closing_of_a_vsock(
    vsock: socket.socket,
) -> None:
    block = closing(vsock)
    with pytest.raises(LookupError, match="raised by the body"):
        with block:
            raise LookupError("raised by the body")
    assert vsock.fileno() == -1
    assert block.result is not None
    assert block.result.outcome is CloseOutcome.NOT_CONNECTED


def test_the_bytes_of_a_vsock_are_not_counted(vsock: socket.socket) -> None:
    assert unacked_bytes(vsock) is None


@pytest.mark.skipif(
    sys.implementation.name == "pypy",
    reason="PyPy passes the option to the kernel, which has it; CPython refuses a struct",
)
@pytest.mark.parametrize(
    "call",
    [
        get_linger,
        partial(set_linger, policy=LingerPolicy.ABORT),
        partial(set_linger, policy=LingerPolicy.BACKGROUND),
        partial(set_linger, policy=LingerPolicy.TIMED, seconds=1),
    ],
    ids=["get_linger", "ABORT", "BACKGROUND", "TIMED"],
)
def test_get_and_set_linger_of_a_vsock_raise_with_a_number(
    vsock: socket.socket, call: Callable[[socket.socket], object]
) -> None:
    with pytest.raises(OSError, match="AF_VSOCK") as raised:
        call(vsock)
    assert raised.value.errno == errno.ENOPROTOOPT
    assert vsock.fileno() != -1


def test_a_vsock_does_not_change_the_results_of_others(
    vsock: socket.socket, tcp: Connection
) -> None:
    tcp.peer.shutdown(socket.SHUT_WR)
    first, second = close_all([vsock, tcp.ours], timeout=DEADLINE)
    assert first.outcome is CloseOutcome.NOT_CONNECTED
    assert (second.outcome, second.unacked) == (CloseOutcome.PEER_CLOSED, 0)
