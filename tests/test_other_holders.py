"""Other holders of the same connection, or of its descriptor number."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, suppress
from contextlib import closing as closing_it
from typing import Any

import pytest

import drivers
from drivers import THREADED, Close, leave_a_block, parts
from graceful_close import (
    CloseOutcome,
    CloseResult,
    LingerPolicy,
    abortive_close,
    get_linger,
    graceful_close,
    timed_linger_close,
)
from graceful_close._drain import Drain
from streams import (
    DEADLINE,
    Connection,
    await_fin,
    connect,
    connect_many,
    ends_in_reset,
    kernel_counts,
    meanwhile,
    read_all,
    read_and_close,
    reset,
)

CLOSES = {**THREADED, "closing": leave_a_block}
every_close = pytest.mark.parametrize("close", parts(CLOSES))
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


def send_forever(peer: socket.socket) -> None:
    while True:
        peer.sendall(b"is the peer there?")


# --- another thread waits for input -----------------------------------------------------------


def reading(sock: socket.socket) -> AbstractContextManager[list[Any]]:
    """Run the block while a thread is blocked in recv(); the thread has ended after it."""
    return _blocked(lambda: sock.recv(10), _RECVFROM)


def writing(sock: socket.socket) -> AbstractContextManager[list[Any]]:
    """Run the block while a thread is blocked in send(); the thread has ended after it."""
    return _blocked(lambda: sock.sendall(bytes(100_000_000)), _SENDTO)


@contextmanager
def _blocked(call: Callable[[], object], system_call: str) -> Generator[list[Any], None, None]:
    returned: list[Any] = []
    number: list[int] = []
    began = threading.Event()

    def call_once() -> None:
        number.append(threading.get_native_id())
        began.set()
        try:
            returned.append(call())
        except OSError as error:
            returned.append(error)

    thread = threading.Thread(target=call_once, daemon=True)
    thread.start()
    assert began.wait(DEADLINE)
    _await_sleep(number[0], system_call)
    yield returned
    thread.join(DEADLINE)
    assert not thread.is_alive(), "the thread did not return"


def _await_sleep(thread: int, system_call: str) -> None:
    """Wait until the kernel reports that the thread is blocked in the system call."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        with open(f"/proc/self/task/{thread}/syscall") as file:
            words = file.read().split()
        if words[0] not in ("running", "-1") and words[0] == system_call:
            return
        time.sleep(0.001)
    raise AssertionError("the thread was never blocked")


# recvfrom(2), which recv() calls, and sendto(2), which send() calls; their numbers on this machine.
_RECVFROM = {"x86_64": "45", "aarch64": "207"}.get(os.uname().machine, "")
_SENDTO = {"x86_64": "44", "aarch64": "206"}.get(os.uname().machine, "")

needs_syscalls = pytest.mark.skipif(
    not (_RECVFROM and os.path.exists("/proc/self/syscall")),
    reason="the kernel does not report a thread's system call",
)


@needs_syscalls
@every_close
@pytest.mark.parametrize("policy", [LingerPolicy.BACKGROUND, LingerPolicy.ABORT])
def test_a_blocked_reader_returns_when_a_close_times_out(
    tcp: Connection, close: Close, policy: Any
) -> None:
    with reading(tcp.ours) as read:
        result = close(tcp.ours, timeout=0.2, on_timeout=policy)
    assert result.outcome is CloseOutcome.TIMED_OUT
    assert read[0] == b"" or isinstance(read[0], OSError)


@needs_syscalls
@every_close
def test_a_blocked_reader_does_not_prevent_a_reset(tcp: Connection, close: Close) -> None:
    """The reader has the last reference, so close() does not send a reset."""
    with reading(tcp.ours):
        close(tcp.ours, timeout=0.2, on_timeout=LingerPolicy.ABORT)
    with pytest.raises(ConnectionError):
        send_forever(tcp.peer)


@needs_syscalls
def test_a_blocked_reader_returns_at_an_abort(stream: Connection) -> None:
    with reading(stream.ours):
        assert abortive_close(stream.ours).outcome is CloseOutcome.ABORTED
    assert ends_in_reset(stream.peer) is (stream.peer.family != socket.AF_UNIX)


@needs_syscalls
def test_a_blocked_writer_returns_at_an_abort(stream: Connection) -> None:
    with writing(stream.ours) as written:
        abortive_close(stream.ours)
    assert isinstance(written[0], OSError)


@needs_syscalls
def test_a_blocked_reader_returns_when_a_timed_linger_times_out() -> None:
    with connect("tcp4", peer_buffer=4096) as (ours, peer):
        with reading(ours):
            ours.setblocking(True)
            ours.send(bytes(1 << 20), socket.MSG_DONTWAIT)
            result = timed_linger_close(ours, 0.2)
        assert result.outcome is CloseOutcome.TIMED_OUT
        read_all(peer)


