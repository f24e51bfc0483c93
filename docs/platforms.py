"""Writes platforms.md from the library's own data, and from the targets they are held against.

python docs/platforms.py
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from graceful_close._platform import SYSTEMS, System, identify
from graceful_close._platform.acks import Field, Ioctl

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "platforms.md"
TARGETS = ROOT / "tests" / "headers" / "targets.toml"

# Where the whole suite is run.
RUN = {"linux": "x86-64"}

TITLES = {
    "linux": "Linux",
    "linux-ppc": "Linux, POWER",
    "linux-mips": "Linux, MIPS",
    "linux-sparc": "Linux, SPARC",
    "android": "Android",
    "macos": "macOS",
    "ios": "iOS",
    "tvos": "tvOS",
    "watchos": "watchOS",
    "freebsd": "FreeBSD",
    "netbsd": "NetBSD",
    "openbsd": "OpenBSD",
    "dragonfly": "DragonFly",
    "haiku": "Haiku",
    "aix": "AIX",
    "illumos": "illumos, Solaris",
    "windows": "Windows",
    "cygwin": "Cygwin",
    "msys": "MSYS",
    "wasi": "WASI, Emscripten",
}

# Where the promises of the library were tried (`python -m graceful_close lab --promises`): kernel,
# processor, Python, the promises that were held, and the tests that passed. Each but the first and
# the last is a place of `python -m elsewhere`.
PLACES_TRIED = (
    ("Linux 6.18", "x86-64", "CPython 3.11 to 3.13", "34 of 34", "the suite"),
    ("Linux 6.18", "x86-64", "CPython 3.14.10", "34 of 34", "the contract"),
    ("Linux 6.18", "x86-64", "CPython 3.15.2", "34 of 34", "the contract"),
    (
        "Linux 6.18",
        "x86-64",
        "CPython 3.13 without the GIL",
        "34 of 34",
        "the contract, the Reaper's",
    ),
    ("Linux 6.18", "x86-64", "PyPy 8.0.1, Python 3.11.17", "34 of 34", "the suite; see below"),
    ("Linux 6.18", "i386", "CPython 3.13.5", "34 of 34", "the contract"),
    ("Linux 6.18", "s390x, emulated", "CPython 3.11.2", "34 of 34", "the contract"),
    ("Linux 6.18", "ppc64el and mips64el, emulated", "CPython 3.11.2", "34 of 34", "-"),
    ("Linux 6.18", "armhf, arm64 and riscv64, emulated", "CPython 3.13.5", "34 of 34", "-"),
    (
        "Linux 5.10, 6.1, 6.12 and 7.2",
        "x86-64, emulated",
        "CPython 3.13.5",
        "34 of 34",
        "`tests/wire`, on 5.10",
    ),
    (
        "gVisor of July 2024",
        "x86-64",
        "CPython 3.11.2",
        "33 of 34; see below",
        "the contract",
    ),
    ("none: Emscripten", "wasm32, Pyodide", "CPython 3.14", "none of 34: no connections", "-"),
)
TRIED_ON = "2026-11-27"

PLACES = f"""\
## Where it was tried

The library has some thirty promises that a user would notice if they were broken: replies that
arrive, deadlines that are kept, outcomes that are true.
`python -m graceful_close lab --promises` tries them on the system that it runs on, in some seconds,
and its exit code is 1 if one is broken. If you run a system that is not in this table, its output is
worth an issue. On {TRIED_ON}:
"""

ABOUT_PLACES = """
*The suite* is all tests, *the contract* those of `tests/contract`: every kind of stream in every driver,
some 800. CPython 3.11 to 3.14, gVisor, i386 and s390x are tried with each change, and all places once a week. `nox -s` and the name of the place (`nox -l`) tries one again, as root on Debian.

