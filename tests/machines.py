"""State machines in each of their phases, for the tests of `Teardown`: a fake clock, and no sockets."""

from __future__ import annotations

import errno
from typing import Any, Final

from graceful_close import CloseOutcome
from graceful_close._options import Options
from graceful_close._platform import SYSTEMS, TcpState, View
from graceful_close._step import Step
from graceful_close._teardown import Teardown

LINUX = SYSTEMS["linux"].tcp
BSD = SYSTEMS["macos"].tcp
WINDOWS = SYSTEMS["windows"].tcp
OTHER = SYSTEMS["linux"].other  # AF_UNIX and the like
MPTCP = SYSTEMS["linux"].mptcp

RESET = OSError(errno.ECONNRESET, "reset")
NOT_CONNECTED = OSError(errno.ENOTCONN, "not connected")
LOST = OSError(errno.ETIMEDOUT, "lost")
REFUSED = OSError(errno.ECONNREFUSED, "refused")
CUT_SHORT = OSError(errno.ECONNABORTED, "by the transport")

HELD = 1000  # bytes above the kernel

DELIVERED: Final = CloseOutcome.DELIVERED
PEER_CLOSED: Final = CloseOutcome.PEER_CLOSED

LISTENING, CONNECTING, ACCEPTING = (
    TcpState.LISTENING,
    TcpState.CONNECTING,
    TcpState.ACCEPTING,
)
OPEN, FIN_SENT, PEER_FIN = TcpState.OPEN, TcpState.FIN_SENT, TcpState.PEER_FIN
BOTH_FINS, OVER, NEVER_OPEN = TcpState.BOTH_FINS, TcpState.OVER, TcpState.NEVER_OPEN


def asking(timeout: Any = 5.0, **options: Any) -> Options:
    return Options(timeout, **options)


def begin(machine: Teardown, now: float = 0.0, state: TcpState | None = OPEN) -> Step:
    """Begin, and return the first step after the look at the connection, if there is one."""
    step = machine.start()
    return machine.looked(state, now) if step is Step.LOOK else step


def begun(
    options: Options | None = None,
    view: View = LINUX,
    now: float = 0.0,
    state: TcpState | None = OPEN,
    **driver: Any,
) -> Teardown:
    """Return a machine whose next step is our FIN."""
    machine = Teardown(options or asking(), now, view, **driver)
    assert begin(machine, now, state) is Step.SHUT_WR
    return machine


def draining(
    options: Options | None = None,
    view: View = LINUX,
    error: OSError | None = None,
    **driver: Any,
) -> Teardown:
    """Return a machine that has sent our FIN, and reads; `error` is that of shutdown()."""
    machine = begun(options, view, **driver)
    assert machine.shut(0.0, error) is Step.DRAIN
    return machine


def silent(options: Options | None = None, view: View = LINUX, **driver: Any) -> Teardown:
    """Return a machine that has sent our FIN, and found no input."""
    machine = draining(options, view, **driver)
    machine.would_block(0.0)
    return machine


def after_the_peers_fin(options: Options | None = None, view: View = LINUX) -> Teardown:
    """Return a machine that has sent our FIN and read the peer's, and counts."""
    machine = draining(options, view)
    assert end_of_stream(machine) is Step.COUNT
    return machine


def deaf(options: Options | None = None) -> Teardown:
    """Return a machine that counts after an end of the stream that is not the peer's FIN."""
    machine = draining(options)
    assert end_of_stream(machine, state=FIN_SENT) is Step.COUNT
    return machine


def without_room(options: Options | None = None, state: TcpState = OPEN) -> Teardown:
    """Return a machine that reads because there was no room for its close_notify."""
    machine = Teardown(options or asking(), 0.0, LINUX, tls=True)
    assert begin(machine, state=state) is Step.SEND_CLOSE_NOTIFY
    assert machine.notify_would_block(0.0) is Step.DRAIN
    return machine


def letting_the_peer_be_first(**options: Any) -> Teardown:
    """Return a machine that reads before our FIN, for a second."""
    machine = Teardown(asking(peer_first=1.0, **options), 0.0, LINUX)
    assert begin(machine) is Step.DRAIN
    return machine


def flushing(options: Options | None = None, view: View = LINUX, **driver: Any) -> Teardown:
    machine = Teardown(options or asking(), 0.0, view, flush=True, **driver)
    assert machine.start() is Step.FLUSH
    return machine


def given_up(view: View = LINUX, **driver: Any) -> Teardown:
    """Return a machine whose flush has timed out, before the look at the connection."""
    machine = flushing(view=view, **driver)
    assert machine.flushing(0, 0, HELD, 5.0) is Step.LOOK
    return machine


def end_flush(machine: Teardown, drained: int, now: float, *, waited: bool = True) -> None:
    """Report the end of the flush, and our FIN."""
    assert machine.flushed(drained, now, waited=waited) is Step.LOOK
    assert machine.looked(OPEN, now) is Step.SHUT_WR
    machine.shut(now)


def after_our_fin_in_a_flush(options: Options | None = None, view: View = LINUX) -> Teardown:
    """Return a machine after a flush that took no time, and has sent our FIN."""
    machine = Teardown(options or asking(), 0.0, view, flush=True)
    machine.flushed(0, 0.0, waited=False, fin_sent=True)
    return machine


def without_input(machine: Teardown, now: float) -> Step:
    """Report a read that found nothing, and that the error queue was emptied if requested."""
    step = machine.would_block(now)
    return machine.cleared(now) if step is Step.CLEAR_ERRORS else step


def woke_without_input(machine: Teardown, now: float) -> Step:
    assert machine.woke(now) is Step.DRAIN
    return machine.would_block(now)


def woke_to_count(machine: Teardown, unacked: int, now: float) -> Step:
    """Report a wake-up without input, and the count."""
    assert woke_without_input(machine, now) is Step.COUNT
    return machine.counted(unacked, now)


def end_of_stream(machine: Teardown, now: float = 0.0, state: TcpState = BOTH_FINS) -> Step:
    """Report that recv() returned 0, then the state of the connection."""
    assert machine.received(0, now) is Step.LOOK
    return machine.looked(state, now)


def end_of(machine: Teardown, field: str, now: float = 0.0) -> tuple[CloseOutcome, Any]:
    """Release at RELEASE, and return the outcome and one more field of the result."""
    result = machine.released(now)
    return result.outcome, getattr(result, field)
