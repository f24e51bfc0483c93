"""The choices along each axis, the default first, and the rules that exclude combinations."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache
from random import Random

BARE = ("never connected", "refused", "in progress", "deferred", "listening", "closed")
SCRIPTS = (
    "answers",
    "holds",
    "is silent",
    "acknowledges no FIN",
    "sends FIN and acknowledges nothing",
    "sends FIN first",
    "sends FIN out of order",
    "fills the hole later",
    "crosses our FIN",
    "sends RST at our FIN",
    "sends RST after both FINs",
    "sends RST in the window",
    "sends RST out of the window",
    "sends data, then RST",
    "sends data after our FIN",
    "closes its window",
    "repeats itself",
    "acknowledges the unsent",
    "sends SYN again",
    "is unreachable",
    "is unreachable once",
    "has no network",
    "has no port",
    "has no protocol",
    "is prohibited",
    "is too far",
    "requires smaller packets",
    "loses our data",
    "loses our FIN",
    "acknowledges late",
    "acknowledges the half",
    "opens its window later",
    "sends FIN with data",
    "repeats its data",
)
# Real programs. They need an installed curl.
PROGRAMS = ("curl", "curl uploads")
# With these scripts no segment of ours is acknowledged after the handshake.
SILENT = {
    "is silent",
    "is unreachable",
    "has no network",
    "has no port",
    "has no protocol",
    "is prohibited",
    "is too far",
}
# These affect a whole process, so the caller has a process of its own.
OWN_PROCESS = ("no memory", "exit", "killed")
LOOPS = ("asyncio", "uvloop", "trio", "anyio on asyncio", "anyio on uvloop", "anyio on trio")
ASYNCIO = ("asyncio", "uvloop")

AXES: dict[str, tuple[str, ...]] = {
    "origin": ("accept", "connect", "fast open", "fast open connect", "socketpair", *BARE),
    "family": ("tcp4", "tcp6", "mapped", "unix", "mptcp", "mptcp fallback"),
    "tls": ("none", "1.2", "1.3", "half", "close_notify", "truncated", "alert", "upgraded"),
    "option": (
        "none", "linger 0", "linger 1", "rcvlowat", "cork", "notsent_lowat", "peek_off",
        "zerocopy", "timestamping", "user_timeout", "rcvtimeo", "small buffers", "recverr",
        "linger2", "oobinline", "paced",
    ),
    "mode": ("blocking", "timeout", "non-blocking"),
    "holder": (
        "none", "dup", "child", "reader", "makefile reader", "makefile writer", "epoll",
        "closer", "task", "sendfile", "sender", "second close",
    ),
    "wrote": ("little", "nothing", "more"),
    "shut": ("none", "reading", "writing", "both"),
    "unread": ("nothing", "little", "much", "urgent"),
    "peer": (
        "reads and closes",
        "reads, uploads, closes",
        "uploads, reads, closes",
        "floods",
        "drips",
        "reads slowly",
        "reads late",
        "never reads",
        "never closes",
        "has closed",
        "has half-closed",
        "has reset",
        "resets later",
        "resets at our FIN",
        "closes unread",
        "has shut reading",
        *PROGRAMS,
        *(f"script: {script}" for script in SCRIPTS),
    ),
    "interrupt": ("none", "stopped", "signals", "no descriptors", *OWN_PROCESS),
    "driver": ("blocking", "Reaper", "listener", "socketserver", *LOOPS),
    "call": (
        "graceful_close", "timed_linger_close", "abortive_close", "commit", "roll back",
        "close_all", "submit", "transport",
    ),
    "until": ("peer closed", "delivered"),
    "on_timeout": ("background", "abort"),
    "peer_first": ("no", "a while"),
    "limit": ("none", "no time", "little silence", "no drain", "little drain"),
}  # fmt: skip


@dataclass(frozen=True)
class Situation:
    """One choice along each axis, by default the first."""

    origin: str = "accept"
    family: str = "tcp4"
    tls: str = "none"
    option: str = "none"
    mode: str = "blocking"
    holder: str = "none"
    wrote: str = "little"
    shut: str = "none"
    unread: str = "nothing"
    peer: str = "reads and closes"
    interrupt: str = "none"
    driver: str = "blocking"
    call: str = "graceful_close"
    until: str = "peer closed"
    on_timeout: str = "background"
    peer_first: str = "no"
    limit: str = "none"

    @property
    def scripted(self) -> bool:
        return self.peer.startswith("script: ")

    @property
    def script(self) -> str:
        return self.peer.removeprefix("script: ")

    @property
    def aborts(self) -> bool:
        return self.call in {"abortive_close", "roll back"}

    @property
    def asks_for_errors(self) -> bool:
        """ICMP messages end the connection, because the caller has set IP_RECVERR."""
        return self.option == "recverr" or self.script in {"is unreachable", "is prohibited"}

    @property
    def bare(self) -> bool:
        """There is no established connection."""
        return self.origin in BARE

    @property
    def unanswered(self) -> bool:
        """The handshake of a client's Fast Open gets no answer."""
        return self.origin == "fast open connect" and self.script in SILENT

    @property
    def own_process(self) -> bool:
        """The caller has a process of its own."""
        return self.interrupt in OWN_PROCESS

    @property
    def on_uvloop(self) -> bool:
        return self.driver in {"uvloop", "anyio on uvloop"}

    @property
    def process_ends(self) -> bool:
        """The process of the caller ends during the call."""
        return self.interrupt in {"exit", "killed"}

    @property
    def transport(self) -> bool:
        """The close gets a transport, which reads and writes independently of the caller."""
        return not self.bare and self.driver in {*LOOPS} - {"trio", "anyio on trio"}

    @property
    def chosen(self) -> dict[str, str]:
        """Return the choices that are not the default."""
        return {
            axis: choice
            for axis, choices in AXES.items()
            if (choice := getattr(self, axis)) != choices[0]
        }

    def __str__(self) -> str:
        inside = ", ".join(f"{axis}={choice!r}" for axis, choice in self.chosen.items())
        return f"Situation({inside})"


