"""`with closing(sock)`: a graceful close when the body ends, and a reset when it raises."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from graceful_close import CloseOutcome, LingerPolicy, closing
from streams import (
    Connection,
    await_fin,
    connect,
    ends_in_reset,
    meanwhile,
    read_and_close,
    reset,
)


def outcome_of(context: closing) -> CloseOutcome:
    assert context.result is not None
    return context.result.outcome


def test_a_body_that_ends_closes_gracefully(stream: Connection) -> None:
    with meanwhile(read_and_close, stream.peer) as received:
        with closing(stream.ours, timeout=10) as sock:
            assert sock is stream.ours
            sock.sendall(b"the whole message")
    assert received == [b"the whole message"]
    assert stream.ours.fileno() == -1


@pytest.mark.parametrize(
    "error", [ZeroDivisionError, KeyboardInterrupt, GeneratorExit, SystemExit]
)
def test_every_exception_that_leaves_the_body_resets(
    tcp: Connection, error: type[BaseException]
) -> None:
    context = closing(tcp.ours)
    tcp.ours.sendall(b"half a mess")
    with pytest.raises(error), context:
        raise error
    assert tcp.ours.fileno() == -1
    assert ends_in_reset(tcp.peer)
    assert outcome_of(context) is CloseOutcome.ABORTED


def test_the_result_exists_only_after_the_block(tcp: Connection) -> None:
    context = closing(tcp.ours)
    tcp.peer.close()
    with context:
        assert context.result is None
    assert outcome_of(context) is CloseOutcome.PEER_CLOSED


def test_an_error_of_the_close_does_not_hide_the_exception_of_the_body(tcp: Connection) -> None:
    reset(tcp.peer)
    context = closing(tcp.ours)
    with pytest.raises(LookupError, match="the body's own"), context:
        raise LookupError("the body's own")
    assert outcome_of(context) is CloseOutcome.PEER_RESET


def test_a_peer_that_never_closes_is_a_result_and_not_an_exception(tcp: Connection) -> None:
    context = closing(tcp.ours, timeout=0.05)
    with context:
        pass
    assert outcome_of(context) is CloseOutcome.TIMED_OUT


def test_a_body_may_close_the_socket_itself(stream: Connection) -> None:
    context = closing(stream.ours)
    with context as sock:
        sock.close()
    assert outcome_of(context) is CloseOutcome.ALREADY_CLOSED


def test_a_body_may_detach_the_descriptor(tcp: Connection) -> None:
    with closing(tcp.ours) as sock:
        handed_on = socket.socket(fileno=sock.detach())
    with handed_on:
        handed_on.sendall(b"alive")
        assert tcp.peer.recv(10) == b"alive"


def test_the_options_are_those_of_graceful_close(tcp: Connection) -> None:
    tcp.peer.sendall(b"12345")
    tcp.peer.close()
    await_fin(tcp.ours)
    context = closing(
        tcp.ours,
        timeout=1,
        idle_timeout=1,
        drain_limit=4,
        until=CloseOutcome.DELIVERED,
        on_timeout=LingerPolicy.ABORT,
    )
    with context:
        pass
    assert outcome_of(context) is CloseOutcome.DRAIN_LIMIT


@pytest.mark.parametrize(
    ("options", "error"), [({"timeout": -1}, ValueError), ({"drain_limit": "9"}, TypeError)]
)
def test_a_wrong_option_is_rejected_before_the_body_runs(
    tcp: Connection, options: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        closing(tcp.ours, **options)
    assert tcp.ours.fileno() != -1


def test_only_stream_sockets_are_accepted() -> None:
    wrong: Any = object()
    with pytest.raises(TypeError, match="a socket.socket is needed"):
        closing(wrong)


def test_a_unix_stream_is_closed_without_a_reset(stack: Any) -> None:
    ours, peer = stack.enter_context(connect("unix"))
    with pytest.raises(ZeroDivisionError), closing(ours):
        raise ZeroDivisionError
    assert peer.recv(1) == b""
