"""Measure what scale.md says that connections cost while they are being closed. Linux, root.

    PYTHONPATH=src python docs/scale.py                  # the tables that take seconds
    PYTHONPATH=src python docs/scale.py lifetimes        # minutes
    PYTHONPATH=src python docs/scale.py reaper --connections 1000000
    PYTHONPATH=src python docs/scale.py orphans --whole-machine

Each table is measured by a process in its own network namespace, so that its settings affect no other
program and end with the process. `orphans` changes a setting of the whole machine, restores it, and
resets connections of other programs in between: run it on a machine without other users.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import select
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from graceful_close import CloseOutcome, LingerPolicy, Reaper, close_all, graceful_close

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

PROC = Path("/proc")
FIN_WAIT2, TIME_WAIT, LISTEN = 5, 6, 10  # include/net/tcp_states.h
SO_MEMINFO, SO_ATTACH_FILTER = 55, 26  # include/uapi/asm-generic/socket.h

# Seconds after which a wait for a state fails.
DEADLINE = 30.0

# Enough connections to make other activity on the machine insignificant.
MANY = 5_000

SETTINGS = (
    "fs.nr_open",
    "fs.file-max",
    "fs.epoll.max_user_watches",
    "net.core.somaxconn",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_abort_on_overflow",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_max_orphans",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_max_tw_buckets",
    "net.ipv4.tcp_mem",
    "net.ipv4.tcp_orphan_retries",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_tw_reuse",
    "net.ipv4.tcp_wmem",
    "net.netfilter.nf_conntrack_max",
    "net.netfilter.nf_conntrack_tcp_timeout_time_wait",
)


class Pair(NamedTuple):
    """A connection. Ours is the end that accepted it."""

    ours: socket.socket
    peer: socket.socket


# --- the tables ----------------------------------------------------------------------------------


def settings() -> None:
    """What is set here, and whose it is."""
    # A namespace has files only for what is its own; some it may read, but not write.
    inside = subprocess.run(
        ["unshare", "--net", "find", "/proc/sys/net", "-type", "f", "-perm", "-200"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    rows = [
        (
            f"`{name}`",
            _get(name) if _path(name).exists() else "-",
            "a network namespace" if str(_path(name)) in inside else "the machine",
        )
        for name in SETTINGS
    ]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    rows.append(("`RLIMIT_NOFILE`", f"{soft} {hard}", "a process"))
    _print(("setting", "here", "belongs to"), rows)


def memory() -> None:
    """What the kernel keeps for one end of a connection, by what became of it."""
    rounds = [_weigh() for _ in range(3)]
    rows: list[tuple[str, str, str]] = []
    for what, weighed in rounds[0].items():
        size, parts = 0, list[str]()
        for name, each in sorted(weighed):
            # The activity of other programs is not a whole number for each of our objects.
            count = round(statistics.median(once[what].get((name, each), 0) for once in rounds))
            if count:
                size += count * each
                parts.append(f"{name} {count:+} x {each}")
        rows.append((what, f"{size:+,}", ", ".join(parts)))
    _print(("change", "bytes", "objects, and bytes of slab for each"), rows)
    _print(
        ("64 KiB of reply, unread", "bytes"), [("in the send queue", f"{_queued(65_536):,}")]
    )


def reaper(count: int) -> None:
    """Silent peers that wait in a Reaper, and then close at the same time."""
    _allow(count + 100)
    _set("net.ipv4.ip_local_port_range", "1024 65535")
    _set("net.ipv4.tcp_max_tw_buckets", max(2 * count, 1_000))
    addresses = [f"127.0.{number}.1" for number in range(1 + count // 30_000)]
    with socket.create_server(("", 0), backlog=4096) as listener, _peers() as orders:
        listener.settimeout(DEADLINE)
        before_slab, before_pages = _slab(), 0
        held = Reaper(timeout=3600, idle_timeout=None, max_sockets=count + 1)
        made, spent = 0, 0.0
        while made < count:
            size = min(1000, count - made)
            address = (addresses[made * len(addresses) // count], listener.getsockname()[1])
            orders.sendall(struct.pack("64sii", address[0].encode(), address[1], size))
            socks = [listener.accept()[0] for _ in range(size)]
            if not made:
                _see_one_closed(held)
                before_pages = _resident()
            cpu = time.process_time()
            while socks:
                held.submit(socks.pop())
            _see_one_closed(held)  # handed over last: the others are being waited for by now
            spent += time.process_time() - cpu
            made += size
        resident, kernel = _resident() - before_pages, _slab() - before_slab
        begun, cpu = time.monotonic(), time.process_time()
        orders.shutdown(socket.SHUT_WR)
        while len(held):
            time.sleep(0.01)
        took, answered = time.monotonic() - begun, time.process_time() - cpu
        held.close()
        ended = held.stats()[CloseOutcome.PEER_CLOSED]
        _print(
            ("a Reaper with", f"{count:,} silent peers"),
            [
                ("resident memory of the process, for each", f"{resident / count:,.0f} B"),
                ("slabs of the kernel, for each, both ends", f"{kernel / count:,.0f} B"),
                ("processor time to hand one over", f"{spent / count * 1e6:,.0f} us"),
                (
                    "processor time to end one when it answers",
                    f"{answered / count * 1e6:,.0f} us",
                ),
                ("all of them answer: seconds until the last is closed", f"{took:,.1f}"),
                ("PEER_CLOSED", f"{ended:,}"),
                ("TIME_WAIT afterwards", f"{_sockets('tw'):,}"),
            ],
        )


def time_wait() -> None:
    """Who gets TIME_WAIT, and what happens to those for whom there is no room."""
    with _listener() as listener:
        port = listener.getsockname()[1]

        def who(first: str, parting: LingerPolicy | None = None) -> str:
            ours, peer = _connect(listener)
            client = peer.getsockname()[1]
            if parting is LingerPolicy.ABORT:
                graceful_close(ours, timeout=0, on_timeout=parting)
                peer.close()
            elif first == "ours":
                graceful_close(ours, until=CloseOutcome.DELIVERED)
                peer.close()
            else:
                peer.close()
                graceful_close(ours)
            ends = {(port, client): "ours", (client, port): "the peer"}
            held = [ends[row[:2]] for row in _tcp() if row[2] == TIME_WAIT and row[:2] in ends]
            return " and ".join(held) or "nobody"

        _print(
            ("closes first", "gets TIME_WAIT"),
            [
                ("ours", who("ours")),
                ("the peer", who("peer")),
                ("ours, given up with ABORT", who("ours", LingerPolicy.ABORT)),
            ],
        )
        _print(
            ("3,000 closes", "results", "kept", "no room", "what the peers get"),
            [
                ("until=PEER_CLOSED", *_overflow(listener, CloseOutcome.PEER_CLOSED)),
                ("until=DELIVERED", *_overflow(listener, CloseOutcome.DELIVERED)),
            ],
        )


def _overflow(listener: socket.socket, until: Any) -> Sequence[object]:
    """Close 3,000 with room for 1,000, in the columns of the above."""
    before = _sockets("tw")
    _set("net.ipv4.tcp_max_tw_buckets", before + 1_000)
    refused = _count("TcpExt", "TCPTimeWaitOverflow")
    told: Counter[str] = Counter()
    with Reaper(until=until) as held:
        for batch in range(3):
            # Addresses of their own, or a new connection could take the place of an old one.
            source = f"127.{batch + 1}.{len(until.name)}.1"
            pairs = [_connect(listener, source) for _ in range(1_000)]
            for ours, _ in pairs:
                ours.sendall(b"reply")
            ended = [held.submit(ours) for ours, _ in pairs]
            if until is CloseOutcome.DELIVERED:  # closed before the peers close
                for future in ended:
                    future.result(DEADLINE)
            told.update(_last_words(peer, b"") for _, peer in pairs)
    return (
        _words(Counter({how.name: number for how, number in held.stats().items() if number})),
        f"{_sockets('tw') - before:,}",
        f"{_count('TcpExt', 'TCPTimeWaitOverflow') - refused:,}",
        _words(told),
    )


def let_go() -> None:
    """What a peer receives that continues to send after the deadline."""
    rows: list[Sequence[object]] = []
    for parting in (LingerPolicy.BACKGROUND, LingerPolicy.ABORT):
        with _listener() as listener:
            pairs = [_connect(listener) for _ in range(100)]
            for ours, _ in pairs:
                ours.sendall(b"reply")
            close_all([ours for ours, _ in pairs], timeout=0.5, on_timeout=parting)
            kept = _states(listener)[FIN_WAIT2]
            told = Counter(_last_words(peer, b"more") for _, peer in pairs)
            rows.append((parting.name, kept, _states(listener)[FIN_WAIT2], _words(told)))
    head = ("100 closed by", "in FIN_WAIT2", "after the peers spoke", "what they get")
    _print(head, rows)


def ports() -> None:
    """A client that closes first runs out of ports."""
    _set("net.ipv4.ip_local_port_range", "40000 40099")
    rows: list[Sequence[object]] = []
    with _listener() as listener:
        for when, reuse in (("at first", 0), ("1.5 s later", 0), ("1.5 s later", 1)):
            _set("net.ipv4.tcp_tw_reuse", reuse)
            if rows:
                time.sleep(1.5)  # more than tcp_tw_reuse_delay
            made, failure = 0, "-"
            try:
                while made < 150:
                    ours, peer = _connect(listener)
                    made += 1
                    peer.shutdown(socket.SHUT_WR)
                    graceful_close(ours)
                    peer.close()
            except OSError as error:
                failure = error.strerror or str(error)
            rows.append((when, reuse, made, failure))
    _print(("100 ports", "tcp_tw_reuse", "connections, of 150", "then"), rows)


def lifetimes() -> None:
    """How long the kernel keeps connections that no process holds."""

    def finish(pair: Pair) -> None:
        pair.ours.shutdown(socket.SHUT_WR)
        pair.peer.close()
        pair.ours.close()

    def leave(pair: Pair) -> None:
        graceful_close(pair.ours, until=CloseOutcome.DELIVERED)

    def leave_full(pair: Pair) -> None:
        _fill(pair.ours)
        graceful_close(pair.ours, timeout=0)

    def leave_alone(pair: Pair) -> None:
        _go_deaf(pair.peer)
        leave_full(pair)

    rows: list[Sequence[object]] = []
    for retries in (0, 3):
        _set("net.ipv4.tcp_orphan_retries", retries)
        ends = [
            ("FIN_WAIT1, the peer reads nothing", 60, leave_full),
            ("FIN_WAIT1, the peer is gone", 60, leave_alone),
        ]
        if not retries:
            ends += [("TIME_WAIT", 60, finish)]
            ends += [("FIN_WAIT2", seconds, leave) for seconds in (10, 60, 90)]
        begun: dict[tuple[str, int], tuple[float, socket.socket, list[Pair]]] = {}
        for what, fin_timeout, end in ends:
            _set("net.ipv4.tcp_fin_timeout", fin_timeout)
            listener = _listener()
            pairs = [_connect(listener) for _ in range(20)]
            for pair in pairs:
                end(pair)
            begun[what, fin_timeout] = time.monotonic(), listener, pairs
        deadline = time.monotonic() + 1200
        while begun and time.monotonic() < deadline:
            time.sleep(0.25)
            for kind, (since, listener, _) in list(begun.items()):
                if set(_states(listener)) == {LISTEN}:
                    rows.append((*kind, retries, f"{time.monotonic() - since:.0f} s"))
                    del begun[kind]
        rows += [(*kind, retries, "over 1200 s") for kind in begun]
    head = (
        "closed in",
        "tcp_fin_timeout",
        "tcp_orphan_retries",
        "the last of 20 is gone after",
    )
    _print(head, rows)


def orphans() -> None:
    """What happens over tcp_max_orphans. It has no namespace."""
    before = _get("net.ipv4.tcp_max_orphans")
    _set("net.ipv4.tcp_max_orphans", 64)
    try:
        with _listener() as listener:
            pairs = [_connect(listener) for _ in range(300)]
            sent = [_fill(ours) for ours, _ in pairs]
            refused = _count("TcpExt", "TCPAbortOnMemory")
            for index, (ours, _) in enumerate(pairs):
                if index == 150:
                    time.sleep(0.3)  # the kernel counts its orphans ten times a second
                graceful_close(ours, timeout=0)
            words: Counter[str] = Counter()
            for (_, peer), size in zip(pairs, sent, strict=True):
                words[_read_all(peer, size)] += 1
            refused = _count("TcpExt", "TCPAbortOnMemory") - refused
    finally:
        _set("net.ipv4.tcp_max_orphans", before)
    _print(
        ("300 closed in FIN_WAIT1, tcp_max_orphans 64", "TCPAbortOnMemory", "the peers"),
        [(os.uname().release, refused, _words(words))],
    )


TABLES: dict[str, Callable[[], None]] = {
    table.__name__: table
    for table in (settings, memory, time_wait, let_go, ports, lifetimes, orphans)
}


# --- connections ---------------------------------------------------------------------------------


def _listener() -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(4096)
    return listener


def _connect(listener: socket.socket, source: str | None = None) -> Pair:
    peer = socket.socket()
    try:
        if source is not None:
            peer.bind((source, 0))
        # Small, so that a reply that is not read stays on our side.
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.connect(listener.getsockname())
        return Pair(listener.accept()[0], peer)
    except BaseException:
        peer.close()
        raise


def _fill(sock: socket.socket, size: int = 65_536) -> int:
    """Send what the kernel takes of `size` bytes, and say how many."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * size)
    sock.setblocking(False)
    return sock.send(bytes(size))


