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

The numbers, layouts and limits here are the ones that the library works with: the tables are made
from its data. The first table says how each system is *known*:

- **run**: the whole test suite runs on it.
- **headers**: a test compiles a probe against the system's own C headers, for as many targets as is
  said, and holds the layout and the numbers of both tables against them. Headers do not show
  behaviour, limits among it: that was read in the system's sources, or in its manual where a note
  says so.
- **unverified**: there were no headers to hold it against. The numbers are the vendor's word, or
  those of the system's nearest relative.

## How a system is told to linger
"""

ABOUT_ACKS = """
Linux on alpha, parisc, sh and xtensa has numbers of its own that nobody has checked. There, and on a
system that is not in the table, the library takes the numbers of Python's `socket` module, assumes
two ints, and claims nothing about acknowledgements.

## How delivery is seen

*Counted by* is how the kernel is asked for the bytes that the peer has not acknowledged. Where these
do not include our FIN, the state of TCP says whether it is still on its way. *Woken by* is what
ends a wait for the acknowledgement. For the peer's data and its FIN every system wakes us.
"""

NOTES = """
`close()` means that delivery is not seen: `unacked` is `None`. With `until=DELIVERED`, and in
`timed_linger_close()`, the kernel then waits in a `close()` with {1, n}, and the result does not
claim that anything was delivered.

## Quirks

### Everywhere

- `close()` over unread input sends RST and does not wait, whatever the linger setting. Input that
  arrives during the wait does the same, and a TLS 1.3 session ticket that a client never reads is
  such input.
- {1, 0} after `shutdown(SHUT_WR)`: the peer reads a clean end, not a reset. After both FINs {1, 0}
  does not remove TIME_WAIT.
- A dup, a forked child, a `makefile()` or a thread inside `recv()` keeps the connection open past
  `close()`. `shutdown()` acts at once.
- When a process exits, {1, n} does not wait and {1, 0} sends RST. An interpreter that exits with a
  {1, n} socket open waits in that socket's finalizer.
- A socket from `accept()` inherits the listener's setting.
- CPython lets other threads run during `close()`. PyPy does not: a lingering close stops them all.
- AF_UNIX and UDP keep the option and ignore it.

### Linux

- `close()` with {1, n} returns 0 when all was acknowledged, when the time ran out, when a signal
  came and when the peer reset the connection, and it blocks on a non-blocking socket too.
- A struct of fewer than 8 bytes is EINVAL. Any `l_onoff` but 0 reads back as 1. {0, n} leaves the
  old time in place. A time of -1 is about for ever.
- SIOCOUTQ counts an unacknowledged FIN as one byte and is 0 from FIN_WAIT2 on. After a reset it keeps
  the count of what was lost, so 0 without a reset means delivered. On AF_UNIX it counts the buffers'
  overhead, not bytes: `unacked_bytes()` says `None`.
- `recv()` with MSG_TRUNC throws TCP data away inside the kernel, and `connect()` to AF_UNSPEC
  resets a connection for all who hold it. Only Linux has either. (Debian's 5.10 refuses the latter
  with EBUSY while a thread sleeps on the connection: RST goes out when that thread has left.)
- After the peer's reset `shutdown()` fails with ENOTCONN; `recv()` gives the ECONNRESET, once.
- Android runs Linux's kernel, and Linux's numbers are assumed there.

### macOS, iOS, tvOS, watchOS

- SO_LINGER counts **ticks**, 100 a second; SO_LINGER_SEC counts seconds. Python has no name for it;
  the library uses its number.
- The time is kept in a short, in ticks: 328 s wraps to no wait and 16384 s to 0, which is an abort.
  Newer kernels answer EDOM. So 327 s is the most that is let through.
- `close()` with {1, n} returns 0 when the time ran out, may fail with EINTR, and does not wait on a
  non-blocking socket.
- A socket from `accept()` turns an inherited {1, 0} into {1, 120}.
- A second `shutdown(SHUT_WR)` fails with ENOTCONN. So does SHUT_RDWR after the peer's FIN, and then
  no FIN is sent. Once both directions are shut, `setsockopt()` fails with EINVAL.
- TIOCOUTQ is for terminals, not sockets.
- The headers have no TCP states. The numbers used are those of 4.4BSD, as in the BSDs' headers.
- iOS, tvOS and watchOS are compiled against the headers that they share with macOS.

### FreeBSD, NetBSD, OpenBSD, DragonFly

- `close()` with {1, n} fails with EWOULDBLOCK when the time ran out; the descriptor is gone all the
  same. It may fail with EINTR, and does not wait on a non-blocking socket.
- FreeBSD: a time under 0 or over 65535 is EDOM, and one over 32767 wraps. `l_onoff` reads back as
  128, on DragonFly too.
- NetBSD refuses a bad time with EDOM even when lingering is switched off.
- OpenBSD takes 0 to 32767 and a struct of exactly 8 bytes; all else is EINVAL. Its kernel fills in
  the count in TCP_INFO for root alone, and everybody else reads 0 bytes: a count that proves
  nothing, so the library does not ask for it.
- The send buffer is dropped at a reset, and the count with it.

### illumos, Solaris

- Once both directions are shut, `setsockopt()` fails with EINVAL, as on macOS.

### Windows, Cygwin, MSYS

- struct linger is two **u_shorts**. Two ints are accepted and read as {1, 0}: a timed linger packed
  the usual way is silently an abort. Wine does the same
  ([tests/headers/under_wine.py](../tests/headers/under_wine.py) tries it).
- SO_DONTLINGER is `~SO_LINGER`, another way to say {0, 0}.
- When the time of a {1, n} close runs out, the connection ends hard and the rest is lost
  (Microsoft's documentation).
- `close()` with {1, n} on a non-blocking socket fails with WSAEWOULDBLOCK and the handle stays valid
  (Microsoft's documentation). CPython has forgotten it by then, and it leaks: the library never
  leaves {1, n} on a non-blocking socket.
- Python has no way to ask for unacknowledged bytes.
- Cygwin and MSYS have Windows' layout; their other numbers are assumed to be Windows' too.

### Haiku, AIX, DragonFly

- Nobody has verified them. Haiku's numbers are its own; the others are assumed to have the BSDs'.

### WASI, Emscripten

- There is no SO_LINGER: `get_linger()` and `set_linger()` fail with ENOPROTOOPT, and every close is
  in the background.

## The targets

What the headers are compiled for, in the compiler's words. The test is
[tests/headers/test_headers.py](../tests/headers/test_headers.py); it needs the `ziglang` wheel, which
has the headers, and none of the systems.
"""


def page() -> str:
    """What platforms.md should say."""
    evidence = targets_by_system()
    systems = [system for system in SYSTEMS.values() if system.name != "unknown"]
    return "\n".join(
        [
            OPENING,
            *_table(
                ("system", "struct linger", "SOL_SOCKET", "option", "seconds", "known"),
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
        "epoll, edge-triggered" if system.linux else "a look every 1 to 50 ms",
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
