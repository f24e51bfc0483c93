"""`graceful-close watch`: its parser of events, its judgement, and its command line."""

from __future__ import annotations

import json
import sys

import pytest

from graceful_close_lab.watch.events import Connection, Endpoint, parse
from graceful_close_lab.watch.judgement import Cost, Kind, Reset, judge
from lab_program import exits

if sys.platform != "linux":
    pytest.skip("only Linux reports its resets", allow_module_level=True)

from graceful_close_lab.watch.socket_notices import SocketNotice

# Lines of Linux 6.18, with pids, and of Linux 4.16 to 6.1, without.
NEW = (
    "    my server - 1-14681   (  14680) [001] ..s1. 11655.160423: tcp_send_reset:"
    " skbaddr=0000000000000000 skaddr=00000000001b43ef src=127.0.0.1:34081"
    " dest=[::ffff:127.0.0.1]:35248 state=TCP_CLOSE reason=TCP_ABORT_ON_CLOSE"
)
OLD = (
    "          <...>-14681 [001] .... 11655.160423: tcp_send_reset: sport=80 dport=35248"
    " saddr=127.0.0.1 daddr=127.0.0.1 saddrv6=::1 daddrv6=::ffff:127.0.0.1 state=TCP_CLOSE"
)


def test_a_line_of_a_new_kernel_is_parsed() -> None:
    event = parse(NEW)
    assert event is not None
    assert (event.name, event.name_of_thread) == ("tcp_send_reset", "my server - 1")
    assert (event.thread, event.process, event.by_process) == (14681, 14680, False)
    assert event.connection == Connection(
        Endpoint("127.0.0.1", 34081), Endpoint("127.0.0.1", 35248)
    )
    assert event.field("reason") == "TCP_ABORT_ON_CLOSE"


def test_a_line_of_an_old_kernel_is_parsed() -> None:
    event = parse(OLD)
    assert event is not None
    assert (event.name_of_thread, event.thread, event.process) == ("", 14681, 0)
    assert event.by_process
    assert event.connection == Connection(Endpoint("::1", 80), Endpoint("127.0.0.1", 35248))
    assert str(event.connection.local) == "[::1]:80"
    assert event.field("reason") == ""


@pytest.mark.parametrize("line", ["CPU:1 [LOST 17 EVENTS]", "", "# tracer: nop"])
def test_a_line_without_an_event_is_ignored(line: str) -> None:
    assert parse(line) is None


@pytest.mark.parametrize(
    ("reset", "kind"),
    [
        (Reset("TCP_ABORT_ON_CLOSE", "TCP_CLOSE", by_process=True), Kind.UNREAD),
        (Reset("TCP_ABORT_ON_DATA", "TCP_CLOSE", by_process=False), Kind.DATA),
        (Reset("TCP_TIMEWAIT_SOCKET", "TCP_TIME_WAIT", by_process=False), Kind.DATA),
        (Reset("TCP_STATE", "TCP_CLOSE", by_process=True), Kind.ABORT),
        (Reset("TCP_STATE", "TCP_FIN_WAIT2", by_process=False), Kind.SILENT),
        (Reset("", "TCP_CLOSE", by_process=True), Kind.CLOSED),
        (Reset("", "TCP_CLOSE", by_process=False), Kind.DATA),
        (Reset("NOT_SPECIFIED", "TCP_CLOSE", by_process=True), Kind.CLOSED),  # 6.10, 6.11
        (Reset("NOT_SPECIFIED", "TCP_FIN_WAIT2", by_process=False), Kind.OTHER),
        (Reset("MPTCP_RST_EPROHIBIT", "TCP_CLOSE", by_process=True), Kind.OTHER),
    ],
)
def test_the_kind_of_a_reset_is_what_the_process_did(reset: Reset, kind: Kind) -> None:
    assert reset.kind is kind


UNREAD = Reset("TCP_ABORT_ON_CLOSE", "TCP_CLOSE", by_process=True)
LATER = Reset("TCP_ABORT_ON_DATA", "TCP_CLOSE", by_process=False)
LATEST = Reset("TCP_TIMEWAIT_SOCKET", "TCP_TIME_WAIT", by_process=False)
ABORT = Reset("TCP_STATE", "TCP_CLOSE", by_process=True)
SUBFLOW = Reset("MPTCP_RST_EMIDDLEBOX", "TCP_CLOSE", by_process=False)
REQUEST = Reset("TCP_FLAGS", "TCP_NEW_SYN_RECV", by_process=False)


def sent(sent: int, acknowledged: int, not_sent: int = 0) -> SocketNotice:
    return SocketNotice(1000, 1000, sent, not_sent, acknowledged)


