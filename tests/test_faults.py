"""Faults outside of the protocol: processes that die, stop or fork; and a soak test.

Tests with signals, exhausted descriptors and racing threads are in the files of the functions.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

import pytest

from graceful_close import (
    CloseOutcome,
    CloseResult,
    LingerPolicy,
    abortive_close,
    graceful_close,
    set_linger,
    timed_linger_close,
)
from pythons import PYPY, output_of
from streams import (
    DEADLINE,
    Connection,
    await_fin,
    await_reset,
    connect,
    fill,
    held_by_a_child,
    meanwhile,
    read_and_close,
)

# Reads the number of bytes that its standard input names, then does nothing.
PEER = """
import socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def peer_process(peer: socket.socket) -> Generator[subprocess.Popen[bytes], None, None]:
    """A separate process that alone has the peer's end."""
    command = [sys.executable, "-c", PEER, str(peer.fileno())]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[peer.fileno()]
    ) as process:
        peer.close()
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_killed_peer_is_reported_as_closed(tcp: Connection) -> None:
    with peer_process(tcp.peer) as process:
        process.send_signal(signal.SIGKILL)
        result = graceful_close(tcp.ours, timeout=DEADLINE)
    assert (result.outcome, result.unacked) == (CloseOutcome.PEER_CLOSED, 0)


def test_a_peer_killed_with_our_data_unread_is_reported_as_reset(tcp: Connection) -> None:
    tcp.ours.sendall(b"unread")
    with peer_process(tcp.peer) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        await_reset(tcp.ours)
        result = graceful_close(tcp.ours, timeout=DEADLINE)
    assert result.outcome is CloseOutcome.PEER_RESET


def test_a_peer_that_is_stopped_acknowledges_but_does_not_close(tcp: Connection) -> None:
    with peer_process(tcp.peer) as process:
        process.send_signal(signal.SIGSTOP)
        with tcp.ours.dup() as dup:
            result = graceful_close(tcp.ours, timeout=0.05)
            assert (result.outcome, result.unacked) == (CloseOutcome.TIMED_OUT, 0)
            # The peer's kernel acknowledges without the program.
            assert timed_linger_close(dup, DEADLINE).outcome is CloseOutcome.DELIVERED


WITHOUT_ROOM = """
import resource
import socket
from graceful_close import graceful_close, _drain

with socket.create_server(("127.0.0.1", 0)) as listener:
    peer = socket.create_connection(listener.getsockname())
    ours = listener.accept()[0]
peer.sendall(bytes(100_000))
peer.shutdown(socket.SHUT_WR)
with open("/proc/self/statm") as status:
    used = int(status.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 20), -1))
try:
    _drain._untouched()
except OSError:
    print(graceful_close(ours, timeout=20).drained)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_without_memory_for_the_mapping_a_small_buffer_drains() -> None:
    assert output_of(WITHOUT_ROOM) == ("100000\n", "")


# The program has no memory left but a few small blocks. glibc keeps the stack of a thread that has
# ended, so that a new thread can start, but not run.
WITHOUT_MEMORY = """
import faulthandler
import resource
import socket
import threading
from graceful_close import Reaper, graceful_close

faulthandler.dump_traceback_later(8, exit=True)
with socket.create_server(("127.0.0.1", 0)) as listener:
    peer = socket.create_connection(listener.getsockname())
    ours = listener.accept()[0]
peer.sendall(bytes(10_000))
peer.shutdown(socket.SHUT_WR)
ended = threading.Thread(target=int)
ended.start()
ended.join()
reaper = Reaper(timeout=5)
with open("/proc/self/statm") as status:
    used = int(status.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used, -1))
taken = []
try:
    while True:
        taken.append(bytearray(4096))
except MemoryError:
    for _ in range(20):
        taken.pop()
result = {close}
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
print(result.outcome.name, result.drained)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
@pytest.mark.skipif(PYPY, reason="PyPy ends the process when it gets no memory")
@pytest.mark.parametrize(
    "close", ["graceful_close(ours, timeout=5)", "reaper.submit(ours).result(5)"]
)
def test_where_memory_is_exhausted_a_close_is_graceful_all_the_same(close: str) -> None:
    program = WITHOUT_MEMORY.replace("{close}", close)
    assert output_of(program) == ("PEER_CLOSED 10000\n", "")


def test_a_child_forked_before_the_close_does_not_delay_it(tcp: Connection) -> None:
    with held_by_a_child(but=tcp.peer), meanwhile(read_and_close, tcp.peer):
        result = graceful_close(tcp.ours, timeout=DEADLINE)
    assert result.outcome is CloseOutcome.PEER_CLOSED


def test_a_child_forked_during_the_close_has_no_effect(tcp: Connection) -> None:
    results: list[CloseResult] = []
    closer = threading.Thread(
        target=lambda: results.append(graceful_close(tcp.ours, timeout=DEADLINE))
    )
    closer.start()
    assert tcp.peer.recv(1) == b""  # the FIN: the close has begun
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    tcp.peer.close()
    closer.join()
    assert results[0].outcome is CloseOutcome.PEER_CLOSED


