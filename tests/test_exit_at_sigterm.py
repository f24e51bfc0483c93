"""SIGTERM ends a program by SystemExit, after its pending closes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from graceful_close import _signals as signals  # pyright: ignore[reportPrivateUsage]
from graceful_close import exit_at_sigterm
from streams import DEADLINE

if sys.platform == "win32":
    pytest.skip("processes do not get SIGTERM there", allow_module_level=True)

PROGRAM = """
import signal, socket
from graceful_close import Reaper, exit_at_sigterm
exit_at_sigterm()
reaper = Reaper()
with socket.create_server(("127.0.0.1", 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    sock = listener.accept()[0]
sock.sendall(b"reply")
reaper.submit(sock)
print("submitted", flush=True)
signal.pause()
"""


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signals._ordered_at = -1e9  # pyright: ignore[reportPrivateUsage]
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_reaper_finishes_before_the_program_ends() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        port = int(program.stdout.readline())
        with socket.create_connection(("127.0.0.1", port), DEADLINE) as client:
            assert program.stdout.readline() == "submitted\n"
            program.terminate()
            assert client.recv(100) == b"reply"
            assert client.recv(1) == b""
            client.sendall(
                bytes(20_000_000)
            )  # more than the buffers hold, so that RST would truncate it
        assert program.wait(DEADLINE) == 0


def test_sigterm_raises_system_exit_in_the_main_thread() -> None:
    exit_at_sigterm()
    with pytest.raises(SystemExit) as caught:
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code is None


def test_a_second_sigterm_immediately_after_the_first_is_ignored() -> None:
    exit_at_sigterm()
    with pytest.raises(SystemExit):
        os.kill(os.getpid(), signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)


def test_a_later_second_sigterm_raises_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_SAME_ORDER", 0.0)
    exit_at_sigterm()
    for _ in range(2):
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)


def some_handler(_number: int, _frame: object) -> None:
    pass


@pytest.mark.parametrize("kept", [signal.SIG_IGN, some_handler])
def test_an_existing_handler_is_kept(kept: Any) -> None:
    signal.signal(signal.SIGTERM, kept)
    exit_at_sigterm()
    assert signal.getsignal(signal.SIGTERM) is kept


def test_a_second_call_has_no_effect() -> None:
    exit_at_sigterm()
    ours = signal.getsignal(signal.SIGTERM)
    exit_at_sigterm()
    assert signal.getsignal(signal.SIGTERM) is ours


def test_only_the_main_thread_may_call_exit_at_sigterm() -> None:
    raised: list[BaseException] = []

    def call() -> None:
        try:
            exit_at_sigterm()
        except ValueError as error:
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(DEADLINE)
    assert "main thread" in str(raised[0])
