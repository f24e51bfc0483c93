"""Reaper: forks, the exits of processes, and gevent."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pythons import PYPY, without_coverage
from streams import DEADLINE, Connection, await_fin, await_input, read_and_close

HERE = Path(__file__).parent


# --- processes --------------------------------------------------------------------------------


PRELUDE = """
import atexit, os, socket, sys, threading, time
from graceful_close import CloseOutcome, Linger, LingerPolicy, Reaper, get_linger, set_linger
from streams import DEADLINE, connect, connect_many
def outcomes(futures):
    return [future.result(DEADLINE).outcome for future in futures]
"""


def run(
    program: str, *arguments: str, first: str = "", pass_fds: tuple[int, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a program in a new Python; `first` is what it does before its imports."""
    return subprocess.run(
        [sys.executable, "-c", first + PRELUDE + program, *arguments],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        pass_fds=pass_fds,
        env=without_coverage(),
    )


def assert_all_well(program: str, *arguments: str) -> None:
    ran = run(FORKS + program + 'print("all well")\n', *arguments)
    assert ran.stdout == "all well\n", ran.stderr


def test_a_submit_imports_nothing() -> None:
    """A signal handler, or the child of a fork, may run in the middle of an import."""
    ran = run("""
reaper = Reaper()
before = set(sys.modules)
ours, peer = socket.socketpair()
reaper.submit(ours)
peer.close()
print(set(sys.modules) - before)
""")
    assert (ran.stdout, ran.stderr) == ("set()\n", "")


FORKS = """
import traceback
def held():
    names = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            names.add(name_of(number))
        except FileNotFoundError:
            pass  # the one that listed the folder
    return {name for name in names if name.startswith(("socket:", "anon_inode:[eventpoll]"))}

def name_of(number):
    return os.readlink(f"/proc/self/fd/{number}")

def in_a_child(action):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0

def use_it():
    ours, peer = socket.socketpair()
    future = reaper.submit(ours)
    peer.close()
    assert outcomes([future]) == [CloseOutcome.PEER_CLOSED]
"""

FORK = """
def look_and_use_it():
    assert held() == before - taken, "it holds no copies"
    assert (len(reaper), sum(reaper.stats().values())) == (0, 0)
    for _, peer in crowd:
        peer.close()
    use_it()
    reaper.close()
    assert not any(future.done() for future in futures)

with Reaper(timeout=DEADLINE, idle_timeout=None) as reaper, connect_many(5) as crowd:
    kept = crowd[0].ours.dup()  # through which the options can be seen
    set_linger(kept, LingerPolicy.TIMED, 7)
    before = held()
    taken = {name_of(ours.fileno()) for ours, _ in crowd[1:]}
    assert len(taken & before) == 4
    futures = [reaper.submit(ours) for ours, _ in crowd]
    for _, peer in crowd:
        assert peer.recv(1) == b""
    in_a_child(look_and_use_it)
    assert not any(future.done() for future in futures)
    assert get_linger(kept) == Linger(LingerPolicy.TIMED, 7)
    for _, peer in crowd:
        peer.close()
    assert outcomes(futures) == [CloseOutcome.PEER_CLOSED] * 5, "still reported to the parent"
    kept.close()
"""


def test_a_forked_child_starts_its_own_thread_and_does_not_touch_the_parents_sockets() -> None:
    assert_all_well(FORK)


BUSY_FORK = """
from collections import deque
reaper = Reaper(timeout=DEADLINE, max_sockets=64)
submitted = deque(maxlen=200)  # more than it may hold
peers = deque(maxlen=100)
over = threading.Event()
count = 0

def be_busy():
    global count
    while not over.is_set():
        ours, peer = socket.socketpair()
        submitted.append((name_of(ours.fileno()), ours))
        reaper.submit(ours)
        count += 1
        if count % 3:
            peer.close()
        else:
            if len(peers) == 100:
                peers.popleft().close()
            peers.append(peer)

def look_and_use_it():
    copies = held() & {name for name, ours in submitted if ours.fileno() == -1}
    assert not copies, copies
    use_it()

worker = threading.Thread(target=be_busy, daemon=True)
worker.start()
for _ in range(int(sys.argv[1])):
    in_a_child(look_and_use_it)
over.set()
worker.join()
for peer in peers:
    peer.close()
reaper.close()
assert sum(reaper.stats().values()) == count
"""


COUNT = """
import sys
sys.setswitchinterval(1e-6)
for _ in range(4):
    reaper = Reaper(timeout=DEADLINE, max_sockets=2)

    def submit():
        for _ in range(1000):
            ours, peer = socket.socketpair()
            reaper.submit(ours)
            peer.close()

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reaper.close()
    assert sum(reaper.stats().values()) == 4000, reaper.stats()
"""


def test_a_child_that_a_callback_forks_may_return_from_the_callback() -> None:
    ran = run(
        FORKS
        + """
children = []
reaper = Reaper(timeout=DEADLINE, on_close=lambda _: children or children.append(os.fork()))
use_it()
use_it()
reaper.close()
print(os.waitpid(children[0], 0)[1])
"""
    )
    assert ran.stdout == "0\n", ran.stderr
    # Python 3.12 and later warn there that the process has threads.
    assert "Traceback" not in ran.stderr, ran.stderr


