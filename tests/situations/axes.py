"""The choices along each axis, the tamest first, and the rules for what does not go together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from random import Random

BARE = ("never connected", "refused", "in progress", "listening", "closed")
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
    "has no port",
    "is prohibited",
    "wants smaller packets",
)
# What befalls a whole process: the caller has one of its own.
APART = ("no memory", "exit", "killed")
LOOPS = ("asyncio", "uvloop", "trio", "anyio on asyncio", "anyio on trio")

AXES: dict[str, tuple[str, ...]] = {
    "origin": ("accept", "connect", "fast open", "socketpair", *BARE),
    "family": ("tcp4", "tcp6", "mapped", "unix", "mptcp", "mptcp fallback"),
    "tls": ("none", "1.2", "1.3", "half", "goodbye"),
    "option": (
        "none", "linger 0", "linger 1", "rcvlowat", "cork", "notsent_lowat", "peek_off",
        "zerocopy", "timestamping", "user_timeout", "rcvtimeo", "small buffers",
    ),
    "mode": ("blocking", "timeout", "non-blocking"),
    "holder": (
        "nobody", "dup", "child", "reader", "makefile reader", "makefile writer", "epoll",
        "closer", "task", "sendfile",
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
        *(f"script: {script}" for script in SCRIPTS),
    ),
    "interrupt": ("none", "stopped", "no descriptors", *APART),
    "driver": ("blocking", "Reaper", "listener", *LOOPS),
    "call": (
        "graceful_close", "timed_linger_close", "abortive_close", "commit", "roll back",
        "close_all",
    ),
    "until": ("peer closed", "delivered"),
    "on_timeout": ("background", "abort"),
    "peer_first": ("no", "a while"),
    "limit": ("none", "no time", "little silence", "no drain", "little drain"),
}  # fmt: skip


@dataclass(frozen=True)
class Situation:
    """One choice along each axis. Left out is the tamest."""

    origin: str = "accept"
    family: str = "tcp4"
    tls: str = "none"
    option: str = "none"
    mode: str = "blocking"
    holder: str = "nobody"
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
        """What ICMP says is to end it (IP_RECVERR), where it is not to be the script's affair."""
        return self.script in {"is unreachable", "is prohibited"}

    @property
    def bare(self) -> bool:
        """There is no connection."""
        return self.origin in BARE

    @property
    def apart(self) -> bool:
        """The caller is a process of its own."""
        return self.interrupt in APART

    @property
    def ends(self) -> bool:
        """The caller's process ends during the call."""
        return self.interrupt in {"exit", "killed"}

    @property
    def transport(self) -> bool:
        """What is closed is a transport, which reads and writes by itself."""
        return not self.bare and self.driver in {"asyncio", "uvloop", "anyio on asyncio"}

    @property
    def chosen(self) -> dict[str, str]:
        """What is not the tamest."""
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
THREADED = ("blocking", "Reaper", "listener")

