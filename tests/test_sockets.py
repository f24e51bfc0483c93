"""What a socket is, and whose its descriptor is."""

from __future__ import annotations

import _socket
import asyncio
import gc
import os
import socket
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from graceful_close import CloseOutcome, _platform, graceful_close
from graceful_close._platform import HERE, View
from graceful_close._record import replace
from graceful_close._sockets import (
    borrow_descriptor,
    has_open_writer,
    plain_dup,
    require_stream,
    take_descriptor,
    view_of,
)
from streams import Connection, default_timeout

Move = Callable[[socket.socket, list[socket.socket]], bool]
MPTCP, SCTP = 262, 132

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="the views are Linux's")


@needs_linux
@pytest.mark.parametrize(
    ("family", "view"),
    [(socket.AF_INET, HERE.tcp), (socket.AF_INET6, HERE.tcp), (socket.AF_UNIX, HERE.other)],
    ids=["IPv4", "IPv6", "AF_UNIX"],
)
def test_a_tcp_socket_is_told_from_other_streams(
    family: socket.AddressFamily, view: View
) -> None:
    with socket.socket(family) as sock:
        assert view_of(sock) is view


def claims(sock: socket.socket, protocol: int) -> socket.socket:
    """Another object for the same descriptor, that claims to have this protocol."""
    claiming: Any = _socket.socket
    made: socket.socket = claiming(sock.family, sock.type, protocol, sock.fileno())
    return made


@needs_linux
def test_the_kernel_is_asked_for_the_protocol_and_not_the_object(tcp: Connection) -> None:
    claiming = claims(tcp.ours, MPTCP)
    assert view_of(claiming) is HERE.tcp
    claiming.detach()


