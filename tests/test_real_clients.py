"""Real clients that upload to servers with early replies: every reply arrives complete."""

from __future__ import annotations

import http.client
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from certificates import AUTHORITY, CERTIFICATE
from event_loops import LOOPS

HERE = Path(__file__).parent
UPLOAD = bytes(5_000_000)
TRIES = 50
AT_A_TIME = 5
ENOUGH = 60.0

THREADED = ["blocking", "close_all", "Reaper"]
DRIVERS = [
    *THREADED,
    *LOOPS,
    "trio",
    "anyio on asyncio",
    "anyio on trio",
]

# A status, and the number of bytes of the body.
Reply = tuple[int, int]
WHOLE = (413, 65536)


class Server(NamedTuple):
    """The address of a server, and the file of the authority that it is trusted by, if any."""

    port: int
    authority: Path | None

    @property
    def url(self) -> str:
        return f"{'https' if self.authority else 'http'}://127.0.0.1:{self.port}/"

    @property
    def context(self) -> ssl.SSLContext | None:
        return ssl.create_default_context(cafile=self.authority) if self.authority else None


@pytest.fixture(params=["plain", "TLS"])
def server(request: pytest.FixtureRequest, driver: str) -> Iterator[Server]:
    over_tls = request.param == "TLS"
    command = [sys.executable, str(HERE / "early_server.py"), driver]
    with subprocess.Popen(
        [*command, str(CERTIFICATE)] if over_tls else command,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield Server(int(process.stdout.readline()), AUTHORITY if over_tls else None)
        finally:
            process.kill()


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def by_http_client(server: Server) -> Reply:
    context = server.context
    connection = (
        http.client.HTTPSConnection("127.0.0.1", server.port, timeout=ENOUGH, context=context)
        if context
        else http.client.HTTPConnection("127.0.0.1", server.port, timeout=ENOUGH)
    )
    try:
        connection.request("POST", "/", body=UPLOAD)
        response = connection.getresponse()
        return response.status, len(response.read())
    finally:
        connection.close()


def by_httpx(server: Server) -> Reply:
    with httpx.Client(verify=server.context or False, timeout=ENOUGH) as client:
        response = client.post(server.url, content=UPLOAD)
        return response.status_code, len(response.content)


def by_aiohttp(server: Server) -> list[Reply]:
    """Run all tries in a process: aiohttp does not close unfinished connections."""
    client = subprocess.run(
        [sys.executable, str(HERE / "aiohttp_client.py"), server.url, str(server.authority or ""),
         str(TRIES)],
        input=UPLOAD, capture_output=True, check=True,
    )  # fmt: skip
    replies = [line.split() for line in client.stdout.splitlines()]
    return [(int(status), int(size)) for status, size in replies]


def by_curl(server: Server) -> Reply:
    trust = ["--cacert", str(server.authority)] if server.authority else []
    curl = subprocess.run(
        ["curl", "-sS", "-H", "Expect:", "--data-binary", "@-", server.url, *trust,
         "-o", "/dev/null", "-w", "%{http_code} %{size_download}", "--max-time", "60"],
        input=UPLOAD, capture_output=True, check=True,
    )  # fmt: skip
    status, size = curl.stdout.split()
    return int(status), int(size)


def by_openssl(server: Server) -> Reply:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(UPLOAD)
    client = subprocess.run(
        ["openssl", "s_client", "-quiet", "-verify_return_error", "-CAfile",
         str(server.authority), "-connect", f"127.0.0.1:{server.port}"],
        input=head + UPLOAD, capture_output=True, check=False, timeout=ENOUGH,
    )  # fmt: skip
    head, _, body = client.stdout.partition(b"\r\n\r\n")
    return int(head.split()[1]), len(body)


CLIENTS: dict[str, Callable[[Server], Reply]] = {
    "http.client": by_http_client,
    "httpx": by_httpx,
    "curl": by_curl,
    "openssl": by_openssl,
}


def test_every_early_reply_to_aiohttp_arrives_complete(server: Server) -> None:
    assert by_aiohttp(server) == [WHOLE] * TRIES


@pytest.mark.parametrize("client", CLIENTS)
def test_every_early_reply_arrives_complete(server: Server, client: str) -> None:
    if client == "openssl" and server.authority is None:
        return  # it supports only TLS
    if client in {"curl", "openssl"} and shutil.which(client) is None:
        pytest.skip(f"needs {client}")
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        replies = list(pool.map(CLIENTS[client], [server] * TRIES))
    assert replies == [WHOLE] * TRIES