# What cannot be, or says nothing. Each is a reason and what it excludes.
RULES: dict[str, Broken] = {
    "socketpair() makes UNIX sockets": lambda s: (
        s.origin == "socketpair" and s.family != "unix"
    ),
    "a script speaks TCP, and to one that waits for it": lambda s: (
        s.scripted
        and (
            s.family not in INTERNET
            or s.tls != "none"
            or s.origin not in {"accept", "connect", "fast open"}
        )
    ),
    "a handshake is unfinished only with a script": lambda s: (
        s.origin == "fast open" and not s.scripted
    ),
    "ICMP's families differ": lambda s: (
        s.script in {"wants smaller packets"} and s.family != "tcp4"
    ),
    "without a connection there is nobody to speak to": lambda s: (
        s.bare
        and (
            s.tls != "none"
            or s.wrote != "nothing"
            or s.shut != "none"
            or s.unread != "nothing"
            or s.peer != "reads and closes"
            or s.holder in {"reader", "makefile reader", "makefile writer"}
            or s.option in {"zerocopy", "timestamping"}
            or s.driver in {"listener", "anyio on asyncio", "anyio on trio"}
        )
    ),
    "only IP refuses, and takes its time": lambda s: (
        s.origin in {"refused", "in progress"} and s.family not in INTERNET
    ),
    "trio makes no closed socket": lambda s: s.origin == "closed" and s.driver in LOOPS,
    "a listener accepts": lambda s: s.driver == "listener" and s.origin != "accept",
    "a GracefulListener has its own way with TLS and UNIX sockets": lambda s: (
        s.driver == "listener" and (s.tls != "none" or s.family not in INTERNET)
    ),
    "an event loop has sockets of one mode": lambda s: (
        s.driver not in THREADED and s.mode != "blocking"
    ),
    "a Reaper closes gracefully and nothing else": lambda s: (
        s.driver in {"Reaper", "listener"} and s.call != "graceful_close"
    ),
    "half a handshake needs an object for it": lambda s: (
        s.tls == "half" and (s.driver not in {"blocking", "Reaper", "trio"})
    ),
    "under half a handshake nothing is written": lambda s: (
        s.tls == "half" and (s.wrote != "nothing" or s.unread != "nothing")
    ),
    "TLS has no urgent data, and none that goes around it": lambda s: (
        s.tls != "none" and (s.unread == "urgent" or s.option in {"zerocopy", "peek_off"})
    ),
    "TLS is the socket's own affair": lambda s: s.tls != "none" and s.family == "unix",
    "UNIX sockets have no urgent data by default": lambda s: (
        s.family == "unix" and s.unread == "urgent"
    ),
    "a plain client behind MPTCP connects, and is accepted": lambda s: (
        s.family.startswith("mptcp") and s.origin not in {"accept", "connect"}
    ),
    "makefile() is the socket's": lambda s: (
        s.holder.startswith("makefile") and s.driver not in {"blocking", "Reaper"}
    ),
    "others who close, read or write what a loop has, break the loop": lambda s: (
        s.holder in {"closer", "reader"} and s.driver not in {"blocking", "Reaper"}
    ),
    "libuv itself spins over an error queue, and forgets whoever polls": lambda s: (
        s.driver == "uvloop" and s.tls != "none" and s.option == "timestamping"
    ),
    "a task is an event loop's, and waits for what there is": lambda s: (
        s.holder == "task" and (s.driver not in LOOPS or s.bare or s.tls == "half")
    ),
    "asyncio's own loop sends files": lambda s: (
        s.holder == "sendfile"
        and (s.driver != "asyncio" or s.bare or s.shut != "none" or s.ends)
    ),
    "another reader of TLS breaks it": lambda s: s.holder == "reader" and s.tls != "none",
    "a transport that writes is not shut beneath it": lambda s: (
        s.transport and s.shut != "none" and (s.wrote == "more" or s.tls != "none")
    ),
    "trio and anyio send all or nothing over TLS": lambda s: (
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
    "a timed linger has few options": lambda s: (
        s.call == "timed_linger_close"
        and (
            s.until != "peer closed"
            or s.peer_first != "no"
            or s.limit not in {"none", "no time"}
        )
    ),
    "a signal stops one, and a Reaper's thread gets none": lambda s: (
        s.interrupt == "stopped" and s.driver in {"Reaper", "listener"}
    ),
    "a listener's socket is of the process that accepted it": lambda s: (
        s.apart and s.driver == "listener"
    ),
    "a process gets a descriptor, and not a closed one": lambda s: (
        s.apart and s.origin == "closed"
    ),
    "without a connection nothing is lost with a process": lambda s: s.ends and s.bare,
    "a child outlives a process, and keeps what it has": lambda s: (
        s.ends and s.holder == "child"
    ),
    "the caller's own pair holds its own": lambda s: (
        s.origin == "closed" and s.holder != "nobody"
    ),
}


def broken_rule(situation: Situation) -> str | None:
    """Why it cannot be; None: it can."""
    return next((reason for reason, breaks in RULES.items() if breaks(situation)), None)


def choices(axis: str, *, wire: bool) -> list[str]:
    """Those along an axis; without a wire there are no scripts."""
    return [
        choice
        for choice in AXES[axis]
        if wire or (not choice.startswith("script: ") and choice != "fast open")
    ]


# How many of the free choices are not the tamest. Where all are wild at once, one hides the other:
# what is interrupted is never late.
_WILD = (0.1, 0.2, 0.3, 0.5, 0.8)
_ALWAYS_WILD = {"peer", "origin"}
_BARE = 0.05
_DRAWS = 3  # of a choice, until the rules allow one


def any_situation(random: Random, *, wire: bool = True) -> Situation:
    """One that the rules allow."""
    # The rules leave few of those without a connection.
    bare = random.random() < _BARE
    return complete({"origin": random.choice(BARE)} if bare else {}, random, wire=wire)


def complete(given: dict[str, str], random: Random, *, wire: bool = True) -> Situation:
    """One that the rules allow, with what is given, the rest at random.

    Raises:
        LookupError: There is none.
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
    """Another one with what is given."""
    wild = random.choice(_WILD)
    free = [axis for axis in AXES if axis not in given]
    random.shuffle(free)
    for axis in free:
        if axis not in _ALWAYS_WILD and random.random() >= wild:
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
    return replace(situation, **{axis: choice})


def _broken(situation: Situation) -> int:
    return sum(breaks(situation) for breaks in RULES.values())
