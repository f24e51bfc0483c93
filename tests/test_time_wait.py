"""The side that closes first keeps TIME_WAIT: a client with few ports, in a namespace."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

CONNECTIONS = 10_000
PORTS = 24

# The client's loopback has 24 ports. The server closes after its reply, or after the client has
# closed.
PROGRAM = f"""
import errno, socket, sys, threading
from pathlib import Path
from graceful_close import graceful_close

Path("/proc/sys/net/ipv4/tcp_tw_reuse").write_text("0")
Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("40000 {40000 + PORTS - 1}")
listener = socket.create_server(("127.0.0.1", 8080), backlog=100)

def serve():
    while True:
        sock, _ = listener.accept()
        sock.sendall(b"reply")
        while peer_first == 0 and sock.recv(100):
            pass
        graceful_close(sock, timeout=5)

peer_first = float(sys.argv[1])
threading.Thread(target=serve, daemon=True).start()
made = first = 0
try:
    for _ in range(int(sys.argv[2])):
        sock = socket.create_connection(("127.0.0.1", 8080))
        sock.recv(5, socket.MSG_WAITALL)
        first += graceful_close(sock, timeout=5, peer_first=peer_first).peer_first is True
        made += 1
except OSError as error:
    if error.errno != errno.EADDRNOTAVAIL:
        raise
print(made, first)
"""


def connect_often(peer_first: float) -> tuple[int, int]:
    """Return the number of connections, and in how many of them the server closed first."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root, and a network namespace (Linux)")
    script = 'ip link set lo up && exec "$@"'
    ran = subprocess.run(
        [
            *("unshare", "--net", "sh", "-c", script, "sh"),
            *(sys.executable, "-c", PROGRAM, str(peer_first), str(CONNECTIONS)),
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=100,
    )
    made, first = ran.stdout.split()
    return int(made), int(first)


def test_a_client_that_lets_the_server_close_first_never_runs_out_of_ports() -> None:
    assert connect_often(5) == (CONNECTIONS, CONNECTIONS)


def test_a_client_that_closes_first_can_use_each_port_only_once() -> None:
    assert connect_often(0) == (PORTS, 0)