def test_parent_and_child_may_both_close_the_connection(tcp: Connection) -> None:
    child = os.fork()
    if child == 0:
        tcp.peer.close()
        result = graceful_close(tcp.ours, timeout=DEADLINE)
        os._exit(0 if result.outcome in {CloseOutcome.PEER_CLOSED, NOT_CONNECTED} else 1)
    tcp.peer.close()
    await_fin(tcp.ours)
    result = graceful_close(tcp.ours, timeout=DEADLINE)
    assert result.outcome in {CloseOutcome.PEER_CLOSED, NOT_CONNECTED}
    assert os.waitpid(child, 0)[1] == 0


NOT_CONNECTED = CloseOutcome.NOT_CONNECTED


# --- the soak ---------------------------------------------------------------------------------


def play(seed: int) -> tuple[str, CloseResult]:
    """Play one schedule: the actions of a peer, and the options of a close."""
    dice = random.Random(seed)
    family = dice.choice(["tcp4", "tcp4", "tcp6", "unix"])
    buffer = dice.choice([None, 4096]) if family != "unix" else None
    with connect(family, peer_buffer=buffer) as (ours, peer):
        ours.settimeout(dice.choice([None, 0, 3.0]))
        written = dice.choice([0, 100, -1])
        if written > 0:
            ours.sendall(bytes(written))
        elif written < 0:
            fill(ours)
        actions = dice.choices(ACTIONS, k=dice.randint(1, 4))
        thread = threading.Thread(target=act, args=(peer, actions, dice.random()))
        thread.start()
        way = dice.choice([*CLOSES])
        result = CLOSES[way](ours, dice.choice([0.0, 0.01, 0.05]))
        assert ours.fileno() == -1, seed
        thread.join(DEADLINE)
        assert not thread.is_alive(), seed
    return way, result


def act(peer: socket.socket, actions: list[str], start: float) -> None:
    """Run the peer in a thread; errors are expected."""
    peer.settimeout(0.2)
    if start < 0.5:
        with suppress(OSError):
            peer.recv(1)
    for action in actions:
        with suppress(OSError):
            match action:
                case "write":
                    peer.sendall(bytes(1000))
                case "flood":
                    peer.sendall(bytes(300_000))
                case "read":
                    while peer.recv(1 << 16):
                        pass
                case "half-close":
                    peer.shutdown(socket.SHUT_WR)
                case "close":
                    peer.close()
                case _:
                    set_linger(peer, LingerPolicy.ABORT)
                    peer.close()


ACTIONS = ["write", "flood", "read", "half-close", "close", "reset"]


CLOSES: dict[str, Callable[[socket.socket, float], CloseResult]] = {
    "graceful": lambda sock, seconds: graceful_close(sock, timeout=seconds),
    "delivered": lambda sock, seconds: graceful_close(
        sock, timeout=seconds, until=CloseOutcome.DELIVERED
    ),
    "idle": lambda sock, seconds: graceful_close(sock, timeout=1, idle_timeout=seconds),
    "limit": lambda sock, seconds: graceful_close(sock, timeout=seconds, drain_limit=5000),
    "timed": lambda sock, seconds: timed_linger_close(
        sock, seconds, on_timeout=LingerPolicy.ABORT
    ),
    "abort": lambda sock, _: abortive_close(sock),
}


def test_closes_of_random_peers_return_true_results(request: pytest.FixtureRequest) -> None:
    """`pytest --soak 100000` runs more schedules; a failure names its seed."""
    outcomes: Counter[tuple[str, CloseOutcome]] = Counter()
    for seed in range(int(request.config.option.soak)):
        way, result = play(seed)
        outcomes[way, result.outcome] += 1
        check(way, result, seed)
    assert len({outcome for _, outcome in outcomes}) >= 6, (
        "the schedules do not cover the outcomes"
    )


def check(way: str, result: CloseResult, seed: int) -> None:
    """Check a result without looking at packets."""
    story = f"seed {seed}, {way}: {result}"
    assert result.elapsed < 5, story
    match result.outcome:
        case CloseOutcome.DELIVERED:
            assert way in {"delivered", "timed"}, story
            assert result.unacked == 0, story
        case CloseOutcome.PEER_CLOSED:
            assert result.unacked in {0, None}, story
        case CloseOutcome.ABORTED:
            assert way == "abort", story
        case CloseOutcome.DRAIN_LIMIT:
            assert (way, result.drained) == ("limit", 5001), story
        case CloseOutcome.IDLE_TIMED_OUT:
            assert way == "idle", story
        case CloseOutcome.PEER_RESET:
            assert isinstance(result.error, (ConnectionResetError, BrokenPipeError)), story
        case outcome:
            assert outcome is not CloseOutcome.ALREADY_CLOSED, story
