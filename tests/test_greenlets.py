"""gevent and eventlet: their sockets wrap a socket, and their waits run other greenlets."""

from __future__ import annotations

import pytest

from greenlets import LIBRARIES, before_and_after_the_import, output_under

PROGRAM = """
{library}
{patch}
import errno, select, socket
import graceful_close
{patch_late}
from graceful_close import CloseOutcome, Reaper, abortive_close, graceful_close, timed_linger_close
assert not hasattr(select, "epoll")

def connection():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        return listener.accept()[0], peer

def wait_for(reader):
    reader.get() if hasattr(reader, "get") else reader.wait()

turns = 0
def others():
    global turns
    while True:
        turns += 1
        library.sleep(0.01)
other = library.spawn(others)

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
reader = library.spawn(read)
file = ours.makefile("rb")
result = graceful_close(ours, timeout=10)
assert result.outcome is CloseOutcome.PEER_CLOSED, result
assert ours.fileno() == -1
wait_for(reader)

ours, peer = connection()
ours.sendall(b"reply")
peer.sendall(bytes(100_000))
reader = library.spawn(read)
with Reaper() as reaper:
    result = reaper.submit(ours).result(10)
assert result.outcome is CloseOutcome.PEER_CLOSED, result
assert ours.fileno() == -1
wait_for(reader)

ours, peer = connection()
assert timed_linger_close(ours, 10).outcome is CloseOutcome.DELIVERED
peer.close()

ours, peer = connection()
abortive_close(ours)
assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
print("all well")
"""


@pytest.mark.parametrize("library", LIBRARIES)
@before_and_after_the_import
def test_a_close_lets_other_greenlets_run(library: str, when: str) -> None:
    assert output_under(library, PROGRAM, when) == "all well\n"


REFUSED = """
{library}
{patch}
import socket
from graceful_close import GracefulListener
{patch_late}
plain = socket.create_server(("127.0.0.1", 0))
for make in (lambda: GracefulListener(("127.0.0.1", 0)), lambda: GracefulListener.adopt(plain)):
    try:
        make()
    except TypeError as error:
        print("DrainMiddleware" in str(error), plain.fileno() != -1)
"""


@before_and_after_the_import
def test_a_listener_under_eventlet_is_rejected_before_it_listens(when: str) -> None:
    assert output_under("eventlet", REFUSED, when) == "True True\n" * 2
