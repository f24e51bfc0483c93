"""A program with the default action for SIGPIPE, like many commands, survives a close."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import graceful_close
from graceful_close import _tls
from graceful_close._tls import (
    _sigwait_sigpipe,  # pyright: ignore[reportPrivateUsage]
    _without_sigpipe,  # pyright: ignore[reportPrivateUsage]
)
from pythons import PYPY
from signals import each_moment
from streams import DEADLINE
from tls_sessions import send_raw_fin, session

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="Windows has no SIGPIPE")

# The beginning of each child, which prints the result of its close at the end.
_BEGIN = """
import asyncio, os, signal, socket, ssl, sys
from contextlib import suppress
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
import graceful_close
from streams import *
version = ssl.TLSVersion.TLSv1_3
"""

_AFTER_A_RESET = """
with STREAM as (ours, peer), graceful_close.Reaper() as reaper:
    reset(peer)
    await_reset(ours)
    print(CLOSE.outcome)
"""

CLOSES = {
    "graceful_close": "graceful_close.graceful_close(ours, timeout=5)",
    "close_all": "graceful_close.close_all([ours], timeout=5)[0]",
    "Reaper": "reaper.submit(ours).result(5)",
    "abortive_close": "graceful_close.abortive_close(ours)",
}

PLAIN = {
    "after a reset that was read": """
with connect("tcp4") as (ours, peer):
    reset(peer)
    with suppress(ConnectionResetError):
        ours.recv(1)
    print(graceful_close.graceful_close(ours, timeout=5).outcome)
""",
    "after the caller's shutdown": """
with connect("tcp4") as (ours, peer):
    ours.shutdown(socket.SHUT_WR)
    peer.close()
    await_fin(ours)
    print(graceful_close.graceful_close(ours, timeout=5).outcome)
""",
    **{
        close: _AFTER_A_RESET.replace("STREAM", 'connect("tcp4")').replace("CLOSE", call)
        for close, call in CLOSES.items()
    },
}

_TLS = """
from tls_sessions import session
"""

TLS = {
    "TLS, after a reset that a dup has read": """
with session(version) as (ours, peer):
    with socket.socket(fileno=os.dup(ours.fileno())) as dup:
        reset(peer)
        await_reset(ours)
        dup.setblocking(True)
        with suppress(ConnectionResetError):
            dup.recv(1)
        print(graceful_close.graceful_close(ours, timeout=5).outcome)
""",
    "TLS, after a FIN below the session": """
with session(version) as (ours, peer):
    socket.socket.shutdown(ours, socket.SHUT_WR)
    print(graceful_close.graceful_close(ours, timeout=0.2).outcome)
""",
    **{
        f"TLS, {close}": _AFTER_A_RESET.replace("STREAM", "session(version)").replace(
            "CLOSE", call
        )
        for close, call in CLOSES.items()
    },
}

_ASYNCIO = """
from test_asyncio import pair
import graceful_close.asyncio

async def main():
    async with pair(KIND) as (reader, writer, peer):
        DO
        print((await graceful_close.asyncio.graceful_close(writer, timeout=0.5)).outcome)

asyncio.run(main())
"""


_ANYIO = """
import anyio
import graceful_close.anyio

async def main():
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        with socket.create_connection(("127.0.0.1", port)) as peer:
            stream = await listener.listeners[0].accept()
            DO
            print((await graceful_close.anyio.graceful_close(stream, timeout=0.5)).outcome)

anyio.run(main, backend=KIND)
"""


_CARELESS = """
import os, signal
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
reader, writer = os.pipe()
os.close(reader)
os.write(writer, b"x")
"""


def survives(program: str) -> list[str]:
    """Run a child that must not be killed or raise; return its output."""
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), *sys.path])}
    child = subprocess.run(
        [sys.executable, "-c", _BEGIN + program],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        restore_signals=False,
    )
    assert child.returncode != -signal.SIGPIPE, "killed by SIGPIPE"
    assert (child.returncode, child.stderr) == (0, "")
    return child.stdout.split()


def test_the_signal_kills_a_program_that_writes_after_a_reset() -> None:
    """Otherwise the tests below would prove nothing."""
    command = [sys.executable, "-c", _CARELESS]
    child = subprocess.run(command, check=False, timeout=DEADLINE)
    assert child.returncode == -signal.SIGPIPE


@pytest.fixture
def default_action() -> Iterator[None]:
    """Give the signal its default action, with which this process dies."""
    action = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    signal.signal(signal.SIGPIPE, action)


@pytest.mark.usefixtures("default_action")
@pytest.mark.parametrize("blocked", [False, True])
@pytest.mark.parametrize("takes", ["sigtimedwait", "sigwait"])
def test_the_signal_of_a_write_is_taken_unless_the_caller_had_blocked_it(
    takes: str, blocked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if takes == "sigwait":
        monkeypatch.setattr(_tls, "_take_sigpipe", _sigwait_sigpipe)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE} if blocked else ())
    try:
        assert _without_sigpipe(lambda: signal.raise_signal(signal.SIGPIPE)) is None
        assert (signal.SIGPIPE in signal.pthread_sigmask(signal.SIG_BLOCK, ())) is blocked
        assert (signal.SIGPIPE in signal.sigpending()) is blocked
    finally:
        if blocked:
            signal.sigwait({signal.SIGPIPE})


@pytest.mark.usefixtures("default_action")
@pytest.mark.skipif(PYPY, reason="PyPy runs signal handlers before calls of C functions, too")
def test_an_interrupt_leaves_neither_the_signal_blocked_nor_a_dup_in_another_mode() -> None:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    for stopped in each_moment(("return", "c_call")):
        with session(ssl.TLSVersion.TLSv1_3) as (ours, peer):
            ours.settimeout(None)
            with socket.socket(fileno=os.dup(ours.fileno())) as dup:
                send_raw_fin(peer)
                with stopped():
                    graceful_close.graceful_close(ours, timeout=DEADLINE)
                assert os.get_blocking(dup.fileno())
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


@pytest.mark.usefixtures("default_action")
def test_a_call_without_the_signal_waits_for_none() -> None:
    assert _without_sigpipe(lambda: 7) == 7


@pytest.mark.parametrize("program", PLAIN.values(), ids=PLAIN)
def test_sigpipe_does_not_kill_a_close(program: str) -> None:
    assert survives(program)


@pytest.mark.parametrize("program", TLS.values(), ids=TLS)
def test_sigpipe_does_not_kill_a_close_over_tls(program: str) -> None:
    assert survives(_TLS + program)


@pytest.mark.parametrize("program", TLS.values(), ids=TLS)
def test_a_close_over_tls_is_not_killed_where_sigtimedwait_is_missing(program: str) -> None:
    without = "from graceful_close import _tls; _tls._take_sigpipe = _tls._sigwait_sigpipe\n"
    assert survives(_TLS + without + program)


@pytest.mark.parametrize("kind", ["tcp", "tls1.2", "tls1.3"])
@pytest.mark.parametrize(
    "deed", ["reset(peer)", "writer.can_write_eof() and writer.write_eof()"]
)
def test_sigpipe_does_not_kill_a_close_in_asyncio(kind: str, deed: str) -> None:
    assert survives(_ASYNCIO.replace("KIND", repr(kind)).replace("DO", deed))


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("deed", ["reset(peer)", "await stream.send_eof()"])
def test_sigpipe_does_not_kill_a_close_in_anyio(backend: str, deed: str) -> None:
    assert survives(_ANYIO.replace("KIND", repr(backend)).replace("DO", deed))
