"""Servers in child processes, whose output is read by the test."""

from __future__ import annotations

import os
import re
import select
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import pytest

from streams import DEADLINE


class Program:
    """A running program."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        start_new_session: bool = False,
    ) -> None:
        self.output: bytes = b""
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=env,
            pass_fds=pass_fds,
            start_new_session=start_new_session,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def read_output(self, seconds: float) -> bool:
        """Wait for output and read it; return whether there was any."""
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        if not select.select([descriptor], [], [], seconds)[0]:
            return False
        chunk = os.read(descriptor, 65536)
        assert chunk, self.output.decode()
        self.output += chunk
        return True

    def await_output(self, pattern: bytes) -> re.Match[bytes]:
        """Wait until the output contains a text."""
        give_up = time.monotonic() + DEADLINE
        while (found := re.search(pattern, self.output)) is None:
            left = max(0, give_up - time.monotonic())
            assert self.read_output(left), self.output.decode()
        return found

    def connect_when_it_listens(self, port: int) -> socket.socket:
        """Connect to a port that the program prints before it listens."""
        give_up = time.monotonic() + DEADLINE
        while True:
            try:
                return socket.create_connection(("127.0.0.1", port), DEADLINE)
            except ConnectionRefusedError:
                assert self.process.poll() is None, self.process.communicate()[0].decode()
                assert time.monotonic() < give_up
                select.select([], [], [], 0.02)

    def await_end(self) -> int:
        """Wait for the end, and return the exit status; kill a program that does not end."""
        try:
            self.output += self.process.communicate(timeout=DEADLINE)[0]
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(self.output.decode())
        return self.process.returncode

    def kill(self) -> None:
        """End the program and its workers with SIGTERM; kill it if that does not end it."""
        if self.process.returncode is None:
            self.process.terminate()
            try:
                self.output += self.process.communicate(timeout=DEADLINE)[0]
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.output += self.process.communicate()[0]