def _queued(size: int) -> int:
    """The memory of a reply in the send queue, overhead included."""
    with _listener() as listener:
        ours, peer = _connect(listener)
        with ours, peer:
            _fill(ours, size)
            found = struct.unpack("9I", ours.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))
            return int(found[5])  # SK_MEMINFO_WMEM_QUEUED


def _go_deaf(sock: socket.socket) -> None:
    """Drop whatever comes for `sock`, as if its machine had gone."""
    code = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF_RET 0
    program = struct.pack("HxxxxxxP", 1, ctypes.addressof(code))  # struct sock_fprog
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def _last_words(peer: socket.socket, words: bytes) -> str:
    """What a peer receives that reads everything, sends a last message, and closes its side."""
    with peer:
        reply = _read_all(peer, 5)
        try:
            peer.send(words)
            peer.shutdown(socket.SHUT_WR)
        except OSError as failure:
            return f"{reply}, then {failure.strerror}"
        # On loopback the answer is there before the call returns.
        error = peer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return f"{reply}, then {os.strerror(error)}" if error else reply


def _read_all(peer: socket.socket, size: int) -> str:
    peer.settimeout(DEADLINE)
    count = 0
    try:
        while part := peer.recv(65_536):
            count += len(part)
    except ConnectionResetError:
        return "reset"
    return "had it all" if count == size else "cut short"


