"""Real clients that upload to a server which answers early."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SERVER = Path(__file__).parent.parent / "examples" / "early_reply.py"
TRIES = 50


@pytest.fixture
def address() -> Iterator[str]:
    """Where the example listens."""
    with subprocess.Popen(
        [sys.executable, str(SERVER), "0"], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().split()[-1]
        finally:
            server.terminate()


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_gets_every_early_reply_whole(address: str, tmp_path: Path) -> None:
    upload = tmp_path / "upload"
    upload.write_bytes(bytes(5_000_000))
    replies: list[tuple[int, str]] = []
    for _ in range(TRIES):
        curl = subprocess.run(
            ["curl", "-sS", "-H", "Expect:", "--data-binary", f"@{upload}", address,
             "-o", str(tmp_path / "reply"), "-w", "%{http_code} %{size_download}",
             "--max-time", "30"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        replies.append((curl.returncode, curl.stdout))
    assert replies == [(0, "413 65536")] * TRIES
