"""The number of system calls of one close, counted by strace."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    shutil.which("strace") is None, reason="needs strace (Linux; apt-get install strace)"
)

# Two calls that are not used otherwise mark the begin and the end of the close.
PROGRAM = """
import os, select, socket, sys, threading
from graceful_close import *
def connection():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        return listener.accept()[0], peer
def marked(action):
    os.getpriority(os.PRIO_PROCESS, 0)
    result = action()
    os.getpriority(os.PRIO_PROCESS, 0)
    return result
def close_after_us(peer):
    peer.recv(1)
    peer.close()
for answers in (False, True):  # what is asked once in a process is asked here
    warm_up, other = connection()
    answering = threading.Thread(target=close_after_us, args=(other,))
    if answers:
        answering.start()
    else:
        other.close()
    graceful_close(warm_up)
    if answers:
        answering.join()
ours, peer = connection()
"""


def calls_of(tmp_path: Path, program: str) -> list[str]:
    """Return the names of the system calls of the marked action, in order."""
    trace = tmp_path / "trace"
    command = ["strace", "-o", str(trace), sys.executable, "-c", PROGRAM + program]
    subprocess.run(command, check=True, timeout=60)
    names = [
        match[1]
        for line in trace.read_text().splitlines()
        if (match := re.match(r"(\w+)\(", line))
    ]
    first, last = (i for i, name in enumerate(names) if name == "getpriority")
    return names[first + 1 : last]


ANSWERING_PEER = """
thread = threading.Thread(target=close_after_us, args=(peer,))
thread.start()
"""


@pytest.mark.parametrize("timeout", [None, 5.0], ids=["blocking", "timeout"])
def test_a_close_whose_peer_answers_takes_at_most_twelve(
    tmp_path: Path, timeout: float | None
) -> None:
    program = f"""
ours.settimeout({timeout})
{ANSWERING_PEER}
assert marked(lambda: graceful_close(ours)).clean
thread.join()
"""
    calls = [name for name in calls_of(tmp_path, program) if name != "futex"]
    assert len(calls) <= 12, calls
    assert calls[-1] == "close"
    assert "shutdown" in calls


def test_a_close_after_the_peers_fin_takes_seven(tmp_path: Path) -> None:
    program = """
peer.close()
poller = select.poll()
poller.register(ours, 0x2000)  # POLLRDHUP
poller.poll()
assert marked(lambda: graceful_close(ours)).clean
"""
    calls = calls_of(tmp_path, program)
    assert calls == [
        "getsockname",
        "getsockopt",
        "getsockopt",
        "shutdown",
        "recvfrom",
        "ioctl",
        "close",
    ]


def test_a_timed_linger_takes_at_most_sixteen(
    tmp_path: Path,
) -> None:
    calls = calls_of(tmp_path, "assert marked(lambda: timed_linger_close(ours, 5)).clean")
    assert calls[:5] == ["getsockname", "getsockopt", "getsockopt", "shutdown", "recvfrom"]
    assert len(calls) <= 16, calls


def test_an_abort_takes_six(tmp_path: Path) -> None:
    first = "import ctypes, struct; ctypes.CDLL(None, use_errno=True).connect; "
    calls = calls_of(tmp_path, first + "marked(lambda: abortive_close(ours))")
    assert calls == ["getsockname", "getsockopt", "getsockopt", "ioctl", "connect", "close"]


@pytest.mark.parametrize("seconds", [0.2, 1.0])
def test_a_wait_for_the_acknowledgement_does_not_poll(tmp_path: Path, seconds: float) -> None:
    program = f"""
peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
ours.setblocking(False)
try:
    while True: ours.send(bytes(65536))
except BlockingIOError: pass
assert not marked(lambda: timed_linger_close(ours, {seconds})).clean
"""
    calls = calls_of(tmp_path, program)
    assert calls.count("epoll_wait") <= 4, calls
    assert len(calls) <= 20, calls
