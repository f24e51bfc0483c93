"""gevent: its sockets wrap a socket instead of being one, and its waits let others run."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("gevent", reason="needs gevent", exc_type=ImportError)

PROGRAM = """
import gevent.monkey
{patch}
import gevent, select, socket
import graceful_close
{patch_late}
from graceful_close import CloseOutcome, abortive_close, graceful_close, timed_linger_close
assert not hasattr(select, "epoll")

def connection():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        return listener.accept()[0], peer

turns = 0
def others():
    global turns
    while True:
        turns += 1
        gevent.sleep(0.01)
other = gevent.spawn(others)

ours, peer = connection()
result = graceful_close(ours, timeout=0.2)
assert result.outcome is CloseOutcome.TIMED_OUT, result
assert ours.fileno() == -1
assert turns > 3, "the wait must let other greenlets run"
peer.close()

ours, peer = connection()
ours.sendall(b"reply")
peer.sendall(b"unread")
def read():
    assert peer.recv(100) == b"reply" and peer.recv(1) == b""
    peer.close()
reader = gevent.spawn(read)
file = ours.makefile("rb")
result = graceful_close(ours, timeout=10)
assert result.outcome is CloseOutcome.PEER_CLOSED, result
assert ours.fileno() == -1
reader.get()

ours, peer = connection()
assert timed_linger_close(ours, 10).outcome is CloseOutcome.DELIVERED
peer.close()

ours, peer = connection()
abortive_close(ours)
try:
    peer.recv(1)
except ConnectionResetError:
    print("all well")
"""


@pytest.mark.parametrize("when", ["before the import", "after it"])
def test_closing_is_cooperative_under_gevent(when: str) -> None:
    patch = "gevent.monkey.patch_all()"
    early = when == "before the import"
    program = PROGRAM.replace("{patch}", patch if early else "")
    program = program.replace("{patch_late}", "" if early else patch)
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.stdout == "all well\n", ran.stderr