def _words(words: Counter[str]) -> str:
    return "; ".join(f"{count:,} {what}" for what, count in words.items())


@contextmanager
def _peers() -> Generator[socket.socket]:
    """A process that connects on request, sends nothing, and closes everything at the end."""
    ours, its = socket.socketpair()
    child = os.fork()
    if child == 0:
        try:
            ours.close()
            held: list[int] = []
            while order := its.recv(72, socket.MSG_WAITALL):
                host, port, size = struct.unpack("64sii", order)
                for _ in range(size):
                    sock = socket.socket()
                    sock.connect((host.rstrip(b"\0").decode(), port))
                    held.append(sock.detach())
        except OSError as error:  # the parent reports the missing connection
            print(error, file=sys.stderr, flush=True)
        finally:
            os._exit(0)
    its.close()
    with ours:
        yield ours
    os.waitpid(child, 0)


def _see_one_closed(held: Reaper) -> None:
    with _listener() as listener:
        ours, peer = _connect(listener)
        peer.close()
        held.submit(ours).result(DEADLINE).check()


# --- what the kernel says ------------------------------------------------------------------------


def _weigh() -> dict[str, dict[tuple[str, int], float]]:
    """How the kernel's caches change, for one of MANY, by (name, bytes) of the cache."""
    _allow(4 * MANY)
    weighed: dict[str, dict[tuple[str, int], float]] = {}

    @contextmanager
    def change(what: str) -> Generator[None]:
        before = _caches()
        yield
        after = _caches()
        weighed[what] = {cache: (after[cache] - before[cache]) / MANY for cache in after}

    with _listener() as listener:
        with change("a socket with its descriptor"):
            socks = [socket.socket() for _ in range(MANY)]
        for sock in socks:
            sock.close()
        _set("net.ipv4.tcp_fin_timeout", 60)
        pairs = [_connect(listener) for _ in range(MANY)]
        with select.epoll() as epoll:
            with change("epoll watches it"):
                for ours, _ in pairs:
                    epoll.register(ours, select.EPOLLIN | select.EPOLLONESHOT)
            with change("FIN_WAIT2, held (the objects are the peer's)"):
                for ours, _ in pairs:
                    ours.shutdown(socket.SHUT_WR)
        with change("FIN_WAIT2, let go"):
            for ours, _ in pairs:
                ours.close()
        with change("TIME_WAIT: the peer closes too"):
            for _, peer in pairs:
                peer.close()
        _set("net.ipv4.tcp_fin_timeout", 120)
        pairs = [_connect(listener) for _ in range(MANY)]
        with change("FIN_WAIT2, closed, tcp_fin_timeout 120"):
            for ours, _ in pairs:
                ours.close()
        for _, peer in pairs:
            peer.close()
    return weighed