@needs_syscalls
@every_close
def test_a_reader_of_a_peer_that_closes_reads_the_end(tcp: Connection, close: Close) -> None:
    with reading(tcp.ours) as read, meanwhile(read_and_close, tcp.peer):
        result = close(tcp.ours, timeout=DEADLINE)
    assert result.outcome is CloseOutcome.PEER_CLOSED
    assert read == [b""]


@contextmanager
def reads_first(
    sock: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> Generator[list[bytes | OSError], None, None]:
    """Another reader reads before each read of the close."""
    read: list[bytes | OSError] = []
    read_slowly = Drain.read

    def read_after_them(drain: Drain, ours: socket.socket, allowance: int | None) -> int:
        try:
            read.append(faster.recv(100, socket.MSG_DONTWAIT))
        except OSError as error:
            read.append(error)
        return read_slowly(drain, ours, allowance)

    with sock.dup() as faster:
        monkeypatch.setattr(Drain, "read", read_after_them)
        yield read


def reset_at_the_fin(peer: socket.socket) -> None:
    await_fin(peer)
    reset(peer)


@linux
@every_close
@pytest.mark.parametrize("peer_first", [0, 0.05])
def test_a_reset_that_another_reader_got_is_reported_as_a_reset(
    tcp: Connection, close: Close, peer_first: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    with reads_first(tcp.ours, monkeypatch), meanwhile(reset_at_the_fin, tcp.peer):
        result = close(tcp.ours, timeout=DEADLINE, peer_first=peer_first)
    # Either reader may get the reset, which may arrive between their reads.
    assert result.outcome is CloseOutcome.PEER_RESET
    assert not result.clean


@linux
@every_close
@pytest.mark.parametrize("until", [CloseOutcome.PEER_CLOSED, CloseOutcome.DELIVERED])
def test_the_end_that_another_reader_got_is_reported_as_the_peers(
    tcp: Connection, close: Close, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with reads_first(tcp.ours, monkeypatch), meanwhile(read_and_close, tcp.peer):
        result = close(tcp.ours, timeout=DEADLINE, until=until)
    assert result.outcome is until
    assert result.clean


# --- another thread closes --------------------------------------------------------------------


def _in_threads(*actions: Callable[[], CloseResult]) -> list[CloseResult]:
    """Run each call in its own thread and return the results; an exception fails the test."""
    start = threading.Barrier(len(actions))
    returned: list[CloseResult] = []
    errors: list[BaseException] = []

    def run(action: Callable[[], CloseResult]) -> None:
        start.wait(DEADLINE)
        try:
            returned.append(action())
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=run, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert errors == []
    return returned


@pytest.fixture
def frequent_switches() -> Generator[None, None, None]:
    """Make the interpreter switch threads as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("frequent_switches")
@linux
@pytest.mark.skipif(not kernel_counts(), reason="this kernel does not count")
@every_close
def test_a_reset_by_another_holder_leaves_the_count_unknown(
    tcp: Connection, close: Close
) -> None:
    dup = tcp.ours.dup()
    tcp.ours.sendall(b"reply")

    def abort(peer: socket.socket) -> CloseResult:
        await_fin(peer)
        return abortive_close(dup)

    with meanwhile(abort, tcp.peer) as aborted:
        result = close(tcp.ours, timeout=DEADLINE)
    assert aborted[0].outcome is CloseOutcome.ABORTED
    assert (result.outcome, result.unacked) == (CloseOutcome.PEER_RESET, None)


@linux
@every_close
def test_a_reset_by_another_holder_whose_error_was_taken_is_reported_as_a_reset(
    tcp: Connection, close: Close
) -> None:
    dup = tcp.ours.dup()

    def abort(peer: socket.socket) -> None:
        await_fin(peer)
        tcp.peer.sendall(b"input, so that the close reads after the reset")
        with dup.dup() as reader:
            abortive_close(dup)
            reader.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    with meanwhile(abort, tcp.peer):
        result = close(tcp.ours, timeout=DEADLINE)
    assert (result.outcome, result.clean) == (CloseOutcome.PEER_RESET, False)


def test_of_two_concurrent_closes_one_finds_the_socket_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for _ in range(200):
            with socket.create_connection(listener.getsockname()) as peer:
                ours = listener.accept()[0]
                peer.shutdown(socket.SHUT_WR)
                results = _in_threads(
                    lambda ours=ours: abortive_close(ours),  # type: ignore[misc]
                    lambda ours=ours: graceful_close(ours, timeout=DEADLINE),  # type: ignore[misc]
                )
                outcomes = [result.outcome for result in results]
                assert outcomes.count(CloseOutcome.ALREADY_CLOSED) == 1
                outcomes.remove(CloseOutcome.ALREADY_CLOSED)
                assert outcomes[0] in (CloseOutcome.ABORTED, CloseOutcome.PEER_CLOSED)
                assert ours.fileno() == -1


@pytest.mark.usefixtures("frequent_switches")
@pytest.mark.parametrize("abort", [True, False], ids=["abortive_close", "graceful_close"])
def test_another_connection_that_gets_the_number_is_not_touched(abort: bool) -> None:
    """Another thread closes the socket and opens one with the same number during the close."""
    with connect_many(1) as [(innocent, its_peer)]:
        unset = get_linger(innocent)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            for _ in range(200):
                with socket.create_connection(listener.getsockname()) as peer:
                    victim = listener.accept()[0]
                    peer.shutdown(socket.SHUT_WR)
                    number = victim.fileno()
                    heirs: list[socket.socket] = []

                    def inherit(
                        victim: socket.socket = victim,
                        number: int = number,
                        heirs: list[socket.socket] = heirs,
                    ) -> CloseResult:
                        victim.close()
                        heir = fcntl.fcntl(innocent, fcntl.F_DUPFD, number)
                        heirs.append(socket.socket(fileno=heir))
                        return CloseResult(CloseOutcome.ALREADY_CLOSED, 0.0, 0, None, None)

                    close: Callable[[socket.socket], CloseResult] = (
                        abortive_close if abort else graceful_close
                    )
                    _in_threads(inherit, lambda close=close, victim=victim: close(victim))  # type: ignore[misc]
                    with closing_it(heirs[0]) as heir:
                        assert heir.getpeername() == its_peer.getsockname()
                        assert get_linger(heir) == unset
        its_peer.sendall(b"still there")
        assert innocent.recv(100) == b"still there"
        innocent.sendall(b"so am I")
        assert its_peer.recv(100) == b"so am I"


# --- a makefile() object is open --------------------------------------------------------------

WARNING = "makefile"


@contextmanager
def ignored_flush_error(file: Any) -> Generator[None, None, None]:
    """Ignore the error of a makefile() object whose buffer can no longer be flushed."""
    try:
        yield
    finally:
        with warnings.catch_warnings(), suppress(OSError):  # EBADF: its socket is closed
            warnings.simplefilter("ignore")
            file.close()


@every_close
@pytest.mark.parametrize(
    ("mode", "buffering", "held"),
    [
        ("wb", None, b"never sent"),
        ("w", None, "never sent"),
        ("rwb", None, b"never sent"),
        ("wb", 0, b""),
    ],
)
def test_an_open_writer_causes_a_warning_and_an_unclean_result(
    tcp: Connection, close: Close, mode: Any, buffering: int | None, held: Any
) -> None:
    file = tcp.ours.makefile(mode, buffering)
    file.write(held)
    with ignored_flush_error(file):
        with meanwhile(read_and_close, tcp.peer) as received:
            with pytest.warns(ResourceWarning, match=WARNING) as warned:
                result = close(tcp.ours, timeout=DEADLINE)
    assert received == [b""]
    [warning] = warned
    assert warning.filename in {__file__, drivers.__file__}, "it names the caller"
    assert (result.outcome, result.unflushed) == (CloseOutcome.PEER_CLOSED, True)
    assert not result.clean
    assert tcp.ours.fileno() == -1


@every_close
@pytest.mark.parametrize("mode", ["rb", "r"])
def test_an_open_reader_causes_no_warning_and_a_clean_result(
    tcp: Connection, close: Close, mode: Any
) -> None:
    with tcp.ours.makefile(mode), meanwhile(read_and_close, tcp.peer):
        result = close(tcp.ours, timeout=DEADLINE)
    assert (result.outcome, result.unflushed) == (CloseOutcome.PEER_CLOSED, False)
    assert result.clean


@every_close
def test_after_a_closed_writer_the_result_is_clean(tcp: Connection, close: Close) -> None:
    with tcp.ours.makefile("wb") as file:
        file.write(b"reply")
    with meanwhile(read_and_close, tcp.peer) as received:
        result = close(tcp.ours, timeout=DEADLINE)
    assert received == [b"reply"]
    assert result.clean


def test_an_open_reader_does_not_hide_an_open_writer(tcp: Connection) -> None:
    file = tcp.ours.makefile("wb")
    with (
        tcp.ours.makefile("rb"),
        ignored_flush_error(file),
        meanwhile(read_and_close, tcp.peer),
    ):
        with pytest.warns(ResourceWarning, match=WARNING):
            assert not graceful_close(tcp.ours, timeout=DEADLINE).clean


def test_an_abort_with_an_open_writer_does_not_warn(tcp: Connection) -> None:
    file = tcp.ours.makefile("wb")
    with ignored_flush_error(file):
        file.write(b"never sent")
        result = abortive_close(tcp.ours)
    assert (result.outcome, result.clean) == (CloseOutcome.ABORTED, True)