def test_every_close_is_counted_when_many_threads_make_room() -> None:
    assert_all_well(COUNT)


@pytest.mark.skipif(
    PYPY, reason="PyPy forks inside detach(), when no object has the descriptor"
)
def test_forks_during_closes_neither_deadlock_nor_keep_copies() -> None:
    assert_all_well(BUSY_FORK, "200")


TLS_FORK = """
import ssl
from tls_sessions import fill_raw, session

def look():
    assert tls.ours.fileno() == -1, "another socket may have the number"

with Reaper(timeout=DEADLINE) as reaper, session(ssl.TLSVersion.TLSv1_3) as tls:
    fill_raw(tls.ours)
    reaper.submit(tls.ours)
    in_a_child(look)
    assert len(reaper) == 1
    reaper.close(0)
"""


def test_a_forked_child_is_left_no_number_of_a_tls_socket_that_waits_for_room() -> None:
    assert_all_well(TLS_FORK)


# Exits with a pending close whose input is unread; the peer is the test.
IN_FLIGHT = """
def in_flight(reaper):
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.sendall(b"reply" * 1000)
    return reaper.submit(sock)

def used():
    reaper = Reaper()
    ours, peer = socket.socketpair()
    reaper.submit(ours)
    peer.close()
    return reaper

def in_a_daemon(reaper):
    # Returns a function that lets a daemon thread submit.
    exiting = threading.Event()
    def work():
        exiting.wait()
        in_flight(reaper)
    daemon = threading.Thread(target=work, daemon=True)
    daemon.start()
    return lambda: (exiting.set(), daemon.join())
"""
EXITS = {
    "at the end of the program": """
reaper = Reaper()
in_flight(reaper)
""",
    "with an unreferenced Reaper": """
in_flight(Reaper())
""",
    "with a Reaper in a reference cycle": """
class Server: pass
server = Server()
server.reaper, server.self = Reaper(), server
in_flight(server.reaper)
del server
""",
    "by an exception": """
reaper = Reaper()
in_flight(reaper)
sys.stderr = open(os.devnull, "w")
raise RuntimeError
""",
    "by sys.exit()": """
reaper = Reaper()
in_flight(reaper)
sys.exit(0)
""",
    "while a thread runs, which calls sys.exit()": """
reaper = Reaper()
def work():
    in_flight(reaper)
    sys.exit(0)
threading.Thread(target=work).start()
""",
    "from an exit handler registered before the import": """
reaper = used()
def late():
    assert outcomes([in_flight(reaper)]) == [CloseOutcome.PEER_CLOSED]
""",
    "from a handler": """
reaper = used()
atexit.register(lambda: in_flight(reaper))
""",
    "from an exit handler, with no earlier submission": """
reaper = Reaper()
atexit.register(lambda: in_flight(reaper))
""",
    "from an exit handler, when those of multiprocessing have run": """
reaper = Reaper(idle_timeout=0.3)
def at_exit():
    time.sleep(0.4)
    ours, peer = socket.socketpair()
    in_flight(reaper)
    assert reaper.submit(ours).result(DEADLINE).elapsed >= 0.3
atexit.register(at_exit)
import multiprocessing.util
atexit.register(multiprocessing.util._exit_function)  # the last, which runs first
ours, peer = socket.socketpair()
peer.close()
reaper.submit(ours)
""",
    "from a daemon thread, before the Reapers are ended": """
atexit.register(in_a_daemon(Reaper()))
""",
    "from a daemon thread, after the Reapers were ended": """
late = in_a_daemon(Reaper())
""",
}


@pytest.mark.parametrize("how", EXITS)
def test_pending_closes_are_finished_at_exit(how: str, tcp: Connection) -> None:
    tcp.peer.sendall(b"unread")
    await_input(tcp.ours)
    number = tcp.ours.detach()
    program = "import atexit; late = lambda: None; atexit.register(lambda: late())"
    process = subprocess.Popen(
        [sys.executable, "-c", program + PRELUDE + IN_FLIGHT + EXITS[how], str(number)],
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=[number],
    )
    os.close(number)
    with process:
        assert read_and_close(tcp.peer) == b"reply" * 1000
        out, err = process.communicate(timeout=DEADLINE)
    assert (out, err) == ("", "")
    assert process.returncode == (1 if how == "by an exception" else 0)