def got(received: int, unread: int) -> SocketNotice:
    return SocketNotice(unread, received, 1000, 0, 1001)


@pytest.mark.parametrize(
    ("reset", "own", "peer", "cost", "because"),
    [
        # The peer is on another machine: only unsent bytes are known to be lost.
        (UNREAD, sent(0, 0), None, Cost.NONE, "nothing had been written"),
        (UNREAD, sent(200, 200), None, Cost.MAY, "may not have read it"),
        (UNREAD, sent(200, 100), None, Cost.MAY, "100 bytes were not acknowledged"),
        (UNREAD, sent(200, 200, 5000), None, Cost.LOST, "5,000 bytes were never sent"),
        (UNREAD, sent(0, 0, 5), None, Cost.LOST, "5 bytes were never sent"),
        (UNREAD, None, None, Cost.MAY, "not known"),
        (LATER, sent(200, 201), None, Cost.MAY, "may not have read it"),
        (LATER, sent(0, 1), None, Cost.NONE, "nothing had been written"),
        (LATER, sent(200, 200, 1), None, Cost.MAY, "may not have read it"),  # the FIN
        (LATER, sent(200, 200, 101), None, Cost.LOST, "100 bytes were never sent"),
        (LATEST, None, None, Cost.MAY, "may not have read it"),
        # The kernel cleared the counts.
        (ABORT, sent(0, 0, 65538), None, Cost.MAY, "not known"),
        (REQUEST, None, None, Cost.NONE, "not established"),
        # The peer is on this machine.
        (UNREAD, sent(200, 200), got(200, 0), Cost.NONE, "read everything"),
        (UNREAD, sent(200, 200), got(200, 200), Cost.LOST, "200 bytes were never read"),
        (UNREAD, sent(200, 200), got(200, 30), Cost.MAY, "may be a close_notify"),
        (UNREAD, sent(200, 200, 300), got(200, 0), Cost.LOST, "300 bytes"),
        (UNREAD, None, got(200, 0), Cost.MAY, "not known"),
        # One byte may be the FIN of a shutdown(SHUT_WR) before.
        (UNREAD, sent(0, 0, 1), None, Cost.MAY, "not acknowledged"),
        (UNREAD, sent(200, 201), got(201, 1), Cost.NONE, "read everything"),
        (UNREAD, sent(200, 201), got(201, 201), Cost.LOST, "200 bytes"),
        (ABORT, None, got(1, 1), Cost.MAY, "not known"),
        (LATER, sent(200, 201), got(201, 1), Cost.NONE, "read everything"),
        (LATER, sent(200, 201), got(201, 0), Cost.NONE, "read everything"),
        (LATER, sent(200, 201), got(201, 201), Cost.LOST, "200 bytes"),
        (LATEST, None, got(201, 1), Cost.NONE, "read everything"),
        (LATEST, None, got(201, 101), Cost.LOST, "100 bytes"),
        (ABORT, None, got(200, 0), Cost.MAY, "not known"),
        (ABORT, None, got(200, 200), Cost.LOST, "at least 199 bytes"),
        (SUBFLOW, sent(200, 200, 5000), None, Cost.MAY, "subflow"),
    ],
)
def test_only_proven_losses_are_lost(
    reset: Reset, own: SocketNotice | None, peer: SocketNotice | None, cost: Cost, because: str
) -> None:
    judgement = judge(reset, own, peer)
    assert judgement.cost is cost, judgement
    assert because in judgement.because


def test_a_peer_that_closed_before_the_reset_lost_nothing() -> None:
    judgement = judge(UNREAD, sent(200, 200), got(0, 0), peer_was_gone=True)
    assert judgement.cost is Cost.NONE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "0"], "'0' is not a port"),
        (["--pid", "me"], "'me' is not a whole number"),
        (["--duration", "0"], "'0' is not a number of seconds"),
        (["--fail-over", "-1"], "'-1' is not a whole number"),
        (["--json", "--plain"], "not allowed with"),
    ],
)
def test_a_mistake_on_the_command_line_is_explained(arguments: list[str], message: str) -> None:
    assert message in exits(2, "watch", *arguments)


def test_counters_work_without_privileges() -> None:
    output = exits(0, "watch", "--counters", "--duration", "0.01", "--json")
    start, *_, summary = map(json.loads, output.splitlines())
    assert (start["event"], start["traced"]) == ("start", False)
    assert summary["event"] == "summary"
    assert {"TCPAbortOnClose", "TCPAbortOnData", "OutRsts"} <= summary["counters"].keys()


def test_counters_cannot_be_limited_to_a_port() -> None:
    errors = exits(3, "watch", "--counters", "--duration", "0.01", "--port", "80")
    assert "--port and --pid need tracing" in errors
