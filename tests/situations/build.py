"""Makes the connection of a situation, and does what precedes the call."""

from __future__ import annotations

import os
import select
import signal
import socket
import ssl
import struct
import tempfile
import threading
import time
import warnings
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, nullcontext, suppress
from itertools import count, pairwise
from pathlib import Path
from time import monotonic
from typing import Any, BinaryIO

import anyio
import trio

from certificates import NAME, client_context, server_context
from graceful_close import CloseResult, GracefulListener, LingerPolicy, Reaper, set_linger
from wire.link import ADDRESSES, Link
from wire.packets import OURS

from .axes import PROGRAMS, REAPERS, Situation
from .options import options_of
from .others import Other, new_others, reset
from .peers import Peer
from .processes import Remote
from .programs import Program
from .scripted import Scripted

IPPROTO_MPTCP = 262  # include/uapi/linux/in.h
TCP_FASTOPEN, TCP_FASTOPEN_CONNECT = 23, 30  # linux/tcp.h
TCP_USER_TIMEOUT, TCP_NOTSENT_LOWAT, TCP_LINGER2 = 18, 25, 8
# asm-generic/socket.h
SO_TIMESTAMPING, SO_PEEK_OFF, SO_MAX_PACING_RATE, SO_ZEROCOPY = 37, 42, 47, 60
MSG_ZEROCOPY = 0x4000000  # linux/socket.h
IP_RECVERR, IPV6_RECVERR = 11, 25  # linux/in.h, linux/in6.h

# The options of `axes` that one call sets: the level, the number, the value.
_OPTIONS: dict[str, tuple[int, int, int]] = {
    "rcvlowat": (socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1000),
    "cork": (socket.IPPROTO_TCP, socket.TCP_CORK, 1),
    "notsent_lowat": (socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, 1),
    "peek_off": (socket.SOL_SOCKET, SO_PEEK_OFF, 0),
    # TX_SOFTWARE, SOFTWARE, OPT_ID, TX_ACK
    "timestamping": (socket.SOL_SOCKET, SO_TIMESTAMPING, 0x2 | 0x10 | 0x80 | 0x200),
    "user_timeout": (socket.IPPROTO_TCP, TCP_USER_TIMEOUT, 100),
    # Negative: no FIN_WAIT2 without a descriptor, but RST.
    "linger2": (socket.IPPROTO_TCP, TCP_LINGER2, -1),
    "oobinline": (socket.SOL_SOCKET, socket.SO_OOBINLINE, 1),
    "paced": (socket.SOL_SOCKET, SO_MAX_PACING_RATE, 1_000_000),  # in bytes a second
}

LITTLE = b"text\n" * 600  # in lines, because curl reads the first line before it decides
MORE = b"text\n" * 60_000
FILE = 4_000_000
_DEADLINE = 5.0
_HOSTS = {"tcp4": "127.0.0.1", "tcp6": "::1", "mapped": "::ffff:127.0.0.1"}
_ports = count(20_000)
_CLOSED = (
    anyio.ClosedResourceError,
    anyio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.BrokenResourceError,
)


