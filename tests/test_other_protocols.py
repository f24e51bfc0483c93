"""The servers of docs/other-protocols.md, with and without the library."""

from __future__ import annotations

import ftplib
import importlib.util
import io
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streams import DEADLINE, meanwhile
from test_snippets import run_page

PAGE = Path(__file__).parent.parent / "docs/other-protocols.md"
TRIES = 5
UPLOAD = bytes(20_000_000)  # more than the buffers hold

# Every test runs the code of the whole page.
IMPORTED = ("aiosmtpd", "asyncssh", "paho", "pyftpdlib")
pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, IMPORTED)), reason=f"needs {', '.join(IMPORTED)}"
)

# Each is run after the code of the page. `ours` selects whether the library is used.
LISTEN = """
import asyncio, socket
from graceful_close import exit_at_sigterm

exit_at_sigterm()

def printed(listener):
    print(listener.getsockname()[1], flush=True)
    return listener

ADDRESS = ("127.0.0.1", 0)

class Listener(GracefulListener):
    def __init__(self, address):
        super().__init__(address)
        printed(self)

async def plainly(protocol_or_handler, streams=False):
    listener = printed(socket.create_server(ADDRESS))
    if streams:
        server = await asyncio.start_server(protocol_or_handler, sock=listener)
    else:
        server = await asyncio.get_running_loop().create_server(protocol_or_handler, sock=listener)
    await server.serve_forever()
"""

SERVERS = {
    "asyncio": """
GracefulListener = Listener

async def handle(reader, writer):
    await reader.readline()
    writer.write(b"-ERR Protocol error\\r\\n")
    writer.close()

asyncio.run(serve_lines(handle, ADDRESS) if ours else plainly(handle, streams=True))
""",
    "socketserver": """
import socketserver

class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.rfile.readline()
        self.wfile.write(b"ERROR\\r\\n")

with (LineServer if ours else socketserver.ThreadingTCPServer)(ADDRESS, Handler) as server:
    printed(server.socket)
    server.serve_forever()
""",
    "aiosmtpd": """
GracefulListener = Listener

class Handler:
    async def handle_RCPT(self, server, session, envelope, address, options):
        return "550 no such user"

asyncio.run(serve_smtp(Handler(), ADDRESS) if ours else plainly(lambda: SMTP(Handler())))
""",
    "asyncssh": """
import asyncssh, logging
GracefulListener = Listener
key = [asyncssh.generate_private_key("ssh-ed25519")]

class Server(asyncssh.SSHServer):
    def connection_made(self, connection):
        reason = "too many of you"
        asyncio.get_running_loop().call_soon(
            connection.disconnect, asyncssh.DISC_TOO_MANY_CONNECTIONS, reason
        )

async def serve():
    options = {"server_host_keys": key, "server_factory": Server}
    if ours:
        server = await serve_ssh(ADDRESS, **options)
    else:
        server = await asyncssh.listen(sock=printed(socket.create_server(ADDRESS)), **options)
    await server.wait_closed()

asyncio.run(serve())
""",
    "pyftpdlib": """
import errno, logging, os, tempfile
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.filesystems import AbstractedFS

class Full:
    name = "full"
    closed = False
    def write(self, data): raise OSError(errno.ENOSPC, "disk full")
    def close(self): self.closed = True

class FullDisk(AbstractedFS):
    def open(self, filename, mode): return Full()

logging.disable()
authorizer = DummyAuthorizer()
authorizer.add_anonymous(tempfile.gettempdir(), perm="elrw")
if ours:
    server = ftp_server(ADDRESS, authorizer)
    handler = GracefulFTPHandler
else:
    FTPHandler.authorizer = authorizer
    server = FTPServer(ADDRESS, FTPHandler)
    handler = FTPHandler
handler.abstracted_fs = FullDisk
printed(server.socket)
server.serve_forever()
""",
}

SMTP = (
    b"EHLO here\r\nMAIL FROM:<a@here>\r\nRCPT TO:<b@there>\r\nDATA\r\n" + b"spam\r\n" * 800_000
)