- **gVisor** (Google Cloud Run's first generation, GKE Sandbox) has its own TCP. It does not count
  unacknowledged bytes (SIOCOUTQ is ENOPROTOOPT), so `unacked` is mostly `None`. DELIVERED is still detected, from the
  state in TCP_INFO, which is polled every 1 to 50 ms. gVisor has no `connect()` to AF_UNSPEC: the kernel sends the RST of an
  abort when the last reference is gone, as on systems other than Linux.
- **Containers** (Docker, Podman, Kubernetes) share the host's kernel: the same applies as for Linux.
- **WSL 2** runs Linux's kernel in a virtual machine, and is treated as Linux (Microsoft's
  documentation; not run). WSL 1 translates Linux's calls to those of Windows, and was not tried.
- **MPTCP** is Linux's: bytes are counted as for TCP. No option shows the state of such a connection, so
  only `recv()` reports the peer's FIN (the suite runs it if the kernel supports it).
- **Emulators of processors** (qemu-user) pass the host's kernel on. Its counts and errors come through
  right, but for SO_ERROR on MIPS in qemu 7.2. They are slow: on a busy machine a trial may exceed its time there, which
  is reported as BROKEN, with the time.
- **PyPy** makes a descriptor blocking when another socket object is made for it; the library makes it
  nonblocking again. PyPy's ssl (8.0.1) leaves an error of one TLS connection in OpenSSL's queue, and raises the error in
  the next call for another connection of the same thread. The library empties the queue after its own calls; asyncio
  does not, so some of its TLS connections fail on PyPy, with this library or without it. The session leaves out the
  situations and the exhaustive tests of the state machine, which take too long, uvicorn over TLS, and servers that cannot
  be installed there. A close with an open `makefile()` object searches all objects, about a second for each gigabyte.
- **CPython without the GIL**: importing the library does not turn the GIL on. Debian has no such package, so the session
  builds CPython 3.13 from Debian's source package.

"""

OPENING = """\
<!-- Written by docs/platforms.py from the library's own data. Change it there. -->

# Platforms

The tables are generated from the library's own data. The last column of the table of SO_LINGER is the *evidence*:

- **run**: the whole test suite runs on this system.
- **headers**: a test compiles a probe with the system's own C headers, for the number of targets in parentheses, and
  compares the layout and the numbers of both tables. Headers do not show behaviour or limits: these were read in the
  system's source code, or in its manual where a note says so.
- **unverified**: no headers were available. The numbers come from the vendor's documentation, or from the most similar
  system.
"""

LINGER = """\
## SO_LINGER by platform
"""

ABOUT_ACKS = """
Linux on alpha, parisc, sh and xtensa has numbers of its own, which are unverified. There, and on a system that is not in
the table, the library uses the numbers of Python's `socket` module, assumes two ints, and reports no acknowledgements.

## Detecting acknowledgement

*Counted by* is the query for the number of bytes that the peer has not acknowledged. If this number does not include our
FIN, the TCP state shows whether the FIN was acknowledged. *Woken by* is the event that ends a wait for the
acknowledgement. On all systems the peer's data and its FIN wake the wait.
"""

NOTES = """
`close()` means that acknowledgements are not visible: `unacked` is `None`. With `until=DELIVERED`, and in
`timed_linger_close()`, the kernel then waits in a `close()` with {1, n}, and the result does not claim delivery.

## Quirks

### Everywhere

- `close()` with unread input sends RST and does not wait, whatever the linger setting. Input that arrives during the
  wait has the same effect. A TLS 1.3 session ticket that a client never reads is such input.
- {1, 0} after `shutdown(SHUT_WR)`: the peer reads a clean end, not a reset. After both FINs {1, 0} does not remove
  TIME_WAIT.
- A dup, a forked child, a `makefile()` object or a thread in `recv()` keeps the connection open after `close()`.
  `shutdown()` acts immediately.
- When a process exits, {1, n} does not wait and {1, 0} sends RST. An interpreter that exits with a {1, n} socket open
  waits in the finalizer of that socket.
- A socket from `accept()` inherits the listener's setting.
- CPython runs other threads during `close()`. PyPy does not: a lingering close blocks them all.
- AF_UNIX and UDP store the option and ignore it.

### Linux