@needs_linux
@pytest.mark.parametrize("answer", ["an error", "no option"])
@pytest.mark.parametrize(
    ("protocol", "kind"), [(0, "tcp"), (6, "tcp"), (MPTCP, "mptcp"), (SCTP, "other")]
)
def test_without_an_answer_of_the_kernel_the_object_says_the_protocol(
    answer: str, protocol: int, kind: str, tcp: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    claiming = claims(tcp.ours, protocol)
    if answer == "no option":
        monkeypatch.setattr(_platform, "HERE", replace(HERE, protocol=None))
        assert view_of(claiming) == getattr(_platform.HERE, kind)
        claiming.detach()
    else:
        claiming.detach()
        assert view_of(claiming) is getattr(HERE, kind)


# --- whose the descriptor is ---------------------------------------------------------------------


def kind_of(sock: socket.socket) -> tuple[int, int, int]:
    return sock.family, sock.type, sock.proto


def test_what_is_taken_belongs_to_the_new_object_alone(tcp: Connection) -> None:
    number = tcp.ours.fileno()
    held: list[socket.socket] = []
    assert take_descriptor(tcp.ours, held) is True
    assert tcp.ours.fileno() == -1
    assert "[closed]" in repr(tcp.ours)
    [taken] = held
    assert taken.fileno() == number
    assert kind_of(taken) == kind_of(tcp.ours)
    taken.close()
    assert tcp.peer.recv(1) == b""


def test_what_is_borrowed_belongs_to_both(tcp: Connection) -> None:
    held: list[socket.socket] = []
    assert borrow_descriptor(tcp.ours, held) is True
    [borrowed] = held
    assert borrowed.fileno() == tcp.ours.fileno()
    assert kind_of(borrowed) == kind_of(tcp.ours)
    borrowed.detach()
    tcp.ours.sendall(b"x")
    assert tcp.peer.recv(1) == b"x"


@pytest.mark.parametrize("move", [take_descriptor, borrow_descriptor])
def test_a_socket_without_a_descriptor_gives_none(move: Move) -> None:
    sock = socket.socket()
    sock.close()
    held: list[socket.socket] = []
    assert move(sock, held) is False
    assert held == []


@pytest.fixture(params=["this one", "one without SOCK_NONBLOCK"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "this one":
        monkeypatch.setattr(_platform, "KEEPS_MODE", 0)
        monkeypatch.setattr(_platform.modes, "KEEPS_MODE", 0)


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("default", [None, 7.0])
def test_a_descriptor_that_only_os_close_has_closed_is_closed(default: float | None) -> None:
    ours, peer = socket.socketpair()
    os.close(ours.fileno())
    with default_timeout(default):
        assert graceful_close(ours).outcome is CloseOutcome.ALREADY_CLOSED
    assert ours.fileno() == -1
    peer.close()


def dup(sock: socket.socket, into: list[socket.socket]) -> bool:
    into.append(plain_dup(sock))
    return True


@pytest.mark.skipif(sys.platform == "win32", reason="the mode of a socket cannot be read")
@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("move", [take_descriptor, borrow_descriptor, dup])
@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("default", [None, 0.0, 7.0])
def test_a_second_object_never_waits_by_itself_and_the_mode_stays(
    move: Move,
    blocking: bool,
    default: float | None,
    tcp: Connection,
) -> None:
    tcp.ours.setblocking(blocking)
    held: list[socket.socket] = []
    with tcp.ours.dup() as other_holder:
        with default_timeout(default):
            move(tcp.ours, held)
        assert os.get_blocking(other_holder.fileno()) is blocking
    assert held[0].gettimeout() in {None, 0.0}
    if move is borrow_descriptor:
        held[0].detach()
    else:
        held[0].close()


def test_a_descriptor_that_is_no_sockets_is_not_lost(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file, pytest.raises(OSError, match="socket"):
        plain_dup(file)  # type: ignore[arg-type]


def test_a_subclass_may_have_a_detach_of_its_own(tcp: Connection) -> None:
    class Other(socket.socket):
        def detach(self) -> int:
            raise AssertionError("the library does not need it")

    other = Other(fileno=socket.socket.detach(tcp.ours))
    held: list[socket.socket] = []
    with pytest.raises(AssertionError, match="does not need it"):
        take_descriptor(other, held)
    assert other.fileno() == -1, "it is out of the object, whatever that says"
    held[0].close()


class Green:
    """A socket that is not the interpreter's."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.family, self.type, self.proto = sock.family, sock.type, sock.proto
        self.fileno = sock.fileno


class Eventlets(Green):
    """It wraps one of the interpreter's, and has no detach()."""

    __module__ = "eventlet.greenio.base"

    @property
    def fd(self) -> socket.socket:
        return self._sock


class Gevents(Green):
    """It gives its number up."""

    __module__ = "gevent._socket3"

    def detach(self) -> int:
        return self._sock.detach()


@pytest.mark.parametrize("kind", [Eventlets, Gevents])
def test_a_socket_that_waits_cooperatively_is_a_stream_whose_descriptor_can_be_taken(
    kind: type[Green], tcp: Connection
) -> None:
    sock: Any = kind(tcp.ours)
    number = tcp.ours.fileno()
    require_stream(sock)
    held: list[socket.socket] = []
    assert take_descriptor(sock, held) is True
    assert (held[0].fileno(), tcp.ours.fileno()) == (number, -1)
    assert kind_of(held[0]) == kind_of(tcp.ours)
    assert take_descriptor(sock, held) is False
    held[0].close()


def test_a_stream_of_an_event_loops_is_known_in_a_subclass_too() -> None:
    class Ours(asyncio.Transport):
        pass

    transport: Any = Ours()
    with pytest.raises(TypeError, match=r"; use graceful_close\.asyncio$"):
        require_stream(transport)


def test_a_plain_dup_is_a_plain_socket_with_a_number_of_its_own(tcp: Connection) -> None:
    class Other(socket.socket):
        pass

    with Other(fileno=tcp.ours.detach()) as other, closing(plain_dup(other)) as dup:
        assert type(dup) is _socket.socket
        assert dup.fileno() != other.fileno()
        assert (dup.family, dup.type) == (other.family, other.type)
        dup.sendall(b"x")
    assert tcp.peer.recv(1) == b"x"


# --- makefile() ----------------------------------------------------------------------------------


def test_an_object_that_has_no_files_has_none_that_writes(tcp: Connection) -> None:
    claiming = claims(tcp.ours, 0)
    assert has_open_writer(claiming) is False
    claiming.detach()


@pytest.mark.skipif(not hasattr(gc, "freeze"), reason="PyPy's collector has no such function")
def test_an_open_file_that_the_collector_does_not_show_may_hold_something_back(
    tcp: Connection,
) -> None:
    with tcp.ours.makefile("rb"):
        gc.freeze()
        try:
            assert has_open_writer(tcp.ours) is True
        finally:
            gc.unfreeze()


def test_a_file_that_writes_to_another_socket_is_of_no_concern(tcp: Connection) -> None:
    with tcp.ours.makefile("rb"), tcp.peer.makefile("wb"):
        assert has_open_writer(tcp.ours) is False