def _caches() -> Counter[tuple[str, int]]:
    """Objects in use in every slab cache, once their number has come to rest."""
    found, before = _read_caches(), None
    deadline = time.monotonic() + DEADLINE
    while before is None or any(abs(found[c] - before[c]) > MANY / 50 for c in found):
        if time.monotonic() > deadline:
            break
        time.sleep(0.25)  # sockets and inodes are freed after a grace period (RCU)
        found, before = _read_caches(), found
    return found


def _read_caches() -> Counter[tuple[str, int]]:
    found: Counter[tuple[str, int]] = Counter()
    page = resource.getpagesize()
    for line in (PROC / "slabinfo").read_text().splitlines()[2:]:
        name, active, _, _, in_slab, pages, *_ = line.split()
        found[name, int(pages) * page // int(in_slab)] = int(active)
    return found


def _tcp() -> Iterator[tuple[int, int, int]]:
    """Local port, remote port and state of every IPv4 connection in this namespace."""
    for line in (PROC / "net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, *_ = line.split()
        yield int(local[9:], 16), int(remote[9:], 16), int(state, 16)


def _states(listener: socket.socket) -> Counter[int]:
    port = listener.getsockname()[1]
    return Counter(state for local, _, state in _tcp() if local == port)


def _sockets(what: str) -> int:
    """From the TCP line of /proc/net/sockstat; only `inuse` and `tw` are this namespace's."""
    line = next(
        line for line in (PROC / "net/sockstat").read_text().splitlines() if line[:4] == "TCP:"
    )
    words = line.split()
    return int(words[words.index(what) + 1])


def _count(group: str, what: str) -> int:
    """A counter of /proc/net/netstat."""
    lines = (PROC / "net/netstat").read_text().splitlines()
    head, values = (line.split() for line in lines if line.startswith(f"{group}:"))
    return int(values[head.index(what)])


def _slab() -> int:
    text = (PROC / "meminfo").read_text()
    return int(text.split("Slab:")[1].split()[0]) * 1024


def _resident() -> int:
    return int((PROC / "self/statm").read_text().split()[1]) * resource.getpagesize()


# --- settings ------------------------------------------------------------------------------------


def _path(name: str) -> Path:
    return PROC / "sys" / name.replace(".", "/")


def _get(name: str) -> str:
    return " ".join(_path(name).read_text().split())


def _set(name: str, value: object) -> None:
    _path(name).write_text(str(value))


def _allow(descriptors: int) -> None:
    """Let this process have so many, up to fs.nr_open (getrlimit(2))."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < descriptors:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, max(hard, descriptors)))
        except ValueError as error:  # EPERM: no CAP_SYS_RESOURCE, or more than fs.nr_open
            raise SystemExit(f"{descriptors} descriptors of at most {hard}: {error}") from None


def _print(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    for cells in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(map(str, cells))} |")
    print(flush=True)


def main() -> None:
    every = [*TABLES, "reaper"]
    parser = argparse.ArgumentParser(description="What scale.md says, measured.")
    parser.add_argument("table", nargs="*", help=f"of {', '.join(every)}")
    parser.add_argument("--connections", type=int, default=MANY, help="for reaper")
    parser.add_argument("--whole-machine", action="store_true", help="let orphans do its harm")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    tables: list[str] = options.table
    if unknown := set(tables) - set(every):
        parser.error(f"no such table: {', '.join(unknown)}")
    if "orphans" in tables and not options.whole_machine:
        parser.error("orphans resets connections of others: --whole-machine says you know")
    for name in tables or [name for name in every if name not in ("lifetimes", "orphans")]:
        if options.inside or name in ("settings", "orphans"):
            TABLES[name]() if name in TABLES else reaper(options.connections)
            continue
        script = 'ip link set lo up && exec "$@"'
        again = [sys.executable, __file__, name, "--inside"]
        again += ["--connections", str(options.connections)]
        done = subprocess.run(
            ["unshare", "--net", "sh", "-c", script, "sh", *again], check=False
        )
        if done.returncode:
            sys.exit(done.returncode)


if __name__ == "__main__":
    main()