- `close()` with {1, n} returns 0 if all data was acknowledged, if the time ran out, if a signal arrived and if the peer
  reset the connection. It blocks even on a non-blocking socket.
- A struct of fewer than 8 bytes is EINVAL. Any `l_onoff` except 0 reads back as 1. {0, n} keeps the old time. A time of
  -1 waits practically forever.
- SIOCOUTQ counts an unacknowledged FIN as one byte and is 0 from FIN_WAIT2 on. After a reset it keeps the count of lost
  bytes, so 0 without a reset means delivered. On AF_UNIX it counts the overhead of the buffers, not bytes:
  `unacked_bytes()` returns `None`.
- `recv()` with MSG_TRUNC discards TCP data inside the kernel, and `connect()` to AF_UNSPEC resets a connection for all
  holders. Only Linux has these two. (Debian's 5.10 refuses the latter with EBUSY while a thread sleeps on the connection:
  the kernel sends RST when that thread has left.)
- After the peer's reset `shutdown()` fails with ENOTCONN; `recv()` raises ECONNRESET, once.
- Android runs Linux's kernel, and the library assumes Linux's numbers there.

### macOS, iOS, tvOS, watchOS

- SO_LINGER counts **ticks**, 100 a second; SO_LINGER_SEC counts seconds. Python has no name for SO_LINGER_SEC; the library
  uses its number.
- The kernel stores the time in a short, in ticks: 328 s wraps to no wait, and 16384 s to 0, which aborts. Newer kernels
  return EDOM. The library therefore accepts at most 327 s.
- `close()` with {1, n} returns 0 if the time ran out, may fail with EINTR, and does not wait on a non-blocking socket.
- A socket from `accept()` turns an inherited {1, 0} into {1, 120}.
- A second `shutdown(SHUT_WR)` fails with ENOTCONN. SHUT_RDWR after the peer's FIN fails, too, and then no FIN is sent. Once
  both directions are shut down, `setsockopt()` fails with EINVAL.
- TIOCOUTQ works for terminals, not for sockets.
- The headers have no TCP states. The library uses those of 4.4BSD, as in the headers of the BSDs.
- iOS, tvOS and watchOS were compiled with the headers that they share with macOS.

### FreeBSD, NetBSD, OpenBSD, DragonFly

- `close()` with {1, n} fails with EWOULDBLOCK if the time ran out; the descriptor is released anyway. `close()` may fail
  with EINTR, and does not wait on a non-blocking socket.
- FreeBSD: a time under 0 or over 65535 is EDOM, and one over 32767 wraps. `l_onoff` reads back as
  128, on DragonFly too.
- NetBSD refuses a bad time with EDOM even when lingering is switched off.
- OpenBSD accepts 0 to 32767 and a struct of exactly 8 bytes; everything else is EINVAL. Its kernel reports the count in
  TCP_INFO to root only; other users read 0 bytes, which proves nothing. The library does not query the count there.
- A reset drops the send buffer, and the count with it.

### illumos, Solaris

- Once both directions are shut down, `setsockopt()` fails with EINVAL, as on macOS.

### Windows, Cygwin, MSYS

- struct linger is two **u_shorts**. Two ints are accepted and read as {1, 0}: a timed linger that is packed for other systems
  aborts without an error. Wine does the same
  ([tests/headers/under_wine.py](../tests/headers/under_wine.py) tests this).