assert list(AXES) == [field.name for field in fields(Situation)]

Broken = Callable[[Situation], bool]
INTERNET = ("tcp4", "tcp6")
THREADED = ("blocking", "Reaper", "listener", "socketserver")
REAPERS = ("Reaper", "listener", "socketserver")

# The impossible and the meaningless combinations: the reason, and what the rule excludes.
RULES: dict[str, Broken] = {
    "socketpair() makes UNIX sockets": lambda s: (
        s.origin == "socketpair" and s.family != "unix"
    ),
    "a script speaks TCP, and has one connection": lambda s: (
        s.scripted
        and (
            s.family not in INTERNET
            or s.tls != "none"
            or s.origin not in {"accept", "connect", "fast open", "fast open connect"}
        )
    ),
    "curl connects, sends a request, and reads it all": lambda s: (
        s.peer in PROGRAMS
        and (
            s.origin != "accept"
            or s.family not in {*INTERNET, "mapped"}
            or s.unread != "nothing"
            or s.tls not in {"none", "1.2", "1.3"}  # before start_tls() it would be too early
        )
    ),
    "a handshake is unfinished only with a script": lambda s: (
        s.origin.startswith("fast open") and not s.scripted
    ),
    "curl begins TLS before the connection is upgraded": lambda s: (
        s.tls == "upgraded" and s.peer.startswith("curl")
    ),
    "anyio takes connected sockets only": lambda s: (
        s.origin == "fast open connect" and s.driver.startswith("anyio")
    ),
    "the first data of the caller connects": lambda s: (
        s.origin == "fast open connect" and s.wrote == "nothing"
    ),
    "only ICMP for IPv4 has this message in this form": lambda s: (
        s.script in {"requires smaller packets"} and s.family != "tcp4"
    ),
    "without a connection there is no peer": lambda s: (
        s.bare
        and (
            s.tls != "none"
            or s.wrote != "nothing"
            or s.shut != "none"
            or s.unread != "nothing"
            or s.peer != "reads and closes"
            or s.holder
            in {"reader", "makefile reader", "makefile writer", "sender", "second close"}
            or s.option in {"zerocopy", "timestamping"}
            or s.driver in {"listener", "anyio on asyncio", "anyio on uvloop", "anyio on trio"}
        )
    ),
    "only IP refuses a connection, or needs time for one": lambda s: (
        s.origin in {"refused", "in progress", "deferred"} and s.family not in INTERNET
    ),
    "trio wraps no closed socket": lambda s: s.origin == "closed" and s.driver in LOOPS,
    "a GracefulListener accepts connections": lambda s: (
        s.driver == "listener" and s.origin != "accept"
    ),
    "a GracefulListener accepts neither TLS nor AF_UNIX here": lambda s: (
        s.driver == "listener" and (s.tls != "none" or s.family not in INTERNET)
    ),
    "an event loop has non-blocking sockets only": lambda s: (
        s.driver not in THREADED and s.mode != "blocking"
    ),
    "a Reaper has one kind of close": lambda s: (
        s.driver in REAPERS and s.call != "graceful_close"
    ),
    "the Reaper of an event loop has streams": lambda s: (
        s.call == "submit" and s.driver not in LOOPS
    ),
    "a server's transport closes gracefully, and its close() does not wait": lambda s: (
        s.call == "transport"
        and (
            s.driver not in ASYNCIO
            or s.origin != "accept"
            or s.interrupt == "stopped"
            or s.holder == "second close"
            or (s.interrupt == "no descriptors" and s.tls != "none")  # as usual
        )
    ),
    "start_tls() is asyncio's": lambda s: s.tls == "upgraded" and s.driver not in ASYNCIO,
    "half a handshake needs an object that has not finished it": lambda s: (
        s.tls == "half" and (s.driver not in {"blocking", "Reaper", "trio"})
    ),
    "before the end of a handshake nothing is written": lambda s: (
        s.tls == "half" and (s.wrote != "nothing" or s.unread != "nothing")
    ),
    "TLS has no urgent data, and these options apply to plain data": lambda s: (
        s.tls != "none" and (s.unread == "urgent" or s.option in {"zerocopy", "peek_off"})
    ),
    "a peer whose TLS session has failed needs the count of its kernel": lambda s: (
        s.tls == "alert" and s.family.startswith("mptcp")
    ),
    "TLS is independent of the family of the socket": lambda s: (
        s.tls != "none" and s.family == "unix"
    ),
    "UNIX sockets have no urgent data by default": lambda s: (
        s.family == "unix" and s.unread == "urgent"
    ),
    "an MPTCP connection is connected or accepted": lambda s: (
        s.family.startswith("mptcp") and s.origin not in {"accept", "connect"}
    ),
    "makefile() is a method of blocking sockets": lambda s: (
        s.holder.startswith("makefile") and s.driver not in {"blocking", "Reaper"}
    ),
    "another thread that closes or reads the socket of a loop breaks the loop": lambda s: (
        s.holder in {"closer", "reader", "sender"} and s.driver not in {"blocking", "Reaper"}
    ),
    "a thread waits for room, with plain data and before our FIN": lambda s: (
        s.holder == "sender"
        and (s.tls != "none" or s.mode != "blocking" or s.shut in {"writing", "both"})
    ),
    "two closes are compared if both are graceful, and both end": lambda s: (
        s.holder == "second close"
        and (
            s.call not in {"graceful_close", "commit", "submit"}
            or s.driver in {"listener", "socketserver"}
            or s.interrupt not in {"none", "signals", "no descriptors"}
            or s.tls == "half"
        )
    ),
    "libuv spins while an error queue has an entry": lambda s: (
        s.on_uvloop and s.tls != "none" and s.option == "timestamping"
    ),
    "a task needs an event loop and a connection": lambda s: (
        s.holder == "task" and (s.driver not in LOOPS or s.bare or s.tls == "half")
    ),
    "only asyncio's own loop has sendfile()": lambda s: (
        s.holder == "sendfile"
        and (s.driver != "asyncio" or s.bare or s.shut != "none" or s.process_ends)
    ),
    "another reader breaks a TLS session": lambda s: s.holder == "reader" and s.tls != "none",
    "shutdown() under a transport that still writes breaks it": lambda s: (
        s.transport
        and s.shut != "none"
        and (s.wrote == "more" or s.tls != "none" or s.origin == "fast open connect")
    ),
    "trio and anyio send over TLS completely or not": lambda s: (
        s.tls != "none" and s.wrote == "more" and s.driver in LOOPS[2:]
    ),
    "an abort has no options": lambda s: (
        s.aborts
        and (
            s.until != "peer closed"
            or s.on_timeout != "background"
            or s.peer_first != "no"
            or s.limit != "none"
        )
    ),
    "timed_linger_close() has fewer options": lambda s: (
        s.call == "timed_linger_close"
        and (
            s.until != "peer closed"
            or s.peer_first != "no"
            or s.limit not in {"none", "no time"}
        )
    ),
    "a signal interrupts the main thread, and a Reaper closes in its own": lambda s: (
        s.interrupt in {"stopped", "signals"} and s.driver in REAPERS
    ),
    "a GracefulListener's socket belongs to the process that accepted it": lambda s: (
        s.own_process and s.driver == "listener"
    ),
    "a closed socket has no descriptor that another process could get": lambda s: (
        s.own_process and s.origin == "closed"
    ),
    "without a connection the end of a process loses nothing": lambda s: (
        s.process_ends and s.bare
    ),
    "libuv may call the interpreter after its end (PyGILState_Ensure)": lambda s: (
        s.interrupt == "exit" and s.on_uvloop
    ),
    "a forked child would keep the connection of a process that ends": lambda s: (
        s.process_ends and s.holder == "child"
    ),
    "a closed socket has no other holder, and no server": lambda s: (
        s.origin == "closed" and (s.holder != "none" or s.driver == "socketserver")
    ),
}


