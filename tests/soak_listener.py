"""A soak test: many connections with clients of every kind, through one GracefulListener.

    PYTHONPATH=src python tests/soak_listener.py 100000

Needs Linux, for the client addresses (all of 127.0.0.0/8) and the count of descriptors.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from graceful_close import CloseOutcome, GracefulListener, LingerPolicy, Reaper, set_linger

REPLY = b"r" * 1000
UPLOAD = bytes(200_000)

# Seconds. Clients that do not close stay longer than the idle timeout, and drip longer than the
# timeout.
IDLE = 0.4
TOTAL = 1.5
BETWEEN_DRIPS = 0.1
DRIPS = 100

AT_ONCE = 200  # clients
ADDRESSES = 100  # addresses of clients, each of which has its own ports

KINDS = {
    "polite": 60,  # reads everything, then closes
    "uploads": 15,  # sends data that is not read, then reads everything
    "closes first": 10,  # half-closes before the reply
    "resets": 5,  # instead of reading the reply
    "leaves": 5,  # closes with the reply unread, which resets too
    "holds": 3,  # reads everything and does not close
    "drips": 2,  # does not close, and sends a byte regularly
}


# --- the clients, in a separate process -------------------------------------------------------


async def play(kind: str, sock: socket.socket) -> bytes:
    """Run one client; return what it has read."""
    loop = asyncio.get_running_loop()
    read = bytearray()

    async def read_all() -> None:
        while chunk := await loop.sock_recv(sock, 1 << 16):
            read.extend(chunk)

    await loop.sock_sendall(sock, b"request")
    match kind:
        case "uploads":
            await loop.sock_sendall(sock, UPLOAD)
            await read_all()
        case "closes first":
            sock.shutdown(socket.SHUT_WR)
            await read_all()
        case "resets":
            set_linger(sock, LingerPolicy.ABORT)
        case "leaves":
            await loop.sock_recv(sock, 1)
        case "holds":
            await read_all()
            await asyncio.sleep(2 * IDLE)
        case "drips":
            await read_all()
            with contextlib.suppress(OSError):  # the reset, after the server gave up
                for _ in range(DRIPS):
                    await loop.sock_sendall(sock, b".")
                    await asyncio.sleep(BETWEEN_DRIPS)
        case _:
            await read_all()
    return bytes(read)


async def clients(port: int, count: int, seed: int) -> dict[str, dict[str, int]]:
    """Run clients; return the number of each kind, and how many read the whole reply."""
    dice = random.Random(seed)
    kinds = dice.choices(list(KINDS), list(KINDS.values()), k=count)
    whole: Counter[str] = Counter()
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, kind: str) -> None:
        async with turn:
            with socket.socket() as sock:
                sock.setblocking(False)
                sock.bind((f"127.0.1.{1 + number % ADDRESSES}", 0))
                await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
                read = await play(kind, sock)
                whole[kind] += read == REPLY

    async with asyncio.TaskGroup() as group:
        for number, kind in enumerate(kinds):
            group.create_task(one(number, kind))
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
    return {"kinds": Counter(kinds), "whole": whole}


# --- the server -------------------------------------------------------------------------------


@dataclass
class Report:
    """The result of the soak test.

    Attributes:
        kinds: The number of clients of each kind.
        whole: How many of each kind read the whole reply.
        outcomes: The number of connections by outcome.
        seconds: The duration.
        grown: The growth of the process in KiB, from a tenth of the connections to the end.
        descriptors: How many more descriptors are open at the end.
        threads: How many more threads are running at the end.
    """

    kinds: dict[str, int]
    whole: dict[str, int]
    outcomes: dict[CloseOutcome, int]
    seconds: float
    grown: int
    descriptors: int
    threads: int


def soak(count: int, seed: int = 0) -> Report:
    """Serve `count` clients; the duration is bounded by the deadlines of the slow clients."""
    descriptors, threads = _held(), threading.active_count()
    resident = 0
    started = time.monotonic()
    reaper = Reaper(timeout=TOTAL, idle_timeout=IDLE)
    with GracefulListener(("127.0.0.1", 0), backlog=AT_ONCE, reaper=reaper) as listener:
        port = listener.getsockname()[1]
        command = [sys.executable, __file__, "clients", str(port), str(count), str(seed)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            for number in range(count):
                accepted, _ = listener.accept()
                with contextlib.suppress(ConnectionError):
                    accepted.recv(1)
                    accepted.sendall(REPLY)
                accepted.close()
                if number == count // 10:
                    resident = _resident()
            output, _ = process.communicate(timeout=60)
    reaper.close()
    result = json.loads(output)
    return Report(
        result["kinds"],
        result["whole"],
        {outcome: number for outcome, number in reaper.stats().items() if number},
        time.monotonic() - started,
        _resident() - resident,
        _held() - descriptors,
        threading.active_count() - threads,
    )


def _held() -> int:
    return len(os.listdir("/proc/self/fd"))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024


def main() -> None:
    if sys.argv[1] == "clients":
        port, count, seed = map(int, sys.argv[2:])
        print(json.dumps(asyncio.run(clients(port, count, seed))))
        return
    report = soak(int(sys.argv[1]))
    for name, number in report.kinds.items():
        print(f"{number:7} {name}, with the reply whole: {report.whole.get(name, 0)}")
    for outcome, number in report.outcomes.items():
        print(f"{number:7} {outcome.value}")
    print(f"{sum(report.outcomes.values()):7} connections in {report.seconds:.1f} s")
    print(f"left: {report.descriptors} descriptors, {report.threads} threads")
    print(f"grown by {report.grown} KiB")


if __name__ == "__main__":
    main()
