"""Two network namespaces, a TUN device in each, and the thread that carries packets.

The namespaces are anonymous: only descriptors of this process refer to them, so they end with
the process. The devices are made inside the namespaces, which have no route to other networks.
"""

from __future__ import annotations

import ctypes
import heapq
import itertools
import os
import select
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from time import clock_gettime, monotonic, pthread_getcpuclockid
from typing import NamedTuple, Protocol, Self

from streams import DEADLINE

from .packets import OURS, PEER, Side

if sys.platform != "win32":
    import fcntl

# Addresses reserved for documentation (RFC 5737, RFC 3849), which no host has.
ADDRESSES = {
    "IPv4": {OURS: "192.0.2.1", PEER: "192.0.2.2"},
    "IPv6": {OURS: "2001:db8::1", PEER: "2001:db8::2"},
}

_CLONE_NEWNET = 0x40000000  # sched.h
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
_DEVICE = "wire"


def why_not() -> str | None:
    """Return why a link cannot be made here; None: it can."""
    if not sys.platform.startswith("linux"):
        return f"the wire needs Linux, not {sys.platform}"
    if os.geteuid() != 0:
        return "the wire needs root, to make network namespaces"
    if shutil.which("ip") is None:
        return "the wire needs `ip` of iproute2"
    if not os.path.exists("/dev/net/tun"):
        return "the wire needs /dev/net/tun"
    return None


class Journey(NamedTuple):
    """A packet in flight.

    Attributes:
        due: The time of arrival, by time.monotonic().
        to: The receiving side.
        load: Called at arrival, with the time. It returns the bytes, and a function to call
            after the kernel has them.
    """

    due: float
    to: Side
    load: Callable[[float], tuple[bytes, Callable[[], None]]]

    @classmethod
    def of(cls, raw: bytes, to: Side, due: float) -> Self:
        """Return the journey of a packet that no record has."""

        def load(_now: float) -> tuple[bytes, Callable[[], None]]:
            return raw, lambda: None

        return cls(due, to, load)


class Carrier(Protocol):
    """Decides about packets, in the forwarder's thread."""

    def carry(self, raw: bytes, from_: Side, now: float) -> list[Journey] | None:
        """Return how to deliver a packet; None: the packet is not of this carrier."""
        ...