- SO_DONTLINGER is `~SO_LINGER`, another way to say {0, 0}.
- If the time of a {1, n} close runs out, the connection is reset and the rest is lost (Microsoft's documentation).
- `close()` with {1, n} on a non-blocking socket fails with WSAEWOULDBLOCK and the handle stays valid (Microsoft's
  documentation). CPython has dropped the handle by then, so it leaks: the library never leaves {1, n} on a non-blocking
  socket.
- Python cannot query the number of unacknowledged bytes.
- Cygwin and MSYS have Windows' layout; the library assumes Windows' other numbers, too.

### Haiku, AIX, DragonFly

- Unverified. Haiku has its own numbers; for the others the library assumes those of the BSDs.

### WASI, Emscripten

- SO_LINGER does not exist: `get_linger()` and `set_linger()` fail with ENOPROTOOPT, and every close is in the background.
  Emscripten has no connections either: every close returns NOT_CONNECTED.

## The targets

The compiler's names of the targets. The test,
[tests/headers/test_headers.py](../tests/headers/test_headers.py), needs the `ziglang` wheel, which contains the headers, and
none of the systems.
"""


def page() -> str:
    """What platforms.md should say."""
    evidence = targets_by_system()
    systems = [system for system in SYSTEMS.values() if system.name != "unknown"]
    return "\n".join(
        [
            OPENING,
            PLACES,
            *_table(("kernel", "processor", "Python", "promises held", "tests"), PLACES_TRIED),
            ABOUT_PLACES + LINGER,
            *_table(
                ("system", "struct linger", "SOL_SOCKET", "option", "seconds", "evidence"),
                (
                    (TITLES[system.name], *_linger(system), _known(system, evidence))
                    for system in systems
                ),
            ),
            ABOUT_ACKS,
            *_table(
                ("system", "counted by", "our FIN", "after a reset", "woken by"),
                ((TITLES[system.name], *_acks(system)) for system in systems),
            ),
            NOTES,
            *_table(
                ("system", "targets"),
                (
                    (TITLES[name], ", ".join(triples) or "none: unverified")
                    for name, triples in evidence.items()
                ),
            ),
            "",
        ]
    )


def targets_by_system() -> dict[str, list[str]]:
    """The targets whose headers vouch for each system."""
    evidence: dict[str, list[str]] = {name: [] for name in SYSTEMS if name != "unknown"}
    platforms: dict[str, dict[str, str]] = tomllib.loads(TARGETS.read_text(encoding="utf-8"))
    for platform, triples in platforms.items():
        for triple, machine in triples.items():
            evidence[identify(platform, machine)].append(triple)
    return evidence


def _known(system: System, evidence: dict[str, list[str]]) -> str:
    words: list[str] = []
    if system.name in RUN:
        words.append(f"run ({RUN[system.name]})")
    if evidence[system.name]:
        words.append(f"headers ({len(evidence[system.name])})")
    return ", ".join(words) or "unverified"


def _linger(system: System) -> Sequence[str]:
    option = system.linger
    if option is None:
        return "-", "-", "none", "-"
    c_types = {"i": "int", "H": "u_short"}
    name = "SO_LINGER_SEC" if option.number == 0x1080 else "SO_LINGER"
    return (
        ", ".join(c_types[letter] for letter in option.layout),
        _number(option.level),
        f"{name} {_number(option.number)}",
        f"1 to {option.longest}",
    )


def _acks(system: System) -> Sequence[str]:
    acks = system.acks
    if acks is None:
        return "-", "-", "-", "`close()`" if system.linger else "-"
    return (
        _question(acks.queue),
        f"state in {_question(acks.state)}" if acks.state and acks.fin_waits_in else "counted",
        "kept" if acks.survives_reset else "lost",
        # Only Linux has either, and System does not say which systems have an epoll.
        "epoll, edge-triggered" if system.linux else "a poll every 1 to 50 ms",
    )


def _question(asked: Ioctl | Field) -> str:
    """How the kernel is asked, by name and number."""
    if isinstance(asked, Ioctl):
        bsd = {0x40046677: "FIONWRITE", 0x40046679: "FIONWRITE"}
        name = bsd.get(asked.number, "SIOCOUTQ")
        return f"ioctl {name} {_number(asked.number)}"
    apple = {0x1024: "SO_NWRITE", 0x106: "TCP_CONNECTION_INFO"}
    name = apple.get(asked.option, "TCP_INFO")
    where = f", at {asked.offset}" if asked.offset else ""
    return f"{name} {_number(asked.option)}{where}"


def _number(number: int) -> str:
    """As the headers write it."""
    return f"`{number:#x}`" if number >= 0x80 else f"`{number}`"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for cells in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