WORKER = """
import multiprocessing, multiprocessing.util, socket, sys, threading
from graceful_close import Reaper
from streams import DEADLINE, await_input
def work(port):
    if {lags}:
        # Whoever ends the worker comes before the Reaper's thread has done anything.
        ending = threading.Event()
        multiprocessing.util.Finalize(None, ending.set, exitpriority=1)
        threading.setprofile(lambda *_: ending.wait())
        sys.setswitchinterval(DEADLINE)
    sock = socket.create_connection(("127.0.0.1", port))
    await_input(sock)
    sock.sendall(b"reply" * 1000)
    {reaper}.submit(sock)
reaper = Reaper()
if __name__ == "__main__":
    if {used_before}:
        ours, peer = socket.socketpair()
        future = reaper.submit(ours)
        peer.close()
        future.result(DEADLINE)
    start = multiprocessing.get_context(sys.argv[1])
    worker = start.Process(target=work, args=(int(sys.argv[2]),))
    worker.start()
    worker.join(DEADLINE)
    print(worker.exitcode)
"""


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("reaper", ["reaper", "Reaper()"], ids=["of the module", "its own"])
@pytest.mark.parametrize("used_before", [False, True], ids=["", "used before"])
@pytest.mark.parametrize("lags", [False, True], ids=["", "the thread lags"])
def test_a_worker_of_multiprocessing_finishes_its_pending_closes_at_its_end(
    listener: socket.socket,
    tmp_path: Path,
    start: str,
    reaper: str,
    used_before: bool,
    lags: bool,
) -> None:
    """Such a worker ends with os._exit()."""
    program = tmp_path / "program.py"
    program.write_text(WORKER.format(reaper=reaper, used_before=used_before, lags=lags))
    process = subprocess.Popen(
        [sys.executable, program, start, str(listener.getsockname()[1])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**without_coverage(), "PYTHONPATH": str(HERE)},
    )
    listener.settimeout(DEADLINE)
    with process, listener.accept()[0] as peer:
        peer.sendall(b"unread")
        await_fin(peer)
        poller = select.poll()
        poller.register(process.stdout or 0, select.POLLIN)
        assert not poller.poll(300), "the worker did not wait for the peer"
        peer.sendall(b"more")
        assert read_and_close(peer) == b"reply" * 1000
        assert process.communicate(timeout=DEADLINE) == ("0\n", "")


BOUNDED_EXITS = {
    "peers that never answer": """
reaper = Reaper(timeout=0.3)
in_flight(reaper)
""",
    "two Reapers whose peers never answer": """
reaper, other = Reaper(timeout=0.3), Reaper(timeout=0.3)
in_flight(reaper)
with connect_many(20) as crowd:
    for ours, _ in crowd:
        other.submit(ours)
""",
    "a callback that never ends": """
reaper = Reaper(timeout=1)
ours, peer = socket.socketpair()
future = reaper.submit(ours)
future.add_done_callback(lambda _: threading.Event().wait())
peer.close()
future.result(DEADLINE)
in_flight(reaper)
""",
    "a peer that never stops sending": """
reaper = Reaper(timeout=60, idle_timeout=0.3)
ours, peer = socket.socketpair()
def trickle():
    try:
        while True:
            peer.send(b"more")
            time.sleep(0.01)
    except OSError:
        pass
threading.Thread(target=trickle, daemon=True).start()
reaper.submit(ours)
""",
    "os._exit()": """
reaper = Reaper()
in_flight(reaper)
os._exit(0)
""",
    "a callback that exits": """
reaper = Reaper(timeout=0.3)
in_flight(reaper).add_done_callback(lambda _: sys.exit(3))
""",
}


@pytest.mark.parametrize("what", BOUNDED_EXITS)
def test_exit_takes_a_limited_time(what: str, tcp: Connection) -> None:
    number = tcp.ours.fileno()
    started = time.monotonic()
    ran = run(IN_FLIGHT + BOUNDED_EXITS[what], str(number), pass_fds=(number,))
    assert time.monotonic() - started < DEADLINE / 2
    assert (ran.returncode, ran.stderr) == (0, "")


# --- gevent -----------------------------------------------------------------------------------


GEVENT = """
turns = 0
def others():
    global turns
    while True:
        turns += 1
        gevent.sleep(0.01)
gevent.spawn(others)
with Reaper(timeout=0.3) as reaper, connect_many(10) as crowd:
    for ours, peer in crowd:
        ours.sendall(b"reply")
        peer.sendall(b"unread")
    before = turns
    futures = [reaper.submit(ours) for ours, _ in crowd]
    assert turns - before < 3, "submit waited"
    for _, peer in crowd[:9]:
        assert peer.recv(10) == b"reply" and peer.recv(1) == b""
        peer.close()
    expected = [CloseOutcome.PEER_CLOSED] * 9 + [CloseOutcome.TIMED_OUT]
    assert outcomes(futures) == expected, futures
    assert turns - before > 3, "the wait must let other greenlets run"
reaper = Reaper(timeout=0.3)
with connect("tcp4") as (ours, peer):
    reaper.submit(ours)  # and exit with it in flight
    os.dup(peer.fileno())
print("all well")
"""


@pytest.mark.parametrize("when", ["before the import", "after it"])
def test_a_reaper_under_gevent_is_a_greenlet_and_works(when: str) -> None:
    pytest.importorskip("gevent", reason="needs gevent", exc_type=ImportError)
    early = "" if when == "before the import" else "import graceful_close\n"
    patch = "import gevent, gevent.monkey\ngevent.monkey.patch_all()\n"
    ran = run(GEVENT, first=early + patch)
    assert (ran.stdout, ran.stderr) == ("all well\n", "")