class Link:
    """The namespaces and the forwarder between them, for many wires, one at a time.

    A packet of no carrier is delivered immediately, so that earlier connections can end.

    Args:
        mtu: The largest packet, in bytes.

    Raises:
        OSError: The system refuses.
    """

    def __init__(self, mtu: int = 1500) -> None:
        self._held = ExitStack()
        self._lock = threading.Lock()
        self._carrier: Carrier | None = None
        self._journeys: list[tuple[float, int, Journey]] = []
        self._serial = itertools.count()
        self._waiting_for_rest: list[threading.Event] = []
        self._failure: BaseException | None = None
        self._over = False
        self._namespaces: dict[Side, int] = {}
        self._devices: dict[Side, int] = {}
        with ExitStack() as undo:
            undo.callback(self._held.close)
            self._home = self._hold(os.open("/proc/thread-self/ns/net", os.O_RDONLY))
            # PyPy has no eventfd.
            self._rung, self._bell = map(self._hold, os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
            for side in Side:
                self._make_end(side, mtu)
            undo.pop_all()
        self._thread = threading.Thread(target=self._run, name="wire", daemon=True)
        self._thread.start()

    def _hold(self, descriptor: int) -> int:
        self._held.callback(os.close, descriptor)
        return descriptor

    def _make_end(self, side: Side, mtu: int) -> None:
        _unshare(_CLONE_NEWNET)
        try:
            self._namespaces[side] = self._hold(
                os.open("/proc/thread-self/ns/net", os.O_RDONLY)
            )
            device = self._hold(os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK))
            # struct ifreq
            request = struct.pack("16sH22x", _DEVICE.encode(), _IFF_TUN | _IFF_NO_PI)
            fcntl.ioctl(device, _TUNSETIFF, request)
            self._devices[side] = device
            # Before the device is up, so that it makes no address and no router solicitation.
            Path(f"/proc/sys/net/ipv6/conf/{_DEVICE}/addr_gen_mode").write_text("1")
            # The losses of one connection must not change the timers of the next (ip-sysctl).
            Path("/proc/sys/net/ipv4/tcp_no_metrics_save").write_text("1")
            # The queue is long enough that the device itself never drops a packet.
            script = f"link set lo up\nlink set {_DEVICE} mtu {mtu} txqueuelen 20000 up\n"
            for ends in ADDRESSES.values():
                own, other = ends[side], ends[side.other]
                extra = " nodad" if ":" in own else ""
                script += f"addr add {own} peer {other} dev {_DEVICE}{extra}\n"
            subprocess.run(
                ["ip", "-batch", "-"], input=script, text=True, check=True, timeout=DEADLINE
            )
        finally:
            _setns(self._home, _CLONE_NEWNET)

    # --- for tests ----------------------------------------------------------------------------

    @contextmanager
    def inside(self, side: Side) -> Generator[None, None, None]:
        """Run the block in that side's namespace: sockets made in it stay there."""
        _setns(self._namespaces[side], _CLONE_NEWNET)
        try:
            yield
        finally:
            _setns(self._home, _CLONE_NEWNET)

    def hand_to(self, carrier: Carrier | None) -> None:
        """Set the carrier. Packets that the previous carrier delayed are dropped."""
        self._raise_failure()
        with self._lock:
            self._carrier = carrier
            self._journeys.clear()

    def cpu(self) -> float:
        """Return the processor time of its thread, which plays the peers of scripts, in seconds."""
        assert self._thread.ident is not None
        return clock_gettime(pthread_getcpuclockid(self._thread.ident))

    def send(self, journey: Journey) -> None:
        """Send a forged packet."""
        with self._lock:
            self._push(journey)
        self._ring()

    def come_to_rest(self) -> None:
        """Wait until both devices are empty and no packet is in flight.

        A kernel answers a packet before the write that delivers it returns. So later packets
        come from a timer or from a program.
        """
        rest = threading.Event()
        self._raise_failure()
        with self._lock:
            self._waiting_for_rest.append(rest)
        self._ring()
        assert rest.wait(DEADLINE), "the wire was never idle"
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise RuntimeError("the forwarder failed") from self._failure

    def close(self) -> None:
        """Stop the forwarder and close the namespaces. A second call has no effect."""
        if not self._over:
            self._over = True
            self._ring()
            self._thread.join(DEADLINE)
            self._held.close()

    # --- the forwarder ------------------------------------------------------------------------

    def _ring(self) -> None:
        with suppress(BlockingIOError):  # a full pipe wakes the forwarder, too
            os.write(self._bell, b"\0")

    def _push(self, journey: Journey) -> None:
        heapq.heappush(self._journeys, (journey.due, next(self._serial), journey))

    def _run(self) -> None:
        try:
            while not self._over:
                with self._lock:
                    at_rest = list(self._waiting_for_rest)
                if self._move():
                    continue
                with self._lock:
                    due = self._journeys[0][0] if self._journeys else None
                    if due is None:
                        for rest in at_rest:
                            self._waiting_for_rest.remove(rest)
                            rest.set()
                # select() counts in microseconds, epoll only in milliseconds.
                left = None if due is None else max(due - monotonic(), 0)
                select.select([*self._devices.values(), self._rung], [], [], left)
                with suppress(BlockingIOError):
                    os.read(self._rung, 1 << 12)
        except BaseException as error:  # noqa: BLE001
            self._failure = error
            for rest in self._waiting_for_rest:
                rest.set()

    def _move(self) -> bool:
        """Deliver what is due and read a packet from each side; False: there was nothing."""
        moved = False
        for side, device in self._devices.items():
            with suppress(BlockingIOError):
                raw = os.read(device, 1 << 16)
                moved = True
                self._carry(raw, side)
        while True:
            with self._lock:
                if not self._journeys or self._journeys[0][0] > monotonic():
                    return moved
                journey = heapq.heappop(self._journeys)[2]
            moved = True
            raw, landed = journey.load(monotonic())
            self._write(raw, journey.to)
            landed()

    def _carry(self, raw: bytes, from_: Side) -> None:
        with self._lock:
            carrier = self._carrier
        journeys = carrier.carry(raw, from_, monotonic()) if carrier is not None else None
        if journeys is None:
            self._write(raw, from_.other)
            return
        with self._lock:
            for journey in journeys:
                self._push(journey)

    def _write(self, raw: bytes, to: Side) -> None:
        os.write(self._devices[to], raw)


if sys.version_info >= (3, 12) and sys.platform == "linux":
    _setns, _unshare = os.setns, os.unshare
else:

    def _setns(namespace: int, kind: int) -> None:
        _ask_libc("setns", namespace, kind)

    def _unshare(kind: int) -> None:
        _ask_libc("unshare", kind)

    def _ask_libc(function: str, *args: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc[function](*args) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{function}: {os.strerror(number)}")