class Arrangement:
    """One situation, up to the call.

    Args:
        situation: The choices.
        link: The wire, with the scripts at its other end; None: not available.
        held: Releases everything at its end.

    Attributes:
        ours: The socket that will be closed.
        peer: The other end; None: there is no connection.
        others: The other connections of close_all().
        second: The result of the second close.
        reported: The arguments of an event loop's exception handler.
        task_ended: Whether the task that reads or sends a file has ended.
        written: The number of bytes that the kernel or a framework has accepted.
        unsent: The number of bytes in a makefile() object, or in the file of a task.
        holders: The number of dups in this process.
        inode: The number of the socket in the table of descriptors.
        ports: Our port and the peer's; None: there is no TCP connection.
    """

    ours: socket.socket

    def __init__(self, situation: Situation, link: Link | None, held: ExitStack) -> None:
        self.situation = situation
        self.peer: Peer | Program | Scripted | Remote | None = None
        self.written = 0
        self.holders = 0
        self.unsent = 0
        self.inode = 0
        self.ports: tuple[int, int] | None = None
        self.reaper: Reaper | None = None
        self.results: list[Any] = []
        self.task_ended = False
        self.reported: list[str] = []
        self.others: list[Other] = []
        self.second: CloseResult | None = None
        self.stream: Any = None
        self._link = link
        self._held = held
        self._threads: list[threading.Thread] = []
        self._makefile: Any = None

    # --- the connection --------------------------------------------------------------------------

    def connect(self) -> None:
        """Make the connection, or the socket without a connection."""
        situation = self.situation
        if not situation.own_process:
            self._make_reaper()
        if situation.bare:
            self._make_unconnected()
        elif situation.scripted:
            self._connect_script()
        else:
            self._connect_peer()
        if not situation.bare:
            self.ours.settimeout(None)
            if situation.option == "small buffers" and not situation.scripted:
                self.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        if self.ours.fileno() != -1:
            self.inode = os.fstat(self.ours.fileno()).st_ino
        if not situation.bare and situation.family != "unix":
            self.ports = (self.ours.getsockname()[1], self._peers_port())
        self._held.callback(reset, self.ours)
        if situation.call == "close_all" and not situation.own_process:
            self.others = new_others(self._held)

    def take_over(self, ours: socket.socket, peer: Remote) -> None:
        """In a process of its own: use the connection that the lab has made."""
        self.ours, self.inode = ours, os.fstat(ours.fileno()).st_ino
        self._held.callback(reset, ours)
        if not self.situation.bare:
            self.peer = peer
        self._make_reaper()
        if self.situation.call == "close_all":
            self.others = new_others(self._held)

    def _make_reaper(self) -> None:
        if self.situation.driver in REAPERS:
            self.reaper = Reaper(on_close=self.results.append, **options_of(self.situation))
            self._held.callback(self.reaper.close, 5)

    def _socket(self) -> socket.socket:
        family = self.situation.family
        if family == "unix":
            return socket.socket(socket.AF_UNIX)
        kind = (
            socket.AF_INET if family in {"tcp4", "mptcp", "mptcp fallback"} else socket.AF_INET6
        )
        protocol = IPPROTO_MPTCP if family.startswith("mptcp") else 0
        return socket.socket(kind, socket.SOCK_STREAM, protocol)

    def _listener(self) -> socket.socket:
        situation, family = self.situation, self.situation.family
        if situation.driver == "listener":
            return GracefulListener(
                (_HOSTS[family], 0),
                family=socket.AF_INET if family == "tcp4" else socket.AF_INET6,
                reaper=self.reaper,
            )
        if family == "unix":
            folder = self._held.enter_context(tempfile.TemporaryDirectory())
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(Path(folder) / "listener"))
            listener.listen()
            return listener
        if family == "mapped":
            return socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        if family == "mptcp fallback" and situation.origin == "connect":
            return socket.create_server(("127.0.0.1", 0))
        listener = self._socket()
        listener.bind((_HOSTS.get(family, "127.0.0.1"), 0))
        listener.listen()
        return listener

    def _connect_peer(self) -> None:
        situation = self.situation
        if situation.origin == "socketpair":
            self.ours, other = socket.socketpair()
        else:
            plain = situation.family == "mptcp fallback" and situation.origin == "accept"
            with self._listener() as listener:
                if situation.peer in PROGRAMS:
                    self._accept_program(listener)
                    return
                client = (
                    socket.socket() if plain or situation.family == "mapped" else self._socket()
                )
                address = listener.getsockname()
                if situation.family == "mapped":
                    mapped = situation.origin == "connect"
                    client.close()
                    client = socket.socket(socket.AF_INET6 if mapped else socket.AF_INET)
                    address = (_HOSTS["mapped" if mapped else "tcp4"], address[1])
                client.settimeout(_DEADLINE)
                client.connect(address)
                accepted, _ = listener.accept()
            self.ours, other = (
                (accepted, client) if situation.origin == "accept" else (client, accepted)
            )
        if situation.option == "small buffers":
            other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        context, server = None, situation.origin == "connect"
        if situation.tls != "none":
            context = (server_context if server else client_context)(_version(situation))
        self.peer = Peer(
            other,
            situation.peer,
            context,
            server_side=server,
            hostname=NAME,
            truncates=situation.tls == "truncated",
        )
        self._held.callback(other.close)

    def _accept_program(self, listener: socket.socket) -> None:
        tls = {"none": None, "1.2": "1.2"}.get(self.situation.tls, "1.3")
        address = listener.getsockname()
        if self.situation.family == "mapped":
            address = (_HOSTS["tcp4"], address[1])
        self.peer = program = Program(self.situation.peer, address, tls)
        self._held.callback(program.close)
        listener.settimeout(_DEADLINE)
        self.ours, _ = listener.accept()

    def _peers_port(self) -> int:
        if isinstance(self.peer, Scripted):
            return self.peer.address[1]
        port: int = self.ours.getpeername()[1]
        return port

    def _connect_script(self) -> None:
        situation, link = self.situation, self._link
        assert link is not None
        version = "IPv4" if situation.family == "tcp4" else "IPv6"
        script = Scripted(link, version, situation.script, next(_ports) % 40_000 + 20_000)
        self.peer = script
        if situation.origin in {"connect", "fast open connect"}:
            self.ours = self._socket()
            self.ours.settimeout(_DEADLINE)
            if situation.origin == "fast open connect":
                self.ours.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
            self.ours.connect(script.address)
        else:
            address = ADDRESSES[version][OURS]
            if situation.driver == "listener":
                kind = socket.AF_INET if version == "IPv4" else socket.AF_INET6
                listener: socket.socket = GracefulListener(
                    (address, 0), family=kind, reaper=self.reaper
                )
            else:
                listener = self._socket()
                listener.bind((address, 0))
                listener.listen()
            with listener:
                fast = situation.origin == "fast open"
                if fast:
                    listener.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 16)
                listener.settimeout(_DEADLINE)
                script.connect(listener.getsockname()[1], fast_open=fast)
                self.ours, _ = listener.accept()

    def _make_unconnected(self) -> None:
        situation = self.situation
        listens = situation.origin == "listening"
        self.ours = self._listener() if listens else self._socket()
        match situation.origin:
            case "listening" | "never connected":
                pass
            case "closed":
                self.ours.close()
            case "refused":
                with suppress(ConnectionRefusedError):
                    self.ours.connect((_HOSTS[situation.family], 1))
            case _:
                self.ours.setblocking(False)
                if situation.origin == "deferred":  # until the first write
                    self.ours.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
                address = "192.0.2.2" if situation.family == "tcp4" else "2001:db8::2"
                if self._link is not None:
                    self._link.hand_to(_NoAnswer())
                    self._held.callback(self._link.hand_to, None)
                with suppress(OSError):
                    self.ours.connect((address, 9))
                self.ours.setblocking(True)

    # --- before the call -------------------------------------------------------------------------

    def set_option(self) -> None:
        """Set the option, if this kind of socket has it."""
        if self.ours.fileno() == -1:
            return
        with self.ours_dup() as sock, suppress(OSError):
            if self.situation.asks_for_errors and sock.family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
            elif self.situation.asks_for_errors:
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
            match self.situation.option:
                case "linger 0":
                    set_linger(sock, LingerPolicy.ABORT)
                case "linger 1":
                    set_linger(sock, LingerPolicy.TIMED, 1)
                case "zerocopy":
                    sock.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
                    self.written += sock.send(b"z" * 1000, MSG_ZEROCOPY)
                case "rcvtimeo":
                    brief = struct.pack("ll", 0, 10_000)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, brief)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, brief)
                case option if option in _OPTIONS:
                    sock.setsockopt(*_OPTIONS[option])
                case _:
                    pass

    def secure(self) -> None:
        """Start the handshake of the peer in a thread, because ours runs at the same time."""
        peer, situation = self.peer, self.situation
        if situation.tls == "none":
            return
        assert isinstance(peer, Peer | Program | Remote)
        if situation.tls == "half":
            if situation.origin == "accept":
                peer.handshake(half=True)
            return
        thread = threading.Thread(target=peer.handshake, name="handshake")
        thread.start()
        self._threads.append(thread)

    @property
    def shakes_hands(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def secured(self) -> None:
        """Wait for the handshake of the peer, and let the peer send its close_notify."""
        for thread in self._threads:
            thread.join(_DEADLINE)
        tls, peer = self.situation.tls, self.peer
        if not isinstance(peer, Peer | Remote):
            return
        if tls == "close_notify":
            peer.send_close_notify()
        elif tls == "alert":
            peer.send_alert()

    def context(self) -> ssl.SSLContext | None:
        """Return our TLS context; None: no TLS."""
        if self.situation.tls == "none":
            return None
        version = _version(self.situation)
        server = self.situation.origin != "connect"
        return server_context(version) if server else client_context(version)

    def tls_side(self) -> dict[str, Any]:
        """Return the arguments that make us the server or the client of a TLS session."""
        server = self.situation.origin != "connect"
        return {"server_side": server, "server_hostname": None if server else NAME}

    def write(self) -> bytes:
        """Return the data that the caller writes."""
        return {"nothing": b"", "little": LITTLE, "more": MORE}[self.situation.wrote]

    def write_now(self, send: Callable[[bytes], int]) -> None:
        """Write as much of the data as possible without waiting."""
        data, until = self.write(), monotonic() + _DEADLINE
        with suppress(OSError):  # no room, or the connection is over
            while data and monotonic() < until:
                sent = send(data)
                self.written += sent
                data = data[sent:]

    def shut(self, sock: socket.socket) -> None:
        how = {"reading": socket.SHUT_RD, "writing": socket.SHUT_WR, "both": socket.SHUT_RDWR}
        if self.situation.shut != "none":
            if self.situation.origin == "fast open connect":  # before it, shutdown() cancels
                _await_room(sock)
            with suppress(OSError):
                sock.shutdown(how[self.situation.shut])

    def hold(self, stream: Any) -> None:
        """Set the option, and make the other holders that exist before the call."""
        self.set_option()
        match self.situation.holder:
            case "dup":
                self._held.enter_context(self.ours_dup())
                self.holders = 1
            case "child":
                self._fork()
            case "makefile reader":
                self._makefile = stream.makefile("rb")
                self._held.callback(_close_file, self._makefile)
            case "makefile writer":
                self._makefile = stream.makefile("wb")
                self.unsent = self._makefile.write(b"not flushed")
                self._held.callback(_close_file, self._makefile)
            case "epoll":
                watch = select.epoll()
                self._held.callback(watch.close)
                if self.ours.fileno() != -1:
                    watch.register(self.ours.fileno(), select.EPOLLIN | select.EPOLLET)
            case _:
                pass

    def ours_dup(self) -> Any:
        """Return a socket with a dup of the descriptor."""
        if self.ours.fileno() == -1:
            return nullcontext()
        number = os.dup(self.ours.fileno())
        return socket.socket(self.ours.family, self.ours.type, 0, number)

    def share(self, stream: Any) -> None:
        """Start the threads that use the socket during the call."""
        match self.situation.holder:
            case "reader":
                self._begin(self._read, stream)
                _await_sleep(self._threads[-1])
            case "sender":
                self._begin(self._send_on, stream)
                _await_sleep(self._threads[-1])
            case "closer":
                self._begin(socket.socket.close, stream)
            case _:
                pass

    def _read(self, stream: socket.socket) -> None:
        with suppress(OSError, ValueError):
            while stream.recv(65536):
                pass

    def _send_on(self, stream: socket.socket) -> None:
        with suppress(OSError, ValueError):
            while True:
                self.written += stream.send(MORE)

    def _begin(self, act: Callable[[Any], None], stream: Any) -> None:
        thread = threading.Thread(target=act, args=(stream,), name="holder", daemon=True)
        thread.start()
        self._threads.append(thread)

    def _fork(self) -> None:
        """Fork a child that has the descriptor, and no other descriptor when this returns."""
        number = self.ours.fileno()
        if number == -1:
            return
        ready, tell = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # other threads may run
            child = os.fork()
        if child == 0:
            try:
                signal.alarm(30)
                # Also the copy of the peer's socket. Otherwise the peer's close() would not be the last.
                for first, last in pairwise(sorted({2, number, 4096})):
                    os.closerange(first + 1, last)
                while True:
                    signal.pause()
            finally:
                os._exit(0)
        os.close(tell)
        os.read(ready, 1)  # returns at the end: the child has closed its copy of the pipe, too
        os.close(ready)
        self._held.callback(_end_child, child)

    def still_running(self, seconds: float) -> list[str]:
        """Wait for the threads of other holders; return the names of those that still run."""
        for thread in self._threads:
            thread.join(seconds)
        return [thread.name for thread in self._threads if thread.is_alive()]

    async def read_on(self, receive: Callable[[], Awaitable[bytes]]) -> None:
        """Read until the end; the task of another holder."""
        with suppress(OSError, MemoryError, anyio.EndOfStream, *_CLOSED):
            while await receive():
                pass
        self.task_ended = True

    async def send_file(self, send: Callable[[BinaryIO], Awaitable[object]]) -> None:
        """Send a file that is larger than the buffers; the task of another holder."""
        with tempfile.TemporaryFile() as file:
            file.write(bytes(FILE))
            file.seek(0)
            try:
                # asyncio raises AttributeError if the transport has no socket any more.
                with suppress(OSError, RuntimeError, AttributeError):
                    await send(file)
            finally:
                self.written += file.tell()
                self.unsent += FILE - file.tell()
                self.task_ended = True

    def prepare_peer(self) -> None:
        """Let the peer do what it does before the call."""
        if self.peer is not None:
            self.peer.before(self.situation.unread)


class _NoAnswer:
    """Discards every packet."""

    def carry(self, raw: bytes, from_: object, now: float) -> list[Any]:
        return []


def _version(situation: Situation) -> ssl.TLSVersion:
    return ssl.TLSVersion.TLSv1_2 if situation.tls == "1.2" else ssl.TLSVersion.TLSv1_3


def _await_room(sock: socket.socket) -> None:
    """Wait until there is a connection, if the peer answers the handshake."""
    poller = select.poll()
    poller.register(sock, select.POLLOUT)
    poller.poll(100)


def _await_sleep(thread: threading.Thread) -> None:
    """Wait until the thread sleeps in a system call, or has ended; futex(2) does not count."""
    until = monotonic() + 0.2
    with suppress(OSError):
        while thread.is_alive() and monotonic() < until:
            call = Path(f"/proc/self/task/{thread.native_id}/syscall").read_text().split()[0]
            if call not in {"running", "-1", *_FUTEX}:
                return
            time.sleep(0.0005)


_FUTEX = ("202", "98")  # on x86-64, and on most other processors


def _close_file(file: Any) -> None:
    with suppress(OSError, ValueError):
        file.close()


def _end_child(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
