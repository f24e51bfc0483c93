"""A close without a wait, after an interrupt or a bug."""

from __future__ import annotations

import pytest

from graceful_close import LingerPolicy, get_linger, set_linger
from graceful_close._close_all import close_at_once
from streams import Connection, await_reset, read_all


def test_a_reset_ends_the_connection_whoever_else_holds_it(tcp: Connection) -> None:
    with tcp.ours.dup():
        close_at_once([tcp.ours], LingerPolicy.ABORT)
        assert tcp.ours.fileno() == -1
        await_reset(tcp.peer)


def test_an_end_in_order_does_not_linger(tcp: Connection) -> None:
    set_linger(tcp.ours, LingerPolicy.TIMED, 7)
    with tcp.ours.dup() as holder:
        close_at_once([tcp.ours])
        assert get_linger(holder).policy is LingerPolicy.BACKGROUND
    assert read_all(tcp.peer) == b""


@pytest.mark.parametrize("policy", [LingerPolicy.BACKGROUND, LingerPolicy.ABORT])
def test_what_was_closed_before_does_not_keep_the_others_open(
    policy: LingerPolicy, tcp: Connection
) -> None:
    closed = tcp.peer.dup()
    closed.close()
    close_at_once([closed, tcp.ours], policy)
    assert tcp.ours.fileno() == -1