def broken_rule(situation: Situation) -> str | None:
    """Return the reason that excludes the situation; None: the rules permit it."""
    return next((reason for reason, breaks in RULES.items() if breaks(situation)), None)


@cache
def choices(axis: str, *, wire: bool) -> list[str]:
    """Return the choices along an axis; without a wire there are no scripts.

    Without curl there are no programs.
    """
    return [
        choice
        for choice in AXES[axis]
        if (wire or not choice.startswith(("script: ", "fast open")))
        and (choice not in PROGRAMS or shutil.which("curl") is not None)
    ]


# The share of random choices that are not the default. If all are random, one hides the other: an
# interrupted call never misses its deadline.
_SHARES = (0.1, 0.2, 0.3, 0.5, 0.8)
_ALWAYS_RANDOM = {"peer", "origin"}
_BARE = 0.05
_DRAWS = 3  # of a choice, until the rules permit one


def any_situation(random: Random, *, wire: bool = True) -> Situation:
    """Return a random situation that the rules permit."""
    # Otherwise the rules exclude most situations without a connection.
    bare = random.random() < _BARE
    return complete({"origin": random.choice(BARE)} if bare else {}, random, wire=wire)


def complete(given: dict[str, str], random: Random, *, wire: bool = True) -> Situation:
    """Return a situation that the rules permit, with the given choices and random others.

    Raises:
        LookupError: The rules exclude the given choices.
    """
    situation: Situation = replace(Situation(), **given)
    while broken := _broken(situation):
        better = [
            changed
            for axis in AXES
            if axis not in given
            for choice in choices(axis, wire=wire)
            if _broken(changed := _changed(situation, axis, choice)) < broken
        ]
        if not better:
            raise LookupError(f"no situation has {given}")
        situation = random.choice(better)
    return mixed(situation, given, random, wire=wire)


def mixed(
    situation: Situation, given: dict[str, str], random: Random, *, wire: bool = True
) -> Situation:
    """Return another situation with the given choices."""
    share = random.choice(_SHARES)
    free = [axis for axis in AXES if axis not in given]
    random.shuffle(free)
    for axis in free:
        if axis not in _ALWAYS_RANDOM and random.random() >= share:
            drawn = [AXES[axis][0]]
        else:
            drawn = random.choices(choices(axis, wire=wire), k=_DRAWS)
        for choice in drawn:
            changed = _changed(situation, axis, choice)
            if broken_rule(changed) is None:
                situation = changed
                break
    return situation


def _changed(situation: Situation, axis: str, choice: str) -> Situation:
    # dataclasses.replace() takes twice as long.
    return Situation(**{**vars(situation), axis: choice})


def _broken(situation: Situation) -> int:
    return sum(breaks(situation) for breaks in RULES.values())