# A client's identification string, and SSH_MSG_IGNORE packets (RFC 4253, section 11.2).
SSH = b"SSH-2.0-client\r\n" + (b"\0\0\x7f\xfc\x04\x02\0\0\x7f\xf2" + bytes(32758)) * 600


def receives(request: bytes, *answers: bytes) -> Callable[[int], bool]:
    """Run a client that sends everything before it reads; return whether it got the reply."""

    def ask(port: int) -> bool:
        reply = b""
        with socket.create_connection(("127.0.0.1", port), DEADLINE) as client:
            try:
                client.sendall(request)
                client.shutdown(socket.SHUT_WR)
                while chunk := client.recv(1 << 20):
                    reply += chunk
            except ConnectionError:
                return False
        return all(answer in reply for answer in answers)

    return ask


def stores(port: int) -> bool:
    """Return whether an FTP client gets the reason for its failed upload."""
    client = ftplib.FTP(timeout=DEADLINE)
    try:
        client.connect("127.0.0.1", port)
        client.login()
        client.storbinary("STOR file", io.BytesIO(UPLOAD))
    except ftplib.error_temp as refused:
        return str(refused).startswith("426")
    except ConnectionError:
        pass  # of the data connection
    finally:
        client.close()
    return False


CLIENTS = {
    "asyncio": receives(b"\r\n" + UPLOAD, b"-ERR Protocol error"),
    "socketserver": receives(b"\r\n" + UPLOAD, b"ERROR"),
    "aiosmtpd": receives(SMTP, b"550 no such user", b"goodbye"),
    "asyncssh": receives(SSH, b"too many of you"),
    "pyftpdlib": stores,
}


def count_received(name: str, *, ours: bool) -> int:
    """Return how many clients of a server receive its last message."""
    code = "".join(
        block.partition("```")[0] for block in PAGE.read_text().split("```python\n")[1:]
    )
    program = f"{code}\nours = {ours}\n{LISTEN}\n{SERVERS[name]}"
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            return sum(CLIENTS[name](port) for _ in range(TRIES))
        finally:
            server.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="asyncio's proactor loop is not supported")
@pytest.mark.parametrize("name", SERVERS)
def test_every_client_receives_the_last_message(name: str) -> None:
    assert count_received(name, ours=False) < TRIES
    assert count_received(name, ours=True) == TRIES


CONNACK = b"\x20\x02\x00\x00"
NEWS = b"\x30\x80\x80\x04" + b"\x00\x04news" + bytes(65536 - 6)  # PUBLISH, 64 KiB


def publish_and_disconnect(prepare: Callable[[Any], None]) -> bool:
    """Return whether a published message arrives at a broker that sends and reads slowly."""
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion

    closed = threading.Event()
    message = bytes(2_000_000)

    def broker() -> int:
        with listener.accept()[0] as client:
            client.settimeout(DEADLINE)
            assert client.recv(1 << 16)[0] == 0x10  # CONNECT
            client.sendall(CONNACK + NEWS)
            assert closed.wait(DEADLINE)
            count = 0
            try:
                while chunk := client.recv(1 << 20):
                    count += len(chunk)
            except ConnectionResetError:
                pass
            return count

    with socket.create_server(("127.0.0.1", 0)) as listener, meanwhile(broker) as counts:
        client = Client(CallbackAPIVersion.VERSION2)
        prepare(client)
        client.connect("127.0.0.1", listener.getsockname()[1])
        while not client.is_connected():
            client.loop_read()
        client.publish("topic", message)
        while client.want_write():
            client.loop_write()
        client.disconnect()
        while client.want_write():
            client.loop_write()
        closed.set()
    return counts[0] > len(message)


@pytest.mark.filterwarnings("ignore:The asyn(core|chat) module:DeprecationWarning")
def test_what_an_mqtt_client_published_arrives() -> None:
    assert not publish_and_disconnect(lambda client: None)
    names = run_page(PAGE)
    assert publish_and_disconnect(names["prepare_mqtt"])
    names["client_reaper"].close()
