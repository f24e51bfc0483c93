"""GracefulListener: what it makes of its arguments, and what its connections are."""

from __future__ import annotations

import socket
import ssl
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from certificates import NAME, client_context, server_context
from graceful_close import CloseResult, GracefulListener, Reaper
from graceful_close._listener import _let_others_run  # pyright: ignore[reportPrivateUsage]
from listening import client_of, closing_reaper, connection
from streams import DEADLINE, await_reset, meanwhile, read_all, read_and_close, reset

HERE = ("127.0.0.1", 0)
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="a field of Linux")


@pytest.fixture
def listener() -> Iterator[GracefulListener]:
    with closing_reaper(GracefulListener(HERE)) as listener:
        yield listener


def made_of(sock: socket.socket) -> tuple[int, int, int]:
    return int(sock.family), int(sock.type), sock.proto


# --- the listener --------------------------------------------------------------------------------


@on_linux
def test_the_backlog_is_that_of_the_argument() -> None:
    with GracefulListener(HERE, backlog=7) as listener:
        # tcpi_sacked, which is the backlog's limit of a listening socket (tcp_diag_get_info()).
        told = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)[28:]
        assert int.from_bytes(told, sys.byteorder) == 7


@on_linux
@pytest.mark.parametrize("reuse", [False, True])
def test_the_port_is_shared_only_if_that_is_asked_for(reuse: bool) -> None:
    with GracefulListener(HERE, reuse_port=reuse) as listener:
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == reuse


def test_asyncio_knows_a_tcp_connection_by_its_protocol(listener: GracefulListener) -> None:
    with connection(listener) as (accepted, _):
        assert listener.proto == accepted.proto == socket.IPPROTO_TCP


def test_a_unix_listener_has_no_protocol(tmp_path: Path) -> None:
    address = str(tmp_path / "listener")
    with closing_reaper(GracefulListener(address, family=socket.AF_UNIX)) as listener:
        with connection(listener) as (accepted, _):
            assert listener.proto == accepted.proto == 0


def test_a_dup_is_of_the_same_kind(listener: GracefulListener) -> None:
    with listener.dup() as dup, connection(dup) as (accepted, _), accepted.dup() as second:
        assert made_of(dup) == made_of(listener)
        assert made_of(second) == made_of(accepted)


# --- the backlog ---------------------------------------------------------------------------------


def test_without_a_reply_a_client_in_the_backlog_reads_only_the_end(
    listener: GracefulListener,
) -> None:
    with client_of(listener) as client, meanwhile(read_all, client) as read:
        listener.refuse_backlog(timeout=0.05)
    assert read == [b""]


def test_a_reply_that_does_not_fit_is_not_waited_for(listener: GracefulListener) -> None:
    with client_of(listener):
        [result] = listener.refuse_backlog(bytes(50_000_000), timeout=0.05)
        assert not result.clean


# --- the peer's address --------------------------------------------------------------------------


@contextmanager
def noting() -> Generator[tuple[GracefulListener, list[object]], None, None]:
    peers: list[object] = []

    def note(result: CloseResult) -> None:
        peers.append(result.peer)

    with GracefulListener(HERE, on_close=note) as listener, listener.reaper:
        yield listener, peers


def test_the_address_of_a_peer_that_has_reset_is_that_of_accept() -> None:
    with noting() as (listener, peers):
        with connection(listener) as (accepted, client):
            address = client.getsockname()
            reset(client)
            await_reset(accepted)
            with pytest.raises(ConnectionResetError):
                accepted.recv(1)
            accepted.close()
        listener.reaper.close()
    assert peers == [address]


def test_the_address_of_a_tls_peer_is_in_the_result() -> None:
    with noting() as (listener, peers):
        context = server_context(ssl.TLSVersion.TLSv1_3)
        listener.tls(context)
        with client_of(listener) as raw:
            address = raw.getsockname()
            accepted, _ = listener.accept()
            client = client_context(ssl.TLSVersion.TLSv1_3).wrap_socket(
                raw, server_hostname=NAME, do_handshake_on_connect=False
            )
            with meanwhile(client.do_handshake):
                ours = context.wrap_socket(accepted, server_side=True)
            with meanwhile(read_and_close, client):
                ours.close()
            client.close()
        listener.reaper.close()
    assert peers == [address]


# --- gevent and eventlet -------------------------------------------------------------------------


def test_under_eventlet_a_listener_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class GreenSocket:
        __module__ = "eventlet.greenio.base"

    with socket.create_server(HERE) as plain, Reaper() as reaper:
        monkeypatch.setattr(socket, "socket", GreenSocket)
        refused: Any = GracefulListener
        calls: list[Callable[[], object]] = [
            lambda: refused(HERE),
            lambda: refused.adopt(plain, reaper=reaper),
        ]
        for call in calls:
            with pytest.raises(
                TypeError,
                match=r"^a GracefulListener .*eventlet.* a plain socket.*DrainMiddleware.*application$",
            ):
                call()
        monkeypatch.undo()
        assert plain.fileno() != -1


@pytest.mark.parametrize("timeout", [None, 0.0, DEADLINE])
def test_a_cooperative_wait_for_a_connection_ends_with_it(
    timeout: float | None, listener: GracefulListener
) -> None:
    with client_of(listener):
        listener.settimeout(timeout)
        _let_others_run(listener)
        listener.accept()[0].close()


def test_a_cooperative_wait_ends_at_the_listeners_timeout(listener: GracefulListener) -> None:
    listener.settimeout(0)
    _let_others_run(listener)
    listener.settimeout(0.01)
    with pytest.raises(TimeoutError, match="^timed out"):
        _let_others_run(listener)
