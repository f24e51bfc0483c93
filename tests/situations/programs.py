"""Peers that are real programs: curl, which reads a reply up to its end, or uploads before it reads."""

from __future__ import annotations

import subprocess
from contextlib import suppress

from .peers import Account

UPLOAD = 1_000_000
_LONGEST = 2  # seconds
_WRITTEN = "%{size_download} %{size_request} %{size_upload}"
_FORMAT = ["--write-out", _WRITTEN, "--output", "/dev/null"]
# The reply has no header, as in HTTP/0.9. Its end is the end of the connection.
_CURL = ["curl", "--silent", "--show-error", "--insecure", "--http0.9", "--no-progress-meter"]

# libcurl-errors(3)
_OK, _TIMED_OUT, _NOTHING, _CANNOT_SEND = 0, 28, 52, 55


class Program:
    """A process of curl that connects to a listener of ours.

    Args:
        name: "curl" or "curl uploads".
        address: The address of the listener.
        tls: The version of TLS; None: no TLS.
    """

    def __init__(self, name: str, address: tuple[str, int], tls: str | None) -> None:
        self.account = Account()
        host, port = address[0].replace("::ffff:", ""), address[1]
        scheme, host = "https" if tls else "http", f"[{host}]" if ":" in host else host
        version = ["--tls-max", tls] if tls else []
        self._tls = tls is not None
        data = ["--data-binary", "@-", "--header", "Expect:"] if name == "curl uploads" else []
        self._process = subprocess.Popen(
            [
                *_CURL,
                *_FORMAT,
                "--max-time",
                str(_LONGEST),
                *version,
                *data,
                f"{scheme}://{host}:{port}/",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write("u" * UPLOAD if data else "")
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdin = None

    # --- the interface of a peer -----------------------------------------------------------------

    def handshake(self, *, half: bool = False) -> None:
        """Do nothing: the process does it."""

    def send_close_notify(self) -> None:
        """Do nothing: the process sends it at its end."""

    def send_alert(self) -> None:
        raise NotImplementedError

    def before(self, unread: str) -> None:
        """Do nothing: the process has sent its request."""

    def start(self) -> None:
        """Do nothing: the process runs."""

    def cpu(self) -> float:
        return 0.0

    def returned(self) -> None:
        """Do nothing at the return of the call."""

    def finish(self) -> Account:
        """Wait for the end of the process, and return what it has reported."""
        try:
            printed, errors = self._process.communicate(timeout=2 * _LONGEST)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            return self.account
        account = self.account
        received, request, upload = map(int, printed.split())
        account.received, account.sent = received, request + upload
        code = self._process.returncode
        if code in {_OK, _NOTHING}:
            account.end, account.fin = "FIN", True
            account.sent_close_notify = self._tls
            account.failure = errors.strip() or "not reported: whether close_notify came"
        elif code != _TIMED_OUT:
            account.end, account.failure = "RST", errors.strip()
            account.fin = True  # of its close, which may precede our RST
            account.left = code == _CANNOT_SEND
        return account

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
