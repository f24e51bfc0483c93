"""The clients by name; `... .clients NAME` runs one in this process.

It reads orders, one JSON line each, and answers each with a JSON line: see `Order`, `Answer`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import tempfile
from functools import cache
from importlib import import_module, metadata
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

_REFUSALS = (401, 413)


class Order(NamedTuple):
    """A POST: its address and size, and the body of the expected reply (None: any)."""

    host: str
    port: int
    upload: int
    reply: int | None

    @property
    def url(self) -> str:
        """The URL, whose path has the size of the reply."""
        return f"http://{self.host}:{self.port}/{self.reply or 0}"

    @property
    def timeout(self) -> float:
        """The timeout of a try in seconds, which is long because the machine is busy."""
        return 15 + self.upload / 500_000

    @property
    def body(self) -> bytes:
        """The body, which is made once for each size."""
        return _zeros(self.upload)


class Answer(NamedTuple):
    """Whether the reply arrived complete, or the client's message."""

    whole: bool
    said: str


# A client returns the status and the body, or raises its own exception.
Got = tuple[int, bytes]


@cache
def _zeros(size: int) -> bytes:
    return bytes(size)


def http_client(order: Order, **headers: str) -> Got:
    from http.client import HTTPConnection

    connection = HTTPConnection(order.host, order.port, timeout=order.timeout)
    try:
        connection.request("POST", f"/{order.reply or 0}", body=order.body, headers=headers)
        with connection.getresponse() as response:
            return response.status, response.read()
    finally:
        connection.close()


def http_client_close(order: Order) -> Got:
    return http_client(order, Connection="close")


def raw(order: Order) -> Got:
    """Send everything, then read: a client written by hand."""
    with socket.create_connection((order.host, order.port), order.timeout) as sock:
        head = f"POST /{order.reply or 0} HTTP/1.1\r\nHost: {order.host}\r\n"
        sock.sendall(f"{head}Content-Length: {order.upload}\r\n\r\n".encode() + order.body)
        with sock.makefile("rb") as file:
            status = int(file.readline().split()[1])
            length = 0
            while (line := file.readline().lower()) not in (b"\r\n", b""):
                if line.startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            body = file.read(length)
    if len(body) != length:
        raise EOFError(f"{len(body)} of {length} bytes")
    return status, body


def curl_unasked(order: Order) -> Got:
    return curl(order, "-H", "Expect:")


def curl(order: Order, *more: str) -> Got:
    """Run curl, which sends `Expect: 100-continue` for 1 MB or more."""
    with tempfile.NamedTemporaryFile() as file:
        command = [
            *("curl", "-sS", "--noproxy", "*", "--max-time", f"{order.timeout:g}", *more),
            *("--data-binary", f"@{_upload_file(order.upload)}"),
            *("-o", file.name, "-w", "%{http_code}", order.url),
        ]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise RuntimeError(ended.stderr.strip())
        return int(ended.stdout), Path(file.name).read_bytes()


@cache
def _upload_file(size: int) -> str:
    path = Path(_folder().name, str(size))
    path.write_bytes(_zeros(size))
    return str(path)


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


def requests(order: Order) -> Got:
    with import_module("requests").Session() as session:
        session.trust_env = False  # no proxy
        response = session.post(order.url, data=order.body, timeout=order.timeout)
        return response.status_code, response.content


def urllib3(order: Order) -> Got:
    with import_module("urllib3").PoolManager(retries=False, timeout=order.timeout) as pool:
        response = pool.request("POST", order.url, body=order.body)
        return response.status, response.data


def httpx(order: Order) -> Got:
    with import_module("httpx").Client(trust_env=False, timeout=order.timeout) as client:
        response = client.post(order.url, content=order.body)
        return response.status_code, response.content


def aiohttp(order: Order) -> Got:
    package: Any = import_module("aiohttp")

    async def ask() -> Got:
        timeout = package.ClientTimeout(total=order.timeout)
        upload = BytesIO(order.body)  # a file, as its documentation recommends for large bodies
        async with (
            package.ClientSession(timeout=timeout) as session,
            session.post(order.url, data=upload) as response,
        ):
            return response.status, await response.read()

    return asyncio.run(ask())


# The clients by name, each with its package on PyPI.
CLIENTS: dict[str, tuple[Callable[[Order], Got], str | None]] = {
    "curl": (curl, None),
    "curl -H Expect:": (curl_unasked, None),
    "requests": (requests, "requests"),
    "urllib3": (urllib3, "urllib3"),
    "httpx": (httpx, "httpx"),
    "http.client": (http_client, None),
    "http.client: close": (http_client_close, None),
    "aiohttp": (aiohttp, "aiohttp"),
    "raw": (raw, None),
}


def versions() -> dict[str, str]:
    """Return the versions of the installed clients that have one."""
    found: dict[str, str] = {}
    for name, (_, package) in CLIENTS.items():
        try:
            found |= {name: metadata.version(package)} if package else {}
        except metadata.PackageNotFoundError:
            continue
    try:
        said = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True)
        found["curl"] = said.stdout.split()[1]
    except FileNotFoundError:
        pass
    return found


def ask(client: Callable[[Order], Got], order: Order) -> Answer:
    try:
        status, body = client(order)
    except Exception as error:  # noqa: BLE001 (each client has its own exceptions)
        return Answer(False, f"{type(error).__name__}: {error}"[:200])
    if status not in _REFUSALS:
        return Answer(False, f"status {status}")
    if order.reply not in (None, len(body)):
        return Answer(False, f"{len(body)} of {order.reply} bytes")
    return Answer(True, "")


def main() -> None:
    client, _ = CLIENTS[sys.argv[1]]
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(ask(client, Order(*json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
