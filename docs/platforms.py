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

OPENING = """\
<!-- Written by docs/platforms.py from the library's own data. Change it there. -->

# Platforms

The tables are generated from the library's own data. The last column of the first table is the *evidence*:

- **run**: the whole test suite runs on this system.
- **headers**: a test compiles a probe with the system's own C headers, for the number of targets in parentheses, and
  compares the layout and the numbers of both tables. Headers do not show behaviour or limits: these were read in the
  system's source code, or in its manual where a note says so.
- **unverified**: no headers were available. The numbers come from the vendor's documentation, or from the most similar
  system.

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
